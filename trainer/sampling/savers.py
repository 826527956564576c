"""What makes pictures fit into less memory, one after the other, when there was not enough."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from trainer.models.components import Components


class MemorySavers:
    """Savers of a generation, in the order of what they cost. They change no picture but by rounding, tiles by a little.

    Args:
        components: the model.
        can_move_text: whether the text encoders may leave the device: not where LoRAs change them during the steps.
    """

    def __init__(self, components: Components, *, can_move_text: bool) -> None:
        self._components, self._can_move_text = components, can_move_text
        self._left: list[tuple[str, Callable[[], Callable[[], None]]]] = [
            ("the VAE works in tiles", self._tile),
            ("attention is computed in slices", self._slice),
        ]
        if components.device.type != "cpu":
            self._left.insert(0, ("what is not in use waits in the computer's memory", self._move_away))
        self._undo: list[Callable[[], None]] = []

    def take_next(self) -> str | None:
        """Take the next saver and free what is cached. Returns what it does in words; None where there is no more."""
        if not self._left:
            return None
        words, take = self._left.pop(0)
        self._undo.append(take())
        free_memory(self._components.device)
        return words

    def undo(self) -> None:
        """Make the model work as before."""
        while self._undo:
            self._undo.pop()()

    def _move_away(self) -> Callable[[], None]:
        components = self._components
        names = ["vae", *(components.text_encoders if self._can_move_text else ())]
        moved = [name for name in names if next(getattr(components, name).parameters()).device == components.device]
        components.move_away(*moved)

        def back() -> None:
            for name in moved:
                getattr(components, name).to(components.device)

        return back

    def _tile(self) -> Callable[[], None]:
        vae: Any = self._components.vae
        was = vae.use_tiling
        vae.enable_tiling()
        return lambda: setattr(vae, "use_tiling", was)

    def _slice(self) -> Callable[[], None]:
        unet: Any = self._components.unet
        before = dict(unet.attn_processors)
        unet.set_attention_slice("max")
        return lambda: unet.set_attn_processor(dict(before))


def free_memory(device: torch.device) -> None:
    """Give back what nothing uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
