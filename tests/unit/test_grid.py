"""Grids: axes as text, their cells, the labelled picture, and the job that makes only what is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from tests.tiny_model import make_tiny_model
from trainer.config.generate import GenerateConfig
from trainer.config.grid import GridConfig
from trainer.config.loading import build_grid_config, read_settings
from trainer.errors import Cancelled, ConfigError
from trainer.events import Event, Picture, Stage, Warned
from trainer.grid.plan import GridPlan, plan_grid, prepare_grid
from trainer.grid.values import AxisFault, expand_numbers, split_values
from trainer.grids import GridCanvas
from trainer.jobs import JobContext
from trainer.paths import DataFolder
from trainer.runs import Run, create_run

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def put_lora(path: Path, seed: int = 0, width: int = 16) -> Path:
    generator = np.random.default_rng(seed)
    tensors = {
        f"{LAYER}.lora_down.weight": generator.normal(size=(2, width)).astype(np.float32),
        f"{LAYER}.lora_up.weight": generator.normal(size=(width, 2)).astype(np.float32),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path


@pytest.fixture
def library(data: DataFolder) -> DataFolder:
    """A data folder with three LoRAs: ink, robot-step9 and robot-step10."""
    for seed, name in enumerate(("ink", "robot-step9", "robot-step10")):
        put_lora(data.loras / f"{name}.safetensors", seed)
    return data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3, 5,7", [3, 5, 7]),
        ("1-4", [1, 2, 3, 4]),
        ("0-1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("0-1 (+0.5), 2", [0, 0.5, 1, 2]),
        ("10-4 (-3)", [10, 7, 4]),
        ("10-4:3", [10, 7, 4]),
        ("-1-1:0.5", [-1, -0.5, 0, 0.5, 1]),
        ("-3--1", [-3, -2, -1]),
        ("1-10 [4]", [1, 4, 7, 10]),
        ("0-1 [3]", [0, 0.5, 1]),
        ("1-2:0.4", [1, 1.4, 1.8]),
    ],
)
def test_numbers_as_people_type_them(text: str, numbers: list[float]) -> None:
    found = [float(number) for value in split_values(text) for number in expand_numbers(value, is_whole=False)]
    assert found == numbers


@pytest.mark.parametrize(
    ("text", "at"),
    [("", 0), ("a,,b", 2), ("a,", 2), ('x, "a', 3), ('"a" b', 4)],
)
def test_lists_that_cannot_be_read_are_refused_at_their_place(text: str, at: int) -> None:
    with pytest.raises(AxisFault) as caught:
        split_values(text)
    assert caught.value.at == at


@pytest.mark.parametrize("text", ["1-2:0", "1-5 (-1)", "0-1000", "1-9 [0]", "0-1:0.0001", "x", "1--"])
def test_ranges_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(AxisFault):
        expand_numbers(split_values(text)[0], is_whole=False)


def test_quotes_keep_commas_and_quotes() -> None:
    assert [value.text for value in split_values('"a, b" , "say ""no""",c,""')] == ["a, b", 'say "no"', "c", ""]


def plan(data: DataFolder, **values: Any) -> GridPlan:
    return plan_grid(build_grid_config({"seed": 1, **values}), data)


def along(grid: GridPlan, read: Callable[[Any], Any]) -> list[Any]:
    return [read(cell.config) for cell in grid.cells]


def test_ordinary_settings_by_name_and_short_name(data: DataFolder) -> None:
    grid = plan(data, x="cfg=3,5", y="Clip Skip=1-2", z="sampler=euler A, ddim")
    assert [(cell.x, cell.y, cell.z) for cell in grid.cells][:5] == [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (1, 1, 0),
        (0, 0, 1),
    ]
    assert along(grid, lambda c: (c.guidance_scale, c.clip_skip, c.sampler))[:4] == [
        (3.0, 1, "Euler a"), (5.0, 1, "Euler a"), (3.0, 2, "Euler a"), (5.0, 2, "Euler a"),
    ]  # fmt: skip
    assert grid.z.labels() == ["sampler Euler a", "sampler DDIM"]
    assert along(plan(data, x="seamless=yes,no"), lambda c: c.seamless) == [True, False]
    assert along(plan(data, x="size=64x96, 96x64"), lambda c: (c.width, c.height)) == [(64, 96), (96, 64)]


