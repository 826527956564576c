"""Captions as the UNet is told them: encoded once where no text encoder is trained, else in each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from trainer.data.latents import Progress
from trainer.data.tensor_store import TensorStore, content_key
from trainer.models.components import Components
from trainer.models.conditioning import Conditioning, stack_texts
from trainer.models.devices import dtype_name
from trainer.models.family import no_grad_encode
from trainer.models.text import PromptOptions

_VERSION = 2


class LiveTexts:
    """Encodes in each call; for a text encoder that is trained, or captions that differ each time."""

    needs_encoder = True

    def __init__(self, components: Components, options: PromptOptions) -> None:
        self._components = components
        self._options = options

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """The captions on the device, with the graph where gradients are on."""
        return self._components.family.encode_prompts(self._components, captions, self._options)


class CachedTexts:
    """Looks captions up that were encoded before, on the disk and in memory.

    Args:
        store: where they are kept between runs.
        components: the text encoders, only used in `prepare`.
        fingerprint: names the text encoders' and tokenizers' files in the keys.
        options: how captions are read.
    """

    needs_encoder = False

    def __init__(self, store: TensorStore, components: Components, fingerprint: str, options: PromptOptions) -> None:
        self._store = store
        self._components = components
        self._options = options
        self._encoder = {"fingerprint": fingerprint, "precision": dtype_name(components.text_encoder.dtype)}
        self._texts: dict[str, Conditioning] = {}
        self._blank: Tensor | None = None

    def prepare(self, captions: Iterable[str], progress: Progress) -> None:
        """Encode what is missing."""
        wanted = sorted({"", *captions})
        for done, caption in enumerate(wanted):
            progress(done, len(wanted))
            self._texts[caption] = self._find(caption)
        self._blank = self._texts[""].states

    def _find(self, caption: str) -> Conditioning:
        key = content_key(
            version=_VERSION,
            caption=caption,
            clip_skip=self._options.clip_skip,
            max_chunks=self._options.max_chunks,
            encoder=self._encoder,
        )
        found = self._store.get(key)
        if found is None or "states" not in found:
            text = no_grad_encode(self._components.family, self._components, [caption], self._options)
            found = {name: tensor.cpu() for name, tensor in text.tensors().items()}
            self._store.put(key, found)
        return Conditioning(**found)

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """The captions on the device. Raises KeyError for one that was not prepared."""
        rows = [self._texts[caption] for caption in captions]
        if self._blank is None:
            raise RuntimeError("no captions were prepared")
        return stack_texts(rows, self._blank).cast(self._components.device)


Texts = LiveTexts | CachedTexts
