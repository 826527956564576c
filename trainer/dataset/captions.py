"""Captions: reading the files beside pictures, whatever wrote them, and composing what is trained."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trainer.dataset.caption_sources import captions_in
from trainer.dataset.encodings import decode_text
from trainer.dataset.problems import Problem, warning
from trainer.errors import DatasetError

CAPTION_SUFFIXES = (".txt", ".caption", ".json")
RECORD_NAMES = ("dataset.json", "captions.json", "history.json")
"""Files in a data set's folder that are about all of it; a picture must not take one of them for its caption."""
MAX_CAPTIONS = 100
MAX_CAPTION_CHARACTERS = 4000
PROMPT_TOKENS = 75
_MAX_CAPTION_BYTES = 64 * 1024
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_LINE_ENDS = re.compile(r"[\r\n\u2028\u2029\v\f]+")


@dataclass(frozen=True)
class ReadCaption:
    """A caption as one clean line (None where there is none), and what had to be done to it.

    `all` are the captions of a file that holds several: each of its lines, or each entry of its list.
    """

    text: str | None
    problems: tuple[Problem, ...] = ()
    all: tuple[str, ...] = ()


def caption_path(picture: Path) -> Path | None:
    """The caption file beside a picture that counts, or None."""
    return next(iter(caption_files(picture)), None)


def caption_files(picture: Path, there: Container[str] | None = None) -> list[Path]:
    """All caption files beside a picture, the one that counts first. A data set's own records are none.

    `cat.txt`, `cat.caption`, `cat.json`, then the same with the picture's whole name, as programs that fetch pictures write
    them: `cat.png.txt`.

    Args:
        there: names of the files that lie beside it; without them the file system is asked.
    """
    stem = picture.name[: len(picture.name) - len(picture.suffix)]
    names = [f"{name}{suffix}" for name in (stem, picture.name) for suffix in CAPTION_SUFFIXES]
    names = [name for name in names if name not in RECORD_NAMES]
    if there is not None:
        return [picture.with_name(name) for name in names if name in there]
    return [path for path in map(picture.with_name, names) if path.is_file()]


def read_caption(path: Path) -> ReadCaption:
    """Read a caption file in any encoding, as one line and as several captions. Never raises for its content.

    For what a `.json` file may hold see `trainer.dataset.caption_sources.captions_in`.
    """
    try:
        with open(path, "rb") as handle:
            data = handle.read(_MAX_CAPTION_BYTES + 1)
    except OSError as failure:
        message = f"The caption file {path.name} cannot be read ({failure.strerror or failure})."
        return ReadCaption(None, (warning("caption_unreadable", message, "Change its permissions, or write it anew."),))
    problems: list[Problem] = []
    text, encoding = decode_text(data[:_MAX_CAPTION_BYTES], is_cut=len(data) > _MAX_CAPTION_BYTES)
    if text is None:
        message = f"The caption file {path.name} holds no text; it is ignored."
        return ReadCaption(None, (warning("caption_binary", message, "Write the caption anew."),))
    if encoding not in ("utf-8", "utf-8-sig"):
        message = f"The caption file {path.name} was read as {encoding}."
        problems.append(warning("caption_encoding", message, "Save it as UTF-8 if letters look wrong."))
    if path.suffix.lower() == ".json":
        return _from_json(path.name, text)
    cleaned = clean_caption(text)
    if len(data) > _MAX_CAPTION_BYTES or len(cleaned.text or "") > MAX_CAPTION_CHARACTERS:
        message = f"The caption is very long; only its first {MAX_CAPTION_CHARACTERS} characters are kept."
        problems.append(warning("caption_cut", message, "Shorten it: the base model reads about 75 words at most."))
    final = (cleaned.text or "")[:MAX_CAPTION_CHARACTERS].rstrip() or None
    return ReadCaption(final, (*problems, *cleaned.problems), _several(_LINE_ENDS.split(text)))


def caption_lines(text: str) -> tuple[str, ...]:
    """The captions of a text that has one a line, as `.txt` files and the record do; one that is a single line is one."""
    return _several(_LINE_ENDS.split(text))


