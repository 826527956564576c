"""Block weights: how strongly a LoRA works in each block of the UNet, as users of lora-block-weight write it.

    MIDD                        a preset
    1,0,0,0,1,1,1,1,…           17 or 26 numbers for SD 1 and 2, 12 or 20 for SDXL
    down1:0.5, mid:0, rest:1    blocks by name

Blocks have the names of the original code (`trainer.block_names`). `down1` and `up0` are diffusers' blocks, each several of
these. All layers of a block are weighted: attention, convolutions, norms, biases. Pure text: imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from trainer.block_names import BASE, LISTS, MID, PER_LEVEL, common_name, side

MAX_WEIGHT = 10.0
PRESETS = ("ALL", "NONE", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL")
"""Presets by name. Beside them: a block's name for it alone, `N` before it for all but it, `ALL0.5` for a number."""

# Where the shallow input blocks end and the shallow output blocks begin. SD 1: between IN04 and IN05, OUT06 and OUT07,
# as in lora-block-weight; SDXL: between diffusers' blocks down1 and down2, up0 and up1.
_HALVES = {12: (5, 7), 9: (6, 3)}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
_NAME = re.compile(r"(?:IN|OUT)\d{1,2}|MID|M00|BASE|REST|DOWN\d?|UP\d?")
_RANGE = re.compile(r"(IN|OUT)(\d{1,2})-(?:\1)?(\d{1,2})")


@dataclass(frozen=True)
class BlockWeights:
    """Block weights as written and understood; `parse_blocks` makes them.

    Attributes:
        text: as written.
        values: of a list: its numbers.
        rules: of a preset or of names: (what, weight), later ones win.
    """

    text: str = ""
    values: tuple[float, ...] = ()
    rules: tuple[tuple[str, float], ...] = ()

    def table(self, per_side: int) -> Mapping[str, float]:
        """The weight of every block of a model with so many on each side.

        Raises: ValueError: these weights do not go with such a model.
        """
        return _table(self, per_side)


def parse_blocks(text: str) -> BlockWeights:
    """Understand block weights. Empty is 1 everywhere.

    Raises: ValueError: what is wrong with them, in words.
    """
    clean = text.strip()
    if not clean:
        return BlockWeights()
    if ":" in clean:
        return BlockWeights(clean, rules=tuple(_rule(part.strip()) for part in clean.split(",")))
    parts = [part.strip() for part in clean.split(",")]
    if len(parts) > 1:
        return BlockWeights(clean, values=tuple(_values(parts)))
    return BlockWeights(clean, rules=_preset(clean.upper(), clean))


def _values(parts: list[str]) -> list[float]:
    values = [_number(part, f"number {index} of the block weights") for index, part in enumerate(parts, 1)]
    if len(values) not in LISTS:
        raise ValueError(
            f"a list of block weights has 17 or 26 numbers (SD 1 and 2) or 12 or 20 (SDXL); this one has {len(values)}"
        )
    return values


