"""Upscaling models: read without running code, the architecture's own pictures, in tiles without seams, by name in the hires fix."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from app.services.starting import start_job
from tests.tiny_model import make_tiny_model
from trainer.base_models.scan import add_model_folder
from trainer.config.generate import GenerateConfig
from trainer.config.grid import GridConfig
from trainer.errors import Cancelled, ConfigError, ModelFileError, ResourceError
from trainer.events import Event, Picture, Stage, Warned
from trainer.found_recipe import read_any_recipe
from trainer.grid.plan import plan_grid
from trainer.infotext_options import find_upscaler
from trainer.jobs import JobContext
from trainer.models.upscaler import load_upscaler
from trainer.paths import DataFolder
from trainer.picture_texts import INFOTEXT_KEY
from trainer.runs import Run, create_run
from trainer.sampling import job
from trainer.sampling.enlarging import upscale
from trainer.sampling.upscaling import ModelUpscaler, Upscaling
from trainer.upscalers import check_upscaler, list_upscalers, resolve_upscaler

CPU = torch.device("cpu")
FEATURES, GROWTH = 8, 32


class DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for index in range(5):
            out = FEATURES if index == 4 else GROWTH
            setattr(self, f"conv{index + 1}", nn.Conv2d(FEATURES + index * GROWTH, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for index in range(1, 5):
            seen.append(functional.leaky_relu(getattr(self, f"conv{index}")(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.conv5(torch.cat(seen, 1))


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = DenseBlock(), DenseBlock(), DenseBlock()

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RealEsrgan(nn.Module):
    """Real-ESRGAN's generator (arXiv 2107.10833) as its authors publish it: at scale 2 it begins with a pixel unshuffle."""

    def __init__(self, scale: int, channels: int = 3) -> None:
        super().__init__()
        self.unshuffle = 4 // scale
        self.conv_first = nn.Conv2d(channels * self.unshuffle**2, FEATURES, 3, padding=1)
        self.body = nn.Sequential(Trunk())
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(FEATURES, FEATURES, 3, padding=1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(FEATURES, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv_first(functional.pixel_unshuffle(x, self.unshuffle))
        made = first + self.conv_body(self.body(first))
        for layer in (self.conv_up1, self.conv_up2):
            made = functional.leaky_relu(layer(functional.interpolate(made, scale_factor=2)), 0.2)
        return self.conv_last(functional.leaky_relu(self.conv_hr(made), 0.2))


def network(scale: int, channels: int = 3) -> RealEsrgan:
    torch.manual_seed(scale)
    made = RealEsrgan(scale, channels).eval()
    nn.init.constant_(made.conv_last.bias, 0.5)  # in the middle of what can be seen
    with torch.no_grad():
        made.conv_last.weight.mul_(6)
    return made.requires_grad_(False)


def write(path: Path, model: nn.Module, *, level: str = "params_ema") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save({level: model.state_dict(), "epoch": 7} if level else model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    return path


def noise(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("upscalers")


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize(("suffix", "level"), [(".safetensors", ""), (".pth", "params_ema"), (".pth", "")])
def test_a_file_enlarges_as_its_architecture(folder: Path, scale: int, suffix: str, level: str) -> None:
    model = network(scale)
    file = load_upscaler(write(folder / f"{scale}x{level}{suffix}", model, level=level))
    assert (file.scale, file.architecture) == (scale, "ESRGAN")
    pixels = noise(20, 12)
    expected = model(pixels[None])[0].clamp(0, 1)
    assert float(expected.std()) > 0.02
    torch.testing.assert_close(Upscaling(file, CPU).pixels(pixels), expected, atol=1e-5, rtol=1e-5)
    # Wanted is another scale than the file's: through it until it is large enough, then down to the size.
    picture = Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    made = Upscaling(file, CPU).picture(picture, (30, 45))
    values = picture
    for _ in range(4 // scale):
        as_tensor = torch.from_numpy(np.asarray(values).astype(np.float32) / 255).permute(2, 0, 1)[None]
        shown = (model(as_tensor)[0].clamp(0, 1) * 255).round().to(torch.uint8)
        values = Image.fromarray(shown.permute(1, 2, 0).numpy())
    steps = np.asarray(made).astype(int) - np.asarray(values.resize((30, 45), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(steps).max() <= 1


def test_tiles_leave_no_seam(folder: Path) -> None:
    file = load_upscaler(write(folder / "tiles.safetensors", network(2)))
    pixels, asked = noise(150, 210), []
    whole = Upscaling(file, CPU, tile=512).pixels(pixels)
    tiled = Upscaling(file, CPU, lambda done, total: asked.append((done, total)), tile=96).pixels(pixels)
    assert asked == [(done, 6) for done in range(6)]
    assert float((tiled - whole).abs().max()) < 1e-4 < float(whole.std()) / 100
    # Laid side by side, the same tiles differ at their edges.
    cut = torch.cat([Upscaling(file, CPU).pixels(part) for part in pixels.split([112, 98], 2)], 2)
    assert float((cut - whole).abs().max()) > 0.1


def test_less_memory_is_answered_by_smaller_tiles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = load_upscaler(write(folder / "memory.safetensors", network(2)))
    pixels = noise(130, 130)
    expected, told = Upscaling(file, CPU).pixels(pixels), []
    real = type(file).__call__

    def of_little_memory(self: Any, part: Tensor) -> Tensor:
        if max(part.shape[2:]) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return real(self, part)

    monkeypatch.setattr(type(file), "__call__", of_little_memory)
    most = 70
    made = Upscaling(file, CPU, on_shortage=told.append).pixels(pixels)
    assert told == [64]
    assert float((made - expected).abs().max()) < 1e-2
    most = 10
    with pytest.raises(RuntimeError, match="allocate"):
        Upscaling(file, CPU).pixels(pixels)

    def stop(done: int, total: int) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled), ModelUpscaler(folder / "memory.safetensors", stop, told.append).loaded(CPU) as work:
        work.picture(Image.new("RGB", (8, 8)), (16, 16))
    assert not hasattr(work, "_model"), "its memory is free again"


class Runs:
    def __reduce__(self) -> Any:
        return (print, ("code of a stranger",))


def test_what_is_no_upscaler_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(tmp_path / "bad.pth", "wb") as handle:
        pickle.dump({"params": Runs()}, handle, protocol=2)
    torch.save({"params": network(4).state_dict(), "more": Runs()}, tmp_path / "worse.pth")
    (tmp_path / "text.pth").write_text("no model")
    (tmp_path / "cut.safetensors").write_bytes(write(tmp_path / "a.safetensors", network(4)).read_bytes()[:999])
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    write(tmp_path / "grey.safetensors", network(4, channels=1))
    torch.save([1, 2], tmp_path / "list.pth")
    for name, words in {
        "bad.pth": "wants to run code",
        "worse.pth": "wants to run code",
        "text.pth": "run code|cannot be read",
        "cut.safetensors": "cut off|truncated",
        "lora.safetensors": "no architecture that is known",
        "list.pth": "no architecture that is known",
        "grey.safetensors": "1 to 1 channels",
    }.items():
        with pytest.raises(ModelFileError, match=words):
            load_upscaler(tmp_path / name)
    assert "stranger" not in capsys.readouterr().out


def test_they_are_found_where_they_lie_and_meant_by_their_names(data: DataFolder, tmp_path: Path) -> None:
    assert list_upscalers(data) == []
    own = write(data.upscalers / "sharp" / "4x-UltraSharp.pth", network(4))
    other = write(tmp_path / "webui" / "models" / "ESRGAN" / "2x nice.safetensors", network(2))
    shadowed = write(tmp_path / "webui" / "models" / "SwinIR" / "Lanczos.safetensors", network(2))
    (data.upscalers / "notes.txt").write_text("mine")
    add_model_folder(data, tmp_path / "webui")
    assert [entry.name for entry in list_upscalers(data)] == ["sharp/4x-UltraSharp", "2x nice", str(shadowed)]
    for name in ("sharp/4x-UltraSharp", "4x-ultrasharp", "4x-UltraSharp.pth", str(own)):
        assert resolve_upscaler(data, name) == own
    assert resolve_upscaler(data, "2x nice") == other
    assert resolve_upscaler(data, "lanczos") is None
    assert GenerateConfig(hires_upscaler="Lanczos").hires_upscaler == "lanczos"
    with pytest.raises(ConfigError, match="no upscaler '8x'") as caught:
        check_upscaler(GenerateConfig(hires_upscaler="8x", hires_scale=2), data)
    assert "2x nice" in caught.value.fix
    assert check_upscaler(GenerateConfig(hires_upscaler="8x"), data) is None, "not used"
    with pytest.raises(ConfigError, match="no upscaler '8x'"):
        plan_grid(GridConfig.model_validate({"prompt": "a", "hires_scale": 2, "x": "hires_upscaler=lanczos,8x"}), data)
    plan = plan_grid(
        GridConfig.model_validate({"prompt": "a", "hires_scale": 2, "x": "hires_upscaler=lanczos,2x nice"}), data
    )
    assert [cell.config.hires_upscaler for cell in plan.cells] == ["lanczos", "2x nice"]
    assert find_upscaler("4x-UltraSharp")[0] == "lanczos"
    for name, called in (("RealESRGAN_x4plus_anime_6B", "R-ESRGAN 4x+ Anime6B"), ("DAT_x4", "DAT x4")):
        write(data.upscalers / f"{name}.pth", network(4))
        assert resolve_upscaler(data, called) == data.upscalers / f"{name}.pth"
    with pytest.raises(ConfigError, match="no upscaler"):
        resolve_upscaler(data, "R-ESRGAN 4x+")


def test_without_the_library_it_says_how_to_get_it(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    write(data.upscalers / "mine.pth", network(4))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "spandrel" else find(name))
    with pytest.raises(ResourceError, match="spandrel") as caught:
        check_upscaler(GenerateConfig(hires_upscaler="mine", hires_scale=2), data)
    assert "--extra upscale" in caught.value.fix


def test_pictures_that_there_are_are_enlarged(
    data: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    write(data.upscalers / "4x-tiny.pth", network(4))
    info = PngInfo()
    info.add_text(INFOTEXT_KEY, "a red house\nSteps: 3, Seed: 1")
    source = Image.fromarray((noise(40, 56).permute(1, 2, 0).numpy() * 255).astype(np.uint8))
    source.save(tmp_path / "house.png", pnginfo=info)
    Image.new("RGB", (48, 32), "red").save(tmp_path / "red.jpg")
    pictures = [str(tmp_path / "house.png"), str(tmp_path / "red.jpg")]
    events: list[Event] = []

    def enlarged(**more: Any) -> list[Image.Image]:
        run = start_job(data, "upscale", {"pictures": pictures, "upscaler": "4x-tiny", "device": "cpu", **more})
        return [Image.open(path) for path in upscale(JobContext(Run(data.runs / run), events.append))["pictures"]]

    house, red = enlarged()
    assert (house.size, red.size) == ((224, 160), (192, 128))
    assert house.info[INFOTEXT_KEY].startswith("a red house")
    expected = Upscaling(load_upscaler(data.upscalers / "4x-tiny.pth"), CPU).picture(source, (224, 160))
    assert house.tobytes() == expected.tobytes()
    smaller = enlarged(scale=1.5, output_format="webp")
    assert [(picture.size, picture.format) for picture in smaller] == [((84, 60), "WEBP"), ((72, 48), "WEBP")]
    assert sum(isinstance(event, Picture) for event in events) == 4
    for settings, words in (
        ({"upscaler": "lanczos"}, "no upscaling model"),
        ({"pictures": [str(tmp_path / "gone.png")]}, "not there"),
        ({"pictures": []}, "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=words):
            enlarged(**settings)


def test_nothing_is_left_that_looks_like_torchvision(folder: Path) -> None:
    load_upscaler(write(folder / "any.safetensors", network(2)))
    assert importlib.util.find_spec("torchvision") is not None or "torchvision" not in sys.modules


@pytest.fixture
def model(data: DataFolder) -> Iterator[DataFolder]:
    make_tiny_model(data.models / "tiny")
    yield data
    job.release()


def test_a_generation_with_one_and_back_from_its_picture(model: DataFolder) -> None:
    file = write(model.upscalers / "4x-tiny.pth", network(4))
    events: list[Event] = []
    settings = {
        "base": "tiny", "prompt": "a red house", "num_inference_steps": 3, "seed": 3, "device": "cpu", "precision": "fp32",
        "width": 32, "height": 32, "hires_scale": 2, "hires_strength": 0.4,
    }  # fmt: skip

    def made(**more: Any) -> Path:
        run = create_run(model, "generate", "test", {**settings, **more})
        return Path(job.generate(JobContext(run, events.append))["pictures"][0])

    by_model, by_lanczos = made(hires_upscaler=str(file)), made(hires_upscaler="lanczos")
    with Image.open(by_model) as picture, Image.open(by_lanczos) as other:
        assert picture.size == (64, 64)
        assert "Hires upscaler: 4x-tiny" in picture.info[INFOTEXT_KEY]
        assert str(model.root) not in str(picture.info)
        assert picture.tobytes() != other.tobytes()
        picture.load()
        bare = Image.new("RGB", (8, 8))
    assert any(isinstance(event, Stage) and event.name == "Enlarging by 4x-tiny" for event in events)
    assert not any(isinstance(event, Warned) for event in events)
    found = read_any_recipe(model, by_model)
    assert (found.settings["hires_upscaler"], found.notes) == ("4x-tiny", ())
    with Image.open(by_model) as picture:
        texts = dict(picture.info)
    info = PngInfo()
    info.add_text(INFOTEXT_KEY, texts[INFOTEXT_KEY])
    bare.save(model.root / "of another program.png", pnginfo=info)
    assert read_any_recipe(model, model.root / "of another program.png").settings["hires_upscaler"] == "4x-tiny"
    file.unlink()
    lost = read_any_recipe(model, by_model)
    assert lost.settings["hires_upscaler"] == "lanczos"
    assert "4x-tiny" in lost.notes[0]
