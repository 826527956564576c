"""LoRA tools on files: merge, resize and compare against dense sums; what is refused, and that nothing is written then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import Cancelled, ConfigError, InkwashError, LoraFileError
from trainer.lora_files.file import LoraModule, read_lora, write_lora
from trainer.lora_tools.compare import compare_loras
from trainer.lora_tools.merge import MergeInput, MergeOptions, merge_loras
from trainer.lora_tools.names import block_of, in_model_order
from trainer.lora_tools.resize import resize_lora
from trainer.lora_tools.truncation import Truncation

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
CROSS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
PROJ = "lora_unet_up_blocks_1_attentions_0_proj_in"
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
SHAPES: dict[str, tuple[int, ...]] = {
    Q: (24, 24), CROSS: (24, 768), PROJ: (24, 16, 1, 1), CONV: (20, 12, 3, 3), TEXT: (18, 14)
}  # fmt: skip


def random_modules(
    shapes: Mapping[str, tuple[int, ...]] = SHAPES, *, rank: int = 4, alpha: float = 2.0, seed: int = 0
) -> dict[str, LoraModule]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LoraModule(
            torch.randn((rank, *shape[1:]), generator=generator) * 0.2,
            torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator) * 0.2,
            alpha,
        )
        for name, shape in shapes.items()
    }


def write(path: Path, metadata: Mapping[str, str] | None = None, **options: Any) -> Path:
    write_lora(path, random_modules(**options), metadata or {"ss_base_model_version": "sd_v1"}, "fp32")
    return path


def dense(path: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    """Every layer's change, float64, straight from the tensors of a plain file: alpha / rank * up @ down."""
    tensors = load_file(path)
    found: dict[str, Tensor] = {}
    for key in tensors:
        name, _, part = key.partition(".")
        if part == "lora_down.weight":
            down, up = tensors[key].double().flatten(1), tensors[f"{name}.lora_up.weight"].double().flatten(1)
            scale = float(tensors[f"{name}.alpha"]) / down.shape[0]
            found[name] = (scale * up @ down).reshape(shapes[name])
    return found