def _number(text: str, what: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{what} is '{text}', which is no number")
    value = float(text)
    if abs(value) > MAX_WEIGHT:
        raise ValueError(f"{what} is {text}; allowed: -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return value


def _rule(part: str) -> tuple[str, float]:
    name, colon, number = part.partition(":")
    name = name.strip()
    if not colon or not name:
        raise ValueError(f"'{part}' among the block weights is not BLOCK:NUMBER")
    if not (_NAME.fullmatch(name.upper()) or _RANGE.fullmatch(name.upper())):
        raise ValueError(f"there is no block '{name}'{_alike(name.upper(), _BLOCK_NAMES)}")
    return common_name(name), _number(number.strip(), f"the weight of '{name}'")


_BLOCK_NAMES = ("BASE", "MID", "REST", "DOWN0", "DOWN1", "DOWN2", "DOWN3", "UP0", "UP1", "UP2", "UP3", "DOWN", "UP", "IN00", "IN11", "OUT00", "OUT11")  # fmt: skip
_PRESET_RULES: dict[str, tuple[tuple[str, float], ...]] = {
    "ALL": (("REST", 1.0),),
    "NONE": (("REST", 0.0),),
    "INS": (("REST", 0.0), ("BASE", 1.0), ("SHALLOW IN", 1.0)),
    "IND": (("REST", 0.0), ("BASE", 1.0), ("DEEP IN", 1.0)),
    "INALL": (("REST", 0.0), ("BASE", 1.0), ("DOWN", 1.0)),
    "MIDD": (("REST", 0.0), ("BASE", 1.0), ("DEEP IN", 1.0), ("MID", 1.0), ("DEEP OUT", 1.0)),
    "OUTD": (("REST", 0.0), ("BASE", 1.0), ("DEEP OUT", 1.0)),
    "OUTS": (("REST", 0.0), ("BASE", 1.0), ("SHALLOW OUT", 1.0)),
    "OUTALL": (("REST", 0.0), ("BASE", 1.0), ("UP", 1.0)),
}
_ONE_BLOCK = re.compile(r"(N?)((?:IN|OUT)\d{2}|MID|M00|BASE)")


def _preset(name: str, written: str) -> tuple[tuple[str, float], ...]:
    if name in _PRESET_RULES:
        return _PRESET_RULES[name]
    if one := _ONE_BLOCK.fullmatch(name):
        rest = 1.0 if one[1] else 0.0
        return ("REST", rest), (common_name(one[2]), 1.0 - rest)
    if name.startswith("ALL") and _NUMBER.fullmatch(name[3:]):
        return (("REST", _number(name[3:], "the weight of ALL")),)
    raise ValueError(
        f"there is no preset of block weights '{written}'{_alike(name, PRESETS)}; "
        f"choose {', '.join(PRESETS)}, a list of 12, 17, 20 or 26 numbers, or blocks by name such as down1:0.5,mid:0"
    )


def _alike(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@lru_cache(maxsize=64)
def _table(weights: BlockWeights, per_side: int) -> dict[str, float]:
    blocks = [BASE, *side("IN", range(per_side)), MID, *side("OUT", range(per_side))]
    if weights.values:
        return _from_list(weights.values, blocks, per_side)
    table = dict.fromkeys(blocks, 1.0)
    for what, weight in sorted(weights.rules, key=lambda rule: rule[0] != "REST"):
        chosen = _chosen(what, per_side) or blocks
        if unknown := [block for block in chosen if block not in table]:
            raise ValueError(f"the base model has no block {unknown[0]}: it has {per_side} on each side, from 00 on")
        table |= dict.fromkeys(chosen, weight)
    return table


def _from_list(values: Sequence[float], blocks: Sequence[str], per_side: int) -> dict[str, float]:
    """A block that the list does not name follows the one next to it, on the way of the data: ones are ones everywhere."""
    known = LISTS[len(values)]
    if known.per_side != per_side:
        fitting = " or ".join(str(length) for length, other in LISTS.items() if other.per_side == per_side)
        raise ValueError(
            f"a list of {len(values)} block weights is for models with {known.per_side} blocks on each side, this base model has "
            f"{per_side}: write {f'{fitting} numbers' if fitting else 'blocks by name, such as down1:0.5,mid:0'}"
        )
    named = dict(zip(known.names, values, strict=True))
    table: dict[str, float] = {}
    for way, numbers in (("IN", known.inputs), ("OUT", known.outputs)):
        for number, name in enumerate(side(way, range(per_side))):
            nearest = max((listed for listed in numbers if listed <= number), default=min(numbers))
            table[name] = named[f"{way}{nearest:02d}"]
    return {block: named.get(block, table.get(block, 1.0)) for block in blocks}


def _chosen(what: str, per_side: int) -> list[str]:
    """The blocks that a rule is about; empty for all."""
    if what == "REST":
        return []
    if span := _RANGE.fullmatch(what):
        return side(span[1], range(int(span[2]), int(span[3]) + 1))
    deep_in, shallow_out = _HALVES.get(per_side, (per_side // 2, per_side - per_side // 2))
    groups = {
        "SHALLOW IN": side("IN", range(deep_in)),
        "DEEP IN": side("IN", range(deep_in, per_side)),
        "DEEP OUT": side("OUT", range(shallow_out)),
        "SHALLOW OUT": side("OUT", range(shallow_out, per_side)),
        "DOWN": side("IN", range(per_side)),
        "UP": side("OUT", range(per_side)),
    }
    if what in groups:
        return groups[what]
    if what.startswith("DOWN"):
        start = int(what[4:]) * PER_LEVEL + 1
        # IN00 is conv_in, and the last level has no downsampler: its third number is no block.
        return [block for block in side("IN", range(start, start + PER_LEVEL)) if block != f"IN{per_side:02d}"]
    if what.startswith("UP"):
        return side("OUT", range(int(what[2:]) * PER_LEVEL, (int(what[2:]) + 1) * PER_LEVEL))
    if what not in ("BASE", "MID"):
        return side(what[:-2], [int(what[-2:])]) if what[-2:].isdigit() else side(what[:-1], [int(what[-1])])
    return [what]
