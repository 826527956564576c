"""Generation as the app does it: a run's folder in, pictures with recipes out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.random_lora import random_lora
from tests.tiny_model import make_tiny_model
from trainer.config.generate import MAX_SEED
from trainer.errors import Cancelled, ConfigError, LoraFileError, ResourceError
from trainer.events import Event, Failed, Picture, Stage, Started, Warned
from trainer.found_recipe import read_any_recipe
from trainer.jobs import JobContext, enqueue
from trainer.lora_files.file import write_lora
from trainer.models.components import load_components
from trainer.paths import DataFolder
from trainer.recipe import read_recipe
from trainer.runs import Run, RunState, create_run
from trainer.sampling import job
from trainer.worker import work


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataFolder]:
    folder = DataFolder(tmp_path_factory.mktemp("data"))
    make_tiny_model(folder.models / "tiny")
    components = load_components("tiny", folder, torch.device("cpu"), torch.float32)
    for seed, name in enumerate(("ink", "oil")):
        write_lora(folder.loras / f"{name}.safetensors", random_lora(components, seed=seed, size=0.3), {}, "fp32")
    yield folder
    job.release()


def make_run(data: DataFolder, **settings: Any) -> Run:
    defaults = {"base": "tiny", "prompt": "a zib robot", "num_inference_steps": 5, "seed": 3, "device": "cpu"}
    return create_run(data, "generate", "test", {**defaults, "precision": "fp32", **settings})


def generate(data: DataFolder, **settings: Any) -> tuple[dict[str, Any], list[Event], Run]:
    run, events = make_run(data, **settings), []
    return job.generate(JobContext(run, events.append)), events, run


def content(result: dict[str, Any]) -> list[bytes]:
    return [Image.open(path).tobytes() for path in result["pictures"]]


def test_pictures_and_their_recipes_make_the_same_pictures_again(data: DataFolder) -> None:
    lora = {"file": "ink", "unet_weight": 0.8, "text_encoder_weight": 0.5}
    result, events, run = generate(data, count=3, loras=[lora], negative_prompt="blue")
    assert result["seeds"] == [3, 4, 5]
    assert result["base"] == "tiny"
    assert [Path(path).parent.parent for path in result["pictures"]] == [data.outputs] * 3
    assert {Image.open(path).size for path in result["pictures"]} == {(64, 64)}
    assert len(set(content(result))) == 3
    finals = [event for event in events if isinstance(event, Picture) and not event.is_preview]
    assert [(event.path, event.seed, event.index) for event in finals] == list(
        zip(result["pictures"], result["seeds"], range(3), strict=True)
    )
    assert not (run.folder / job.PREVIEW_NAME).exists()
    for path, pixels in zip(result["pictures"], content(result), strict=True):
        recipe = read_recipe(Path(path))
        assert recipe["loras"] == [{**lora, "is_on": True, "blocks": "", "start": 0.0, "end": 1.0}]
        again, _, _ = generate(data, **recipe | {"device": "cpu", "precision": "fp32"})
        assert max_difference(content(again)[0], pixels) <= 1


def max_difference(left: bytes, right: bytes) -> int:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def test_loras_weights_and_switches_matter(data: DataFolder) -> None:
    stacks: dict[str, list[dict[str, Any]]] = {
        "none": [],
        "ink": [{"file": "ink"}],
        "both": [{"file": "ink"}, {"file": str(data.loras / "oil.safetensors")}],
        "weaker": [{"file": "ink", "unet_weight": 0.5}],
        "text": [{"file": "ink", "unet_weight": 0.0}],
    }
    pictures = {name: content(generate(data, loras=stack)[0])[0] for name, stack in stacks.items()}
    assert len(set(pictures.values())) == len(stacks)
    off = [{"file": "ink", "is_on": False}, {"file": "gone", "is_on": False}]
    assert content(generate(data, loras=off)[0])[0] == pictures["none"]


def test_another_vae_under_the_same_name_is_loaded_and_comes_back_from_the_picture(
    data: DataFolder, tmp_path: Path
) -> None:
    vae = data.models / "my-vae"
    shutil.copytree(data.models / "tiny" / "vae", vae)
    first, _, _ = generate(data, vae=str(vae), num_inference_steps=1)
    assert content(first)[0] == content(generate(data, num_inference_steps=1)[0])[0]
    assert read_any_recipe(data, Path(first["pictures"][0])).settings["vae"] == str(vae)
    weights = next(vae.glob("*.safetensors"))
    tensors = load_file(weights)
    save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, weights)
    assert content(generate(data, vae=str(vae), num_inference_steps=1)[0])[0] != content(first)[0]


def test_tags_blocks_and_steps_make_the_pictures_of_the_same_settings(data: DataFolder) -> None:
    def picture(**settings: Any) -> bytes:
        return content(generate(data, **settings)[0])[0]

    half = {"file": "ink", "unet_weight": 0.8, "text_encoder_weight": 0.5, "blocks": "OUTALL", "end": 0.5}
    plain = {"file": "ink", "unet_weight": 0.8, "text_encoder_weight": 0.5}
    words = generate(data)[2].config()["prompt"]
    by_settings = picture(loras=[half])
    assert picture(prompt=f"{words} <lora:ink:0.8:0.5:blocks=OUTALL:steps=0-0.5>") == by_settings
    others = [
        picture(),
        picture(loras=[plain]),
        picture(loras=[{**half, "blocks": ""}]),
        picture(loras=[{**half, "end": 1.0}]),
    ]
    assert len({by_settings, *others}) == 5
    assert picture(loras=[half]) == by_settings
    for word, prompt in (("no LoRA 'inky'", "<lora:inky:1>"), ("not closed", "a <lora:ink")):
        with pytest.raises(ConfigError, match=word):
            generate(data, prompt=prompt)


def test_progress_is_told_with_an_eta_and_rough_views(data: DataFolder) -> None:
    _, events, _ = generate(data, count=2, num_inference_steps=10)
    assert isinstance(next(event for event in events if isinstance(event, Started)), Started)
    stages = [event for event in events if isinstance(event, Stage) and event.name == "Generating"]
    assert [event.done for event in stages] == sorted(event.done for event in stages)
    assert stages[-1].done == stages[-1].total > 0
    assert all(event.eta_seconds is not None and event.eta_seconds >= 0 for event in stages)
    previews = [event for event in events if isinstance(event, Picture) and event.is_preview]
    assert len(previews) >= 3
    assert {event.path for event in previews} == {job.PREVIEW_NAME}


def test_a_rough_view_is_a_picture(data: DataFolder) -> None:
    run, seen = make_run(data), []

    def emit(event: Event) -> None:
        if isinstance(event, Picture) and event.is_preview:
            with Image.open(run.folder / event.path) as image:
                seen.append((image.format, image.size))

    job.generate(JobContext(run, emit))
    assert set(seen) == {("JPEG", (256, 256))}


def test_a_new_seed_each_time_and_the_largest_seeds_work(data: DataFolder) -> None:
    first, second = (generate(data, seed=-1, num_inference_steps=1)[0]["seeds"][0] for _ in range(2))
    assert first != second
    assert min(first, second) >= 0
    assert generate(data, seed=MAX_SEED, count=2, num_inference_steps=1)[0]["seeds"] == [MAX_SEED, 0]


def test_the_model_stays_in_memory_until_another_is_asked_for(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.release()
    loads: list[str] = []
    real = job.load_components
    monkeypatch.setattr(
        job, "load_components", lambda choice, *rest: (loads.append(choice.base), real(choice, *rest))[1]
    )
    generate(data, loras=[{"file": "ink"}])
    base_again = content(generate(data)[0])
    assert loads == ["tiny"]
    generate(data, precision="bf16")
    assert loads == ["tiny", "tiny"]
    assert content(generate(data)[0]) == base_again
    make_tiny_model(data.models / "tiny2", seed=5)
    assert content(generate(data, base="tiny2")[0]) != base_again
    assert loads[-1] == "tiny2"


def test_stopping_takes_effect_at_the_next_step(data: DataFolder) -> None:
    run, steps = make_run(data, num_inference_steps=50, count=4), []

    def emit(event: Event) -> None:
        if isinstance(event, Stage) and event.name == "Generating":
            steps.append(event.done)
            run.request("stop")

    with pytest.raises(Cancelled):
        job.generate(JobContext(run, emit))
    assert len(steps) == 1


def test_what_cannot_be_done_is_refused_in_words(data: DataFolder) -> None:
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "seed", {"seed": -5}),
        (LoraFileError, "no LoRA 'gone'", {"loras": [{"file": "gone"}]}),
    ]
    for error, word, settings in cases:
        with pytest.raises(error, match=word):
            generate(data, **settings)


def test_a_size_the_model_cannot_make_is_refused_with_the_multiple(data: DataFolder) -> None:
    make_tiny_model(data.models / "coarse", vae_blocks=5, sample_size=4)
    with pytest.raises(ConfigError, match="multiple of 16"):
        generate(data, base="coarse", width=72)


def test_layers_that_the_model_lacks_are_told(data: DataFolder) -> None:
    from tests.random_lora import modules_for

    components = load_components("tiny", data, torch.device("cpu"), torch.float32)
    modules = random_lora(components) | modules_for({"unet.add_embedding.linear_1": (4, 4)})
    write_lora(data.loras / "extra.safetensors", modules, {}, "fp16")
    _, events, _ = generate(data, loras=[{"file": "extra"}])
    assert ["1 layers" in event.message for event in events if isinstance(event, Warned)] == [True]


def failing(calls: list[int], fails: Callable[[int], bool], real: Callable[..., Any]) -> Callable[..., Any]:
    """`Maker.make` that runs out of memory at the calls, counted from 1, for which `fails`."""

    def make(maker: Any, seeds: Any, on_step: Any) -> Any:
        calls.append(len(seeds))
        if fails(len(calls)):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(maker, seeds, on_step)

    return make


def test_out_of_memory_is_answered_by_smaller_pieces_and_then_told(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, expected = job.Maker.make, content(generate(data, count=2, num_inference_steps=1)[0])
    calls: list[int] = []
    monkeypatch.setattr(job.Maker, "make", failing(calls, lambda call: call in (1, 3, 4), real))
    result, events, _ = generate(data, count=2, num_inference_steps=1)
    # Both at once; one by one; the second one again in tiles, then with sliced attention, too.
    assert calls == [2, 1, 1, 1, 1]
    words = [event.message for event in events if isinstance(event, Warned)]
    assert [word in message for word, message in zip(("one by one", "tiles", "slices"), words, strict=True)] == [
        True
    ] * 3
    assert [max_difference(a, b) <= 1 for a, b in zip(content(result), expected, strict=True)] == [True, True]
    monkeypatch.setattr(job.Maker, "make", failing([], lambda call: True, real))
    with pytest.raises(ResourceError, match="64 x 64"):
        generate(data, num_inference_steps=1)
    monkeypatch.setattr(job.Maker, "make", real)
    assert content(generate(data, count=2, num_inference_steps=1)[0]) == expected


def test_a_picture_is_painted_over_and_its_recipe_makes_it_again(data: DataFolder, tmp_path: Path) -> None:
    start, mask = tmp_path / "start.png", tmp_path / "mask.png"
    Image.effect_noise((48, 40), 80).convert("RGB").save(start)
    Image.linear_gradient("L").resize((48, 40)).save(mask)
    settings = {"init_image": str(start), "mask": str(mask), "strength": 0.7, "mask_blur": 2}
    result, events, _ = generate(data, **settings)
    made = Image.open(result["pictures"][0])
    # The picture's own size; the mask's upper half is black.
    assert (result["width"], result["height"]) == made.size == (48, 40)
    before, after = Image.open(start).crop((0, 0, 48, 12)), made.crop((0, 0, 48, 12))
    assert before.tobytes() == after.convert("RGB").tobytes()
    start.unlink()
    recipe = read_recipe(Path(result["pictures"][0]))
    assert str(tmp_path) not in str(recipe)
    again, _, _ = generate(data, **recipe | {"device": "cpu", "precision": "fp32"})
    assert content(again) == content(result)
    assert all(event.memory_bytes > 0 for event in events if isinstance(event, Stage) and event.name == "Generating")


def test_larger_pictures_in_two_passes_stop_within_a_step(data: DataFolder) -> None:
    result, events, _ = generate(data, width=32, height=32, hires_scale=2, hires_strength=0.6)
    assert Image.open(result["pictures"][0]).size == (64, 64)
    stages = [event for event in events if isinstance(event, Stage) and event.name == "Generating"]
    assert [(event.done, event.total) for event in stages] == [(step, 8) for step in range(1, 9)]
    run, steps = make_run(data, width=32, height=32, hires_scale=2, num_inference_steps=40), []

    def emit(event: Event) -> None:
        if isinstance(event, Stage) and event.name == "Generating":
            steps.append(event.done)
            if event.done == 42:
                run.request("stop")

    with pytest.raises(Cancelled):
        job.generate(JobContext(run, emit))
    assert steps[-1] == 42


def test_a_failed_job_ends_with_its_error(data: DataFolder) -> None:
    run = make_run(data, loras=[{"file": "gone"}])
    run.enqueue()
    assert work(run) != 0
    final = run.final_event()
    assert isinstance(final, Failed)
    assert final.error["code"] == "lora"


def test_the_warm_process_does_one_job_after_the_other(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runs = [make_run(data, seed=seed) for seed in (1, 2)]
    for run in runs:
        enqueue(run, data)
    try:
        deadline = time.monotonic() + 240
        while any(not run.state().is_over for run in runs) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert [run.state() for run in runs] == [RunState.FINISHED] * 2, [run.log_tail() for run in runs]
        pids = {event.pid for run in runs for event in run.events() if isinstance(event, Started)}
        assert len(pids) == 1
        loaded = [
            any(isinstance(e, Stage) and e.name == "Loading the base model" for e in run.events()) for run in runs
        ]
        assert loaded == [True, False]
    finally:
        pid = runs[0].pid() or runs[1].pid()
        if pid:
            import psutil

            psutil.Process(pid).kill()
