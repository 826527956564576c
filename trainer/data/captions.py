"""A caption as it is shown this time: wildcards chosen, tags shuffled and dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from trainer.config.data import DataConfig
from trainer.data.randomness import generator_for

_INNERMOST = re.compile(r"\{([^{}]*)\}")


def varies(data: DataConfig) -> bool:
    """Whether captions differ from showing to showing, beyond being dropped whole."""
    return data.shuffle_tags or data.wildcards or data.tag_dropout > 0


def settled(caption: str, data: DataConfig) -> str:
    """The caption where it must not vary, as in the validation: the first choice of each wildcard, all tags in order."""
    return choose(caption, None) if data.wildcards else caption


def varied(caption: str, data: DataConfig, generator: torch.Generator, *stream: int | str) -> str:
    """The caption of one showing.

    Args:
        caption: as it was written.
        data: what is to vary.
        generator: of the shuffling.
        stream: names the showing, for the choices and drops, whose number depends on the caption.
    """
    own = generator_for("caption", *stream)
    if data.wildcards:
        caption = choose(caption, own)
    if data.shuffle_tags:
        caption = shuffle_tags(caption, data.keep_tags, generator)
    return drop_tags(caption, data.keep_tags, data.tag_dropout, own) if data.tag_dropout else caption


def one_of(captions: Sequence[str], *stream: int | str) -> str:
    """One of a picture's captions, drawn for the showing that `stream` names."""
    if len(captions) == 1:
        return captions[0]
    return captions[int(torch.randint(len(captions), (), generator=generator_for("caption of", *stream)))]


def choose(caption: str, generator: torch.Generator | None) -> str:
    """The caption with one of the alternatives of each `{one|another}`, which may be nested; without a generator the first."""

    def pick(match: re.Match[str]) -> str:
        options = match[1].split("|")
        index = 0 if generator is None else int(torch.randint(len(options), (), generator=generator))
        return options[index].strip()

    while _INNERMOST.search(caption):
        caption = _INNERMOST.sub(pick, caption)
    return caption


def shuffle_tags(caption: str, keep: int, generator: torch.Generator) -> str:
    """The comma-separated parts of a caption in another order; the first `keep` stay in place."""
    tags = [tag.strip() for tag in caption.split(",")]
    order = torch.randperm(max(0, len(tags) - keep), generator=generator).tolist()
    return ", ".join([*tags[:keep], *(tags[keep + index] for index in order)])


def drop_tags(caption: str, keep: int, share: float, generator: torch.Generator) -> str:
    """The caption without some of its comma-separated parts, each left out with the probability `share`; the first `keep` stay."""
    tags = [tag.strip() for tag in caption.split(",")]
    stays = (torch.rand(len(tags), generator=generator) >= share).tolist()
    return ", ".join(tag for index, tag in enumerate(tags) if index < keep or stays[index])
