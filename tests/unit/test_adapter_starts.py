"""What a training starts from: EVA's directions, and LoRAs that stay as they are under the new one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.random_lora import modules_for
from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings, train_here
from trainer.cli.commands.generate import parse_lora
from trainer.config.adapter import AdapterConfig, UnetLora
from trainer.config.blocks import LayerChoice, parse_rule
from trainer.config.cut import weighted_lora
from trainer.errors import ConfigError, RunError
from trainer.events import CheckpointSaved, Event
from trainer.lora_files.file import LoraModule, write_lora
from trainer.lora_files.header import read_header
from trainer.lora_files.matching import adaptable_shapes
from trainer.lora_files.metadata import config_from_metadata
from trainer.lora_files.modules import DifferenceModule, LohaModule
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder
from trainer.sampling.stack import LoraStack, StackEntry
from trainer.training import eva
from trainer.training.eva import InputDirections, input_rows, redistributed, with_ranks
from trainer.training.underneath import FrozenLora, summed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("starts")
    return make_tiny_model(folder / "model"), make_pictures(folder / "pictures", 2)


def settings_for(place: tuple[Path, Path], **adapter: Any) -> dict[str, Any]:
    return tiny_settings(
        *place,
        {
            "data": {"resolution": 32},
            "adapter": adapter,
            "training": {"steps": 4},
            "schedule": {"kind": "constant", "warmup_share": 0.0},
            "optimizer": {"unet_learning_rate": 1e-2},
        },
    )


def load(place: tuple[Path, Path], tmp_path: Path) -> Components:
    return load_components(str(place[0]), DataFolder(tmp_path / "other"), CPU, torch.float32)


@torch.no_grad()
def predict(components: Components) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    states = components.family.encode_prompts(components, ["a red house"])
    return components.family.predict(components, latents, torch.tensor([500]), states)


def stopping_at(step: int) -> Any:
    def on_event(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == step:
            raise KeyboardInterrupt

    return on_event


def frozen_file(place: tuple[Path, Path], tmp_path: Path, seed: int = 0) -> Path:
    """A LoRA of several kinds on UNet and text encoder."""
    shapes = adaptable_shapes(load(place, tmp_path).adaptable)
    modules: dict[str, Any] = dict(
        modules_for({path: shape for path, shape in shapes.items() if path.endswith((".to_k", ".q_proj"))}, seed=seed)
    )
    generator = torch.Generator().manual_seed(seed)
    loha = next(path for path in shapes if path.endswith("conv1"))
    out, columns = shapes[loha][0], shapes[loha][1] * 9
    pairs = [(torch.randn(out, 2, generator=generator), torch.randn(2, columns, generator=generator)) for _ in "ab"]
    modules[loha] = LohaModule(pairs[0], pairs[1], 0.02)
    write_lora(tmp_path / "under.safetensors", modules, {}, "fp32")
    return tmp_path / "under.safetensors"


def test_on_top_of_a_lora_a_new_one_learns_and_their_sum_is_exact(place: tuple[Path, Path], tmp_path: Path) -> None:
    under = frozen_file(place, tmp_path)
    settings = settings_for(place, on_top_of=[f"{under}:0.5"])
    settings["save"]["export_sum"] = True
    data = DataFolder(tmp_path / "data")
    whole = new_run(data, settings)
    result = train_here(whole)
    assert result["validation_loss_last"] < result["validation_loss_first"]

    components = load(place, tmp_path)
    stack, base = LoraStack(components), predict(components)
    lora = Path(result["lora"])
    stack.set([StackEntry(under, 0.5, 0.5), StackEntry(lora)])
    both = predict(components)
    stack.set([StackEntry(under, 0.5, 0.5)])
    assert not torch.allclose(predict(components), both, atol=1e-3)
    assert not torch.allclose(base, both, atol=1e-3)
    total = lora.with_name("test-sum.safetensors")
    stack.set([StackEntry(total)])
    torch.testing.assert_close(predict(components), both, rtol=1e-4, atol=1e-5)

    own, together = read_header(lora)[0], read_header(total)[0]
    assert json.loads(own["inkwash.on_top_of"])[0]["name"] == "under"
    assert [part["name"] for part in json.loads(together["inkwash.sum_of"])] == ["under", "test"]
    assert str(tmp_path) not in json.dumps([own, together])
    assert {path.stem for path in data.loras.glob("*.safetensors")} == {"test", "test-sum"}

    # Killed on the way, and the file under it changed meanwhile.
    stopped = new_run(data, settings)
    with pytest.raises(KeyboardInterrupt):
        train_here(stopped, stopping_at(2))
    kept = under.read_bytes()
    frozen_file(place, tmp_path, seed=1)
    with pytest.raises(RunError) as caught:
        train_here(stopped)
    assert [finding.where for finding in caught.value.findings] == ["adapter.on_top_of"]
    under.write_bytes(kept)
    resumed = load_file(train_here(stopped)["lora"])
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in load_file(lora).items())


def test_two_that_learn_jointly_are_two_files_and_their_exact_sum(place: tuple[Path, Path], tmp_path: Path) -> None:
    under = frozen_file(place, tmp_path)
    joint = {"rank": 2, "alpha": 4.0, "method": "rslora", "rate": 0.5, "targets": "all+conv"}
    settings = settings_for(place, on_top_of=[f"{under}:0.5"], joint=joint)
    settings["save"]["export_sum"] = True
    settings["training"]["ema_decay"] = 0.5
    data = DataFolder(tmp_path / "data")
    result = train_here(new_run(data, settings))
    assert result["validation_loss_last"] < result["validation_loss_first"]
    both, alone = Path(result["lora"]), [Path(path) for path in result["lora_parts"]]
    assert [path.stem for path in (both, *alone)] == ["test", "test-a", "test-b"]
    assert {path.stem for path in data.loras.glob("*.safetensors")} == {"test", "test-a", "test-b", "test-sum"}

    components = load(place, tmp_path)
    stack, seen = LoraStack(components), []
    below = StackEntry(under, 0.5, 0.5)
    for entries in (
        [below],
        [below, StackEntry(alone[0])],
        [below, *map(StackEntry, alone)],
        [below, StackEntry(both)],
        [StackEntry(both.with_name("test-sum.safetensors"))],
    ):
        stack.set(entries)
        seen.append(predict(components))
    assert not torch.allclose(seen[0], seen[2], atol=1e-3)
    assert not torch.allclose(seen[1], seen[2], atol=1e-3)
    torch.testing.assert_close(seen[3], seen[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[4], seen[2], rtol=1e-4, atol=1e-5)

    first, second, total = (read_header(path)[0] for path in (*alone, both))
    assert (first["ss_network_dim"], second["ss_network_dim"], total["ss_network_dim"]) == ("4", "2", "Dynamic")
    assert float(second["ss_unet_lr"]) == float(first["ss_unet_lr"]) / 2
    assert [part["name"] for part in json.loads(total["inkwash.sum_of"])] == ["test-a", "test-b"]
    assert config_from_metadata(second)["adapter"]["joint"]["rank"] == 2

    stopped = new_run(data, settings)
    with pytest.raises(KeyboardInterrupt):
        train_here(stopped, stopping_at(2))
    resumed = train_here(stopped)
    for before, after in zip(
        [result["lora"], *result["lora_parts"]], [resumed["lora"], *resumed["lora_parts"]], strict=True
    ):
        tensors = load_file(after)
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in load_file(before).items())


def test_a_sum_that_is_no_lora_is_refused_before_training(place: tuple[Path, Path], tmp_path: Path) -> None:
    shapes = adaptable_shapes(load(place, tmp_path).adaptable)
    path = next(path for path in shapes if path.endswith("conv1"))
    write_lora(tmp_path / "full.safetensors", {path: DifferenceModule(torch.ones(shapes[path]))}, {}, "fp32")
    settings = settings_for(place, on_top_of=[str(tmp_path / "full.safetensors")])
    settings["save"]["export_sum"] = True
    with pytest.raises(ConfigError) as caught:
        train_here(new_run(DataFolder(tmp_path / "data"), settings))
    assert caught.value.where == "save.export_sum"


def test_a_sum_has_the_ranks_side_by_side() -> None:
    shape = (6, 4, 3, 3)
    first, second = (modules_for({"unet.x": shape}, rank=rank, seed=rank)["unet.x"] for rank in (2, 3))
    biases = {"unet.y.bias": DifferenceModule(torch.arange(3.0), "diff_b")}
    frozen = FrozenLora("a", "", {"unet.x": first, **biases}, {"unet.x": shape, "unet.y.bias": (3,)}, (0.5, 1.0))
    found = summed([frozen], {"unet.x": second})
    module, weight = found["unet.x"], torch.zeros(shape)
    assert isinstance(module, LoraModule)
    assert module.rank == 5
    expected = 0.5 * first.delta_weight(weight) + second.delta_weight(weight)
    torch.testing.assert_close(module.delta_weight(weight), expected)
    assert torch.equal(found["unet.y.bias"].delta_weight(torch.zeros(3)), torch.arange(3.0) / 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("style", ("style", 1.0, 1.0)),
        ("style:0.8", ("style", 0.8, 0.8)),
        ("style:8e-1", ("style", 0.8, 0.8)),
        ("C:\\x\\style.safetensors:0.8:-.5", ("C:\\x\\style.safetensors", 0.8, -0.5)),
    ],
)
def test_a_weighted_file_is_read_as_in_generation(text: str, expected: tuple[str, float, float]) -> None:
    found = weighted_lora(text)
    assert (found.file, found.unet_weight, found.text_encoder_weight) == expected
    assert tuple(parse_lora(text).values()) == expected


@pytest.mark.parametrize("text", ["", ":0.5", "style:11"])
def test_a_weighted_file_without_a_name_or_with_a_wild_weight_is_refused_at_its_flag(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_lora(text)
    assert caught.value.where == "--lora"


def test_the_directions_are_the_principal_components() -> None:
    """Against a whole decomposition of all inputs at once; they come in three parts."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 6, generator=generator) @ torch.diag(torch.tensor([9.0, 5, 3, 1, 0.1, 0.1])) + 4
    directions = InputDirections(3)
    for part in inputs.split(100):
        directions.see(part)
    found, shares = directions.found()
    _, values, right = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)
    torch.testing.assert_close((found @ right[:3].T).abs(), torch.eye(3), atol=0.02, rtol=0)
    torch.testing.assert_close(shares, values[:3] ** 2 / (values**2).sum(), atol=0.01, rtol=0)


