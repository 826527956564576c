"""The list of captioners. A new one is a file, an entry here, and its name and settings in `trainer.config.caption`. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.captioners.captioner import Captioner
from trainer.config.caption import CaptionConfig
from trainer.objects import load_object


@dataclass(frozen=True)
class CaptionerKind:
    """A captioner. `implementation` is `module:function`, called with the settings and a check for the user's stop."""

    implementation: str
    title: str
    suggested: tuple[str, ...] = ()
    """Models of this kind by their Hugging Face ids, well known ones first."""


CAPTIONERS: dict[str, CaptionerKind] = {
    "builtin": CaptionerKind("trainer.captioners.builtin:load", "Built-in: names, colours, composition"),
    "tagger": CaptionerKind(
        "trainer.captioners.tagger:load",
        "WD14-family tagger",
        ("SmilingWolf/wd-vit-tagger-v3", "SmilingWolf/wd-swinv2-tagger-v3", "SmilingWolf/wd-eva02-large-tagger-v3"),
    ),
    "blip": CaptionerKind("trainer.captioners.blip:load", "BLIP", ("Salesforce/blip-image-captioning-large",)),
    "florence2": CaptionerKind(
        "trainer.captioners.florence2:load",
        "Florence-2",
        ("florence-community/Florence-2-base", "florence-community/Florence-2-large"),
    ),
    "server": CaptionerKind("trainer.captioners.server:load", "Vision-language server"),
}


def load_captioner(config: CaptionConfig, check_stop: Callable[[], None]) -> Captioner:
    """The captioner that the settings ask for, with its model loaded.

    Args:
        config: what is asked.
        check_stop: raises Cancelled where the user asked to stop; called by those that wait for others.

    Raises: ModelFileError, ResourceError: its model or library is not there, or cannot be used.
    """
    return load_object(CAPTIONERS[config.captioner].implementation)(config, check_stop)
