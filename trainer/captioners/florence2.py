"""Florence-2: captions of three lengths (Xiao et al. 2023, https://arxiv.org/abs/2311.06242)."""

from __future__ import annotations

from collections.abc import Callable

from transformers import Florence2ForConditionalGeneration, Florence2Processor

from trainer.captioners.captioner import Description, Subject
from trainer.captioners.text_model import TextModel, load_text_model
from trainer.config.caption import CaptionConfig


class Florence2Captioner:
    """A Florence-2 model that is loaded."""

    def __init__(self, model: TextModel, detail: str) -> None:
        self._model, self._task = model, f"<{detail.upper()}>"

    def describe(self, subject: Subject) -> Description:
        """A phrase, some sentences or a paragraph, as was chosen."""
        processor = self._model.processor
        tokens = self._model.write(processor(images=subject.image, text=self._task, return_tensors="pt"))
        return Description(text=processor.batch_decode(tokens, skip_special_tokens=True)[0])


def load(config: CaptionConfig, check_stop: Callable[[], None]) -> Florence2Captioner:
    """Load the model. Raises: as `load_text_model`."""
    settings = config.florence2
    model = load_text_model("florence2", config.model, settings, Florence2Processor, Florence2ForConditionalGeneration)
    return Florence2Captioner(model, settings.detail)
