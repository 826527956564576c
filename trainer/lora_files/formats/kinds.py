"""Files that look like a LoRA and are something else, told apart by their keys so that the refusal names what they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.errors import LoraFileError

_OTHER_KINDS: tuple[tuple[str, str], ...] = (
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.", "a whole model (checkpoint)"),
    (r"^(unet|text_encoder|lora_unet|lora_te).*\.dora_scale$|lora_magnitude_vector", "a DoRA"),
    (r"\.hada_[wt]", "a LoHa"),
    (r"\.lokr_[wt]", "a LoKr"),
    (r"\.lora_mid\.weight$", "a LoCon in Tucker form"),
    (r"\.oft_", "an OFT"),
    (r"\.on_input$", "an (IA)³"),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA"),
    (r"\.(w_norm|b_norm)$", "a LoRA with trained norm layers"),
    (r"\.diff(_b)?$", "a full difference"),
    (r"^bundle_emb\.", "a LoRA with a bundled embedding"),
    (r"^(emb_params|emp_params|clip_[lg]|string_to_param.*)$", "a textual-inversion embedding"),
    (r"^(unet|text_encoder):\d+:(up|down)$", "a LoRA of the old lora_diffusion tool, whose layers have no names"),
    (r"^base_model\.model\.", "a file of the peft library, which does not say what its layers belong to"),
    (r"^(diffusion_model|text_encoders)\.", "a LoRA in ComfyUI's own layout"),
    (r"^lycoris_", "a LyCORIS in its own layout"),
    (r"^lora_transformer_|^transformer\.|^lora_unet_(double|single|joint)_blocks", "a LoRA for Flux, SD 3 or another transformer model"),
)  # fmt: skip


def refuse_other_kinds(keys: Sequence[str], where: str) -> None:
    """Raise LoraFileError with the kind's name if any key is of another kind than plain LoRA or LoCon."""
    if not keys:
        raise LoraFileError("The file holds no tensors.", where=where, fix="Download or copy the file again.")
    for pattern, kind in _OTHER_KINDS:
        search = re.compile(pattern).search
        if any(search(key) for key in keys):
            raise LoraFileError(
                f"This file is {kind}; Inkwash reads plain LoRA and LoCon.",
                where=where,
                fix="Use a plain LoRA or LoCon, or convert the file with the tool that made it.",
            )
