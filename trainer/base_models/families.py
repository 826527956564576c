"""What is known of each model family without loading one: titles, parts, and its names in the metadata of files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FamilyFacts:
    """A family, as lists, checks and metadata need it. Its mathematics is in `trainer/models/<name>.py`.

    Attributes:
        name: the key in `FAMILY_FACTS` and in `trainer.models.family.FAMILIES`.
        title: for people.
        text_encoders: names of the text encoders; each has a tokenizer of the same number.
        resolution: pixels a side that the published models were made for.
        kohya_version: the stem of kohya's `ss_base_model_version`; v-prediction adds `_v` to SD 1 and 2.
        architecture: Stability's `modelspec.architecture`, by prediction type.
    """

    name: str
    title: str
    text_encoders: tuple[str, ...]
    resolution: int
    kohya_version: str
    architecture: dict[str, str]

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders of a whole diffusers model."""
        tokenizers = tuple(name.replace("text_encoder", "tokenizer") for name in self.text_encoders)
        return ("unet", "vae", *self.text_encoders, *tokenizers, "scheduler")

    def kohya_base_version(self, prediction_type: str) -> str:
        """The value of `ss_base_model_version`, by which other programs sort LoRAs."""
        has_suffix = prediction_type == "v_prediction" and self.kohya_version.startswith("sd_")
        return f"{self.kohya_version}_v" if has_suffix else self.kohya_version


VELOCITY_RESOLUTION = 768
"""Pixels a side that the v-prediction models of Stable Diffusion 2.x were made for."""
_BOTH = ("epsilon", "v_prediction")
FAMILY_FACTS: dict[str, FamilyFacts] = {
    facts.name: facts
    for facts in (
        FamilyFacts(
            name="sd1",
            title="Stable Diffusion 1.x",
            text_encoders=("text_encoder",),
            resolution=512,
            kohya_version="sd_v1",
            architecture=dict.fromkeys(_BOTH, "stable-diffusion-v1"),
        ),
        FamilyFacts(
            name="sd2",
            title="Stable Diffusion 2.x",
            text_encoders=("text_encoder",),
            resolution=512,
            kohya_version="sd_v2",
            architecture={"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"},
        ),
        FamilyFacts(
            name="sdxl",
            title="Stable Diffusion XL",
            text_encoders=("text_encoder", "text_encoder_2"),
            resolution=1024,
            kohya_version="sdxl_base_v1-0",
            architecture=dict.fromkeys(_BOTH, "stable-diffusion-xl-v1-base"),
        ),
    )
}
