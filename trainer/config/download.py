"""What is downloaded: settings of the job that fetches a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings

Purpose = Literal["base_model", "tagger", "blip", "florence2", "segmentation"]


class DownloadConfig(Settings):
    """A model to be fetched."""

    model_id: Annotated[str, BASIC, Field(pattern=r"^\w[\w.-]*/\w[\w.-]*$", max_length=200)]
    """Its Hugging Face id, owner/name. A base model must be in diffusers' format."""
    variant: Annotated[Literal["", "fp16", "bf16"], BASIC] = ""
    """Fetch only the files of this number format, where the model has such: half of the bytes. Empty: the full ones."""
    purpose: Annotated[Purpose, BASIC] = "base_model"
    """What it is to be used as: a base model, the model of a captioner, or one that makes masks (ONNX)."""
