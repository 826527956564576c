"""What a drop holds: its pictures, and which caption, entry of a table and mask belongs to which of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainer.dataset.archives import unpack_zip
from trainer.dataset.caption_sources import CaptionTables, is_table_name, read_tables
from trainer.dataset.captions import CAPTION_SUFFIXES, caption_of_texts, read_caption
from trainer.dataset.dropped import Source, lay_out
from trainer.dataset.masks import sort_masks
from trainer.dataset.pictures import is_picture_name
from trainer.dataset.walk import is_hidden_name, readable_name, walk_folder
from trainer.errors import DatasetError, Finding

_UNCLEAR = (
    "belongs to one of several pictures of that name, and which one cannot be told: bring in their folders instead"
)


@dataclass
class Gathered:
    """Pictures, what belongs to them, and what belongs to none of them."""

    pictures: list[Path] = field(default_factory=list)
    captions: dict[Path, Path] = field(default_factory=dict)
    """The caption file of each picture that has one."""
    from_tables: dict[Path, list[str]] = field(default_factory=dict)
    """Captions that tables have, by picture."""
    masks: dict[Path, Path] = field(default_factory=dict)
    lone_captions: list[Path] = field(default_factory=list)
    """Captions that came without their picture, which may be there already."""
    lone_masks: list[Path] = field(default_factory=list)
    loose: set[Path] = field(default_factory=set)
    """Files that were given one by one: what of them is of no use is said."""
    left_out: list[Finding] = field(default_factory=list)

    def texts_of(self, picture: Path) -> tuple[str, ...]:
        """All captions of a picture: of its file, else of a table."""
        if picture in self.captions:
            return read_caption(self.captions[picture]).all
        return caption_of_texts(self.from_tables.get(picture, ())).all


def gather(sources: Sequence[Source], staging: Path) -> Gathered:
    """Look through pictures, caption files, folders and zips; only read.

    Args:
        staging: a folder of ours, which zips and what a browser took out of folders are laid out in.

    Raises: DatasetError: a source is missing, or a zip is broken or harmful. ResourceError.
    """
    found = Gathered()
    tree = staging / "tree"
    tree.mkdir()
    loose: list[Path] = []
    for number, source in enumerate(lay_out(sources, tree)):
        if source.is_dir():
            walked = walk_folder(source)
            found.left_out += [Finding("", problem.message) for problem in walked.problems]
            _take_folder(walked.files, source, found)
        elif not source.is_file():
            raise DatasetError("This file is not there.", where=readable_name(source), fix="Check the path.")
        elif source.suffix.lower() == ".zip":
            unpacked = staging / f"zip-{number}"
            unpacked.mkdir()
            found.left_out += unpack_zip(source, unpacked)
            _take_folder(walk_folder(unpacked).files, unpacked, found)
        else:
            loose.append(source)
    _take_loose(list(dict.fromkeys(loose)), found)
    return found


def _take_folder(files: Sequence[Path], root: Path, found: Gathered) -> None:
    tables = read_tables(files)
    _note_tables(tables, found)
    named = sort_masks(files)
    found.pictures += named.pictures
    found.masks |= named.masks
    found.lone_masks += named.orphans
    captions = [path for path in files if _is_caption(path)]
    _pair_in_folders(named.pictures, captions, found)
    for path in files:
        texts, _ = tables.captions_of(path, root)
        if texts:
            found.from_tables[path] = texts


def _take_loose(files: Sequence[Path], found: Gathered) -> None:
    tables = read_tables(files)
    _note_tables(tables, found)
    found.loose |= set(files)
    files = [path for path in files if not is_hidden_name(path.name)]
    pictures = _sort_loose_masks(files, found)
    found.pictures += pictures
    captions = [path for path in files if _is_caption(path)]
    for path in files:
        if not (is_picture_name(path) or path in captions or is_table_name(path.name)):
            found.left_out.append(Finding(readable_name(path.name), "is neither a picture, a caption nor a zip"))
    rest = _pair_in_folders(pictures, captions, found)
    _pair_by_names([path for path in pictures if path not in found.captions], rest, found)
    for path in pictures:
        if texts := tables.captions_of_name(path.name):
            found.from_tables[path] = texts


def _is_caption(path: Path) -> bool:
    return path.suffix.lower() in CAPTION_SUFFIXES and not is_table_name(path.name) and not is_hidden_name(path.name)


def _note_tables(tables: CaptionTables, found: Gathered) -> None:
    found.left_out += [Finding("", problem.message) for problem in tables.problems]


def _pair_in_folders(pictures: Sequence[Path], captions: Sequence[Path], found: Gathered) -> list[Path]:
    """Give pictures the captions beside them; returns the captions that lie beside no picture of theirs.

    `cat.txt` comes before `cat.png.txt`, and `.txt` before `.caption`, as when a folder is scanned.
    """
    of_key: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in captions:
        of_key[path.parent, path.stem].append(path)
    used: set[tuple[Path, str]] = set()
    for picture in pictures:
        keys = [(picture.parent, picture.stem), (picture.parent, picture.name)]
        key = next((key for key in keys if key in of_key), None)
        if key is not None:
            found.captions[picture] = min(of_key[key], key=_rank)
            used.add(key)
    rest = [min(paths, key=_rank) for key, paths in of_key.items() if key not in used]
    # Of loose files, their pictures may lie elsewhere.
    found.lone_captions += [path for path in rest if path not in found.loose]
    return [path for path in rest if path in found.loose]


def _rank(caption: Path) -> int:
    return CAPTION_SUFFIXES.index(caption.suffix.lower())


def _pair_by_names(pictures: Sequence[Path], captions: Sequence[Path], found: Gathered) -> None:
    """Give loose pictures the loose captions of their names. A browser gives each file a folder of its own, so where a name is
    there twice, nobody knows whose the caption is: that is said."""
    waiting: dict[str, list[Path]] = defaultdict(list)
    for path in captions:
        waiting[path.stem].append(path)
    names: tuple[Callable[[Path], str], ...] = (lambda path: path.stem, lambda path: path.name)
    for name_of in names:
        wanting: dict[str, list[Path]] = defaultdict(list)
        for picture in pictures:
            if picture not in found.captions:
                wanting[name_of(picture)].append(picture)
        for key in [key for key in wanting if key in waiting]:
            group = waiting.pop(key)
            if _is_clear(wanting[key], group):
                found.captions |= dict.fromkeys(wanting[key], min(group, key=_rank))
            else:
                found.left_out += [Finding(readable_name(path.name), _UNCLEAR) for path in group]
    found.lone_captions += [path for group in waiting.values() for path in group]


def _is_clear(pictures: Sequence[Path], captions: Sequence[Path]) -> bool:
    """Whether all of them can have lain in one folder, or say the same."""
    if len({path.name for path in pictures}) < len(pictures):
        return False
    is_one_folder = len({path.name for path in captions}) == len(captions)
    return is_one_folder or len({read_caption(path).all for path in captions}) == 1


def _sort_loose_masks(files: Sequence[Path], found: Gathered) -> list[Path]:
    """Tell masks from pictures, by their folders, else by their names wherever they lie; returns the pictures."""
    beside = sort_masks(files)
    found.masks |= beside.masks
    taken = {*beside.masks, *beside.masks.values()}
    places: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        if path not in taken:
            places[Path(path.name)].append(path)
    named = sort_masks(list(places))
    for name, mask_name in named.masks.items():
        masks = places[mask_name]
        if len(places[name]) == len(masks) == 1:
            found.masks[places[name][0]] = masks[0]
        else:
            found.left_out += [Finding(readable_name(mask.name), _UNCLEAR) for mask in masks]
    found.lone_masks += [path for name in named.orphans for path in places[name]]
    masks = {
        *beside.masks.values(),
        *(path for name in (*named.masks.values(), *named.orphans) for path in places[name]),
    }
    return [path for path in files if is_picture_name(path) and path not in masks]
