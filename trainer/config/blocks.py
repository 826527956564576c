"""Ranks, alphas and learning rates of single blocks: their notation, the names of blocks, and what a layer comes to; without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

from trainer.block_names import LISTS, block_of, common_name

if TYPE_CHECKING:
    from trainer.config.adapter import AdapterConfig, PartLora

_PARTS = ("unet", "text_encoder", "text_encoder_2")
_NUMBERS = ("rank", "alpha", "rate")
_EXAMPLE = "write for example: down_blocks.2: rank=4 alpha=2 rate=0.5"
MAX_RANK = 512


@dataclass(frozen=True)
class BlockRule:
    """A line of `adapter.blocks`: a name, and what it sets; None leaves the part's own."""

    name: str
    rank: int | None = None
    alpha: float | None = None
    rate: float | None = None


@dataclass(frozen=True)
class LayerChoice:
    """What a layer is trained with: rank (0: not at all), alpha, and the factor of its part's learning rate."""

    rank: int
    alpha: float
    rate: float = 1.0


@lru_cache(maxsize=4096)
def parse_rule(line: str) -> BlockRule:
    """A line such as "down_blocks.2: rank=4 alpha=2 rate=0.5". Raises ValueError that says what is wrong with it."""
    name, colon, text = line.partition(":")
    name, words = name.strip(), text.replace(",", " ").split()
    if not colon or not name or not words:
        raise ValueError(f"'{line}' is no block and its numbers: {_EXAMPLE}")
    values: dict[str, float] = {}
    for word in words:
        key, _, number = word.partition("=")
        if key not in _NUMBERS:
            raise ValueError(f"'{key}' in '{line}' is none of {', '.join(_NUMBERS)}: {_EXAMPLE}")
        if key in values:
            raise ValueError(f"'{key}' stands twice in '{line}'")
        values[key] = _number(number, word, line)
    rank, alpha, rate = (values.get(key) for key in _NUMBERS)
    if rank is not None and (rank != int(rank) or not 0 <= rank <= MAX_RANK):
        raise ValueError(f"the rank in '{line}' is a whole number from 0 to {MAX_RANK}")
    if alpha is not None and not 0 < alpha <= 4096:
        raise ValueError(f"the alpha in '{line}' is above 0 and up to 4096")
    if rate is not None and not 0 <= rate <= 100:
        raise ValueError(f"the rate in '{line}' is a factor of the learning rate from 0 to 100")
    return BlockRule(name, None if rank is None else int(rank), alpha, rate)


@lru_cache(maxsize=16)
def parse_rates(text: str) -> tuple[float, ...]:
    """Factors of the learning rate, a comma between them; empty for none. Raises ValueError."""
    if not text.strip():
        return ()
    rates = tuple(_number(word, word, text) for word in text.split(","))
    if len(rates) not in LISTS:
        counts = ", ".join(str(count) for count in LISTS)
        raise ValueError(f"there are {len(rates)} numbers; lists of block weights have {counts}")
    if not all(0 <= rate <= 100 for rate in rates):
        raise ValueError("each number is a factor of the learning rate from 0 to 100")
    return rates


def _number(text: str, word: str, line: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"'{word.strip()}' in '{line}' is not a number")
    return value


@lru_cache(maxsize=1 << 18)
def is_in_block(name: str, path: str) -> bool:
    """Whether a layer is in a block: its module path or the beginning of one, with * and ?, or kohya's name of it.

    Args:
        name: "mid_block", "unet.up_blocks.1", "text_encoder.encoder.layers.3", "*.attn2", "IN04"; without a part the UNet's.
        path: with its part.
    """
    if re.fullmatch(r"(IN|OUT)\d\d|MID|BASE", common_name(name)):
        return block_of(path) == common_name(name)
    has_part = name.partition(".")[0] in _PARTS
    pattern = name if has_part else f"unet.{name}"
    return fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")


def blocks_of(paths: Iterable[str]) -> list[str]:
    """Names of the blocks that layers lie in, for people: "down_blocks.0", "mid_block", "text_encoder.encoder.layers.1"."""
    names: dict[str, None] = {}
    for path in paths:
        part, _, rest = path.partition(".")
        found = re.match(r"((?:down|up)_blocks\.\d+|mid_block|.*?layers\.\d+)", rest)
        name = found[1] if found else rest
        names[name if part == "unet" else f"{part}.{name}"] = None
    return list(names)


def part_lora(config: AdapterConfig, part: str) -> PartLora:
    """What a part of the model is trained with where nothing is said of the layer."""
    return (
        config.unet
        if part == "unet"
        else config.second_text_encoder
        if part == "text_encoder_2"
        else config.text_encoder
    )


def choose_layer(config: AdapterConfig, path: str, shape: Sequence[int]) -> LayerChoice:
    """What a layer of the chosen set is trained with: its part's numbers, those of convolutions, then the blocks' in order.

    Args:
        config: the settings, valid.
        path: with its part.
        shape: of its weight, `(out, in)` or `(out, in, kernel, kernel)`.

    Where only the rank is given, alpha follows in proportion: the scale alpha / rank stays. A rate of 0 is a rank of 0, as
    in kohya's trainer.
    """
    part = part_lora(config, path.partition(".")[0])
    rank, alpha = part.rank, part.alpha
    if path.startswith("unet.") and is_spatial(shape):
        rank, alpha = _changed(rank, alpha, config.unet.conv_rank, config.unet.conv_alpha or None)
    for line in config.blocks:
        rule = parse_rule(line)
        if is_in_block(rule.name, path):
            rank, alpha = _changed(rank, alpha, rule.rank, rule.alpha, part)
    rate = layer_rate(config, path)
    return LayerChoice(rank if rate else 0, alpha, rate)


def is_spatial(shape: Sequence[int]) -> bool:
    """Whether a weight is a convolution's with more than one pixel: what kohya's conv_dim is about."""
    return len(shape) == 4 and tuple(shape[2:]) != (1, 1)


def _changed(
    rank: int, alpha: float, new_rank: int | None, new_alpha: float | None, part: PartLora | None = None
) -> tuple[int, float]:
    if new_rank is None or new_rank < 0:
        return rank, new_alpha or alpha
    if new_alpha is None:
        # After a rank of 0 the scale is the part's own again.
        base_rank, base_alpha = (rank, alpha) if rank or part is None else (part.rank, part.alpha)
        new_alpha = base_alpha * new_rank / base_rank if new_rank and base_rank else alpha
    return new_rank, new_alpha


def layer_rate(config: AdapterConfig, path: str) -> float:
    """The factor of a layer's learning rate: that of the list of block rates, unless a line names another."""
    rate, rates = 1.0, parse_rates(config.block_rates)
    if rates:
        rate = dict(zip(LISTS[len(rates)].names, rates, strict=True)).get(block_of(path), 1.0)
    for line in config.blocks:
        rule = parse_rule(line)
        if rule.rate is not None and is_in_block(rule.name, path):
            rate = rule.rate
    return rate
