"""The base models that can be trained and used: where they lie, and whether they are whole. Imports no torch.

A base model is a diffusers folder with the Stable Diffusion 1.x component set. A `model.toml` beside its
`model_index.json` may describe it: title, description, license, example_prompts, default_steps, default_guidance.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import Finding, ModelFileError
from trainer.paths import ASSETS, DataFolder

_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_WEIGHTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_SD2_TEXT_WIDTH = 1024
_MAX_HEADER_BYTES = 100_000_000
_WHOLE_FILE_BYTES = 64 * 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10


@dataclass(frozen=True)
class BaseModelInfo:
    """What a list of base models shows. `problem` says why one cannot be used; it is empty for those that can."""

    name: str
    title: str
    folder: Path
    family: str = "sd1"
    resolution: int = 512
    is_bundled: bool = False
    description: str = ""
    license: str = ""
    example_prompts: tuple[str, ...] = ()
    default_steps: int = 20
    default_guidance: float = 7.0
    problem: str = ""


@dataclass(frozen=True)
class WeightFile:
    """The weights of one component: the files, and the `variant` that diffusers calls them by (fp16 or None)."""

    files: tuple[Path, ...]
    variant: str | None


def list_base_models(data: DataFolder) -> list[BaseModelInfo]:
    """Those that come with Inkwash, then those in the data folder, each in order of name."""
    found: list[BaseModelInfo] = []
    for root, is_bundled in ((ASSETS / "models", True), (data.models, False)):
        if root.is_dir():
            folders = sorted(entry for entry in root.iterdir() if (entry / "model_index.json").is_file())
            found += [describe_base(folder, is_bundled=is_bundled) for folder in folders]
    return found


def resolve_base(base: str, data: DataFolder) -> Path:
    """The folder of a base model, given by its name in the list or by a path, and checked to be whole.

    Raises: ModelFileError: there is none, it is incomplete, or it is of another architecture.
    """
    by_name = {info.name: info.folder for info in reversed(list_base_models(data))}
    folder = by_name.get(base)
    if folder is None:
        path = Path(base).expanduser()
        if path.is_file():
            raise ModelFileError(
                "A base model is a diffusers folder, not a single file.",
                where=str(path),
                fix="Convert the file to a diffusers folder, put that in the models folder, and name it.",
            )
        if not path.is_dir():
            names = ", ".join(sorted(by_name)) or "none"
            raise ModelFileError(
                f"There is no base model '{base}'.",
                fix=f"Choose one of the list ({names}), put a diffusers folder into {data.models}, or give a folder's path.",
            )
        folder = path.absolute()
    check_base(folder)
    return folder


def describe_base(folder: Path, *, is_bundled: bool = False) -> BaseModelInfo:
    """What is known of the model in `folder` without loading it."""
    about, problem = _read_about(folder)
    if not problem:
        try:
            check_base(folder)
        except ModelFileError as error:
            problem = str(error)
    prompts = about.get("example_prompts", ())
    return BaseModelInfo(
        name=folder.name,
        title=str(about.get("title", folder.name)),
        folder=folder,
        family=str(about.get("family", "sd1")),
        resolution=_resolution(folder),
        is_bundled=is_bundled,
        description=str(about.get("description", "")),
        license=str(about.get("license", "")),
        example_prompts=tuple(str(prompt) for prompt in prompts) if isinstance(prompts, list) else (),
        default_steps=int(about.get("default_steps", 20)),
        default_guidance=float(about.get("default_guidance", 7.0)),
        problem=problem,
    )


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
    try:
        value = json.loads((part / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_base(folder: Path) -> None:
    """Raise ModelFileError unless `folder` is a whole Stable Diffusion 1.x model, with all that is wrong in one error."""
    if not (folder / "model_index.json").is_file():
        raise ModelFileError(
            "This folder is no diffusers model: it has no model_index.json.",
            where=str(folder),
            fix="Choose the folder that holds model_index.json, unet, vae, text_encoder, tokenizer and scheduler.",
        )
    if (folder / "text_encoder_2").exists() or (folder / "transformer").exists():
        raise ModelFileError(
            "This model is not of the Stable Diffusion 1.x family.",
            where=str(folder),
            fix="Choose a base model of Stable Diffusion 1.x, such as 1.5 or one fine-tuned from it.",
        )
    findings = [*_missing_parts(folder), *_wrong_configs(folder)]
    for part in _WEIGHTS:
        if (folder / part).is_dir():
            findings += _weight_faults(folder / part)
    if findings:
        raise ModelFileError(
            f"The base model '{folder.name}' cannot be used.",
            where=str(folder),
            findings=findings,
            fix="Download or copy the folder again, whole, with weights as .safetensors; or choose another base model.",
        )


def _missing_parts(folder: Path) -> list[Finding]:
    return [Finding(part, "is missing") for part in _PARTS if not (folder / part).is_dir()]


def _wrong_configs(folder: Path) -> list[Finding]:
    findings: list[Finding] = []
    configs = {part: _read_config(folder / part) for part in ("unet", "vae", "text_encoder")}
    for part, config in configs.items():
        if (folder / part).is_dir() and not config:
            findings.append(Finding(f"{part}/config.json", "is missing or cannot be read"))
        wanted = _CLASSES.get(part)
        if config and wanted and config.get("_class_name") != wanted:
            findings.append(Finding(f"{part}/config.json", f"is a {config.get('_class_name')}, not a {wanted}"))
    unet, vae, text = configs["unet"], configs["vae"], configs["text_encoder"]
    if not (unet and vae and text) or findings:
        return findings
    text = text.get("text_config") or text
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        findings.append(
            Finding(
                "unet", f"takes {unet.get('in_channels')} channels (an inpainting model?) and cannot be trained here"
            )
        )
    if unet.get("cross_attention_dim") != text.get("hidden_size", 512):
        findings.append(
            Finding(
                "text_encoder", f"is {text.get('hidden_size')} wide, the UNet wants {unet.get('cross_attention_dim')}"
            )
        )
    elif unet.get("cross_attention_dim") == _SD2_TEXT_WIDTH:
        findings.append(Finding("unet", "is of Stable Diffusion 2.x; only the 1.x family is supported"))
    return findings


def weight_file(part: Path) -> WeightFile | None:
    """The safetensors weights of a component's folder: the plain ones, else the fp16 ones; None where there are none."""
    stem = _WEIGHTS[part.name]
    for variant in (None, "fp16"):
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


def fingerprint(folder: Path, part: str) -> str:
    """A key for caches that changes with a component's weights or configuration.

    Files above 64 MiB are sampled at 64 places beside their header, because reading gigabytes at each start would cost
    more than the cache saves; a fine-tuned model differs from its parent everywhere.
    """
    digest = hashlib.sha256()
    found = weight_file(folder / part)
    for path in (folder / part / "config.json", *(found.files if found else ())):
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
