"""The library: a folder of `.safetensors` files, LoRAs and embeddings, each with a preview beside it. Nothing here imports torch."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.errors import LoraFileError
from trainer.files import (
    disk_errors,
    file_sha256,
    is_file,
    is_inside,
    replace,
    require_free,
    safe_name,
    unused_path,
    write_atomically,
)
from trainer.lora_files.embedding_info import inspect_embedding
from trainer.lora_files.inspect import LoraInfo, inspect_lora
from trainer.paths import DataFolder
from trainer.trash import move_to_trash, trash_records

SUFFIX = ".safetensors"
PREVIEW_SUFFIXES = (".preview.png", ".png", ".preview.jpg", ".jpg", ".jpeg", ".webp")
"""What a preview can be called beside NAME.safetensors; also A1111's names."""
_COMPANION_SUFFIXES = (*PREVIEW_SUFFIXES, ".json", ".txt")
_TRASH_RECORD = "lora.json"
_headers: dict[tuple[str, int, int], LoraInfo | LoraFileError] = {}


@dataclass(frozen=True)
class LibraryEntry:
    """A file of the library. Texts in it come from strangers' files: whoever shows them must escape them.

    Attributes:
        name: path below the library, without the suffix, with "/" between folders.
        preview: a picture beside it, if there is one.
        info: what its header says; None where it cannot be used, then `problem` says why.
        modified: seconds since the epoch.
    """

    name: str
    path: Path
    preview: Path | None
    info: LoraInfo | None
    problem: str
    size_bytes: int
    modified: float

    @property
    def title(self) -> str:
        """A name for people."""
        return self.info.title if self.info else self.name

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The words that call up what it learned."""
        return self.info.trigger_words if self.info else ()

    @property
    def size_text(self) -> str:
        """How large what it learned is: its rank, or an embedding's vectors; empty where neither says anything."""
        if self.info is not None and self.info.is_embedding:
            return f"embedding, {self.info.num_vectors} vector{'' if self.info.num_vectors == 1 else 's'}"
        return f"rank {self.rank}" if self.rank else ""

    @property
    def rank(self) -> int:
        """Its highest rank; 0 where it cannot be used."""
        return max(self.info.ranks, default=0) if self.info else 0

    @property
    def base_model(self) -> str:
        """The base model it was trained on: by name, or the family where the file does not say."""
        return (self.info.base_model or self.info.family) if self.info else ""


@dataclass(frozen=True)
class TrashedLora:
    """A deleted LoRA that can be restored."""

    name: str
    folder: Path
    deleted: float


def list_loras(data: DataFolder, search: str = "") -> list[LibraryEntry]:
    """The library, newest first.

    Args:
        data: the data folder.
        search: words that must all stand in an entry's name, title, trigger words or base model.
    """
    words = search.casefold().split()
    entries = [_entry(data, path) for path in data.loras.rglob(f"*{SUFFIX}") if not _is_hidden(data, path)]
    found = [entry for entry in entries if all(word in _searched_text(entry) for word in words)]
    return sorted(found, key=lambda entry: (-entry.modified, entry.name))


def get_lora(data: DataFolder, name: str) -> LibraryEntry:
    """One entry by its name. Raises LoraFileError."""
    return _entry(data, _library_file(data, name))


def named_embeddings(data: DataFolder, *texts: str) -> list[LibraryEntry]:
    """The library's embeddings whose names stand in one of the texts, newest first; the name is the file's."""
    said = "\n".join(texts)
    paths = [
        path
        for path in data.loras.rglob(f"*{SUFFIX}")
        if re.search(rf"(?<!\w){re.escape(path.stem)}(?!\w)", said, re.IGNORECASE)
    ]
    entries = [_entry(data, path) for path in paths if not _is_hidden(data, path)]
    found = [entry for entry in entries if entry.info is not None and entry.info.is_embedding]
    return sorted(found, key=lambda entry: (-entry.modified, entry.name))


