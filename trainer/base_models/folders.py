"""Base models as diffusers folders: whether they are whole, and what their configurations say."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_models.detection import INPAINTING_CHANNELS
from trainer.base_models.families import FAMILY_FACTS, FamilyFacts
from trainer.base_models.info import BaseModelInfo, Traits
from trainer.errors import Finding, LoraFileError, ModelFileError
from trainer.lora_files.header import read_header

_STEMS = ("diffusion_pytorch_model", "model")
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_SD2_TEXT_WIDTH = 1024
PRECISIONS = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8", "F8_E5M2": "fp8"}
_MAX_HEADER_BYTES = 100_000_000
_WHOLE_FILE_BYTES = 64 * 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10


@dataclass(frozen=True)
class WeightFile:
    """The weights of one component: the files, and the `variant` that diffusers calls them by (fp16, bf16 or None)."""

    files: tuple[Path, ...]
    variant: str | None


def describe_folder(folder: Path, *, is_bundled: bool = False, name: str = "") -> BaseModelInfo:
    """What is known of the model in `folder` without loading it; `name` is what it is called, if not as its folder."""
    name = name or folder.name
    about, problem = _read_about(folder)
    if not problem:
        try:
            check_base(folder)
        except ModelFileError as error:
            problem = str(error)
    prompts = about.get("example_prompts", ())
    return BaseModelInfo(
        name=name,
        title=str(about.get("title", name)),
        path=folder,
        traits=folder_traits(folder, about),
        resolution=_resolution(folder),
        is_bundled=is_bundled,
        description=str(about.get("description", "")),
        license=str(about.get("license", "")),
        example_prompts=tuple(str(prompt) for prompt in prompts) if isinstance(prompts, list) else (),
        default_steps=int(about.get("default_steps", 20)),
        default_guidance=float(about.get("default_guidance", 7.0)),
        precision=_precision(folder / "unet"),
        size_bytes=_size(folder),
        problem=problem,
    )


def folder_traits(folder: Path, about: Mapping[str, Any] | None = None) -> Traits:
    """Family, prediction type, zero-terminal SNR and inpainting, as the configurations tell. `about` is its `model.toml`."""
    unet, scheduler = _read_config(folder / "unet"), _read_json(folder / "scheduler" / "scheduler_config.json")
    named = str((about or {}).get("family", ""))
    if named in FAMILY_FACTS:
        family = named
    elif (folder / "text_encoder_2").is_dir() or unet.get("addition_embed_type") == "text_time":
        family = "sdxl"
    elif unet.get("use_linear_projection") or unet.get("cross_attention_dim") == _SD2_TEXT_WIDTH:
        # SD 1.x writes the projections around its attention as convolutions, SD 2.x as linear layers.
        family = "sd2"
    else:
        family = "sd1"
    prediction_type = str(scheduler.get("prediction_type", "epsilon"))
    is_inpainting = unet.get("in_channels") == INPAINTING_CHANNELS
    return Traits(family, prediction_type, bool(scheduler.get("rescale_betas_zero_snr", False)), is_inpainting)


def _precision(part: Path) -> str:
    found = weight_file(part)
    if found is None:
        return ""
    try:
        _, tensors = read_header(found.files[0])
    except LoraFileError:
        return ""
    dtypes = [dtype for dtype, _ in tensors.values()]
    return PRECISIONS.get(max(dtypes, key=dtypes.count, default=""), "")


def _size(folder: Path) -> int:
    """Bytes of all the weights that are loaded."""
    found = [weight_file(part) for part in folder.iterdir() if part.is_dir()]
    return sum(path.stat().st_size for weights in found if weights for path in weights.files if path.exists())


def _read_about(folder: Path) -> tuple[dict[str, Any], str]:
    path = folder / "model.toml"
    if not path.exists():
        return {}, ""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")), ""
    except (OSError, ValueError) as error:
        return {}, f"model.toml cannot be read: {error}"


def _resolution(folder: Path) -> int:
    """The side of the pictures that the model was made for, in pixels."""
    unet, vae = _read_config(folder / "unet"), _read_config(folder / "vae")
    size, blocks = unet.get("sample_size", 64), vae.get("block_out_channels", (0,) * 4)
    return int(size) * 2 ** (len(blocks) - 1) if isinstance(size, int) else 512


def _read_config(part: Path) -> dict[str, Any]:
    return _read_json(part / "config.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_base(folder: Path) -> None:
    """Raise ModelFileError unless `folder` is a whole model of a known family, with all that is wrong in one error."""
    if not (folder / "model_index.json").is_file():
        raise ModelFileError(
            "This folder is no diffusers model: it has no model_index.json.",
            where=str(folder),
            fix="Choose the folder that holds model_index.json, unet, vae, text_encoder, tokenizer and scheduler.",
        )
    if (folder / "transformer").exists() or not (folder / "unet").exists():
        raise ModelFileError(
            "This model is not of a family that Inkwash knows: it has no UNet.",
            where=str(folder),
            fix=f"Choose a base model of {known_families()}, or one fine-tuned from them.",
        )
    if (folder / "text_encoder_2").exists() and not (folder / "text_encoder").exists():
        raise ModelFileError(
            "This is the refiner of Stable Diffusion XL, which only finishes another model's pictures.",
            where=str(folder),
            fix="Choose the base model of Stable Diffusion XL, or one fine-tuned from it.",
        )
    facts = FAMILY_FACTS[folder_traits(folder, _read_about(folder)[0]).family]
    findings = [*_missing_parts(folder, facts), *_wrong_configs(folder, facts)]
    for part in ("unet", "vae", *facts.text_encoders):
        if (folder / part).is_dir():
            findings += _weight_faults(folder / part)
    if findings:
        raise ModelFileError(
            f"The base model '{folder.name}' cannot be used.",
            where=str(folder),
            findings=findings,
            fix="Download or copy the folder again, whole, with weights as .safetensors; or choose another base model.",
        )


def known_families() -> str:
    """The families in words."""
    titles = [facts.title for facts in FAMILY_FACTS.values()]
    return f"{', '.join(titles[:-1])} or {titles[-1]}"


def _missing_parts(folder: Path, facts: FamilyFacts) -> list[Finding]:
    return [Finding(part, "is missing") for part in facts.parts if not (folder / part).is_dir()]


def _wrong_configs(folder: Path, facts: FamilyFacts) -> list[Finding]:
    findings: list[Finding] = []
    configs = {part: _read_config(folder / part) for part in ("unet", "vae", *facts.text_encoders)}
    for part, config in configs.items():
        if (folder / part).is_dir() and not config:
            findings.append(Finding(f"{part}/config.json", "is missing or cannot be read"))
        wanted = _CLASSES.get(part)
        if config and wanted and config.get("_class_name") != wanted:
            findings.append(Finding(f"{part}/config.json", f"is a {config.get('_class_name')}, not a {wanted}"))
    unet, vae = configs["unet"], configs["vae"]
    if findings or not all(configs.values()):
        return findings
    texts = [configs[part].get("text_config") or configs[part] for part in facts.text_encoders]
    channels, latents = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels not in (latents, INPAINTING_CHANNELS):
        findings.append(
            Finding("unet", f"takes {channels} channels where the VAE has {latents}, and cannot be used here")
        )
    width = sum(text.get("hidden_size", 512) for text in texts)
    if unet.get("cross_attention_dim") != width:
        name = " and ".join(facts.text_encoders)
        findings.append(Finding(name, f"is {width} wide, the UNet wants {unet.get('cross_attention_dim')}"))
    return findings


def weight_file(part: Path) -> WeightFile | None:
    """The safetensors weights of a component's folder: the plain ones, else fp16, else bf16; None where there are none."""
    for variant, stem in ((variant, stem) for variant in (None, "fp16", "bf16") for stem in _STEMS):
        middle = f".{variant}" if variant else ""
        whole = part / f"{stem}{middle}.safetensors"
        if whole.is_file():
            return WeightFile((whole,), variant)
        index = part / f"{stem}.safetensors.index{middle}.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError):
                return None
            return WeightFile(tuple(part / Path(name).name for name in names), variant)
    return None


