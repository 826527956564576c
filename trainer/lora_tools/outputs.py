"""What the tools write: names, metadata and the safety of files that are there already."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

from trainer import __version__
from trainer.errors import LoraFileError
from trainer.lora_files.architecture import Architecture
from trainer.lora_files.embeddings import Embedding, bundled_tensors, embedding_of
from trainer.lora_files.file import DTYPES, LoraFile, LoraModule, write_lora
from trainer.lora_files.metadata import CONFIG_KEY
from trainer.lora_files.modules import AdapterModule
from trainer.lora_tools.inputs import Lora
from trainer.lora_tools.names import xl_name

Precision = Literal["auto", "fp16", "bf16", "fp32"]
TOOL_KEY = "inkwash.tool"
# What was true of the file that it came from, and is not of a new one.
_STALE = ("sshs_", "modelspec.hash_sha256", "modelspec.thumbnail", "ssmd_cover_images", "lora_adapter_metadata")
_VERSIONS: dict[Architecture, dict[str, str]] = {
    "sd1": {"ss_base_model_version": "sd_v1", "ss_v2": "False", "modelspec.architecture": "stable-diffusion-v1/lora"},
    "sd2": {
        "ss_base_model_version": "sd_v2",
        "ss_v2": "True",
        "modelspec.architecture": "stable-diffusion-v2-512/lora",
    },
    "sdxl": {
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    },
    "unknown": {},
}


def require_writable(target: Path, sources: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse, before any work, a target that is a file which was not to be overwritten, or of another kind.

    Raises: LoraFileError.
    """
    if target.suffix != ".safetensors":
        raise LoraFileError("The result is a .safetensors file.", where=str(target), fix="Give it that ending.")
    refuse_existing(target, sources, overwrite=overwrite)


def refuse_existing(target: Path, sources: Sequence[Path], *, overwrite: bool) -> None:
    """Raise LoraFileError where `target` exists and was not to be replaced, or is one of the sources' folders."""
    if target.is_dir() or (target.exists() and not overwrite):
        is_source = any(source.exists() and source.samefile(target) for source in sources)
        what = "This would overwrite one of the files that it is made of." if is_source else "There is already a file."
        fix = "Choose another name." if target.is_dir() else "Choose another name, or say --overwrite."
        raise LoraFileError(what, where=str(target), fix=fix)


def result_dtype(precision: Precision, modules: Iterable[AdapterModule]) -> torch.dtype:
    """The number format of a result; "auto" is the widest of what it is made of, fp16 where that mixes with bf16."""
    if precision != "auto":
        return DTYPES[precision]
    found = {tensor.dtype for module in modules for key, tensor in module.tensors().items() if key != "alpha"}
    if found <= {torch.float16} or found <= {torch.bfloat16}:
        return found.pop() if found else torch.float16
    return torch.float16 if found <= {torch.float16, torch.bfloat16} else torch.float32


def merged_metadata(loras: Sequence[Lora], architecture: Architecture, tool: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of a file made of several: the first one's, without what only described that file.

    The trigger words of all stay, and `modelspec.merged_from` names them.
    """
    first = loras[0].file
    metadata = kept_metadata(first)
    if len(loras) > 1:
        metadata.pop(CONFIG_KEY, None)
        phrases = dict.fromkeys(lora.file.metadata.get("modelspec.trigger_phrase", "") for lora in loras)
        joined = ", ".join(phrase for phrase in phrases if phrase)
        if joined:
            metadata["modelspec.trigger_phrase"] = joined
        metadata["modelspec.merged_from"] = ", ".join(lora.file.path.stem for lora in loras)
        frequencies = [_json_object(lora.file.metadata.get("ss_tag_frequency", "")) for lora in loras]
        if any(frequencies):
            metadata["ss_tag_frequency"] = json.dumps(
                {name: counts for frequency in reversed(frequencies) for name, counts in frequency.items()},
                ensure_ascii=False,
            )
    return finished_metadata(metadata, architecture, tool)


def kept_metadata(file: LoraFile) -> dict[str, str]:
    """A file's metadata without hashes and pictures of itself."""
    return {key: value for key, value in file.metadata.items() if not key.startswith(_STALE)}


def finished_metadata(
    metadata: Mapping[str, str], architecture: Architecture, tool: Mapping[str, Any]
) -> dict[str, str]:
    """Metadata with what every tool's result says: the family where it was not said, when, by what, and how."""
    defaults = {"ss_network_module": "networks.lora", "modelspec.sai_model_spec": "1.0.1"}
    return {
        **_VERSIONS[architecture],
        **metadata,
        **defaults,
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.implementation_version": f"inkwash {__version__}",
        TOOL_KEY: json.dumps(tool, ensure_ascii=False),
    }


def write_result(
    target: Path,
    modules: Mapping[str, AdapterModule],
    metadata: Mapping[str, str],
    architecture: Architecture,
    dtype: torch.dtype,
    embeddings: Sequence[Embedding] = (),
) -> None:
    """Write modules by common name, and bundled embeddings.

    Raises: LoraFileError: a number is not finite or too large for `dtype`, or the file differs when read back.
    """
    ranks = {module.rank for module in modules.values() if isinstance(module, LoraModule)}
    alphas = {module.alpha for module in modules.values() if isinstance(module, LoraModule)}
    title = {"modelspec.title": target.stem, "ss_output_name": target.stem, "ss_network_args": '{"algo": "lora"}'}
    sizes = {
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
    }
    named = {xl_name(name) if architecture == "sdxl" else name: module for name, module in modules.items()}
    write_lora(target, named, {**metadata, **title, **sizes}, dtype, embeddings=embeddings)


def bundled_embeddings(loras: Iterable[Lora]) -> list[Embedding]:
    """The bundled embeddings of all files; of two of one name the first, as a stack of the files hears it."""
    found: dict[str, Embedding] = {}
    for lora in loras:
        for name, tensors in lora.file.embeddings.items():
            found.setdefault(name.casefold(), embedding_of(name, tensors, str(lora.file.path)))
    return list(found.values())


def header_bytes(
    names: Iterable[str],
    metadata: Mapping[str, str],
    others: Iterable[AdapterModule] = (),
    embeddings: Iterable[Embedding] = (),
) -> int:
    """At most how many bytes of a file with three tensors a layer are not matrices: header, metadata, alphas, the others."""
    # A tensor's entry is {"dtype":"F16","shape":[…],"data_offsets":[…]}; sides and offsets have up to 5 and 10 digits.
    layers = sum(3 * (len(name) + 120) + 4 for name in map(xl_name, names))
    layers += sum(tensor.numel() * tensor.element_size() for module in others for tensor in module.tensors().values())
    layers += sum(
        tensor.numel() * tensor.element_size() + len(key) + 120
        for embedding in embeddings
        for key, tensor in bundled_tensors(embedding).items()
    )
    return layers + len(json.dumps(metadata, ensure_ascii=False).encode()) + 1500


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
