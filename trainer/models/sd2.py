"""Stable Diffusion 2.x: the parts of 1.x with OpenCLIP's wider text encoder; the 768 px models predict v.

The published text encoder lacks OpenCLIP's last layer, because the models were trained on the one before it: `clip_skip`
counts from what is there, as in every other tool.
"""

from __future__ import annotations

from trainer.models.sd1 import StableDiffusion1


class StableDiffusion2(StableDiffusion1):
    """The family of Stable Diffusion 2.x. Its prompts, layers and names in files are those of 1.x."""

    name = "sd2"
