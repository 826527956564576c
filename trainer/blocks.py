"""Block weights: how strongly a LoRA works in each block of the UNet, as users of lora-block-weight write it.

    MIDD                        a preset
    1,0,0,0,1,1,1,1,…           17 or 26 numbers for SD 1 and 2, 12 or 20 for SDXL
    down1:0.5, mid:0, rest:1    blocks by name

Blocks have the names of the original code: BASE (text encoders, and what stands outside of the blocks), IN00…, MID,
OUT00…; SD 1 and 2 have 12 on each side, SDXL 9. `down1` and `up0` are diffusers' blocks, each several of these. All
layers of a block are weighted: attention, convolutions, norms, biases. Pure text: imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

MAX_WEIGHT = 10.0
PRESETS = ("ALL", "NONE", "INS", "IND", "INALL", "MIDD", "OUTD", "OUTS", "OUTALL")
"""Presets by name. Beside them: a block's name for it alone, `N` before it for all but it, `ALL0.5` for a number."""

_SIDES_OF_17 = ((1, 2, 4, 5, 7, 8), tuple(range(3, 12)))
_SIDES_OF_12 = ((4, 5, 7, 8), tuple(range(6)))
_SIDES: dict[int, tuple[int, tuple[Sequence[int], Sequence[int]]]] = {
    26: (12, (range(12), range(12))),
    17: (12, _SIDES_OF_17),
    20: (9, (range(9), range(9))),
    12: (9, _SIDES_OF_12),
}
"""For each length of a list: the blocks that a side of the model has, and those of each side that are named."""
# Where the shallow input blocks end and the shallow output blocks begin. SD 1: between IN04 and IN05, OUT06 and OUT07,
# as in lora-block-weight; SDXL: between diffusers' blocks down1 and down2, up0 and up1.
_HALVES = {12: (5, 7), 9: (6, 3)}
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
_NAME = re.compile(r"(?:IN|OUT)\d{1,2}|MID|M00|BASE|REST|DOWN\d?|UP\d?")
_RANGE = re.compile(r"(IN|OUT)(\d{1,2})-(?:\1)?(\d{1,2})")
_PATH = re.compile(
    r"unet\.(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|(?P<mid>mid_block))\.(?P<kind>\w+?)\.(?P<index>\d+)"
)
# On each level of the original UNet: two blocks and a downsampler, or three blocks.
_PER_LEVEL = 3


def blocks_per_side(paths: Iterable[str]) -> int:
    """How many blocks a model has on each side, from the paths of its layers: 12 in SD 1 and 2, 9 in SDXL."""
    levels = [int(found["level"]) for path in paths if (found := _PATH.match(path)) and found["level"]]
    return _PER_LEVEL * (max(levels, default=0) + 1)


def block_of(path: str) -> str:
    """The block of a layer: "IN05", "MID", "OUT11"; "BASE" for text encoders and what stands outside of blocks.

    Args:
        path: with its part: "unet.down_blocks.1.attentions.0.proj_in".
    """
    if path.startswith("unet.conv_in"):
        return "IN00"
    found = _PATH.match(path)
    if found is None:
        return "BASE"
    if found["mid"]:
        return "MID"
    start = int(found["level"]) * _PER_LEVEL
    sampler = found["kind"] in ("downsamplers", "upsamplers")
    index = start + (_PER_LEVEL - 1 if sampler else int(found["index"]))
    return f"IN{index + 1:02d}" if found["side"] == "down" else f"OUT{index:02d}"


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
    if len(values) not in _SIDES:
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
    return name.upper(), _number(number.strip(), f"the weight of '{name}'")


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
        return ("REST", rest), (one[2], 1.0 - rest)
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
    blocks = ["BASE", *_side("IN", range(per_side)), "MID", *_side("OUT", range(per_side))]
    if weights.values:
        return _from_list(weights.values, blocks, per_side)
    table = dict.fromkeys(blocks, 1.0)
    for what, weight in sorted(weights.rules, key=lambda rule: rule[0] != "REST"):
        chosen = _chosen(what, per_side) or blocks
        if unknown := [block for block in chosen if block not in table]:
            raise ValueError(f"the base model has no block {unknown[0]}: it has {per_side} on each side, from 00 on")
        table |= dict.fromkeys(chosen, weight)
    return table


def _side(side: str, numbers: Iterable[int]) -> list[str]:
    return [f"{side}{number:02d}" for number in numbers]


def _from_list(values: Sequence[float], blocks: Sequence[str], per_side: int) -> dict[str, float]:
    """A block that the list does not name follows the one next to it, on the way of the data: ones are ones everywhere."""
    expected, (inputs, outputs) = _SIDES[len(values)]
    if expected != per_side:
        fitting = " or ".join(str(length) for length, (count, _) in sorted(_SIDES.items()) if count == per_side)
        raise ValueError(
            f"a list of {len(values)} block weights is for models with {expected} blocks on each side, this base model has "
            f"{per_side}: write {f'{fitting} numbers' if fitting else 'blocks by name, such as down1:0.5,mid:0'}"
        )
    named = dict(zip(["BASE", *_side("IN", inputs), "MID", *_side("OUT", outputs)], values, strict=True))
    table: dict[str, float] = {}
    for side, numbers in (("IN", inputs), ("OUT", outputs)):
        for number in range(per_side):
            nearest = max((known for known in numbers if known <= number), default=min(numbers))
            table[f"{side}{number:02d}"] = named[f"{side}{nearest:02d}"]
    return {block: named.get(block, table.get(block, 1.0)) for block in blocks}


def _chosen(what: str, per_side: int) -> list[str]:
    """The blocks that a rule is about; empty for all."""
    if what == "REST":
        return []
    if span := _RANGE.fullmatch(what):
        return _side(span[1], range(int(span[2]), int(span[3]) + 1))
    deep_in, shallow_out = _HALVES.get(per_side, (per_side // 2, per_side - per_side // 2))
    groups = {
        "SHALLOW IN": _side("IN", range(deep_in)),
        "DEEP IN": _side("IN", range(deep_in, per_side)),
        "DEEP OUT": _side("OUT", range(shallow_out)),
        "SHALLOW OUT": _side("OUT", range(shallow_out, per_side)),
        "DOWN": _side("IN", range(per_side)),
        "UP": _side("OUT", range(per_side)),
        "M00": ["MID"],
    }
    if what in groups:
        return groups[what]
    if what.startswith("DOWN"):
        start = int(what[4:]) * _PER_LEVEL + 1
        # IN00 is conv_in, and the last level has no downsampler: its third number is no block.
        return [block for block in _side("IN", range(start, start + _PER_LEVEL)) if block != f"IN{per_side:02d}"]
    if what.startswith("UP"):
        return _side("OUT", range(int(what[2:]) * _PER_LEVEL, (int(what[2:]) + 1) * _PER_LEVEL))
    if what not in ("BASE", "MID"):
        return _side(what[:-2], [int(what[-2:])]) if what[-2:].isdigit() else _side(what[:-1], [int(what[-1])])
    return [what]
