"""The LoRA library as the LoRAs tab sees it: tiles, details, and what can be done with a file. Knows no widgets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from trainer.dataset.thumbnails import make_thumbnail
from trainer.errors import DatasetError, Finding, LoraFileError
from trainer.files import file_sha256, write_atomically
from trainer.library import (
    PREVIEW_SUFFIXES,
    SUFFIX,
    LibraryEntry,
    TrashedLora,
    delete_lora,
    get_lora,
    import_lora,
    list_loras,
    list_trashed,
    rename_lora,
    restore_lora,
    set_preview,
)
from trainer.lora_files.inspect import LoraInfo
from trainer.paths import DataFolder

log = logging.getLogger(__name__)
_TILE = 320
_INKS = ("#24404b", "#2f5d6d", "#6a4b07", "#5a221d", "#255c2b", "#3f3d39")


@dataclass(frozen=True)
class Tile:
    """A LoRA in the grid. `label` is plain text."""

    name: str
    picture: Path
    label: str


@dataclass(frozen=True)
class Imported:
    """What came of a drop: names that are in the library now, and what was refused."""

    names: tuple[str, ...]
    refused: tuple[Finding, ...]


class LibraryService:
    """What the LoRAs tab asks and does."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data

    def entries(self, search: str = "") -> list[LibraryEntry]:
        """The library, newest first; those that hold all words of `search`."""
        return list_loras(self._data, search or "")

    def entry(self, name: str) -> LibraryEntry:
        """One LoRA. Raises LoraFileError."""
        return get_lora(self._data, name)

    def tiles(self, entries: Sequence[LibraryEntry]) -> list[Tile]:
        """The entries as pictures with a line of text."""
        return [Tile(entry.name, self.picture(entry), _label(entry)) for entry in entries]

    def picture(self, entry: LibraryEntry, size: int = _TILE) -> Path:
        """A small view of the preview; where there is none, a drawing made from the name."""
        if entry.preview is not None:
            try:
                return make_thumbnail(self._data, entry.preview, size)
            except DatasetError:
                log.warning("The preview of %s cannot be shown", entry.name, exc_info=True)
        return self._drawn(entry.name)

    def _drawn(self, name: str) -> Path:
        digest = hashlib.sha256(name.encode("utf-8", errors="replace")).digest()
        path = self._data.cache / "thumbnails" / f"lora-{digest.hex()[:16]}.jpg"
        if not path.exists():
            image = _ink_drops(digest)
            write_atomically(path, lambda temporary: image.save(temporary, format="JPEG", quality=88), "a thumbnail")
        return path

    def sha256(self, entry: LibraryEntry) -> str:
        """The file's hash; reads all of it."""
        return file_sha256(entry.path)

    def import_files(self, paths: Sequence[str | Path]) -> Imported:
        """Bring dropped LoRA files in. A picture of the same name in the drop becomes the preview.

        What cannot be used is refused with its reason, and does not keep the others out. Raises ResourceError.
        """
        files = [Path(path) for path in paths]
        previews = {path.stem: path for path in files if path.suffix.lower() in PREVIEW_SUFFIXES}
        names, refused, used = [], [], set()
        for path in files:
            if path.stem in previews and previews[path.stem] == path:
                continue
            try:
                entry = import_lora(self._data, path)
                if path.stem in previews and entry.preview is None:
                    set_preview(self._data, entry.name, previews[path.stem])
                    used.add(path.stem)
                names.append(entry.name)
            except LoraFileError as error:
                refused.append(Finding(path.name, f"{error.message} {error.fix}".strip()))
        stems = {path.stem for path in files if path.suffix.lower() == SUFFIX}
        refused += [
            Finding(path.name, "is a picture without a LoRA of its name")
            for stem, path in previews.items()
            if stem not in stems
        ]
        return Imported(tuple(names), tuple(refused))

    def set_preview(self, name: str, picture: str | Path) -> None:
        """Make a picture the LoRA's preview. Raises LoraFileError, DatasetError."""
        make_thumbnail(
            self._data, Path(picture), _TILE
        )  # it must be readable as a picture before it replaces the old one
        set_preview(self._data, name, Path(picture))

    def rename(self, name: str, new_name: str) -> str:
        """Rename a LoRA; returns its new name. Raises LoraFileError."""
        return rename_lora(self._data, name, new_name).name

    def delete(self, name: str) -> None:
        """Move a LoRA to the trash. Raises LoraFileError."""
        delete_lora(self._data, name)

    def trashed(self) -> list[TrashedLora]:
        """Deleted LoRAs, the last first."""
        return list_trashed(self._data)

    def restore(self, folder_name: str) -> str:
        """Bring back the deleted LoRA in this folder of the trash; returns its name. Raises LoraFileError."""
        found = next((item for item in self.trashed() if item.folder.name == folder_name), None)
        if found is None:
            raise LoraFileError("This LoRA is no longer in the trash.", where=folder_name[:300])
        return restore_lora(self._data, found).name


def facts(info: LoraInfo) -> list[tuple[str, str]]:
    """What a LoRA's header says, as (name, value) in plain text; only what is there."""
    parts = [
        name
        for name, is_there in (
            ("UNet", info.has_unet),
            ("text encoder", info.has_text_encoder),
            ("convolutions", info.has_convolutions),
        )
        if is_there
    ]
    guess = " (guessed from its captions)" if info.trigger_words_are_guessed else ""
    rows = [
        ("Trigger words", ", ".join(info.trigger_words) + guess if info.trigger_words else "none given"),
        ("Learned words", _learned(info)),
        ("Rank", _numbers(info.ranks)),
        ("Alpha", _numbers(info.alphas)),
        ("Base model", info.base_model),
        ("Made for", info.family),
        ("Changes", ", ".join(parts)),
        ("Steps", f"{info.steps:,}" if info.steps else ""),
        ("Numbers", f"{info.num_parameters:,} in {info.num_modules} layers, {info.dtype}" if info.num_modules else ""),
        ("Description", info.description),
    ]
    return [(name, value) for name, value in rows if value]


def _learned(info: LoraInfo) -> str:
    """The words that the file has vectors for."""
    if not info.embeddings:
        return ""
    vectors = f"{info.num_vectors} vector{'' if info.num_vectors == 1 else 's'}"
    return f"{', '.join(info.embeddings)} ({vectors if info.is_embedding else f'bundled, {vectors}'})"


def _numbers(values: Sequence[float]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:8])
    return f"{shown}, …" if len(values) > 8 else shown


def _label(entry: LibraryEntry) -> str:
    if entry.info is None:
        return f"✕ {entry.name}"
    words = ", ".join(entry.trigger_words)
    return " · ".join(part for part in (entry.name, words, entry.size_text) if part)


def _ink_drops(digest: bytes) -> Image.Image:
    """Drops of ink on paper, where they fall by the digest."""
    image = Image.new("RGB", (_TILE, _TILE), "#f3f1ec")
    for index in range(4):
        colour, x, y, radius = digest[4 * index : 4 * index + 4]
        layer = Image.new("L", image.size, 0)
        reach = 40 + radius // 4
        centre = (40 + x * (_TILE - 80) // 255, 40 + y * (_TILE - 80) // 255)
        box = (centre[0] - reach, centre[1] - reach, centre[0] + reach, centre[1] + reach)
        ImageDraw.Draw(layer).ellipse(box, fill=150)
        image.paste(_INKS[colour % len(_INKS)], mask=layer.filter(ImageFilter.GaussianBlur(14)))
    return image
