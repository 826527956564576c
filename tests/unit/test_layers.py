"""The engine never imports the UI; what the UI imports never imports torch; imports go down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_engine_never_imports_gradio_or_the_app() -> None:
    guilty = {
        str(path): names
        for path in (ROOT / "trainer").rglob("*.py")
        if (names := {name for name in imports(path) if name.split(".")[0] in {"gradio", "app"}})
    }
    assert guilty == {}


def test_app_never_imports_torch_by_name() -> None:
    guilty = [str(path) for path in (ROOT / "app").rglob("*.py") if {n.split(".")[0] for n in imports(path)} & HEAVY]
    assert guilty == []


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(','.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(result.stdout.strip().splitlines()[-1].split(","))


@pytest.mark.parametrize(
    "statement",
    [
        "import app.page",
        "from trainer.cli.main import build_parser; build_parser()",
    ],
)
def test_ui_and_command_line_start_without_torch(statement: str) -> None:
    assert loaded_after(statement) & HEAVY == set()


# Rows from top to bottom; a module may import from its own row's package and from rows below.
LAYERS = [
    {"cli"},
    {"training", "tools", "captioners"},
    {"sampling"},
    {"data"},
    {"models", "adapters", "objectives", "optimizers", "lora_tools"},
]


def test_engine_packages_import_downwards_only() -> None:
    row_of = {name: index for index, row in enumerate(LAYERS) for name in row}
    wrong: list[str] = []
    for path in (ROOT / "trainer").rglob("*.py"):
        package = path.relative_to(ROOT / "trainer").parts[0]
        if package not in row_of:
            continue
        for name in imports(path):
            parts = name.split(".")
            target = parts[1] if parts[0] == "trainer" and len(parts) > 1 else ""
            if target in row_of and target != package and row_of[target] < row_of[package]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []
