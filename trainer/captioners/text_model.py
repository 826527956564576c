"""What BLIP and Florence-2 have in common: loading a folder of transformers' own classes, and writing one sentence."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from trainer.captioners.models import NEEDS, find_model
from trainer.config.caption import TextModelSettings
from trainer.errors import ModelFileError, ResourceError, is_out_of_memory
from trainer.models.devices import pick_device, pick_dtype

# What transformers raises on folders that are incomplete, damaged, or made for code of their own.
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError)


class TextModel:
    """A processor and a model, on their device."""

    def __init__(self, processor: Any, model: Any, settings: TextModelSettings) -> None:
        self.processor = processor
        self._model, self._settings = model, settings

    def write(self, inputs: Any) -> Any:
        """The answer's tokens, shape (1, length). Raises ResourceError: the memory is not enough."""
        prepared = inputs.to(self._model.device, self._model.dtype)
        settings = self._settings
        try:
            with torch.inference_mode():
                return self._model.generate(
                    **prepared, max_new_tokens=settings.max_new_tokens, num_beams=settings.num_beams, do_sample=False
                )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            gc.collect()
            raise ResourceError(
                "The memory of the device is not enough for this model.",
                fix="Lower num_beams, close other programs, or set the device to cpu.",
            ) from error


def load_text_model(
    captioner: str, model: str, settings: TextModelSettings, processor_class: Any, model_class: Any
) -> TextModel:
    """Load a folder with the library's own classes: no code of the folder is run, and only safetensors are read.

    Raises: ModelFileError: it is not there, or cannot be loaded so. ResourceError: no such device, or too little memory.
    """
    folder = find_model(captioner, model)
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.precision, device)
    try:
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        loaded = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        return TextModel(processor, loaded.to(device).eval(), settings)
    except _LOADING_ERRORS as error:
        if is_out_of_memory(error):
            raise ResourceError(
                "The memory of the device is not enough for this model.", fix="Choose a smaller one, or the device cpu."
            ) from error
        raise _unusable(folder, captioner, error) from error


def _unusable(folder: Path, captioner: str, error: Exception) -> ModelFileError:
    reason = str(error).strip().split("\n")[0][:300]
    return ModelFileError(
        f"This {NEEDS[captioner].title} cannot be loaded: {reason}",
        where=str(folder),
        fix="Models that need code of their own are not run. Choose one in transformers' own format, with its processor's files.",
    )
