"""The tools of `inkwash lora`, a module each. Adding one: write the module and add its entry to TOOLS.

The modules import nothing heavy at their top: the command line starts without torch.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Protocol, cast

TOOLS: dict[str, str] = {
    "inspect": "trainer.cli.lora.inspect",
    "check": "trainer.cli.lora.check",
    "convert": "trainer.cli.lora.convert",
    "metadata": "trainer.cli.lora.metadata",
    "compare": "trainer.cli.lora.compare",
    "merge": "trainer.cli.lora.merge",
    "resize": "trainer.cli.lora.resize",
    "extract": "trainer.cli.lora.extract",
    "bake": "trainer.cli.lora.bake",
}
"""Tools by name, in the order of the help, and their modules."""


class LoraTool(Protocol):
    """What the module of a tool offers."""

    SUMMARY: str
    EXAMPLES: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the tool's arguments; `--json` and `--data-dir` are there already."""
        ...

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code."""
        ...


def load_tool(name: str) -> LoraTool:
    """The module of a tool."""
    return cast(LoraTool, importlib.import_module(TOOLS[name]))
