"""The values of an axis as people type them: lists, quotes, ranges as in A1111's X/Y/Z plot. Pure text.

3, 5, 7              a list
"1,0,1", "MIDD"      values with commas in quotes; a quote in them is written twice
1-5                  1, 2, 3, 4, 5
0-1:0.25             0, 0.25, 0.5, 0.75, 1; also 0-1 (+0.25), and downwards 10-4 (-3)
1-10 [4]             four values at even distances: 1, 4, 7, 10
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, DecimalException

MAX_VALUES = 256
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(
    rf"({_NUMBER})\s*-\s*({_NUMBER})\s*"
    rf"(?::\s*(?P<step>{_NUMBER})|\(\s*(?P<plus>{_NUMBER})\s*\)|\[\s*(?P<count>\d+)\s*\])?"
)
_NUMBER_ALONE = re.compile(_NUMBER)


class AxisFault(ValueError):
    """What is wrong with an axis: `at` is where it stands in the axis's text, from 0; what is said of it."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True)
class Value:
    """A value as written, and where it begins in the axis's text, from 0."""

    text: str
    at: int


def split_values(text: str, begin: int = 0) -> list[Value]:
    """The values of a list, quotes taken off.

    Args:
        text: the axis's text.
        begin: where its values begin.

    Raises: AxisFault: a value is missing, a quote is not closed, or there are too many.
    """
    values: list[Value] = []
    place = begin
    while True:
        while place < len(text) and text[place].isspace():
            place += 1
        start = place
        if text[place : place + 1] == '"':
            word, place = _quoted(text, place)
        else:
            end = text.find(",", place)
            place = len(text) if end < 0 else end
            word = text[start:place].rstrip()
            if not word:
                raise AxisFault(start, 'a value is missing here; an empty one is written ""')
        values.append(Value(word, start))
        if len(values) > MAX_VALUES:
            raise AxisFault(start, f"there are more than {MAX_VALUES} values")
        if place >= len(text):
            return values
        place += 1


def _quoted(text: str, place: int) -> tuple[str, int]:
    """The text in quotes that begins at `place`, and where it ends."""
    start, word = place, ""
    while True:
        end = text.find('"', place + 1)
        if end < 0:
            raise AxisFault(start, "the quote is not closed")
        word += text[place + 1 : end]
        place = end + 1
        if text[place : place + 1] != '"':
            break
        word += '"'
    while place < len(text) and text[place].isspace():
        place += 1
    if place < len(text) and text[place] != ",":
        raise AxisFault(place, "a comma is missing after the quote")
    return word, place


def expand_numbers(value: Value, *, is_whole: bool) -> list[Decimal]:
    """The numbers that a value stands for: itself, or all of a range.

    Args:
        value: as written.
        is_whole: whether the setting takes whole numbers only.

    Raises: AxisFault: it is neither a number nor a range, or a fraction where there can be none.
    """
    text = value.text
    if _NUMBER_ALONE.fullmatch(text):
        numbers = [Decimal(text)]
    elif found := _RANGE.fullmatch(text):
        numbers = _range(value, found, is_whole=is_whole)
    else:
        raise AxisFault(value.at, f"'{text}' is neither a number nor a range such as 0-1:0.25")
    if is_whole and any(number != number.to_integral_value() for number in numbers):
        raise AxisFault(value.at, f"'{text}' gives fractions, and this setting has whole numbers only")
    return numbers


def number_text(number: float) -> str:
    """A number as short as it can be without being another."""
    short = f"{number:g}"
    return short if float(short) == number else str(number)


def _range(value: Value, found: re.Match[str], *, is_whole: bool) -> list[Decimal]:
    try:
        first, last = Decimal(found[1]), Decimal(found[2])
        if found["count"] is not None:
            return _even(value, first, last, int(found["count"]), is_whole=is_whole)
        written = found["step"] or found["plus"]
        step = Decimal(written) if written else Decimal(1)
    except DecimalException as error:
        raise AxisFault(value.at, f"'{value.text}' cannot be read") from error
    if step == 0:
        raise AxisFault(value.at, f"the step of '{value.text}' is 0")
    if not found["plus"]:
        step = abs(step) if last >= first else -abs(step)
    elif (last - first) * step < 0:
        raise AxisFault(value.at, f"'{value.text}' leads away from its end: turn the sign of the step round")
    # With a step that does not fit, the last value is the one before the end.
    count = int((last - first) / step) + 1
    if count > MAX_VALUES:
        raise AxisFault(value.at, f"'{value.text}' gives {count} values; {MAX_VALUES} are the most")
    return [first + step * index for index in range(count)]


def _even(value: Value, first: Decimal, last: Decimal, count: int, *, is_whole: bool) -> list[Decimal]:
    if not 1 <= count <= MAX_VALUES:
        raise AxisFault(value.at, f"'{value.text}' asks for {count} values; 1 to {MAX_VALUES} can be")
    numbers = [first + (last - first) * index / max(count - 1, 1) for index in range(count)]
    return list(dict.fromkeys(n.to_integral_value() if is_whole else round(n, 6).normalize() for n in numbers))
