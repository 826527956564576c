"""Weights in fewer bits: against bitsandbytes' bytes, against the papers' formulas, and in layers."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from trainer.models import packing
from trainer.models.frozen import freeze
from trainer.models.packing import PACKINGS, pack_fp8, pack_int8, pack_nf4, unpack_fp8, unpack_int8, unpack_nf4_portable

SHAPES = [(128, 64), (7, 9), (33, 65), (8, 5, 3, 3), (1, 1)]


def exact_weight() -> Tensor:
    """Numbers that come out alike on every machine; not a multiple of 64 of them."""
    count = torch.arange(96 * 70)
    return ((count * 7919 % 2003 - 1001) / 1001 * 0.03 * (1 + count % 11)).view(96, 70)


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]


def random_weight(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.05


def test_nf4_is_what_bitsandbytes_makes() -> None:
    """Digests of the output of `quantize_4bit` and `dequantize_4bit` of bitsandbytes 0.50.2 on a CPU."""
    packed = pack_nf4(exact_weight())
    assert digest(packed["packed"]) == "cff744f47c841fef"
    assert digest(packed["constants"]) == "b63e4b45205ffcc6"
    assert digest(unpack_nf4_portable(packed, (96, 70), torch.float32)) == "fc20f45bd7f92f64"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nf4_and_the_kernel_of_bitsandbytes_agree(dtype: torch.dtype) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for shape in SHAPES:
        weight = random_weight(*shape).to(dtype)
        packed = pack_nf4(weight)
        theirs, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        assert torch.equal(packed["packed"], theirs.flatten())
        torch.testing.assert_close(packed["offset"], state.offset)
        ours = unpack_nf4_portable(packed, shape, dtype)
        assert torch.equal(packing.unpack_nf4_bitsandbytes(packed, shape, dtype), ours)


def test_the_values_of_nf4_are_the_papers_quantiles() -> None:
    """Appendix E: 8 quantiles of the positive half, 9 of the negative, both with zero, divided by the largest."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    normal = torch.special.ndtri
    upper = normal(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    lower = -normal(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    expected = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper.flip(0)]) / upper.max()
    found = unpack_nf4_portable(pack_nf4(expected.float().repeat(4)), (64,), torch.float32)[:16]
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_takes_the_nearest_value_of_each_block(shape: tuple[int, ...]) -> None:
    weight = random_weight(*shape)
    packed = pack_nf4(weight)
    table = torch.tensor(packing._NF4)
    blocks = list(weight.flatten().split(64))
    codes = [int((table - value / block.abs().max()).abs().argmin()) for block in blocks for value in block]
    codes += [7] * (len(codes) % 2)
    assert packed["packed"].tolist() == [
        high * 16 + low for high, low in zip(codes[::2], codes[1::2], strict=True)
    ]  # fmt: skip
    found = unpack_nf4_portable(packed, shape, torch.float32)
    # Half of the widest gap of the table, and the error of the 8 bits of the block's constant.
    assert (found - weight).abs().max() <= weight.abs().max() * (0.152 + 0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_eight_bits_are_off_by_half_a_step_at_most(shape: tuple[int, ...]) -> None:
    weight = random_weight(*shape)
    largest = weight.flatten(1).abs().amax(1).view(-1, *(1 for _ in shape[1:]))
    int8 = unpack_int8(pack_int8(weight), shape, torch.float32)
    assert ((int8 - weight).abs() <= largest / 254 * 1.0001).all()
    fp8 = unpack_fp8(pack_fp8(weight), shape, torch.float32)
    # Three bits of fraction, and the smallest step below 2^-6 of 448.
    assert ((fp8 - weight).abs() <= (weight.abs() / 16).clamp(min=float(largest.max()) / 448 * 2**-10) * 1.001).all()


def test_bytes_of_a_weight() -> None:
    weight = random_weight(256, 256)
    sizes = {
        word: sum(tensor.nbytes for tensor in way.pack(weight).values()) / weight.numel()
        for word, way in PACKINGS.items()
    }
    # 4 bits, 8 a block of 64, 32 a block of blocks: 4.127 of them.
    assert sizes["nf4"] * 8 == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=1e-3)
    assert sizes["int8"] == sizes["fp8"] == pytest.approx(1 + 4 / 256)
    assert sizes["none"] == 4


@pytest.mark.parametrize("word", list(PACKINGS))
@pytest.mark.parametrize(
    "base",
    [nn.Linear(24, 12), nn.Linear(24, 12, bias=False), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(6, 4, 1)],
    ids=["linear", "without bias", "strided", "1 x 1"],
)
def test_a_frozen_layer_is_a_layer_with_the_unpacked_weight(word: str, base: nn.Linear | nn.Conv2d) -> None:
    base.requires_grad_(False)
    layer = freeze(base, word, torch.float32)
    layer.fill(base.weight)
    plain = type(base)(*_arguments(base))
    plain.load_state_dict({**base.state_dict(), "weight": layer.dequantized_weight()})
    shape = (2, 5, 24) if isinstance(base, nn.Linear) else (2, 6, 9, 8)
    kept: list[Tensor] = []
    results = []
    for module in (plain.requires_grad_(False), layer):
        inputs = random_weight(*shape).requires_grad_(True)
        with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            kept.clear()
            output = module(inputs)
        output.square().sum().backward()
        results.append((output.detach(), inputs.grad))
    torch.testing.assert_close(results[1], results[0])
    assert isinstance(layer, type(base))
    assert not any(tensor.shape == base.weight.shape for tensor in kept if not tensor.requires_grad)
    if word != "none":
        assert not torch.equal(layer.weight, base.weight)
    assert [name for name, _ in layer.named_parameters()] == (["bias"] if base.bias is not None else [])


def _arguments(base: nn.Linear | nn.Conv2d) -> tuple[object, ...]:
    if isinstance(base, nn.Linear):
        return (base.in_features, base.out_features, base.bias is not None)
    return (base.in_channels, base.out_channels, base.kernel_size, base.stride, base.padding)


@pytest.mark.parametrize("word", list(PACKINGS))
def test_a_frozen_layer_in_bf16_moves_as_a_whole_and_makes_bf16(word: str) -> None:
    base = nn.Linear(64, 32).to(torch.bfloat16).requires_grad_(False)
    layer = freeze(base, word, torch.bfloat16)
    layer.fill(base.weight)
    assert layer.to("cpu").weight.dtype == torch.bfloat16
    assert layer.to("meta").weight.is_meta
    assert math.prod(layer.weight.shape) == 64 * 32
