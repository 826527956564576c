"""Opening a zip from a stranger: its list is judged as a whole before a byte is unpacked."""

from __future__ import annotations

import errno
import lzma
import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from trainer.dataset.caption_sources import is_table_name
from trainer.dataset.captions import CAPTION_SUFFIXES
from trainer.dataset.encodings import decode_unmarked
from trainer.dataset.pictures import is_picture_name
from trainer.dataset.walk import is_hidden_name
from trainer.errors import DatasetError, Finding
from trainer.files import disk_errors, require_free, safe_name, unused_path
from trainer.progress import Progress, no_progress

MAX_ENTRIES = 50_000
MAX_ENTRY_BYTES = 1_000_000_000
MAX_TOTAL_BYTES = 8_000_000_000
MAX_RATIO = 200
_RATIO_MATTERS_FROM = 100_000_000
_ARCHIVE_SUFFIXES = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".cbz")
_OTHER_ARCHIVES = ((b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!", "RAR"), (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ", "xz"))
_MAX_KEPT_DEPTH, _MAX_KEPT_BYTES = 6, 150
_UTF8_NAME = 0x800
_ENCRYPTED = 0x1


@dataclass(frozen=True)
class _Entry:
    info: zipfile.ZipInfo
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        return "/".join(self.parts)


def unpack_zip(archive: Path, target: Path, progress: Progress = no_progress) -> list[Finding]:
    """Unpack the pictures and captions of a zip into `target`, a folder for each of its folders.

    Args:
        archive: the zip.
        target: an empty folder of ours. After an error it may hold a part; the caller removes it.

    Returns: what was left out and why.
    Raises: DatasetError: it is no zip, is truncated, encrypted, a bomb, or has entries that point outside or are links.
            ResourceError: the disk is too small.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _judge(opened, archive)
            wanted, findings = _choose(entries)
            require_free(target, sum(entry.info.file_size for entry in wanted), "unpacking the zip")
            _extract(opened, wanted, target, archive, progress)
            return findings
    except (
        zipfile.BadZipFile,
        lzma.LZMAError,
        ValueError,
    ) as failure:  # ValueError: names that are no UTF-8, wrong places
        raise _not_a_zip(archive) from failure
    except (NotImplementedError, RuntimeError, zlib.error, EOFError) as failure:
        raise DatasetError(
            f"This zip cannot be unpacked ({failure}).", where=archive.name, fix="Pack it anew as an ordinary zip."
        ) from failure
    except PermissionError as failure:
        raise DatasetError("This zip may not be read.", where=archive.name, fix="Change its permissions.") from failure
    except OSError as failure:
        if failure.errno not in (
            None,
            errno.EINVAL,
        ):  # bz2 says it without a number, and a place before the file's start is invalid
            raise
        raise _not_a_zip(archive) from failure


def _not_a_zip(archive: Path) -> DatasetError:
    with open(archive, "rb") as handle:
        start = handle.read(512)
    kind = next((name for magic, name in _OTHER_ARCHIVES if start.startswith(magic)), "")
    if not kind and start[257:262] == b"ustar":
        kind = "tar"
    if kind:
        return DatasetError(
            f"This is a {kind} archive with the name of a zip.",
            where=archive.name,
            fix="Unpack it and drop its folder.",
        )
    return DatasetError("This zip is incomplete or damaged.", where=archive.name, fix="Download or pack it again.")


def _judge(opened: zipfile.ZipFile, archive: Path) -> list[_Entry]:
    """All entries, or a DatasetError where one of them shows that the archive means harm or cannot be read."""
    infos = opened.infolist()
    if len(infos) > MAX_ENTRIES:
        raise DatasetError(f"This zip has more than {MAX_ENTRIES:,} entries.", where=archive.name, fix="Split it.")
    entries, faults = [], []
    for info in infos:
        name = entry_name(info)
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
            faults.append(Finding(name[:200], "points outside the folder it is unpacked to"))
        elif stat.S_ISLNK(info.external_attr >> 16):
            faults.append(Finding(name[:200], "is a link, not a file"))
        elif info.flag_bits & _ENCRYPTED:
            raise DatasetError("This zip is encrypted.", where=archive.name, fix="Unpack it and drop its folder.")
        elif parts and not info.is_dir():
            entries.append(_Entry(info, parts))
    if faults:
        raise DatasetError(
            "This zip has entries that are not safe to unpack, so nothing was taken from it.",
            where=archive.name,
            fix="Pack the pictures anew, or drop their folder.",
            findings=faults,
        )
    _refuse_bomb(entries, archive)
    return entries


def _refuse_bomb(entries: list[_Entry], archive: Path) -> None:
    total = sum(entry.info.file_size for entry in entries)
    packed = max(1, archive.stat().st_size)
    largest = max((entry.info.file_size for entry in entries), default=0)
    is_bomb = total > _RATIO_MATTERS_FROM and total / packed > MAX_RATIO
    if is_bomb or total > MAX_TOTAL_BYTES or largest > MAX_ENTRY_BYTES:
        raise DatasetError(
            f"Unpacked, this zip of {packed / 1e6:,.1f} MB would take {total / 1e9:,.1f} GB, so nothing was taken from it.",
            where=archive.name,
            fix="If it is meant to be that large, unpack it yourself and point at the folder.",
        )


def entry_name(info: zipfile.ZipInfo) -> str:
    """An entry's name with `/`, decoded as its maker meant it where the zip does not say so (Chinese Windows, old macOS)."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8_NAME:
        try:
            raw = name.encode("cp437")
        except UnicodeEncodeError:
            raw = None
        if raw is not None:
            name, _ = decode_unmarked(raw, fallback="cp437")
    return name.replace("\\", "/").replace("\0", "")


