"""The data sets that Inkwash knows: its own in the data folder, linked folders, and those bundled in `assets/datasets`."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from trainer.dataset.captions import caption_lines, clean_caption
from trainer.dataset.edits import with_edits
from trainer.dataset.listing import list_folder
from trainer.dataset.record import Record, load_captions, load_record
from trainer.dataset.scan import DatasetScan, Observe, PictureFacts, Progress, scan_folder
from trainer.dataset.thumbnails import make_thumbnail
from trainer.dataset.walk import readable_name
from trainer.errors import DatasetError
from trainer.paths import ASSETS, DataFolder

_LAST = 1_000_000


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set is. `name` identifies it; `folder` holds its pictures."""

    name: str
    title: str
    folder: Path
    trigger_word: str = ""
    kind: str = ""
    class_prompt: str = ""
    is_bundled: bool = False
    is_linked: bool = False
    description: str = ""
    license: str = ""
    record: Path | None = None
    """Folder of what the user says about it; None for a plain folder that was not linked."""
    is_missing: bool = False
    """Whether the linked folder is not there (a disk that is not plugged in)."""
    problem: str = ""
    """Why it cannot be used (its record is damaged), or empty. It can be deleted all the same."""
    role: str = ""
    """`trainer.dataset.record.CLASS_PICTURES`, or empty."""
    repeats: int = 1
    weight: float = 1.0
    instance_prompt: str = ""
    """These three: what a training on it begins with."""
    order: int = 0
    """Place among the bundled sets; the first one is what a new user sees."""
    excluded: tuple[str, ...] = ()
    """Names of pictures that are left out."""

    @cached_property
    def num_pictures(self) -> int:
        """How many pictures there are, counted when it is first asked for."""
        return 0 if self.is_missing else _count_pictures(self.folder, self.excluded)

    def concept(self) -> dict[str, Any]:
        """What its record says of how it is trained, as settings of a concept; only what is not the default."""
        defaults = {"trigger_word": "", "repeats": 1, "weight": 1.0, "instance_prompt": ""}
        return {name: value for name, default in defaults.items() if (value := getattr(self, name)) != default}

    @property
    def is_own(self) -> bool:
        """Whether its pictures are copies of ours."""
        return self.record is not None and not self.is_bundled and not self.is_linked


