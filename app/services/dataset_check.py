"""The check of data sets as the Dataset tab sees it: starting one, what it found. Knows no widgets."""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.base_models import list_base_models
from trainer.config.model import BaseChoice
from trainer.dataset.doctor import diagnosis
from trainer.dataset.doctor.checks.duplicates import keep_only
from trainer.dataset.doctor.diagnosis import CHECKS
from trainer.dataset.doctor.findings import Finding, Fix, Report, Verdict
from trainer.dataset.doctor.settings import CheckSettings
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.errors import DatasetError, RunError
from trainer.jobs import enqueue
from trainer.paths import DataFolder
from trainer.runs import create_run, list_runs

log = logging.getLogger(__name__)
_SHOWN_PICTURES = 24
_THUMBNAIL = 384


class DatasetCheckService:
    """Checks of the data sets of a data folder."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self.store = DatasetStore(data)

    def bases(self) -> list[tuple[str, str]]:
        """(label, name) of the base models that can be used."""
        return [(info.label, info.name) for info in list_base_models(self._data) if not info.problem]

    def resolution_of(self, base: str) -> int:
        """The resolution that a base model was made for."""
        return next((info.resolution for info in list_base_models(self._data) if info.name == base), 512)

    @property
    def usual_base(self) -> str:
        """The base model that is chosen first."""
        return BaseChoice().base

    def start(self, name: str, settings: CheckSettings) -> str:
        """Start a check; returns the run's id. Raises DatasetError: there is no such data set, or it is being checked."""
        info = self.store.get(name)
        if self.working(name):
            raise DatasetError("This data set is being checked already.", where=info.title, fix="Wait, or cancel it.")
        config = {"dataset": name, "settings": settings.model_dump()}
        run = create_run(self._data, "check", f"Check of {info.title}"[:60], config)
        enqueue(run, self._data)
        return run.id

    def working(self, name: str) -> str:
        """Id of the check of a data set that works or waits; empty where there is none."""
        for run in list_runs(self._data):
            try:
                is_check = run.info().kind == "check" and run.config().get("dataset") == name
            except RunError:
                log.warning("A run folder cannot be read: %s", run.folder)
                continue
            if is_check and not run.state().is_over:
                return run.id
        return ""

    # --- what was found ------------------------------------------------------------------------------------------

    def report(self, name: str, settings: CheckSettings) -> Report:
        """What the checks say of what was measured and compared: comparing is the job's, with progress. Raises InkwashError."""
        return diagnosis.diagnose(self._data, name, settings, only_compared=True)

    def pictures(self, name: str, finding: Finding) -> list[tuple[str, str]]:
        """(thumbnail, label) of a finding's pictures, those that can be shown."""
        known = {facts.name: facts for facts in self.store.scan(name).pictures}
        shown = [known[picture] for picture in shown_pictures(finding) if picture in known]
        tiles = [(self._tile(facts), _label(facts, finding)) for facts in shown]
        return [(str(tile), label) for tile, label in tiles if tile is not None]

    def _tile(self, facts: PictureFacts) -> Path | None:
        if not facts.is_usable:
            return None
        try:
            return self.store.thumbnail(facts, _THUMBNAIL)
        except DatasetError:
            log.warning("No thumbnail of %s", facts.path, exc_info=True)
            return None

    def keeping(self, name: str, finding: Finding, keep: str) -> str:
        """What `fix` does where the picture `keep` of a group is kept, in words."""
        return keep_only(self.store.scan(name), finding.pictures, keep).title

    def fix(self, name: str, finding: Finding, keep: str = "") -> str:
        """Do what a finding proposes, of a group keeping the picture `keep`; returns what was done. Raises DatasetError."""
        if finding.keep and keep in finding.pictures:
            fix: Fix | None = keep_only(self.store.scan(name), finding.pictures, keep)
        else:
            fix = finding.fix
        if fix is None:
            raise DatasetError("This cannot be fixed by itself.", fix="Change the picture, or ignore the finding.")
        self.store.change(self.store.get(name).name, fix.title, fix.changes)
        return fix.title

    def fix_all(self, name: str, findings: list[Finding]) -> int:
        """Do what all of them propose, as one change. Raises DatasetError: none proposes anything."""
        title = f"{CHECKS[findings[0].check].title}: {len(findings)} fixes" if findings else ""
        return diagnosis.fix(self.store, self.store.get(name).name, findings, title)

    def ignore(self, name: str, findings: list[Finding]) -> None:
        """Do not show findings any more."""
        diagnosis.ignore(self.store, self.store.get(name).name, findings)


def shown_pictures(finding: Finding) -> tuple[str, ...]:
    """The pictures of a finding that a page can bear, the best of a group first."""
    ordered = sorted(finding.pictures, key=lambda name: name != finding.keep)
    return tuple(ordered[:_SHOWN_PICTURES])


def rows(report: Report) -> list[tuple[str, str, list[Finding]]]:
    """(check, title, findings) of the checks that found something, in order."""
    grouped = ((name, check.title, diagnosis.of_check(report, name)) for name, check in CHECKS.items())
    return [(name, title, found) for name, title, found in grouped if found]


def counts(report: Report) -> list[tuple[Verdict, int]]:
    """How many pictures have each verdict."""
    return [(verdict, report.count(verdict)) for verdict in Verdict]


def _label(facts: PictureFacts, finding: Finding) -> str:
    best = "best · " if facts.name == finding.keep else ""
    return f"{best}{facts.name} · {facts.width}×{facts.height}"
