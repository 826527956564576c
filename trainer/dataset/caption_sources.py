"""Captions of one picture out of JSON of many makers, and out of the tables that some data sets have for all of their pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from trainer.dataset.encodings import decode_text
from trainer.dataset.problems import Problem, warning

TABLE_NAMES = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.csv", "captions.tsv", "metadata.json")
"""Tables of captions, the one that counts first: of Hugging Face's `datasets` folders, by hand, and kohya's fine-tuning scripts'."""
_UNREAD = ("metadata.parquet",)
_MAX_BYTES = 64 * 1024 * 1024
_FILE_KEYS = ("file_name", "filename", "file", "image", "image_path", "path", "name")
_CAPTION_KEYS = ("captions", "caption", "text", "prompt", "description", "tags", "tag_string")


def captions_in(data: Any) -> list[str] | None:
    """The captions in JSON: a text, a list of texts, or an object with `captions`, `caption`, `text`, `prompt`, `description`,
    `tags` or `tag_string` (the first that is there and not empty counts).

    Tags are one caption: a list of them, a text with commas or, as picture boards give them, with blanks, or lists by kind.
    Returns: None where there are none of these.
    """
    if isinstance(data, str):
        return [data]
    if isinstance(data, list):
        return list(data) if all(isinstance(item, str) for item in data) else None
    if not isinstance(data, Mapping):
        return None
    there = [key for key in _CAPTION_KEYS if key in data]
    for key in there:
        found = _tags(data[key]) if key.startswith("tag") else captions_in(data[key])
        if found and any(text.strip() for text in found):
            return found
    return [] if there else None


def _tags(value: Any) -> list[str] | None:
    if isinstance(value, Mapping):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = [tag for tags in lists for tag in tags]
    if isinstance(value, str) and "," not in value:
        value = value.split()
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return [", ".join(tag.replace("_", " ").strip() for tag in value)]
    return None


def is_table_name(name: str) -> bool:
    """Whether a file of this name is a table of captions."""
    return name.casefold() in TABLE_NAMES


@dataclass
class CaptionTables:
    """What the tables in a folder and the folders in it say: captions by picture, and what is wrong with the tables."""

    problems: list[Problem] = field(default_factory=list)
    _of_folder: dict[Path, list[tuple[str, dict[str, list[str]]]]] = field(default_factory=dict)
    _of_name: dict[str, list[list[str]]] = field(default_factory=dict)

    def captions_of(self, picture: Path, folder: Path) -> tuple[list[str], str]:
        """The captions of a picture and the name of the table that has them, the nearest to it; ([], "") for none."""
        for parent in picture.parents:
            for name, rows in self._of_folder.get(parent, ()):
                below = picture.relative_to(parent).as_posix()
                for key in (below, picture.name, below.removesuffix(picture.suffix), picture.stem):
                    if rows.get(key):
                        return rows[key], name
            if parent == folder:
                break
        return [], ""

    def captions_of_name(self, name: str) -> list[str]:
        """The captions of a picture by its name alone, whatever folder it lay in; [] where several bear that name."""
        if not self._of_name:
            for key, texts in (row for found in self._of_folder.values() for _, rows in found for row in rows.items()):
                self._of_name.setdefault(key.rpartition("/")[2], []).append(texts)
        for key in (name, name.rpartition(".")[0]):
            found = self._of_name.get(key, [])
            if found and all(texts == found[0] for texts in found):
                return found[0]
        return []


def read_tables(files: Sequence[Path]) -> CaptionTables:
    """Read the tables of captions among files. What cannot be read is a problem, never an error."""
    tables = CaptionTables()
    found = [path for path in files if is_table_name(path.name)]
    for path in sorted(found, key=lambda path: TABLE_NAMES.index(path.name.casefold())):
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"is larger than {_MAX_BYTES // 2**20} MB")
            text, encoding = decode_text(path.read_bytes())
            if text is None:
                raise ValueError("it holds no text")
            bad_rows: list[str] = []
            rows, problems = _collected(path, _rows(path, text, bad_rows))
            problems += _said_of(path, bad_rows, has_good=bool(rows))
        except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as failure:
            message = f"The table of captions {path.name} cannot be read ({failure})."
            tables.problems.append(warning("caption_table", message, "Save it as UTF-8, with columns file_name, text."))
            continue
        if not encoding.startswith("utf"):
            message = f"The table of captions {path.name} was read as {encoding}."
            problems.append(warning("caption_table", message, "Save it as UTF-8 if letters look wrong."))
        tables.problems += problems
        if rows:
            tables._of_folder.setdefault(path.parent, []).append((path.name, rows))
    if any(path.name.casefold() in _UNREAD for path in files):
        message = "The table metadata.parquet is not read."
        tables.problems.append(warning("caption_table", message, "Save it as metadata.csv or metadata.jsonl."))
    return tables


