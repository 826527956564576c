"""Several LoRAs on a base model at once, merged into its weights: generation is as fast as without any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from trainer.block_names import block_of, blocks_per_side
from trainer.blocks import parse_blocks
from trainer.config.generate import StackedLora
from trainer.errors import ConfigError, LoraFileError
from trainer.lora_files.file import AdapterModule, read_lora
from trainer.lora_files.matching import Match, changeable_weights, match_modules
from trainer.models.components import Components
from trainer.models.words import LearnedWord
from trainer.sampling.words import bundled_words, embedding_word

_CACHE_BYTES = 2 << 30
"""How much of LoRAs that are not in use is kept in main memory, so that they need not be read again."""

_CACHED_NUMBERS = 1 << 17

_Stamp = tuple[str, int, int]
"""What tells that a file is unchanged: path, modification time in ns, size."""
_Recipe = tuple[tuple[_Stamp, float], ...]
"""What is merged into a layer: files and strengths."""


@dataclass(frozen=True)
class StackEntry:
    """A LoRA file and how strongly it works; 0 is not at all, 1 as trained, negative the other way.

    Attributes:
        blocks: weights of the UNet's blocks, as `trainer.blocks` reads them; its BASE is the text encoders'.
        start, end: the share of the sampling steps in which it works; `trainer.sampling.schedule` sees to it.
    """

    path: Path
    unet_weight: float = 1.0
    text_encoder_weight: float = 1.0
    blocks: str = ""
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def of(cls, lora: StackedLora, path: Path) -> StackEntry:
        """The entry of a stack's settings; `path` is the file that they name."""
        return cls(path, lora.unet_weight, lora.text_encoder_weight, lora.blocks, lora.start, lora.end)


class LoraStack:
    """Merges LoRAs into the weights of a model, and takes them out again exactly. Words that a file has vectors for can be said
    in prompts as long as it is on the stack, embeddings without a LoRA among them.

    The original of each touched weight is kept (in main memory), and every change starts from it in float32: nothing
    drifts, and an empty stack is the base model bit for bit. Only layers whose LoRAs or strengths changed are merged
    again, with one matrix product a layer; files that did not change are not read again.
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._title = components.name
        self._weights = changeable_weights(components.adaptable)
        self._per_side = blocks_per_side(self._weights)
        self._files: dict[_Stamp, Match] = {}
        self._in_use: tuple[_Stamp, ...] = ()
        self._words: dict[_Stamp, tuple[LearnedWord, ...]] = {}
        self._originals: dict[str, Tensor] = {}
        self._merged: dict[str, _Recipe] = {}
        self._sums: dict[str, LayerSum] = {}

    @property
    def unknown(self) -> dict[str, tuple[str, ...]]:
        """For each file in use, by its name, the layers that the base model does not have and that were left out."""
        used = {stamp: self._files[stamp].unknown for stamp in self._in_use}
        return {Path(stamp[0]).stem: unknown for stamp, unknown in used.items() if unknown}

    @property
    def touched(self) -> frozenset[str]:
        """Module paths whose weights differ from the base model's."""
        return frozenset(self._merged)

    def load(self, entries: Sequence[StackEntry]) -> None:
        """Read the files that are not in memory and check that all entries can be used; the weights stay as they are.

        Raises: LoraFileError: a file cannot be read or does not fit. ConfigError: block weights for another model.
        """
        stamps = [_stamp(entry.path) for entry in entries]
        for entry in entries:
            self._table(entry)
        files = {stamp: self._files.get(stamp) or self._read(stamp) for stamp in stamps}
        self._in_use = tuple(files)
        self._files = _bounded(self._files, files)
        self._words = {stamp: self._words[stamp] for stamp in self._files}

    def strengths(self, entry: StackEntry) -> dict[str, tuple[AdapterModule, float]]:
        """The modules of an entry that has been loaded, by layer, with the strength of each; those of strength 0 are left out."""
        table = self._table(entry)
        found: dict[str, tuple[AdapterModule, float]] = {}
        for path, module in self._files[_stamp(entry.path)].modules.items():
            weight = entry.unet_weight if path.startswith("unet.") else entry.text_encoder_weight
            if strength := weight * table[block_of(path)]:
                found[path] = (module, strength)
        return found

    def has_words(self, entry: StackEntry) -> bool:
        """Whether an entry that has been loaded brings words of its own."""
        return bool(self._words.get(_stamp(entry.path)))

    def set(self, entries: Sequence[StackEntry], saying: Sequence[StackEntry] | None = None) -> int:
        """Make exactly these LoRAs effective. Returns how many layers were written.

        Args:
            entries: what is merged.
            saying: the entries whose words are known, where not all that work are merged; by default those that are.

        Raises: LoraFileError, ConfigError: as `load`; the weights are as before.
        """
        self.load(entries)
        wanted: dict[str, list[tuple[_Stamp, float]]] = {}
        works = [entry for entry in saying or entries if entry.unet_weight or entry.text_encoder_weight]
        used = dict.fromkeys(_stamp(entry.path) for entry in works)
        for entry in entries:
            stamp = _stamp(entry.path)
            for path, (_, strength) in self.strengths(entry).items():
                wanted.setdefault(path, []).append((stamp, strength))
        self._components.words.set("stack", [word for stamp in used for word in self._words[stamp]])
        with torch.no_grad():
            changed = sum(
                self._apply(path, tuple(wanted.get(path, ()))) for path in self._merged.keys() | wanted.keys()
            )
        if not entries:
            self._originals.clear()
        return changed

    def clear(self) -> None:
        """Take every LoRA out."""
        self.set([])

    def forget(self) -> None:
        """Drop the files that are kept in memory and not in use."""
        self._files = {stamp: self._files[stamp] for stamp in self._in_use}
        self._words = {stamp: self._words[stamp] for stamp in self._in_use}

    def _read(self, stamp: _Stamp) -> Match:
        path = Path(stamp[0])
        word = embedding_word(path, self._components)
        if word is not None:
            self._words[stamp] = (word,)
            return Match({}, ())
        lora = read_lora(path)
        match = match_modules(lora, self._shapes, self._title)
        self._words[stamp] = bundled_words(lora, self._components)
        return match

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self._weights.items()}

    def _table(self, entry: StackEntry) -> dict[str, float]:
        try:
            return dict(parse_blocks(entry.blocks).table(self._per_side))
        except ValueError as error:
            raise ConfigError(
                f"The block weights of the LoRA '{entry.path.stem}' cannot be used with '{self._title}': {error}.",
                where="blocks",
                fix="Change them, or leave them empty for all blocks alike.",
            ) from error

    def _apply(self, path: str, recipe: _Recipe) -> bool:
        if self._merged.get(path, ()) == recipe:
            return False
        weight = self._weights[path]
        if not recipe:
            # Kept until the stack is empty: another LoRA will want it, and fresh memory is slow.
            weight.copy_(self._originals[path])
            del self._merged[path], self._sums[path]
            return True
        if path not in self._originals:
            self._originals[path] = weight.detach().to("cpu", copy=True)
        stamps = tuple(stamp for stamp, _ in recipe)
        layer = self._sums.get(path)
        if layer is None or layer.key != stamps:
            modules = [self._files[stamp].modules[path] for stamp in stamps]
            layer = self._sums[path] = LayerSum(modules, weight.device, stamps)
        layer.merge(weight, self._originals[path].to(weight.device), [s for _, s in recipe])
        self._merged[path] = recipe
        return True


