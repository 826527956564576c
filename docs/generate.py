"""Writes docs/reference/ from the code: settings, command line, errors, events.

`python docs/generate.py` writes; with `--check` it only says which page is out of date (a test does that).
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402

from trainer import errors, events  # noqa: E402
from trainer.cli.main import COMMANDS, load_command  # noqa: E402
from trainer.config.caption import CaptionConfig  # noqa: E402
from trainer.config.compare import CompareConfig  # noqa: E402
from trainer.config.concept import ConceptConfig  # noqa: E402
from trainer.config.cut import WeightedLora  # noqa: E402
from trainer.config.fields import FieldSpec, describe  # noqa: E402
from trainer.config.generate import GenerateConfig, StackedLora  # noqa: E402
from trainer.config.grid import GridAxes  # noqa: E402
from trainer.config.loading import list_presets  # noqa: E402
from trainer.config.run import RunConfig  # noqa: E402
from trainer.config.tools import TOOLS, summary  # noqa: E402
from trainer.config.upscale import UpscaleConfig  # noqa: E402

FOLDER = ROOT / "docs" / "reference"
MADE = "<!-- Made by docs/generate.py from the code; do not edit by hand. -->\n"


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join([_row(header), _row(["---"] * len(header)), *map(_row, rows)]) + "\n"


def _default(spec: FieldSpec) -> str:
    return (
        "empty"
        if spec.default in ("", [])
        else f"`{str(spec.default).lower() if spec.kind == 'bool' else spec.default}`"
    )


def _settings_of(model: type[BaseModel]) -> str:
    groups: dict[str, list[FieldSpec]] = {}
    for spec in describe(model):
        groups.setdefault(spec.group, []).append(spec)
    parts: list[str] = []
    for group, specs in groups.items():
        title = "General" if group == model.__name__ else f"`{group}`"
        rows = [
            [f"`{s.path}`" + (f" ({s.unit})" if s.unit else ""), _default(s), s.range_text or s.kind, s.help]
            for s in specs
        ]
        parts.append(
            f"### {title}\n\n{specs[0].group_help}\n\n{_table(['setting', 'default', 'allowed', 'what it does'], rows)}"
        )
    return "\n".join(parts)


def settings_page() -> str:
    """All settings of all jobs."""
    presets = _table(["preset", "for"], [[f"`{p.name}`", f"{p.title}. {p.description}"] for p in list_presets()])
    return (
        f"{MADE}# Settings\n\nOne schema is the source of the form, the command line's flags (`--adapter.unet.rank 16`), the preset "
        "files (TOML) and the recipe in an exported file. Order: defaults, then preset, then your file, then flags or form.\n\n"
        f"## Presets\n\n{presets}\n## Training\n\n{_settings_of(RunConfig)}\n"
        f"### Each further concept (`data.concepts`)\n\n{_settings_of(ConceptConfig)}\n## Generation\n\n{_settings_of(GenerateConfig)}\n"
        f"### Each LoRA of a stack\n\n{_settings_of(StackedLora)}\n### The axes of a grid\n\n{_settings_of(GridAxes)}\n## Before and after\n\n{_settings_of(CompareConfig)}"
        f"\n## Enlarging pictures\n\n{_settings_of(UpscaleConfig)}"
        f"\n## Captions\n\n{_settings_of(CaptionConfig)}\n{_tools()}"
    )


def _tools() -> str:
    """The settings of the LoRA tools."""
    parts = [f"## Each weighted LoRA of a tool\n\n{_settings_of(WeightedLora)}"]
    parts += [f"## LoRA tool: {name}\n\n{summary(tool)}\n\n{_settings_of(tool)}" for name, tool in TOOLS.items()]
    return "\n".join(parts)


def command_page() -> str:
    """All commands with their examples."""
    parts = [
        f"{MADE}# Command line\n\n`inkwash COMMAND --help` lists a command's options. Results go to standard output, progress to standard error.\n"
    ]
    parts += [
        f"## `inkwash {name}`\n\n{(c := load_command(name)).SUMMARY[0].upper() + c.SUMMARY[1:]}.\n\n```\n{c.EXAMPLES}\n```\n"
        for name in COMMANDS
    ]
    rows = [
        [f"{cls.exit_code}", f"`{cls.code}`", (cls.__doc__ or "").split("\n")[0]] for cls in _tree(errors.InkwashError)
    ]
    parts.append(f"## Exit codes\n\n0 is success.\n\n{_table(['exit code', 'kind', 'meaning'], rows)}")
    return "\n".join(parts)


def errors_page() -> str:
    """Every error that a user can meet."""
    body = "\n".join(f"## `{cls.code}` {cls.__name__}\n\n{cls.__doc__}\n" for cls in _tree(errors.InkwashError))
    return f"{MADE}# Errors\n\nEvery message says what is wrong, where, and what to do; the log has the traceback.\n\n{body}"


def events_page() -> str:
    """Every event of a run."""
    parts = [
        f"{MADE}# Events\n\nA run's `events.jsonl` has one JSON object a line, with `type` and `time` (seconds since 1970).\n"
    ]
    for cls in events.Event.__subclasses__():
        fields = ", ".join(f"`{name}`" for name in cls.model_fields if name not in ("type", "time"))
        kind = cls.model_fields["type"].default
        parts.append(f"## `{kind}`\n\n{cls.__doc__}\n\nFields: {fields or 'none'}.\n")
    return "\n".join(parts)


def _tree(cls: type[errors.InkwashError]) -> list[type[errors.InkwashError]]:
    # Errors of one module's own, which are there only where it was imported, reach no user by their name.
    return [cls] + [sub for child in cls.__subclasses__() if not child.__name__.startswith("_") for sub in _tree(child)]


PAGES = {
    "settings.md": settings_page,
    "command-line.md": command_page,
    "errors.md": errors_page,
    "events.md": events_page,
}


def stale_pages() -> list[str]:
    """Names of pages that differ from what the code says."""
    return [
        name
        for name, make in PAGES.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text(encoding="utf-8") != make()
    ]


def main() -> int:
    """Write the pages, or check them."""
    if "--check" in sys.argv:
        stale = stale_pages()
        print("\n".join(f"docs/reference/{name} is out of date: run python docs/generate.py" for name in stale))
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