def test_few_inputs_give_as_many_directions_and_the_rest_at_right_angles() -> None:
    directions = InputDirections(5)
    inputs = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    directions.see(inputs)
    found, shares = directions.found()
    torch.testing.assert_close(found @ found.T, torch.eye(5), atol=1e-5, rtol=0)
    centred = inputs - inputs.mean(0)
    torch.testing.assert_close(centred @ found[:2].T @ found[:2], centred, atol=1e-5, rtol=0)
    assert shares[2:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(4, 3), (2, 5, 4)), (nn.Conv2d(4, 3, 3, 2, 1), (2, 4, 6, 6))])
def test_the_rows_are_what_the_weight_is_multiplied_with(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape)
    outputs = layer(inputs) if isinstance(layer, nn.Linear) else layer(inputs).permute(0, 2, 3, 1)
    rows = input_rows(layer, inputs)
    assert layer.bias is not None
    torch.testing.assert_close(rows @ layer.weight.flatten(1).T + layer.bias, outputs.flatten(0, -2))


def test_ranks_move_to_the_layers_whose_inputs_differ_in_more_ways() -> None:
    ratios = {"unet.a": torch.tensor([0.9, 0.05, 0.01, 0.0]), "unet.b": torch.tensor([0.3, 0.3, 0.2, 0.1])}
    assert redistributed(ratios, {"unet.a": 2, "unet.b": 2}) == {"unet.a": 1, "unet.b": 3}
    config = AdapterConfig(init="eva", unet=UnetLora(rank=2), eva={"rho": 2.0})  # type: ignore[arg-type]
    starts = {"unet.a": torch.zeros(1, 4), "unet.b": torch.zeros(3, 4)}
    assert with_ranks(config, starts).blocks == ["unet.a: rank=1", "unet.b: rank=3"]