def error_of(ours: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The norm of the difference by that of what is expected, over all layers."""
    assert ours.keys() == expected.keys()
    lost = sum(float((ours[name] - expected[name]).square().sum()) for name in expected)
    return (lost / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.4), (0.01, 2.5), (-1.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_an_exact_merge_is_the_weighted_sum(tmp_path: Path, weights: tuple[float, float], seed: int) -> None:
    generator = np.random.default_rng(seed)
    files = [
        write(
            tmp_path / f"{index}.safetensors",
            rank=int(generator.integers(1, 12)),
            alpha=float(generator.uniform(0.5, 20)),
            seed=10 * seed + index,
        )
        for index in range(2)
    ]
    out = tmp_path / "merged.safetensors"
    report = merge_loras([MergeInput(file, weight) for file, weight in zip(files, weights, strict=True)], out)
    first, second = dense(files[0]), dense(files[1])
    expected = {name: weights[0] * first[name] + weights[1] * second[name] for name in SHAPES}
    assert error_of(dense(out), expected) < 1e-6
    assert report.error == 0
    assert report.norm == pytest.approx(
        sum(float(value.square().sum()) for value in expected.values()) ** 0.5, rel=1e-4
    )


def test_layers_that_one_file_lacks_count_as_unchanged(tmp_path: Path) -> None:
    some = {name: SHAPES[name] for name in (Q, TEXT)}
    first, second = write(tmp_path / "a.safetensors", seed=1), write(tmp_path / "b.safetensors", shapes=some, seed=2)
    out = tmp_path / "merged.safetensors"
    merge_loras([MergeInput(first, 0.5), MergeInput(second, 2.0, text_encoder_weight=-1.0)], out)
    one, two = dense(first), dense(second)
    factor = {Q: 2.0, TEXT: -1.0}
    expected = {name: 0.5 * one[name] + factor.get(name, 0) * two.get(name, torch.zeros(())) for name in SHAPES}
    assert error_of(dense(out), expected) < 1e-6


def test_all_layers_of_a_result_have_one_alpha(tmp_path: Path) -> None:
    some = {name: SHAPES[name] for name in (Q, TEXT)}
    files = [write(tmp_path / "a.safetensors", seed=1), write(tmp_path / "b.safetensors", shapes=some, seed=2, rank=7)]
    out = tmp_path / "m.safetensors"
    merge_loras([MergeInput(file) for file in files], out)
    alphas = {float(value) for key, value in load_file(out).items() if key.endswith(".alpha")}
    assert len(alphas) == 1
    assert read_lora(out).metadata["ss_network_dim"] == "Dynamic"


def test_small_weights_survive_fp16(tmp_path: Path) -> None:
    # Up matrices of this size times the weight lie below fp16's normal numbers; the factors must share the burden.
    modules = {name: LoraModule(module.down * 10, module.up * 1e-3, 4.0) for name, module in random_modules().items()}
    source, out = tmp_path / "a.safetensors", tmp_path / "m.safetensors"
    write_lora(source, modules, {}, "fp32")
    merge_loras([MergeInput(source, 0.01)], out, MergeOptions(precision="fp16"))
    expected = {name: 0.01 * change for name, change in dense(source).items()}
    assert error_of(dense(out), expected) < 1e-3


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_cut_merge_is_the_best_of_its_rank_and_reports_its_error(tmp_path: Path, rank: int) -> None:
    files = [write(tmp_path / f"{index}.safetensors", rank=4 + index, seed=index) for index in range(2)]
    out = tmp_path / "merged.safetensors"
    inputs = [MergeInput(files[0], 0.9), MergeInput(files[1], -0.6)]
    report = merge_loras(inputs, out, MergeOptions(truncation=Truncation("rank", rank)))
    first, second = dense(files[0]), dense(files[1])
    expected = {name: 0.9 * first[name] - 0.6 * second[name] for name in SHAPES}
    assert error_of(dense(out), expected) == pytest.approx(least_error(expected, rank), rel=1e-3)
    assert report.error == pytest.approx(least_error(expected, rank), rel=1e-3)
    blocks = {block.block: block for block in report.blocks}
    up = {name: expected[name] for name in (PROJ,)}
    assert blocks["up_blocks.1.attentions.0"].error == pytest.approx(least_error(up, rank), rel=1e-3)


def least_error(changes: Mapping[str, Tensor], rank: int) -> float:
    """Eckart and Young, from numpy's SVD of the dense matrices."""
    spectra = [np.linalg.svd(change.flatten(1).numpy(), compute_uv=False) for change in changes.values()]
    return float((sum((s[rank:] ** 2).sum() for s in spectra) / sum((s**2).sum() for s in spectra)) ** 0.5)


@pytest.mark.parametrize("method", ["ties", "magnitude", "dare", "dare_ties"])
def test_pruning_methods_need_a_rank_and_keep_what_their_formula_gives(tmp_path: Path, method: Any) -> None:
    from trainer.lora_tools.combine import agreeing_mean, trim, weighted_sum

    files = [write(tmp_path / f"{index}.safetensors", seed=index) for index in range(2)]
    inputs = [MergeInput(files[0], 0.8), MergeInput(files[1], -0.5)]
    with pytest.raises(ConfigError, match="not of low rank"):
        MergeOptions(method)
    # The full rank of every layer, so that nothing is cut.
    full = MergeOptions(method, Truncation("rank", 24), density=0.4, seed=1)
    out, again = tmp_path / "m.safetensors", tmp_path / "again.safetensors"
    report = merge_loras(inputs, out, full)
    assert report.error < 1e-5
    merge_loras(inputs, again, full)
    assert error_of(dense(again), dense(out)) == 0
    first, second = dense(files[0]), dense(files[1])
    if method in ("ties", "magnitude"):
        combine = agreeing_mean if method == "ties" else weighted_sum
        expected = {name: combine([trim(first[name], 0.4), trim(second[name], 0.4)], [0.8, -0.5]) for name in SHAPES}
        assert error_of(dense(out), expected) < 1e-4
        return
    other = tmp_path / "other.safetensors"
    merge_loras(inputs, other, MergeOptions(method, Truncation("rank", 24), density=0.4, seed=2))
    assert error_of(dense(other), dense(out)) > 0.3
    if method == "dare":
        # Every number is 0, or one of the two scaled, or both.
        sums = [0.8 * first[Q] / 0.4, -0.5 * second[Q] / 0.4]
        ways = torch.stack([torch.zeros_like(sums[0]), *sums, sums[0] + sums[1]])
        assert float((ways - dense(out)[Q]).abs().amin(0).max()) < 1e-4


def test_a_merge_to_a_file_size_fits_and_uses_it(tmp_path: Path) -> None:
    shapes = {name.replace("_0_", f"_{i}_", 1): (160, 240) for name in (Q, PROJ) for i in range(4)}
    files = [write(tmp_path / f"{i}.safetensors", shapes=shapes, rank=24, seed=i) for i in range(2)]
    out = tmp_path / "m.safetensors"
    report = merge_loras([MergeInput(file) for file in files], out, MergeOptions(truncation=Truncation("size_mb", 0.2)))
    assert 170_000 < out.stat().st_size <= 200_000
    assert report.max_rank < 48
    cut = tmp_path / "cut.safetensors"
    uniform = merge_loras(
        [MergeInput(file) for file in files], cut, MergeOptions(truncation=Truncation("rank", report.min_rank))
    )
    assert report.error <= uniform.error
    with pytest.raises(ConfigError, match="cannot be that small"):
        merge_loras(
            [MergeInput(files[0])],
            tmp_path / "no.safetensors",
            MergeOptions(truncation=Truncation("size_mb", 0.001)),
        )


@pytest.mark.parametrize(
    "truncation", [Truncation("sv_fro", 0.8), Truncation("sv_cumulative", 0.7), Truncation("sv_ratio", 2.0)]
)
def test_resize_keeps_the_share_that_was_asked_for_and_no_more(tmp_path: Path, truncation: Truncation) -> None:
    source, out = write(tmp_path / "a.safetensors", rank=12), tmp_path / "small.safetensors"
    report = resize_lora(source, out, truncation)
    for name, change in dense(source).items():
        values = np.linalg.svd(change.flatten(1).numpy(), compute_uv=False)
        rank = read_lora(out).modules[name].rank
        assert rank is not None
        measure = {
            "sv_fro": lambda k, v=values: (v[:k] ** 2).sum() ** 0.5 / (v**2).sum() ** 0.5 - 0.8,
            "sv_cumulative": lambda k, v=values: v[:k].sum() / v.sum() - 0.7,
            "sv_ratio": lambda k, v=values: v[0] / 2.0 - (v[k] if k < len(v) else 0),
        }[truncation.rule]
        assert measure(rank) >= -1e-6
        assert measure(rank - 1) < 1e-6
    assert report.size_bytes < report.size_before
    assert 0 < report.error < 1


def test_resize_to_a_higher_rank_changes_nothing_and_keeps_the_recipe(tmp_path: Path) -> None:
    metadata = {"ss_base_model_version": "sd_v1", "inkwash.config": "{}", "sshs_model_hash": "old", "ss_tag": "x"}
    source, out = write(tmp_path / "a.safetensors", metadata), tmp_path / "b.safetensors"
    report = resize_lora(source, out, Truncation("rank", 64))
    assert report.max_rank == 4
    assert error_of(dense(out), dense(source)) < 1e-5
    found = read_lora(out).metadata
    assert found["inkwash.config"] == "{}"
    assert found["ss_tag"] == "x"
    assert found["sshs_model_hash"] != "old"
    assert json.loads(found["inkwash.tool"])["tool"] == "resize"


def test_compare_with_itself_its_opposite_and_a_stranger(tmp_path: Path) -> None:
    first, stranger = write(tmp_path / "a.safetensors", seed=1), write(tmp_path / "b.safetensors", seed=2)
    opposite = tmp_path / "c.safetensors"
    merge_loras([MergeInput(first, -2.0)], opposite)
    same = compare_loras(first, first)
    assert same.total.cosine == pytest.approx(1, abs=1e-5)
    assert same.total.overlap_out == pytest.approx(1, abs=1e-4)
    against = compare_loras(first, opposite)
    assert against.total.cosine == pytest.approx(-1, abs=1e-5)
    assert against.total.overlap_in == pytest.approx(1, abs=1e-4)
    assert against.total.norm_second == pytest.approx(2 * against.total.norm_first, rel=1e-4)
    other = compare_loras(first, stranger)
    one, two = dense(first), dense(stranger)
    product = sum(float((one[name] * two[name]).sum()) for name in SHAPES)
    norms = [sum(float(v.square().sum()) for v in d.values()) ** 0.5 for d in (one, two)]
    assert other.total.cosine == pytest.approx(product / norms[0] / norms[1], abs=1e-5)
    assert abs(other.total.overlap_out - other.total.chance) < 0.25
    assert {block.block for block in other.blocks} == {block_of(name) for name in SHAPES}


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(tmp_path: Path, inputs: list[MergeInput], match: str) -> InkwashError:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InkwashError, match=match) as caught:
        merge_loras(inputs, tmp_path / "out" / "new.safetensors")
    assert sorted(tmp_path.iterdir()) == before
    return caught.value