def test_prompt_search_and_replace_reaches_tags_too(library: DataFolder) -> None:
    grid = plan(library, prompt="a red house", negative_prompt="red sky", x='s/r=red, blue, ""')
    assert along(grid, lambda c: (c.prompt, c.negative_prompt)) == [
        ("a red house", "red sky"), ("a blue house", "blue sky"), ("a  house", "sky"),
    ]  # fmt: skip
    tagged = plan(library, prompt="a house <lora:ink:0.5>", x="prompt s/r=0.5, 0.9", y="lora_text:ink=0.1")
    assert along(tagged, lambda c: [(lora.file, lora.unet_weight, lora.text_encoder_weight) for lora in c.loras]) == [
        [("ink", 0.5, 0.1)], [("ink", 0.9, 0.1)],
    ]  # fmt: skip
    counted = plan(library, prompt="a house <lora:ink:1:steps=5-10>", x="steps=10,20")
    assert along(counted, lambda c: (c.loras[0].start, c.loras[0].end)) == [(0.5, 1.0), (0.25, 0.5)]


def test_weights_files_and_blocks_of_loras(library: DataFolder) -> None:
    stack = [{"file": "ink", "unet_weight": 0.5, "text_encoder_weight": 0.25}]

    def of(grid: GridPlan) -> list[Any]:
        return along(
            grid, lambda c: [(lora.file, lora.unet_weight, lora.text_encoder_weight, lora.blocks) for lora in c.loras]
        )

    assert of(plan(library, loras=stack, x="lora:ink=0,1")) == [[("ink", 0, 0, "")], [("ink", 1, 1, "")]]
    assert of(plan(library, loras=stack, x="lora_unet:ink=-1")) == [[("ink", -1, 0.25, "")]]
    assert of(plan(library, loras=stack, x="lora:robot-step9=0.5")) == [
        [("ink", 0.5, 0.25, ""), ("robot-step9", 0.5, 0.5, "")]
    ]
    assert of(plan(library, loras=stack, x='blocks:ink=MIDD,"down1:0.5,mid:0"')) == [
        [("ink", 0.5, 0.25, "MIDD")], [("ink", 0.5, 0.25, "down1:0.5,mid:0")],
    ]  # fmt: skip
    files = plan(library, loras=stack, x="lora=none,robot*")
    assert of(files) == [[], [("robot-step9", 0.5, 0.25, "")], [("robot-step10", 0.5, 0.25, "")]]
    assert files.x.labels() == ["no LoRA", "robot-step9", "robot-step10"]


def test_all_exports_of_a_run_are_an_axis(library: DataFolder) -> None:
    run = create_run(library, "train", "robot", {})
    paths = [put_lora(run.lora / f"robot-step{step:06d}.safetensors", step) for step in (100, 200)]
    grid = plan(library, x=f"lora=run:{run.id}")
    assert along(grid, lambda c: c.loras[0].file) == [str(path) for path in paths]


def test_what_each_lora_does_is_none_each_alone_and_all(library: DataFolder) -> None:
    stack = [{"file": name} for name in ("ink", "robot-step9", "robot-step10")] + [{"file": "gone-off", "is_on": False}]
    put_lora(library.loras / "gone-off.safetensors", 9)

    def used(axis: str) -> list[list[str]]:
        return along(plan(library, loras=stack, x=axis), lambda c: [lora.file for lora in c.loras if lora.is_on])

    alone = [[], ["ink"], ["robot-step9"], ["robot-step10"]]
    everything = ["ink", "robot-step9", "robot-step10"]
    assert used("loras=each") == [*alone, everything]
    assert used("loras=each-without") == [
        *alone,
        everything[1:],
        [everything[0], everything[2]],
        everything[:2],
        everything,
    ]
    assert used("loras=all,-ink,ink+robot-step10") == [everything, everything[1:], ["ink", "robot-step10"]]


