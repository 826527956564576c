"""A base model in memory: its parts, frozen."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainer.base_models import (
    FAMILY_FACTS,
    VELOCITY_RESOLUTION,
    BaseModelInfo,
    describe_base,
    fingerprint,
    resolve_base,
    resolve_vae,
    weight_file,
)
from trainer.config.model import BaseChoice
from trainer.errors import ConfigError, ModelFileError
from trainer.models.family import load_family
from trainer.models.single_file import TEXT_ENCODER_CLASSES, load_folder_part, load_single_file, load_vae_file
from trainer.models.storage import PLAIN, Placement, WeightStorage
from trainer.models.words import LearnedWords
from trainer.paths import DataFolder

if TYPE_CHECKING:
    from trainer.models.family import Family

__all__ = ["Components", "load_components", "resolve_base"]
log = logging.getLogger(__name__)


@dataclass
class Components:
    """The parts of a base model, frozen, on `device`, with weights of `dtype` (the VAE in fp32 where that is fp16).

    `path` is where they were loaded from, `vae_path` where the VAE was if it came from elsewhere; `text_encoder_2` and its tokenizer are None in families with one encoder. `words` are what prompts can say beyond the tokenizers' words.
    """

    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    resolution: int
    name: str
    path: Path
    device: torch.device
    dtype: torch.dtype
    vae_path: Path | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    words: LearnedWords = field(default_factory=LearnedWords)

    @property
    def text_encoders(self) -> dict[str, CLIPTextModel | CLIPTextModelWithProjection]:
        """The text encoders by part, in the order in which the family reads them."""
        second = {} if self.text_encoder_2 is None else {"text_encoder_2": self.text_encoder_2}
        return {"text_encoder": self.text_encoder, **second}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        """The tokenizer of each text encoder, by the encoder's name."""
        second = {} if self.tokenizer_2 is None else {"text_encoder_2": self.tokenizer_2}
        return {"text_encoder": self.tokenizer, **second}

    @property
    def adaptable(self) -> dict[str, nn.Module]:
        """The parts that LoRAs change, by the names that their layers' paths begin with."""
        return {"unet": self.unet, **self.text_encoders}

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of all parts with weights."""
        return ("unet", "vae", *self.text_encoders)

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise."""
        return bool(self.scheduler_config.get("rescale_betas_zero_snr", False))

    def fingerprint(self, part: str) -> str:
        """A key for caches that changes with a part's weights or configuration."""
        return fingerprint(self.vae_path if part == "vae" and self.vae_path else self.path, part)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that are denoised."""
        return int(self.unet.config["out_channels"])

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet is shown a mask and the picture without what is masked, beside the latents."""
        return int(self.unet.config["in_channels"]) == 2 * self.latent_channels + 1

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @contextmanager
    def resident(self, *names: str) -> Iterator[None]:
        """Bring parts ("vae", "text_encoder") to the device for a while; those that were elsewhere go back."""
        parts: list[nn.Module] = [getattr(self, name) for name in names]
        homes = [next(part.parameters()).device for part in parts]
        try:
            for part in parts:
                part.to(self.device)
            yield
        finally:
            for part, home in zip(parts, homes, strict=True):
                part.to(home)

    def move_away(self, *names: str) -> None:
        """Free the device's memory of parts that are not needed now; `resident` brings them back."""
        for name in names:
            getattr(self, name).to("cpu")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def load_components(
    base: str | BaseChoice,
    data: DataFolder,
    device: torch.device,
    dtype: torch.dtype,
    storage: WeightStorage = PLAIN,
) -> Components:
    """Load a base model by its name in the list or its path, with the settings on it where a BaseChoice is given.

    `storage` says how the weights are kept; what is packed is packed as it is read, weight by weight.

    Raises: ModelFileError: there is none, it is incomplete, of another architecture, or its weights do not fit.
        ConfigError: settings that do not go with the model.
    """
    choice = base if isinstance(base, BaseChoice) else BaseChoice(base=base)
    vae_path = resolve_vae(choice.vae) if choice.vae else None
    path = resolve_base(choice.base, data, has_vae=vae_path is not None)
    info = describe_base(path)
    # transformers draws progress bars and tables of "missing" weights on standard error.
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        parts = _load_parts(path, info, Placement(storage, device, dtype), vae_path)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"The base model '{info.name}' cannot be loaded: {error}",
            where=str(path),
            fix="Copy the model again, whole, or choose another base model.",
        ) from error
    components = Components(
        family=load_family(info.family),
        resolution=info.resolution,
        name=info.name,
        path=path,
        vae_path=vae_path,
        device=device,
        dtype=dtype,
        **parts,
    )
    for name in components.parts:
        nn.Module.to(getattr(components, name).requires_grad_(False).eval(), device)
    if not info.traits.prediction_type and choice.prediction_type == "auto":
        _probe(components)
    components.scheduler_config |= noise_settings(components, choice)
    log.info("Loaded %s on %s in %s", path, device, dtype)
    return components


