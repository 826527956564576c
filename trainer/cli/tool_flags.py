"""The arguments of a LoRA tool, made from its settings class, and the settings out of what was typed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainer.cli.commands.generate import parse_lora
from trainer.config.fields import FieldSpec, describe
from trainer.config.loading import nest
from trainer.config.tools import ToolSettings
from trainer.errors import ConfigError

_RULES: tuple[tuple[str, str, str], ...] = (
    ("rank", "N", "cut every layer to this rank"),
    ("sv-fro", "SHARE", "keep this share of each layer's Frobenius norm, such as 0.95"),
    ("sv-cumulative", "SHARE", "keep this share of the sum of each layer's singular values"),
    ("sv-ratio", "X", "keep singular values of at least the largest divided by X"),
    ("size-mb", "MB", "keep what loses least in a file of this size"),
)
_DESTINATION = "tool:"


def add_tool_arguments(parser: argparse.ArgumentParser, settings: type[ToolSettings]) -> None:
    """What is needed by place, the rest as flags; a rule for the rank as one flag with its value."""
    specs = describe(settings)
    for spec in specs:
        if spec.is_required:
            _add_positional(parser, spec)
    for spec in specs:
        if not spec.is_required and not spec.path.startswith("cut."):
            _add_flag(parser, spec, settings.flags.get(spec.path, spec.path.replace("_", "-")))
    rule = next((spec for spec in specs if spec.path == "cut.rule"), None)
    if rule is not None:
        _add_rules(parser, is_needed=rule.default != "exact", has_exact="exact" in rule.choices)
    if settings.writes != "nothing":
        where = "library" if settings.writes == "lora" else "models folder"
        parser.add_argument(
            "--out", metavar="PATH", help=f"where to write the result; default: a free name in the {where}"
        )
    if settings.overwrites:
        parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there already")
    if settings.draws:
        parser.add_argument("--picture", metavar="FILE.svg", help="also draw it")


def _add_positional(parser: argparse.ArgumentParser, spec: FieldSpec) -> None:
    if spec.kind == "list":
        metavar = "LORA[:WEIGHT[:TEXT_ENCODER_WEIGHT]]"
        text = f"files, or names of the library, with their weights: {spec.help}"
        parser.add_argument(_DESTINATION + spec.path, nargs="+", metavar=metavar, help=_plain(text))
        return
    parser.add_argument(_DESTINATION + spec.path, metavar=spec.name.upper(), help=_plain(spec.help))


def _add_flag(parser: argparse.ArgumentParser, spec: FieldSpec, flag: str) -> None:
    options: dict[str, Any] = {"dest": _DESTINATION + spec.path, "default": None}
    if spec.kind == "bool":
        name, action = (f"--no-{flag}", "store_false") if spec.default else (f"--{flag}", "store_true")
        text = f"do not: {spec.help}" if spec.default else spec.help
        parser.add_argument(name, action=action, help=_plain(text), **options)
        return
    shown = "" if spec.default in ("", []) else f" (default: {spec.default})"
    if spec.kind == "choice":
        options["choices"] = spec.choices
    else:
        options["metavar"] = {"int": "N", "float": "X", "list": "TEXT"}.get(spec.kind, "TEXT")
        options["action"] = "append" if spec.kind == "list" else "store"
    about = f"{spec.label}. " if spec.label else ""
    parser.add_argument(f"--{flag}", help=_plain(f"{about}{spec.help}{shown}"), **options)


def _add_rules(parser: argparse.ArgumentParser, *, is_needed: bool, has_exact: bool) -> None:
    group = parser.add_argument_group("rank of the result", "one of these" if is_needed else "at most one of these")
    rules = group.add_mutually_exclusive_group()
    for name, metavar, text in _RULES:
        rules.add_argument(f"--{name}", type=float, metavar=metavar, dest=f"cut:{name.replace('-', '_')}", help=text)
    if has_exact:
        rules.add_argument("--exact", action="store_true", help="cut nothing" + ("" if is_needed else " (default)"))
    group.add_argument("--max-rank", type=int, default=0, metavar="N", help="the most that a layer gets under any rule")
    parser.set_defaults(rule_is_needed=is_needed)


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def tool_values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was typed as nested settings, not yet validated.

    Raises: ConfigError: a rule for the rank is needed and none was given, or a LoRA has no name.
    """
    given = {
        name.removeprefix(_DESTINATION): value
        for name, value in vars(arguments).items()
        if name.startswith(_DESTINATION) and value is not None
    }
    if "loras" in given:
        given["loras"] = [_weighted(text) for text in given["loras"]]
    cut = _cut(arguments) if "rule_is_needed" in arguments else {}
    return nest(given) | ({"cut": cut} if cut else {})


def _weighted(text: str) -> dict[str, Any]:
    # A path that exists is never cut at a colon.
    return {"file": text} if Path(text).expanduser().is_file() else parse_lora(text)


def _cut(arguments: argparse.Namespace) -> dict[str, Any]:
    for name, _, _ in _RULES:
        rule = name.replace("-", "_")
        value = getattr(arguments, f"cut:{rule}")
        if value is not None:
            return {"rule": rule, "value": value, "max_rank": arguments.max_rank}
    is_exact = getattr(arguments, "exact", False)
    if arguments.rule_is_needed and not is_exact:
        flags = ", ".join(f"--{name}" for name, _, _ in _RULES)
        raise ConfigError("How far to cut is missing.", fix=f"Give one of {flags}.")
    return {"rule": "exact", "max_rank": arguments.max_rank}
