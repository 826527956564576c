"""LoRAs in a prompt: `<lora:NAME>`, `<lora:NAME:0.8>`, `<lora:NAME:UNET:TEXT>`, with named parts behind.

    <lora:ink:0.8>                          UNet and text encoder at 0.8
    <lora:ink:0.8:0.5>                      UNet 0.8, text encoder 0.5
    <lora:ink:0.8:blocks=MIDD:steps=0-0.5>  block weights; the first half of the sampling steps
    <lora:ink:1:lbw=OUTS:stop=10>           as lora-block-weight writes it: up to the tenth step
    <lora:ink:te=0.5:unet=1>                as A1111 writes it

`blocks=` (or `lbw=`) takes what `trainer.blocks` reads. `steps=A-B` (or `step=`), `start=` and `stop=` (or `end=`) are
shares of the sampling steps where written with a point or up to 1, else numbers of steps. `on=0` is a LoRA that is
switched off. Pure text: imports no torch.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from trainer.blocks import MAX_WEIGHT, parse_blocks

_OPENING = re.compile(r"<\s*(?:lora|lyco)\s*:", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_STEPS = re.compile(r"(\d+\.?\d*|\.\d+)\s*-\s*(\d+\.?\d*|\.\d+)")
_SAME_KEY = {"lbw": "blocks", "step": "steps", "end": "stop"}
_KEYS = ("blocks", "lbw", "steps", "step", "start", "stop", "end", "te", "unet", "on")


@dataclass(frozen=True)
class TagFault:
    """What is wrong with a tag: where it begins in the prompt (from 0), how long it is, and what to say."""

    begin: int
    end: int
    message: str


@dataclass(frozen=True)
class LoraTag:
    """A LoRA as a prompt has it.

    Attributes:
        begin, end: where it stands in the prompt.
        name: as written; `trainer.lora_lookup` finds the file.
        first, last: between which sampling steps it works; None for from the beginning, and to the end.
    """

    begin: int
    end: int
    name: str
    unet_weight: float = 1.0
    text_encoder_weight: float = 1.0
    blocks: str = ""
    first: Bound | None = None
    last: Bound | None = None
    is_on: bool = True

    def span(self, num_steps: int) -> tuple[float, float]:
        """Start and end as shares of so many sampling steps. Raises ValueError: it would begin after the last."""
        start = 0.0 if self.first is None else self.first.share(num_steps)
        end = 1.0 if self.last is None else self.last.share(num_steps)
        if start >= min(end, 1.0):
            raise ValueError(f"with {num_steps} sampling steps it would work in none of them")
        return start, end


@dataclass(frozen=True)
class Bound:
    """Where a LoRA begins or ends: a share of the sampling steps, or a number of steps."""

    value: float
    is_count: bool

    def share(self, num_steps: int) -> float:
        """As a share of so many steps, at most 1."""
        return min(self.value / num_steps, 1.0) if self.is_count else self.value


@dataclass(frozen=True)
class TaggedPrompt:
    """A prompt, taken apart: the words without the tags, the tags in order, and what is wrong with others."""

    words: str
    tags: tuple[LoraTag, ...]
    faults: tuple[TagFault, ...]


def read_tags(prompt: str) -> TaggedPrompt:
    """Take a prompt apart. Never raises: a tag that cannot be read is a fault, and stands in no list."""
    tags: list[LoraTag] = []
    faults: list[TagFault] = []
    spans: list[tuple[int, int]] = []
    position = 0
    while found := _OPENING.search(prompt, position):
        close = prompt.find(">", found.end())
        other = prompt.find("<", found.end())
        if close < 0 or 0 <= other < close:
            end = min(place for place in (other, close, len(prompt)) if place >= 0) if other >= 0 else len(prompt)
            faults.append(TagFault(found.start(), end, "the tag is not closed: '>' is missing"))
            position = max(end, found.end())
            continue
        position = close + 1
        spans.append((found.start(), position))
        try:
            tag = _read(prompt[found.end() : close])
            tags.append(replace(tag, begin=found.start(), end=position))
        except ValueError as error:
            faults.append(TagFault(found.start(), position, str(error)))
    return TaggedPrompt(_without(prompt, spans), tuple(tags), tuple(faults))


def _without(prompt: str, spans: Sequence[tuple[int, int]]) -> str:
    """The prompt without what stands there, and without the blanks that would be left double."""
    if not spans:
        return prompt
    pieces: list[str] = []
    last = 0
    for begin, end in spans:
        pieces.append(prompt[last:begin])
        last = end
    pieces.append(prompt[last:])
    words = pieces[0]
    for piece in pieces[1:]:
        words += piece.lstrip(" ") if not words or words[-1].isspace() else piece
    return words.strip(" ")


def _read(inner: str) -> LoraTag:
    """The tag between `<lora:` and `>`. Raises ValueError."""
    positional, named = _parts(inner)
    name = positional[0].strip().strip('"').strip() if positional else ""
    if not name:
        raise ValueError("the tag names no LoRA: write <lora:NAME:0.8>")
    weights: list[float] = []
    for text in positional[1:]:
        if _NUMBER.fullmatch(text):
            weights.append(_weight(text, f"weight {len(weights) + 1}"))
        elif not text:
            raise ValueError("a weight is missing between the colons: write <lora:NAME:0.8>")
        elif "blocks" in named:
            raise ValueError(f"'{text}' is no number")
        else:
            # As older lora-block-weight has it: the preset, or the list, without a key before it.
            named["blocks"] = _blocks(text, f"'{text}' is neither a weight nor block weights")
    if len(weights) > 2:
        raise ValueError("there are three weights; there can be two, of the UNet and of the text encoder")
    unet = weights[0] if weights else 1.0
    tag = LoraTag(0, 0, name, unet, weights[1] if len(weights) == 2 else unet)
    for key, value in named.items():
        tag = _SETTERS[key](tag, value)
    if "unet" in named and "te" not in named and len(weights) < 2:
        tag = replace(tag, text_encoder_weight=tag.unet_weight)
    first = tag.first or Bound(0.0, tag.last is not None and tag.last.is_count)
    if tag.last and first.is_count == tag.last.is_count and first.value >= tag.last.value:
        raise ValueError(f"its steps end at {tag.last.value:g}, before they start at {first.value:g}")
    return tag


def _parts(inner: str) -> tuple[list[str], dict[str, str]]:
    """What stands before the first `key=`, and what stands behind each; a colon within a value stays (down1:0.5)."""
    positional: list[str] = []
    named: dict[str, str] = {}
    key = ""
    for part in inner.split(":"):
        before, equals, value = part.partition("=")
        if equals and positional and "," not in before:
            written = before.strip().lower()
            key = _SAME_KEY.get(written, written)
            if key not in _SETTERS:
                close = difflib.get_close_matches(written, _KEYS, n=1, cutoff=0.5)
                hint = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(_KEYS)}"
                raise ValueError(f"'{before.strip()}=' is nothing that a tag can have{hint}")
            if key in named:
                raise ValueError(f"'{written}' stands there twice")
            named[key] = value.strip()
        elif key:
            named[key] += f":{part}"
        else:
            positional.append(part.strip())
    return positional, named


def _weight(text: str, what: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{what} is '{text}', which is no number")
    value = float(text)
    if not math.isfinite(value) or abs(value) > MAX_WEIGHT:
        raise ValueError(f"{what} is {text}; allowed: -{MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return value


def _blocks(text: str, otherwise: str = "") -> str:
    try:
        parse_blocks(text)
    except ValueError as error:
        raise ValueError(f"{otherwise}: {error}" if otherwise else str(error)) from None
    return text


def _bound(text: str, what: str) -> Bound:
    if not re.fullmatch(r"\d+\.?\d*|\.\d+", text):
        raise ValueError(f"{what} is '{text}': write a share of the steps (0.5), or a number of steps (10)")
    value = float(text)
    is_count = "." not in text and value > 1
    if not is_count and value > 1:
        raise ValueError(f"{what} is {text}: a share of the steps is at most 1, and a number of steps has no point")
    return Bound(value, is_count)


def _with_steps(tag: LoraTag, text: str) -> LoraTag:
    found = _STEPS.fullmatch(text)
    if found is None:
        raise ValueError(f"steps={text} is not FROM-TO: write steps=0.2-0.8, or steps=5-15")
    first, last = _bound(found[1], "the start of the steps"), _bound(found[2], "the end of the steps")
    if last.is_count and not first.is_count and "." not in found[1]:
        first = replace(first, is_count=True)
    return replace(tag, first=first, last=last)


def _with_switch(tag: LoraTag, text: str) -> LoraTag:
    if text not in ("0", "1"):
        raise ValueError(f"on={text}: write on=0 or on=1")
    return replace(tag, is_on=text == "1")


_SETTERS: dict[str, Callable[[LoraTag, str], LoraTag]] = {
    "blocks": lambda tag, text: replace(tag, blocks=_blocks(text)),
    "steps": _with_steps,
    "start": lambda tag, text: replace(tag, first=Bound(1.0, True) if text == "1" else _bound(text, "start")),
    "stop": lambda tag, text: replace(tag, last=_bound(text, "stop")),
    "te": lambda tag, text: replace(tag, text_encoder_weight=_weight(text, "te")),
    "unet": lambda tag, text: replace(tag, unet_weight=_weight(text, "unet")),
    "on": _with_switch,
}


@dataclass(frozen=True)
class TagValues:
    """What a tag says, apart from where it stands."""

    name: str
    unet_weight: float = 1.0
    text_encoder_weight: float = 1.0
    blocks: str = ""
    start: float = 0.0
    end: float = 1.0
    is_on: bool = True


def write_tag(values: TagValues) -> str:
    """The tag that says this, in the shortest form; `read_tags` understands it."""
    parts = [values.name, plain_number(values.unet_weight)]
    if values.text_encoder_weight != values.unet_weight:
        parts.append(plain_number(values.text_encoder_weight))
    if values.blocks:
        parts.append(f"blocks={values.blocks}")
    if (values.start, values.end) != (0.0, 1.0):
        parts.append(f"steps={_share(values.start)}-{_share(values.end)}")
    if not values.is_on:
        parts.append("on=0")
    return f"<lora:{':'.join(parts)}>"


def plain_number(value: float) -> str:
    """A number with six digits that count, and without the exponent that programs do not read in tags."""
    return f"{Decimal(f'{value:.6g}'):f}"


def _share(value: float) -> str:
    return plain_number(round(value, 6))
