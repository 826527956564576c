"""Weights in fewer bits: how they are packed, and what comes out again. Pure tensor functions.

`nf4` is QLoRA's (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314, section 3): 4-bit NormalFloat in blocks of 64 with
double quantisation of the blocks' constants in blocks of 256. It gives the bytes that bitsandbytes gives, so that its
kernels can read them; `int8` and `fp8` keep a scale for each output channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

Packed = Mapping[str, Tensor]

BLOCK = 64
"""Weights that share a constant."""
CONSTANTS_BLOCK = 256
"""Constants that share one of their own."""
_FP8 = torch.float8_e4m3fn
# Quantiles of the normal distribution, with an exact zero, scaled to [-1, 1]: appendix E of the paper.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """A way to keep a weight.

    Attributes:
        pack: a weight of any float format to the tensors that are kept, on the weight's device.
        unpack: those tensors, the weight's shape and a number format to the weight.
    """

    pack: Callable[[Tensor], dict[str, Tensor]]
    unpack: Callable[[Packed, Sequence[int], torch.dtype], Tensor]


def _pack_plain(weight: Tensor) -> dict[str, Tensor]:
    return {"packed": weight.detach()}


def _unpack_plain(packed: Packed, _shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return packed["packed"].to(dtype)


def pack_nf4(weight: Tensor) -> dict[str, Tensor]:
    """NF4 with double quantisation.

    Returns: `packed`, uint8, two weights a byte, the first in its upper half; `constants`, uint8, the largest absolute
        value of each block of 64, less `offset` (their mean, float32), as a code of `dynamic_code` times the
        `constants_scale` (float32) of its block of 256.
    """
    scaled, constants = _to_blocks(weight.float().flatten(), BLOCK)
    table = torch.tensor(_NF4, device=weight.device)
    codes = torch.bucketize(scaled.flatten(), _middles(table), out_int32=True).to(torch.uint8)
    # Filled up to whole blocks; what stands for no weight is dropped here and in unpacking.
    codes = codes[: -(-weight.numel() // 2) * 2]
    offset = constants.mean()
    scaled_constants, scale = _to_blocks(constants - offset, CONSTANTS_BLOCK)
    code = dynamic_code(weight.device)
    constant_codes = torch.bucketize(scaled_constants.flatten(), _middles(code), out_int32=True).to(torch.uint8)
    return {
        "packed": (codes[::2] << 4) | codes[1::2],
        "constants": constant_codes[: len(constants)].clone(),
        "constants_scale": scale,
        "offset": offset,
    }


def unpack_nf4(packed: Packed, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weight; on CUDA by bitsandbytes' kernel where it is installed, which gives the same numbers."""
    if packed["packed"].device.type == "cuda" and has_bitsandbytes():
        return unpack_nf4_bitsandbytes(packed, shape, dtype)
    return unpack_nf4_portable(packed, shape, dtype)


