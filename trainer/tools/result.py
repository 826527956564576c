"""What a tool is given besides its settings, and what it answers: figures to show, and where its files are. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer.base_models.listing import find_base
from trainer.config.tools import ToolSettings
from trainer.files import is_inside, safe_name, unused_path
from trainer.library import SUFFIX, resolve_lora
from trainer.objects import load_object
from trainer.paths import DataFolder
from trainer.units import size

if TYPE_CHECKING:
    from trainer.lora_tools.figures import WrittenLora

_MAX_NAME = 80


@dataclass(frozen=True)
class Table:
    """Figures in rows; all cells are texts."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ToolResult:
    """What a tool did.

    Attributes:
        report: all figures as plain data, for `--json` and the run's folder.
        lines: the figures as sentences.
        tables: the figures by block, program or entry.
        files: what was written, the main file first.
        picture: SVG, where the tool draws.
    """

    report: dict[str, Any]
    lines: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    files: tuple[Path, ...] = ()
    picture: str = ""


def _no_progress(stage: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class ToolContext:
    """Where a tool finds things, where it writes, and to whom it says how far it is.

    Attributes:
        data: the data folder, for names in the library and in the list of base models.
        progress: called with what is done, how much of it, and of how much; what it raises ends the work.
        out: where to write; None for a free name in the data folder.
        overwrite: whether `out` may be there already.
        keeps_to_data: whether files outside the data folder are read only, as for the app.
    """

    data: DataFolder
    progress: Callable[[str, int, int], None] = field(default=_no_progress)
    out: Path | None = None
    overwrite: bool = False
    keeps_to_data: bool = False

    def may_change(self, path: Path) -> bool:
        """Whether a file may be changed in place."""
        return not self.keeps_to_data or is_inside(path, self.data.root)

    def lora(self, name_or_path: str) -> Path:
        """The file that is meant. Raises LoraFileError."""
        return resolve_lora(self.data, name_or_path)

    def model(self, name_or_path: str) -> Path:
        """The model file or folder that is meant: one of the list, or a path. Raises ModelFileError."""
        return find_base(name_or_path, self.data)

    def base(self, name_or_path: str) -> Path | None:
        """The base model for kinds that depend on one; None where none is named."""
        return self.model(name_or_path) if name_or_path else None

    def target(self, kind: Literal["lora", "model"], name: str, usual: str, suffix: str = SUFFIX) -> Path:
        """Where the result goes: `out`, or the user's name for it, or the usual one; a free one in the data folder."""
        if self.out is not None:
            return self.out
        folder = self.data.loras if kind == "lora" else self.data.models
        stem = safe_name(name.removesuffix(SUFFIX) or usual[:_MAX_NAME], kind)
        return unused_path(folder / f"{stem}{suffix}")


def run_tool(settings: ToolSettings, context: ToolContext) -> ToolResult:
    """Run a tool.

    Raises: InkwashError: as its message says; nothing is written then.
    """
    return load_object(settings.implementation)(settings, context)


def percent(share: float) -> str:
    """A share for people, with three digits."""
    return f"{100 * share:.3g} %"


def ranks(low: int, high: int) -> str:
    """One rank, or from which to which."""
    return str(low) if low == high else f"{low}–{high}"


def named(names: Sequence[str], shown: int = 8) -> str:
    """Names for a sentence, the first of many."""
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def plain(text: str) -> str:
    """A text of a stranger's file without escape sequences, which must not reach a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


def cut_table(report: WrittenLora) -> Table:
    """What became of each block of a LoRA that was written."""
    rows = [
        (b.block, str(b.layers), ranks(b.min_rank, b.max_rank), f"{b.norm:.4g}", percent(b.error))
        for b in report.blocks
    ]
    return Table(("block", "layers", "rank", "norm", "error"), tuple(rows))


def written_line(report: WrittenLora, before: int = 0) -> str:
    """Which file, how large, and how long it took."""
    was = f"{size(before)} to " if before else ""
    return f"{report.output}: {was}{size(report.size_bytes)} in {report.seconds:.1f} s"
