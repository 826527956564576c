"""Divisions by 1 are left out, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny_model import make_tiny_model
from trainer.models.components import load_components
from trainer.models.neutral import One, skip_neutral_divisions
from trainer.paths import DataFolder


class Divisions(TorchDispatchMode):
    """Counts them, but those of a few numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += func._schema.name == "aten::div" and result.ndim > 2
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_unet_divides_no_more_and_gives_the_same_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_tiny_model(tmp_path / "tiny")
    components = load_components(str(folder), DataFolder(tmp_path / "data"), torch.device("cpu"), dtype)
    latents = torch.randn(1, 4, 16, 16)
    states = components.family.encode_prompts(components, ["a red house"])

    def predict() -> tuple[torch.Tensor, torch.Tensor, int]:
        inputs = latents.clone().requires_grad_()
        with Divisions() as divisions:
            output = components.family.predict(components, inputs, torch.tensor([500]), states)
            output.square().sum().backward()
        assert inputs.grad is not None
        return output.detach(), inputs.grad, divisions.count

    before, gradient, count = predict()
    left_out = skip_neutral_divisions(components.unet)
    after, gradient_after, rest = predict()
    assert torch.equal(before, after)
    assert torch.equal(gradient, gradient_after)
    assert count == 2 * left_out > 0
    assert rest == 0
    skip_neutral_divisions(components.unet)
    assert torch.equal(predict()[0], before)


def test_another_factor_stays() -> None:
    model = torch.nn.Module()
    model.output_scale_factor = 1.4  # type: ignore[assignment]
    assert skip_neutral_divisions(model) == 0
    assert model.output_scale_factor == 1.4
    assert float(One()) == One() == 1.0
