"""What the checks say, as plain values: findings with their fixes, and the verdicts that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.doctor.measures import Measures
from trainer.dataset.doctor.settings import CheckSettings
from trainer.dataset.record import EXCLUDED
from trainer.dataset.scan import DatasetScan, PictureFacts


class Verdict(Enum):
    """Of a picture, best first."""

    GOOD = "good"
    USABLE = "usable"
    LEAVE_OUT = "leave out"


@dataclass(frozen=True)
class Fix:
    """What can be done: values of the data set's record by (document, key), so that it can be undone."""

    title: str
    changes: Mapping[tuple[str, str], Any]


def leave_out(name: str) -> Fix:
    """What helps against every fault of a picture."""
    return Fix(f"Leave {name} out", {(EXCLUDED, name): True})


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        check: name of the check.
        pictures: names of those that it is about; none where it is about the set.
        message: what is so.
        verdict: what it makes of the pictures in `against`; GOOD is a remark that counts for nothing.
        against: whose verdict it lowers; by default all of `pictures`.
        fix: what can be done about it, where something can.
        keep: of a group, the picture that is best kept.
    """

    check: str
    pictures: tuple[str, ...]
    message: str
    verdict: Verdict = Verdict.USABLE
    against: tuple[str, ...] | None = None
    fix: Fix | None = None
    keep: str = ""

    @property
    def key(self) -> str:
        """What it is known by where it is ignored: the check and the pictures."""
        return "|".join((self.check, *sorted(self.pictures)))

    @property
    def concerned(self) -> tuple[str, ...]:
        """The pictures whose verdict it lowers."""
        return self.pictures if self.against is None else self.against


@dataclass(frozen=True)
class Facts:
    """All that a check may look at.

    Attributes:
        info: the data set.
        scan: its pictures, without those left out.
        measures: of the pictures that were measured, by name.
        settings: what the pictures are wanted for.
        count_tokens: tokens of a text, by the tokenizer of the chosen base model.
        alike: groups of pictures that show the same, by name.
    """

    info: DatasetInfo
    scan: DatasetScan
    measures: Mapping[str, Measures]
    settings: CheckSettings
    count_tokens: Callable[[str], int]
    alike: Sequence[tuple[str, ...]] = ()

    @cached_property
    def measured(self) -> list[tuple[PictureFacts, Measures]]:
        """The usable pictures with their measures, in order."""
        return [(facts, self.measures[facts.name]) for facts in self.scan.usable if facts.name in self.measures]


@dataclass(frozen=True)
class Check:
    """A check. `why` says what is bad about what it finds, in the words of someone who trains."""

    name: str
    title: str
    why: str
    find: Callable[[Facts], Sequence[Finding]]


@dataclass(frozen=True)
class Report:
    """What all checks say of a data set. `num_ignored` findings are not among `findings`, as the user said."""

    findings: tuple[Finding, ...]
    pictures: tuple[str, ...]
    num_unmeasured: int = 0
    num_ignored: int = 0
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    summary: str = ""

    def count(self, verdict: Verdict) -> int:
        """How many pictures have this verdict."""
        return sum(1 for each in self.verdicts.values() if each is verdict)
