"""The attention kernel of small pictures on a CPU: another one, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.models.attention import training_attention


def attend(latents: Tensor, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], bool]:
    """Output, gradients of query, key and value, and whether the attention weights were computed as such."""
    torch.manual_seed(0)
    tokens = latents.shape[-2] * latents.shape[-1]
    parts = [torch.randn(2, 4, length, 16).to(dtype).requires_grad_() for length in (tokens, 77, 77)]
    with training_attention(latents), torch.profiler.profile() as profile:
        output = functional.scaled_dot_product_attention(*parts)
    output.float().square().mean().backward()
    is_plain = any("attention_math" in event.key for event in profile.key_averages())
    return output.detach(), [part.grad for part in parts if part.grad is not None], is_plain


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_small_pictures_get_the_plain_form_with_the_same_gradients(dtype: torch.dtype, tolerance: float) -> None:
    output, gradients, is_plain = attend(torch.empty(2, 4, 16, 16), dtype)
    # Latents of no device take torch's own choice.
    expected, theirs, is_theirs_plain = attend(torch.empty(2, 4, 16, 16, device="meta"), dtype)
    assert is_plain
    assert not is_theirs_plain
    torch.testing.assert_close(output, expected, rtol=tolerance, atol=tolerance)
    for mine, other in zip(gradients, theirs, strict=True):
        assert float((mine - other).norm() / other.norm()) < tolerance


def test_large_pictures_are_left_to_torch() -> None:
    assert not attend(torch.empty(2, 4, 32, 32), torch.float32)[2]
