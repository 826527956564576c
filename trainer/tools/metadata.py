"""What a file says of itself: shown, or changed with the tensors left as they are. No torch."""

from __future__ import annotations

from trainer.config.tools import MetadataSettings
from trainer.errors import LoraFileError
from trainer.lora_files.header import read_header
from trainer.lora_files.rewrite import changed_metadata, rewrite_metadata
from trainer.tools.result import Table, ToolContext, ToolResult, plain

_FIELDS = {
    "trigger_words": "modelspec.trigger_phrase",
    "title_text": "modelspec.title",
    "description": "modelspec.description",
}
_MAX_SHOWN = 200


def run(settings: MetadataSettings, context: ToolContext) -> ToolResult:
    """Show the metadata, or change them. Raises: as `changed_metadata` and `rewrite_metadata`; `out` is taken."""
    path = context.lora(settings.file)
    metadata, _ = read_header(path)
    set_to = {key: text for field, key in _FIELDS.items() if (text := getattr(settings, field))}
    set_to |= dict(text.split("=", 1) for text in settings.set)
    out = context.out
    is_changed = bool(set_to or settings.remove or settings.strip_private)
    if out is None and (settings.new_file or (is_changed and not context.may_change(path))):
        out = context.target("lora", "", path.stem)
    if out is not None and out.exists():
        raise LoraFileError(f"'{out.name}' exists already.", where=str(out), fix="Choose another name.")
    is_written = is_changed or out is not None
    target = path
    if is_written:
        context.progress("Writing the header", 0, 0)
        changed = changed_metadata(metadata, set_to, settings.remove, strip_private=settings.strip_private)
        target = rewrite_metadata(path, changed, out)
        metadata, _ = read_header(target)
    rows = tuple((plain(key), _shown(plain(value))) for key, value in sorted(metadata.items()))
    lines = (f"written and checked: {target}",) if is_written else (f"{len(metadata)} entries in {target}",)
    report = {"file": str(target), "metadata": metadata}
    return ToolResult(report, lines, (Table(("entry", "value"), rows),), (target,) if is_written else ())


def _shown(value: str) -> str:
    return value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}… ({len(value):,} characters, all with --json)"
