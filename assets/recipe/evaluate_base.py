"""Measure the embedded model against its marks, by machine; prints JSON.

    python evaluate_base.py --work WORK                 # everything
    python evaluate_base.py --work WORK --parts prompts # only: does a picture show what its prompt says?

``prompts``: of 100 scenes of trained combinations and 100 of combinations kept out of training, how often each factor
is judged right.  ``styles``: a LoRA on each bundled style; distances to real paintings of scenes that are not in the
data set.  ``character``: the same for the character; its share with and without its name.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from judge import Judge, load_judge, right, self_test
from PIL import Image
from scenes import SceneSpec, caption, specs
from styles import RENDERERS
from torch import Tensor
from train_vae import to_float
from try_lora import Settings, encode, generate, load_base, train

DATASETS = Path(__file__).parent.parent / "datasets"
STYLE_GUIDANCE = 2.0  # a style that is all paper and ink comes out burnt with more
STYLE_SETS = {"ink-wash": "ink wash style", "blueprint": "blueprint style"}


def shares(hits: dict[str, Tensor]) -> dict[str, float]:
    """The share of hits for each factor."""
    return {name: round(float(values.float().mean()), 3) for name, values in hits.items()}


def sheet(rows: list[Tensor], path: Path, columns: int = 10) -> None:
    """Rows of pictures, doubled in size, as one PNG."""
    strips = [torch.cat(list(row[:columns]), 2) for row in rows]
    pixels = ((torch.cat(strips, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.LANCZOS).save(path)


def colour_histogram(pictures: Tensor, cells: int = 6) -> Tensor:
    """How often each colour (of 6 × 6 × 6) comes up in a set of pictures."""
    levels = ((pictures + 1) / 2 * cells).long().clamp(0, cells - 1)
    index = (levels[:, 0] * cells + levels[:, 1]) * cells + levels[:, 2]
    counts = torch.bincount(index.flatten(), minlength=cells**3).float()
    return counts / counts.sum()


def edge_histogram(pictures: Tensor, cells: int = 24) -> Tensor:
    """How often each steepness of brightness comes up."""
    grey = pictures.mean(1)
    dy, dx = grey[:, 1:, :-1] - grey[:, :-1, :-1], grey[:, :-1, 1:] - grey[:, :-1, :-1]
    counts = torch.histc((dx**2 + dy**2).sqrt(), cells, 0, 1.2)
    return counts / counts.sum()


def distances(made: Tensor, real: Tensor) -> dict[str, float]:
    """Total variation between the sets' histograms: 0 is alike, 1 has nothing in common."""
    pairs = {"colour": colour_histogram, "edges": edge_histogram}
    return {name: round(float((f(made) - f(real)).abs().sum() / 2), 4) for name, f in pairs.items()}


def measure_prompts(model: Path, judge: Judge, work: Path, each: int, steps: int) -> dict:
    """Does a picture show what its prompt says?"""
    pipe = load_base(model)
    result: dict = {"pictures": 2 * each, "sampler_steps": steps}
    good: list[dict[str, Tensor]] = []
    start = time.monotonic()
    for name, flag in (("trained_combinations", False), ("held_out_combinations", True)):
        scenes = specs(each, 31337, flag)
        pictures = generate(pipe, [caption(scene) for scene in scenes], steps)
        good.append(right(judge, pictures, scenes))
        result[name] = shares(good[-1])
        sheet([pictures[i : i + 10] for i in range(0, 40, 10)], work / f"sheet-{name}.png")
    result["all"] = shares({key: torch.cat([g[key] for g in good]) for key in good[0]})
    result["seconds_per_picture"] = round((time.monotonic() - start) / (2 * each), 3)
    return result


def unseen_scenes(folder: Path, count: int) -> list[SceneSpec]:
    """Scenes whose caption is not in the data set."""
    texts = {path.read_text(encoding="utf-8").strip() for path in folder.glob("*.txt")}
    scenes = specs(4 * count, 777, None)
    return [scene for scene in scenes if not any(caption(scene) in text for text in texts)][:count]


def measure_style(name: str, model: Path, judge: Judge, work: Path, settings: Settings, count: int = 40) -> dict:
    """A LoRA on a style: how near it comes, and what is still right."""
    trigger, folder = STYLE_SETS[name], DATASETS / name
    scenes = unseen_scenes(folder, count)
    drawn = [np.asarray(RENDERERS[trigger](scene, 64)) for scene in scenes]
    real = to_float(torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2))
    prompts = [caption(scene, style=trigger) for scene in scenes]
    pipe = load_base(model)
    rows = [generate(pipe, prompts, guidance=STYLE_GUIDANCE)]
    result: dict = {"settings": settings.__dict__, "base": distances(rows[0], real)}
    result["training"] = train(pipe, encode(pipe, folder), settings)
    for weight in (0.5, 1.0):
        pipe.unet.set_adapters("style", weight)
        rows.append(generate(pipe, prompts, guidance=STYLE_GUIDANCE))
        result[f"weight_{weight}"] = distances(rows[-1], real)
    good = right(judge, rows[-1], scenes)
    result["right"] = {key: value for key, value in shares(good).items() if key != "character"}
    result["object_and_place"] = round(float((good["object"] & good["place"]).float().mean()), 3)
    sheet([*rows, real], work / f"sheet-{name}.png")
    return result


def measure_character(model: Path, judge: Judge, work: Path, settings: Settings, count: int = 40) -> dict:
    """A LoRA on the character: there on its name, absent without it."""
    folder = DATASETS / "zib-robot"
    scenes = specs(count, 888, None)
    named = [caption(scene, subject="a zib robot") for scene in scenes]
    plain = [caption(scene) for scene in scenes]
    pipe = load_base(model)
    rows = [generate(pipe, named)]
    result: dict = {"settings": settings.__dict__, "training": train(pipe, encode(pipe, folder), settings)}
    rows += [generate(pipe, named), generate(pipe, plain)]
    heads = [judge(row)["character"].argmax(1).float().mean() for row in rows]
    keys = ("shown_without_lora", "shown_on_its_name", "shown_on_other_prompts")
    result |= {key: round(float(value), 3) for key, value in zip(keys, heads, strict=True)}
    other = right(judge, rows[2], [replace(s) for s in scenes])
    result["object_right_on_other_prompts"] = shares(other)["object"]
    result["place_right_on_its_name"] = shares(right(judge, rows[1], scenes))["place"]
    sheet(rows, work / "sheet-character.png")
    return result


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "models" / "inkwash-tiny")
    parser.add_argument("--work", type=Path, required=True, help="folder for the judge and the sheets")
    parser.add_argument("--parts", default="judge,prompts,ink-wash,blueprint,character")
    parser.add_argument("--each", type=int, default=100)
    parser.add_argument("--sampler-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    for name, value in Settings().__dict__.items():
        parser.add_argument(f"--lora-{name.replace('_', '-')}", dest=name, type=type(value), default=value)
    args = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(args.threads)
    settings = Settings(**{name: getattr(args, name) for name in Settings().__dict__})
    vae = load_base(args.model).vae
    judge = load_judge(args.work, vae)
    result: dict = {}
    with torch.no_grad():
        if "judge" in args.parts:
            result["judge"] = self_test(args.work, judge, vae)
    for part in args.parts.split(","):
        if part == "prompts":
            result[part] = measure_prompts(args.model, judge, args.work, args.each, args.sampler_steps)
        elif part in STYLE_SETS:
            result[part] = measure_style(part, args.model, judge, args.work, settings)
        elif part == "character":
            result[part] = measure_character(args.model, judge, args.work, settings)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
