"""Which layers an adapter trains, with which rank, alpha and rate: sets, blocks, convolutions, and two text encoders."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_model import make_tiny_model
from trainer.adapters.choice import chosen_layers
from trainer.adapters.lora_layer import Dropouts, LoraLayer
from trainer.adapters.method import AdapterMethod, build_method
from trainer.block_names import block_of
from trainer.config.adapter import AdapterConfig
from trainer.config.blocks import choose_layer, parse_rule
from trainer.config.optimizer import OptimizerConfig
from trainer.config.run import RunConfig
from trainer.config.targets import in_pattern, is_target
from trainer.errors import ConfigError
from trainer.lora_files.metadata import TrainingFacts, build_metadata, network_arguments
from trainer.lora_files.modules import LoraModule
from trainer.models import single_file
from trainer.models.components import Components, load_components
from trainer.models.unet_family import unet_targets
from trainer.optimizers.groups import named_groups
from trainer.paths import DataFolder

ONES = (1, 1, 1, 1)


def load(folder: Path) -> Components:
    return load_components(str(folder), DataFolder(folder.parent / "data"), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load(make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-xl", family="sdxl"))


def config_of(**adapter: Any) -> AdapterConfig:
    return RunConfig.model_validate({"adapter": adapter}).adapter


def attached(loaded: Components, config: AdapterConfig) -> AdapterMethod:
    components = copy.copy(loaded)
    components.unet = copy.deepcopy(loaded.unet)
    components.text_encoder, components.text_encoder_2 = copy.deepcopy((loaded.text_encoder, loaded.text_encoder_2))
    method = build_method(config)
    method.attach(components, 0)
    return method


def ranks_and_alphas(method: AdapterMethod) -> dict[str, tuple[int, float]]:
    found = {}
    for path, module in method.export_modules().items():
        assert isinstance(module, LoraModule)
        # The second text encoder has a level more.
        found[path.replace(".text_model.", ".")] = (module.down.shape[0], module.alpha)
    return found


def test_each_layer_has_the_numbers_of_its_block(sd1: Components) -> None:
    config = config_of(
        unet={"rank": 8, "alpha": 4.0, "targets": "all+conv", "conv_rank": 2},
        text_encoder={"rank": 4, "alpha": 4.0},
        blocks=[
            "up_blocks: rank=0",
            "up_blocks.1.attentions: rank=6",
            "down_blocks.0: rank=4 alpha=3",
            "text_encoder.*.layers.1: alpha=2",
            "MID: rate=0",
        ],
    )
    found = ranks_and_alphas(attached(sd1, config))
    assert found["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"] == (4, 3.0)
    # A line is stronger than the setting for convolutions.
    assert found["unet.down_blocks.0.resnets.0.conv1"] == (4, 3.0)
    # In proportion: alpha / rank stays 0.5.
    assert found["unet.down_blocks.1.resnets.0.conv1"] == (2, 1.0)
    assert found["unet.down_blocks.1.resnets.0.time_emb_proj"] == (8, 4.0)
    assert found["unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"] == (6, 3.0)
    assert found["text_encoder.encoder.layers.0.self_attn.q_proj"] == (4, 4.0)
    assert found["text_encoder.encoder.layers.1.self_attn.q_proj"] == (4, 2.0)
    assert not any(
        path.startswith(("unet.mid_block", "unet.up_blocks.0", "unet.up_blocks.1.resnets")) for path in found
    )


def test_blocks_have_groups_with_their_own_rate(sd1: Components) -> None:
    config = config_of(method="loraplus", unet={"rank": 2, "alpha": 2.0}, blocks=["mid_block: rate=0.5"])
    method = attached(sd1, config)
    groups = method.parameter_groups()
    assert list(groups) == ["unet", "unet up", "unet x0.5", "unet up x0.5"]
    assert [method.rate_factor(group) for group in groups] == [1, 16, 0.5, 8]
    slow = {id(weight) for weight in groups["unet x0.5"]}
    names = {
        name
        for name, tensor in method.state_dict().items()
        if any(tensor.data_ptr() == weight.data_ptr() for weight in groups["unet x0.5"])
    }
    assert len(slow) == len(names) > 0
    assert all(name.startswith("unet.mid_block.") and name.endswith(".down") for name in names)


def test_a_list_of_block_weights_is_kohyas(sd1: Components) -> None:
    # BASE, then IN01 IN02 IN04 IN05 IN07 IN08, MID, OUT03 to OUT11.
    rates = ["0.5", "1", "1", "0", "0", "0", "0", "0.25", "2", *["1"] * 8]
    config = config_of(
        unet={"rank": 2, "alpha": 2.0}, text_encoder={"rank": 2, "alpha": 2.0}, block_rates=",".join(rates)
    )
    layers = chosen_layers(sd1, config)
    by_block = {
        block_of(f"{part}.{path}"): choice.rate for part, paths in layers.items() for path, choice in paths.items()
    }
    assert by_block == {"BASE": 0.5, "IN01": 1.0, "MID": 0.25, "OUT03": 2.0, "OUT04": 1.0}


@pytest.mark.parametrize(
    ("path", "block"),
    [
        # The names that the original UNet's blocks have in diffusers, as its conversion script maps them.
        ("unet.conv_in", "IN00"),
        ("unet.down_blocks.0.attentions.1.proj_in", "IN02"),
        ("unet.down_blocks.0.downsamplers.0.conv", "IN03"),
        ("unet.down_blocks.1.resnets.0.conv1", "IN04"),
        ("unet.down_blocks.2.attentions.1.proj_in", "IN08"),
        ("unet.down_blocks.3.resnets.1.conv1", "IN11"),
        ("unet.mid_block.resnets.1.conv1", "MID"),
        ("unet.up_blocks.0.resnets.0.conv1", "OUT00"),
        ("unet.up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("unet.up_blocks.3.attentions.2.proj_in", "OUT11"),
        ("text_encoder.encoder.layers.0.mlp.fc1", "BASE"),
    ],
)
def test_kohyas_names_of_blocks(path: str, block: str) -> None:
    assert block_of(path) == block


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"blocks": ["down_blocks.7: rank=2"]}, ["down_blocks.7", "down_blocks.0, up_blocks.1, mid_block"]),
        # It is there, but has no attention.
        ({"blocks": ["down_blocks.1: rank=2"]}, ["down_blocks.1"]),
        ({"blocks": ["*: rank=0"]}, ["Nothing would be trained"]),
        ({"block_rates": ",".join(["1"] * 12)}, ["12", "17 or 26"]),
        ({"block_rates": ",".join(["1"] * 17), "unet": {"targets": "all+conv"}}, ["IN03", "26"]),
        ({"unet": {"targets": "style-blocks"}}, ["SDXL only"]),
        ({"text_encoder_2": {"rank": 4}}, ["one text encoder"]),
        ({"unet": {"targets": "pattern", "pattern": "nowhere.*"}}, ["no layers of the set 'pattern'"]),
    ],
)
def test_what_this_model_does_not_have_is_refused(sd1: Components, adapter: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen_layers(sd1, config_of(**adapter))
    assert all(word in str(caught.value) for word in words)


def test_two_text_encoders_have_numbers_of_their_own(sdxl: Components) -> None:
    first = {"rank": 4, "alpha": 2.0, "targets": "attention"}
    same = ranks_and_alphas(attached(sdxl, config_of(text_encoder=first)))
    assert same["text_encoder_2.encoder.layers.0.self_attn.q_proj"] == (4, 2.0)
    own = ranks_and_alphas(attached(sdxl, config_of(text_encoder=first, text_encoder_2={"rank": 2})))
    assert own["text_encoder_2.encoder.layers.0.self_attn.q_proj"] == (2, 1.0)
    assert own["text_encoder.encoder.layers.0.self_attn.q_proj"] == (4, 2.0)
    second = {"rank": 2, "alpha": 6.0, "targets": "attention-qv"}
    only = config_of(unet={"rank": 0}, text_encoder={"rank": 0}, text_encoder_2=second)
    assert only.trains_text
    method = attached(sdxl, only)
    assert {path.rpartition(".")[2] for path in ranks_and_alphas(method)} == {"q_proj", "v_proj"}
    assert {path.partition(".")[0] for path in ranks_and_alphas(method)} == {"text_encoder_2"}
    rates = OptimizerConfig(text_encoder_learning_rate=1e-4, text_encoder_2_learning_rate=3e-5)
    assert named_groups(rates, method.parameter_groups())[0]["lr"] == 3e-5
    assert OptimizerConfig(text_encoder_learning_rate=1e-4).learning_rate("text_encoder_2") == 1e-4


def test_named_sets_on_the_published_unets() -> None:
    """Counts of layers as they follow from the published architectures."""
    unets = {family: single_file._empty_unet(single_file.CONFIGS / family) for family in ("sd1", "sdxl")}
    # 16 blocks of attention, of self and cross attention each; SDXL has 70 transformer blocks.
    assert len(unet_targets(unets["sd1"], "attention")) == 16 * 2 * 4
    assert len(unet_targets(unets["sd1"], "attention-qv")) == 16 * 2 * 2
    assert len(unet_targets(unets["sdxl"], "attention")) == 70 * 2 * 4
    style, content = (unet_targets(unets["sdxl"], name) for name in ("style-blocks", "content-blocks"))
    # B-LoRA's published code: 'style' is unet.up_blocks.0.attentions.1, 'content' unet.up_blocks.0.attentions.0.
    assert {".".join(path.split(".")[:4]) for path in style} == {"up_blocks.0.attentions.1"}
    assert {".".join(path.split(".")[:4]) for path in content} == {"up_blocks.0.attentions.0"}
    assert len(style) == len(content) == 10 * 2 * 4


def test_a_free_pattern_names_layers() -> None:
    path = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    assert in_pattern("up_blocks.1.*.attn2", path)
    assert in_pattern("mid_block, *.to_k", path)
    assert in_pattern(r"re:attn2\.to_(k|v)$", path)
    assert not in_pattern("up_blocks.1.*.attn1, mid_block", path)
    settings = config_of(unet={"targets": "pattern", "pattern": "*"}).unet
    assert not is_target("unet", settings, "conv_in", (4, 4, 3, 3))


def test_a_rule_without_an_alpha_keeps_the_scale() -> None:
    config = config_of(unet={"rank": 16, "alpha": 8.0}, blocks=["*: rank=0", "mid_block: rank=32"])
    assert choose_layer(config, "unet.down_blocks.0.x", ONES).rank == 0
    choice = choose_layer(config, "unet.mid_block.x", ONES)
    assert (choice.rank, choice.alpha) == (32, 16.0)
    assert parse_rule("a.b: rank=3, rate=1e-1") == parse_rule("a.b:rate=0.1 rank=3")


FACTS = TrainingFacts("name", "base", 1, 1, 1, 64, 64, 0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            {
                "ss_min_snr_gamma": "5.0",
                "ss_loss_type": "l2",
                "ss_huber_c": "None",
                "ss_multires_noise_iterations": "None",
                "ss_ip_noise_gamma": "None",
                "ss_debiased_estimation": "False",
                "ss_prior_loss_weight": "None",
            },
        ),
        ({"objective.weighting": "debiased"}, {"ss_min_snr_gamma": "None", "ss_debiased_estimation": "True"}),
        ({"objective.min_snr_gamma": 0.0}, {"ss_min_snr_gamma": "None"}),
        (
            {"objective.loss": "huber", "objective.huber_delta": 0.2, "objective.huber_schedule": "exponential"},
            {"ss_loss_type": "huber", "ss_huber_c": "0.2", "ss_huber_schedule": "exponential"},
        ),
        (
            {"objective.pyramid_noise_levels": 6, "objective.pyramid_noise_discount": 0.4},
            {"ss_multires_noise_iterations": "6", "ss_multires_noise_discount": "0.4"},
        ),
        (
            {"objective.noise_offset": 0.05, "objective.input_perturbation": 0.1},
            {"ss_noise_offset": "0.05", "ss_ip_noise_gamma": "0.1"},
        ),
        (
            {"objective.min_timestep": 100, "objective.max_timestep": 900},
            {"ss_min_timestep": "100", "ss_max_timestep": "900"},
        ),
        (
            {"data.caption_dropout": 0.2, "data.tag_dropout": 0.1, "data.horizontal_flip": True},
            {"ss_caption_dropout_rate": "0.2", "ss_caption_tag_dropout_rate": "0.1", "ss_flip_aug": "True"},
        ),
        (
            {"data.prior.class_prompt": "a robot", "data.prior.weight": 0.7},
            {"ss_prior_loss_weight": "0.7"},
        ),
        (
            {"training.max_grad_norm": 0.5, "training.gradient_checkpointing": True, "training.steps": 200},
            {"ss_max_grad_norm": "0.5", "ss_gradient_checkpointing": "True", "ss_lr_warmup_steps": "10"},
        ),
        (
            {"adapter.text_encoder.rank": 4, "optimizer.text_encoder_learning_rate": 2e-5},
            {"ss_text_encoder_lr": "2e-05"},
        ),
    ],
)
def test_the_objective_is_told_in_kohyas_words(settings: dict[str, Any], expected: dict[str, str]) -> None:
    from trainer.config.loading import build_config, nest

    metadata = build_metadata(build_config(nest(settings)), FACTS)
    assert {key: metadata.get(key) for key in expected} == expected


def test_the_model_is_told_in_kohyas_words() -> None:
    from dataclasses import replace

    facts = replace(FACTS, prediction_type="v_prediction", zero_terminal_snr=True, family="sdxl")
    config = RunConfig.model_validate(
        {
            "adapter": {"text_encoder": {"rank": 4}, "text_encoder_2": {"rank": 2}},
            "optimizer": {"text_encoder_learning_rate": 1e-5, "text_encoder_2_learning_rate": 5e-6},
        }
    )
    metadata = build_metadata(config, facts)
    assert metadata["ss_zero_terminal_snr"] == "True"
    assert metadata["modelspec.prediction_type"] == "v"
    assert json.loads(metadata["ss_text_encoder_lr"]) == [1e-5, 5e-6]


def test_blocks_are_told_in_kohyas_words() -> None:
    adapter = config_of(
        unet={"rank": 8, "alpha": 4.0, "targets": "all+conv", "conv_rank": 4},
        blocks=["down_blocks.0: rank=2", "MID: rank=0", "OUT11: rate=0.5"],
        rank_dropout=0.1,
    )
    arguments = network_arguments(adapter)
    assert (arguments["conv_dim"], arguments["conv_alpha"], arguments["rank_dropout"]) == (4, 2.0, 0.1)
    assert arguments["block_dims"] == ",".join(["8", "2", "2", "2", *["8"] * 8, "0", *["8"] * 12])
    assert len(arguments["block_alphas"].split(",")) == 25
    assert arguments["up_lr_weight"] == ",".join([*["1"] * 11, "0.5"])
    assert arguments["mid_lr_weight"] == "1"
    # What kohya's trainer could not say is not said wrongly.
    assert "block_dims" not in network_arguments(config_of(blocks=["*.attn2: rank=2"]))
    assert "block_dims" not in network_arguments(adapter, "sdxl")


def change_of(base: nn.Module, dropouts: Dropouts) -> LoraLayer:
    """A LoRA of rank 3 beside a base that gives zeros, so that its output is the change alone."""
    with torch.no_grad():
        for weight in base.parameters():
            weight.zero_()
    layer = LoraLayer(base.requires_grad_(False), 3, 1.0, dropouts, torch.device("cpu"))
    with torch.no_grad():
        layer.down.copy_(torch.randn(layer.down.shape, generator=torch.Generator().manual_seed(1)))
        layer.up.copy_(torch.eye(3).view(layer.up.shape))
    return layer


@pytest.mark.parametrize("base", [nn.Linear(5, 3, bias=False), nn.Conv2d(5, 3, 1, bias=False)])
def test_rank_dropout_is_kohyas(base: nn.Module) -> None:
    """Each sample loses its own ranks, which are divided by what is left; only while training."""
    inputs = torch.randn(4, 5) if isinstance(base, nn.Linear) else torch.randn(4, 5, 2, 2)
    layer = change_of(base, Dropouts(ranks=0.4))
    plain = layer.eval()(inputs)
    torch.manual_seed(7)
    found = layer.train()(inputs)
    torch.manual_seed(7)
    kept = torch.rand(4 * 3).reshape(4, 3) >= 0.4
    assert 0 < int(kept.sum()) < 12
    expected = plain * kept.view(4, 3, *[1] * (inputs.ndim - 2)) / 0.6
    torch.testing.assert_close(found, expected)
    assert torch.equal(layer.eval()(inputs), plain)


def test_module_dropout_leaves_whole_layers_out() -> None:
    layer, inputs = change_of(nn.Linear(5, 3), Dropouts(whole=0.5)), torch.randn(4, 5)
    plain = layer.eval()(inputs)
    torch.manual_seed(0)
    outputs = [layer.train()(inputs) for _ in range(30)]
    zeros = sum(int(not output.any()) for output in outputs)
    assert 5 < zeros < 25
    assert all(torch.allclose(output, plain) for output in outputs if output.any())
