"""Checkpoints that are whole or absent: written beside their place and renamed."""

from __future__ import annotations

from pathlib import Path

import torch
from optim import Average, Optimizers
from torch import nn


def save_checkpoint(path: Path, modules: dict[str, nn.Module], optimizers: Optimizers, average: Average) -> None:
    """Write everything that is needed to go on."""
    state = {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": optimizers.state_dict(),
        "average": average.values,
        "updates": average.updates,
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def load_checkpoint(path: Path, modules: dict[str, nn.Module], optimizers: Optimizers, average: Average) -> None:
    """Go on from a checkpoint, if there is one; the optimizers know the number of steps done."""
    if not path.exists():
        return
    state = torch.load(path)
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizers.load_state_dict(state["optimizers"])
    average.values, average.updates = state["average"], state["updates"]
