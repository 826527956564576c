"""A picture of where the LoRAs of a stack fight: a row for each pair, a column for each block."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.lora_tools.conflicts import PairBlock

_CELL, _LABEL, _HEAD = 22, 260, 190
# Seen on paper and in the dark; red and blue are told apart by colour-blind people, too.
_SAME, _AGAINST, _EMPTY = "#c8553d", "#3f74a8", "#80808020"
_WARNED = 0.25
"""The effect at which a cell has half its colour: that of the warnings."""


def conflicts_svg(pairs: Sequence[PairBlock], titles: Sequence[str]) -> str:
    """The picture as SVG, which has the colours of the page that it stands in; empty where no pair has a layer in common.

    A cell is the redder the more a pair does the same in that block, the bluer the more one undoes the other.
    """
    blocks = list(dict.fromkeys(pair.block for pair in pairs))
    rows = list(dict.fromkeys((pair.first, pair.second) for pair in pairs))
    if not rows:
        return ""
    width, height = _LABEL + _CELL * len(blocks) + 90, _HEAD + _CELL * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'font-family="sans-serif" font-size="12" aria-label="Where pairs of LoRAs fight, block by block">'
    ]
    for column, block in enumerate(blocks):
        left = _LABEL + _CELL * column + 15
        turn = f"translate({left} {_HEAD - 8}) rotate(-60)"
        parts.append(f'<text transform="{turn}" fill="currentColor">{html.escape(block)}</text>')
    for row, (first, second) in enumerate(rows):
        name = f"{titles[first]} and {titles[second]}"
        short = name if len(name) <= 38 else f"{name[:37]}…"
        bottom = _HEAD + _CELL * row + 15
        parts.append(f'<text x="0" y="{bottom}" fill="currentColor">{html.escape(short)}</text>')
    for pair in pairs:
        left, top = _LABEL + _CELL * blocks.index(pair.block), _HEAD + _CELL * rows.index((pair.first, pair.second))
        parts.append(_cell(pair, left, top))
    return "".join([*parts, "</svg>"])


def _cell(pair: PairBlock, left: int, top: int) -> str:
    strongest = max((pair.on_first, pair.on_second), key=abs)
    depth = abs(strongest) / (abs(strongest) + _WARNED)
    fill = _SAME if strongest > 0 else _AGAINST
    told = f"{pair.block}: {pair.on_first:+.0%} and {pair.on_second:+.0%}{', ' * bool(pair.verdict)}{pair.verdict}"
    place = f'x="{left}" y="{top}" width="{_CELL - 2}" height="{_CELL - 2}"'
    return (
        f'<rect {place} fill="{_EMPTY}"/><rect {place} fill="{fill}" fill-opacity="{depth:.2f}">'
        f"<title>{html.escape(told)}</title></rect>"
    )
