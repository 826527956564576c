"""The base models that can be trained and used: where they lie, what they are, whether they are whole. Imports no torch.

A base model is a diffusers folder or a single file (`.safetensors`, `.ckpt`) of one of the families in `families.py`. A
`model.toml` beside a folder's `model_index.json` may describe it: title, family, description, license,
example_prompts, default_steps, default_guidance.
"""

from trainer.base_models.families import FAMILY_FACTS, VELOCITY_RESOLUTION, FamilyFacts
from trainer.base_models.folders import WeightFile, check_base, weight_file
from trainer.base_models.info import BaseModelInfo, Traits
from trainer.base_models.listing import (
    describe_base,
    fingerprint,
    list_base_models,
    main_weights,
    resolve_base,
    resolve_trainable,
    resolve_vae,
)

__all__ = [
    "FAMILY_FACTS",
    "VELOCITY_RESOLUTION",
    "BaseModelInfo",
    "FamilyFacts",
    "Traits",
    "WeightFile",
    "check_base",
    "describe_base",
    "fingerprint",
    "list_base_models",
    "main_weights",
    "resolve_base",
    "resolve_trainable",
    "resolve_vae",
    "weight_file",
]