def _weight_faults(part: Path) -> list[Finding]:
    found = weight_file(part)
    if found is None:
        pickles = [path.name for path in part.iterdir() if path.suffix in (".bin", ".ckpt", ".pt", ".pth")]
        reason = f"has only {', '.join(pickles)}, which can run foreign code" if pickles else "has no weights"
        return [Finding(part.name, f"{reason}; .safetensors is needed")]
    faults = [(path, _safetensors_fault(path)) for path in found.files]
    return [Finding(f"{part.name}/{path.name}", fault) for path, fault in faults if fault]


def _safetensors_fault(path: Path) -> str:
    """What is wrong with a safetensors file's frame, or nothing. Truncated downloads are the usual case."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                return "is no safetensors file, or is cut off"
            header = json.loads(handle.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "cannot be read"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"has {size:,} bytes instead of {expected:,}: the download was cut off"


def folder_fingerprint(part: Path) -> str:
    """A key for caches that changes with a component's weights or configuration.

    Files above 64 MiB are sampled at 64 places beside their header, because reading gigabytes at each start would cost
    more than the cache saves; a fine-tuned model differs from its parent everywhere.
    """
    digest = hashlib.sha256()
    found = weight_file(part)
    for path in (part / "config.json", *(found.files if found else ())):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with open(path, "rb") as handle:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(handle.read())
                continue
            for index in range(_SAMPLES):
                handle.seek(index * (size - _SAMPLE_BYTES) // (_SAMPLES - 1), os.SEEK_SET)
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()
