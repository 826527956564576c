"""Finding and replacing text in captions, plain or by regular expression.

The package `regex` is used because it can stop an expression that would take forever, which `re` cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import regex

from trainer.dataset.tags import CaptionEdit, join_tags, split_tags
from trainer.errors import DatasetError

Result = TypeVar("Result")
SECONDS_A_SET = 20.0
"""What an expression may take over all captions, by the clock."""
SECONDS_A_CAPTION = 0.25
MAX_PATTERN = 500


@dataclass(frozen=True)
class Search:
    """What is looked for. With `is_regex` the text is a regular expression, and the replacement may have `\\1` and `\\g<name>`."""

    text: str
    is_regex: bool = False
    ignores_case: bool = True


class TimedPattern:
    """A compiled search that counts its time. Raises DatasetError: the expression is wrong; it says where."""

    def __init__(self, search: Search) -> None:
        if not search.text or len(search.text) > MAX_PATTERN:
            message = "It is not said what to look for." if not search.text else "What to look for is too long."
            raise DatasetError(message, fix=f"Type up to {MAX_PATTERN} characters.")
        self._text = search.text
        self._left = SECONDS_A_SET
        source = search.text if search.is_regex else regex.escape(search.text, special_only=True)
        try:
            self._pattern = regex.compile(source, regex.IGNORECASE if search.ignores_case else 0)
        except regex.error as failure:
            raise _wrong("This regular expression cannot be read", search.text, failure) from failure
        except (OverflowError, RecursionError, MemoryError) as failure:
            raise _wrong("This regular expression is too large", search.text, failure) from failure

    def check_replacement(self, template: str) -> None:
        """Refuse a replacement that names groups that are not there. Raises DatasetError."""
        # A template is read when something is found: with an empty alternative that is always so, and the groups are the same.
        try:
            flags = self._pattern.flags & regex.IGNORECASE
            regex.compile(f"{self._pattern.pattern}|", flags).sub(template, "", timeout=SECONDS_A_CAPTION)
        except (regex.error, IndexError) as failure:
            raise _wrong("This replacement cannot be used", template, failure) from failure
        except TimeoutError as failure:
            raise self._too_slow() from failure

    def found_in(self, text: str) -> bool:
        """Whether it is found. Raises DatasetError: it takes too long."""
        return self._timed(lambda timeout: self._pattern.search(text, timeout=timeout)) is not None

    def replaced(self, text: str, replacement: str, *, is_template: bool) -> str:
        """`text` with all that is found replaced. Raises DatasetError: it takes too long."""
        new = replacement if is_template else lambda _: replacement
        return self._timed(lambda timeout: self._pattern.sub(new, text, timeout=timeout))

    def _timed(self, act: Callable[[float], Result]) -> Result:
        started = time.monotonic()
        try:
            result = act(max(0.01, min(SECONDS_A_CAPTION, self._left)))
        except TimeoutError as failure:
            raise self._too_slow() from failure
        self._left -= time.monotonic() - started
        if self._left <= 0:
            raise self._too_slow()
        return result

    def _too_slow(self) -> DatasetError:
        return DatasetError(
            "This regular expression takes too long; nothing was changed.",
            where=self._text,
            fix="Avoid repetitions within repetitions such as (a+)+, or look for plain text.",
        )


def replace_text(search: Search, replacement: str) -> CaptionEdit:
    """Replace what is found in captions; tags that become empty go with their commas.

    Raises: DatasetError: the expression or the replacement is wrong, with its place. The edit itself raises it when it
    takes too long.
    """
    pattern = TimedPattern(search)
    if search.is_regex:
        pattern.check_replacement(replacement)

    def change(caption: str) -> str:
        after = pattern.replaced(caption, replacement, is_template=search.is_regex)
        return caption if after == caption else _tidied(after)

    kind = "expression " if search.is_regex else ""
    return CaptionEdit(f"Replaced {kind}'{search.text[:60]}' by '{replacement[:60]}'", change)


def _tidied(caption: str) -> str:
    caption = " ".join(caption.split())
    return caption if all(part.strip() for part in caption.split(",")) else join_tags(split_tags(caption))


def _wrong(message: str, text: str, failure: Exception) -> DatasetError:
    position = getattr(failure, "pos", None)
    reason = getattr(failure, "msg", None) or str(failure)
    place = f" at character {position + 1}" if position is not None else ""
    return DatasetError(
        f"{message}: {reason}{place}.",
        where=text[:200],
        fix="Correct it, or turn 'regular expression' off to look for the text as it stands.",
    )