class LayerSum:
    """What several LoRAs add to one layer, ready to be weighted: the factors of all low-rank ones side by side.

    Args:
        modules: the changes of the layer.
        device: where the layer is.
        key: what the caller knows it by.
    """

    def __init__(self, modules: Sequence[AdapterModule], device: torch.device, key: object = None) -> None:
        self.key = key
        pairs = [module.factors() for module in modules]
        self._others = [(index, module) for index, module in enumerate(modules) if pairs[index] is None]
        self._ranks = [0 if pair is None else pair[0].shape[1] for pair in pairs]
        found = [pair for pair in pairs if pair is not None]
        self._up = torch.cat([up.to(device) for up, _ in found], 1) if found else None
        self._down = torch.cat([down.to(device) for _, down in found]) if found else None

    def merge(self, weight: Tensor, original: Tensor, strengths: Sequence[float]) -> None:
        """Set `weight` to `original + Σ strength * ΔW`, each ΔW that of the original weight alone.

        Low-rank changes are one product over all ranks together. The sum does not depend on the order of the parts,
        also where a change depends on the weight (DoRA at strength w: W + w * (W_dora - W)).

        Args:
            weight: a layer's weight, `(out, in)` or `(out, in, kernel, kernel)`, or a norm's weight or a bias,
                `(out,)`; rounded to its own number format once, at the end.
            original: of the same shape and number format, on the same device.
            strengths: one for each module.
        """
        start = original
        for index, module in self._others:
            start = start.float() + module.delta_weight(original) * strengths[index]
        if self._up is None or self._down is None:
            weight.copy_(start)
            return
        scales = [s for s, rank in zip(strengths, self._ranks, strict=True) for _ in range(rank)]
        # One strength for all, as with a single LoRA, is a factor of the product itself.
        is_one = len(set(scales)) == 1
        alpha = scales[0] if is_one else 1.0
        up = self._up if is_one else self._up * torch.tensor(scales, device=self._up.device)
        if not weight.is_contiguous():
            weight.copy_(torch.addmm(start.float().flatten(1), up, self._down, alpha=alpha).reshape(weight.shape))
            return
        rows, columns = up.shape[0], self._down.shape[1]
        # In pieces that stay in the processor's cache: up to a third faster.
        step = max(1, _CACHED_NUMBERS // columns) if weight.device.type == "cpu" else rows
        pieces = zip(
            weight.view(rows, columns).split(step),
            start.reshape(rows, columns).split(step),
            up.split(step),
            strict=True,
        )
        if weight.dtype == torch.float32:
            for new, old, factor in pieces:
                torch.addmm(old, factor, self._down, alpha=alpha, out=new)
            return
        # One buffer for all: memory that is fresh for each piece costs a quarter of the time.
        buffer = torch.empty((min(step, rows), columns), device=weight.device)
        for new, old, factor in pieces:
            total = buffer[: len(old)].copy_(old)
            new.copy_(total.addmm_(factor, self._down, alpha=alpha))


def _bounded(known: dict[_Stamp, Match], used: dict[_Stamp, Match]) -> dict[_Stamp, Match]:
    """What stays in memory, the last used last: all in use, and of the others the latest within the bound."""
    kept: list[tuple[_Stamp, Match]] = []
    room = _CACHE_BYTES
    for stamp, match in reversed(known.items()):
        if stamp in used or any(stamp[0] == other[0] for other in used):
            continue
        room -= _num_bytes(match.modules.values())
        if room >= 0:
            kept.append((stamp, match))
    return dict(reversed(kept)) | used


def _num_bytes(modules: Iterable[AdapterModule]) -> int:
    return sum(tensor.numel() * tensor.element_size() for module in modules for tensor in module.tensors().values())


def _stamp(path: Path) -> _Stamp:
    try:
        facts = path.stat()
    except OSError as error:
        raise LoraFileError(
            "The LoRA file is not there.", where=str(path), fix="Choose another, or take it out of the stack."
        ) from error
    return str(path.resolve()), facts.st_mtime_ns, facts.st_size
