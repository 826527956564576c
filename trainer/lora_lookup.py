"""Which LoRA of the library is meant: by its name, by the name its author gave it, or by a hash. Imports no torch."""

from __future__ import annotations

import difflib
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainer.config.generate import GenerateConfig, StackedLora
from trainer.errors import ConfigError, Finding, LoraFileError
from trainer.files import file_sha256
from trainer.library import SUFFIX, LibraryEntry, list_loras
from trainer.lora_tags import LoraTag, TaggedPrompt, read_tags
from trainer.paths import DataFolder

log = logging.getLogger(__name__)
_HASH = re.compile(r"(?:0x)?([0-9a-f]{8,64})", re.IGNORECASE)
_HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
_HEADER_BYTES = 8
_hashes: dict[tuple[str, int, float], tuple[str, str]] = {}


def find_lora(data: DataFolder, wanted: str, entries: Sequence[LibraryEntry] | None = None) -> LibraryEntry:
    """The LoRA that a tag or a stack names.

    Tried in this order, with capitals and then without: its name in the library; the last part of that; the author's own
    name for it (`ss_output_name`, `modelspec.title`); the beginning (8 digits or more) of a hash: sha256 of the file, or
    of its tensors (`sshs_model_hash`).

    Args:
        data: whose library.
        wanted: the name or hash.
        entries: the library, where the caller has listed it already.

    Raises: LoraFileError: none is called so; the message names those that are alike. Or several are.
    """
    known = list_loras(data) if entries is None else entries
    text = wanted.strip().removesuffix(SUFFIX)
    for fold in (str, str.casefold):
        for names in (_name, _last_part, _author_names):
            found = [entry for entry in known if fold(text) in map(fold, names(entry))]
            if found:
                return _only(found, wanted)
    if digits := _HASH.fullmatch(text):
        found = find_by_hash(known, digits[1])
        if found is not None:
            return found
    raise LoraFileError(f"There is no LoRA '{wanted}' in the library.", where=wanted, fix=_alike(text, known))


def find_by_hash(entries: Sequence[LibraryEntry], digits: str) -> LibraryEntry | None:
    """The LoRA with a hash that begins so; None if there is none. Files are read once, and again when they change.

    Files that cannot be used or read are passed over: what is looked for is none of them.
    """
    start = digits.casefold()
    for entry in entries:
        if entry.info and any(
            entry.info.metadata.get(key, "").removeprefix("0x").startswith(start) for key in _HASH_KEYS
        ):
            return entry
    return next((entry for entry in entries if any(value.startswith(start) for value in known_hashes(entry))), None)


def match_lora(
    data: DataFolder, name: str, digests: Iterable[str], entries: Sequence[LibraryEntry]
) -> tuple[LibraryEntry | None, str]:
    """The LoRA that somebody else's stack or picture names, and a sentence where it is not quite that.

    It is taken by its name where its hash is one of those given; else the file with such a hash, whatever it is called
    here; else what has the name, with a note.

    Args:
        digests: beginnings of hashes (see `find_lora`); without any the name decides.
    """
    wanted = [digits[1].casefold() for text in digests if (digits := _HASH.fullmatch(text.strip()))]
    try:
        by_name = find_lora(data, name, entries) if name else None
    except LoraFileError:
        by_name = None
    if by_name is not None and (not wanted or any(find_by_hash([by_name], digits) for digits in wanted)):
        return by_name, ""
    for digits in wanted:
        by_hash = find_by_hash(entries, digits)
        if by_hash is not None:
            return by_hash, f"'{name}' is called '{by_hash.name}' here."
    if by_name is None:
        return None, ""
    return by_name, f"'{by_name.name}' is another version than the one that was used."


def hashes(entry: LibraryEntry) -> tuple[str, str]:
    """sha256 of a file, and of its tensors alone, which a change of its metadata leaves as it is."""
    return hashes_of(entry.path)


def known_hashes(entry: LibraryEntry) -> tuple[str, ...]:
    """`hashes`; nothing for a file that cannot be used, or read."""
    if entry.info is None:
        return ()
    try:
        return hashes(entry)
    except (OSError, OverflowError):
        log.warning("The LoRA %s cannot be read", entry.path, exc_info=True)
        return ()


def hashes_of(path: Path) -> tuple[str, str]:
    """`hashes` of a file, in the library or not. Read once, and again when it changes. Raises OSError."""
    facts = path.stat()
    key = (str(path), facts.st_size, facts.st_mtime)
    if key not in _hashes:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(_HEADER_BYTES), "little")
            handle.seek(_HEADER_BYTES + length)
            tensors = hashlib.file_digest(handle, "sha256").hexdigest()
        _hashes[key] = (file_sha256(path), tensors)
    return _hashes[key]


