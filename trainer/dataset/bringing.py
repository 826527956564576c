"""Making data sets out of what a user has: one of pictures, or one a concept where a folder is laid out as kohya's scripts want it."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.dataset.archives import entry_name, unpack_zip
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.importing import ImportReport
from trainer.dataset.kohya import KohyaFolder, is_kohya_name, kohya_layout
from trainer.dataset.store import DatasetStore
from trainer.errors import Finding
from trainer.files import TEMPORARY_PREFIX, disk_errors
from trainer.paths import DataFolder


@dataclass(frozen=True)
class Brought:
    """The data sets that were made, and what came in of each."""

    sets: tuple[DatasetInfo, ...]
    reports: tuple[ImportReport, ...]

    def summary(self) -> str:
        """One line for the user."""
        if len(self.sets) == 1:
            return self.reports[0].summary()
        return " ".join(
            f"'{info.title}': {report.summary()}" for info, report in zip(self.sets, self.reports, strict=True)
        )

    @property
    def left_out(self) -> tuple[Finding, ...]:
        """What was left out of any."""
        return tuple(finding for report in self.reports for finding in report.left_out)


def bring_in(
    store: DatasetStore, data: DataFolder, name: str, paths: Sequence[str | Path], *, trigger_word: str = ""
) -> Brought:
    """A data set out of pictures, folders and zips; several of a folder or zip that is laid out as kohya's scripts want it
    (`10_zib robot`, also in `img` and `reg`): each with its repeats, the folder's name as caption of pictures that have none,
    and class pictures marked as such. After an error there is none.

    Raises: DatasetError, ResourceError: see `DatasetStore.create_from`.
    """
    only = Path(paths[0]) if len(paths) == 1 else None
    if only is not None and only.is_dir():
        concepts = kohya_layout(only)
        return _make(store, name, concepts, trigger_word) if concepts else _plain(store, name, paths, trigger_word)
    if only is None or not _is_kohya_zip(only):
        return _plain(store, name, paths, trigger_word)
    data.datasets.mkdir(parents=True, exist_ok=True)
    with disk_errors(data.datasets, "unpacking the zip"):
        unpacked = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}zip-", dir=data.datasets))
    try:
        unpack_zip(only, unpacked)
        concepts = _outermost(unpacked)
        return _make(store, name, concepts, trigger_word) if concepts else _plain(store, name, paths, trigger_word)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)


def _outermost(folder: Path) -> list[KohyaFolder]:
    """The concepts in a zip, which may have one folder around all."""
    found = kohya_layout(folder)
    inside = [path for path in folder.iterdir() if path.is_dir()]
    return found or (kohya_layout(inside[0]) if len(inside) == 1 else [])


def _is_kohya_zip(path: Path) -> bool:
    if path.suffix.casefold() != ".zip":
        return False
    try:
        with zipfile.ZipFile(path) as opened:
            folders = {part for info in opened.infolist() for part in entry_name(info).split("/")[:-1]}
    except (OSError, zipfile.BadZipFile):
        return False  # what is wrong with it is said when it is unpacked
    return any(is_kohya_name(folder) for folder in folders)


def _plain(store: DatasetStore, name: str, paths: Sequence[str | Path], trigger_word: str) -> Brought:
    info, report = store.create_from(name, paths, trigger_word=trigger_word)
    return Brought((info,), (report,))


def _make(store: DatasetStore, name: str, concepts: Sequence[KohyaFolder], trigger_word: str) -> Brought:
    made: list[tuple[DatasetInfo, ImportReport]] = []
    try:
        for concept in concepts:
            title = name if len(concepts) == 1 else f"{name} {concept.caption}"
            title += " (class pictures)" if concept.is_class and len(concepts) > 1 else ""
            # One word cannot call up several things.
            word = (
                trigger_word if len([one for one in concepts if not one.is_class]) == 1 and not concept.is_class else ""
            )
            made.append(store.create_from(title, [concept.path], trigger_word=word, training=concept.training()))
    except BaseException:
        for info, _ in made:
            store.delete(info.name)
        raise
    return Brought(tuple(info for info, _ in made), tuple(report for _, report in made))


def link_all(store: DatasetStore, folder: str | Path) -> tuple[DatasetInfo, ...]:
    """A folder used where it is, as a data set, or one for each of kohya's folders in it. Raises DatasetError: see `DatasetStore.link`."""
    path = Path(str(folder).strip().strip('"')).expanduser()
    concepts = kohya_layout(path) if str(folder).strip() else []
    if not concepts:
        return (store.link(folder),)
    linked = []
    for concept in concepts:
        info = store.link(concept.path)
        store.set_training(
            info.name, {key: value for key, value in concept.training().items() if key != "class_prompt"}
        )
        linked.append(store.get(info.name))
    return tuple(linked)
