"""The text about a picture that A1111, Forge and the download sites write and read ("infotext"). Pure text: no torch.

    a red house <lora:ink:0.8>
    Negative prompt: fog
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, Lora hashes: "ink: 0123456789ab"

The prompts may have several lines; the settings are one line, in which a value with a comma, a colon or a line break is
a JSON string. Programs add lines of their own behind it, and values of their own to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_CHARACTERS = 200_000
"""Longer texts are no infotexts: the longest prompt has 10,000 characters."""
NEGATIVE = "Negative prompt:"
_MAX_SETTINGS = 500
# Blanks are counted, so that endless ones cost nothing.
_KEY = re.compile(r"\s{0,8}([^\W\d][\w \-/.]{0,80}?)\s{0,8}:\s{0,8}")
_NEXT_KEY = re.compile(r",\s{0,8}(?=[^\W\d][\w \-/.]{0,80}?:\s)|,$")
_SETTINGS_LINE = re.compile(r"\s*(?:Steps|Sampler|CFG scale|Seed):\s", re.IGNORECASE)
_FEW = 3
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Infotext:
    """An infotext, taken apart.

    Attributes:
        prompt: with its `<lora:…>` tags.
        settings: as text, under their names as written; nested JSON stays JSON text.
        rest: lines behind the settings, such as the templates of prompt extensions.
    """

    prompt: str = ""
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    rest: str = ""

    def get(self, name: str) -> str:
        """A setting by its name, whatever its capitals; empty where there is none."""
        wanted = name.casefold()
        return next((value for key, value in self.settings.items() if key.casefold() == wanted), "")


def parse_infotext(text: str) -> Infotext:
    """Take an infotext apart. Never raises: what is no setting is prompt.

    Raises: ValueError: it is longer than MAX_CHARACTERS.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"a text of {len(text):,} characters is no infotext")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").strip("\n\0 ").split("\n")
    at = _settings_line(lines)
    settings = parse_settings(lines[at]) if at < len(lines) else {}
    prompts = "\n".join(lines[:at])
    positive, negative = _prompts(prompts)
    return Infotext(positive, negative, settings, "\n".join(lines[at + 1 :]).strip())


def _settings_line(lines: list[str]) -> int:
    """Which line has the settings: the last that begins like one and has some, else the last if it has some; or none."""
    for index in range(len(lines) - 1, -1, -1):
        if _SETTINGS_LINE.match(lines[index]) and (
            len(parse_settings(lines[index])) >= _FEW or index == len(lines) - 1
        ):
            return index
    is_settings = not lines[-1].lstrip().startswith(NEGATIVE) and len(parse_settings(lines[-1])) >= _FEW
    return len(lines) - 1 if is_settings else len(lines)


def _prompts(text: str) -> tuple[str, str]:
    lines = text.split("\n")
    for index, line in enumerate(lines):
        if line.lstrip().startswith(NEGATIVE):
            first = line.lstrip().removeprefix(NEGATIVE)
            return "\n".join(lines[:index]).strip(), "\n".join([first, *lines[index + 1 :]]).strip()
    return text.strip(), ""


def parse_settings(line: str) -> dict[str, str]:
    """`Name: value, …` as a dict. A value is a JSON string, JSON in brackets, or all up to the next `, Name: `."""
    found: dict[str, str] = {}
    line, position = line.strip(), 0
    while len(found) < _MAX_SETTINGS and (key := _KEY.match(line, position)):
        value, position = _value(line, key.end())
        found.setdefault(key[1], value)
        if position >= len(line):
            break
    return found


def _value(line: str, start: int) -> tuple[str, int]:
    if line[start : start + 1] in ('"', "[", "{"):
        try:
            value, end = _DECODER.raw_decode(line, start)
        except (ValueError, RecursionError):
            pass
        else:
            comma = re.compile(r"\s*(?:,|$)").match(line, end)
            if comma is not None:
                return (value if isinstance(value, str) else line[start:end]), comma.end()
    following = _NEXT_KEY.search(line, start)
    if following is None:
        return line[start:].strip(), len(line)
    return line[start : following.start()].strip(), following.end()


def parse_hashes(infotext: Infotext) -> dict[str, str]:
    """Hashes of LoRAs by name: from `Lora hashes`, and from the `Hashes` that other programs write. Never raises."""
    found: dict[str, str] = {}
    try:
        known = json.loads(infotext.get("Hashes") or "{}")
    except (ValueError, RecursionError):
        known = {}
    if isinstance(known, dict):
        for name, value in known.items():
            kind, _, rest = str(name).partition(":")
            if kind.casefold() in ("lora", "lyco") and isinstance(value, str):
                found[rest] = value
    for part in infotext.get("Lora hashes").split(","):
        name, colon, value = part.rpartition(":")
        if colon and name.strip():
            found[name.strip()] = value.strip()
    return found


def write_infotext(prompt: str, negative_prompt: str, settings: Mapping[str, Any]) -> str:
    """The text for these prompts and settings, quoted as A1111 quotes. `parse_infotext` understands it."""
    lines = [prompt, *([f"{NEGATIVE} {negative_prompt}"] if negative_prompt else [])]
    lines.append(", ".join(f"{key}: {quoted(str(value))}" for key, value in settings.items()))
    return "\n".join(lines)


def write_hashes(hashes: Mapping[str, str]) -> str:
    """`name: hash, …`, as `Lora hashes` and `TI hashes` have it."""
    return ", ".join(f"{name}: {value}" for name, value in hashes.items())


def quoted(text: str) -> str:
    """A value as it stands in the line of settings."""
    needs = any(char in text for char in ',:"\n') or text[:1] in ("[", "{")
    return json.dumps(text, ensure_ascii=False) if needs else text
