"""The methods' maths against the papers' formulas and against peft, one layer at a time."""

from __future__ import annotations

from typing import Any, cast

import peft
import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator
from torch import Tensor, nn

from trainer.adapters.adalora import AdaloraChange, AdaloraMethod, allocate, budget
from trainer.adapters.changed import Change, ChangedLayer, ChangedWeights, Site
from trainer.adapters.method import build_method, end_early
from trainer.config.adapter import AdaloraSettings, AdapterConfig, UnetLora
from trainer.config.adapter_size import block_size, butterfly_size, factorize


def linear(out: int = 12, columns: int = 8, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(columns, out).requires_grad_(False)


def change_of(config: AdapterConfig, base: nn.Linear | nn.Conv2d) -> Any:
    """The method's change of a layer, moved away from its start."""
    method = cast(ChangedWeights, build_method(config))
    generator = torch.Generator().manual_seed(1)
    change = method._make(config, Site("unet.x", base.weight, config.unet.rank, config.unet.alpha, generator))
    with torch.no_grad():
        for weight in change.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return change


def settings(rank: int = 2, alpha: float = 3.0, **others: Any) -> AdapterConfig:
    return AdapterConfig(unet=UnetLora(rank=rank, alpha=alpha), **others)


def peft_layer(config: Any, base: nn.Module) -> Any:
    model = nn.Sequential(base)
    peft.inject_adapter_in_model(config, model)
    return model[0]


def test_dora_by_output_is_pefts_with_its_gradients() -> None:
    base, inputs = linear(), torch.randn(5, 8)
    change = change_of(settings(method="dora", dora={"axis": "output"}), base)
    ours = ChangedLayer(base, change, AdapterConfig())(inputs)
    ours.square().sum().backward()
    theirs = peft_layer(
        peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=["0"], init_lora_weights=False), linear()
    )
    magnitude = theirs.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(change.down)
        theirs.lora_B["default"].weight.copy_(change.up)
        magnitude.copy_(change.start + change.magnitude)
    output = theirs(inputs)
    output.square().sum().backward()
    torch.testing.assert_close(ours, output)
    torch.testing.assert_close(change.down.grad, theirs.lora_A["default"].weight.grad)
    torch.testing.assert_close(change.up.grad, theirs.lora_B["default"].weight.grad)
    torch.testing.assert_close(change.magnitude.grad, magnitude.grad)


def test_dora_by_input_gives_each_input_channel_its_length() -> None:
    base = nn.Conv2d(6, 4, 3).requires_grad_(False)
    change = change_of(settings(method="dora"), base)
    changed = base.weight + change.delta_weight(base.weight)
    lengths = changed.transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, change.start + change.magnitude)
    direction = base.weight + 1.5 * torch.einsum("orij,rikl->oikl", change.up, change.down)
    cosine = torch.cosine_similarity(changed.transpose(0, 1).flatten(1), direction.transpose(0, 1).flatten(1))
    torch.testing.assert_close(cosine, torch.ones(6))


def test_loha_is_pefts() -> None:
    base = linear()
    change = change_of(settings(method="loha"), base)
    theirs = peft_layer(peft.LoHaConfig(r=2, alpha=3, target_modules=["0"]), linear())  # type: ignore[arg-type]
    with torch.no_grad():
        for name in ("w1_a", "w1_b", "w2_a", "w2_b"):
            getattr(theirs, f"hada_{name}")["default"].copy_(getattr(change, name))
    torch.testing.assert_close(change.delta_weight(base.weight), theirs.get_delta_weight("default"))


@pytest.mark.parametrize("rank", [1, 64])
def test_lokr_is_a_kronecker_product(rank: int) -> None:
    base = nn.Conv2d(8, 12, 3).requires_grad_(False)
    change = change_of(settings(rank=rank, method="lokr", lokr={"factor": 4}), base)
    assert change.w1.shape == (3, 2)
    second = change.w2 if rank == 64 else (change.w2_a @ change.w2_b).reshape(change._shape) * (3.0 / rank)
    expected = torch.stack(
        [torch.kron(change.w1, second[:, :, i, j]) for i in range(3) for j in range(3)], dim=-1
    ).reshape(12, 8, 3, 3)
    torch.testing.assert_close(change.delta_weight(base.weight), expected)


