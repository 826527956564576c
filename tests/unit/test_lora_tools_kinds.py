"""LoRA tools on every kind of module: exact products of LoHa and LoKr, DoRA with its base model, norms and biases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.errors import LoraFileError
from trainer.lora_files.file import LoraModule, read_lora, write_lora
from trainer.lora_files.modules import AdapterModule, DifferenceModule, LohaModule, LokrModule
from trainer.lora_files.relative import DoraModule
from trainer.lora_tools.bake import bake_loras
from trainer.lora_tools.compare import compare_loras
from trainer.lora_tools.merge import MergeInput, MergeOptions, merge_loras
from trainer.lora_tools.products import exact_product
from trainer.lora_tools.resize import resize_lora
from trainer.lora_tools.truncation import Truncation

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"
CROSS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
NORM = "lora_unet_up_blocks_1_resnets_0_norm1"
BIAS = f"{Q}.bias"
Q_SHAPE, CONV_SHAPE = (24, 20), (20, 12, 3, 3)


def tensor(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.4


def loha() -> LohaModule:
    return LohaModule(
        (tensor(24, 3, seed=1), tensor(3, 20, seed=2)), (tensor(24, 3, seed=3), tensor(3, 20, seed=4)), 1.5
    )


def loha_conv() -> LohaModule:
    """Flat, as LyCORIS writes it: only the name tells the kernel."""
    return LohaModule(
        (tensor(20, 2, seed=5), tensor(2, 108, seed=6)), (tensor(20, 2, seed=7), tensor(2, 108, seed=8)), 2.0
    )


def loha_tucker() -> LohaModule:
    first, second = (
        (tensor(2, 2, 3, 3, seed=s), tensor(2, 20, seed=s + 1), tensor(2, 12, seed=s + 2)) for s in (10, 20)
    )
    return LohaModule(first, second, 1.0)


def lokr() -> LokrModule:
    return LokrModule((tensor(4, 5, seed=30),), (tensor(6, 2, seed=31), tensor(2, 4, seed=32)), 3.0)


def lokr_conv() -> LokrModule:
    """A whole second factor of rank 2, which is what makes the product one of low rank."""
    second = (tensor(5, 2, seed=33) @ tensor(2, 36, seed=34)).reshape(5, 4, 3, 3)
    return LokrModule((tensor(4, 3, seed=35),), (second,), 1.0)


KINDS: dict[str, tuple[str, AdapterModule, tuple[int, ...]]] = {
    "loha": (Q, loha(), Q_SHAPE),
    "loha_conv": (CONV, loha_conv(), CONV_SHAPE),
    "loha_tucker": (CONV, loha_tucker(), CONV_SHAPE),
    "lokr": (Q, lokr(), Q_SHAPE),
    "lokr_conv": (CONV, lokr_conv(), CONV_SHAPE),
    "locon_tucker": (
        CONV,
        LoraModule(tensor(3, 12, 1, 1, seed=40), tensor(20, 3, 1, 1, seed=41), 2.0, tensor(3, 3, 3, 3, seed=42)),
        CONV_SHAPE,
    ),
}
# Keeps the family known: a file of one odd layer says nothing.
FAMILY = {CROSS: LoraModule(tensor(2, 768, seed=60), tensor(24, 2, seed=61), 1.0)}


def save(path: Path, modules: dict[str, AdapterModule]) -> Path:
    write_lora(path, {**FAMILY, **modules}, {"ss_base_model_version": "sd_v1"}, "fp32")
    return path


def numpy_delta(module: AdapterModule) -> np.ndarray:
    """LoHa's and LoKr's formulas, from the tensors, in float64."""
    parts = {key: value.double().numpy() for key, value in module.tensors().items()}

    def whole(prefix: str, number: str) -> np.ndarray:
        a, b = parts.get(f"{prefix}_w{number}_a"), parts.get(f"{prefix}_w{number}_b")
        if f"{prefix}_t{number}" in parts:
            return np.einsum("mnkl,mo,ni->oikl", parts[f"{prefix}_t{number}"], a, b).reshape(a.shape[1], -1)
        if a is not None and b is not None:
            return a @ b
        found = parts[f"{prefix}_w{number}"]
        return found.reshape(len(found), -1)

    if module.kind == "lora":
        up, mid, down = (parts[f"lora_{part}.weight"] for part in ("up", "mid", "down"))
        delta = np.einsum("om,mnkl,ni->oikl", up[:, :, 0, 0], mid, down[:, :, 0, 0]).reshape(len(up), -1)
        return delta * parts["alpha"] / down.shape[0]
    if module.kind == "loha":
        return whole("hada", "1") * whole("hada", "2") * parts["alpha"] / module.rank
    scale = 1.0 if module.rank is None else parts["alpha"] / module.rank
    return np.kron(whole("lokr", "1"), whole("lokr", "2")) * scale


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_kind_becomes_exactly_a_plain_lora(tmp_path: Path, kind: str) -> None:
    name, module, shape = KINDS[kind]
    source, out = save(tmp_path / "a.safetensors", {name: module}), tmp_path / "plain.safetensors"
    report = resize_lora(source, out, Truncation("exact"))
    plain = read_lora(out).modules[name]
    assert isinstance(plain, LoraModule)
    assert plain.mid is None
    assert plain.down.shape[1:] == shape[1:]
    found = plain.delta_weight(torch.zeros(shape)).flatten(1).double().numpy()
    expected = numpy_delta(module)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert report.error == 0
    assert report.converted == ({} if module.kind == "lora" else {module.kind: 1})


def test_a_merge_of_mixed_kinds_is_the_sum(tmp_path: Path) -> None:
    first = save(tmp_path / "a.safetensors", {Q: loha(), CONV: loha_tucker()})
    second = save(tmp_path / "b.safetensors", {Q: lokr(), CONV: lokr_conv()})
    third = save(tmp_path / "c.safetensors", {Q: LoraModule(tensor(3, 20, seed=1), tensor(24, 3, seed=2), 1.0)})
    inputs = [MergeInput(first, 0.6), MergeInput(second, -0.8), MergeInput(third, 1.2)]
    out = tmp_path / "m.safetensors"
    merge_loras(inputs, out)
    found = read_lora(out).modules
    plain = read_lora(third).modules[Q].delta_weight(torch.zeros(Q_SHAPE)).double().numpy()
    expected = {
        Q: 0.6 * numpy_delta(loha()) - 0.8 * numpy_delta(lokr()) + 1.2 * plain,
        CONV: 0.6 * numpy_delta(loha_tucker()) - 0.8 * numpy_delta(lokr_conv()),
    }
    for name, shape in ((Q, Q_SHAPE), (CONV, CONV_SHAPE)):
        change = found[name].delta_weight(torch.zeros(shape)).flatten(1).double().numpy()
        assert np.linalg.norm(change - expected[name]) < 1e-5 * np.linalg.norm(expected[name])
    compared = compare_loras(first, second)
    cosine = (numpy_delta(loha()) * numpy_delta(lokr())).sum()
    cosine /= np.linalg.norm(numpy_delta(loha())) * np.linalg.norm(numpy_delta(lokr()))
    block = next(block for block in compared.blocks if block.block == "down_blocks.1.attentions.0")
    assert block.cosine == pytest.approx(cosine, abs=1e-5)


def test_a_whole_difference_needs_a_cut_and_reports_what_is_lost(tmp_path: Path) -> None:
    difference = tensor(*Q_SHAPE, seed=9)
    source = save(tmp_path / "a.safetensors", {Q: DifferenceModule(difference)})
    with pytest.raises(LoraFileError, match="not of low rank") as caught:
        resize_lora(source, tmp_path / "no.safetensors", Truncation("exact"))
    assert Q in str(caught.value)
    with pytest.raises(LoraFileError, match="not of low rank"):
        merge_loras([MergeInput(source)], tmp_path / "no.safetensors")
    assert not (tmp_path / "no.safetensors").exists()
    out = tmp_path / "b.safetensors"
    report = resize_lora(source, out, Truncation("rank", 5))
    values = np.linalg.svd(difference.double().numpy(), compute_uv=False)
    block = next(block for block in report.blocks if block.block == "down_blocks.1.attentions.0")
    assert block.error == pytest.approx((values[5:] ** 2).sum() ** 0.5 / (values**2).sum() ** 0.5, rel=1e-3)
    found = read_lora(out).modules[Q].delta_weight(torch.zeros(Q_SHAPE))
    assert float((found - difference).norm() / difference.norm()) == pytest.approx(block.error, rel=1e-3)


def test_a_kronecker_product_of_full_rank_is_not_called_low_rank() -> None:
    assert exact_product(LokrModule((tensor(5, 5, seed=1),), (tensor(6, 4, seed=2),), 1.0)) is None


def test_norms_and_biases_are_summed_and_stay(tmp_path: Path) -> None:
    norm, bias = tensor(12, seed=70), tensor(24, seed=71)
    first = save(
        tmp_path / "a.safetensors",
        {NORM: DifferenceModule(norm, "w_norm"), BIAS: DifferenceModule(bias, "diff_b"), Q: lokr()},
    )
    second = save(tmp_path / "b.safetensors", {NORM: DifferenceModule(2 * norm, "w_norm")})
    out = tmp_path / "m.safetensors"
    merge_loras([MergeInput(first, 0.5), MergeInput(second, -1.5)], out, MergeOptions(truncation=Truncation("rank", 2)))
    found = read_lora(out).modules
    torch.testing.assert_close(found[NORM].delta_weight(torch.zeros(12)), -2.5 * norm)
    torch.testing.assert_close(found[BIAS].delta_weight(torch.zeros(24)), 0.5 * bias)
    resized = tmp_path / "r.safetensors"
    assert resize_lora(first, resized, Truncation("rank", 1)).differences == 2
    torch.testing.assert_close(read_lora(resized).modules[NORM].delta_weight(torch.zeros(12)), norm)
    bare = tmp_path / "bare.safetensors"
    resize_lora(first, bare, Truncation("rank", 1), drop_differences=True)
    assert set(read_lora(bare).modules) == {Q, CROSS}


def dora() -> DoraModule:
    inner = LoraModule(tensor(3, 20, seed=80), tensor(24, 3, seed=81), 3.0)
    return DoraModule(inner, tensor(24, 1, seed=82).abs() + 1, 0)


def base_file(path: Path) -> Path:
    unet = "model.diffusion_model."
    save_file(
        {
            f"{unet}input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": tensor(*Q_SHAPE, seed=90),
            f"{unet}input_blocks.4.1.transformer_blocks.0.attn1.to_q.bias": tensor(24, seed=91),
            f"{unet}middle_block.1.transformer_blocks.0.attn2.to_k.weight": tensor(24, 768, seed=92),
            f"{unet}output_blocks.3.0.in_layers.0.weight": tensor(12, seed=93),
        },
        path,
    )
    return path


def test_a_dora_needs_its_base_and_becomes_plain_with_it(tmp_path: Path) -> None:
    source, base = save(tmp_path / "a.safetensors", {Q: dora()}), base_file(tmp_path / "base.safetensors")
    out = tmp_path / "plain.safetensors"
    with pytest.raises(LoraFileError, match="depend on the base") as caught:
        resize_lora(source, out, Truncation("rank", 20))
    assert Q in str(caught.value)
    assert "--base" in str(caught.value)
    assert not out.exists()
    report = resize_lora(source, out, Truncation("rank", 20), base=base)
    weight = tensor(*Q_SHAPE, seed=90).double()
    direction = weight + (tensor(24, 3, seed=81) @ tensor(3, 20, seed=80)).double()
    magnitude = (tensor(24, 1, seed=82).abs() + 1).double()
    expected = magnitude * direction / direction.norm(dim=1, keepdim=True) - weight
    found = read_lora(out).modules[Q].delta_weight(torch.zeros(Q_SHAPE)).double()
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert report.converted == {"dora": 1}
    # Merged at half strength it is half of the difference that it makes.
    half = tmp_path / "half.safetensors"
    merge_loras([MergeInput(source, 0.5)], half, MergeOptions(truncation=Truncation("rank", 20), base=base))
    found = read_lora(half).modules[Q].delta_weight(torch.zeros(Q_SHAPE)).double()
    assert float((found - 0.5 * expected).norm() / expected.norm()) < 1e-4


def test_bake_takes_every_kind_norms_and_biases_too(tmp_path: Path) -> None:
    norm, bias = tensor(12, seed=70), tensor(24, seed=71)
    modules: dict[str, AdapterModule] = {
        Q: dora(), NORM: DifferenceModule(norm, "w_norm"), BIAS: DifferenceModule(bias, "diff_b")
    }  # fmt: skip
    lora, base = save(tmp_path / "a.safetensors", modules), base_file(tmp_path / "base.safetensors")
    out = tmp_path / "baked.safetensors"
    report = bake_loras([MergeInput(lora, 0.5)], base, out)
    assert report.layers == 4
    from safetensors.torch import load_file

    before, after = load_file(base), load_file(out)
    unet = "model.diffusion_model."
    torch.testing.assert_close(
        after[f"{unet}output_blocks.3.0.in_layers.0.weight"],
        before[f"{unet}output_blocks.3.0.in_layers.0.weight"] + 0.5 * norm,
    )
    key = f"{unet}input_blocks.4.1.transformer_blocks.0.attn1.to_q."
    torch.testing.assert_close(after[f"{key}bias"], before[f"{key}bias"] + 0.5 * bias)
    expected = before[f"{key}weight"] + 0.5 * dora().delta_weight(before[f"{key}weight"])
    torch.testing.assert_close(after[f"{key}weight"], expected)
