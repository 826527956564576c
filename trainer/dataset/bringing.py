"""Making data sets out of what a user has: one of pictures, or one a concept where a folder is laid out as kohya's scripts want it."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.dataset.archives import entry_name, unpack_zip
from trainer.dataset.catalog import DatasetInfo
from trainer.dataset.dropped import Source, as_dropped, has_folders, lay_out
from trainer.dataset.importing import ImportReport
from trainer.dataset.kohya import KohyaFolder, KohyaLayout, is_kohya_name, kohya_layout
from trainer.dataset.store import DatasetStore
from trainer.dataset.walk import readable_name
from trainer.errors import Finding
from trainer.files import TEMPORARY_PREFIX, disk_errors, safe_name
from trainer.paths import DataFolder
from trainer.progress import Progress, no_progress


@dataclass(frozen=True)
class Brought:
    """The data sets that were made, and what came in of each."""

    sets: tuple[DatasetInfo, ...]
    reports: tuple[ImportReport, ...] = ()
    """For each set; none for folders that are used where they are."""
    not_taken: tuple[Finding, ...] = ()
    """What became part of none of them."""

    def summary(self) -> str:
        """One line for the user."""
        if len(self.sets) == 1 and not self.not_taken:
            return self.told(0)
        each = [f"'{info.title}': {self.told(place)}" for place, info in enumerate(self.sets)]
        return " ".join([*each, f"{len(self.not_taken)} left out."] if self.not_taken else each)

    def told(self, place: int) -> str:
        """What came into one of the sets, and what its folder's name says of it."""
        info, said = self.sets[place], []
        if info.instance_prompt:
            said.append(f"“{info.instance_prompt}” stands for captions that are missing")
        if info.repeats > 1:
            said.append(f"each picture counts {info.repeats} times")
        of_name = f" As the folder's name says, {' and '.join(said)}." if said else ""
        return f"{self.reports[place].summary()}{of_name}"

    @property
    def left_out(self) -> tuple[Finding, ...]:
        """What was left out of any, and of all."""
        return (*self.not_taken, *(finding for report in self.reports for finding in report.left_out))


def bring_in(
    store: DatasetStore,
    data: DataFolder,
    name: str,
    paths: Sequence[Source],
    *,
    trigger_word: str = "",
    progress: Progress = no_progress,
) -> Brought:
    """A data set out of pictures, folders and zips; several of a folder or zip that is laid out as kohya's scripts want it
    (`10_zib robot`, also in `img` and `reg`): each with its repeats, the folder's name as caption of pictures that have none,
    and class pictures marked as such. After an error there is none.

    Raises: DatasetError, ResourceError, Cancelled: see `DatasetStore.create_from`.
    """
    only = as_dropped(paths[0]).path if len(paths) == 1 else None
    if only is not None and only.is_dir():
        return _of_folder(store, name, kohya_layout(only), [only], trigger_word, progress)
    is_zip = only is not None and _is_kohya_zip(only)
    if not is_zip and not has_folders(paths):
        return _of_folder(store, name, KohyaLayout(), paths, trigger_word, progress)
    data.datasets.mkdir(parents=True, exist_ok=True)
    with disk_errors(data.datasets, "the pictures"):
        laid_out = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}tree-", dir=data.datasets))
    try:
        if only is not None and is_zip:
            problems, sources = unpack_zip(only, laid_out, progress), [laid_out]
        else:
            problems, sources = [], lay_out(paths, laid_out)
        layout = _outermost(laid_out) if sources == [laid_out] else KohyaLayout()
        brought = _of_folder(store, name, layout, sources, trigger_word, progress)
        return replace(brought, not_taken=(*problems, *brought.not_taken))
    finally:
        shutil.rmtree(laid_out, ignore_errors=True)


def _of_folder(
    store: DatasetStore,
    name: str,
    layout: KohyaLayout,
    sources: Sequence[Source],
    trigger_word: str,
    progress: Progress,
) -> Brought:
    if layout.concepts:
        return _make(store, name, layout, trigger_word, progress)
    info, report = store.create_from(name, sources, trigger_word=trigger_word, progress=progress)
    return Brought((info,), (report,))


def _outermost(folder: Path) -> KohyaLayout:
    """How a zip or a dropped folder is laid out, which may have one folder around all."""
    found, inside = kohya_layout(folder), list(folder.iterdir())
    return kohya_layout(inside[0]) if not found.concepts and len(inside) == 1 and inside[0].is_dir() else found


def _is_kohya_zip(path: Path) -> bool:
    if path.suffix.casefold() != ".zip":
        return False
    try:
        with zipfile.ZipFile(path) as opened:
            folders = {part for info in opened.infolist() for part in entry_name(info).split("/")[:-1]}
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return False  # what is wrong with it is said when it is unpacked
    return any(is_kohya_name(folder) for folder in folders)


def _make(store: DatasetStore, name: str, layout: KohyaLayout, trigger_word: str, progress: Progress) -> Brought:
    made: list[tuple[DatasetInfo, ImportReport]] = []
    learned = [one for one in layout.concepts if not one.is_class]
    try:
        for number, (concept, title) in enumerate(zip(layout.concepts, _titles(name, layout.concepts), strict=True)):
            # One word cannot call up several things.
            word = trigger_word if len(learned) == 1 and not concept.is_class else ""
            tell = _of_several(progress, concept.path.name, number, len(layout.concepts))
            training = concept.training()
            made.append(store.create_from(title, [concept.path], trigger_word=word, training=training, progress=tell))
    except BaseException:
        for info, _ in made:
            shutil.rmtree(info.folder, ignore_errors=True)  # copies, made a moment ago
        raise
    return Brought(tuple(info for info, _ in made), tuple(report for _, report in made), layout.left_out)


def _of_several(progress: Progress, folder: str, number: int, total: int) -> Progress:
    """Progress that says which folder it is about, as each has a bar of its own."""
    if total == 1:
        return progress
    about = f"folder {number + 1} of {total}, '{readable_name(folder)}'"
    return lambda stage, done, of: progress(f"{stage} ({about})", done, of)


def _titles(name: str, concepts: Sequence[KohyaFolder]) -> list[str]:
    """What the data sets are called: each otherwise, also where two folders differ in their number alone."""
    if len(concepts) == 1:
        return [name]
    titles: dict[str, str] = {}
    for concept in concepts:
        whole = f"{name} {concept.caption}{' (class pictures)' if concept.is_class else ''}"
        title, number = whole, 2
        while safe_name(title).casefold() in titles:
            title, number = f"{whole} {number}", number + 1
        titles[safe_name(title).casefold()] = title
    return list(titles.values())


def link_all(store: DatasetStore, folder: str | Path) -> Brought:
    """A folder used where it is, as a data set, or one for each of kohya's folders in it. Raises DatasetError: see `DatasetStore.link`."""
    path = Path(str(folder).strip().strip('"')).expanduser()
    layout = kohya_layout(path) if str(folder).strip() else KohyaLayout()
    if not layout.concepts:
        return Brought((store.link(folder),))
    linked = []
    for concept in layout.concepts:
        info = store.link(concept.path)
        store.set_training(info.name, concept.training())
        linked.append(store.get(info.name))
    return Brought(tuple(linked), (), layout.left_out)
