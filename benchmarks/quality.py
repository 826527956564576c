"""How good each adapter method is at equal size, measured on the embedded model; a table with spreads over seeds.

    python benchmarks/quality.py --work WORK                                    (every method, three seeds, ink wash)
    python benchmarks/quality.py --work WORK --methods lora,dora --seeds 0 --rates 0.3,1,3    (which learning rate?)
    python benchmarks/quality.py --work WORK --table                            (only print what is there)

Protocol. For each seed a quarter of a bundled data set is held out; the rest is trained on with the preset `embedded-quick`, by
the engine that the app uses, and with the rank that makes the method's file nearest in size to a LoRA of the preset's rank. Then:

- style: style distance (`trainer/measures.py`) of pictures for the captions held out to the pictures held out, whose colours
  and things the training never saw together; `base` is the same without the LoRA.
- prompt: how often thing and place are both right on prompts outside the data set, in the style. The judge is the classifier
  of `assets/recipe/judge.py`, which is trained on drawings in all styles when it is first needed (some minutes).
- drift: how far pictures of prompts without the style's name move from the base model's, as a style distance.
- memory: distance of a made picture to the nearest training picture, over the same of the held-out ones: below 1 it copies.
- loss: the validation loss at the end; file size, trained numbers, seconds, and peak memory of the process.

Each row is a process of its own and a line in WORK/quality.jsonl; rows that are there are not made again, so it may be interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "assets" / "recipe")]

from trainer.config.loading import merge  # noqa: E402

PRESET = "embedded-quick"
STYLES = {"ink-wash": "ink wash style", "blueprint": "blueprint style"}
METHODS = ("lora", "rslora", "loraplus", "dora", "adalora", "loha", "lokr", "oft", "boft", "ia3")
INITS = ("orthogonal", "pissa", "olora", "eva")
VARIANTS: dict[str, dict[str, Any]] = {
    **{init: {"adapter": {"init": init}} for init in INITS},
    "pivotal": {"adapter": {"embedding": {"num_vectors": 2}}},
    "joint": {"adapter": {"joint": {"rank": 8, "alpha": 8.0, "targets": "all+conv"}}},
    "qlora": {"model": {"quantization": "nf4"}},
    "no-min-snr": {"objective": {"min_snr_gamma": 0.0}},
}
"""Plain LoRA with something more (pivotal: two vectors for the style's name) or without what the preset has."""
RATE_FACTORS = {"rslora": 0.3, "loraplus": 0.3, "lokr": 3.0, "oft": 0.3, "boft": 0.3}
"""What suits a method instead of the preset's learning rate, as a factor: found with `--rates`, one seed."""
_PROMPTS, _SIDE = 24, 16
_SHOWN = ("style", "prompt", "drift", "memory", "loss", "megabytes", "seconds", "peak_mb")


@dataclass(frozen=True)
class Row:
    """One training: a method (or a variant of plain LoRA), a data set, a seed, and a factor of the learning rate."""

    method: str
    dataset: str
    seed: int
    rate: float

    def settings(self) -> dict[str, Any]:
        """What sets it apart from the preset, but the rank and the learning rate."""
        if self.method == "pivotal":
            return merge(VARIANTS["pivotal"], {"data": {"trigger_word": STYLES[self.dataset]}})
        if self.method == "ia3":
            return {"adapter": {"method": "ia3", "unet": {"targets": "attention+mlp"}}}
        return VARIANTS.get(self.method) or {"adapter": {"method": self.method}}


def main() -> int:
    """Make the rows that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the rows and the judge; outside the repository"
    )
    parser.add_argument("--methods", default=",".join((*METHODS, *VARIANTS)))
    parser.add_argument("--datasets", default="ink-wash")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--rates", default="", help="factors of the preset's learning rate; empty: what suits each method"
    )
    parser.add_argument("--steps", type=int, default=0, help="0: the preset's")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.row:
        print(json.dumps(measure(Row(**json.loads(options.row)), options.work, options.steps)))
        return 0
    path = options.work / "quality.jsonl"
    if not options.table:
        for row in _rows(options):
            _make(row, path, options.steps)
    print(table([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]))
    return 0


def _rows(options: argparse.Namespace) -> list[Row]:
    return [
        Row(method, dataset, int(seed), rate)
        for seed in options.seeds.split(",")
        for dataset in options.datasets.split(",")
        for method in options.methods.split(",")
        for rate in ([float(value) for value in options.rates.split(",")] if options.rates else [RATE_FACTORS.get(method, 1.0)])
    ]  # fmt: skip


def _make(row: Row, path: Path, steps: int) -> None:
    key = asdict(row) | {"steps": steps}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if any(key.items() <= json.loads(line).items() for line in lines):
        return
    command = [
        sys.executable,
        __file__,
        "--work",
        str(path.parent),
        "--steps",
        str(steps),
        "--row",
        json.dumps(asdict(row)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        if "NonFiniteLossError" not in message:
            # Killed, or something missing: it is tried again the next time.
            print(f"{row} failed: {message}", file=sys.stderr, flush=True)
            return
        # A rate that ends in NaN is a result, too.
        result = key | {"failed": message}
    else:
        result = key | json.loads(done.stdout.splitlines()[-1])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result), file=sys.stderr, flush=True)


def measure(row: Row, work: Path, steps: int) -> dict[str, Any]:
    """Train a row's adapter and measure it."""
    from trainer.config.loading import build_config, load_preset
    from trainer.jobs import JobContext
    from trainer.paths import DataFolder
    from trainer.runs import create_run
    from trainer.training.job import train

    with tempfile.TemporaryDirectory() as temporary:
        data = DataFolder(Path(temporary) / "data")
        trained, held_out = _split(row, Path(temporary) / "pictures")
        preset = load_preset(PRESET)
        shared: dict[str, Any] = {
            "data": {"dataset": str(trained)},
            "optimizer": {"unet_learning_rate": preset["optimizer"]["unet_learning_rate"] * row.rate},
            "training": {"seed": row.seed} | ({"steps": steps} if steps else {}),
            "preview": {"prompts": ["a house"], "num_inference_steps": 1, "every": 0},
            "validation": {"every": 0},
            "save": {"checkpoint_every": 0},
        }
        overrides = merge(shared, row.settings())
        size = equal_size(preset, overrides, data)
        config = build_config(preset, overrides, {"adapter": size})
        run = create_run(data, "train", "quality", config.model_dump(mode="json"))
        started = time.monotonic()
        result = train(JobContext(run, lambda event: None))
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lora = Path(result["lora"])
        figures = {
            "adapter": size,
            "loss": result["validation_loss_last"],
            "megabytes": lora.stat().st_size / 2**20,
            "seconds": seconds,
            "peak_mb": peak,
        }
        return figures | _pictures(row, lora, trained, held_out, work, data)


def _split(row: Row, folder: Path) -> tuple[Path, list[Path]]:
    """Three quarters of the data set in a folder of their own, and the pictures of the last."""
    pictures = sorted((ROOT / "assets" / "datasets" / row.dataset).glob("*.png"))
    random.Random(f"{row.dataset} {row.seed}").shuffle(pictures)
    count = len(pictures) // 4
    folder.mkdir()
    for picture in pictures[count:]:
        for file in (picture, picture.with_suffix(".txt")):
            shutil.copy(file, folder)
    return folder, pictures[:count]


def equal_size(preset: dict[str, Any], overrides: dict[str, Any], data: Any) -> dict[str, Any]:
    """The rank (for LoKr the factor, too) that gives as many numbers as plain LoRA has with the preset's rank."""
    import torch

    from trainer.config.adapter_size import num_parameters
    from trainer.config.loading import build_config
    from trainer.models.components import load_components

    plain = build_config(preset)
    components = load_components(plain.model, data, torch.device("cpu"), torch.float32)

    def count(config: Any) -> int:
        total = 0
        for adapter in config.adapter.alone:
            paths = components.family.target_modules(components, adapter)["unet"]
            weights = {path: components.unet.get_submodule(path).weight for path in paths}
            total += sum(num_parameters(adapter, adapter.unet.rank, p, w.shape) for p, w in weights.items())
        return total

    goal, best = count(plain), (float("inf"), dict[str, Any]())
    is_lokr = overrides.get("adapter", {}).get("method") == "lokr"
    for factor in (2, 4, 8) if is_lokr else (0,):
        for rank in range(2, 65):
            choice: dict[str, Any] = {"unet": {"rank": rank, "alpha": float(rank)}}
            if is_lokr:
                choice["lokr"] = {"factor": factor}
            best = min(
                best,
                (abs(count(build_config(preset, overrides, {"adapter": choice})) - goal), choice),
                key=lambda b: b[0],
            )
    return best[1]


def _pictures(row: Row, lora: Path, trained: Path, held_out: Sequence[Path], work: Path, data: Any) -> dict[str, float]:
    """All that is measured on pictures."""
    import torch
    from judge import load_judge, right
    from PIL import Image
    from scenes import caption, specs

    from trainer.config.loading import build_config, load_preset
    from trainer.measures import style_distance
    from trainer.models.components import load_components
    from trainer.sampling.stack import LoraStack, StackEntry

    style = STYLES[row.dataset]
    components = load_components(build_config(load_preset(PRESET)).model, data, torch.device("cpu"), torch.float32)
    judge = load_judge(work, components.vae)
    real = [Image.open(path).convert("RGB") for path in held_out]
    seen = [Image.open(path).convert("RGB") for path in sorted(trained.glob("*.png"))]
    known = {path.read_text(encoding="utf-8").strip() for path in trained.glob("*.txt")}
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in held_out]
    scenes = [scene for scene in specs(4 * _PROMPTS, 555, None) if caption(scene, style=style) not in known][:_PROMPTS]
    unrelated = [caption(scene) for scene in scenes]
    base, base_unrelated = _sample(components, captions), _sample(components, unrelated)
    stack = LoraStack(components)
    stack.set([StackEntry(lora, 1.0, 1.0)])
    made, made_unrelated = _sample(components, captions), _sample(components, unrelated)
    asked = _sample(components, [caption(scene, style=style) for scene in scenes])
    tensor = torch.stack([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in asked])
    hits = right(judge, tensor.float() / 127.5 - 1, scenes)
    return {
        "base": style_distance(base, real).total,
        "style": style_distance(made, real).total,
        "prompt": float((hits["object"] & hits["place"]).float().mean()),
        "drift": style_distance(made_unrelated, base_unrelated).total,
        "memory": _nearest(made + asked, seen) / _nearest(real, seen),
    }


