"""`inkwash train`: starts a training run and follows it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.cli.flags import add_flags, flag_values
from trainer.cli.output import ProgressPrinter, follow, print_json
from trainer.config.concept import parse_concept
from trainer.config.loading import build_config, load_preset, merge, nest, read_settings
from trainer.config.run import RunConfig
from trainer.dataset.catalog import DatasetCatalog
from trainer.dataset.class_words import with_class_words
from trainer.dataset.kohya import require_kohya_folders
from trainer.errors import ConfigError
from trainer.events import EventWriter, Stopped
from trainer.jobs import enqueue, launch
from trainer.library import resolve_lora
from trainer.lora_recipe import require_parts, training_settings
from trainer.memory import MemoryReport, memory_report, parse_size
from trainer.paths import PRESETS, DataFolder, data_folder
from trainer.runs import Run, create_run

SUMMARY = "train a LoRA"
EXAMPLES = """  inkwash train --preset embedded-quick --dataset ink-wash
  inkwash train my-run.toml --dataset ~/pictures/my-style --training.steps 2000
  inkwash train --preset sd15-style --model.base ~/models/sd15 --dataset ~/pictures --run ~/runs/first --json
  inkwash train --from ink-wash --training.steps 2000       (again, with the settings that a LoRA was trained with)
  inkwash train --preset sd15-style --dataset ~/pictures --training.num_devices 2       (two graphics cards)
  inkwash train --preset sd15-character --dataset robot --data.concepts "ink-wash; repeats=2" --data.balance concepts
  inkwash train --preset sdxl-style --model.base sdxl.safetensors --dataset ~/pictures --fit 8GB --estimate
  inkwash train --preset sd15-character --dataset robot --detach      (goes on in the background; see `inkwash jobs`)"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.toml", help="file with settings (TOML, or a run's config.json)"
    )
    parser.add_argument("--preset", metavar="NAME", help="settings to start from; `inkwash preset` lists them")
    parser.add_argument(
        "--from",
        dest="recipe",
        metavar="LORA",
        help="train again with the settings that this LoRA was trained with: a file, or the name of one in the library",
    )
    parser.add_argument(
        "--dataset",
        metavar="FOLDER",
        help="name of a data set, or a folder with pictures (as --data.dataset); its trigger word is taken unless one is set",
    )
    parser.add_argument(
        "--concepts-from",
        metavar="FOLDER",
        type=Path,
        help="train on kohya's folders in this one, such as '10_zib robot': a concept each, with its repeats",
    )
    parser.add_argument(
        "--run", metavar="FOLDER", type=Path, help="where to keep the run (default: a new folder in the data folder)"
    )
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--detach", action="store_true", help="put it in the queue and return at once")
    when.add_argument(
        "--prepare",
        action="store_true",
        help="only make the run's folder and print it, for a cluster's scheduler to start (docs/many-devices.md)",
    )
    parser.add_argument(
        "--fit",
        metavar="MEMORY",
        help="change what costs least until the training fits into this much memory of the device, such as 8GB; says what and why",
    )
    parser.add_argument(
        "--estimate", action="store_true", help="only say how much memory the training will need, part by part"
    )
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, make the run, start it, follow it."""
    data = data_folder(arguments.data_dir)
    layers: list[dict[str, Any]] = []
    if arguments.preset:
        layers.append(load_preset(arguments.preset, (PRESETS, data.presets)))
    if arguments.recipe:
        layers.append(training_settings(resolve_lora(data, arguments.recipe)))
    if arguments.config:
        layers.append(read_settings(arguments.config))
    layers.append(flag_values(arguments))
    if arguments.dataset:
        layers.append({"data": {"dataset": arguments.dataset}})
    if arguments.concepts_from:
        layers.append({"data": _concepts_in(arguments.concepts_from)})
    settings = with_class_words(merge(*layers), DatasetCatalog(data))
    build_config(settings)  # before other data sets are looked up: what is typed wrongly is said first
    if arguments.recipe:
        require_parts(build_config(settings), data)
    config = build_config(with_trigger_word(settings, data))
    if arguments.fit or arguments.estimate:
        report = _report(config, data, arguments)
        if arguments.estimate:
            return 0
        config = build_config(nest(report.settings))
    title = config.save.name or Path(config.data.dataset).name or "training"
    new_run = create_run(data, "train", title, config.model_dump(mode="json"), arguments.run)
    if arguments.prepare:
        # Until it is started it counts as stopped, which it can be resumed from.
        writer = EventWriter(new_run.events_path)
        writer(Stopped())
        writer.close()
        print_json({"run": str(new_run.folder)}) if arguments.json else print(new_run.folder)
        return 0
    return start_and_follow(new_run, data, arguments)


def _concepts_in(folder: Path) -> dict[str, Any]:
    first, *others = (found.settings() for found in require_kohya_folders(folder))
    return {**first, "trigger_word": "", "concepts": [{**other, "trigger_word": ""} for other in others]}


def _report(config: RunConfig, data: DataFolder, arguments: argparse.Namespace) -> MemoryReport:
    """Estimate the memory, make the settings fit where that is asked for, and print what was found."""
    try:
        budget = parse_size(arguments.fit) if arguments.fit else None
    except ValueError:
        raise ConfigError(
            f"'{arguments.fit}' is no amount of memory.", where="--fit", fix="Write it as 8GB or 6000MB."
        ) from None
    report = memory_report(config, data, budget)
    if arguments.json and arguments.estimate:
        print_json(asdict(report))
    else:
        printer = ProgressPrinter()
        for line in report.lines():
            printer.line(line)
    return report


def with_trigger_word(settings: dict[str, Any], data: DataFolder) -> dict[str, Any]:
    """The settings with what the data sets' records say (trigger word, repeats, weight, instance prompt) where they do not.

    Raises: DatasetError: no such data set.
    """
    chosen = settings.get("data", {})
    if not isinstance(chosen, dict):
        return settings
    catalog, found = DatasetCatalog(data), dict[str, Any]()
    info = catalog.get(str(chosen.get("dataset", "")))
    own = {"trigger_word": info.trigger_word, **info.concept()}
    found |= {name: value for name, value in own.items() if name not in chosen}
    concepts = [parse_concept(concept) for concept in chosen.get("concepts", [])]
    if concepts:
        found["concepts"] = [
            {"trigger_word": "", **catalog.get(concept["dataset"]).concept(), **concept} for concept in concepts
        ]
    return merge(settings, {"data": found})


def start_and_follow(new_run: Run, data: DataFolder, arguments: argparse.Namespace) -> int:
    """Start a run and show it until it ends; with --detach put it in the queue and return."""
    printer = ProgressPrinter()
    offset = new_run.events_path.stat().st_size if new_run.events_path.exists() else 0
    # A run in a folder of the user's own is not part of the queue.
    is_queued = new_run.folder.parent == data.runs.absolute()
    if is_queued:
        enqueue(new_run, data)
    else:
        new_run.enqueue()
        launch(new_run)
    if arguments.detach:
        if is_queued:
            printer.line(f"Waiting in the queue as {new_run.id}; `inkwash jobs` shows it.")
        else:
            printer.line(f"Started: {new_run.folder}. `inkwash jobs --follow {new_run.reference}` shows how far it is.")
        if arguments.json:
            print_json({"run": str(new_run.folder)})
        return 0
    printer.line(f"Run: {new_run.folder}")
    try:
        result = follow(new_run, printer, offset)
    finally:
        printer.close()
    if arguments.json:
        print_json(result)
    else:
        _print_result(result)
    return 0


def _print_result(result: dict[str, Any]) -> None:
    for key, value in result.items():
        print(f"{key.replace('_', ' ')}: {f'{value:.4g}' if isinstance(value, float) else value}")
