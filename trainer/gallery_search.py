"""What is typed into the gallery's search: words of the prompt, and `lora:`, `model:`, `seed:`, `date:`, `negative:`, `is:favourite`.

    castle "red house" lora:ink -fog date:2026-11

All must hold; `-` before one turns it round; quotes keep words together; capitals do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.errors import ConfigError

FIELDS = ("lora", "model", "seed", "date", "negative", "is")
_TERM = re.compile(r'(?P<minus>-?)(?:(?P<field>[a-z]+):)?(?:"(?P<quoted>[^"]*)"?|(?P<word>\S+))', re.IGNORECASE)
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_MAX_CHARACTERS = 2000


@dataclass(frozen=True)
class Term:
    """One condition: `field` is empty for words of the prompt; `last` ends a span of dates."""

    field: str
    text: str
    is_negated: bool = False
    last: str = ""

    def fits(self, values: Sequence[str], *, is_favourite: bool) -> bool:
        """Whether a picture with these values of the field has it."""
        if self.field == "is":
            found = is_favourite
        elif self.field == "seed":
            found = self.text in values
        elif self.field == "date" and self.last:
            found = any(self.text <= value and value[: len(self.last)] <= self.last for value in values)
        elif self.field == "date":
            found = any(value.startswith(self.text) for value in values)
        else:
            found = any(self.text in value.casefold() for value in values)
        return found != self.is_negated


@dataclass(frozen=True)
class Query:
    """All conditions of a search."""

    terms: tuple[Term, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether every picture fits."""
        return not self.terms

    @property
    def wants_favourites(self) -> bool:
        """Whether the favourites must be known."""
        return any(term.field == "is" for term in self.terms)

    def fits(self, values: Mapping[str, Sequence[str]], *, is_favourite: bool) -> bool:
        """Whether a picture with these values by field fits."""
        return all(term.fits(values.get(term.field, ()), is_favourite=is_favourite) for term in self.terms)


def parse_query(text: str) -> Query:
    """Read a search.

    Raises: ConfigError: a date that is none, or something other than `is:favourite`.
    """
    terms: list[Term] = []
    for found in _TERM.finditer(text[:_MAX_CHARACTERS]):
        field = (found["field"] or "").casefold()
        value = (found["quoted"] if found["quoted"] is not None else found["word"]).casefold()
        if field and field not in FIELDS:
            # A word with a colon in it, such as a weight.
            field, value = "", f"{field}:{value}"
        if value:
            terms.append(_term(field, value, is_negated=bool(found["minus"])))
    return Query(tuple(terms))


def _term(field: str, value: str, *, is_negated: bool) -> Term:
    if field == "is" and not re.fullmatch(r"favou?rites?|starred", value):
        raise ConfigError(f"'is:{value}' is nothing to search for.", where="search", fix="Write is:favourite.")
    if field != "date":
        return Term(field, value, is_negated)
    first, dots, last = value.partition("..")
    if not all(_DATE.fullmatch(part) for part in ((first, last) if dots else (first,))):
        raise ConfigError(
            f"'{value}' is no date.",
            where="search",
            fix="Write date:2026, date:2026-11, or date:2026-11-01..2026-11-20.",
        )
    return Term(field, first, is_negated, last)