def _sample(components: Any, prompts: Sequence[str]) -> list[Any]:
    from trainer.sampling.sampler import SampleRequest, sample

    requests = [
        SampleRequest(prompt, "", 64, 64, 20, "DPM++ 2M Karras", 2.0, seed) for seed, prompt in enumerate(prompts)
    ]
    return [
        picture for begin in range(0, len(requests), 8) for picture in sample(components, requests[begin : begin + 8])
    ]


def _nearest(pictures: Sequence[Any], others: Sequence[Any]) -> float:
    """Median distance of the pictures to the nearest of the others, as root mean square of 16 × 16 thumbnails."""
    ours, theirs = _thumbnails(pictures), _thumbnails(others)
    distances = np.sqrt(((ours[:, None] - theirs[None]) ** 2).mean(axis=-1))
    return float(np.median(distances.min(axis=1)))


def _thumbnails(pictures: Sequence[Any]) -> NDArray[np.float64]:
    return np.stack([np.asarray(picture.resize((_SIDE, _SIDE)), dtype=np.float64).ravel() for picture in pictures])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Means, and the spread (standard deviation) over the seeds where there are several, as Markdown."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["method"], row["rate"], row["steps"]), []).append(row)
    lines = [
        "| data set | method | rank | rate | seeds | " + " | ".join(_SHOWN) + " |",
        "|---" * (5 + len(_SHOWN)) + "|",
    ]
    for (dataset, method, rate, _), made in groups.items():
        members = [row for row in made if "failed" not in row]
        if not members:
            lines.append(f"| {dataset} | {method} | | {rate:g} | 0 | {made[0]['failed']} |" + " |" * (len(_SHOWN) - 1))
            continue
        cells = [_cell([row[name] for row in members]) for name in _SHOWN]
        rank = members[0]["adapter"]["unet"]["rank"]
        lines.append(f"| {dataset} | {method} | {rank} | {rate:g} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    digits = 3 if max(values) < 10 else 1 if max(values) < 100 else 0
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


if __name__ == "__main__":
    sys.exit(main())
