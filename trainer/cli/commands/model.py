"""`inkwash model`: the base models there are, folders of other programs, and what a file is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from trainer.base_models import BaseModelInfo, describe_base, list_base_models
from trainer.base_models.download import start_download
from trainer.base_models.listing import find_base
from trainer.base_models.scan import (
    add_model_folder,
    known_sha256,
    model_folders,
    model_sha256,
    remove_model_folder,
    scan_models,
)
from trainer.cli.output import ProgressPrinter, follow, print_json, print_table
from trainer.config.download import Purpose
from trainer.errors import ConfigError
from trainer.paths import DataFolder, data_folder
from trainer.upscalers import list_upscalers

SUMMARY = "list the base models and upscalers, use those of another program in place, see what a file is, download one"
EXAMPLES = """  inkwash model list
  inkwash model add-folder ~/stable-diffusion-webui
  inkwash model remove-folder ~/stable-diffusion-webui
  inkwash model inspect ~/Downloads/some-checkpoint.safetensors
  inkwash model download OWNER/NAME --variant fp16
  inkwash model download SmilingWolf/wd-vit-tagger-v3 --for tagger"""
_ACTIONS = ("list", "add-folder", "remove-folder", "inspect", "download")
_UNTOLD = "told when it is loaded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=_ACTIONS, help="what to do; without it: list", nargs="?", default="list")
    parser.add_argument(
        "what",
        nargs="?",
        metavar="FOLDER|MODEL|ID",
        help="the folder, the model (name or path), or the Hugging Face id",
    )
    parser.add_argument(
        "--variant", default="", choices=["", "fp16", "bf16"], help="download: only the files of this number format"
    )
    parser.add_argument(
        "--for",
        dest="purpose",
        default="base_model",
        choices=get_args(Purpose),
        help="download: what it is to be used as: a base model, the model of a captioner, or one that makes masks",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it. Returns 4 when an inspected model cannot be used."""
    data = data_folder(arguments.data_dir)
    if arguments.action == "list":
        return _list(data, json=arguments.json)
    if not arguments.what:
        raise ConfigError(f"`inkwash model {arguments.action}` needs to know which.", fix="See `inkwash model --help`.")
    if arguments.action == "inspect":
        return _inspect(data, arguments.what, json=arguments.json)
    if arguments.action == "download":
        path = _download(data, arguments)
    elif arguments.action == "add-folder":
        path = add_model_folder(data, arguments.what)
        printer = ProgressPrinter(quiet=arguments.json)
        scan_models(data, lambda done, total: printer.over(f"looking at the models: {done}/{total}"))
        printer.close()
    else:
        remove_model_folder(data, arguments.what)
        path = Path(arguments.what)
    if arguments.json:
        print_json({"path": str(path), "folders": [str(folder) for folder in model_folders(data)]})
    elif arguments.action == "download":
        print(f"{arguments.what} is in {path}; use it by its id or this path.")
    else:
        print("\n".join(str(folder) for folder in model_folders(data)) or "no model folders")
    return 0


def _download(data: DataFolder, arguments: argparse.Namespace) -> Path:
    job = start_download(data, arguments.what, arguments.variant, arguments.purpose)
    printer = ProgressPrinter(quiet=arguments.json)
    try:
        return Path(follow(job, printer)["folder"])
    finally:
        printer.close()


def _list(data: DataFolder, *, json: bool) -> int:
    models, upscalers = list_base_models(data), list_upscalers(data)
    if json:
        files = [{"name": entry.name, "path": str(entry.path), "size_bytes": entry.size_bytes} for entry in upscalers]
        print_json({"models": [_facts(data, info) for info in models], "upscalers": files})
        return 0
    rows = [
        [
            info.name,
            info.kind if not info.problem else info.problem.splitlines()[0],
            _noise(info),
            info.precision,
            f"{info.size_bytes / 1e9:.2f} GB",
            known_sha256(data, info.path)[:10],
        ]
        for info in models
    ]
    print_table(["model", "family", "predicts", "precision", "size", "hash"], rows)
    if upscalers:
        print()
        print_table(["upscaler", "size"], [[entry.name, f"{entry.size_bytes / 1e6:.1f} MB"] for entry in upscalers])
    return 0


def _inspect(data: DataFolder, what: str, *, json: bool) -> int:
    path = find_base(what, data)
    info = describe_base(path)
    printer = ProgressPrinter(quiet=json)
    if path.is_file():
        model_sha256(data, path, lambda done, total: printer.over(f"reading {done / 1e9:.1f}/{total / 1e9:.1f} GB"))
    printer.close()
    facts = _facts(data, info)
    if json:
        print_json(facts)
    else:
        print("\n".join(f"{key.replace('_', ' ')}: {value}" for key, value in facts.items() if value != ""))
    return 4 if info.problem else 0


def _facts(data: DataFolder, info: BaseModelInfo) -> dict[str, Any]:
    sha256 = known_sha256(data, info.path)
    return {
        "name": info.name,
        "title": info.title,
        "path": str(info.path),
        "family": info.family,
        "prediction_type": info.traits.prediction_type or _UNTOLD,
        "zero_terminal_snr": info.traits.zero_terminal_snr,
        "is_inpainting": info.traits.is_inpainting,
        "resolution": info.resolution,
        "precision": info.precision,
        "size_bytes": info.size_bytes,
        "sha256": sha256,
        "short_hash": sha256[:10],
        "license": info.license,
        "problem": info.problem,
        "training_problem": info.training_problem,
    }


def _noise(info: BaseModelInfo) -> str:
    predicts = {"v_prediction": "v", "": _UNTOLD}.get(info.traits.prediction_type, info.traits.prediction_type)
    return f"{predicts}, zero SNR" if info.traits.zero_terminal_snr else predicts
