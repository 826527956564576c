"""EVA: a LoRA's `down` starts in the directions in which the layer's inputs vary most on the training's own pictures.

Paischer et al. 2024, "Explained Variance Adaptation", https://arxiv.org/abs/2410.07170. `up` stays zero, so the start is the
base model exactly. The incremental principal components are peft's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft.utils.incremental_pca import IncrementalPCA
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from trainer.adapters.choice import Layers, chosen_layers
from trainer.adapters.method import AdapterMethod
from trainer.config.adapter import AdapterConfig
from trainer.config.blocks import MAX_RANK
from trainer.files import write_atomically
from trainer.models.components import Components

FILE_NAME = "eva.safetensors"
_SETTINGS = "settings"
_ROWS = 512
"""Inputs of a layer that are looked at in a batch, evenly spread over it."""
_LARGE = 2048
"""Numbers an input from which on only the first directions of a decomposition are computed."""


class InputDirections:
    """The principal directions of what a layer is given, from some of it at a time.

    Args:
        count: how many are wanted; fewer where the input has fewer numbers.
    """

    def __init__(self, count: int) -> None:
        self._wanted = count
        self._pca: IncrementalPCA | None = None
        self._waiting: list[Tensor] = []

    def see(self, rows: Tensor) -> None:
        """Take inputs in, float32 `(inputs, numbers)`."""
        count, is_large = min(self._wanted, rows.shape[1]), rows.shape[1] > _LARGE
        rows = rows[:: max(1, len(rows) // _ROWS)][:_ROWS]
        # Apple's GPUs have no float64, in which means are counted.
        self._waiting.append(rows.cpu() if rows.device.type == "mps" else rows)
        # The fast decomposition of large inputs looks at twice as many directions.
        if sum(map(len, self._waiting)) > count * (2 if is_large else 1):
            self._pca = self._pca or IncrementalPCA(n_components=count, lowrank=is_large, lowrank_seed=0)
            self._pca.partial_fit(torch.cat(self._waiting))
            self._waiting = []

    def found(self) -> tuple[Tensor, Tensor]:
        """Directions `(count, numbers)`, orthonormal rows, the strongest first, and the share of the variance in each.

        Where fewer inputs were seen than directions are wanted, the others are at right angles to them, with no share.
        """
        if self._pca is not None:
            # It counts in float64 from the second part on; inputs that are all alike have no variance to share.
            return self._pca.components_.float(), self._pca.explained_variance_ratio_.float().nan_to_num()
        rows = torch.cat(self._waiting)
        _, values, right = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        count = min(self._wanted, rows.shape[1])
        # The last of centred inputs is none.
        real = right[: max(0, len(rows) - 1)]
        generator = torch.Generator().manual_seed(0)
        rest = torch.randn(rows.shape[1], count, generator=generator).to(rows)
        basis, _ = torch.linalg.qr(torch.cat([real.T, rest], 1)[:, :count])
        ratios = torch.zeros(count, device=rows.device)
        shares = values[: len(real)].square() / values.square().sum().clamp(min=1e-30)
        ratios[: len(real)] = shares[:count]
        basis[:, : min(len(real), count)] = real.T[:, :count]
        return basis.T.contiguous(), ratios


def input_rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies its weight with, float32, a row each place: `(places, in * kernel)`."""
    inputs = inputs.detach().float()
    if isinstance(layer, nn.Conv2d):
        patches = functional.unfold(
            inputs,
            layer.kernel_size,  # type: ignore[arg-type] - two sides, as unfold takes them
            dilation=layer.dilation,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
        )
        return patches.transpose(1, 2).flatten(0, 1)
    return inputs.flatten(0, -2)


