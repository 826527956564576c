"""What a list of base models shows of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.base_models.families import FAMILY_FACTS

INPAINTING_PROBLEM = (
    "This is an inpainting model (its UNet takes nine channels): it makes pictures and cannot be trained here. Train with the "
    "text-to-image model that it was made from; the LoRA works on both."
)


@dataclass(frozen=True)
class Traits:
    """What decides how a model is used.

    Attributes:
        family: a key of `FAMILY_FACTS`.
        prediction_type: "epsilon", "v_prediction", or empty where only running the model can tell.
        zero_terminal_snr: whether its last timestep is pure noise (arXiv 2305.08891).
        is_inpainting: whether its UNet is shown a mask and the picture without what is masked, beside the latents.
    """

    family: str = "sd1"
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False
    is_inpainting: bool = False


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
    def kind(self) -> str:
        """Its family in words, and whether it is an inpainting model."""
        title = FAMILY_FACTS[self.family].title
        return f"{title}, inpainting" if self.traits.is_inpainting else title

    @property
    def training_problem(self) -> str:
        """Why it cannot be trained; empty for those that can. An inpainting model makes pictures only."""
        return self.problem or (INPAINTING_PROBLEM if self.traits.is_inpainting else "")

    @property
    def label(self) -> str:
        """The title, with what is unusual about the model: another family than SD 1.x, and how it predicts."""
        facts = [] if self.family == "sd1" else [FAMILY_FACTS[self.family].title]
        facts += ["inpainting"] if self.traits.is_inpainting else []
        facts += ["predicts v"] if self.traits.prediction_type == "v_prediction" else []
        facts += ["zero terminal SNR"] if self.traits.zero_terminal_snr else []
        return f"{self.title} ({', '.join(facts)})" if facts and not self.problem else self.title