def _choose(entries: list[_Entry]) -> tuple[list[_Entry], list[Finding]]:
    wanted, findings, others = [], [], 0
    for entry in entries:
        path = PurePosixPath(entry.parts[-1])
        if any(is_hidden_name(part) for part in entry.parts):
            continue
        if path.suffix.lower() in _ARCHIVE_SUFFIXES:
            findings.append(Finding(entry.name, "is an archive inside the zip and was not opened"))
        elif is_picture_name(Path(path)) or _is_about_pictures(path.name):
            wanted.append(entry)
        else:
            others += 1
    if others:
        findings.append(Finding("", f"{others} other {'file' if others == 1 else 'files'} in the zip left out"))
    return wanted, findings


def _is_about_pictures(name: str) -> bool:
    return is_table_name(name) or PurePosixPath(name).suffix.lower() in CAPTION_SUFFIXES


def _extract(opened: zipfile.ZipFile, entries: list[_Entry], target: Path, archive: Path, progress: Progress) -> None:
    folders: dict[tuple[str, ...], Path] = {}
    for number, entry in enumerate(entries):
        progress("Unpacking the zip", number, len(entries))
        # Folders too deep or long for a file system get numbers; captions stay with their pictures.
        folder = folders.setdefault(entry.parts[:-1], _folder_of(entry.parts[:-1], target, len(folders)))
        folder.mkdir(parents=True, exist_ok=True)
        path = unused_path(folder / safe_file_name(entry.parts[-1]))
        with disk_errors(path, f"{entry.name} of the zip"), opened.open(entry.info) as source, open(path, "xb") as out:
            # zipfile gives no more bytes than the list says, so what was judged is what is written.
            shutil.copyfileobj(source, out, 1 << 20)
        if path.stat().st_size != entry.info.file_size:
            raise _not_a_zip(archive)
    progress("Unpacking the zip", len(entries), len(entries))


def _folder_of(parts: tuple[str, ...], target: Path, number: int) -> Path:
    names = [safe_name(part) for part in parts]
    if len(names) > _MAX_KEPT_DEPTH or len("/".join(names).encode()) > _MAX_KEPT_BYTES:
        return target / f"folder {number}"
    return target.joinpath(*names)


def safe_file_name(name: str) -> str:
    """`safe_name` that keeps the ending of the name."""
    path = PurePosixPath(name)
    suffix = path.suffix if len(path.suffix) <= 10 else ""
    return safe_name(path.name[: len(path.name) - len(suffix)] if suffix else path.name) + suffix.strip()