def test_loras_of_one_file_name_are_told_apart(library: DataFolder) -> None:
    for seed, name in enumerate(("a/style", "b/style")):
        put_lora(library.loras / f"{name}.safetensors", seed)
    stack = [{"file": "a/style"}, {"file": str(library.loras / "b" / "style.safetensors")}, {"file": "ink"}]
    a, b, ink = (lora["file"] for lora in stack)

    def used(axis: str) -> list[list[str]]:
        return along(plan(library, loras=stack, x=axis), lambda c: [lora.file for lora in c.loras if lora.is_on])

    assert used("loras=each") == [[], [a], [b], [ink], [a, b, ink]]
    assert used("loras=-b/style,a/style+ink") == [[a, ink], [a, ink]]
    assert plan(library, loras=stack, x="loras=each").x.labels() == [
        "no LoRA",
        "a/style",
        "b/style",
        "ink",
        "all LoRAs",
    ]
    for axis in ("lora=a/style,b/style,ink", "lora=*style,ink"):
        files = plan(library, x=axis)
        assert sorted(files.x.labels()) == ["a/style", "b/style", "ink"]
        assert {cell.config.loras[0].file for cell in files.cells} == {"a/style", "b/style", "ink"}
    weights = plan(library, loras=stack, x="lora:a/style=0.1234567,0.1234568", y="lora:b/style=0.5")
    assert weights.x.labels() == ["a/style 0.1234567", "a/style 0.1234568"]
    assert [lora.unet_weight for lora in weights.cells[0].config.loras] == [0.1234567, 0.5, 1.0]
    for axis in ("lora:style=1", "loras=style", "lora=style", "lora=ink,ink"):
        with pytest.raises(ConfigError) as caught:
            plan(library, loras=stack, x=axis)
        assert re.search("can be any of 2|twice", str(caught.value.findings))
    runs = [create_run(library, "train", "robot", {}) for _ in range(2)]
    for run in runs:
        put_lora(run.lora / "robot-step000100.safetensors")
    axis = ",".join(f"run:{run.id}" for run in runs)
    assert plan(library, x=f"lora={axis}").x.labels() == [f"{run.id}/robot-step000100" for run in runs]


