"""Captions as hidden states of the text encoder: computed once where it is not trained, else in each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trainer.data.latents import Progress
from trainer.data.tensor_store import TensorStore, content_key
from trainer.models.components import Components
from trainer.models.devices import dtype_name
from trainer.models.family import no_grad_encode

_VERSION = 1


class LiveTexts:
    """Encodes in each call; for a text encoder that is trained, or captions that differ each time."""

    needs_encoder = True

    def __init__(self, components: Components, clip_skip: int) -> None:
        self._components = components
        self._clip_skip = clip_skip

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Hidden states `(batch, tokens, width)` on the device, with the graph where gradients are on."""
        return self._components.family.encode_prompts(self._components, captions, self._clip_skip)


class CachedTexts:
    """Looks captions up that were encoded before, on the disk and in memory.

    Args:
        store: where they are kept between runs.
        components: the text encoder, only used in `prepare`.
        fingerprint: names the text encoder's and tokenizer's files in the keys.
        clip_skip: as in `Family.encode_prompts`.
    """

    needs_encoder = False

    def __init__(self, store: TensorStore, components: Components, fingerprint: str, clip_skip: int) -> None:
        self._store = store
        self._components = components
        self._clip_skip = clip_skip
        self._encoder = {"fingerprint": fingerprint, "precision": dtype_name(components.text_encoder.dtype)}
        self._states: dict[str, Tensor] = {}

    def prepare(self, captions: Iterable[str], progress: Progress) -> None:
        """Encode what is missing."""
        wanted = sorted(set(captions))
        for done, caption in enumerate(wanted):
            progress(done, len(wanted))
            key = content_key(version=_VERSION, caption=caption, clip_skip=self._clip_skip, encoder=self._encoder)
            found = (self._store.get(key) or {}).get("states")
            if found is None:
                found = no_grad_encode(self._components.family, self._components, [caption], self._clip_skip)[0].cpu()
                self._store.put(key, {"states": found})
            self._states[caption] = found

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Hidden states `(batch, tokens, width)` on the device. Raises KeyError for a caption that was not prepared."""
        states = torch.stack([self._states[caption] for caption in captions])
        return states.to(self._components.device, non_blocking=True)


Texts = LiveTexts | CachedTexts
