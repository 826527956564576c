"""Making and changing data sets.

Pictures that are not ours (linked, bundled) are never touched: what the user says about them lies in a record.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.dataset.captions import caption_files, caption_lines, clean_caption
from trainer.dataset.catalog import DatasetCatalog, DatasetInfo
from trainer.dataset.dropped import Source
from trainer.dataset.history import Change, History, Patch, State, apply, changed, difference, reverse, state_at
from trainer.dataset.importing import ImportReport, import_files, unused_name
from trainer.dataset.masks import MASK_ENDINGS, sort_masks
from trainer.dataset.pictures import is_picture_name
from trainer.dataset.record import (
    CAPTIONS,
    CLASS_PICTURES,
    EXCLUDED,
    IGNORED,
    OF_PICTURES,
    SETTINGS,
    Record,
    load_captions,
    load_state,
    locked,
    locked_for_adding,
    save_record,
    save_state,
)
from trainer.dataset.scan import PictureFacts
from trainer.dataset.walk import readable_name, walk_folder
from trainer.errors import DatasetError
from trainer.files import TEMPORARY_PREFIX, disk_errors, is_inside, replace, safe_name, unused_path, write_text
from trainer.progress import Progress, no_progress

__all__ = ["DatasetInfo", "DatasetStore"]

MAX_TRIGGER_WORD = 200


class DatasetStore(DatasetCatalog):
    """Data sets of a data folder, to look at and to change. What several tabs change at once, all stays."""

    def create(self, name: str, *, trigger_word: str = "", kind: str = "") -> DatasetInfo:
        """An empty data set. Raises DatasetError: the name is empty or taken."""
        return self.create_from(name, (), trigger_word=trigger_word, kind=kind)[0]

    def create_from(
        self,
        name: str,
        paths: Sequence[Source],
        *,
        trigger_word: str = "",
        kind: str = "",
        training: Mapping[str, Any] | None = None,
        progress: Progress = no_progress,
    ) -> tuple[DatasetInfo, ImportReport]:
        """A data set out of pictures, folders and zips, as `add_files` takes them. After an error there is none.

        `training` are further settings of its record: role, repeats, weight, instance_prompt, class_prompt.

        Raises: DatasetError: the name is empty or taken, or see `import_files`. ResourceError: the disk is full.
                Cancelled: by `progress`.
        """
        title, folder_name = self.new_name(name)
        word = checked_trigger_word(trigger_word)
        record = Record(origin="own", title=title, kind=kind, trigger_word=word, **(training or {}))
        folder, report = self._make_folder(folder_name, record, paths, progress)
        return self._own_info(folder), report

    def new_name(self, name: str) -> tuple[str, str]:
        """The title and the folder's name of a new data set. Raises DatasetError: the name is empty or taken."""
        title = " ".join(name.split())
        folder_name = safe_name(title, fallback="")
        if not folder_name.strip("_ "):  # what stands for characters that no file system takes
            raise DatasetError("The data set needs a name.", where=title, fix="Type one, in any script.")
        if self._is_bundled(folder_name) or (self._data.datasets / folder_name).exists():
            # By the title that the list has it under: another one can make the same folder's name.
            known = next((info.title for info in self.list() if info.name == folder_name), folder_name)
            raise DatasetError(
                f"There is already a data set '{known}'.", fix="Choose another name, or add to that one."
            )
        return title, folder_name

    def link(self, folder: str | Path) -> DatasetInfo:
        """A folder used where it is; it is only read. One that is linked already is given back.

        Raises: DatasetError: it is missing, unreadable, without pictures, or a part of Inkwash's own data.
        """
        path = Path(str(folder).strip().strip('"')).expanduser()
        if not str(folder).strip():
            raise DatasetError("No folder is given.", fix="Type or paste the path of a folder with pictures.")
        walked = walk_folder(path)
        path = path.resolve()
        if is_inside(path, self._data.datasets):
            raise DatasetError("This folder belongs to Inkwash already.", where=str(path), fix="Choose it in the list.")
        if not any(is_picture_name(file) for file in walked.files):
            raise DatasetError(
                "There are no pictures in this folder.",
                where=str(path),
                fix="Choose a folder with JPEG, PNG or WebP files.",
            )
        known = next((info for info in self.list() if info.folder == path and not info.is_bundled), None)
        if known is not None:
            return known
        name = safe_name(readable_name(path.name), fallback="folder")
        number, free = 2, name
        while self._is_bundled(free) or (self._data.datasets / free).exists():
            free, number = f"{name} {number}", number + 1
        record = Record(origin="linked", folder=str(path), title=free)
        return self._own_info(self._make_folder(free, record, ())[0])

    def sweep(self, older_than_seconds: float = 24 * 3600) -> list[Path]:
        """Remove what imports left that were killed halfway; returns what was removed. Younger ones may still be working."""
        removed = []
        for partial in self._data.datasets.glob(f"{TEMPORARY_PREFIX}*"):
            if partial.is_dir() and time.time() - partial.stat().st_mtime > older_than_seconds:
                shutil.rmtree(partial)
                removed.append(partial)
        return removed

    def _make_folder(
        self, name: str, record: Record, paths: Sequence[Source], progress: Progress = no_progress
    ) -> tuple[Path, ImportReport]:
        """A data set's folder, complete before it has its name."""
        target = self._data.datasets / name
        report = ImportReport((), 0, (), {})
        with disk_errors(target, "the data set"):
            self._data.datasets.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}set-", dir=self._data.datasets))
            try:
                save_record(partial, record)
                if paths:
                    report = import_files(partial, paths, progress=progress)
                replace(partial, target)
            finally:
                if partial.exists():
                    shutil.rmtree(partial)
        return target, report

    def add_files(self, name: str, paths: Sequence[Source], progress: Progress = no_progress) -> ImportReport:
        """Copy pictures, folders and zips into a data set of ours, captions too. After an error nothing came in.

        Raises: DatasetError: see `import_files`; or the data set is not ours to add to. ResourceError: the disk is full.
                Cancelled: by `progress`.
        """
        info, record = self.require_own(name)
        if not paths:
            raise DatasetError("No files were given.", fix="Drop pictures, a folder or a zip.")
        with locked_for_adding(record, progress):
            report = import_files(info.folder, paths, load_state(record)[EXCLUDED], progress)
            self._note_added(record, report)
        return report

    def _note_added(self, record: Path, report: ImportReport) -> None:
        """Make pictures that came in a change that can be undone, after what was changed while they were copied."""
        with locked(record):
            before = load_state(record)
            # As if they had been left out before: so undoing takes them out, and no file is touched.
            before[EXCLUDED] |= dict.fromkeys(report.added, True)
            values = _nothing_said_of(report.added, before)
            values |= {(EXCLUDED, picture): None for picture in report.brought_back}
            in_use = (*report.added, *report.brought_back)
            values |= {(CAPTIONS, picture): caption for picture, caption in report.captions_for.items()}
            self._do(record, changed(before, f"Added {len(in_use)} pictures", values))

    def require_own(self, name: str) -> tuple[DatasetInfo, Path]:
        """A data set that pictures can be added to, and its record. Raises DatasetError: there is none, or it is not ours."""
        info, record = self._known(name)
        if not info.is_own:
            raise DatasetError(
                "Pictures can only be added to data sets that were made here.",
                where=info.title,
                fix="Put them into the folder itself, or create a new data set."
                if info.is_linked
                else "Create a new data set.",
            )
        return info, record

    def caption_of(self, name: str, picture: str) -> str:
        """A picture's caption as it is now, several as one, or an empty text. Raises DatasetError: there is no such picture."""
        info, record = self._known(name)
        path = _picture_path(info, picture)
        captions = load_captions(record)
        if picture in captions:
            return clean_caption(captions[picture]).text or ""
        facts = self._facts(info, path)
        return (facts.caption or "") if facts is not None else ""

    def captions_of(self, name: str, picture: str) -> tuple[str, ...]:
        """All captions of a picture as they are now. Raises DatasetError: there is no such picture."""
        info, record = self._known(name)
        path = _picture_path(info, picture)
        written = load_captions(record).get(picture)
        if written is not None:
            return caption_lines(written)
        facts = self._facts(info, path)
        return facts.captions if facts is not None else ()

    def _facts(self, info: DatasetInfo, path: Path) -> PictureFacts | None:
        return next((facts for facts in self.scan_files(info).pictures if facts.path == path), None)

    def set_caption(self, name: str, picture: str, caption: str) -> str:
        """Write a picture's caption into the record; empty removes it. Returns it as one clean line."""
        return self.set_captions(name, {picture: caption})[picture]

    def set_captions(self, name: str, captions: Mapping[str, str], title: str = "") -> dict[str, str]:
        """`set_caption` for several pictures at once, by picture name; `title` is what the history says of it.

        Raises: DatasetError: there is no such picture.
        """
        info, _ = self._known(name)
        for picture in captions:
            _picture_path(info, picture)
        cleaned = {picture: clean_caption(caption).text or "" for picture, caption in captions.items()}
        self.change(name, title or _caption_title(cleaned), {(CAPTIONS, key): text for key, text in cleaned.items()})
        return cleaned

    def write_captions(self, name: str, captions: Mapping[str, Sequence[str]], title: str = "") -> bool:
        """Write all captions of pictures, by picture name; none removes them. Returns whether anything was not so already.

        Raises: DatasetError: there is no such picture.
        """
        info, _ = self._known(name)
        for picture in captions:
            _picture_path(info, picture)
        texts = {picture: "\n".join(caption_lines("\n".join(several))) for picture, several in captions.items()}
        return self.change(name, title or _caption_title(texts), {(CAPTIONS, key): text for key, text in texts.items()})

    def set_trigger_word(self, name: str, trigger_word: str) -> str:
        """Set the trigger word; returns it as kept. Raises DatasetError."""
        trigger_word = checked_trigger_word(trigger_word)
        self.change(
            name,
            f"Trigger word '{trigger_word}'" if trigger_word else "No trigger word",
            {(SETTINGS, "trigger_word"): trigger_word},
        )
        return trigger_word

    def set_training(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Say how the data set is to be trained: `role` (CLASS_PICTURES or None), `repeats`, `weight`, `instance_prompt`.

        Returns: whether anything changed. Raises: DatasetError: a value is out of range.
        """
        repeats, weight = settings.get("repeats"), settings.get("weight")
        if repeats is not None and not 1 <= repeats <= 1000:
            raise DatasetError("Repeats must be from 1 to 1000.", where=str(repeats))
        if weight is not None and not 0 <= weight <= 10:
            raise DatasetError("The weight must be from 0 to 10.", where=str(weight))
        if settings.get("role") not in (None, CLASS_PICTURES):
            raise DatasetError("There is no such role of a data set.", where=str(settings["role"]))
        values = {(SETTINGS, key): value for key, value in settings.items()}
        return self.change(name, "How it is trained", values)

    def remove_pictures(self, name: str, pictures: Sequence[str], title: str = "") -> None:
        """Leave pictures out from now on; their files stay where they are. Raises DatasetError: there is no such picture."""
        info, _ = self._known(name)
        for picture in pictures:
            _picture_path(info, picture)
        words = f"Took out {pictures[0]}" if len(pictures) == 1 else f"Took out {len(pictures)} pictures"
        self.change(name, title or words, {(EXCLUDED, picture): True for picture in pictures})

    def restore_pictures(self, name: str) -> None:
        """Use all pictures again that were left out."""
        excluded = self.excluded(name)
        self.change(name, "Brought back what was taken out", {(EXCLUDED, picture): None for picture in excluded})

    def discard_left_out(self, name: str) -> list[Path]:
        """Move the files of left-out pictures of a set of ours to the trash, with their captions; returns where they lie.

        Raises: DatasetError: the files are not ours, or pictures are being added, which may be the same ones.
        """
        info, record = self._known(name)
        if not info.is_own:
            raise DatasetError("These pictures are not Inkwash's to remove.", where=info.title)

        def refuse(*_: object) -> None:
            raise DatasetError(
                "Pictures are being added to this data set.", where=info.title, fix="Try again after that."
            )

        with locked_for_adding(record, refuse), locked(record), disk_errors(self._data.trash, "the removed pictures"):
            state = load_state(record)
            gone = [name for name in state[EXCLUDED] if is_inside(info.folder / name, info.folder)]
            bin_folder = self._data.trash / f"{info.name} (pictures)"
            taken = {path.stem.casefold() for path in bin_folder.iterdir()} if bin_folder.is_dir() else set[str]()
            trashed = []
            for picture in gone:
                path = info.folder / picture
                if path.is_file():
                    target = bin_folder / unused_name(path.name, taken)
                    _discard(path, target, state[CAPTIONS].get(picture, ""))
                    trashed.append(target)
            # Not a change to be undone: what it speaks of is no longer there.
            save_state(record, apply(state, [Patch(EXCLUDED, picture, True, None) for picture in gone]))
            return trashed

    # --- history -------------------------------------------------------------------------------------------------

    def change(self, name: str, title: str, values: Mapping[tuple[str, str], Any]) -> bool:
        """Set values of the record by (document, key), None to remove one, as one change that can be undone.

        Args:
            name: the data set.
            title: what the user did, as the history shows it.
            values: see `trainer.dataset.record.DOCUMENTS`.

        Returns: whether anything was not so already. Raises: DatasetError.
        """
        info, record = self._known(name)
        with locked(record):
            self._keep_origin(info, record)
            return self._do(record, changed(load_state(record), title, values))

    def _do(self, record: Path, change: Change | None) -> bool:
        if change is None:
            return False
        history = History(record)
        position = history.begin(change)
        save_state(record, apply(load_state(record), change.patches))
        history.settle(position)
        return True

    def history(self, name: str) -> tuple[list[Change], int]:
        """All changes, oldest first, and how many of them are in force. Raises DatasetError."""
        history = History(self._known(name)[1])
        return history.changes(), history.position()

    def undo(self, name: str) -> Change | None:
        """Take the last change back that is in force; returns it, or None where there is none. Raises DatasetError."""
        return self._step(name, -1)

    def redo(self, name: str) -> Change | None:
        """Do the first change again that was undone; returns it, or None where there is none. Raises DatasetError."""
        return self._step(name, 1)

    def step_to(self, name: str, position: int) -> None:
        """Undo or redo until the first `position` changes are in force. Raises DatasetError: there are fewer."""
        _, record = self._known(name)
        with locked(record):
            history = History(record)
            save_state(record, state_at(load_state(record), history, position))
            history.settle(position)

    def _step(self, name: str, step: int) -> Change | None:
        _, record = self._known(name)
        with locked(record):
            history = History(record)
            position = history.position()
            change = history.change(position - 1 if step < 0 else position)
            if change is not None:
                patches = reverse(change.patches) if step < 0 else change.patches
                save_state(record, apply(load_state(record), patches))
                history.settle(position + step)
            return change

    def changes_since(self, name: str, position: int) -> tuple[Patch, ...]:
        """What differs between the state after the first `position` changes and today's. Raises DatasetError."""
        _, record = self._known(name)
        state = load_state(record)
        return difference(state_at(state, History(record), position), state)

    def go_back(self, name: str, position: int) -> bool:
        """Make the state after the first `position` changes today's, as a change of its own; returns whether it differed."""
        patches = self.changes_since(name, position)
        values = {(patch.document, patch.key): patch.before for patch in patches}
        return self.change(name, f"Back to the state after change {position}", values)

    def delete(self, name: str) -> Path:
        """Move a data set to the trash; of a linked one only the record. Returns where it lies. Raises DatasetError."""
        info, record = self._listed(name)
        if info.is_bundled:
            raise DatasetError("Bundled data sets cannot be deleted.", where=info.title)
        self._data.trash.mkdir(parents=True, exist_ok=True)
        target = unused_path(self._data.trash / record.name)
        with disk_errors(target, "the data set"):
            shutil.move(record, target)
        return target

    def _keep_origin(self, info: DatasetInfo, record: Path) -> None:
        """A record of a bundled set says so, lest a data set of that name is made of it when the bundle changes."""
        if info.is_bundled and not (record / "dataset.json").exists():
            save_record(record, Record(origin="bundled"))


def _nothing_said_of(pictures: Sequence[str], state: State) -> dict[tuple[str, str], Any]:
    """What makes a record say nothing of pictures, not even what it said of gone ones that had their names."""
    new = set(pictures)
    values = {(document, picture): None for document in OF_PICTURES for picture in pictures}
    return values | {(IGNORED, key): None for key in state[IGNORED] if new.intersection(key.split("|")[1:])}


def _picture_path(info: DatasetInfo, picture: str) -> Path:
    path = info.folder / picture
    if not picture or not is_inside(path, info.folder) or not is_picture_name(path) or not path.is_file():
        raise DatasetError("This picture is not in the data set any more.", where=picture[:300], fix="Scan it again.")
    return path


def _caption_title(captions: Mapping[str, str]) -> str:
    return f"Caption of {next(iter(captions))}" if len(captions) == 1 else f"Captions of {len(captions)} pictures"


def _discard(path: Path, target: Path, caption: str) -> None:
    """Move a picture, and the files beside it that are its own; `caption` is what was written in the app."""
    beside = [] if _siblings(path) else _files_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)
    if caption:
        # It counts, so it gets the name that goes with the picture; the trash holds the file's own, too.
        write_text(target.with_suffix(".txt"), caption, "the caption")
    for file, ending in beside:
        stem = f"{target.stem} (file)" if caption and ending == ".txt" else target.stem
        shutil.move(file, unused_path(target.with_name(f"{stem}{ending}")))


def _siblings(path: Path) -> list[Path]:
    """Other pictures that share the caption file of `path`."""
    alike = [other for other in path.parent.iterdir() if other.stem == path.stem and is_picture_name(other)]
    return [other for other in alike if other != path]


def _files_of(path: Path) -> list[tuple[Path, str]]:
    """The captions and the mask beside a picture, each with how its name ends after the picture's."""
    found = [(file, file.suffix) for file in caption_files(path)]
    mask = sort_masks(list(path.parent.iterdir())).masks.get(path)
    return found if mask is None else [*found, (mask, f"{MASK_ENDINGS[0]}{mask.suffix}")]


def checked_trigger_word(word: str) -> str:
    """A trigger word as it is kept. Raises DatasetError: it is too long."""
    word = clean_caption(word).text or "" if word.strip() else ""
    if len(word) > MAX_TRIGGER_WORD:
        raise DatasetError(
            f"The trigger word is longer than {MAX_TRIGGER_WORD} characters.",
            where=word[:60],
            fix="Use one to three words.",
        )
    return word