class DatasetCatalog:
    """Data sets of a data folder, to look at. Nothing is kept in memory: any number of processes may look at once."""

    def __init__(self, data: DataFolder, bundled: Path = ASSETS / "datasets") -> None:
        self._data = data
        self._bundled = bundled

    def list(self) -> list[DatasetInfo]:
        """All data sets: the user's by name, then the bundled ones in the order that they give themselves, then what cannot be used."""
        own = [self._own_info(folder) for folder in self._own_folders()]
        bundled = [self._bundled_info(folder) for folder in _folders(self._bundled)]
        found = [
            *sorted(own, key=lambda info: info.title.casefold()),
            *sorted(bundled, key=lambda info: (info.order, info.name)),
        ]
        return sorted(found, key=lambda info: bool(info.problem))

    def get(self, name_or_path: str | Path) -> DatasetInfo:
        """The data set of this name, or the folder at this path. Raises DatasetError: there is none, or it cannot be used."""
        text = str(name_or_path).strip()
        known = self._find(text)
        if known is not None:
            return _usable(known)
        path = Path(text).expanduser()
        try:
            is_folder = bool(text) and path.is_dir()
        except (OSError, ValueError):
            is_folder = False
        if not is_folder:
            raise DatasetError(
                f"There is no data set and no folder '{readable_name(text)[:300]}'."
                if text
                else "No data set is chosen.",
                fix="Choose one in the Dataset tab, or give the path of a folder with pictures.",
            )
        path = path.absolute()
        linked = next((info for info in self.list() if info.folder == path.resolve()), None)
        if linked is not None:
            return _usable(linked)
        return DatasetInfo(path.name, path.name, path)

    def _find(self, name: str) -> DatasetInfo | None:
        # Only names that a listing gives are looked at, so no name leads out of the folders.
        if self._is_bundled(name):
            return self._bundled_info(self._bundled / name)
        folder = next((folder for folder in self._own_folders() if folder.name == name), None)
        return self._own_info(folder) if folder is not None else None

    def _known(self, name: str) -> tuple[DatasetInfo, Path]:
        """A data set with a record, for changes. Raises DatasetError: there is none, or it cannot be used."""
        info, record = self._listed(name)
        return _usable(info), record

    def _listed(self, name: str) -> tuple[DatasetInfo, Path]:
        """A data set with a record, whether it can be used or not. Raises DatasetError: there is none."""
        info = self._find(name)
        if info is None or info.record is None:
            raise DatasetError(
                f"There is no data set '{readable_name(name)[:300]}'.", fix="Reload the page: it may have been deleted."
            )
        return info, info.record

    def _own_folders(self) -> Sequence[Path]:
        """Folders of own and linked sets: no records of bundled ones, not even of those that are bundled no more."""
        found = _folders(self._data.datasets)
        return [f for f in found if not self._is_bundled(f.name) and _read_record(f)[0].origin != "bundled"]

    def _is_bundled(self, name: str) -> bool:
        return any(folder.name == name for folder in _folders(self._bundled))

    def _own_info(self, folder: Path) -> DatasetInfo:
        record, problem = _read_record(folder)
        is_linked = record.origin == "linked"
        pictures = Path(record.folder) if is_linked else folder
        is_missing = is_linked and not pictures.is_dir()
        return DatasetInfo(
            name=folder.name,
            title=record.title or folder.name,
            folder=pictures,
            trigger_word=record.trigger_word or "",
            kind=record.kind,
            class_prompt=record.class_prompt or "",
            is_linked=is_linked,
            excluded=record.excluded,
            record=folder,
            is_missing=is_missing,
            problem=problem,
            **_training_settings(record),
        )

    def _bundled_info(self, folder: Path) -> DatasetInfo:
        about = _read_about(folder)
        record_folder = self._data.datasets / folder.name
        record, problem = _read_record(record_folder)
        trigger, class_prompt = record.trigger_word, record.class_prompt
        return DatasetInfo(
            name=folder.name,
            title=about.get("title", folder.name),
            folder=folder,
            trigger_word=about.get("trigger_word", "") if trigger is None else trigger,
            kind=about.get("kind", ""),
            class_prompt=about.get("class_prompt", "") if class_prompt is None else class_prompt,
            is_bundled=True,
            excluded=record.excluded,
            description=about.get("description", ""),
            license=about.get("license", ""),
            record=record_folder,
            problem=problem,
            **_training_settings(record),
            order=about.get("order", _LAST),
        )

    def scan(
        self, name_or_path: str | Path, *, progress: Progress | None = None, observe: Observe | None = None
    ) -> DatasetScan:
        """The pictures of a data set with the user's captions, without those left out. Raises DatasetError.

        `observe` looks at the pictures that are decoded, as `trainer.dataset.scan.scan_folder` has it.
        """
        info = self.get(name_or_path)
        scan = self.scan_files(info, progress=progress, observe=observe)
        if info.record is None:
            return scan
        record = load_record(info.record)
        excluded = set(record.excluded)
        captions = load_captions(info.record)
        kept = (facts for facts in scan.pictures if facts.name not in excluded)
        pictures = tuple(with_edits(_with_record(facts, captions), record, info.record) for facts in kept)
        return replace(scan, pictures=pictures)

    def scan_files(
        self, info: DatasetInfo, *, progress: Progress | None = None, observe: Observe | None = None
    ) -> DatasetScan:
        """All that lies in a data set's folder, without what its record says of it. Raises DatasetError."""
        if info.is_missing:
            raise DatasetError(
                "The folder of this data set is not there.",
                where=str(info.folder),
                fix="Plug in the disk that holds it, or delete the data set here (pictures are not touched by that).",
            )
        key = hashlib.sha256(str(info.folder).encode("utf-8", errors="surrogateescape")).hexdigest()[:24]
        return scan_folder(
            info.folder, cache=self._data.cache / "scans" / f"{key}.json", progress=progress, observe=observe
        )

    def excluded(self, name: str) -> tuple[str, ...]:
        """Pictures of a linked or bundled set that were left out."""
        _, record = self._known(name)
        return load_record(record).excluded

    def thumbnail(self, facts_or_path: PictureFacts | Path, size: int = 256) -> Path:
        """A small JPEG of a picture, made once for its content. Raises DatasetError where the picture cannot be read."""
        if isinstance(facts_or_path, PictureFacts):
            facts = facts_or_path
            return make_thumbnail(self._data, facts.path, size, facts.sha256, facts.preparation)
        return make_thumbnail(self._data, facts_or_path, size)


def _read_record(folder: Path) -> tuple[Record, str]:
    """A record, and why it cannot be read: the others must be listed all the same. It is an empty one then."""
    try:
        return load_record(folder), ""
    except DatasetError as error:
        return Record(), str(error)


def _usable(info: DatasetInfo) -> DatasetInfo:
    """The data set, unless its record is damaged. Raises DatasetError: it is."""
    if info.problem and info.record is not None:
        load_record(info.record)
    return info


def _training_settings(record: Record) -> dict[str, Any]:
    names = ("role", "repeats", "weight", "instance_prompt")
    return {name: value for name in names if (value := getattr(record, name)) is not None}


def _folders(parent: Path) -> list[Path]:
    try:
        entries = sorted(parent.iterdir())
    except FileNotFoundError:
        return []
    return [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _count_pictures(folder: Path, excluded: Sequence[str] = ()) -> int:
    try:
        names = list_folder(folder).names
    except DatasetError:
        return 0  # the scan says what is wrong with it
    return len(names.difference(excluded))


def _read_about(folder: Path) -> dict[str, Any]:
    """`dataset.toml`: texts, and `order`, a whole number."""
    try:
        about = tomllib.loads((folder / "dataset.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as failure:
        raise DatasetError("The description of a bundled data set is damaged.", where=str(folder)) from failure
    return {key: value for key, value in about.items() if isinstance(value, int if key == "order" else str)}


def _with_record(facts: PictureFacts, captions: Mapping[str, str]) -> PictureFacts:
    if facts.name not in captions:
        return facts
    written = clean_caption(captions[facts.name])
    # What was wrong with the file beside the picture does not matter any more.
    rest = tuple(problem for problem in facts.problems if not problem.code.startswith("caption_"))
    several = caption_lines(captions[facts.name])
    return replace(
        facts, caption=written.text, captions=several, caption_source="", problems=(*rest, *written.problems)
    )