def test_nan_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.safetensors"), tmp_path / "bad.safetensors"
    tensors = load_file(good)
    tensors[f"{Q}.lora_up.weight"][0, 0] = float("nan")
    save_file(tensors, bad)
    error = refused(tmp_path, [MergeInput(good), MergeInput(bad)], "NaN")
    assert Q in str(error)
    assert str(bad) in str(error)


def test_truncated_and_foreign_files_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "a.safetensors"), tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:-100])
    refused(tmp_path, [MergeInput(good), MergeInput(bad)], "truncated")
    bad.write_bytes(b"\x80\x04" + b"x" * 200)
    refused(tmp_path, [MergeInput(bad)], "pickle")
    save_file({"conv.weight": torch.zeros(3, 3)}, bad)
    refused(tmp_path, [MergeInput(bad)], "LoRA")


def test_loras_of_different_families_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors")
    wide = {**SHAPES, CROSS: (24, 1024)}
    second = write(tmp_path / "b.safetensors", {"ss_v2": "True"}, shapes=wide)
    error = refused(tmp_path, [MergeInput(first), MergeInput(second)], "different base models")
    assert "2.x" in str(error)
    odd = write(tmp_path / "c.safetensors", shapes={**SHAPES, Q: (24, 30)})
    assert Q in str(refused(tmp_path, [MergeInput(first), MergeInput(odd)], "different sizes"))


