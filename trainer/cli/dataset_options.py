"""Options of `inkwash dataset` that some of its actions have: their help says which, and beside another they are refused."""

from __future__ import annotations

import argparse
from typing import Any

from trainer.errors import ConfigError

_DECLARED = "action_options"
"""Where a parser's defaults keep, of each option, its name in the arguments, itself, its actions, and its value where it is not given."""


class ActionOptions:
    """Options of a group in the help. Each is for some actions."""

    def __init__(self, parser: argparse.ArgumentParser, title: str) -> None:
        self._group = parser.add_argument_group(title)
        self._declared: list[tuple[str, str, tuple[str, ...], Any]] = parser.get_default(_DECLARED) or []
        parser.set_defaults(**{_DECLARED: self._declared})

    def add(self, option: str, actions: str, description: str, **about: Any) -> None:
        """Declare one; `actions` are named with blanks between them, `about` is argparse's."""
        names = tuple(actions.split())
        made = self._group.add_argument(option, help=f"{', '.join(names)}: {description}", **about)
        self._declared.append((made.dest, option, names, made.default))


def refuse_foreign(arguments: argparse.Namespace) -> None:
    """Raises ConfigError: an option is given that the action does not have, so that it would do nothing."""
    for name, option, actions, default in getattr(arguments, _DECLARED):
        if getattr(arguments, name) != default and arguments.name not in actions:
            what = f"`inkwash dataset {arguments.name}`" if arguments.name else "the list of data sets"
            raise ConfigError(
                f"{option} is no option of {what}.",
                fix=f"It is one of: {', '.join(f'`inkwash dataset {action}`' for action in actions)}.",
            )
