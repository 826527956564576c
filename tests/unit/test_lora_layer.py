"""The LoRA layer against peft's, against the formula, and in each surrounding that it has to work in."""

from __future__ import annotations

from typing import Any, cast

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.adapters.lora_layer import CastTogether, Dropouts, LoraLayer

RANK, SCALE = 3, 1.5
BASES: dict[str, Any] = {
    "linear": lambda: nn.Linear(8, 12),
    "linear without bias": lambda: nn.Linear(8, 12, bias=False),
    "conv 3x3": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "conv 3x3, stride 2": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=1),
    "conv 1x1": lambda: nn.Conv2d(8, 12, 1),
}
CPU = torch.device("cpu")


class Quantised(nn.Module):
    """A linear layer of 8-bit numbers, as libraries make them: it has neither a float weight nor its shape."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features, self.bias = linear.out_features, linear.in_features, linear.bias
        self.step = cast(Tensor, linear.weight.detach().abs().max() / 127)
        self.weight = nn.Parameter((linear.weight / self.step).round().to(torch.int8).flatten(), requires_grad=False)

    def full(self) -> Tensor:
        return self.weight.view(self.out_features, self.in_features) * self.step

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.full().to(inputs.dtype), self.bias.to(inputs.dtype))


def base_of(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return BASES[kind]().requires_grad_(False).to(dtype)


def inputs_for(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (2, 8, 6, 6) if kind.startswith("conv") else (2, 5, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def layer_on(base: nn.Module, dropout: float = 0.0, scale: float = SCALE) -> LoraLayer:
    layer = LoraLayer(base, RANK, scale, Dropouts(dropout), CPU)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in (layer.down, layer.up):
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return layer


def peft_on(base: nn.Module, like: LoraLayer, dropout: float = 0.0) -> Any:
    model = nn.Sequential(base)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=cast(Any, RANK * like.scale), target_modules=["0"], lora_dropout=dropout
    )
    peft.inject_adapter_in_model(config, model)
    layer: Any = model[0]
    with torch.no_grad():
        for part, weight in ((layer.lora_A, like.down), (layer.lora_B, like.up)):
            part["default"].to(torch.float32).weight.copy_(weight)
    return layer


def gradients(layer: nn.Module, inputs: Tensor, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Output, and the gradients of inputs, down and up of a loss whose gradient differs in each number."""
    output = layer(inputs)
    pattern = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
    found = torch.autograd.grad((output * pattern).sum(), (inputs, *weights))
    return (output.detach(), *found)


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", BASES)
def test_it_is_pefts_layer_with_its_gradients(kind: str, dtype: torch.dtype, scale: float) -> None:
    layer, inputs = layer_on(base_of(kind, dtype), scale=scale), inputs_for(kind, dtype)
    theirs = peft_on(base_of(kind, dtype), layer)
    ours = gradients(layer, inputs, (layer.down, layer.up))
    peer = gradients(theirs, inputs, (theirs.lora_A["default"].weight, theirs.lora_B["default"].weight))
    # peft computes the change in fp32 even in a model of 16 bits; ours in the model's own format.
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for mine, expected in zip(ours, peer, strict=True):
        assert mine.dtype == expected.dtype
        error = (mine.float() - expected.float()).norm() / expected.float().norm()
        assert error < tolerance
    assert ours[2].dtype == torch.float32


@pytest.mark.parametrize("kind", BASES)
def test_the_plain_path_and_the_other_are_one(kind: str) -> None:
    base, inputs = base_of(kind), inputs_for(kind)
    layer = layer_on(base)
    lean = gradients(layer, inputs, (layer.down, layer.up))
    # A hook is what makes it leave the base's product to the base.
    base.register_forward_hook(lambda *_: None)
    for mine, expected in zip(gradients(layer, inputs, (layer.down, layer.up)), lean, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("kind", BASES)
def test_it_is_the_layer_with_changed_weights(kind: str) -> None:
    base, changed = base_of(kind), cast(Any, base_of(kind))
    layer, inputs = layer_on(base), inputs_for(kind)
    weights = (layer.down, layer.up)
    delta = SCALE * torch.einsum("or,r...->o...", layer.up.flatten(1), layer.down)

    def formula(inputs: Tensor) -> Tensor:
        return torch.func.functional_call(changed, {"weight": changed.weight + delta}, (inputs,))

    expected = torch.autograd.grad(formula(inputs).square().sum(), (inputs, *weights))
    torch.testing.assert_close(layer(inputs), formula(inputs))
    found = torch.autograd.grad(layer(inputs).square().sum(), (inputs, *weights))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_quantised_base_keeps_its_own_product() -> None:
    base = Quantised(cast(nn.Linear, base_of("linear")))
    layer, inputs = layer_on(base), inputs_for("linear")
    full = base.full() + SCALE * layer.up @ layer.down
    expected = nn.functional.linear(inputs, full, base.bias)
    torch.testing.assert_close(layer(inputs), expected)
    ours = torch.autograd.grad(layer(inputs).square().sum(), (inputs, layer.down, layer.up))
    theirs = torch.autograd.grad(expected.square().sum(), (inputs, layer.down, layer.up))
    torch.testing.assert_close(ours, theirs)


class Model(nn.Module):
    """Two layers with changes, of which the second stands behind a checkpoint if asked."""

    def __init__(self, dtype: torch.dtype, *, checkpoints: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers: Any = nn.ModuleList(
            layer_on(nn.Linear(8, 8).requires_grad_(False).to(dtype), scale=1.0) for _ in range(2)
        )
        self.checkpoints = checkpoints

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = self.layers
        hidden = torch.tanh(first(inputs))
        return checkpoint(second, hidden, use_reentrant=False) if self.checkpoints else second(hidden)


def train_once(model: Model, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    for weight in model.parameters():
        weight.grad = None
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(4)).to(dtype)
    (model(inputs).float().square().mean() * scale).backward()
    return [cast(Tensor, weight.grad).clone() for weight in model.parameters() if weight.requires_grad]


def cast_together(model: Model, dtype: torch.dtype) -> None:
    CastTogether(model, cast(Any, list(model.layers)), dtype)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_casting_together_changes_nothing_and_is_never_older_than_the_weights(checkpoints: bool) -> None:
    plain, together = (Model(torch.bfloat16, checkpoints=checkpoints) for _ in range(2))
    cast_together(together, torch.bfloat16)
    for _ in range(2):
        ours, expected = train_once(together, torch.bfloat16), train_once(plain, torch.bfloat16)
        assert all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))
        assert all(gradient.dtype == torch.float32 for gradient in ours)
        for model in (plain, together):
            for weight in model.parameters():
                if weight.requires_grad:
                    # As some optimizers do it: behind the back of autograd's counter of versions.
                    weight.data.mul_(1.5)
    inputs = torch.ones(1, 8, dtype=torch.bfloat16)
    alone = together.layers[0](inputs)
    together.layers[0].down.data.mul_(2)
    assert not torch.equal(together.layers[0](inputs), alone)