def noise_settings(components: Components, choice: BaseChoice) -> dict[str, Any]:
    """What the settings change in the scheduler's configuration; nothing where they leave the model's own.

    Raises: ConfigError: zero terminal SNR with epsilon, which cannot be: from pure noise, the noise says nothing.
    """
    changed: dict[str, Any] = {}
    if choice.prediction_type != "auto":
        changed["prediction_type"] = choice.prediction_type
    if choice.zero_terminal_snr != "auto":
        changed["rescale_betas_zero_snr"] = choice.zero_terminal_snr == "yes"
    config = {**components.scheduler_config, **changed}
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        raise ConfigError(
            f"'{components.name}' cannot predict the noise (epsilon) and have zero terminal SNR at once.",
            where="model.zero_terminal_snr",
            fix="Set model.prediction_type to v_prediction, or model.zero_terminal_snr to no.",
        )
    return changed


def _probe(components: Components) -> None:
    from trainer.models.probe import probe_prediction_type

    found = probe_prediction_type(components)
    components.scheduler_config["prediction_type"] = found
    if found == "v_prediction" and components.path.is_file():
        components.resolution = VELOCITY_RESOLUTION
    log.info("%s does not say what it predicts; asked, it answers with %s", components.path, found)


def _load_parts(path: Path, info: BaseModelInfo, placement: Placement, vae_path: Path | None) -> dict[str, Any]:
    """The parts of a model, by the names that Components has for them."""
    dtype = placement.dtype
    if path.is_dir():
        parts = _load_folder(path, info, placement, with_vae=vae_path is None)
    else:
        parts = load_single_file(path, info.family, placement, vae_dtype(dtype), with_vae=vae_path is None)
        scheduler = {
            "prediction_type": info.traits.prediction_type or "epsilon",
            "rescale_betas_zero_snr": info.traits.zero_terminal_snr,
        }
        parts["scheduler_config"] = {**parts["scheduler_config"], **scheduler}
    if vae_path is not None:
        parts["vae"] = _load_vae(vae_path, info.family, vae_dtype(dtype))
    return parts


def _load_vae(path: Path, family: str, dtype: torch.dtype) -> AutoencoderKL:
    if path.is_file():
        return load_vae_file(path, family, dtype)
    return AutoencoderKL.from_pretrained(path, **_options(path, dtype))


def _load_folder(folder: Path, info: BaseModelInfo, placement: Placement, *, with_vae: bool) -> dict[str, Any]:
    dtype, changes = placement.dtype, placement.storage.changes
    if changes("unet"):
        unet = load_folder_part(folder / "unet", placement)
    else:
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **_options(folder / "unet", dtype))
    parts: dict[str, Any] = {"unet": unet}
    if with_vae:
        parts["vae"] = _load_vae(folder / "vae", info.family, vae_dtype(dtype))
    for name in FAMILY_FACTS[info.family].text_encoders:
        tokenizer = name.replace("text_encoder", "tokenizer")
        part = folder / name
        parts[name] = load_folder_part(part, placement) if changes(name) else _load_text_encoder(part, dtype)
        parts[tokenizer] = CLIPTokenizer.from_pretrained(folder / tokenizer, local_files_only=True)
    config = (folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")
    return {**parts, "scheduler_config": json.loads(config)}


def vae_dtype(dtype: torch.dtype) -> torch.dtype:
    """The VAE's number format: fp16 overflows in it and gives black pictures."""
    return torch.float32 if dtype == torch.float16 else dtype


def _options(part: Path, dtype: torch.dtype) -> dict[str, Any]:
    found = weight_file(part)
    return {
        "torch_dtype": dtype,
        "variant": found.variant if found else None,
        "use_safetensors": True,
        "local_files_only": True,
        "low_cpu_mem_usage": True,
    }


def _load_text_encoder(part: Path, dtype: torch.dtype) -> nn.Module:
    """Load and verify: transformers fills in weights that it misses at random, with no more than a line in the log."""
    found = weight_file(part)
    loaded: Any = TEXT_ENCODER_CLASSES[part.name].from_pretrained(
        part,
        dtype=dtype,
        variant=found.variant if found else None,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    missing = [key for key in report["missing_keys"] if "position_ids" not in key]
    if missing:
        raise ValueError(f"the text encoder lacks {len(missing)} weights, such as {missing[0]}")
    return model
