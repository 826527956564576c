"""BLIP: short sentences (Li et al. 2022, https://arxiv.org/abs/2201.12086)."""

from __future__ import annotations

from collections.abc import Callable

from transformers import BlipForConditionalGeneration, BlipProcessor

from trainer.captioners.captioner import Description, Subject
from trainer.captioners.text_model import TextModel, load_text_model
from trainer.config.caption import CaptionConfig


class BlipCaptioner:
    """A BLIP model that is loaded."""

    def __init__(self, model: TextModel, prompt: str) -> None:
        self._model, self._prompt = model, prompt

    def describe(self, subject: Subject) -> Description:
        """One sentence, in lower case, as the model was trained to."""
        processor = self._model.processor
        tokens = self._model.write(processor(images=subject.image, text=self._prompt or None, return_tensors="pt"))
        return Description(text=processor.decode(tokens[0], skip_special_tokens=True))


def load(config: CaptionConfig, check_stop: Callable[[], None]) -> BlipCaptioner:
    """Load the model. Raises: as `load_text_model`."""
    model = load_text_model("blip", config.model, config.blip, BlipProcessor, BlipForConditionalGeneration)
    return BlipCaptioner(model, config.blip.prompt)