def _several(texts: Iterable[str]) -> tuple[str, ...]:
    """Each text as a caption; empty ones and repetitions are left out."""
    cleaned = (clean_caption(text).text for text in texts)
    found = dict.fromkeys(text[:MAX_CAPTION_CHARACTERS].rstrip() for text in cleaned if text)
    return tuple(found)[:MAX_CAPTIONS]


def _from_json(name: str, text: str) -> ReadCaption:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    texts = captions_in(data)
    if texts is None:
        fix = 'Write a list of texts, such as ["a red house", "a house"], or a .txt file.'
        return ReadCaption(None, (warning("caption_json", f"The file {name} holds no captions; it is ignored.", fix),))
    return caption_of_texts(texts)


def caption_of_texts(texts: Iterable[str]) -> ReadCaption:
    """Several captions of one picture; the first counts where one is wanted."""
    several = _several(texts)
    first = clean_caption(several[0]) if several else ReadCaption(None)
    return ReadCaption(first.text, first.problems, several)


@lru_cache(maxsize=20_000)
def clean_caption(text: str) -> ReadCaption:
    """One line without control, zero-width and direction characters; None where nothing but punctuation is left."""
    problems: list[Problem] = []
    lines = [line.strip() for line in _LINE_ENDS.split(text.strip("\ufeff\0 \t\r\n"))]
    if len([line for line in lines if line]) > 1:
        problems.append(
            warning(
                "caption_lines",
                "The caption has several lines; they are read as one, unless data.several_captions is on.",
            )
        )
    line = " ".join(lines).replace("\t", " ")
    kept = line if line.isprintable() else "".join(filter(_is_kept, line))
    if kept != line:
        problems.append(warning("caption_control", "Invisible control characters were taken out of the caption."))
    kept = re.sub(r"\s+", " ", kept).strip()
    if not re.search(r"\w", kept):
        return ReadCaption(None, tuple(problems))
    # Each word or sign is at least one token, so this never warns without need.
    if len(kept) > PROMPT_TOKENS and len(_WORDS.findall(kept)) > PROMPT_TOKENS:
        message = (
            "The caption is longer than the base model reads: what follows the first 75 words and signs is not seen."
        )
        problems.append(warning("caption_long", message, "Put what matters first, or shorten it."))
    return ReadCaption(kept, tuple(problems))


def _is_kept(char: str) -> bool:
    # Cc: control, Cf: zero-width and direction marks, Cs: halves of surrogate pairs. The joiners belong to some scripts and emoji.
    return char in "\u200c\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs")


def has_trigger_word(caption: str, trigger_word: str) -> bool:
    """Whether the trigger word stands in the caption as a word, in upper or lower case."""
    pattern = rf"(?<!\w){re.escape(trigger_word)}(?!\w)"
    return re.search(pattern, caption, flags=re.IGNORECASE) is not None


def compose_caption(caption: str | None, trigger_word: str, instance_prompt: str, use_captions: bool) -> str:
    """What a picture is trained with: its caption (or the instance prompt), with the trigger word in front if it lacks it."""
    text = (caption or "").strip() if use_captions else ""
    text = text or instance_prompt.strip()
    trigger_word = trigger_word.strip()
    if not trigger_word or has_trigger_word(text, trigger_word):
        return text
    return f"{trigger_word}, {text}" if text else trigger_word


def fill_template(template: str, *, stem: str, trigger_word: str) -> str:
    """A caption out of a template with `{name}` (words of the file name) and `{trigger}` (the trigger word).

    Raises: DatasetError: the template is empty or has other braces.
    """
    rest = template.replace("{name}", "").replace("{trigger}", "")
    if not template.strip() or "{" in rest or "}" in rest:
        raise DatasetError(
            "This template cannot be used.", where=template[:200], fix="Use plain words, {name} and {trigger}."
        )
    text = template.replace("{name}", caption_from_name(stem)).replace("{trigger}", trigger_word.strip())
    # Where a part is empty, the comma that joined it goes too.
    parts = [part.strip() for part in text.split(",")]
    return clean_caption(", ".join(part for part in parts if part)).text or ""


def caption_from_name(stem: str) -> str:
    """A caption out of a file name: `misty-mountain_03` gives "misty mountain"; empty where nothing but digits is left."""
    words = re.sub(r"[_\-.+]+", " ", stem)
    words = re.sub(r"\(\d+\)|\b\d+\b", " ", words)
    return (clean_caption(words).text or "").strip()
