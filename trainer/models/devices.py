"""Chooses where and in which number format to compute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil
import torch

from trainer.errors import ConfigError, ResourceError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_ORDER = ("cuda", "xpu", "mps", "cpu")


def pick_device(name: str) -> torch.device:
    """The device of that name, or for "auto" the fastest that is there.

    Raises: ResourceError: it is not there.
    """
    if name == "auto":
        name = next(candidate for candidate in _ORDER if is_available(candidate))
    if name not in _ORDER or not is_available(name):
        there = ", ".join(candidate for candidate in _ORDER if is_available(candidate))
        raise ResourceError(
            f"The device '{name}' was asked for, but PyTorch does not see it.",
            where="training.device",
            fix=f"Use auto or one of: {there}. `inkwash doctor` says why a graphics card is not seen.",
        )
    # The current GPU by its index: torch compares devices with and without an index as different.
    return torch.device(name, 0) if name in ("cuda", "xpu") else torch.device(name)


def is_available(name: str) -> bool:
    """Whether PyTorch can compute on this kind of device here."""
    if name == "cuda":
        return torch.cuda.is_available()
    if name == "xpu":
        return hasattr(torch, "xpu") and torch.xpu.is_available()
    if name == "mps":
        return torch.backends.mps.is_available()
    return name == "cpu"


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of the frozen weights.

    `auto` takes bf16 where the device computes in it (not merely emulates it), else fp16 on a GPU, else fp32.
    Raises: ConfigError: fp16 on a CPU.
    """
    if name == "auto":
        if has_fast_bf16(device):
            return torch.bfloat16
        return torch.float32 if device.type == "cpu" else torch.float16
    if name == "fp16" and device.type == "cpu":
        raise ConfigError(
            "fp16 on a processor ends in NaN.", where="model.precision", fix="Use auto, bf16 or fp32 there."
        )
    return _DTYPES[name]


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 arithmetic of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    if device.type == "xpu":
        return True
    try:
        one = torch.ones(2, 2, dtype=torch.bfloat16, device=device)
        return bool(torch.isfinite(one @ one).all())
    except (RuntimeError, TypeError):
        # Older macOS has no bf16 on its GPU and says so only when asked to compute.
        return False


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context without mixed precision; the meta device, on which memory is counted, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def dtype_name(dtype: torch.dtype) -> str:
    """The short name used in settings and events: fp32, bf16, fp16."""
    return {value: key for key, value in _DTYPES.items()}[dtype]


def memory_bytes(device: torch.device) -> int:
    """The most memory that was in use on a CUDA device; elsewhere what this process holds now."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)