def unpack_nf4_portable(packed: Packed, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weight, by torch alone, on any device."""
    count = prod(shape)
    # One look-up a byte: its two weights side by side, as the 64 bits of one number (seven times as fast as rows of two).
    pairs = _pairs(packed["packed"].device).index_select(0, packed["packed"].int())
    values = pairs.view(torch.float32)
    values = (functional.pad(values, (0, -len(values) % BLOCK)) if len(values) % BLOCK else values).view(-1, BLOCK)
    return values.mul_(_nf4_constants(packed)[:, None]).flatten()[:count].view(*shape).to(dtype)


def unpack_nf4_bitsandbytes(packed: Packed, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weight, by the kernel of bitsandbytes. Raises ImportError without it."""
    import bitsandbytes  # noqa: F401 # type: ignore[import-not-found] - registers the operator; an optional part

    matrix = (shape[0], prod(shape[1:]))
    operator = torch.ops.bitsandbytes.dequantize_4bit.default
    return operator(packed["packed"][:, None], _nf4_constants(packed), BLOCK, "nf4", matrix, dtype).view(*shape)


def _nf4_constants(packed: Packed) -> Tensor:
    codes = packed["constants"]
    values = dynamic_code(codes.device).index_select(0, codes.int())
    count = len(values)
    values = functional.pad(values, (0, -count % CONSTANTS_BLOCK)).view(-1, CONSTANTS_BLOCK)
    return (values * packed["constants_scale"][:, None]).flatten()[:count] + packed["offset"]


def _to_blocks(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Values in [-1, 1], `(blocks, size)`, filled up with zeros, and what each block was divided by."""
    blocks = functional.pad(values, (0, -len(values) % size)).view(-1, size)
    largest = blocks.abs().amax(dim=1)
    return (blocks * (1.0 / largest.clamp(min=1e-38))[:, None]).clamp(-1, 1), largest


def _middles(code: Tensor) -> Tensor:
    return (code[:-1] + code[1:]) / 2


@cache
def dynamic_code(device: torch.device) -> Tensor:
    """The 256 values of dynamic tree quantisation, float32, ascending (https://arxiv.org/abs/2110.02861, section 1.3).

    The leading zero bits of a byte are a decimal exponent of 0 to -6, the rest is a linear fraction: the more zeros, the
    fewer bits for it.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, dtype=torch.float32)
        means = (edges[:-1] + edges[1:]) / 2
        values += (10.0 ** (exponent - 6) * means).tolist() + (-(10.0 ** (exponent - 6)) * means).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@cache
def _pairs(device: torch.device) -> Tensor:
    """For each byte the two weights in it, float32, seen as one int64: `(256,)`."""
    table, byte = torch.tensor(_NF4), torch.arange(256)
    return torch.stack([table[byte >> 4], table[byte & 15]], dim=1).view(torch.int64).flatten().to(device)


def pack_int8(weight: Tensor) -> dict[str, Tensor]:
    """Whole numbers from -127 to 127, int8, and for each output channel what 1 stands for, float32."""
    rows = weight.float().flatten(1)
    scales = rows.abs().amax(dim=1).clamp(min=1e-38) / 127
    return {"packed": (rows / scales[:, None]).round().clamp(-127, 127).to(torch.int8), "scales": scales}


def unpack_int8(packed: Packed, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weight."""
    return packed["packed"].float().mul_(packed["scales"][:, None]).to(dtype).view(*shape)


def pack_fp8(weight: Tensor) -> dict[str, Tensor]:
    """float8_e4m3fn as bytes, and for each output channel what 1 stands for, float32: its largest is the format's."""
    rows = weight.float().flatten(1)
    scales = rows.abs().amax(dim=1).clamp(min=1e-38) / torch.finfo(_FP8).max
    # As bytes, for not every device has the format; and modules move what has it between number formats.
    return {"packed": (rows / scales[:, None]).to(_FP8).view(torch.uint8), "scales": scales}


def unpack_fp8(packed: Packed, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The weight."""
    codes = packed["packed"]
    # By a table where the device lacks the format, or converts it by code: a sixth of the time on a processor.
    values = codes.view(_FP8).float() if codes.device.type == "cuda" else _look_up_fp8(codes)
    return values.mul_(packed["scales"][:, None]).to(dtype).view(*shape)


def _look_up_fp8(codes: Tensor) -> Tensor:
    return _fp8_values(codes.device).index_select(0, codes.flatten().int()).view(codes.shape)


@cache
def _fp8_values(device: torch.device) -> Tensor:
    """What each byte is in float8_e4m3fn, float32."""
    return torch.arange(256, dtype=torch.uint8).view(_FP8).float().to(device)


@cache
def has_bitsandbytes() -> bool:
    """Whether the optional part `quant` is installed."""
    return find_spec("bitsandbytes") is not None


PACKINGS = {
    "none": Packing(_pack_plain, _unpack_plain),
    "nf4": Packing(pack_nf4, unpack_nf4),
    "int8": Packing(pack_int8, unpack_int8),
    "fp8": Packing(pack_fp8, unpack_fp8),
}
"""By the words of `model.quantization`."""