def test_no_layer_gets_more_ranks_than_the_settings_allow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unet = nn.ModuleDict({"a": nn.Linear(1100, 2), "b": nn.Linear(1100, 2)})
    layers = {"unet": dict.fromkeys(unet, LayerChoice(512, 512.0))}
    monkeypatch.setattr(eva, "chosen_layers", lambda *_: layers)

    def look(number: int) -> None:
        unet["a"](torch.randn(16, 1100))  # all variance is here, and so would be most ranks
        unet["b"](torch.ones(16, 1100))

    config = AdapterConfig(init="eva", unet=UnetLora(rank=512), eva={"rho": 2.0, "batches": 1})  # type: ignore[arg-type]
    components: Any = SimpleNamespace(unet=unet)
    starts = eva.eva_starts(components, config, look)
    assert [parse_rule(line).rank for line in with_ranks(config, starts).blocks] == [512, 512]
    # A run that ended there in an older version begins with ranks that it may have.
    eva.keep_starts(tmp_path, config, starts)
    assert eva.kept_starts(tmp_path, config).keys() == starts.keys()
    eva.keep_starts(tmp_path, config, {"unet.a": torch.zeros(513, 4)})
    assert eva.kept_starts(tmp_path, config) == {}


def test_eva_starts_at_the_base_learns_and_resumes(place: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = {
        "init": "eva",
        "eva": {"batches": 2, "rho": 2.0},
        "unet": {"rank": 2, "alpha": 2.0, "targets": "all+conv"},
    }
    settings = settings_for(place, **adapter)
    data = DataFolder(tmp_path / "data")
    result = train_here(new_run(data, settings))
    assert result["validation_loss_last"] < result["validation_loss_first"]
    trained = load_file(result["lora"])
    ranks = {len(tensor) for key, tensor in trained.items() if key.endswith("lora_down.weight")}
    assert len(ranks) > 1
    assert max(ranks) <= 4

    plain = train_here(new_run(data, settings_for(place, unet=adapter["unet"])))
    assert result["validation_loss_first"] == plain["validation_loss_first"]

    stopped = new_run(data, settings)
    with pytest.raises(KeyboardInterrupt):
        train_here(stopped, stopping_at(2))
    resumed = load_file(train_here(stopped)["lora"])
    assert all(torch.equal(tensor, resumed[key]) for key, tensor in trained.items())
