"""A LoRA file in another layout, for another tool, or in another number format. Every ΔW stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.errors import Finding, LoraFileError
from trainer.files import safe_name, unused_path, write_atomically
from trainer.lora_files.embeddings import Embedding, embedding_of, write_embedding
from trainer.lora_files.file import AdapterModule, LoraFile, LoraModule, read_lora, write_lora
from trainer.lora_files.layouts import facts_of, with_folded_alpha, without_tucker
from trainer.lora_files.names import SECOND_TEXT_ENCODER_PREFIX, TEXT_ENCODER_PREFIX, module_path
from trainer.lora_files.targets import TARGETS, ToolReport, check_file, kind_label

_BASE_VERSIONS = {"sdxl": {"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}, "sd2": {"ss_v2": "True"}}
_SIDES = ("q", "k", "v", "out")


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        files: the LoRA's files (one for each part of the model in the peft layout), then bundled embeddings'.
        num_layers: layers written.
        report: what the tool that it was made for loads of it; None where none was named.
    """

    files: tuple[Path, ...]
    num_layers: int
    report: ToolReport | None


def convert_lora(path: Path, out: Path, *, tool: str = "", layout: str = "", dtype: str = "") -> Conversion:
    """Write a LoRA for a tool or in a layout. Bundled embeddings become files of their own beside it.

    Args:
        path: the LoRA to read.
        out: the file to write; in the peft layout a folder.
        tool: one of `trainer.lora_files.targets.TARGETS`, or empty.
        layout: one of `trainer.lora_files.layouts.LAYOUTS`; empty for the tool's, or kohya.
        dtype: "fp16", "bf16", "fp32"; empty keeps the file's commonest.

    Raises: LoraFileError: the file cannot be read, the target does not read its kinds, `out` exists, or the written file
        differs. Nothing is left behind then.
    """
    if out.exists():
        raise LoraFileError(f"'{out.name}' exists already.", where=str(out), fix="Choose another name.")
    lora = read_lora(path)
    if lora.unread:
        raise LoraFileError(
            f"{len(lora.unread)} tensors of the file are nothing known and would be lost.",
            where=str(path),
            findings=[Finding(key, "unknown") for key in lora.unread],
        )
    layout = layout or (TARGETS[tool].layout if tool else "kohya")
    modules = _for_tool(lora, tool, layout) if tool else lora.modules
    metadata = dict(lora.metadata) | _BASE_VERSIONS.get(lora.architecture, {})
    number_format = dtype or commonest_dtype(lora.modules)
    # Whatever can be refused is, before the first file is written.
    embeddings = [embedding_of(name, tensors, str(path)) for name, tensors in lora.embeddings.items()]
    if layout != "kohya":
        with_folded_alpha(modules, str(path))
    if layout == "peft":
        files, report = _write_peft(out, modules, metadata, number_format), None
    else:
        files = [out]
        report = _write_checked(out, modules, metadata, number_format, layout, tool)
    return Conversion((*files, *_write_embeddings(embeddings, out)), len(modules), report)


def commonest_dtype(modules: Mapping[str, AdapterModule]) -> torch.dtype:
    """The number format that most numbers of a LoRA have; fp32 where that is a wider one."""
    counts: Counter[torch.dtype] = Counter()
    for module in modules.values():
        for part, tensor in module.tensors().items():
            if part not in ("alpha", "on_input"):
                counts[tensor.dtype] += tensor.numel()
    found = counts.most_common(1)[0][0]
    return found if found in (torch.float16, torch.bfloat16) else torch.float32


def _for_tool(lora: LoraFile, tool: str, layout: str) -> dict[str, AdapterModule]:
    """The modules in the form that the tool reads. Raises LoraFileError for kinds that it does not."""
    target = TARGETS[tool]
    result: dict[str, AdapterModule] = {}
    foreign: list[Finding] = []
    for name, module in lora.modules.items():
        if isinstance(module, LoraModule) and "tucker" not in target.kinds:
            module = without_tucker(module)
        label = kind_label(facts_of(module), module.tensors())
        if label not in target.kinds:
            foreign.append(Finding(name, f"is a {label}"))
        result[name] = module
    if foreign:
        raise LoraFileError(
            f"{target.title} does not apply {len(foreign)} of the {len(lora.modules)} layers as they are meant.",
            where=str(lora.path),
            fix="Write it for another tool, or turn it into a plain LoRA first.",
            findings=foreign,
        )
    if tool in ("a1111", "forge") and layout == "kohya":
        result |= _missing_attention(lora, result)
    return result


def _missing_attention(lora: LoraFile, modules: Mapping[str, AdapterModule]) -> dict[str, AdapterModule]:
    """Layers without effect that complete attentions of OpenCLIP encoders: A1111 skips incomplete ones."""
    prefix = {"sdxl": SECOND_TEXT_ENCODER_PREFIX, "sd2": TEXT_ENCODER_PREFIX}.get(lora.architecture, "-")
    added: dict[str, AdapterModule] = {}
    for name, module in modules.items():
        block, found, _ = name.partition("_self_attn_")
        if not name.startswith(prefix) or not found or not isinstance(module, LoraModule):
            continue
        for side in _SIDES:
            other = f"{block}_self_attn_{side}_proj"
            if other not in modules and other not in added:
                down, up = torch.zeros_like(module.down[:1]), torch.zeros_like(module.up[:, :1])
                # The four are square and equally wide.
                added[other] = LoraModule(down, up, module.scale)
    return added


def _write_checked(
    out: Path,
    modules: Mapping[str, AdapterModule],
    metadata: Mapping[str, str],
    dtype: str | torch.dtype,
    layout: str,
    tool: str,
) -> ToolReport | None:
    """Write, and check every key against what the tool knows, before the file takes its name."""
    reports: dict[str, ToolReport] = {}

    def write(temporary: Path) -> None:
        write_lora(temporary, modules, metadata, dtype, layout=layout)
        reports.update({report.tool: report for report in check_file(temporary)})
        if tool and reports[tool].loads == "none":
            raise LoraFileError(
                f"{TARGETS[tool].title} would load nothing of it: {reports[tool].reason}.",
                where=str(out),
                fix="Write it for another tool or in another layout.",
                findings=[Finding(name, reason) for name, reason in reports[tool].ignored.items()],
            )

    write_atomically(out, write, "the LoRA file")
    return reports.get(tool)


def _write_peft(
    out: Path, modules: Mapping[str, AdapterModule], metadata: Mapping[str, str], dtype: str | torch.dtype
) -> list[Path]:
    """One folder for each part of the model, as the peft library saves and loads them."""
    components: dict[str, dict[str, AdapterModule]] = {}
    for name, module in modules.items():
        component = str(module_path(name) or "unet").partition(".")[0]
        components.setdefault(component, {})[name] = module
    files = []
    for component, own in components.items():
        file = out / component / "adapter_model.safetensors"
        write_lora(file, own, metadata, dtype, layout="peft")
        files.append(file)
    return files


def _write_embeddings(embeddings: Sequence[Embedding], out: Path) -> list[Path]:
    files = []
    for embedding in embeddings:
        name = safe_name(embedding.name, "embedding")
        # Other tools read the mean of vectors for each layer; the vectors themselves stay ours.
        forms = {name: embedding.mean(), **({f"{name}-per-layer": embedding} if embedding.layers else {})}
        for stem, form in forms.items():
            file = unused_path(out.parent / f"{stem}.safetensors")
            write_embedding(file, form)
            files.append(file)
    return files
