"""All checks over a data set that was measured: findings, a verdict for each picture, and one for the set in words."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.dataset.doctor.alike import Alike
from trainer.dataset.doctor.checks import (
    background,
    borders,
    caption_length,
    captions,
    compression,
    contradictions,
    duplicates,
    enlarged,
    files,
    outliers,
    overlays,
    shape,
    sharpness,
    size,
    transparency,
    trigger,
    variety,
)
from trainer.dataset.doctor.findings import Check, Facts, Finding, Fix, Report, Verdict
from trainer.dataset.doctor.measuring import Progress, alike_path, measure_dataset, measures_of
from trainer.dataset.doctor.settings import CheckSettings
from trainer.dataset.record import IGNORED, load_state
from trainer.dataset.store import DatasetStore
from trainer.dataset.token_counts import token_counter
from trainer.errors import DatasetError
from trainer.paths import DataFolder

CHECKS: dict[str, Check] = {
    module.CHECK.name: module.CHECK
    for module in (
        files,
        duplicates,
        sharpness,
        enlarged,
        size,
        shape,
        compression,
        borders,
        transparency,
        background,
        captions,
        caption_length,
        trigger,
        contradictions,
        variety,
        outliers,
        overlays,
    )
}
"""In the order in which they are shown."""
_ORDER = tuple(Verdict)


def check_dataset(data: DataFolder, name: str, settings: CheckSettings, progress: Progress | None = None) -> Report:
    """Measure what is not measured yet, and judge. Raises InkwashError; what `progress` raises ends it."""
    token_counter(settings.base, data)  # a base model that is not there is told before the pictures are looked at
    measure_dataset(data, name, progress)
    return diagnose(data, name, settings, progress)


def diagnose(
    data: DataFolder,
    name: str,
    settings: CheckSettings,
    progress: Progress | None = None,
    *,
    only_compared: bool = False,
) -> Report:
    """Judge what was measured: no picture is decoded that was seen before.

    Args:
        data: the data folder.
        name: of a data set, or a folder.
        settings: what the pictures are wanted for.
        progress: hears of the comparing of pictures, which may take a minute; what it raises ends it.
        only_compared: compare none: those that were not, by an earlier diagnosis, count as not measured.

    Raises: DatasetError, ModelFileError.
    """
    store = DatasetStore(data)
    info, scan = store.get(name), store.scan(name)
    measures = measures_of(data, info.folder, scan.usable)
    measured = [facts for facts in scan.usable if facts.name in measures]
    known = Alike(alike_path(data, info.folder))
    if only_compared:
        compared = known.compared([facts.content for facts in measured])
        measured = [facts for facts, is_compared in zip(measured, compared, strict=True) if is_compared]
        measures = {facts.name: measures[facts.name] for facts in measured}
    contents, values = [facts.content for facts in measured], [measures[facts.name] for facts in measured]
    groups = known.groups(contents, values, progress)
    alike = [tuple(measured[index].name for index in group) for group in groups]
    facts = Facts(info, scan, measures, settings, token_counter(settings.base, data).count_one, alike)
    found = [finding for check in CHECKS.values() for finding in check.find(facts)]
    ignored = load_state(info.record)[IGNORED] if info.record else {}
    kept = tuple(finding for finding in found if finding.key not in ignored)
    pictures = tuple(picture.name for picture in scan.pictures)
    verdicts = judge(pictures, kept)
    unmeasured = len(scan.usable) - len(facts.measured)
    return Report(kept, pictures, unmeasured, len(found) - len(kept), verdicts, summarise(verdicts, kept))


def judge(pictures: Sequence[str], findings: Sequence[Finding]) -> dict[str, Verdict]:
    """Each picture's verdict: the worst of what was found."""
    verdicts = dict.fromkeys(pictures, Verdict.GOOD)
    for finding in findings:
        for name in finding.concerned:
            if name in verdicts:
                verdicts[name] = max(verdicts[name], finding.verdict, key=_ORDER.index)
    return verdicts


def summarise(verdicts: dict[str, Verdict], findings: Sequence[Finding]) -> str:
    """The verdict on the set, in words."""
    number = len(verdicts)
    good, usable, bad = (sum(1 for each in verdicts.values() if each is verdict) for verdict in _ORDER)
    if not number:
        return "There are no pictures."
    if good + usable == 0:
        return "None of the pictures should be trained on as they are."
    remarks = [finding for finding in findings if not finding.pictures]
    if bad == 0 and usable == 0:
        words = f"Ready to train: nothing is wrong with any of the {number} pictures."
    elif bad * 4 > number:
        words = f"Not ready: {bad} of {number} pictures are better left out. Fix these first."
    elif bad:
        words = f"Nearly ready: leave {bad} of {number} pictures out, and it can be trained."
    elif usable * 2 > number:
        words = f"Can be trained, but {usable} of {number} pictures have a flaw that the LoRA may learn."
    else:
        words = f"Ready to train; {usable} of {number} pictures could be better."
    return f"{words} {len(remarks)} remarks about the set as a whole." if len(remarks) > 1 else words


# --- doing something about it ------------------------------------------------------------------------------------


def fix(store: DatasetStore, name: str, findings: Sequence[Finding], title: str = "") -> int:
    """Do what findings propose, as one change that can be undone; returns how many had a fix.

    Raises: DatasetError: none of them has one.
    """
    fixes = [finding.fix for finding in findings if finding.fix]
    if not fixes:
        raise DatasetError(
            "There is nothing here that can be fixed by itself.", fix="Change the pictures, or ignore it."
        )
    _apply(store, name, fixes, title or _title(fixes))
    return len(fixes)


def _apply(store: DatasetStore, name: str, fixes: Sequence[Fix], title: str) -> None:
    store.change(name, title, {key: value for each in fixes for key, value in each.changes.items()})


def _title(fixes: Sequence[Fix]) -> str:
    return fixes[0].title if len(fixes) == 1 else f"{len(fixes)} fixes of the check"


def ignore(store: DatasetStore, name: str, findings: Sequence[Finding]) -> None:
    """Do not show findings any more, as a change that can be undone."""
    title = (
        f"Ignored {CHECKS[findings[0].check].title.lower()}"
        if len(findings) == 1
        else f"Ignored {len(findings)} findings"
    )
    store.change(name, title, {(IGNORED, finding.key): True for finding in findings})


def of_check(report: Report, check: str) -> list[Finding]:
    """The findings of one check. Raises DatasetError: there is no such check."""
    if check not in CHECKS:
        raise DatasetError(f"There is no check '{check}'.", fix=f"Choose one of: {', '.join(CHECKS)}.")
    return [finding for finding in report.findings if finding.check == check]