@contextmanager
def watching(components: Components, layers: Layers, rho: float) -> Iterator[dict[str, tuple[InputDirections, str]]]:
    """Look at the inputs of layers for a while: by path the directions, and the path of the layer that has the same inputs."""
    found: dict[str, tuple[InputDirections, str]] = {}
    recent: list[tuple[Tensor, int, str]] = []

    def hook_for(path: str, count: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Queries, keys and values of an attention have one input, which need not be decomposed three times.
            source = next((at for tensor, own, at in recent if tensor is inputs[0] and own == count), path)
            if path not in found:
                found[path] = (found[source][0] if source in found else InputDirections(count), source)
            directions, source = found[path]
            if source == path:
                directions.see(input_rows(layer, inputs[0]))
                recent.append((inputs[0], count, path))
                del recent[:-2]

        return hook

    handles = [
        getattr(components, part)
        .get_submodule(path)
        .register_forward_pre_hook(hook_for(f"{part}.{path}", min(MAX_RANK, math.ceil(rho * choice.rank))))
        for part, paths in layers.items()
        for path, choice in paths.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def eva_starts(components: Components, config: AdapterConfig, passes: Callable[[int], None]) -> dict[str, Tensor]:
    """The `down` that each layer starts with, by path, float32 on the CPU; their rows are the layers' ranks.

    Args:
        components: the model without an adapter.
        config: with `init` "eva".
        passes: called with the numbers from 0 to `eva.batches`; runs the model on that batch.
    """
    layers = chosen_layers(components, config)
    with torch.no_grad(), watching(components, layers, config.eva.rho) as found:
        for number in range(config.eva.batches):
            passes(number)
    results = {path: directions.found() for path, (directions, _) in found.items()}
    wanted = {f"{part}.{path}": choice.rank for part, paths in layers.items() for path, choice in paths.items()}
    ranks = {path: min(rank, len(results[path][0])) for path, rank in wanted.items()}
    if config.eva.rho > 1:
        ranks = {
            path: rank
            for part in layers
            for path, rank in redistributed(
                {path: results[path][1].cpu() for path in wanted if path.startswith(f"{part}.")}, ranks
            ).items()
        }
    return {path: results[path][0][:rank].cpu().clone() for path, rank in ranks.items()}


def redistributed(ratios: Mapping[str, Tensor], ranks: Mapping[str, int]) -> dict[str, int]:
    """The same number of ranks, given to the directions that explain most of their layer's variance (section 3.2).

    Other than in the paper each layer keeps one: some programs skip an attention of which a layer is missing.

    Args:
        ratios: for each layer the share of each of its directions, the largest first.
        ranks: for each layer what it would have.
    """
    budget = sum(ranks[path] for path in ratios) - len(ratios)
    owners = [(float(ratio), path) for path, own in ratios.items() for ratio in own[1:]]
    owners.sort(key=lambda item: -item[0])
    found = dict.fromkeys(ratios, 1)
    for _, path in owners[:budget]:
        found[path] += 1
    return found


def with_ranks(config: AdapterConfig, starts: Mapping[str, Tensor]) -> AdapterConfig:
    """The settings with the ranks of the starts, where those were redistributed; the scale alpha / rank stays."""
    if config.eva.rho <= 1:
        return config
    return config.model_copy(update={"blocks": [*config.blocks, *(f"{p}: rank={len(s)}" for p, s in starts.items())]})


@torch.no_grad()
def begin_with(adapter: AdapterMethod, starts: Mapping[str, Tensor]) -> None:
    """Put the starts into an adapter that was attached."""
    state = adapter.state_dict()
    for path, start in starts.items():
        down = state[f"{path}.down"]
        # A rank above what the layer's input has keeps the rest of its random start.
        down[: len(start)].copy_(start.reshape(-1, *down.shape[1:]))


def kept_starts(folder: Path, config: AdapterConfig) -> dict[str, Tensor]:
    """What an earlier process of the run found; empty where there is nothing, or what is there is damaged or for other settings."""
    try:
        with safe_open(folder / FILE_NAME, framework="pt") as file:
            if (file.metadata() or {}).get(_SETTINGS) != config.model_dump_json():
                return {}
            starts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
            # Older versions kept ranks that no layer may have, and ended there.
            return {} if any(len(start) > MAX_RANK for start in starts.values()) else starts
    except (OSError, SafetensorError):
        return {}


def keep_starts(folder: Path, config: AdapterConfig, starts: Mapping[str, Tensor]) -> None:
    """Keep them for a process that goes on with the run: another device would find others."""
    data = save({path: start.contiguous() for path, start in starts.items()}, {_SETTINGS: config.model_dump_json()})
    write_atomically(folder / FILE_NAME, lambda temporary: temporary.write_bytes(data), "the start of the LoRA")