def test_existing_files_are_never_overwritten_untold(tmp_path: Path) -> None:
    source, taken = write(tmp_path / "a.safetensors"), write(tmp_path / "b.safetensors", seed=5)
    before = source.read_bytes(), taken.read_bytes()
    with pytest.raises(LoraFileError, match="already a file"):
        merge_loras([MergeInput(source)], taken)
    with pytest.raises(LoraFileError, match="made of"):
        resize_lora(source, source, Truncation("rank", 2))
    with pytest.raises(LoraFileError, match="safetensors"):
        merge_loras([MergeInput(source)], tmp_path / "out.pt")
    assert (source.read_bytes(), taken.read_bytes()) == before
    merge_loras([MergeInput(source)], taken, overwrite=True)
    assert error_of(dense(taken), dense(source)) < 1e-6


def test_weights_that_are_no_numbers_and_empty_merges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finite"):
        MergeInput(tmp_path / "a.safetensors", float("nan"))
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge_loras([], tmp_path / "b.safetensors")
    with pytest.raises(ConfigError, match="density"):
        MergeOptions("ties", Truncation("rank", 2), density=0)


@pytest.mark.parametrize("tool", ["merge", "resize", "compare"])
def test_progress_counts_to_the_end_and_can_cancel(tmp_path: Path, tool: str) -> None:
    source, out = write(tmp_path / "a.safetensors"), tmp_path / "out.safetensors"
    tools = {
        "merge": lambda progress: merge_loras([MergeInput(source)], out, progress=progress),
        "resize": lambda progress: resize_lora(source, out, Truncation("rank", 2), progress=progress),
        "compare": lambda progress: compare_loras(source, source, progress=progress),
    }
    seen: list[tuple[str, int, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        seen.append((stage, done, total))
        if done == 3:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        tools[tool](stop)
    assert not out.exists()
    assert list(tmp_path.iterdir()) == [source]
    seen.clear()
    tools[tool](lambda *event: seen.append(event))
    assert any(done == total == len(SHAPES) for _, done, total in seen)


def test_names_come_in_the_models_order() -> None:
    names = [
        "lora_te_text_model_encoder_layers_10_mlp_fc1", "lora_te_text_model_encoder_layers_9_mlp_fc1", PROJ, CROSS, Q
    ]  # fmt: skip
    assert in_model_order(names) == [Q, CROSS, PROJ, names[1], names[0]]
    assert block_of(names[0]) == "text_encoder.layers.10"
    assert block_of("lora_te2_text_projection") == "other"
