"""`inkwash dataset turns`: pictures turned by quarters."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.cli.dataset_options import ActionOptions
from trainer.cli.dataset_prepare import opened, size, undo
from trainer.cli.output import print_json, print_table
from trainer.dataset.preparing import turn_pictures, usable_pictures
from trainer.dataset.turns import checked_turn
from trainer.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `turns`."""
    add = ActionOptions(parser, "turns").add
    about: dict[str, Any] = {"nargs": 2, "action": "append", "default": [], "metavar": ("PICTURE", "DEGREES")}
    add("--turn", "turns", "turn a picture clockwise by 90, 180 or 270 degrees, as it lies now", **about)
    add("--unturn", "turns", "as the file has it", nargs="+", default=[], metavar="PICTURE")


def turns(arguments: argparse.Namespace) -> int:
    """Turn pictures, and print those that are turned."""
    _, store, name = opened(arguments, "turns")
    if arguments.undo:
        undo(store, name, quiet=arguments.json)
    if arguments.unturn:
        turn_pictures(store, name, arguments.unturn, None)
    of_degrees: dict[int, list[str]] = {}
    for picture, degrees in arguments.turn:
        of_degrees.setdefault(_degrees(picture, degrees), []).append(picture)
    usable_pictures(store, name, [picture for picture, _ in arguments.turn])  # all of them, or none is turned
    for degrees, pictures in of_degrees.items():
        turn_pictures(store, name, pictures, degrees)
    found = [facts for facts in store.scan(name).pictures if facts.turn]
    if arguments.json:
        print_json({"turns": {facts.name: facts.turn for facts in found}})
        return 0
    print_table(["picture", "turned by", "size"], [[f.name, f"{f.turn}°", size(*f.whole_size)] for f in found])
    return 0


def _degrees(picture: str, text: str) -> int:
    try:
        return checked_turn(int(text))
    except ValueError as error:
        raise ConfigError("A turn has a whole number of degrees.", where=f"--turn {picture} {text}") from error