@pytest.mark.parametrize(
    ("axis", "at", "said"),
    [
        ("cfg", 1, "="),
        ("cfgg=3", 1, "did you mean cfg"),
        ("count=1,2", 1, "no setting that can be an axis"),
        ("cfg=3,x", 7, "neither a number nor a range"),
        ("cfg=3, 99", 8, "0 to 30"),
        ("steps=1-3:0.5", 7, "whole numbers"),
        ("cfg=3,5,3", 9, "twice"),
        ("seed=-1", 6, "seed=1-4"),
        ("sampler=DDIM,eular", 14, "did you mean Euler"),
        ("seamless=perhaps", 10, "true nor false"),
        ("size=64", 6, "512x768"),
        ("size=64x65", 6, "multiple of 8"),
        ("base=nope", 6, "no base model"),
        ("init_image=nope.png", 12, "no picture"),
        ("prompt s/r=dog,cat", 12, "does not stand in the prompt"),
        ("prompt s/r=house", 12, "replaced by nothing"),
        ("lora:nope=1", 1, "no LoRA 'nope'"),
        ("lora:ink=0.5,11", 14, "too large"),
        ("lora_unet=1", 1, "names no LoRA"),
        ("lora=ink,nope", 10, "no LoRA 'nope'"),
        ("lora=run:nope", 6, "no run"),
        ("blocks:ink=MIDX", 12, "MIDX"),
        ("loras=each", 7, "no LoRA on the stack"),
    ],
)  # fmt: skip
def test_a_malformed_axis_is_refused_with_its_name_and_place(
    library: DataFolder, axis: str, at: int, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(library, prompt="a house", y=axis, x="clip_skip=1,2")
    (finding,) = caught.value.findings
    assert finding.where == "y"
    assert finding.message.startswith(f"at character {at}: ")
    assert said in finding.message


def test_grids_that_make_no_sense_are_refused(library: DataFolder) -> None:
    with pytest.raises(ConfigError, match="nothing differs"):
        build_grid_config({"prompt": "a house"})
    with pytest.raises(ConfigError, match="seed=1-4"):
        build_grid_config({"x": "cfg=1,2", "count": 3})
    with pytest.raises(ConfigError, match="x changes the same setting"):
        plan(library, x="cfg=1,2", y="guidance_scale=3")
    with pytest.raises(ConfigError, match="4000 pictures"):
        plan(library, x="seed=1-200", y="cfg=1-20")
    with pytest.raises(ConfigError, match="combination of the grid cannot be made"):
        plan(library, x="steps=1", y="prompt=<lora:nope>")


def test_base_and_loras_change_least_often(library: DataFolder, model: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(model, library.models / name)
    grid = plan(library, x="seed=1,2", y="base=one,two", z="lora:ink=0,1")
    order = [grid.cells[index].config for index in grid.order()]
    assert [(c.base, c.loras[0].unet_weight, c.seed) for c in order] == [
        (base, weight, seed) for base in ("one", "two") for weight in (0, 1) for seed in (1, 2)
    ]


def test_a_prepared_grid_has_a_seed_and_names_for_its_loras(library: DataFolder) -> None:
    stack = [{"file": str(library.loras / "ink.safetensors")}]
    config, _ = prepare_grid(build_grid_config({"x": "cfg=3,5", "loras": stack}), library)
    assert config.seed >= 0
    assert config.loras[0].file == "ink"


def test_the_canvas_has_each_picture_at_its_place() -> None:
    canvas = GridCanvas((["cfg 3", "a very long label that needs lines"], ["y1", "y2", "y3"], ["z1", "z2"]), (40, 30))
    for x in range(2):
        for y in range(3):
            for z in range(2):
                canvas.paste(Image.new("RGB", (80, 60), (100 * x, 50 * y, 100 + 100 * z)), x, y, z)
    boxes = [canvas.box(x, y, z) for x in range(2) for y in range(3) for z in range(2)]
    places = [(x, y, z) for x in range(2) for y in range(3) for z in range(2)]
    for (x, y, z), box in zip(places, boxes, strict=True):
        colours = np.unique(np.asarray(canvas.image.crop(box)).reshape(-1, 3), axis=0)
        assert colours.tolist() == [[100 * x, 50 * y, 100 + 100 * z]]
    assert canvas.image.width >= max(box[2] for box in boxes)
    assert canvas.image.height >= max(box[3] for box in boxes)
    many = GridCanvas(([""] * 256, [""] * 8, [""]), (512, 512))
    assert many.image.width * many.image.height < 100_000_000


@pytest.fixture
def config(model: Path) -> GridConfig:
    """Two LoRA weights by two seeds, of two steps each."""
    common = {
        "base": str(model),
        "prompt": "a house",
        "width": 32,
        "height": 32,
        "num_inference_steps": 2,
        "device": "cpu",
    }
    return build_grid_config({**common, "seed": 5, "x": "seed=1,2", "y": "lora:ink=0,1"})


def run_grid(data: DataFolder, config: GridConfig, stop_after: int = 0) -> tuple[dict[str, Any], list[Event], Run]:
    from trainer.sampling.grid import make_grid

    run = create_run(data, "grid", "grid", config.model_dump(mode="json"))
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if stop_after and sum(isinstance(e, Picture) and not e.is_preview for e in events) == stop_after:
            run.request("stop")

    context = JobContext(run, emit)
    if not stop_after:
        return make_grid(context), events, run
    with pytest.raises(Cancelled):
        make_grid(context)
    return {}, events, run


def pixels(path: str) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_a_stopped_grid_goes_on_and_makes_the_same_picture(
    library: DataFolder, config: GridConfig, tmp_path: Path
) -> None:
    other = DataFolder(tmp_path / "other")
    put_lora(other.loras / "ink.safetensors", 0)
    at_once, events, _ = run_grid(other, config)
    stages = [event for event in events if isinstance(event, Stage) and event.total]
    assert [stage.done for stage in stages] == sorted(stage.done for stage in stages)
    assert (stages[-1].done, stages[-1].total) == (4, 4)
    assert all(stage.eta_seconds is not None for stage in stages)

    run_grid(library, config, stop_after=2)
    result, events, _run = run_grid(library, config)
    assert (result["made"], result["kept"]) == (2, 2)
    assert np.array_equal(pixels(result["grid"]), pixels(at_once["grid"]))
    assert len(np.unique([pixels(path) for path in result["pictures"]], axis=0)) == 4
    told = [event for event in events if isinstance(event, Picture) and not event.is_preview]
    assert sorted(event.index for event in told) == [0, 1, 2, 3, 4]
    assert [event.path for event in told if event.index == 0] == [result["grid"]]

    Path(result["pictures"][0]).unlink()
    again = build_grid_config(read_settings(Path(result["recipe"])))
    assert again == config
    (result, _, _) = run_grid(library, again)
    assert (result["made"], result["kept"]) == (1, 3)
    put_lora(library.loras / "ink.safetensors", 7)
    assert run_grid(library, config)[0]["made"] == 4  # another file by the same name
    assert json.loads(Path(result["recipe"]).read_text())["x"] == "seed=1,2"


def test_another_vae_under_the_same_name_makes_other_cells(data: DataFolder, model: Path, tmp_path: Path) -> None:
    from trainer.sampling.grid import _cell_key

    file, folder = tmp_path / "vae.safetensors", tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for vae, part in ((file, file), (folder, folder / "weights")):
        config = GenerateConfig(base=str(model), vae=str(vae), seed=1)
        part.write_bytes(b"one")
        before = _cell_key(config, data)
        assert _cell_key(config, data) == before
        part.write_bytes(b"another")
        assert _cell_key(config, data) != before


def test_a_cell_that_gives_no_picture_says_so_and_the_others_are_made(
    library: DataFolder, config: GridConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.errors import NonFinitePictureError
    from trainer.sampling import grid as grid_module

    failing = {(1, 1.0)}

    def make(context: JobContext, cell: Any) -> dict[str, Any]:
        weight = cell.loras[0].unet_weight if cell.loras else 0.0
        if (cell.seed, weight) in failing:
            raise NonFinitePictureError("The model gave NaN instead of a picture.", fix="Lower the weights.")
        path = library.outputs / f"{cell.seed} {weight}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (96, 96), "green").save(path)
        return {"pictures": [str(path)]}

    monkeypatch.setattr(grid_module, "make_pictures", make)
    result, events, _ = run_grid(library, config)
    assert (result["made"], result["kept"], result["failed"], len(result["pictures"])) == (3, 0, 1, 3)
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert "NaN" in warning
    assert "Lower the weights." in warning
    failing.clear()
    result, events, _ = run_grid(library, config)
    assert (result["made"], result["kept"], result["failed"]) == (1, 3, 0)

    failing |= {(seed, weight) for seed in (3, 4) for weight in (0.0, 1.0)}
    with pytest.raises(NonFinitePictureError):
        run_grid(library, config.model_copy(update={"x": "seed=3,4"}))


def test_the_app_starts_a_grid_of_what_each_lora_does(library: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.services import grids
    from app.services.generation import GenerationService
    from app.services.stack_rows import new_row

    monkeypatch.setattr(grids, "enqueue", lambda run, data: None)
    service = grids.GridService(library, GenerationService(library))
    rows = [new_row("ink", 0.5), new_row("robot-step9")]
    config, count = service.check({"prompt": "a house", "count": 8}, rows, {"x": grids.EACH_LORA})
    assert count == 4
    run = Run(library.runs / service.start(config))
    assert (run.info().kind, run.info().title) == ("grid", "grid-loras")
    cells = plan_grid(build_grid_config(run.config()), library).cells
    used = [[(lora.file, lora.unet_weight) for lora in cell.config.loras if lora.is_on] for cell in cells]
    assert used == [[], [("ink", 0.5)], [("robot-step9", 1.0)], [("ink", 0.5), ("robot-step9", 1.0)]]
    with pytest.raises(ConfigError, match="no LoRA on the stack"):
        service.check({"prompt": "a house"}, [], {"x": grids.EACH_LORA})
