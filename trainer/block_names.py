"""The blocks of a UNet by the names and numbers of the original code, which block weights and block rates share.

BASE (text encoders, and what stands outside of the blocks), IN00…, MID, OUT00…: SD 1 and 2 have 12 on each side, SDXL 9. Each
level has two blocks and a downsampler on the way in, three blocks on the way out; IN00 is conv_in. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

BASE, MID = "BASE", "MID"
PER_LEVEL = 3
_PATH = re.compile(
    r"unet\.(?:(?P<side>down|up)_blocks\.(?P<level>\d+)|(?P<mid>mid_block))\.(?P<kind>\w+?)\.(?P<index>\d+)"
)


@dataclass(frozen=True)
class BlockList:
    """What the numbers of a list are about, as kohya and the web UI write them: the first is BASE's.

    Attributes:
        per_side: the blocks on each side of the models that it is for.
        inputs, outputs: of those the ones that the list has: all, or those with attention.
    """

    per_side: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The block of each number."""
        return BASE, *side("IN", self.inputs), MID, *side("OUT", self.outputs)


LISTS = {
    12: BlockList(9, (4, 5, 7, 8), tuple(range(6))),
    17: BlockList(12, (1, 2, 4, 5, 7, 8), tuple(range(3, 12))),
    20: BlockList(9, tuple(range(9)), tuple(range(9))),
    26: BlockList(12, tuple(range(12)), tuple(range(12))),
}
"""Lists of numbers for blocks, by their length."""
LISTS_OF = {"sd1": (17, 26), "sd2": (17, 26), "sdxl": (12, 20)}
"""Which of the lists are for which family."""


def side(way: str, numbers: Iterable[int]) -> list[str]:
    """Names of blocks of a side, "IN" or "OUT"."""
    return [f"{way}{number:02d}" for number in numbers]


def common_name(name: str) -> str:
    """A block's name as it is used here: in capitals, and MID where some write M00."""
    upper = name.upper()
    return MID if upper == "M00" else upper


def blocks_per_side(paths: Iterable[str]) -> int:
    """How many blocks a model has on each side, from the paths of its layers: 12 in SD 1 and 2, 9 in SDXL."""
    levels = [int(found["level"]) for path in paths if (found := _PATH.match(path)) and found["level"]]
    return PER_LEVEL * (max(levels, default=0) + 1)


@lru_cache(maxsize=65536)
def block_of(path: str) -> str:
    """The block of a layer: "IN05", "MID", "OUT11"; "BASE" for text encoders and what stands outside of blocks.

    Args:
        path: with its part: "unet.down_blocks.1.attentions.0.proj_in".
    """
    if path.startswith("unet.conv_in"):
        return "IN00"
    found = _PATH.match(path)
    if found is None:
        return BASE
    if found["mid"]:
        return MID
    start = int(found["level"]) * PER_LEVEL
    sampler = found["kind"] in ("downsamplers", "upsamplers")
    index = start + (PER_LEVEL - 1 if sampler else int(found["index"]))
    return f"IN{index + 1:02d}" if found["side"] == "down" else f"OUT{index:02d}"