def test_kronecker_factors_are_those_of_lycoris() -> None:
    # LyCORIS' own examples, in its documentation of `factorization`.
    expected = {
        (128, -1): (8, 16), (250, -1): (10, 25), (360, -1): (18, 20), (512, -1): (16, 32), (1024, -1): (32, 32),
        (128, 4): (4, 32), (250, 4): (2, 125), (360, 4): (4, 90), (512, 4): (4, 128), (127, 4): (1, 127),
    }  # fmt: skip
    assert {key: factorize(*key) for key in expected} == expected


def test_oft_rotates_its_blocks() -> None:
    base = linear()
    change = change_of(settings(rank=4, method="oft"), base)
    rotations = []
    for block in change.blocks:
        skew, identity = block - block.T, torch.eye(4)
        # Cayley's transform as the paper writes it; LyCORIS has the transposed one act from the left.
        rotations.append(torch.linalg.solve(identity - skew, identity + skew))
    whole = torch.block_diag(*rotations)
    torch.testing.assert_close(whole @ whole.T, torch.eye(12), atol=1e-5, rtol=0)
    changed = base.weight + change.delta_weight(base.weight)
    torch.testing.assert_close(changed, whole.T @ base.weight, atol=1e-5, rtol=1e-5)


def test_boft_lets_every_channel_reach_every_other_and_keeps_all_angles() -> None:
    base = linear(out=16)
    change = change_of(settings(rank=2, method="boft"), base)
    assert change.blocks.shape == (4, 8, 2, 2)
    changed = base.weight + change.delta_weight(base.weight)
    torch.testing.assert_close(changed.T @ changed, base.weight.T @ base.weight, atol=1e-5, rtol=1e-5)
    identity = torch.eye(16)
    whole = identity + change.delta_weight(identity)
    assert (whole.abs() > 1e-6).all()


def test_block_sizes() -> None:
    assert [block_size(320, 16), block_size(77, 16), block_size(13, 8)] == [16, 11, 0]
    assert [butterfly_size(320, 16), butterfly_size(1280, 32), butterfly_size(9, 8)] == [10, 20, 0]


