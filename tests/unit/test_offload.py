"""Layers that are kept off the device: the same gradients, a few of them there at a time, the next ones ahead of time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.lora_files.modules import DifferenceModule
from trainer.models import storage
from trainer.models.components import Components
from trainer.models.frozen import FrozenLayer
from trainer.models.offload import Arrival, Offloader
from trainer.models.storage import Placement, WeightStorage, adopt, offloaded, packable
from trainer.training.underneath import FrozenLora, merge_frozen

CPU = torch.device("cpu")


class CountingCarrier:
    """A device in the imagination: what is copied to it counts until it is freed."""

    def __init__(self) -> None:
        self.resident = self.most = 0

    def keep(self, tensor: Tensor) -> Tensor:
        return tensor

    def send(self, tensors: dict[str, Tensor]) -> Arrival:
        copies = {name: tensor.clone() for name, tensor in tensors.items()}
        self.resident += 1
        self.most = max(self.most, self.resident)
        weakref.finalize(next(iter(copies.values())).untyped_storage(), self._free)
        return CountingArrival(copies)

    def _free(self) -> None:
        self.resident -= 1


class CountingArrival:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def ready(self) -> dict[str, Tensor]:
        return self._tensors


class CountingOffloader(Offloader):
    """Counts the layers that were needed before they were sent for."""

    missed = 0

    def fetch(self, layer: FrozenLayer) -> dict[str, Tensor]:
        CountingOffloader.missed += layer not in self._arriving
        return super().fetch(layer)


class Blocks(nn.Module):
    def __init__(self, checkpoints: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 1)) for _ in range(6)
        )
        self.scales = nn.ParameterList(torch.ones(4, 1, 1) for _ in range(6))
        self._checkpoints = checkpoints

    def forward(self, inputs: Tensor) -> Tensor:
        for block, scale in zip(self.blocks, self.scales, strict=True):
            step: Callable[[Tensor], Tensor] = lambda x, block=block, scale=scale: x + block(x * scale)  # noqa: E731
            inputs = checkpoint(step, inputs, use_reentrant=False) if self._checkpoints else step(inputs)
        return inputs


@pytest.fixture
def carrier(monkeypatch: pytest.MonkeyPatch) -> CountingCarrier:
    counting = CountingCarrier()
    monkeypatch.setattr(storage, "Offloader", lambda device: CountingOffloader(device, counting))
    return counting


@pytest.mark.parametrize("checkpoints", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("word", ["none", "nf4"])
def test_offloaded_layers_give_the_same_gradients_and_are_there_three_at_a_time(
    carrier: CountingCarrier, word: str, checkpoints: bool
) -> None:
    torch.manual_seed(0)
    plain, away = Blocks(checkpoints), Blocks(checkpoints)
    away.load_state_dict(plain.state_dict())
    for model in (plain, away):
        model.blocks.requires_grad_(False)
    adopt(plain, "unet", Placement(WeightStorage(word), CPU, torch.float32))
    adopt(away, "unet", Placement(WeightStorage(word, ("unet",), 1.0), CPU, torch.float32))
    assert sum(isinstance(module, FrozenLayer) for module in away.modules()) == 12
    inputs = torch.randn(2, 4, 8, 8)
    missed: list[int] = []
    for _ in range(3):
        gradients = []
        CountingOffloader.missed = 0
        for model in (plain, away):
            model.zero_grad()
            output = model(inputs)
            output.square().mean().backward()
            gradients.append([scale.grad for scale in model.scales])
        missed.append(CountingOffloader.missed)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    # The one in use, and two ahead of it.
    assert carrier.most <= 3
    assert carrier.resident <= 3
    # The first step learns the order, the last finds everything there.
    assert missed[0] >= 12
    assert missed[-1] <= 1


def test_what_is_sent_away_stays_there_and_its_bias_moves(carrier: CountingCarrier) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    adopt(model, "unet", Placement(WeightStorage("none", ("unet",), 1.0), CPU, torch.float32))
    layer = model[0].to("meta")
    assert isinstance(layer, FrozenLayer)
    assert layer.bias is not None
    assert layer.bias.is_meta
    assert not any(tensor.is_meta for tensor in layer.kept().values())


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_share_is_of_the_weights_and_spread_over_the_model(share: float) -> None:
    layers = packable(nn.Sequential(*(nn.Linear(8, 8 + index % 3) for index in range(40))))
    sizes = {path: layer.weight.numel() for path, layer in layers.items()}
    away = offloaded(layers, share)
    assert sum(sizes[path] for path in away) == pytest.approx(share * sum(sizes.values()), rel=0.03)
    first_half = [path for path in away if int(path) < 20]
    assert abs(2 * len(first_half) - len(away)) <= 2


def test_loras_under_the_new_one_reach_layers_that_are_kept_elsewhere(carrier: CountingCarrier) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 1)).requires_grad_(False)
    before = [layer.weight.clone() for layer in model]
    adopt(model, "unet", Placement(WeightStorage("none", ("unet",), 1.0), CPU, torch.float32))
    differences = [torch.randn_like(weight) for weight in before]
    modules = {f"unet.{index}": DifferenceModule(difference) for index, difference in enumerate(differences)}
    lora = FrozenLora("under", "0", modules, {}, (0.5, 1.0))
    merge_frozen(cast("Components", SimpleNamespace(adaptable={"unet": model})), [lora])
    for layer, weight, difference in zip(model, before, differences, strict=True):
        assert isinstance(layer, FrozenLayer)
        assert layer.is_away
        torch.testing.assert_close(layer.weight, weight + 0.5 * difference)
