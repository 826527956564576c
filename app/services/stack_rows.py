"""The rows of a stack of LoRAs as the page keeps them, and how they agree with the tags in the prompt.

The rows are the truth: they alone are generated with. A tag in the prompt is a second handle on its row. Typing writes
into the rows and never into the prompt; moving a slider rewrites the tag of its row, if it has one. While some tag
cannot be read, because it is being typed, no row is taken off.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.blocks import parse_blocks
from trainer.lora_tags import LoraTag, TagValues, write_tag

Row = dict[str, Any]
"""`id`, `name` (of the library), `unet`, `text`, `on`, `blocks`, `start`, `end`, and `tag`: "" for a row that the prompt
does not have, "typed" for one that came from it and goes with its tag, "shown" for one that stays."""
Found = Sequence[tuple[LoraTag, Mapping[str, Any]]]
"""The tags of a prompt that can be used, with their values of StackedLora."""

_KEYS = {
    "file": "name",
    "unet_weight": "unet",
    "text_encoder_weight": "text",
    "blocks": "blocks",
    "start": "start",
    "end": "end",
    "is_on": "on",
}
_SAME = 1e-4


def new_row(name: str, unet: float = 1.0, text: float = 1.0, on: bool = True, **more: Any) -> Row:
    """A row of the stack."""
    defaults = {"blocks": "", "start": 0.0, "end": 1.0, "tag": ""}
    known = {key: value for key, value in more.items() if key in defaults}
    return {"id": secrets.token_hex(4), "name": name, "unet": unet, "text": text, "on": on, **defaults, **known}


def row_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as plain data of StackedLora."""
    return {field: row[key] for field, key in _KEYS.items() if key in row}


def row_from(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data of StackedLora as what `new_row` takes."""
    return {key: values[field] for field, key in _KEYS.items() if field in values}


def with_value(rows: Sequence[Row], row_id: str, key: str, value: Any) -> list[Row]:
    """The stack with one value of one row changed."""
    return [{**row, key: value} if row["id"] == row_id else row for row in rows]


def moved(rows: Sequence[Row], row_id: str, by: int) -> list[Row]:
    """The stack with one row moved up (-1) or down (1)."""
    result = list(rows)
    index = next((i for i, row in enumerate(result) if row["id"] == row_id), -1)
    target = index + by
    if index >= 0 and 0 <= target < len(result):
        result[index], result[target] = result[target], result[index]
    return result


def without(rows: Sequence[Row], row_id: str) -> list[Row]:
    """The stack with one row taken off."""
    return [row for row in rows if row["id"] != row_id]


def find_row(rows: Sequence[Row], row_id: str) -> Row | None:
    """The row with this id."""
    return next((row for row in rows if row["id"] == row_id), None)


def from_prompt(rows: Sequence[Row], found: Found, *, is_whole: bool) -> list[Row]:
    """The rows as the prompt's tags have them.

    Args:
        rows: as they are.
        found: the tags that can be used.
        is_whole: whether these are all; else some tag is being typed, and no row is taken off.
    """
    result = [dict(row) for row in rows]
    matched: set[str] = set()
    for _, values in found:
        row = _row_of(result, str(values["file"]), matched)
        if row is None:
            row = new_row(**row_from(values), tag="typed")
            result.append(row)
        elif not _agree(row, values):
            row |= row_from(values)
        row["tag"] = row.get("tag") or "shown"
        matched.add(row["id"])
    if not is_whole:
        return result
    kept = [row for row in result if row["id"] in matched or row.get("tag") != "typed"]
    return [row if row["id"] in matched else {**row, "tag": ""} for row in kept]


def _row_of(rows: Sequence[Row], name: str, matched: set[str]) -> Row | None:
    """The row of a tag: the first of its name that no other tag has, sooner one that came from the prompt."""
    free = [row for row in rows if row["name"] == name and row["id"] not in matched]
    return next((row for row in free if row.get("tag")), free[0] if free else None)


def _agree(row: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether they say the same; a tag that was written from a row has fewer digits."""
    for key, value in row_from(values).items():
        mine = row.get(key)
        if isinstance(value, float) and isinstance(mine, int | float) and not isinstance(mine, bool):
            if abs(value - mine) > _SAME:
                return False
        elif mine != value:
            return False
    return True


def to_prompt(prompt: str, rows: Sequence[Row], found: Found, *, is_whole: bool = False) -> str:
    """The prompt with the tags of these rows saying what the rows say. Text that says so already stays as it was typed.

    Args:
        prompt: as it is.
        rows: as they are.
        found: the prompt's own tags.
        is_whole: whether tags that have no row are taken out; else one may have been typed just now.
    """
    matched: set[str] = set()
    for tag, values in sorted(found, key=lambda pair: -pair[0].begin):
        row = _last_row_of(rows, str(values["file"]), matched)
        if row is not None:
            matched.add(row["id"])
            if not _agree(row, values) and _can_be_written(row):
                prompt = prompt[: tag.begin] + _tag(row, tag.name) + prompt[tag.end :]
        elif is_whole:
            prompt = _joined(prompt[: tag.begin], prompt[tag.end :])
    return prompt


def _last_row_of(rows: Sequence[Row], name: str, matched: set[str]) -> Row | None:
    """As `_row_of`, for tags taken from the last to the first."""
    own = [row for row in rows if row["name"] == name and row.get("tag") and row["id"] not in matched]
    return own[-1] if own else None


def with_tag(prompt: str, row: Row) -> str | None:
    """The prompt with a tag for the row at its end; None where the row's name cannot stand in a tag."""
    if any(sign in row["name"] for sign in ":<>") or not _can_be_written(row):
        return None
    return f"{prompt.rstrip()} {_tag(row, row['name'])}".lstrip()


def without_tag(rows: Sequence[Row], row_id: str) -> list[Row]:
    """The stack with one row no longer in the prompt: `to_prompt` then takes its tag out."""
    return with_value(rows, row_id, "tag", "")


def _tag(row: Row, name: str) -> str:
    return write_tag(
        TagValues(name, row["unet"], row["text"], row["blocks"], row["start"], row["end"], is_on=bool(row["on"]))
    )


def _can_be_written(row: Row) -> bool:
    """Whether a tag of it could be read: not while block weights are being typed."""
    try:
        parse_blocks(row["blocks"])
    except ValueError:
        return False
    return row["start"] < row["end"]


def _joined(left: str, right: str) -> str:
    return (
        left.rstrip(" ") + (" " if left.strip() and right.strip() and right[0] not in ",." else "") + right.lstrip(" ")
    )


def about(row: Row) -> str:
    """What a row has beside its two weights, in a few words."""
    parts: list[str] = []
    if row.get("blocks"):
        blocks = str(row["blocks"])
        parts.append(blocks if len(blocks) <= 20 else f"{blocks[:18]}…")
    if (row.get("start", 0.0), row.get("end", 1.0)) != (0.0, 1.0):
        parts.append(f"steps {row['start']:.0%} to {row['end']:.0%}")
    return ", ".join(parts)
