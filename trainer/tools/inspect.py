"""What a LoRA file is, says of itself, and has in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.config.tools import InspectSettings
from trainer.lora_files.embedding_info import is_embedding
from trainer.lora_files.header import read_header
from trainer.lora_files.inspect import describe_lora
from trainer.tools.result import Table, ToolContext, ToolResult, named, ranks
from trainer.units import size

_HEADER = ("block", "layers", "rank", "directions used", "norm", "dead")


def run(settings: InspectSettings, context: ToolContext) -> ToolResult:
    """The facts of the header, and what the weights are like.

    Raises: LoraFileError: it is no LoRA or embedding that Inkwash can read.
    """
    path = context.lora(settings.file)
    if _is_embedding(path):
        facts = _describe_embedding(path)
        return ToolResult(facts, (), (_facts_table(facts),))
    facts = describe_lora(path)
    if not settings.measure:
        return ToolResult(facts, (), (_facts_table(facts),))
    # torch takes seconds to load: only where it is needed.
    from trainer.lora_tools.anatomy import lora_anatomy
    from trainer.lora_tools.anatomy_picture import anatomy_svg

    found = lora_anatomy(path, base=context.base(settings.base), progress=context.progress)
    rows = tuple(
        (
            *(block.block, str(block.layers), ranks(block.min_rank, block.max_rank)),
            *(f"{block.effective_rank:.1f}", f"{block.norm:.4g}", str(block.dead or "")),
        )
        for block in found.blocks
    )
    blocks = Table(_HEADER, rows)
    problems = (
        ("layers with NaN or infinite numbers, so that no program can use the file", found.damaged),
        ("dead layers, which change nothing", found.dead),
        ("missing layers, which the like blocks of the file have", found.missing),
        ("not measured, for want of the base model that they depend on", found.not_measured),
    )
    lines = (
        f"norm of the whole change: {found.norm:.4g}",
        *(f"{len(names)} {what}: {named(names)}" for what, names in problems if names),
        *(["no layer is dead, damaged or missing"] if not any(names for _, names in problems) else []),
        *(["the file does not say its alpha: the rank is taken, as every program does"] if found.lacks_alpha else []),
    )
    return ToolResult(
        {**facts, "anatomy": asdict(found)}, lines, (_facts_table(facts), blocks), picture=anatomy_svg(found)
    )


def _facts_table(facts: dict[str, Any]) -> Table:
    """What a header says, without what is empty."""
    rows: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = key.replace("_", " ")
        if isinstance(value, bool):
            rows += [(name, "yes" if value else "no")] if key != "trigger_words_are_guessed" else []
        elif key == "metadata" or value in ("", 0, []):
            continue
        elif key == "size_bytes":
            rows.append(("size", size(value)))
        elif key == "trigger_words":
            guess = " (guessed from its captions)" if facts["trigger_words_are_guessed"] else ""
            rows.append((name, ", ".join(value) + guess))
        elif isinstance(value, list):
            rows.append((name, named([str(item) for item in value], 12)))
        else:
            rows.append((name, str(value)))
    if "metadata" in facts:
        rows.append(("metadata", f"{len(facts['metadata'])} entries; the tool `metadata` shows them"))
    return Table(("fact", "value"), tuple(rows))


def _is_embedding(path: Path) -> bool:
    """Whether the names in the header are those of an embedding; pickles are A1111's embeddings."""
    if path.suffix.lower() in (".pt", ".bin"):
        return True
    _, header = read_header(path)
    return is_embedding(header)


def _describe_embedding(path: Path) -> dict[str, Any]:
    from trainer.lora_files.embeddings import read_embedding

    embedding = read_embedding(path)
    return {
        "file": str(path),
        "title": "".join(char if char.isprintable() else " " for char in embedding.name),
        "kinds": ["embedding"],
        "vectors": {encoder: list(vectors.shape) for encoder, vectors in embedding.trained.items()},
        "size_bytes": path.stat().st_size,
    }
