"""What PyTorch can do on this machine, printed as one line of JSON: `python -m trainer.probe [--self-test]`.

Its own process, because importing torch takes seconds, holds memory and, on a broken installation, may crash. `trainer.doctor`
starts it and reads the line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from trainer.paths import ASSETS

TINY_MODEL = ASSETS / "models" / "inkwash-tiny"


def probe() -> dict[str, Any]:
    """Version, devices (the first is the one Inkwash would choose), number formats, attention and threads."""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "devices": devices(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def devices() -> list[dict[str, Any]]:
    """Each usable device with its memory in bytes (None for what shares the computer's) and what works on it."""
    found: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            capability = None if torch.version.hip else f"{properties.major}.{properties.minor}"
            found.append(_describe(f"cuda:{index}", properties.name, properties.total_memory, capability))
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        for index in range(torch.xpu.device_count()):
            properties = torch.xpu.get_device_properties(index)
            found.append(_describe(f"xpu:{index}", properties.name, properties.total_memory))
    if torch.backends.mps.is_available():
        found.append(_describe("mps", "Apple graphics"))
    found.append(_describe("cpu", "the processor"))
    return found


def _describe(
    device: str, name: str, total_bytes: int | None = None, compute_capability: str | None = None
) -> dict[str, Any]:
    return {
        "device": device,
        "name": name,
        "total_bytes": total_bytes,
        "compute_capability": compute_capability,
        "fp32": _computes(device, torch.float32),
        "bf16": _computes(device, torch.bfloat16),
        # On processors a small fp16 product is right, but training turned into NaN after one step (seen with torch 2.13).
        "fp16": device != "cpu" and _computes(device, torch.float16),
        "sdpa": _attends(device),
    }


def _computes(device: str, dtype: torch.dtype) -> bool:
    """Whether a small product and its gradient come out finite. A wrong build says yes to capability questions and fails here."""
    try:
        a = torch.ones(16, 16, device=device, dtype=dtype, requires_grad=True)
        (a @ a).sum().backward()
        return a.grad is not None and bool(torch.isfinite(a.grad).all())
    except (RuntimeError, NotImplementedError, TypeError):
        return False


def _attends(device: str) -> bool:
    try:
        q = torch.ones(1, 2, 8, 16, device=device)
        return bool(torch.isfinite(torch.nn.functional.scaled_dot_product_attention(q, q, q)).all())
    except (RuntimeError, NotImplementedError):
        return False


def self_test(tiny_model: Path = TINY_MODEL) -> list[dict[str, Any]]:
    """Compute on the best device and run the embedded model once: `name, ok, seconds, detail` for each trial."""
    device = devices()[0]["device"]
    trials = [_trial(f"matrix product on {device}", lambda: _product(device))]
    if (tiny_model / "unet" / "config.json").is_file():
        trials.append(_trial(f"embedded model on {device}", lambda: _tiny_forward(tiny_model, device)))
    return trials


def _trial(name: str, work: Any) -> dict[str, Any]:
    started = time.monotonic()
    try:
        detail, ok = work(), True
    except Exception as error:  # every failure is what this trial is there to report
        detail, ok = f"{type(error).__name__}: {error}", False
    return {"name": name, "ok": ok, "seconds": round(time.monotonic() - started, 3), "detail": detail}


def _product(device: str) -> str:
    a = torch.arange(512 * 512, dtype=torch.float32).reshape(512, 512).remainder(7)
    error = (a.to(device) @ a.to(device)).cpu().sub(a @ a).abs().max().item()
    if error > 1.0:  # small integers: exact, but for the reduced precision that some graphics cards use
        raise RuntimeError(f"the result is off by {error}")
    return "right"


def _tiny_forward(folder: Path, device: str) -> str:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    unet.to(device)
    size = unet.config["sample_size"]
    size = size if isinstance(size, int) else size[0]
    with torch.inference_mode():
        sample = torch.zeros(1, unet.config["in_channels"], size, size, device=device)
        text = torch.zeros(1, 77, unet.config["cross_attention_dim"], device=device)
        out = unet(sample, torch.tensor([1], device=device), encoder_hidden_states=text, return_dict=False)[0]
    if not torch.isfinite(out).all():
        raise RuntimeError("the model's output is not finite")
    return f"output {tuple(out.shape)}"


def main(arguments: list[str] | None = None) -> int:
    """Print the line."""
    parser = argparse.ArgumentParser(prog="python -m trainer.probe", description=__doc__)
    parser.add_argument("--self-test", action="store_true", help="also compute something and run the embedded model")
    options = parser.parse_args(arguments)
    found = probe()
    if options.self_test:
        found["self_test"] = self_test()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