def test_ia3_scales_channels() -> None:
    base, inputs = linear(), torch.randn(5, 8)
    base.bias.zero_()
    change = change_of(settings(method="ia3"), base)
    torch.testing.assert_close(ChangedLayer(base, change, AdapterConfig())(inputs), base(inputs) * (1 + change.factors))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_in_the_base_is_pefts(init: str) -> None:
    base, inputs = linear(), torch.randn(5, 8)
    config = settings(rank=3, alpha=6.0, init=init)
    method = cast(ChangedWeights, build_method(config))
    change: Any = method._make(config, Site("unet.x", base.weight, 3, 6.0, torch.Generator()))
    theirs = peft_layer(peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"], init_lora_weights=init), linear())  # type: ignore[arg-type]
    start = theirs.lora_B["default"].weight @ theirs.lora_A["default"].weight
    ours = change.start_up @ change.start_down
    # peft does not divide OLoRA's start by the scale.
    torch.testing.assert_close(ours * 2, start * (2 if init == "pissa" else 1), atol=1e-5, rtol=1e-4)
    # What is exported adds to the original weight: the same as training the start beside the weight without it.
    with torch.no_grad():
        change.up += 0.1
        change.down -= 0.2
    without = base.weight - 2 * ours
    expected = inputs @ (without + 2 * (change.start_up + change.up) @ (change.start_down + change.down)).T + base.bias
    torch.testing.assert_close(ChangedLayer(base, change, AdapterConfig())(inputs), expected, atol=1e-4, rtol=1e-4)


def test_a_small_change_of_a_weight_of_16_bits_is_not_rounded_away() -> None:
    base = linear().to(torch.bfloat16)
    change = change_of(settings(method="loha"), base)
    with torch.no_grad():
        change.w2_a *= 1e-5
    inputs = torch.ones(1, 8, dtype=torch.bfloat16)
    base.weight.zero_()
    base.bias.zero_()
    layer = ChangedLayer(base, change, AdapterConfig())
    small = layer(inputs).float()
    expected = inputs.float() @ change.delta_weight(base.weight).T
    torch.testing.assert_close(small, expected, rtol=0.02, atol=1e-7)


@pytest.mark.parametrize("method", ["dora", "loha", "lokr", "oft", "boft", "ia3", "adalora"])
def test_nothing_as_large_as_the_weight_is_kept_until_the_backward_pass_but_the_change(method: Any) -> None:
    base = linear(64, 48).to(torch.bfloat16)
    config = settings(rank=16, method=method)
    layer = ChangedLayer(base, change_of(config, base), config)
    inputs = torch.randn(5, 48, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).requires_grad_()
    weights = list(layer.change.parameters())
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel() >= base.weight.numel():
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = layer(inputs)
    kept.pop(base.weight.untyped_storage().data_ptr(), None)
    assert [(tensor.dtype, tensor.numel()) for tensor in kept.values()] == [(torch.bfloat16, base.weight.numel())]

    # And the gradients are those of the change as it is written down.
    delta = layer.change.delta_weight(base.weight).to(torch.bfloat16)
    expected = base(inputs) + nn.functional.linear(inputs, delta)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=0)
    ours = torch.autograd.grad(outputs.square().sum(), [*weights, inputs])
    theirs = torch.autograd.grad(expected.square().sum(), [*weights, inputs])
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def adalora_with(rank: int, layers: int = 2) -> tuple[AdaloraMethod, list[AdaloraChange]]:
    config = settings(rank=rank, method="adalora", adalora={"every": 1, "start_share": 0.2, "final_share": 0.2})
    method = cast(AdaloraMethod, build_method(config))
    changes = []
    for index in range(layers):
        base = linear(seed=index)
        change = cast(AdaloraChange, change_of(config, base))
        method._layers[f"unet.{index}"] = ChangedLayer(base, cast(Change, change), AdapterConfig())
        changes.append(change)
    return method, changes


def test_adaloras_importance_is_pefts() -> None:
    _, (change, _) = adalora_with(3)
    theirs = nn.Sequential(linear())
    config = peft.AdaLoraConfig(init_r=3, target_r=1, total_step=10, tinit=2, tfinal=2, target_modules=["0"])
    peft.inject_adapter_in_model(config, theirs)
    layer: Any = theirs[0]
    pairs = ((layer.lora_A["default"], change.down), (layer.lora_B["default"], change.up))
    pairs += ((layer.lora_E["default"], change.values),)
    with torch.no_grad():
        for their, our in pairs:
            their.copy_(our.view(their.shape))
    allocator = RankAllocator(theirs, config, "default")
    for step in range(3):
        for index, (their, our) in enumerate(pairs):
            gradient = torch.randn(our.shape, generator=torch.Generator().manual_seed(10 * step + index))
            our.grad, their.grad = gradient, gradient.view(their.shape)
        change.observe(AdaloraSettings())
        allocator.update_ipt(theirs)
    parts = {name[7]: allocator._element_score(name) for name in allocator.ipt}
    their = parts["E"].flatten() + parts["A"].mean(1) + parts["B"].mean(0)
    torch.testing.assert_close(change.scores(), their)
    assert [budget(step, 2, 8, 60, 12) for step in range(11)] == pytest.approx(
        [int(_peft_budget(step, 2, 2, 10, 60, 12)) for step in range(11)], abs=1
    )


def _peft_budget(step: int, start: int, final: int, total: int, first: int, last: int) -> float:
    """The paper's equation 12, written as peft does."""
    if step <= start:
        return first
    if step > total - final:
        return last
    rest = 1 - (step - start) / (total - final - start)
    return (first - last) * rest**3 + last