def _collected(table: Path, rows: Iterable[tuple[str, list[str]]]) -> tuple[dict[str, list[str]], list[Problem]]:
    """The captions by picture; a picture may have several rows. What several paths from the root have in common is no name."""
    found: dict[str, list[str]] = {}
    written: dict[str, set[str]] = {}
    for text, captions in rows:
        name = _name(text)
        found[name] = list(dict.fromkeys([*found.get(name, ()), *captions]))
        written.setdefault(name, set()).add(PureWindowsPath(text.strip()).as_posix().removeprefix("./"))
    unclear = dict.fromkeys(name for name, paths in written.items() if len(paths) > 1)
    if not unclear:
        return found, []
    message = (
        f"The table of captions {table.name} has several pictures named {next(iter(unclear))}, by paths of another place"
        f"{f', and {len(unclear) - 1} more such names' if len(unclear) > 1 else ''}: their captions are left out."
    )
    problem = warning("caption_table", message, "Write their paths below the table's folder, such as train/a.png.")
    return {name: captions for name, captions in found.items() if name not in unclear}, [problem]


def _said_of(table: Path, bad_rows: Sequence[str], *, has_good: bool) -> list[Problem]:
    """What is said of rows that cannot be read. Raises ValueError: there is no other."""
    if not bad_rows:
        return []
    if not has_good:
        raise ValueError(bad_rows[0])
    more = f", and {len(bad_rows) - 1} more are" if len(bad_rows) > 1 else " is"
    message = f"Of the table of captions {table.name}, {bad_rows[0]}{more} left out."
    return [warning("caption_table", message, "Correct it; captions with commas need quotes around them in a CSV.")]


def _rows(path: Path, text: str, bad_rows: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table; those that cannot be read are named in `bad_rows`, where others may be read all the same."""
    match path.suffix.casefold():
        case ".jsonl":
            # Its lines end with LF: other ends of lines may stand within JSON.
            for number, line in enumerate(text.split("\n"), start=1):
                try:
                    row = _row(json.loads(line)) if line.strip() else None
                except ValueError as failure:
                    what = failure.msg if isinstance(failure, json.JSONDecodeError) else failure
                    bad_rows.append(f"line {number} ({what})")
                    continue
                if row:
                    yield row
        case ".json":
            data = json.loads(text)
            if not isinstance(data, Mapping):
                yield from (row for row in map(_row, data) if row)
            else:
                yield from ((key, found) for key, value in data.items() if (found := _caption_and_tags(value)))
        case _:
            yield from _csv_rows(text, bad_rows)


def _csv_rows(text: str, bad_rows: list[str]) -> Iterator[tuple[str, list[str]]]:
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    file_at, caption_at = _column(header, _FILE_KEYS), _column(header, _CAPTION_KEYS)
    if file_at is None or caption_at is None:
        # No header: the name first, then the caption.
        if not header or len(header) < 2 or "." not in header[0]:
            raise ValueError("it has no columns file_name and text")
        file_at, caption_at, rows, header = 0, 1, [[], *rows], ["file_name", "text"]
    for row in rows[1:]:
        caption = row[caption_at] if len(row) > max(file_at, caption_at) else ""
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            if caption_at != len(header) - 1:
                bad_rows.append(f"the row of {row[file_at].strip()[:80]} (more cells than columns)")
                continue
            # Tags without quotes around them: what is behind the last column belongs to it.
            caption = delimiter.join(row[caption_at:])
        if caption.strip():
            yield row[file_at], [caption]


def _column(header: Iterable[str], names: Sequence[str]) -> int | None:
    places = {cell: index for index, cell in enumerate(header)}
    return next((places[name] for name in names if name in places), None)


def _row(row: Any) -> tuple[str, list[str]] | None:
    if not isinstance(row, Mapping):
        raise ValueError("an entry is no object with a file_name and a text")
    name = next((row[key] for key in _FILE_KEYS if isinstance(row.get(key), str)), None)
    found = captions_in(row)
    return (name, found) if name and found else None


def _caption_and_tags(value: Any) -> list[str] | None:
    """kohya's scripts keep a caption and tags side by side, and train the caption with the tags behind it."""
    if isinstance(value, Mapping) and isinstance(value.get("caption"), str) and isinstance(value.get("tags"), str):
        return [", ".join(part for part in (value["caption"].strip(), value["tags"].strip()) if part)]
    return captions_in(value)


def _name(text: str) -> str:
    """A picture's name as tables write it: below the table's folder; of a path from the root, its last part."""
    path = PureWindowsPath(text.strip())
    return path.name if path.is_absolute() or path.root else path.as_posix().removeprefix("./")