def resolve_lora(data: DataFolder, name_or_path: str | Path) -> Path:
    """The file that is meant: a name in the library, or the path of a `.safetensors` file.

    Raises: LoraFileError: there is no such file; the message names what is alike.
    """
    text = str(name_or_path)
    path = Path(text).expanduser()
    in_library = data.loras / f"{text.removesuffix(SUFFIX)}{SUFFIX}"
    if not path.is_absolute() and is_file(in_library) and is_inside(in_library, data.loras):
        return in_library
    if is_file(path):
        return path.absolute()
    raise LoraFileError(f"There is no LoRA '{text}'.", where=text, fix=_what_there_is(data, text))


def import_lora(data: DataFolder, path: Path, name: str = "") -> LibraryEntry:
    """Copy a file into the library, with the preview and notes that lie beside it. The original is not touched.

    Its header is checked first; its numbers are checked when it is used. A file that the library has already is not
    copied again: its entry is returned.

    Raises: LoraFileError: it is no LoRA that Inkwash can use. ResourceError: the disk is full.
    """
    info = inspect_file(path)
    for entry in list_loras(data):
        if entry.size_bytes == info.size_bytes and file_sha256(entry.path) == info.sha256:
            return entry
    require_free(data.loras, info.size_bytes, "the LoRA")
    target = unused_path(data.loras / f"{safe_name(name or path.stem, 'lora')}{SUFFIX}")
    for companion in _companions(path):
        beside = _companion_path(companion, path, target)
        write_atomically(beside, lambda temporary, source=companion: shutil.copyfile(source, temporary), "the preview")
    write_atomically(target, lambda temporary: shutil.copyfile(path, temporary), "the LoRA")
    return _entry(data, target)


def has_preview(path: Path) -> bool:
    """Whether a preview lies beside a file, under any of the names that it can have."""
    return bool(_previews(path))


def set_preview(data: DataFolder, name: str, picture: Path) -> LibraryEntry:
    """Make a copy of a picture the LoRA's preview. Raises LoraFileError for a file that is no picture."""
    suffix = picture.suffix.lower()
    if suffix not in PREVIEW_SUFFIXES or not picture.is_file():
        raise LoraFileError("A preview is a PNG, JPEG or WebP picture.", where=str(picture))
    file = _library_file(data, name)
    for old in _previews(file):
        old.unlink()
    target = file.with_name(f"{file.stem}{suffix}")
    write_atomically(target, lambda temporary: shutil.copyfile(picture, temporary), "the preview")
    return _entry(data, file)


def rename_lora(data: DataFolder, name: str, new_name: str) -> LibraryEntry:
    """Give a LoRA, and what lies beside it, another name. Raises LoraFileError when the name is taken or empty."""
    file = _library_file(data, name)
    clean = safe_name(new_name, "")
    if not clean:
        raise LoraFileError("A LoRA needs a name.", where=new_name, fix="Write a name of letters or digits.")
    target = file.with_name(f"{clean}{SUFFIX}")
    if target == file:
        return _entry(data, file)
    # On systems that ignore case, `House` may become `house`.
    if target.exists() and not target.samefile(file):
        raise LoraFileError(f"There is already a LoRA '{clean}'.", where=str(target), fix="Choose another name.")
    with disk_errors(target, "the LoRA"):
        for companion in _companions(file):
            replace(companion, _companion_path(companion, file, target))
        replace(file, target)
    return _entry(data, target)


def delete_lora(data: DataFolder, name: str) -> TrashedLora:
    """Move a LoRA, with what lies beside it, to the trash. Raises LoraFileError. ResourceError: it cannot be moved."""
    file = _library_file(data, name)
    deleted = time.time()
    relative = file.relative_to(data.loras).as_posix().removesuffix(SUFFIX)
    record = {"name": relative, "deleted": deleted}
    folder = move_to_trash(data, "lora", [file, *_companions(file)], "the LoRA", (_TRASH_RECORD, record))
    return TrashedLora(relative, folder, deleted)


def list_trashed(data: DataFolder) -> list[TrashedLora]:
    """Deleted LoRAs that are still in the trash, the last first."""
    found = [TrashedLora(*record) for record in trash_records(data, _TRASH_RECORD)]
    return [trashed for trashed in found if any(trashed.folder.glob(f"*{SUFFIX}"))]


