"""Draw the bundled data sets: two styles and one character, with captions and a ``dataset.toml`` each.

python make_datasets.py --out ../datasets
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flat import render_flat
from PIL import Image
from scenes import COLOURS, OBJECTS, SceneSpec, caption, specs
from styles import render_blueprint, render_ink

SEED = 4040
ASPECTS = (1.0, 1.0, 1.5, 1.0, 0.75, 1.0)  # mostly squares, some landscapes and portraits, to fill several buckets


@dataclass(frozen=True)
class Dataset:
    """What is to be drawn, and what ``dataset.toml`` says of it."""

    name: str
    title: str
    description: str
    kind: str
    trigger_word: str
    render: Callable[[SceneSpec, int], Image.Image]
    count: int
    class_prompt: str = ""


DATASETS = (
    Dataset(
        "ink-wash", "Ink wash", "Landscapes painted in ink on paper: washes, dry brush strokes and a red seal.",
        "style", "ink wash style", render_ink, 24,
    ),
    Dataset(
        "blueprint", "Blueprint", "Landscapes as technical drawings: white lines on gridded blue paper.",
        "style", "blueprint style", render_blueprint, 24,
    ),
    Dataset(
        "zib-robot", "Zib the robot", "A one-eyed turquoise robot with an orange belt and a red antenna, in many places.",
        "character", "zib robot", render_flat, 18, "a robot",
    ),
)  # fmt: skip


def scenes_of(dataset: Dataset) -> list[SceneSpec]:
    """The scenes of a data set: every object and colour comes up, and the picture's shape changes."""
    drawn = specs(dataset.count, SEED + sum(map(ord, dataset.name)), None)
    return [
        replace(
            scene,
            object=OBJECTS[i % len(OBJECTS)],
            colour=COLOURS[(i * 3) % len(COLOURS)],
            aspect=ASPECTS[i % len(ASPECTS)],
            character=dataset.kind == "character",
        )
        for i, scene in enumerate(drawn)
    ]


def text_of(dataset: Dataset, scene: SceneSpec, rng: random.Random) -> str:
    """The caption: trigger word and scene for a style, the named character for a character."""
    if dataset.kind == "character":
        return caption(scene, subject=f"a {dataset.trigger_word}")
    return caption(replace(scene), style=dataset.trigger_word)


def pixel_height(aspect: float) -> int:
    """Some hundred pixels, different for each shape of picture."""
    return 128 if aspect >= 1.5 else 192 if aspect < 1 else 160


def write(dataset: Dataset, out: Path) -> None:
    """Draw one data set into its folder."""
    folder = out / dataset.name
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(SEED)
    for i, scene in enumerate(scenes_of(dataset), start=1):
        stem = folder / f"{dataset.name}-{i:02d}"
        image = dataset.render(scene, pixel_height(scene.aspect))
        image.save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(text_of(dataset, scene, rng) + "\n", encoding="utf-8")
    lines = [
        f'title = "{dataset.title}"',
        f'description = "{dataset.description}"',
        f'kind = "{dataset.kind}"',
        f'trigger_word = "{dataset.trigger_word}"',
        'license = "CC0-1.0"',
        f"order = {DATASETS.index(dataset) + 1}",
    ]
    if dataset.class_prompt:
        lines.append(f'class_prompt = "{dataset.class_prompt}"')
    (folder / "dataset.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Draw all data sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "datasets")
    for dataset in DATASETS:
        write(dataset, parser.parse_args().out)


if __name__ == "__main__":
    main()
