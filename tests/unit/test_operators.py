"""The goals for what a step does beside its matrix products, on the full architecture of SD 1.5."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.operators import count


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["attention", "all+conv"])
def test_a_step_keeps_to_its_share_of_pefts_operators_and_bytes(targets: str) -> None:
    options = argparse.Namespace(resolution=512, batch_size=1, rank=8, targets=targets, precision="bf16", blocks=[])
    ours, theirs = count("inkwash", options), count("peft", options)
    # Of a plain convolution we ask for the gradients of inputs and weights one by one.
    assert ours.products <= 1.1 * theirs.products
    assert ours.operators <= 0.65 * theirs.operators
    assert ours.num_bytes <= 0.52 * theirs.num_bytes
