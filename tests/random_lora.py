"""Random LoRAs that fit a given model, for tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.lora_files.file import LoraModule
from trainer.lora_files.matching import adaptable_shapes
from trainer.models.components import Components

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj")
ALL = (
    *ATTENTION,
    ".fc1",
    ".fc2",
    ".proj_in",
    ".proj_out",
    ".conv1",
    ".conv2",
    ".conv_shortcut",
    ".time_emb_proj",
    ".conv",
    ".proj",
    ".net.2",
)


def random_lora(
    components: Components,
    *,
    rank: int = 4,
    alpha: float = 2.0,
    endings: tuple[str, ...] = ALL,
    seed: int = 0,
    size: float = 0.1,
) -> dict[str, LoraModule]:
    """A LoRA on every layer whose path ends in one of `endings`."""
    shapes = adaptable_shapes(components.adaptable)
    chosen = {path: shape for path, shape in shapes.items() if path.endswith(endings)}
    return modules_for(chosen, rank=rank, alpha=alpha, seed=seed, size=size)


def modules_for(
    shapes: Mapping[str, tuple[int, ...]], *, rank: int = 4, alpha: float = 2.0, seed: int = 0, size: float = 0.1
) -> dict[str, LoraModule]:
    """A LoRA for layers with weights of these shapes, by module path."""
    generator = torch.Generator().manual_seed(seed)
    modules: dict[str, LoraModule] = {}
    for path, shape in shapes.items():
        down = torch.randn((rank, *shape[1:]), generator=generator) * size
        up = torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator) * size
        modules[path] = LoraModule(down, up, alpha)
    return modules
