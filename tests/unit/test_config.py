"""The schema refuses what cannot be run, with the field's name; everything else derives from it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from trainer.config import loading
from trainer.config.adapter import METHODS
from trainer.config.compare import CompareConfig
from trainer.config.fields import describe
from trainer.config.generate import GenerateConfig
from trainer.config.run import RunConfig
from trainer.config.unused import unused_settings
from trainer.errors import ConfigError
from trainer.paths import PRESETS
from trainer.paths import PROJECT as ROOT


def findings(values: dict) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        loading.build_config(loading.nest(values))
    return {finding.where: finding.message for finding in caught.value.findings}


@pytest.mark.parametrize("model", [RunConfig, GenerateConfig, CompareConfig])
def test_every_setting_has_a_help_text(model: type) -> None:
    assert [spec.path for spec in describe(model) if len(spec.help) < 15] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("adapter.unet.rank", -1),
        ("adapter.unet.rank", "many"),
        ("adapter.unet.alpha", 0),
        ("optimizer.unet_learning_rate", "nan"),
        ("optimizer.unet_learning_rate", float("inf")),
        ("optimizer.unet_learning_rate", -1e-4),
        ("training.steps", 0),
        ("training.steps", 1e12),
        ("training.seed", -1),
        ("training.seed", 2**64),
        ("data.resolution", 63),
        ("data.resolution", 100000),
        ("data.trigger_word", "two\nlines"),
        ("schedule.kind", "spiral"),
    ],
)
def test_bad_value_is_refused_at_its_field(path: str, value: object) -> None:
    assert list(findings({path: value})) == [path]


def test_all_faults_are_reported_at_once() -> None:
    found = findings({"adapter.unet.rank": -1, "training.steps": 0, "nonsense": 1})
    assert set(found) == {"adapter.unet.rank", "training.steps", "nonsense"}


def test_unknown_key_names_the_nearest_one() -> None:
    assert "adapter.unet.alpha" in findings({"adapter.unet.alfa": 3})["adapter.unet.alfa"]


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"adapter.unet.rank": 0}, "adapter.unet.rank"),
        ({"objective.min_timestep": 800, "objective.max_timestep": 200}, "objective.min_timestep"),
        ({"data.resolution": 64, "data.bucket_step": 128}, "data.bucket_step"),
        ({"adapter.unet.rank": 1, "adapter.unet.alpha": 64}, "adapter.unet.alpha"),
        ({"data.use_captions": False}, "data.instance_prompt"),
        ({"adapter.method": "rslora", "adapter.unet.rank": 4, "adapter.unet.alpha": 17}, "adapter.unet.alpha"),
        ({"adapter.method": "dora", "adapter.lokr.factor": 4}, "adapter.lokr.factor"),
        ({"adapter.loraplus.ratio": 4}, "adapter.loraplus.ratio"),
        ({"adapter.method": "loha", "adapter.dropout": 0.1}, "adapter.dropout"),
        ({"adapter.init": "pissa", "adapter.dropout": 0.1}, "adapter.dropout"),
        ({"adapter.method": "dora", "adapter.rank_dropout": 0.1}, "adapter.rank_dropout"),
        ({"adapter.init": "olora", "adapter.rank_dropout": 0.1}, "adapter.rank_dropout"),
        ({"adapter.blocks": ["mid_block"]}, "adapter.blocks"),
        ({"adapter.blocks": ["mid_block: rnk=3"]}, "adapter.blocks"),
        ({"adapter.blocks": ["mid_block: rank=2.5"]}, "adapter.blocks"),
        ({"adapter.blocks": ["mid_block: rank=1 alpha=99"]}, "adapter.blocks"),
        ({"adapter.blocks": ["text_encoder: rank=4"]}, "adapter.blocks"),
        ({"adapter.block_rates": "1,2,3"}, "adapter.block_rates"),
        ({"adapter.block_rates": ",".join(["x"] * 17)}, "adapter.block_rates"),
        ({"optimizer.name": "prodigy", "adapter.blocks": ["mid_block: rate=0.5"]}, "adapter.blocks"),
        ({"adapter.on_top_of": [":0.5"]}, "adapter.on_top_of"),
        ({"adapter.method": "dora", "adapter.on_top_of": ["style"]}, "adapter.on_top_of"),
        ({"save.export_sum": True}, "save.export_sum"),
        ({"adapter.joint.rate": 0.5}, "adapter.joint.rate"),
        ({"adapter.joint.rank": 4, "adapter.method": "dora"}, "adapter.joint.rank"),
        ({"adapter.joint.rank": 4, "adapter.init": "pissa"}, "adapter.init"),
        ({"adapter.joint.rank": 4, "adapter.unet.rank": 0}, "adapter.unet.rank"),
        ({"adapter.joint.rank": 1, "adapter.joint.alpha": 64}, "adapter.joint.alpha"),
        ({"adapter.joint.rank": 4, "adapter.joint.targets": "pattern"}, "adapter.joint.pattern"),
        ({"adapter.joint.rank": 4, "adapter.joint.blocks": ["mid_block"]}, "adapter.joint.blocks"),
        ({"adapter.joint.rank": 4, "adapter.joint.rate": 0.5, "optimizer.name": "prodigy"}, "adapter.joint.rate"),
        ({"adapter.joint.rank": 4, "adapter.joint.method": "loraplus", "optimizer.name": "prodigy"}, "optimizer.name"),
        ({"adapter.eva.rho": 2.0}, "adapter.eva.rho"),
        ({"adapter.method": "loha", "adapter.init": "eva"}, "adapter.init"),
        ({"adapter.unet.conv_rank": 4}, "adapter.unet.conv_rank"),
        ({"adapter.unet.targets": "all+conv", "adapter.unet.conv_alpha": 999.0}, "adapter.unet.conv_alpha"),
        ({"adapter.unet.targets": "pattern"}, "adapter.unet.pattern"),
        ({"adapter.unet.targets": "pattern", "adapter.unet.pattern": "re:("}, "adapter.unet.pattern"),
        ({"adapter.unet.pattern": "mid_block"}, "adapter.unet.pattern"),
        ({"adapter.text_encoder_2.rank": 1, "adapter.text_encoder_2.alpha": 99}, "adapter.text_encoder_2.alpha"),
        ({"optimizer.text_encoder_2_learning_rate": -0.5}, "optimizer.text_encoder_2_learning_rate"),
        ({"adapter.method": "dora", "adapter.max_norm": 1.0}, "adapter.max_norm"),
        ({"adapter.method": "oft", "adapter.init": "pissa"}, "adapter.init"),
        ({"adapter.method": "ia3", "adapter.unet.targets": "all+conv"}, "adapter.unet.targets"),
        (
            {"adapter.method": "adalora", "adapter.adalora.start_share": 0.5, "adapter.adalora.final_share": 0.5},
            "adapter.adalora.final_share",
        ),
    ],
)
def test_impossible_combinations_are_refused_with_the_field(values: dict, where: str) -> None:
    assert where in findings(values)


@pytest.mark.parametrize("method", METHODS)
def test_one_word_changes_the_method_of_any_preset(method: str) -> None:
    word = {"adapter.method": method} | ({"adapter.unet.targets": "attention"} if method == "ia3" else {})
    for preset in loading.list_presets():
        config = loading.build_config(loading.load_preset(preset.name), loading.nest(word))
        assert config.adapter.method == method


def test_texts_from_a_command_line_become_typed_values() -> None:
    config = loading.build_config(
        loading.nest({"adapter.unet.rank": "8", "data.buckets": "false", "optimizer.unet_learning_rate": "1e-3"})
    )
    assert (config.adapter.unet.rank, config.data.buckets, config.optimizer.unet_learning_rate) == (8, False, 1e-3)


def test_later_layers_win_and_lists_are_replaced() -> None:
    merged = loading.merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}})
    assert merged == {"a": {"b": 1, "c": [3]}}


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_bundled_presets_are_valid_and_described(path: Path) -> None:
    loading.build_config(loading.load_preset(path.stem))
    about = loading.read_toml(path)["preset"]
    assert about["title"]
    assert len(about["description"]) > 40


def test_preset_round_trip(tmp_path: Path) -> None:
    config = loading.build_config(
        loading.load_preset("sd15-character"), {"preview": {"prompts": ['a "robot"', "水墨"]}}
    )
    path = loading.write_preset(config, tmp_path, "My preset", "for tests")
    assert loading.build_config(loading.read_settings(path)) == config
    assert "# " in path.read_text(encoding="utf-8")


def test_newer_schema_is_refused_with_its_version(tmp_path: Path) -> None:
    path = tmp_path / "future.toml"
    path.write_text("schema_version = 99\n")
    with pytest.raises(ConfigError, match="99"):
        loading.read_settings(path)


def test_broken_toml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[training]\nsteps = \n")
    with pytest.raises(ConfigError, match=r"broken\.toml.*line 2"):
        loading.read_settings(path)


def test_implementations_named_in_the_schema_exist() -> None:
    source = "".join(path.read_text() for path in (ROOT / "trainer" / "config").glob("*.py"))
    references = [
        node.value.value
        for node in ast.walk(ast.parse(source.replace("from __future__ import annotations", "")))
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "implementation"
        and isinstance(node.value, ast.Constant)
    ]
    assert references
    for reference in references:
        module, _, name = reference.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    ("changes", "unused"),
    [
        ({"objective": {"huber_delta": 0.5}}, ["objective.huber_delta (only with objective.loss huber or smooth_l1)"]),
        ({"objective": {"huber_delta": 0.5, "loss": "huber"}}, []),
        ({"schedule": {"power": 9.0}}, ["schedule.power (only with schedule.kind polynomial)"]),
        ({"schedule": {"power": 9.0, "kind": "polynomial"}}, []),
        ({"data": {"prior": {"weight": 0.5}}}, ["data.prior.weight (only with data.prior.class_prompt)"]),
        ({"data": {"prior": {"weight": 0.5, "class_prompt": "a house"}}}, []),
    ],
)
def test_settings_that_do_nothing_are_named(changes: dict, unused: list[str]) -> None:
    assert unused_settings(loading.build_config(changes)) == unused


@pytest.mark.parametrize("name", [preset.name for preset in loading.list_presets()])
def test_presets_set_nothing_that_does_nothing(name: str) -> None:
    assert unused_settings(loading.build_config(loading.load_preset(name))) == []


def test_the_base_models_own_prediction_needs_a_prompt() -> None:
    with pytest.raises(ConfigError) as caught:
        loading.build_config({"data": {"prior": {"source": "base_prediction"}}})
    assert [finding.where for finding in caught.value.findings] == ["data.prior.class_prompt"]