def restore_lora(data: DataFolder, trashed: TrashedLora) -> LibraryEntry:
    """Bring a deleted LoRA back; where its name is taken by now, with a number behind it. Raises LoraFileError."""
    files = sorted(trashed.folder.glob(f"*{SUFFIX}")) if is_inside(trashed.folder, data.trash) else []
    if len(files) != 1:
        raise LoraFileError("This LoRA is no longer in the trash.", where=str(trashed.folder))
    file = files[0]
    wanted = data.loras / f"{trashed.name}{SUFFIX}"
    target = unused_path(wanted if is_inside(wanted, data.loras) else data.loras / file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with disk_errors(target, "the LoRA"):
        for companion in _companions(file):
            shutil.move(companion, _companion_path(companion, file, target))
        shutil.move(file, target)
        shutil.rmtree(trashed.folder)
    return _entry(data, target)


def export_copy(data: DataFolder, name: str, target: Path) -> Path:
    """Copy a LoRA to a folder, or to a file name, outside the library. Nothing is overwritten. Returns the copy's path."""
    file = _library_file(data, name)
    target = target.expanduser().absolute()
    target = target / file.name if target.is_dir() else target.with_name(f"{target.name.removesuffix(SUFFIX)}{SUFFIX}")
    target = unused_path(target)
    require_free(target.parent, file.stat().st_size, "the LoRA")
    write_atomically(target, lambda temporary: shutil.copyfile(file, temporary), "the LoRA")
    return target


def _entry(data: DataFolder, path: Path) -> LibraryEntry:
    facts = path.stat()
    found = _header(path, facts.st_size, facts.st_mtime_ns)
    pictures = _previews(path)
    return LibraryEntry(
        name=path.relative_to(data.loras).as_posix().removesuffix(SUFFIX),
        path=path,
        preview=pictures[0] if pictures else None,
        info=found if isinstance(found, LoraInfo) else None,
        problem="" if isinstance(found, LoraInfo) else str(found),
        size_bytes=facts.st_size,
        modified=facts.st_mtime,
    )


def _header(path: Path, size: int, modified_ns: int) -> LoraInfo | LoraFileError:
    key = (str(path), size, modified_ns)
    if key not in _headers:
        for old in [other for other in _headers if other[0] == str(path)]:
            del _headers[old]
        try:
            _headers[key] = inspect_file(path, with_hash=False)
        except LoraFileError as error:
            _headers[key] = error
    return _headers[key]


def inspect_file(path: Path, *, with_hash: bool = True) -> LoraInfo:
    """A LoRA's or an embedding's header; arguments and errors as of `inspect_lora`."""
    return inspect_embedding(path, with_hash=with_hash) or inspect_lora(path, with_hash=with_hash)


def _companions(file: Path) -> list[Path]:
    """What belongs to a LoRA by its name, previews first."""
    return _beside(file, _COMPANION_SUFFIXES)


def _previews(file: Path) -> list[Path]:
    """Its previews, the one that counts first."""
    return _beside(file, PREVIEW_SUFFIXES)


def _beside(file: Path, suffixes: tuple[str, ...]) -> list[Path]:
    beside = [file.with_name(f"{file.stem}{suffix}") for suffix in suffixes]
    return [path for path in beside if path.is_file()]


def _companion_path(companion: Path, file: Path, target: Path) -> Path:
    return target.with_name(f"{target.stem}{companion.name.removeprefix(file.stem)}")


def _library_file(data: DataFolder, name: str) -> Path:
    path = data.loras / f"{PurePosixPath(name)}{SUFFIX}"
    if not name or not is_file(path) or not is_inside(path, data.loras):
        raise LoraFileError(f"There is no LoRA '{name}' in the library.", where=name, fix=_what_there_is(data, name))
    return path


def _is_hidden(data: DataFolder, path: Path) -> bool:
    # Files that are being written begin with a dot, too.
    return any(part.startswith(".") for part in path.relative_to(data.loras).parts)


def _searched_text(entry: LibraryEntry) -> str:
    return " ".join((entry.name, entry.title, entry.base_model, *entry.trigger_words)).casefold()


def _what_there_is(data: DataFolder, name: str) -> str:
    import difflib

    names: Sequence[str] = [entry.name for entry in list_loras(data)]
    if not names:
        return "The library is empty: train a LoRA, or import one."
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    return f"Did you mean {', '.join(close)}?" if close else f"The library has: {', '.join(names[:10])}."
