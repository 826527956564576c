"""A packed base model: it is loaded so, every method trains on it, and the file is right for the whole model."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path

import pytest
import torch

from tests.ldm_layout import tiny_checkpoint
from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings, train_here
from tests.unit.test_adapter_methods import CASES, attached, predict, randomise
from tests.unit.test_single_file import folders, tiny_configs
from trainer.config.loading import build_config
from trainer.config.run import RunConfig
from trainer.errors import ConfigError
from trainer.events import read_events
from trainer.lora_files.file import read_lora, write_lora
from trainer.lora_files.layouts import canonical_modules
from trainer.models.components import Components, load_components
from trainer.models.frozen import FrozenLayer
from trainer.models.storage import WeightStorage
from trainer.paths import DataFolder
from trainer.training.storage import weight_storage

__all__ = ["folders", "tiny_configs"]
CPU = torch.device("cpu")
ALL_PARTS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def load(path: Path, word: str, share: float = 0.0) -> Components:
    storage = WeightStorage(word, ALL_PARTS, share)
    return load_components(str(path), DataFolder(path.parent / "data"), CPU, torch.float32, storage)


@pytest.fixture(scope="module")
def whole(model: Path) -> Components:
    return load(model, "none")


@pytest.fixture(scope="module")
def packed(model: Path) -> Components:
    return load(model, "int8")


def fresh(components: Components) -> Components:
    found = copy.copy(components)
    found.unet, found.text_encoder = copy.deepcopy((components.unet, components.text_encoder))
    return found


@torch.no_grad()
def test_only_norms_embeddings_and_the_ends_are_left_whole(whole: Components) -> None:
    nf4 = load(whole.path, "nf4")
    for part, left in (
        ("unet", ("norm", "conv_in", "conv_out", "time_embedding.")),
        ("text_encoder", ("norm", "embedding")),
    ):
        before, after = (dict(getattr(each, part).named_parameters()) for each in (whole, nf4))
        matrices = {name for name, weight in before.items() if weight.ndim > 1}
        still = {name for name in matrices if name in after}
        assert all(any(word in name for word in left) for name in still), still
        for name in matrices - still:
            layer = getattr(nf4, part).get_submodule(name.removesuffix(".weight"))
            error = (layer.weight - before[name]).norm() / before[name].norm()
            assert 0 < error < 0.2, name
    assert predict(nf4).isfinite().all()
    assert not torch.equal(predict(nf4), predict(whole))


@pytest.mark.parametrize("family", ["sdxl"])
def test_a_single_file_is_packed_to_the_bytes_of_the_folder(
    folders: dict[str, Path], tiny_configs: Path, tmp_path: Path, family: str
) -> None:
    path = tiny_checkpoint(folders[family], tmp_path / "model.safetensors", family)
    for part in load(path, "nf4").adaptable:
        expected, found = (
            {
                name: tensors
                for name, layer in getattr(load(each, "nf4"), part).named_modules()
                if isinstance(layer, FrozenLayer)
                for tensors in [layer.kept()]
            }
            for each in (folders[family], path)
        )
        assert expected.keys() == found.keys() != set()
        for name, tensors in expected.items():
            assert all(torch.equal(tensor, found[name][kind]) for kind, tensor in tensors.items()), name


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_method_trains_on_a_packed_base_and_its_file_fits_the_whole_one(
    whole: Components, packed: Components, case: str, tmp_path: Path
) -> None:
    adapted, merged = fresh(packed), fresh(whole)
    method = attached(adapted, case)
    assert torch.equal(predict(adapted), predict(packed))
    randomise(method)
    with torch.enable_grad():
        loss = predict(adapted).square().mean()
        loss.backward()
    weights = [weight for group in method.parameter_groups().values() for weight in group]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)
    modules = method.export_modules()
    paths = dict(zip(canonical_modules(modules), modules, strict=True))
    write_lora(tmp_path / "file.safetensors", modules, {}, "fp32")
    for name, module in read_lora(tmp_path / "file.safetensors").modules.items():
        part, _, path = paths.pop(name).partition(".")
        weight = getattr(merged, part).get_submodule(path).weight
        weight += module.delta_weight(weight)
    trained, found = predict(adapted) - predict(packed), predict(merged) - predict(whole)
    # What the adapter does to the whole model is nearly what it did to the packed one.
    assert trained.norm() > 1e-3
    assert (found - trained).norm() < 0.15 * trained.norm()


@pytest.mark.parametrize("method", ["loha", "dora"])
def test_a_changed_layer_keeps_no_whole_weight_of_a_packed_base(
    packed: Components, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing would be for nothing: every unpacked weight would wait for the backward pass."""
    adapted = fresh(packed)
    attached(adapted, method)
    made: list[weakref.ref[torch.UntypedStorage]] = []
    unpacked = FrozenLayer.dequantized_weight

    def remembered(layer: FrozenLayer) -> torch.Tensor:
        weight = unpacked(layer)
        made.append(weakref.ref(weight.untyped_storage()))
        return weight

    monkeypatch.setattr(FrozenLayer, "dequantized_weight", remembered)
    output = predict(adapted)
    assert output.requires_grad
    assert made
    assert [storage for storage in made if storage() is not None] == []


def test_a_run_on_a_packed_base_learns_and_resumes_to_the_bit(model: Path, tmp_path: Path) -> None:
    pictures, data = make_pictures(tmp_path / "pictures"), DataFolder(tmp_path / "data")
    changes = {
        "model": {"quantization": "nf4"},
        "adapter": {"text_encoder": {"rank": 2}},
        "training": {"gradient_checkpointing": True, "steps": 4},
    }
    settings = tiny_settings(model, pictures, changes)
    result = train_here(new_run(data, settings))
    assert result["validation_loss_last"] < result["validation_loss_first"]
    run = new_run(data, settings)

    class DiedError(Exception):
        pass

    def die(event: object) -> None:
        if getattr(event, "step", None) == 3 and type(event).__name__ == "StepDone":
            raise DiedError

    with pytest.raises(DiedError):
        train_here(run, die)
    resumed = train_here(run)
    assert _same(resumed, result)
    assert [event for event in read_events(run.events_path) if getattr(event, "resumed_from", 0)]


def _same(first: dict[str, str], second: dict[str, str]) -> bool:
    one, other = (read_lora(Path(each["lora"])).modules for each in (first, second))
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name].tensors()[kind])
        for name, module in one.items()
        for kind, tensor in module.tensors().items()
        if isinstance(tensor, torch.Tensor)
    )


def test_captions_are_cached_by_whole_encoders_and_trained_ones_are_packed() -> None:
    def parts(**settings: object) -> tuple[str, ...]:
        return weight_storage(build_config({"model": {"quantization": "nf4"}, **settings}), CPU).parts

    assert parts() == ("unet",)
    assert set(parts(adapter={"text_encoder": {"rank": 4}})) == set(ALL_PARTS)
    assert set(parts(data={"shuffle_tags": True})) == set(ALL_PARTS)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_offloading_is_refused_where_it_frees_nothing(device: str) -> None:
    config = RunConfig.model_validate({"training": {"offload_layers": 0.5}})
    with pytest.raises(ConfigError) as raised:
        weight_storage(config, torch.device(device))
    assert raised.value.where == "training.offload_layers"
    assert weight_storage(config, torch.device("cuda", 0)).offload_share == 0.5
