"""One walk over the schema, from which forms, command-line flags, preset comments and docs are made."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.config.base import Hint, Level
from trainer.config.run import RunConfig


@dataclass(frozen=True)
class FieldSpec:
    """A setting: where it is, what it may be, and what it does."""

    path: str
    kind: Literal["bool", "int", "float", "str", "choice", "list"]
    default: Any
    help: str
    group: str
    group_help: str
    level: Level
    unit: str = ""
    label: str = ""
    names: Literal["", "lora", "model"] = ""
    is_required: bool = False
    """Whether there is no default; `default` is empty then."""
    minimum: float | None = None
    maximum: float | None = None
    excludes_minimum: bool = False
    excludes_maximum: bool = False
    multiple_of: float | None = None
    choices: tuple[Any, ...] = ()
    columns: tuple[FieldSpec, ...] = ()
    """Of a list of records: the settings of each."""
    applies_when: tuple[str, str] | None = None
    """(path, value) of the tag that this field's group hangs on, where the group is one of several variants."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit(".", 1)[-1]

    @property
    def title(self) -> str:
        """A label for people: the hint's, or the name with spaces."""
        return self.label or self.name.replace("_", " ").capitalize()

    @property
    def range_text(self) -> str:
        """The range in words, such as "0 to 512" or "above 0"."""
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        low = (
            None
            if self.minimum is None
            else (f"above {self.minimum:g}" if self.excludes_minimum else f"{self.minimum:g}")
        )
        high = (
            None
            if self.maximum is None
            else (f"below {self.maximum:g}" if self.excludes_maximum else f"{self.maximum:g}")
        )
        text = f"{low} or more" if low and not high else " to ".join(part for part in (low, high) if part)
        return f"{text}, a multiple of {self.multiple_of:g}" if self.multiple_of else text


def describe(model: type[BaseModel] = RunConfig) -> list[FieldSpec]:
    """Every setting of `model`, in schema order."""
    return list(_walk(model, "", model.__name__, "", None, None))


def field_spec(path: str) -> FieldSpec:
    """The setting at a dotted path of RunConfig. Raises KeyError."""
    return {spec.path: spec for spec in describe()}[path]


def _walk(
    model: type[BaseModel],
    prefix: str,
    group: str,
    group_help: str,
    applies: tuple[str, str] | None,
    defaults: BaseModel | None,
) -> Iterator[FieldSpec]:
    for name, info in model.model_fields.items():
        path = f"{prefix}{name}"
        variants = _models(info.annotation)
        if variants:
            for variant in variants:
                tag = applies
                if len(variants) > 1 and info.discriminator:
                    key = str(info.discriminator)
                    tag = (f"{path}.{key}", get_args(variant.model_fields[key].annotation)[0])
                # Where a group's own defaults differ from its class's, such as a tool's usual rank.
                own = getattr(defaults, name, None) if defaults else info.get_default(call_default_factory=True)
                about = (variant.__doc__ or "").strip()
                yield from _walk(variant, f"{path}.", path, about, tag, own if isinstance(own, variant) else None)
        else:
            spec = _spec(path, info, group, group_help, applies)
            yield spec if defaults is None else replace(spec, default=getattr(defaults, name))


def _models(annotation: Any) -> list[type[BaseModel]]:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _spec(path: str, info: FieldInfo, group: str, group_help: str, applies: tuple[str, str] | None) -> FieldSpec:
    hint = next((item for item in info.metadata if isinstance(item, Hint)), Hint())
    values: dict[str, Any] = {}
    for item in info.metadata:
        if isinstance(item, Ge | Gt):
            values["minimum"] = item.ge if isinstance(item, Ge) else item.gt
            values["excludes_minimum"] = isinstance(item, Gt)
        elif isinstance(item, Le | Lt):
            values["maximum"] = item.le if isinstance(item, Le) else item.lt
            values["excludes_maximum"] = isinstance(item, Lt)
        elif isinstance(item, MultipleOf):
            values["multiple_of"] = item.multiple_of
    kind, choices = _kind(info.annotation)
    return FieldSpec(
        path=path,
        kind=kind,
        default=_NOTHING[kind] if info.is_required() else info.get_default(call_default_factory=True),
        is_required=info.is_required(),
        help=" ".join((info.description or "").split()),
        group=group,
        group_help=group_help,
        level=hint.level,
        unit=hint.unit,
        label=hint.label,
        names=hint.names,
        choices=choices,
        columns=tuple(column for item in get_args(info.annotation) for column in _columns(item)),
        applies_when=applies,
        **values,
    )


def _columns(item: Any) -> Iterator[FieldSpec]:
    for model in _models(item):
        yield from describe(model)


_NOTHING: dict[str, Any] = {"bool": False, "int": 0, "float": 0.0, "str": "", "choice": "", "list": []}


def _kind(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Literal:
        return "choice", get_args(annotation)
    if get_origin(annotation) is list:
        return "list", ()
    return {bool: "bool", int: "int", float: "float", str: "str"}[annotation], ()
