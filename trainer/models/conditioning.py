"""What a UNet is told besides the noisy latents: the prompt, and for some families the picture's framing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """A batch of encoded prompts.

    Attributes:
        states: hidden states of the text encoders, `(batch, tokens, width)`; or `(batch, layers, tokens, width)` where a learned
            word says something else to each cross-attention layer of the UNet.
        pooled: one vector a prompt, `(batch, width)`; None in families that have none.
        frames: size before the cut, top left corner of the cut, size after it: `(batch, 6)` float32 in pixels, each
            as height before width (SDXL, arXiv 2307.01952, section 2.2). None until `framed` is called.
    """

    states: Tensor
    pooled: Tensor | None = None
    frames: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def has_layers(self) -> bool:
        """Whether each cross-attention layer has states of its own."""
        return self.states.ndim == 4

    def select(self, indices: Sequence[int]) -> Conditioning:
        """The rows of these indices, in this order."""
        rows = list(indices)
        return Conditioning(
            self.states[rows],
            None if self.pooled is None else self.pooled[rows],
            None if self.frames is None else self.frames[rows],
        )

    def cast(self, device: torch.device, dtype: torch.dtype | None = None) -> Conditioning:
        """On another device, texts in another number format; frames stay float32, for 1023 is no number in bf16."""
        return Conditioning(
            self.states.to(device, dtype, non_blocking=True),
            None if self.pooled is None else self.pooled.to(device, dtype, non_blocking=True),
            None if self.frames is None else self.frames.to(device, non_blocking=True),
        )

    def framed(self, frames: Tensor) -> Conditioning:
        """The same prompts for pictures of these `(batch, 6)` frames."""
        return replace(self, frames=frames)

    def without(self, rows: Sequence[bool]) -> Conditioning:
        """Zeros in place of the texts of the marked rows."""
        keep = torch.tensor([not row for row in rows], device=self.states.device)
        return replace(
            self,
            states=self.states * keep.view(-1, *(1 for _ in self.states.shape[1:])),
            pooled=None if self.pooled is None else self.pooled * keep[:, None],
        )

    def tensors(self) -> dict[str, Tensor]:
        """The texts, for a cache."""
        return {"states": self.states} | ({} if self.pooled is None else {"pooled": self.pooled})


def stack_texts(rows: Sequence[Conditioning], blank: Tensor) -> Conditioning:
    """One batch of several single prompts; shorter ones are filled up with the states of the empty prompt.

    Args:
        rows: of batch size 1 each.
        blank: states of the empty prompt, `(1, tokens of a chunk, width)`.
    """
    length = max(row.states.shape[1] for row in rows)
    states = [
        torch.cat([row.states, *([blank] * ((length - row.states.shape[1]) // blank.shape[1]))], 1)
        if row.states.shape[1] < length
        else row.states
        for row in rows
    ]
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return Conditioning(torch.cat(states), torch.cat(pooled) if pooled else None)
