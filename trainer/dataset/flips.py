"""Whether pictures may be shown mirrored (`data.horizontal_flip`): what in a set speaks against it, and what cannot be told."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.dataset.scan import PictureFacts
from trainer.errors import DatasetError

SAMPLE = 300
"""Pictures that are looked at, at most, spread over the set."""
FLIP_VIEW_SIDE = 256
"""px: the longer side of the views that are looked at."""
_SIDE = 32
_NUM_DRAWS = 400
_LEAST_PICTURES = 8
_STRONG = 0.01
_ALIKE = 0.97
_SIDED_WORDS = re.compile(r"\b(left|right|leftward|rightward|left-handed|right-handed)\b", re.IGNORECASE)
_TEXT_WORDS = re.compile(
    r"\b(text|words?|letters?|lettering|logo|signature|watermark|speech bubble|numbers?|sign|caption|english text)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FlipAdvice:
    """What was seen.

    Attributes:
        num_pictures: that were looked at.
        num_sided: captions that name a left or right side.
        num_text: captions that name text, letters or logos.
        num_mirrored: pictures of which the set has a mirrored copy already.
        chance: how often sides thrown at random differ as much as those of the set; small where its left and right
            sides differ in the same way in most pictures. None where there are too few pictures to tell.
        sentence: the advice.
    """

    num_pictures: int
    num_sided: int
    num_text: int
    num_mirrored: int
    chance: float | None
    sentence: str


def advise_flips(pictures: Sequence[PictureFacts], view: Callable[[PictureFacts], Path], seed: int = 0) -> FlipAdvice:
    """Look at captions, and at small views of at most `SAMPLE` pictures, which `view` finds. Pictures that cannot be read are passed over."""
    step = max(1, -(-len(pictures) // SAMPLE))
    views = [found for facts in pictures[::step] if (found := _small(facts, view)) is not None]
    captions = [facts.caption or "" for facts in pictures]
    sided = sum(bool(_SIDED_WORDS.search(caption)) for caption in captions)
    text = sum(bool(_TEXT_WORDS.search(caption)) for caption in captions)
    stack = np.stack(views) if views else np.zeros((0, _SIDE, _SIDE))
    mirrored = _num_mirrored(stack)
    chance = same_side_chance(stack, seed) if len(stack) >= _LEAST_PICTURES else None
    sentence = _sentence(len(stack), sided, text, mirrored, chance)
    return FlipAdvice(len(stack), sided, text, mirrored, chance, sentence)


def _small(facts: PictureFacts, view: Callable[[PictureFacts], Path]) -> NDArray[np.float64] | None:
    """A picture as `_SIDE` x `_SIDE` grey values with mean 0 and deviation 1."""
    try:
        with Image.open(view(facts)) as image:
            grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    except (DatasetError, OSError):
        return None
    deviation = grey.std()
    return (grey - grey.mean()) / deviation if deviation > 0 else np.zeros_like(grey)


def same_side_chance(views: NDArray[np.float64], seed: int = 0) -> float:
    """A sign-flip test of whether the pictures' left and right sides differ in one and the same way.

    If sides were accidental, mirroring any of the pictures would change nothing of the whole. So the length of the mean
    difference between picture and mirror image is compared with that of sets of which each picture is mirrored or not by chance.

    Args:
        views: `(n, side, side)`, standardised.
        seed: of the draws.

    Returns: the share of draws that reach the set's own length, at least 1 / (draws + 1).
    """
    odd = (views - views[:, :, ::-1]).reshape(len(views), -1)
    gram = odd @ odd.T
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(_NUM_DRAWS, len(views)))
    drawn = np.einsum("di,ij,dj->d", signs, gram, signs, optimize=True)
    own = gram.sum()
    return float((1 + (drawn >= own * (1 - 1e-9)).sum()) / (1 + _NUM_DRAWS))


def _num_mirrored(views: NDArray[np.float64]) -> int:
    """Pictures whose mirror image is much like another picture of the set, and more so than the picture itself is."""
    if len(views) < 2:
        return 0
    flat = views.reshape(len(views), -1) / _SIDE
    mirror = views[:, :, ::-1].reshape(len(views), -1) / _SIDE
    alike = mirror @ flat.T
    np.fill_diagonal(alike, -1)
    return int(((alike >= _ALIKE) & (alike > flat @ flat.T)).any(1).sum())


def _sentence(number: int, sided: int, text: int, mirrored: int, chance: float | None) -> str:
    against = []
    if sided:
        against.append(f"{_captions(sided)} a left or right side, which would be wrong in the mirror")
    if text:
        against.append(f"{_captions(text)} text or signs, which would be learned in mirror writing too")
    if chance is not None and chance <= _STRONG:
        against.append(
            "in most pictures left and right differ in the same way (light from one side, a parting, a badge, a pose), which mirroring would "
            "teach away"
        )
    if against:
        return f"Leave mirroring off: {'; '.join(against)}."
    if mirrored:
        return f"Mirroring would add little: {mirrored} of {number} pictures are there as a mirror image already."
    if chance is None:
        return f"{number} pictures are too few to tell. Mirror only what has no left and right of its own: no text, parting, scar or badge."
    return (
        "Nothing speaks against mirroring: no caption names sides or text, and left and right differ by chance only. What only shows "
        "from near (a scar, a badge, a parting) cannot be told from here; of a character with such a mark, leave it off."
    )


def _captions(number: int) -> str:
    return "1 caption names" if number == 1 else f"{number} captions name"
