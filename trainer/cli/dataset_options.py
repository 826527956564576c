"""Options of `inkwash dataset` that some of its actions have: their help says which, and beside another they are refused."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.errors import ConfigError

_declared: dict[str, tuple[str, tuple[str, ...], Any]] = {}
"""By name in the arguments: the option, its actions, and its value where it is not given."""


class ActionOptions:
    """Options of a group in the help. Each is for some actions."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self._group = parser.add_argument_group(title)

    def add(self, option: str, actions: str, description: str, **about: Any) -> None:
        """Declare one; `actions` are named with blanks between them, `about` is argparse's."""
        names = tuple(actions.split())
        made = self._group.add_argument(option, help=f"{', '.join(names)}: {description}", **about)
        _declared[made.dest] = (option, names, made.default)


def refuse_foreign(arguments: argparse.Namespace) -> None:
    """Raises ConfigError: an option is given that the action does not have, so that it would do nothing."""
    for name, (option, actions, default) in _declared.items():
        if getattr(arguments, name) != default and arguments.name not in actions:
            what = f"`inkwash dataset {arguments.name}`" if arguments.name else "the list of data sets"
            raise ConfigError(
                f"{option} is no option of {what}.",
                fix=f"It is one of: {', '.join(f'`inkwash dataset {action}`' for action in actions)}.",
            )
