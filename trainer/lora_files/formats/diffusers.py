"""Layouts with dotted paths: diffusers', peft's, and the one that ComfyUI calls generic.

A file may mix diffusers' spellings of the parts (`lora_A`, `lora.down`, `to_q_lora.down`); each key is taken alone.
"""

from __future__ import annotations

import re

from trainer.lora_files.names import canonical_name, kohya_name

PEFT_PREFIX = "base_model.model."
_COMPONENTS = ("unet.", "text_encoder.", "text_encoder_2.")
_PROCESSOR = re.compile(r"\.processor\.(?P<target>to_q|to_k|to_v|to_out)$")
_COMFY_TEXT = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}


class DiffusersFormat:
    """`unet.….lora_A.weight`, `text_encoder.….lora_linear_layer.down.weight`, `….attn1.processor.to_q_lora.down.weight`."""

    name = "diffusers"

    def module_name(self, module: str) -> str | None:
        """The canonical name of a key's module."""
        return kohya_name(_without_processor(module)) if module.startswith(_COMPONENTS) else None


class PeftFormat:
    """`base_model.model.….lora_A.weight`: the peft library's files, one a component, which do not say which it is."""

    name = "peft"

    def module_name(self, module: str) -> str | None:
        """The canonical name: text encoders are told by their own words."""
        if not module.startswith(PEFT_PREFIX):
            return None
        path = module.removeprefix(PEFT_PREFIX)
        if path.startswith(_COMPONENTS):
            return kohya_name(path)
        is_text = path.startswith(("text_model.", "encoder.layers.", "text_projection"))
        return kohya_name(f"{'text_encoder' if is_text else 'unet'}.{path}")


class ComfyFormat:
    """`diffusion_model.input_blocks.4.1.….lora_A.weight`, `text_encoders.clip_g.transformer.text_model.….lora_B.weight`."""

    name = "comfyui"

    def module_name(self, module: str) -> str | None:
        """The canonical name."""
        if module.startswith("diffusion_model."):
            return canonical_name(kohya_name("unet." + _without_processor(module.removeprefix("diffusion_model."))))
        if module.startswith("text_encoders."):
            _, encoder, path = (*module.split(".", 2), "")[:3]
            if encoder in _COMFY_TEXT and path:
                return kohya_name(f"{_COMFY_TEXT[encoder]}.{path.removeprefix('transformer.')}")
        return None


def _without_processor(path: str) -> str:
    """`….attn1.processor.to_out` is `….attn1.to_out.0` in the model."""
    found = _PROCESSOR.search(path)
    if found is None:
        # Some write `to_out` for its only layer without the processor, too.
        return f"{path}.0" if path.endswith(".to_out") else path
    target = found["target"]
    return f"{path[: found.start()]}.{target}" + (".0" if target == "to_out" else "")
