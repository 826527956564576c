"""The prompt syntax that people know from other programs: `(word)`, `(word:1.2)`, `[word]`, `BREAK`.

Round brackets multiply the weight by 1.1, square ones divide by it, nested ones do so again; `(…:1.2)` multiplies by
the number instead. A backslash before a bracket makes it a plain character. `BREAK` begins a new chunk of tokens.
What is not closed holds to the end; what was never opened is a plain character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FACTOR = 1.1
_TOKEN = re.compile(
    r"""
    (?P<escaped>\\[()\[\]\\])
    | (?P<number>:\s*(?P<value>[+-]?(?:\d+\.?\d*|\.\d+))\s*\))
    | (?P<mark>[()\[\]])
    | (?P<text>[^\\()\[\]:]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*", re.DOTALL)


@dataclass(frozen=True)
class Segment:
    """A part of a prompt and its weight; 1 is neutral."""

    text: str
    weight: float = 1.0


Sections = tuple[tuple[Segment, ...], ...]
"""The parts of a prompt between BREAKs, each a run of segments."""


def plain(prompt: str) -> Sections:
    """The prompt as it stands, without any syntax."""
    return ((Segment(prompt),),)


def parse_weights(prompt: str) -> Sections:
    """The prompt's sections and weights."""
    texts: list[str] = []
    weights: list[float] = []
    opened: list[tuple[str, int]] = []

    def scale(start: int, factor: float) -> None:
        for index in range(start, len(weights)):
            weights[index] *= factor

    def add(text: str) -> None:
        texts.append(text)
        weights.append(1.0)

    for found in _TOKEN.finditer(prompt):
        text = found.group()
        if found["escaped"]:
            add(text[1])
        elif found["number"] and opened and opened[-1][0] == "(":
            scale(opened.pop()[1], float(found["value"]))
        elif found["number"]:
            add(text)
        elif text in "([" and found["mark"]:
            opened.append((text, len(texts)))
        elif found["mark"] and opened and opened[-1][0] == {")": "(", "]": "["}[text]:
            scale(opened.pop()[1], _FACTOR if text == ")" else 1 / _FACTOR)
        else:
            add(text)
    for mark, start in opened:
        scale(start, _FACTOR if mark == "(" else 1 / _FACTOR)
    return _sections(texts, weights)


def _sections(texts: list[str], weights: list[float]) -> Sections:
    """Split at BREAK, and join neighbours of equal weight."""
    sections: list[list[Segment]] = [[]]
    for text, weight in zip(texts, weights, strict=True):
        for index, piece in enumerate(_BREAK.split(text)):
            if index:
                sections.append([])
            if not piece:
                continue
            last = sections[-1][-1] if sections[-1] else None
            if last is not None and last.weight == weight:
                sections[-1][-1] = Segment(last.text + piece, weight)
            else:
                sections[-1].append(Segment(piece, weight))
    return tuple(tuple(section) or (Segment(""),) for section in sections)
