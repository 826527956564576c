"""Every adapter method on the tiny model: it starts as the base, learns, goes on bit by bit, and its file is what was trained."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from tests.tiny_model import make_tiny_model
from trainer.adapters.method import AdapterMethod, build_method
from trainer.config.adapter import METHODS, AdapterConfig, Method, TextEncoderLora, UnetLora
from trainer.config.adapter_faults import adapter_faults
from trainer.config.adapter_size import num_parameters
from trainer.config.blocks import choose_layer
from trainer.config.optimizer import OptimizerConfig
from trainer.errors import ConfigError, RunError
from trainer.lora_files.file import AdapterModule, LoraModule, read_lora, write_lora
from trainer.lora_files.layouts import canonical_modules
from trainer.models.components import Components, load_components
from trainer.objects import load_object
from trainer.optimizers.adamw import build
from trainer.paths import DataFolder
from trainer.training.checkpoint import pack_optimizer, unpack_optimizer
from trainer.training.step import learning_rate

BLOCKS = ["down_blocks.0: rank=2", "mid_block: rank=0", "text_encoder.*.layers.1: rank=4 alpha=3", "OUT03: rate=0.5"]
CASES: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "dora by output": {"method": "dora", "dora": {"axis": "output"}},
    "pissa": {"init": "pissa"},
    "olora": {"method": "rslora", "init": "olora"},
    "orthogonal": {"method": "loraplus", "init": "orthogonal"},
    "max norm": {"max_norm": 0.05},
    "constrained oft": {"method": "oft", "oft": {"constraint": 1e-3}},
    "loha with dropout": {"method": "loha", "module_dropout": 0.3, "rank_dropout": 0.2},
    "lora with dropout": {"module_dropout": 0.1, "rank_dropout": 0.2},
    **{
        f"blocks of {method}": {"method": method, "blocks": BLOCKS}
        for method in ("loraplus", "adalora", "lokr", "boft")
    },
    "jointly": {"joint": {"rank": 3, "alpha": 6.0, "rate": 0.5, "targets": "all+conv", "text_encoder_rank": 1}},
    "jointly on other blocks": {
        "method": "loraplus",
        "module_dropout": 0.1,
        "blocks": ["mid_block: rank=0"],
        "joint": {"rank": 4, "method": "rslora", "blocks": ["*: rank=0", "mid_block: rank=2"], "targets": "all+conv"},
    },
    "blocks of pissa": {"init": "pissa", "blocks": BLOCKS},
}
# These move little at the rates that suit the others.
RATES = {"adalora": 2e-2, "ia3": 5e-2}
ALL = pytest.mark.parametrize("case", CASES)


def config_of(case: str) -> AdapterConfig:
    """The case on every layer that it can take, the ranks high enough for blocks of two channels."""
    settings = CASES[case]
    targets = "attention+mlp" if settings.get("method") == "ia3" else "all+conv"
    config = AdapterConfig(
        unet=UnetLora(rank=4, alpha=2.0, targets=targets), text_encoder=TextEncoderLora(rank=2, alpha=6.0), **settings
    )
    assert adapter_faults(config) == []
    return config


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return load_components(str(folder), DataFolder(folder.parent / "data"), torch.device("cpu"), torch.float32)


def fresh(loaded: Components) -> Components:
    components = copy.copy(loaded)
    components.unet, components.text_encoder = copy.deepcopy((loaded.unet, loaded.text_encoder))
    return components


def predict(components: Components) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    states = components.family.encode_prompts(components, ["a red house"])
    return components.family.predict(components, latents, torch.tensor([500]), states)


def attached(components: Components, case: str, seed: int = 0) -> AdapterMethod:
    method = build_method(config_of(case))
    method.attach(components, seed)
    return method


def randomise(method: AdapterMethod) -> None:
    generator = torch.Generator().manual_seed(2)
    for weights in method.parameter_groups().values():
        for weight in weights:
            weight.data += 0.1 * torch.randn(weight.shape, generator=generator)


def test_every_word_of_the_schema_is_a_method_and_the_other_way_round() -> None:
    assert set(METHODS) == set(get_args(Method))
    assert all(callable(load_object(facts.implementation)) for facts in METHODS.values())


@ALL
@torch.no_grad()
def test_the_start_is_exactly_the_base(loaded: Components, case: str) -> None:
    components = fresh(loaded)
    before = predict(components)
    method = attached(components, case)
    assert torch.equal(predict(components), before)
    trained = {id(weight) for weights in method.parameter_groups().values() for weight in weights}
    for model in (components.unet, components.text_encoder):
        assert all(weight.requires_grad == (id(weight) in trained) for weight in model.parameters())


@ALL
@torch.no_grad()
def test_the_file_read_back_makes_the_same_change(loaded: Components, case: str, tmp_path: Path) -> None:
    adapted, merged = fresh(loaded), fresh(loaded)
    before = predict(merged)
    method = attached(adapted, case)
    randomise(method)
    modules = method.export_modules()
    config = config_of(case)
    for path, module in modules.items():
        shape = getattr(merged, path.partition(".")[0]).get_submodule(path.partition(".")[2]).weight.shape
        told = sum(num_parameters(each, choose_layer(each, path, shape).rank, path, shape) for each in config.alone)
        written = sum(tensor.numel() for part, tensor in module.tensors().items() if part not in ("alpha", "on_input"))
        # AdaLoRA's share is of all layers together, and not taken yet.
        assert written == told * (2 if config.method == "adalora" else 1), path
    paths = dict(zip(canonical_modules(modules), modules, strict=True))
    write_lora(tmp_path / "file.safetensors", modules, {}, "fp32")
    for name, module in read_lora(tmp_path / "file.safetensors").modules.items():
        part, _, path = paths.pop(name).partition(".")
        weight = getattr(merged, part).get_submodule(path).weight
        weight += module.delta_weight(weight)
    assert paths == {}
    expected = predict(adapted)
    assert not torch.allclose(expected, before, atol=1e-2)
    torch.testing.assert_close(predict(merged), expected, rtol=1e-4, atol=1e-5)


def train(components: Components, method: AdapterMethod, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """Steps towards a fixed prediction; what is random in them follows from the step, as in a run."""
    goal = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for model in (components.unet, components.text_encoder):
        model.train()
    losses = []
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = (predict(components) - goal).square().mean()
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        method.after_step(step, 6)
        losses.append(loss.item())
    return losses


@ALL
def test_it_learns_and_goes_on_bit_by_bit(loaded: Components, case: str) -> None:
    rate = RATES.get(str(CASES[case].get("method")), 3e-3)
    config = OptimizerConfig(unet_learning_rate=rate, text_encoder_learning_rate=rate)
    components = fresh(loaded)
    method = attached(components, case)
    optimizer = build(config, method.parameter_groups())
    losses = train(components, method, optimizer, range(1, 4))
    saved = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    packed = {name: tensor.clone() for name, tensor in pack_optimizer(optimizer).items()}
    losses += train(components, method, optimizer, range(4, 7))
    assert losses[-1] < 0.97 * losses[0]

    other = fresh(loaded)
    resumed = attached(other, case, seed=9)
    resumed.load_state_dict(saved)
    second = build(config, resumed.parameter_groups())
    unpack_optimizer(second, packed)
    assert train(other, resumed, second, range(4, 7)) == losses[3:]
    expected = method.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state_dict().items())


def test_gradient_checkpointing_gives_the_same_gradients(loaded: Components) -> None:
    gradients = []
    for checkpoints in (False, True):
        components = fresh(loaded)
        method = attached(components, "loha with dropout")
        randomise(method)
        components.unet.train()
        if checkpoints:
            components.unet.enable_gradient_checkpointing()
        torch.manual_seed(0)
        predict(components).square().mean().backward()
        gradients.append([weight.grad for weight in method.parameter_groups()["unet"]])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_a_checkpoint_of_another_method_is_refused(loaded: Components) -> None:
    saved = attached(fresh(loaded), "loha").state_dict()
    with pytest.raises(RunError) as caught:
        attached(fresh(loaded), "lokr").load_state_dict(saved)
    assert any(finding.where.endswith("w1_a") for finding in caught.value.findings)


def test_loraplus_teaches_up_faster(loaded: Components) -> None:
    method = attached(fresh(loaded), "loraplus")
    groups = method.parameter_groups()
    assert list(groups) == ["unet", "unet up", "text_encoder", "text_encoder up"]
    state = method.state_dict()
    ups = {tensor.data_ptr() for name, tensor in state.items() if name.endswith(".up")}
    assert {weight.data_ptr() for name in ("unet up", "text_encoder up") for weight in groups[name]} == ups
    parts: Any = SimpleNamespace(
        config=SimpleNamespace(optimizer=OptimizerConfig(unet_learning_rate=1e-4, text_encoder_learning_rate=1e-5)),
        adapter=method,
    )
    rates = [learning_rate(parts, group) for group in groups]
    assert rates == pytest.approx([1e-4, 16e-4, 1e-5, 16e-5])


def test_the_second_of_two_learns_at_its_own_rate(loaded: Components) -> None:
    joint = {"rank": 2, "rate": 0.5, "method": "loraplus", "targets": "attention-qv"}
    method = build_method(AdapterConfig.model_validate({"unet": {"rank": 4}, "joint": joint}))
    method.attach(fresh(loaded), 0)
    groups = method.parameter_groups()
    parts: Any = SimpleNamespace(
        config=SimpleNamespace(optimizer=OptimizerConfig(unet_learning_rate=1e-4)), adapter=method
    )
    rates = {group: learning_rate(parts, group) for group in groups}
    assert rates == pytest.approx({"unet": 1e-4, "unet joint": 0.5e-4, "unet up joint": 8e-4})
    first, second = method.export_parts().values()
    assert {path.rpartition(".")[2] for path in second} == {"to_q", "to_v"}
    path = next(iter(second))
    assert [each[path].rank for each in (first, second)] == [4, 2]
    assert method.export_modules()[path].rank == 6
    assert method.export_modules().keys() == first.keys()


def test_what_the_second_of_two_asks_for_is_refused_at_its_own_setting(loaded: Components) -> None:
    config = AdapterConfig.model_validate({"joint": {"rank": 4, "blocks": ["down_blocks.7: rank=2"]}})
    with pytest.raises(ConfigError) as caught:
        build_method(config).attach(fresh(loaded), 0)
    assert caught.value.where == "adapter.joint.blocks"
    assert [finding.where for finding in caught.value.findings] == ["adapter.joint.blocks"]


def test_long_changes_are_shortened_and_others_left(loaded: Components) -> None:
    config = AdapterConfig(unet=UnetLora(rank=4, alpha=2.0, targets="all+conv"), max_norm=0.5)
    method = build_method(config)
    method.attach(fresh(loaded), 0)
    randomise(method)
    before = {
        path: module.delta_weight(torch.empty(module_shape(module))) for path, module in method.export_modules().items()
    }
    short = [path for path, delta in before.items() if delta.norm() <= 0.5]
    assert 0 < len(short) < len(before)
    saved = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method.after_step(1, 6)
    after = method.export_modules()
    for path, delta in before.items():
        expected = delta * min(1.0, 0.5 / float(delta.norm()))
        torch.testing.assert_close(after[path].delta_weight(delta), expected, rtol=1e-4, atol=1e-6)
    state = method.state_dict()
    assert all(torch.equal(state[name], saved[name]) for name in state if name.rpartition(".")[0] in short)


def module_shape(module: AdapterModule) -> tuple[int, ...]:
    assert isinstance(module, LoraModule)
    return (module.up.shape[0], *module.down.shape[1:])


def test_who_does_not_read_the_file_is_said(loaded: Components) -> None:
    assert attached(fresh(loaded), "lora").notes() == []
    assert attached(fresh(loaded), "adalora").notes() == []
    (note,) = attached(fresh(loaded), "loha").notes()
    assert "LoHa" in note
    assert "kohya sd-scripts" in note
    assert "ComfyUI" not in note


def test_a_layer_that_no_block_fits_is_refused_at_the_rank(loaded: Components) -> None:
    config = AdapterConfig(method="boft", unet=UnetLora(rank=1))
    with pytest.raises(ConfigError) as caught:
        build_method(config).attach(fresh(loaded), 0)
    assert caught.value.where == "adapter.unet.rank"