def with_tagged_loras(config: GenerateConfig, data: DataFolder) -> GenerateConfig:
    """The same generation with the LoRAs of the prompt's tags on the stack, after those that are there, and no tags.

    Raises: ConfigError: as `resolve_tags`, or a tag stands in the negative prompt, where it would be read as words.
    """
    negative = read_tags(config.negative_prompt)
    if negative.tags or negative.faults:
        raise ConfigError(
            "A LoRA tag in the negative prompt has no meaning.",
            where="negative_prompt",
            findings=[Finding("negative_prompt", "there is a LoRA tag in it")],
            fix="Move it to the prompt; a negative weight works against what the LoRA learned: <lora:NAME:-0.5>.",
        )
    words, loras = resolve_tags(data, config.prompt, config.num_inference_steps)
    if not loras:
        return config
    added = [StackedLora.model_validate(values) for values in loras]
    return config.model_copy(update={"prompt": words, "loras": [*config.loras, *added]})


def resolve_tags(data: DataFolder, prompt: str, num_steps: int) -> tuple[str, list[dict[str, object]]]:
    """A prompt without its tags, and the LoRAs that they put on the stack, as plain values of StackedLora.

    Raises: ConfigError: tags that cannot be read, or name no LoRA of the library, each with its place in the prompt.
    """
    tagged = read_tags(prompt)
    found, findings = find_tags(data, tagged, num_steps)
    if findings:
        raise ConfigError(
            "The prompt has a LoRA tag that cannot be used."
            if len(findings) == 1
            else f"The prompt has {len(findings)} LoRA tags that cannot be used.",
            where="prompt",
            findings=[finding for _, finding in findings],
            fix="Write <lora:NAME:0.8>, with the name of a LoRA in the library.",
        )
    return tagged.words, [values for _, values in found]


def find_tags(
    data: DataFolder, tagged: TaggedPrompt, num_steps: int
) -> tuple[list[tuple[LoraTag, dict[str, object]]], list[tuple[int, Finding]]]:
    """The tags that can be used, each with its values of StackedLora, and what is wrong with others, by place."""
    entries = list_loras(data) if tagged.tags else []
    found: list[tuple[LoraTag, dict[str, object]]] = []
    faults = [(fault.begin, fault.message) for fault in tagged.faults]
    for tag in tagged.tags:
        try:
            entry = find_lora(data, tag.name, entries)
            start, end = tag.span(num_steps)
        except LoraFileError as error:
            faults.append((tag.begin, f"{error.message} {error.fix}"))
        except ValueError as error:
            faults.append((tag.begin, f"'{tag.name}': {error}"))
        else:
            found.append((tag, _values(tag, entry.name, start, end)))
    return found, [(at, Finding("prompt", f"at character {at + 1}: {text}")) for at, text in sorted(faults)]


def _values(tag: LoraTag, file: str, start: float, end: float) -> dict[str, object]:
    return {
        "file": file,
        "unet_weight": tag.unet_weight,
        "text_encoder_weight": tag.text_encoder_weight,
        "blocks": tag.blocks,
        "start": start,
        "end": end,
        "is_on": tag.is_on,
    }


def _name(entry: LibraryEntry) -> list[str]:
    return [entry.name]


def _last_part(entry: LibraryEntry) -> list[str]:
    return [Path(entry.name).name]


def _author_names(entry: LibraryEntry) -> list[str]:
    metadata = entry.info.metadata if entry.info else {}
    return [metadata[key] for key in ("ss_output_name", "modelspec.title") if metadata.get(key)]


def _only(found: Sequence[LibraryEntry], wanted: str) -> LibraryEntry:
    if len(found) > 1:
        names = ", ".join(entry.name for entry in found[:5])
        raise LoraFileError(
            f"'{wanted}' can be any of {len(found)} LoRAs.", where=wanted, fix=f"Write its whole name: {names}."
        )
    return found[0]


def _alike(name: str, entries: Sequence[LibraryEntry]) -> str:
    if not entries:
        return "The library is empty: train a LoRA, or import one."
    names = {word: entry.name for entry in entries for word in (*_author_names(entry), *_last_part(entry), entry.name)}
    folded = {word.casefold(): full for word, full in names.items()}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(dict.fromkeys(folded[word] for word in close))}?"
    return f"The library has: {', '.join(entry.name for entry in entries[:10])}."