def test_adalora_keeps_directions_apart() -> None:
    method, changes = adalora_with(3)
    distances = [
        torch.linalg.matrix_norm(change.up.T @ change.up - torch.eye(3)) ** 2
        + torch.linalg.matrix_norm(change.down @ change.down.T - torch.eye(3)) ** 2
        for change in changes
    ]
    penalty = cast(Tensor, method.penalty())
    torch.testing.assert_close(penalty, 0.1 * torch.stack(distances).mean())
    optimizer = torch.optim.SGD([weight for change in changes for weight in (change.up, change.down)], lr=0.6)
    for _ in range(60):
        optimizer.zero_grad()
        cast(Tensor, method.penalty()).backward()
        optimizer.step()
    assert cast(Tensor, method.penalty()).item() < 0.01 * penalty.item()


def test_adalora_takes_ranks_where_they_are_not_needed_and_exports_what_is_left() -> None:
    method, (needed, idle) = adalora_with(4)
    ranks = []
    for step in range(1, 11):
        for change, size in ((needed, 1.0), (idle, 1e-3)):
            for index, weight in enumerate(change.parameters()):
                noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * step + index))
                weight.grad = size * noise
                weight.data += 0.01 * weight.grad
        method.after_step(step, 10)
        ranks.append(needed.rank + idle.rank)
    assert ranks[:2] == [8, 8]
    assert ranks[7:] == [4, 4, 4]
    assert sorted(ranks, reverse=True) == ranks
    assert (needed.rank, idle.rank) == (4, 0)
    modules = method.export_modules()
    assert [module.rank for module in modules.values()] == [4, 1]
    for module, change in zip(modules.values(), (needed, idle), strict=True):
        expected = 0.75 * change.up @ torch.diag(change.values) @ change.down
        torch.testing.assert_close(module.delta_weight(torch.zeros(12, 8)), expected)
    assert "4 of 8 ranks" in method.outcome()
    # An average over the steps is not zero where a rank was taken.
    idle.values.data.fill_(0.1)
    assert "4 of 8 ranks" in method.outcome()
    assert not method.export_modules()["unet.1"].delta_weight(torch.zeros(12, 8)).any()


@pytest.mark.parametrize("more", [0, 1])
def test_adalora_of_a_run_that_was_made_shorter_leaves_the_share_that_was_asked_for(more: int) -> None:
    method, changes = adalora_with(4)
    for step in range(1, 41 + more):
        for change in changes:
            for index, weight in enumerate(change.parameters()):
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * step + index))
                weight.data += 0.01 * weight.grad
        # Stopped at step 40 of 100, and then `resume --steps 40` or `--steps 41`, whose last decision would be at 32 or 33.
        if step == 41:
            method.load_state_dict({name: tensor.clone() for name, tensor in method.state_dict().items()})
        method.after_step(step, 100 if step <= 40 else 41)
    if not more:
        assert sum(change.rank for change in changes) > 4
        end_early(method)
    assert sum(change.rank for change in changes) == 4
    kept = [change.kept.tolist() for change in changes]
    end_early(method)
    assert [change.kept.tolist() for change in changes] == kept
    assert "4 of 8 ranks" in method.outcome()


def test_a_triplet_may_come_back() -> None:
    _, (first, second) = adalora_with(2)
    scores = {id(first): torch.tensor([3.0, 1.0]), id(second): torch.tensor([2.0, 4.0])}
    for change in (first, second):
        change.scores = lambda change=change: scores[id(change)]  # type: ignore[method-assign]
    allocate([first, second], 2)
    assert (first.kept.tolist(), second.kept.tolist()) == ([1, 0], [0, 1])
    scores[id(second)] = torch.tensor([5.0, 4.0])
    allocate([first, second], 2)
    assert (first.kept.tolist(), second.kept.tolist()) == ([0, 0], [1, 1])
