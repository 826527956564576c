"""Several LoRAs on a base model at once, merged into its weights: generation is as fast as without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.errors import LoraFileError
from trainer.lora_files.file import AdapterModule, read_lora
from trainer.lora_files.matching import Match, changeable_weights, match_modules
from trainer.models.components import Components
from trainer.models.words import LearnedWord
from trainer.sampling.words import bundled_words, embedding_word

_Stamp = tuple[str, int, int]
"""What tells that a file is unchanged: path, modification time in ns, size."""
_Recipe = tuple[tuple[_Stamp, float], ...]
"""What is merged into a layer: files and weights."""


@dataclass(frozen=True)
class StackEntry:
    """A LoRA file and how strongly it works; 0 is not at all, 1 as trained, negative the other way."""

    path: Path
    unet_weight: float = 1.0
    text_encoder_weight: float = 1.0


class LoraStack:
    """Merges LoRAs into the weights of a model, and takes them out again exactly. Words that a file has vectors for can be said
    in prompts as long as it is on the stack, embeddings without a LoRA among them.

    The original of each touched weight is kept (in main memory), and every change starts from it in float32: nothing
    drifts, and an empty stack is the base model bit for bit. Only layers whose LoRAs or weights changed are merged
    again, with one matrix product a layer; files that did not change are not read again.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._title = components.name
        self._weights = changeable_weights(components.adaptable)
        self._files: dict[_Stamp, Match] = {}
        self._words: dict[_Stamp, tuple[LearnedWord, ...]] = {}
        self._originals: dict[str, Tensor] = {}
        self._merged: dict[str, _Recipe] = {}

    @property
    def unknown(self) -> dict[str, tuple[str, ...]]:
        """For each file in use, by its name, the layers that the base model does not have and that were left out."""
        return {Path(stamp[0]).stem: match.unknown for stamp, match in self._files.items() if match.unknown}

    @property
    def touched(self) -> frozenset[str]:
        """Module paths whose weights differ from the base model's."""
        return frozenset(self._merged)

    def set(self, entries: Sequence[StackEntry]) -> int:
        """Make exactly these LoRAs effective. Returns how many layers were written.

        Raises: LoraFileError: a file cannot be read or does not fit; the weights are as before.
        """
        stamps = [_stamp(entry.path) for entry in entries]
        files = {stamp: self._files.get(stamp) or self._read(stamp) for stamp in stamps}
        wanted: dict[str, list[tuple[_Stamp, float]]] = {}
        for stamp, entry in zip(stamps, entries, strict=True):
            for path in files[stamp].modules:
                weight = entry.unet_weight if path.startswith("unet.") else entry.text_encoder_weight
                if weight:
                    wanted.setdefault(path, []).append((stamp, weight))
        self._files = files
        self._words = {stamp: self._words[stamp] for stamp in stamps}
        used = [
            stamp
            for stamp, entry in zip(stamps, entries, strict=True)
            if entry.unet_weight or entry.text_encoder_weight
        ]
        self._components.words.set("stack", [word for stamp in used for word in self._words[stamp]])
        changed = 0
        with torch.no_grad():
            for path in self._merged.keys() | wanted.keys():
                changed += self._apply(path, tuple(wanted.get(path, ())))
        return changed

    def clear(self) -> None:
        """Take every LoRA out."""
        self.set([])

    def _read(self, stamp: _Stamp) -> Match:
        path = Path(stamp[0])
        word = embedding_word(path, self._components)
        if word is not None:
            self._words[stamp] = (word,)
            return Match({}, ())
        lora = read_lora(path)
        match = match_modules(lora, {name: tuple(weight.shape) for name, weight in self._weights.items()}, self._title)
        self._words[stamp] = bundled_words(lora, self._components)
        return match

    def _apply(self, path: str, recipe: _Recipe) -> bool:
        if self._merged.get(path, ()) == recipe:
            return False
        weight = self._weights[path]
        if not recipe:
            weight.copy_(self._originals.pop(path))
            del self._merged[path]
            return True
        if path not in self._originals:
            self._originals[path] = weight.detach().to("cpu", copy=True)
        parts = [(self._files[stamp].modules[path], strength) for stamp, strength in recipe]
        merge_into(weight, self._originals[path].to(weight.device), parts)
        self._merged[path] = recipe
        return True


def merge_into(weight: Tensor, original: Tensor, parts: Sequence[tuple[AdapterModule, float]]) -> None:
    """Set `weight` to `original + sum of strength * ΔW`, each ΔW that of the original weight alone.

    Low-rank changes are one product over all ranks together. The sum does not depend on the order of the parts, also
    where a change depends on the weight (DoRA at strength w: W + w * (W_dora - W)).

    Args:
        weight: a layer's weight, `(out, in)` or `(out, in, kernel, kernel)`, or a norm's weight or a bias, `(out,)`;
            rounded to its own number format.
        original: of the same shape and number format, on the same device.
        parts: changes and their strengths; the sum is in float32.
    """
    device = weight.device
    factors: list[tuple[Tensor, Tensor]] = []
    others: list[tuple[AdapterModule, float]] = []
    for module, strength in parts:
        pair = module.factors()
        if pair is None:
            others.append((module, strength))
        else:
            factors.append((pair[0].to(device) * strength, pair[1].to(device)))
    start = original
    for module, strength in others:
        start = start.float() + module.delta_weight(original) * strength
    if not factors:
        weight.copy_(start)
        return
    ups, downs = torch.cat([up for up, _ in factors], 1), torch.cat([down for _, down in factors])
    if weight.dtype == torch.float32 and weight.is_contiguous():
        # Straight into place: a temporary of the weight's size costs as much as the product.
        torch.addmm(start.flatten(1), ups, downs, out=weight.view(weight.shape[0], -1))
    else:
        weight.copy_(torch.addmm(start.float().flatten(1), ups, downs).reshape(weight.shape))


def _stamp(path: Path) -> _Stamp:
    try:
        facts = path.stat()
    except OSError as error:
        raise LoraFileError(
            "The LoRA file is not there.", where=str(path), fix="Choose another, or take it out of the stack."
        ) from error
    return str(path.resolve()), facts.st_mtime_ns, facts.st_size
