"""`inkwash demo`: the whole loop on the embedded base model and a bundled data set."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.config.compare import CompareConfig
from trainer.config.loading import build_config, load_preset
from trainer.config.run import RunConfig
from trainer.dataset.captions import compose_caption
from trainer.dataset.store import DatasetStore
from trainer.errors import DatasetError
from trainer.jobs import enqueue
from trainer.paths import DataFolder, data_folder
from trainer.runs import create_run
from trainer.units import duration

SUMMARY = "show the whole loop: pictures, captions, training, before/after grid, LoRA file, loaded again"
EXAMPLES = """  inkwash demo
  inkwash demo --out ink-demo --json
  inkwash demo --dataset blueprint --steps 150"""

PRESET = "embedded-quick"
DATASET = "ink-wash"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--dataset", default=DATASET, help=f"a data set for the embedded model (default: {DATASET})")
    parser.add_argument("--steps", type=int, help="training steps (default: the preset's)")
    parser.add_argument("--learning-rate", type=float, help="learning rate of the UNet's LoRA (default: the preset's)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the training")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="copy the grid and the LoRA file there")


def run(arguments: argparse.Namespace) -> int:
    """Train, compare, report."""
    started = time.monotonic()
    data = data_folder(arguments.data_dir)
    printer = ProgressPrinter()
    config = _config(arguments, data)
    _show_captions(config, data, printer)
    training = create_run(data, "train", f"demo {config.data.dataset}", config.model_dump(mode="json"))
    enqueue(training, data)
    try:
        trained = follow(training, printer)
        printer.line("Loading the exported file again and making the same pictures without and with it …")
        comparison = create_run(data, "compare", "demo before/after", _compare(config, trained).model_dump(mode="json"))
        enqueue(comparison, data)
        compared = follow(comparison, printer)
    finally:
        printer.close()
    result = {
        "seconds": time.monotonic() - started,
        "steps": trained["steps"],
        "validation_loss_before": trained["validation_loss_first"],
        "validation_loss_after": trained["validation_loss_last"],
        "style_distance_before": compared["style_distance_before"],
        "style_distance_after": compared["style_distance_after"],
        "grid": compared["grid"],
        "lora": trained["lora"],
        "run": trained["run"],
    }
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        result |= {name: shutil.copy(result[name], arguments.out) for name in ("grid", "lora")}
    if arguments.json:
        print_json(result)
    else:
        _print_summary(result)
    return 0


def _config(arguments: argparse.Namespace, data: DataFolder) -> RunConfig:
    dataset = DatasetStore(data).get(arguments.dataset)
    flags: dict[str, Any] = {
        "data": {"dataset": dataset.name, "trigger_word": dataset.trigger_word},
        "training": {"seed": arguments.seed},
    }
    if arguments.steps is not None:
        flags["training"]["steps"] = arguments.steps
    if arguments.learning_rate is not None:
        flags["optimizer"] = {"unet_learning_rate": arguments.learning_rate}
    return build_config(load_preset(PRESET), flags)


def _show_captions(config: RunConfig, data: DataFolder, printer: ProgressPrinter) -> None:
    scan = DatasetStore(data).scan(config.data.dataset)
    usable = [picture for picture in scan.pictures if picture.is_usable]
    if not usable:
        raise DatasetError("The data set has no picture that can be used.", where=str(scan.folder))
    printer.line(f"Data set '{config.data.dataset}': {len(usable)} pictures. The first captions:")
    for picture in usable[:3]:
        settings = config.data
        caption = compose_caption(
            picture.caption, settings.trigger_word, settings.instance_prompt, settings.use_captions
        )
        printer.line(f"  {picture.name}: {caption}")


def _compare(config: RunConfig, trained: dict[str, Any]) -> CompareConfig:
    return CompareConfig(
        base=config.model.base,
        lora=trained["lora"],
        dataset=config.data.dataset,
        trigger_word=config.data.trigger_word,
        num_inference_steps=config.preview.num_inference_steps,
        guidance_scale=config.preview.guidance_scale,
    )


def _print_summary(result: dict[str, Any]) -> None:
    before, after = result["style_distance_before"], result["style_distance_after"]
    print(f"Done in {duration(result['seconds'])} with {result['steps']} steps.")
    print(f"Validation loss   {result['validation_loss_before']:.4f} -> {result['validation_loss_after']:.4f}")
    print(f"Style distance    {before:.3f} -> {after:.3f}  ({after / before:.0%} of the base model's)")
    print(f"Before and after  {result['grid']}")
    print(f"LoRA file         {result['lora']}")
