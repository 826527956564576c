"""Low-rank algebra, rules for the rank and merging formulas, each against a dense or independent computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft.utils.merge_utils import ties as peft_ties
from torch import Tensor

from trainer.errors import ConfigError
from trainer.lora_tools.combine import agreeing_mean, drop_randomly, trim, weighted_sum
from trainer.lora_tools.lowrank import (
    LowRank,
    concatenate,
    cosine,
    decompose,
    decompose_dense,
    effective_rank,
    inner,
    norm,
    singular_values,
    subspace_overlap,
)
from trainer.lora_tools.truncation import Truncation, ranks_for_size

# The last two have a rank above one side, and above both.
SIZES = [(12, 9, 4), (7, 30, 1), (30, 8, 8), (6, 40, 20), (5, 6, 11)]


def random_product(out: int, width: int, rank: int, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn((out, rank), generator=generator) * torch.logspace(0, -2, rank)
    return LowRank(up, torch.randn((rank, width), generator=generator))


@pytest.mark.parametrize("size", SIZES)
def test_svd_of_a_product_is_that_of_the_dense_matrix(size: tuple[int, int, int]) -> None:
    product = random_product(*size)
    svd = decompose(product)
    expected = np.linalg.svd(product.dense().double().numpy(), compute_uv=False)[: len(svd.values)]
    np.testing.assert_allclose(svd.values.numpy(), expected, atol=1e-5 * expected[0])
    np.testing.assert_allclose(singular_values(product).numpy(), expected, atol=1e-5 * expected[0])
    torch.testing.assert_close((svd.left * svd.values) @ svd.right, product.dense(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(svd.left.T @ svd.left, torch.eye(len(svd.values)), atol=1e-5, rtol=0)
    torch.testing.assert_close(svd.right @ svd.right.T, torch.eye(len(svd.values)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_cut_loses_what_eckart_and_young_say_is_the_least(size: tuple[int, int, int], rank: int) -> None:
    product = random_product(*size)
    svd = decompose(product)
    lost = float((product.dense() - svd.cut(rank).dense()).norm())
    values = np.linalg.svd(product.dense().double().numpy(), compute_uv=False)
    least = math.sqrt(float((values[rank:] ** 2).sum()))
    assert lost == pytest.approx(least, rel=1e-4, abs=1e-5)
    assert math.sqrt(svd.lost(rank)) == pytest.approx(least, rel=1e-4, abs=1e-5)


def test_random_projection_is_near_the_optimum_and_knows_its_true_error() -> None:
    generator = torch.Generator().manual_seed(1)
    # A slowly falling spectrum, as the difference of two checkpoints has.
    noise = torch.randn((120, 200), generator=generator) * 0.05
    matrix = random_product(120, 200, 20, 2).dense() + noise
    svd = decompose_dense(matrix, rank=8)
    assert len(svd.values) == 8
    lost = float((matrix - svd.cut(8).dense()).norm())
    values = torch.linalg.svdvals(matrix)
    assert lost <= 1.001 * float(values[8:].norm())
    assert math.sqrt(svd.lost(8)) == pytest.approx(lost, rel=1e-5)
    assert math.sqrt(svd.energy) == pytest.approx(float(matrix.norm()), rel=1e-5)
    again = decompose_dense(matrix, rank=8)
    assert torch.equal(again.left, svd.left)


def test_random_projection_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    decompose_dense(torch.ones(100, 100), rank=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_weight_scales_the_sum_once_also_below_zero() -> None:
    first, second = random_product(8, 6, 2, 1), random_product(8, 6, 5, 2)
    joined = concatenate([(first, 0.5), (second, -2.0)])
    assert joined.rank == 7
    torch.testing.assert_close(joined.dense(), 0.5 * first.dense() - 2 * second.dense())


def test_parts_that_cancel_have_norm_zero() -> None:
    product = random_product(20, 30, 6)
    assert norm(concatenate([(product, 1.0), (product, -1.0)])) == pytest.approx(0, abs=1e-4)


def test_products_of_different_shapes_are_not_joined() -> None:
    with pytest.raises(ValueError, match="one shape"):
        concatenate([(random_product(4, 5, 1), 1.0), (random_product(4, 6, 1), 1.0)])


@pytest.mark.parametrize("size", SIZES)
def test_inner_product_norm_and_cosine_are_the_dense_ones(size: tuple[int, int, int]) -> None:
    first, second = random_product(*size, seed=3), random_product(size[0], size[1], 2, seed=4)
    dense = [item.dense().double().flatten() for item in (first, second)]
    assert inner(first, second) == pytest.approx(float(dense[0] @ dense[1]), rel=1e-4, abs=1e-5)
    assert norm(first) == pytest.approx(float(dense[0].norm()), rel=1e-5)
    expected = torch.nn.functional.cosine_similarity(dense[0], dense[1], dim=0)
    assert cosine(first, second) == pytest.approx(float(expected), abs=1e-5)


def test_subspace_overlap_of_equal_orthogonal_and_tilted_planes() -> None:
    basis = torch.eye(6)
    assert subspace_overlap(basis[:, :2], basis[:, [1, 0, 4]]) == pytest.approx(1)
    assert subspace_overlap(basis[:, :2], basis[:, 2:4]) == 0
    angle = 0.3
    tilted = torch.tensor([[math.cos(angle), 0, math.sin(angle), 0, 0, 0]]).T
    assert subspace_overlap(basis[:, :1], tilted) == pytest.approx(math.cos(angle) ** 2)


def test_effective_rank_counts_equal_values_and_ignores_small_ones() -> None:
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert effective_rank(torch.tensor([1.0, 0.0, 0.0])) == pytest.approx(1)
    assert 1 < effective_rank(torch.tensor([1.0, 0.1])) < 2
    assert effective_rank(torch.zeros(3)) == 0


# --- rules for the rank ----------------------------------------------------------------------------------------------

VALUES = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5])
ENERGY = float(VALUES.square().sum())


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [
        (Truncation("rank", 3), 3),
        (Truncation("rank", 9), 5),
        (Truncation("exact"), 5),
        (Truncation("sv_ratio", 4), 3),
        (Truncation("sv_ratio", 100), 5),
        # 12 of 15.5 is 0.774, 14 is 0.903.
        (Truncation("sv_cumulative", 0.77), 2),
        (Truncation("sv_cumulative", 0.9), 3),
        (Truncation("sv_cumulative", 1), 5),
        # Norm of the first two by that of all: 0.968; of the first alone 0.866.
        (Truncation("sv_fro", 0.86), 1),
        (Truncation("sv_fro", 0.96), 2),
        (Truncation("sv_fro", 0.97), 3),
        (Truncation("sv_fro", 1), 5),
        (Truncation("sv_fro", 1, max_rank=2), 2),
    ],
)
def test_rules_choose_the_rank_that_their_definition_says(truncation: Truncation, expected: int) -> None:
    assert truncation.choose(VALUES, ENERGY, (5, 5)) == expected


def test_a_zero_layer_keeps_rank_one() -> None:
    for rule in (
        Truncation("rank", 3),
        Truncation("sv_fro", 0.9),
        Truncation("sv_cumulative", 0.9),
        Truncation("exact"),
    ):
        assert rule.choose(torch.zeros(4), 0.0, (4, 4)) == 1


@pytest.mark.parametrize(
    ("rule", "value"),
    [("rank", 0), ("rank", 2.5), ("sv_fro", 0), ("sv_fro", 1.1), ("sv_cumulative", -1), ("sv_ratio", 1), ("size_mb", 0),
     ("sv_fro", math.nan), ("size_mb", math.inf)],
)  # fmt: skip
def test_values_out_of_a_rules_range_are_refused(rule: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rule):
        Truncation(rule, value)  # type: ignore[arg-type]


def test_ranks_for_a_size_lose_no_more_than_any_other_choice_of_that_size() -> None:
    spectra = {
        "a": torch.tensor([5.0, 3.0, 0.2]),
        "b": torch.tensor([4.0, 3.9, 3.8]),
        "c": torch.tensor([0.3, 0.2, 0.1]),
    }
    shapes = {name: (10, 10) for name in spectra}
    ranks = ranks_for_size(spectra, shapes, budget_bytes=6 * 20 * 2, element_bytes=2)
    assert sum(ranks.values()) <= 6

    def lost(choice: dict[str, int]) -> float:
        return sum(float(values[choice[name] :].square().sum()) for name, values in spectra.items())

    every = [dict(zip("abc", (i, j, k), strict=True)) for i in (1, 2, 3) for j in (1, 2, 3) for k in (1, 2, 3)]
    assert lost(ranks) == pytest.approx(min(lost(choice) for choice in every if sum(choice.values()) <= 6))


def test_a_size_below_rank_one_everywhere_is_refused_with_the_smallest_size() -> None:
    with pytest.raises(ConfigError, match=r"0\.08 MB"):
        ranks_for_size({"a": torch.ones(3)}, {"a": (20_000, 20_000)}, 1000, 2)


# --- formulas --------------------------------------------------------------------------------------------------------


def changes(count: int = 3, shape: tuple[int, int] = (9, 7)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def test_trim_keeps_the_largest_share() -> None:
    change = changes()[0]
    kept = trim(change, 0.25)
    count = round(0.25 * change.numel())
    order = sorted(change.flatten().tolist(), key=abs, reverse=True)
    assert sorted(kept[kept != 0].tolist()) == pytest.approx(sorted(order[:count]))
    assert trim(change, 1.0) is change
    assert int((trim(change, 1e-9) != 0).sum()) == 1


def loop_ties(items: list[Tensor], weights: list[float], density: float) -> np.ndarray:
    """Algorithm 1 of the paper, number by number."""
    trimmed = []
    for item, weight in zip(items, weights, strict=True):
        flat = item.double().numpy().ravel() * weight
        count = round(density * flat.size)
        keep = np.argsort(-np.abs(flat))[:count]
        out = np.zeros_like(flat)
        out[keep] = flat[keep]
        trimmed.append(out)
    merged = np.zeros(items[0].numel())
    for position in range(merged.size):
        numbers = [item[position] for item in trimmed]
        sign = np.sign(sum(numbers))
        agreeing = [number for number in numbers if number != 0 and np.sign(number) == sign]
        merged[position] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged.reshape(items[0].shape)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 1.3]])
def test_ties_is_the_papers_algorithm(weights: list[float]) -> None:
    items = changes()
    ours = agreeing_mean([trim(item, 0.4) for item in items], weights)
    np.testing.assert_allclose(ours.numpy(), loop_ties(items, weights, 0.4), atol=1e-6)


def test_ties_agrees_with_peft() -> None:
    items = changes()
    # peft rounds the number of kept elements down.
    density = 25 / items[0].numel() + 1e-9
    ours = agreeing_mean([trim(item, density) for item in items], [1.0] * 3)
    torch.testing.assert_close(ours, peft_ties([item.clone() for item in items], torch.ones(3), density))


def test_dare_keeps_the_expectation_and_is_repeatable() -> None:
    change = torch.ones(400, 300)
    dropped = drop_randomly(change, 0.2, torch.Generator().manual_seed(3))
    assert set(dropped.unique().tolist()) == {0.0, 5.0}
    assert float((dropped != 0).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(dropped, drop_randomly(change, 0.2, torch.Generator().manual_seed(3)))
    assert not torch.equal(dropped, drop_randomly(change, 0.2, torch.Generator().manual_seed(4)))


def test_weighted_sum_leaves_its_input_alone() -> None:
    items = changes(2)
    before = [item.clone() for item in items]
    torch.testing.assert_close(weighted_sum(items, [2.0, -1.0]), 2 * items[0] - items[1])
    assert all(torch.equal(a, b) for a, b in zip(items, before, strict=True))
