"""What a list of base models shows of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.base_models.families import FAMILY_FACTS


@dataclass(frozen=True)
class Traits:
    """What decides how a model is used.

    Attributes:
        family: a key of `FAMILY_FACTS`.
        prediction_type: "epsilon", "v_prediction", or empty where only running the model can tell.
        zero_terminal_snr: whether its last timestep is pure noise (arXiv 2305.08891).
    """

    family: str = "sd1"
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class BaseModelInfo:
    """A base model. `problem` says why one cannot be used; it is empty for those that can.

    `path` is a diffusers folder or a single file. Texts come from strangers' files: whoever shows them must escape them.
    """

    name: str
    title: str
    path: Path
    traits: Traits = Traits()
    resolution: int = 512
    is_bundled: bool = False
    description: str = ""
    license: str = ""
    example_prompts: tuple[str, ...] = ()
    default_steps: int = 20
    default_guidance: float = 7.0
    precision: str = ""
    size_bytes: int = 0
    problem: str = ""

    @property
    def family(self) -> str:
        """A key of `FAMILY_FACTS`."""
        return self.traits.family

    @property
    def label(self) -> str:
        """The title, with what is unusual about the model: another family than SD 1.x, and how it predicts."""
        facts = [] if self.family == "sd1" else [FAMILY_FACTS[self.family].title]
        facts += ["predicts v"] if self.traits.prediction_type == "v_prediction" else []
        facts += ["zero terminal SNR"] if self.traits.zero_terminal_snr else []
        return f"{self.title} ({', '.join(facts)})" if facts and not self.problem else self.title
