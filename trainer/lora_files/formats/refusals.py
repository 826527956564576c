"""Files that look like a LoRA and are something else, told apart by their keys so that the refusal names what they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from trainer.errors import LoraFileError

_OTHER_FILES: tuple[tuple[str, str], ...] = (
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.", "a whole model (checkpoint)"),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA"),
    (r"\.boft_R", "a BOFT of the peft library"),
    (r"\.lora_embedding_[AB]", "a LoRA of the peft library that changes the table of tokens"),
    (r"^(emb_params|emp_params|clip_[lg]|string_to_param.*|inkwash\.per_layer\..*)$", "a textual-inversion embedding"),
    (r"^(unet|text_encoder):\d+:(up|down)$", "a LoRA of the old lora_diffusion tool, whose layers have no names"),
    (r"^lora_transformer_|^transformer\.|^lora_unet_(double|single|joint)_blocks|^(lycoris|lora_unet)_(transformer_blocks|single_transformer)|^diffusion_model\.(double|single|joint)_blocks", "a LoRA for Flux, SD 3 or another transformer model"),
)  # fmt: skip


def refuse_no_lora(keys: Sequence[str], where: str) -> None:
    """Raise LoraFileError with the kind's name if any key is of something that is no LoRA for Stable Diffusion 1, 2 or XL."""
    if not keys:
        raise LoraFileError("The file holds no tensors.", where=where, fix="Download or copy the file again.")
    for pattern, kind in _OTHER_FILES:
        search = re.compile(pattern).search
        if any(search(key) for key in keys):
            raise LoraFileError(
                f"This file is {kind}; Inkwash reads LoRAs of the kinds for Stable Diffusion 1.x, 2.x and XL.",
                where=where,
                fix="Use a LoRA, LoCon, LoHa, LoKr, DoRA, OFT or (IA)³ for one of these models.",
            )