def test_copies_are_taken_back_after_a_failed_pass() -> None:
    model = Model(torch.bfloat16)
    cast_together(model, torch.bfloat16)
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 3, dtype=torch.bfloat16))
    assert all(cast(LoraLayer, layer)._cast is None for layer in model.layers)


def test_each_gradient_comes_at_once_to_who_waits_for_it() -> None:
    model = Model(torch.bfloat16)
    cast_together(model, torch.bfloat16)
    missing: list[int] = []
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.register_post_accumulate_grad_hook(
            lambda _: missing.append(sum(other.grad is None for other in weights))
        )
    train_once(model, torch.bfloat16)
    assert missing == [3, 2, 1, 0]


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_pefts_layer(base_dtype: torch.dtype) -> None:
    layer, inputs = layer_on(base_of("linear", base_dtype)), inputs_for("linear")
    theirs = peft_on(base_of("linear", base_dtype), layer)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(layer, inputs, (layer.down, layer.up))
        peer = gradients(theirs, inputs, (theirs.lora_A["default"].weight, theirs.lora_B["default"].weight))
    assert ours[0].dtype == peer[0].dtype == torch.bfloat16
    for mine, expected in zip(ours, peer, strict=True):
        assert (mine.float() - expected.float()).norm() < 3e-2 * expected.float().norm()


def test_scaled_gradients_of_fp16_come_back_as_they_would_in_fp32() -> None:
    model, exact = Model(torch.float16), Model(torch.float32)
    cast_together(model, torch.float16)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.0)
    scaler.scale(torch.zeros(()))
    train_once(model, torch.float16, scale=scaler.get_scale())
    scaler.unscale_(optimizer)
    for weight, expected in zip(weights, train_once(exact, torch.float32), strict=True):
        assert (cast(Tensor, weight.grad) - expected).norm() < 1e-2 * expected.norm()


def test_dropout_is_pefts_while_training_and_none_afterwards() -> None:
    layer, inputs = layer_on(base_of("linear"), dropout=0.4), inputs_for("linear").detach()
    theirs = peft_on(base_of("linear"), layer, dropout=0.4)
    assert not torch.equal(layer(inputs), layer(inputs))
    torch.manual_seed(5)
    ours = layer(inputs)
    torch.manual_seed(5)
    torch.testing.assert_close(ours, theirs(inputs))
    mean = torch.stack([layer(inputs) for _ in range(1000)]).mean(0)
    layer.eval()
    torch.testing.assert_close(layer(inputs), layer_on(base_of("linear"))(inputs))
    # Far from the spread of single draws, 1.1; the mean of 1000 strays by 0.03.
    torch.testing.assert_close(mean, layer(inputs), atol=0.25, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "conv 3x3", "conv 1x1"])
@pytest.mark.parametrize("frozen", ["down", "up"])
def test_inputs_without_gradient_get_none_and_frozen_weights_neither(kind: str, frozen: str) -> None:
    layer, inputs = layer_on(base_of(kind)), inputs_for(kind).detach()
    getattr(layer, frozen).requires_grad_(False)
    layer(inputs).square().sum().backward()
    found = {"down": layer.down.grad, "up": layer.up.grad}
    assert found.pop(frozen) is None
    both = layer_on(base_of(kind))
    both(inputs).square().sum().backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, getattr(both, name).grad)
    assert inputs.grad is None
