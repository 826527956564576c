"""`python -m trainer.training.memory_report`: the memory of a run as one line of JSON; the settings come on standard input.

A process of its own, for whoever asks does not import torch. `trainer.memory` starts it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from trainer.config.loading import build_config, flatten
from trainer.config.run import RunConfig
from trainer.errors import InkwashError
from trainer.models.devices import dtype_name, pick_device, pick_dtype
from trainer.models.packing import has_bitsandbytes
from trainer.paths import DataFolder
from trainer.training.estimate import Estimate, estimate
from trainer.training.ladder import Place, fit
from trainer.training.storage import keeps_text_encoders


def report(config: RunConfig, data: DataFolder, budget: int | None) -> dict[str, Any]:
    """What `trainer.memory.MemoryReport` reads. Raises InkwashError: see the message."""
    device = pick_device(config.training.device)
    taken: list[dict[str, Any]] = []
    before = None
    if budget is not None:
        place = Place(device.type, dtype_name(pick_dtype("auto", device)), has_bitsandbytes())
        found = fit(config, budget, lambda candidate: _estimated(candidate, data).peak, place)
        config, before = found.config, found.before
        taken = [{"title": rung.title, "cost": rung.cost, "changes": changes} for rung, changes in found.taken]
    final = _estimated(config, data)
    notes = []
    if device.type != "cpu" and keeps_text_encoders(config) and not config.adapter.trains_text:
        notes.append(
            "The text encoders stay on the device because captions vary; without data.shuffle_tags, data.wildcards and "
            "data.tag_dropout they would leave it."
        )
    if device.type != "cpu":
        notes.append(
            "Estimates were compared with measured peaks on processors only: leave a margin on a graphics card."
        )
    return {
        "device": device.type,
        "parts": final.parts,
        "phases": final.phases,
        "peak": final.peak,
        "before": before,
        "taken": taken,
        "settings": flatten(config),
        "notes": notes,
    }


def _estimated(config: RunConfig, data: DataFolder) -> Estimate:
    return estimate(config, data)


def main(arguments: list[str] | None = None) -> int:
    """Print the line; an error as `{"error": …}`."""
    parser = argparse.ArgumentParser(prog="python -m trainer.training.memory_report", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--budget", type=int, help="bytes to fit into")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    torch.set_num_threads(1)
    try:
        found = report(build_config(json.load(sys.stdin)), DataFolder(options.data_dir), options.budget)
    except InkwashError as error:
        found = {"error": error.to_dict()}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
