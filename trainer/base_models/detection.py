"""What a single file is, from the names and shapes of its tensors and its metadata; nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.base_models.info import Traits
from trainer.errors import ModelFileError


class NotABaseModelError(ModelFileError):
    """A file of another kind: a LoRA, a VAE, a model of another architecture."""


Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor by its name; empty shapes where only names are known."""
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_PREFIXES: dict[str, dict[str, str]] = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
"""Where each family's text encoders are in the file."""
_FAMILY_OF_WIDTH = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
CHANNELS_KEY = f"{UNET_PREFIX}input_blocks.0.0.weight"
_OTHER_CHANNELS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "an image-editing model (InstructPix2Pix)",
}
INPAINTING_CHANNELS = 9
"""Four of the noisy latents, one of the mask, four of the picture without what is masked."""
# What stands in the names of another kind of file; a line break stands for the beginning or the end of a name.
_OTHER_MODELS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("\nmodel.diffusion_model.double_blocks.", "\ndouble_blocks."), "a FLUX model"),
    (("\nmodel.diffusion_model.joint_blocks.", "\njoint_blocks."), "a Stable Diffusion 3 model"),
    (("\nedm_mean", "\nedm_vpred"), "a model with EDM noise (Playground v2.5, CosXL)"),
    (("\nembedder.", "\nnoise_augmentor."), "an unCLIP model, which is told pictures instead of words"),
    (("\ncontrol_model.", "\ncontrolnet_cond_embedding.", "\ninput_hint_block."), "a ControlNet"),
    (("motion_modules.",), "a motion module for videos"),
    (
        ("\nlora_", ".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".hada_w", ".lokr_w"),
        "a LoRA: put it into the library instead",
    ),
    (
        ("\nemb_params", "\nstring_to_param", "\nclip_l\n", "\nclip_g\n", "\ninkwash.per_layer."),
        "a textual-inversion embedding",
    ),
)
_CROSS_KEY = re.compile(rf"^{re.escape(UNET_PREFIX)}input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight$")


@dataclass(frozen=True)
class Detected:
    """A single file: its traits, and the parts that it lacks."""

    traits: Traits
    missing: tuple[str, ...] = ()


def detect(shapes: Shapes, metadata: Mapping[str, str], where: str, sidecar: str = "") -> Detected:
    """Family, prediction type and zero-terminal SNR of a checkpoint in the original (LDM) layout.

    Args:
        shapes: of its tensors.
        metadata: of its header.
        where: its path, for messages.
        sidecar: the text of the `.yaml` of the same name, which other programs use to say that a model predicts v.

    Raises: ModelFileError: it is something else, or of a kind that cannot be used; the message says what it is.
    """
    # One text for all searches: a folder of a thousand files is looked through in seconds.
    names = "\n".join(("", *shapes, ""))
    _refuse_others(shapes, names, where)
    channels = shapes.get(CHANNELS_KEY, ())
    is_inpainting = len(channels) > 1 and channels[1] == INPAINTING_CHANNELS
    if len(channels) > 1 and channels[1] != 4 and not is_inpainting:
        kind = _OTHER_CHANNELS.get(channels[1], "a model with other inputs")
        raise ModelFileError(
            f"This is {kind} (its UNet takes {channels[1]} channels); Inkwash uses text-to-image and inpainting models.",
            where=where,
            fix="Choose the text-to-image model that it was made from.",
        )
    if _has(names, "conditioner.embedders.0.model."):
        raise ModelFileError(
            "This is the refiner of Stable Diffusion XL, which only finishes another model's pictures.",
            where=where,
            fix="Choose the base model of Stable Diffusion XL, or one fine-tuned from it.",
        )
    family = _family(shapes, names, where)
    missing = [part for part, prefix in TEXT_PREFIXES[family].items() if not _has(names, prefix)]
    if not any(_has(names, prefix) for prefix in VAE_PREFIXES):
        missing.append("vae")
    return Detected(Traits(family, *_noise(family, shapes, metadata, sidecar), is_inpainting), tuple(missing))


def _refuse_others(shapes: Shapes, names: str, where: str) -> None:
    for marks, kind in _OTHER_MODELS:
        if any(mark in names for mark in marks):
            raise NotABaseModelError(f"This file is {kind}; it is no base model of Stable Diffusion.", where=where)
    if _has(names, UNET_PREFIX):
        return
    if shapes and all(
        key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", *VAE_PREFIXES)) for key in shapes
    ):
        raise NotABaseModelError(
            "This file is a VAE alone.", where=where, fix="Set it as model.vae, beside a base model of its family."
        )
    raise NotABaseModelError(
        "This file is no Stable Diffusion checkpoint: it has no UNet in the usual layout.",
        where=where,
        fix="Choose a whole checkpoint, or a diffusers folder.",
    )


def _family(shapes: Shapes, names: str, where: str) -> str:
    for family in ("sdxl", "sd2", "sd1"):
        if any(_has(names, prefix) for prefix in reversed(TEXT_PREFIXES[family].values())):
            return family
    # A UNet alone: the width of what it attends to is that of the text encoders it was trained with.
    for key, shape in shapes.items():
        if _CROSS_KEY.match(key) and len(shape) == 2 and shape[1] in _FAMILY_OF_WIDTH:
            return _FAMILY_OF_WIDTH[shape[1]]
    raise ModelFileError("This checkpoint is of no family that Inkwash knows.", where=where)


def _noise(family: str, shapes: Shapes, metadata: Mapping[str, str], sidecar: str) -> tuple[str, bool]:
    """Prediction type, empty where nothing tells it, and zero-terminal SNR."""
    stated = metadata.get("modelspec.prediction_type", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    says_v = stated in ("v", "v_prediction", "v-prediction") or architecture.endswith("768-v")
    if "v_pred" in shapes or says_v or re.search(r"parameterization:\s*['\"]?v\b", sidecar):
        # The marker means nothing without v-prediction; other programs read it so, too.
        return "v_prediction", "ztsnr" in shapes
    if family == "sd2" and stated != "epsilon" and not architecture.endswith("v2-512"):
        # Both kinds of 2.x have the same tensors; `trainer.models.probe` asks the model itself.
        return "", False
    return "epsilon", False


def _has(names: str, prefix: str) -> bool:
    return f"\n{prefix}" in names
