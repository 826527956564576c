"""`inkwash preset`: lists presets and shows one."""

from __future__ import annotations

import argparse

from trainer.cli.output import print_json, print_table
from trainer.config.loading import build_config, flatten, list_presets, load_preset
from trainer.paths import PRESETS, data_folder

SUMMARY = "list the presets, or show all settings of one"
EXAMPLES = """  inkwash preset
  inkwash preset sd15-style"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="the preset to show")


def run(arguments: argparse.Namespace) -> int:
    """List or show."""
    folders = (PRESETS, data_folder(arguments.data_dir).presets)
    if arguments.name:
        values = flatten(build_config(load_preset(arguments.name, folders)))
        if arguments.json:
            print_json(values)
        else:
            print_table(["setting", "value"], [[path, repr(value)] for path, value in values.items()])
        return 0
    presets = list_presets(folders)
    if arguments.json:
        print_json({"presets": [{"name": p.name, "title": p.title, "description": p.description} for p in presets]})
    else:
        print_table(["preset", "title"], [[preset.name, preset.title] for preset in presets])
    return 0
