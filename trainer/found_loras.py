"""The LoRAs that another program's infotext names: in tags, in hashes, in the lists of download sites. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.infotext import Infotext, parse_hashes
from trainer.lora_tags import LoraTag, read_tags

_MAX_PROMPT = 20_000
_PLAIN_WEIGHTS = re.compile(r"<\s*\w+\s*:[^:>]*(?::\s*[-+.\deE]+\s*){2,3}(?::|>)")


@dataclass(frozen=True)
class FoundLora:
    """A LoRA as a picture names it.

    Attributes:
        name: its own, of whatever program.
        values: of StackedLora, but the file; not checked.
        digests: beginnings of hashes.
    """

    name: str
    values: Mapping[str, Any]
    digests: tuple[str, ...] = ()


def tagged_loras(
    text: Infotext, num_steps: int, notes: list[str], *, weights_are_ours: bool
) -> tuple[str, list[FoundLora]]:
    """The prompt without its LoRA tags, and the LoRAs of the tags.

    Args:
        text: the whole infotext.
        num_steps: of the sampling, of which tags may name some.
        notes: get sentences about what cannot be read.
        weights_are_ours: whether the first of two plain weights is the UNet's, as in our tags, not A1111's.
    """
    if len(text.prompt) > _MAX_PROMPT:
        notes.append(f"The prompt has {len(text.prompt):,} characters and was left off.")
        return "", []
    tagged = read_tags(text.prompt)
    hashes = {name.casefold(): value for name, value in parse_hashes(text).items()}
    notes += [f"A LoRA tag in the prompt: {fault.message}." for fault in tagged.faults]
    loras: list[FoundLora] = []
    for tag in tagged.tags:
        unet, text_encoder = tag.unet_weight, tag.text_encoder_weight
        if not weights_are_ours and _PLAIN_WEIGHTS.match(text.prompt[tag.begin : tag.end]) and not _is_named(text, tag):
            # A1111 has the text encoder's weight first.
            unet, text_encoder = text_encoder, unet
        try:
            start, end = tag.span(max(1, num_steps))
        except ValueError as error:
            notes.append(f"'{tag.name}': {error}.")
            continue
        values = {"unet_weight": unet, "text_encoder_weight": text_encoder, "blocks": tag.blocks}
        values |= {"start": start, "end": end, "is_on": tag.is_on}
        digest = hashes.get(tag.name.casefold(), "")
        loras.append(FoundLora(tag.name, values, (digest,) if digest else ()))
    return tagged.words, loras


def _is_named(text: Infotext, tag: LoraTag) -> bool:
    written = text.prompt[tag.begin : tag.end]
    return "te=" in written or "unet=" in written


def civitai_resources(text: Infotext) -> tuple[list[FoundLora], str]:
    """LoRAs and base model as Civitai's own generator lists them, which writes no tags."""
    try:
        resources = json.loads(text.get("Civitai resources") or "[]")
    except (ValueError, RecursionError):
        return [], ""
    loras: list[FoundLora] = []
    checkpoint = ""
    for resource in resources if isinstance(resources, list) else ():
        if not isinstance(resource, dict):
            continue
        name, kind = str(resource.get("modelName", "")), str(resource.get("type", "")).casefold()
        if kind in ("lora", "locon", "lycoris", "dora") and name:
            weight = resource.get("weight", 1.0)
            loras.append(FoundLora(name, {"unet_weight": weight, "text_encoder_weight": weight}))
        elif kind == "checkpoint":
            checkpoint = checkpoint or name
    return loras, checkpoint
