"""The estimate of a run's memory, and the ladder that makes a run fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures, tiny_settings
from trainer.cli.main import main
from trainer.config.loading import build_config, merge
from trainer.config.run import RunConfig
from trainer.errors import ResourceError
from trainer.memory import MemoryReport, parse_size
from trainer.paths import DataFolder
from trainer.runs import list_runs
from trainer.training.estimate import estimate
from trainer.training.ladder import Place, fit
from trainer.training.live_bytes import LiveBytes, fused_attention

META = torch.device("meta")
GPU = Place("cuda", "bf16", has_8bit=True)
CPU = Place("cpu", "fp32", has_8bit=False)


def test_live_bytes_count_what_a_step_keeps_until_it_is_freed() -> None:
    layer = nn.Linear(8, 16, bias=False, device=META)
    inputs = torch.empty(4, 8, device=META)
    with LiveBytes() as live:
        live.know([*layer.parameters(), inputs])
        hidden = layer(inputs)
        assert live.now == 4 * 16 * 4
        squared = hidden.square()
        view = squared.view(-1)
        assert live.now == 2 * 4 * 16 * 4
        del squared, view
        assert live.now == 4 * 16 * 4
        hidden.sum().backward()
        del hidden
        # What is left is the gradient.
        assert live.now == 8 * 16 * 4
    assert live.peak >= 2 * 4 * 16 * 4


def test_fused_attention_keeps_rows_where_the_plain_form_keeps_a_square() -> None:
    def kept() -> int:
        query, key, value = (torch.empty(1, 2, 512, 8, device=META, requires_grad=True) for _ in range(3))
        with LiveBytes() as live:
            output = functional.scaled_dot_product_attention(query, key, value)
            bytes_kept = live.now
            output.sum().backward()
            assert isinstance(query.grad, Tensor)
            assert query.grad.shape == query.shape
        return bytes_kept

    square = 2 * 512 * 512 * 4
    assert kept() > square
    with fused_attention():
        assert kept() < square / 10
    assert kept() > square


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", family="sdxl")


def estimated(folder: Path, /, **changes: Any) -> dict[str, int]:
    config = build_config(tiny_settings(folder, folder, changes))
    found = estimate(config, DataFolder(folder.parent / "data"))
    assert sum(found.parts.values()) == found.phases["training"] <= found.peak
    return found.parts


def test_each_rung_lowers_what_it_is_for(model: Path) -> None:
    plain = estimated(model)
    checkpointed = estimated(model, training={"gradient_checkpointing": True})
    assert checkpointed["activations"] < plain["activations"]
    bf16 = estimated(model, model={"precision": "bf16"})
    assert bf16["UNet"] == pytest.approx(plain["UNet"] / 2, rel=0.01)
    sizes = [estimated(model, model={"quantization": word})["UNet"] for word in ("none", "int8", "nf4")]
    assert sizes[0] > 2 * sizes[1] > 2.4 * sizes[2]
    one = estimated(model, training={"batch_size": 1})
    assert one["activations"] < 0.7 * plain["activations"]
    assert one["optimizer"] == plain["optimizer"] == 2 * plain["gradients"]
    many = {
        "adapter": {"unet": {"rank": 500, "alpha": 500.0, "targets": "all+conv"}},
        "data": {"resolution": 32},
        "training": {"batch_size": 1, "gradient_checkpointing": True},
    }
    whole = estimated(model, **many)
    fused = estimated(model, **merge(many, {"training": {"fused_backward": True, "max_grad_norm": 0.0}}))
    assert fused["gradients"] == 0
    # A few gradients take the place of all of them.
    assert fused["activations"] < whole["activations"] + whole["gradients"] / 2
    texts = estimated(model, adapter={"text_encoder": {"rank": 4}})
    assert texts["activations"] > plain["activations"]
    assert texts["gradients"] > plain["gradients"]


def test_learned_words_and_further_resolutions_count(model: Path) -> None:
    plain = estimated(model)
    words = estimated(model, adapter={"embedding": {"num_vectors": 2}})
    assert words["activations"] > plain["activations"]
    larger = estimated(model, data={"resolutions": [128]})
    assert larger["activations"] > 1.2 * plain["activations"]


@pytest.mark.parametrize("method", ["dora", "oft"])
def test_other_methods_and_packing_can_be_estimated(model: Path, method: str) -> None:
    plain = estimated(model, adapter={"method": method}, model={"quantization": "nf4"})
    assert plain["activations"] > 0


# How much each saver leaves of a made-up run of 16 GB.
def made_up(config: RunConfig) -> int:
    weights = {"none": 5.0, "int8": 2.6, "fp8": 2.6, "nf4": 1.4}[config.model.quantization]
    weights *= (2 if config.model.precision == "fp32" else 1) * (1 - config.training.offload_layers)
    activations = 2.0 * config.training.batch_size * (0.2 if config.training.gradient_checkpointing else 1)
    states = 0.3 if config.optimizer.name.endswith("8bit") else 1.0
    return round((weights + activations + states + 1.0) * 1e9)


def settings(**changes: Any) -> RunConfig:
    return build_config({"model": {"precision": "bf16"}, "training": {"batch_size": 4}}, changes)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (16, {}),
        (14.5, {"optimizer.name": "paged_adamw_8bit"}),
        # Checkpointing alone is enough, so the states may stay as they are.
        (9, {"training.gradient_checkpointing": True}),
        (6.3, {"training.gradient_checkpointing": True, "model.quantization": "int8"}),
        (
            4.5,
            {
                "optimizer.name": "paged_adamw_8bit",
                "training.gradient_checkpointing": True,
                "model.quantization": "nf4",
            },
        ),
    ],
)
def test_the_ladder_takes_what_costs_least_and_no_more(budget: float, expected: dict[str, Any]) -> None:
    found = fit(settings(), round(budget * 1e9), made_up, GPU)
    changes = {path: value for _, each in found.taken for path, value in each.items()}
    assert {**changes, "model.quantization": changes.get("model.quantization")} == {
        "model.quantization": None,
        **expected,
    }
    assert found.after == made_up(found.config) <= budget * 1e9
    assert found.before == made_up(settings())
    assert found.config.model.quantization == expected.get("model.quantization", "none")


def test_the_last_rungs_offload_and_then_take_fewer_pictures_for_the_same_update() -> None:
    found = fit(settings(), round(2.4e9), made_up, GPU)
    training = found.config.training
    assert training.offload_layers > 0
    assert training.batch_size * training.gradient_accumulation == 4
    assert training.batch_size < 4


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"on_top_of": ["under"]}},
        {"training": {"fused_backward": True, "max_grad_norm": 0.0}},
    ],
    ids=["no packing under merged LoRAs", "no accumulation with a fused backward pass"],
)
def test_a_rung_that_does_not_go_with_the_settings_is_left_out(changes: dict[str, Any]) -> None:
    """Only its own refusal would be told, of settings that the user never chose."""
    found = fit(settings(**changes), round(4.2e9), made_up, GPU)
    assert found.after <= 4.2e9
    assert found.config.training.offload_layers > 0
    assert found.config.adapter.on_top_of == settings(**changes).adapter.on_top_of
    with pytest.raises(ResourceError):
        fit(settings(**changes), 10**9, made_up, GPU)


def test_a_processor_gets_no_rung_of_graphics_cards() -> None:
    found = fit(build_config({"training": {"batch_size": 4}}), 5 * 10**9, made_up, CPU)
    assert found.config.training.offload_layers == 0
    assert found.config.optimizer.name == "adamw"


def test_what_cannot_fit_is_refused_with_what_it_needs() -> None:
    with pytest.raises(ResourceError) as raised:
        fit(settings(), 10**9, made_up, GPU)
    assert "does not fit into 1.0 GB" in str(raised.value)
    assert "data.resolution" in raised.value.fix


@pytest.mark.parametrize(
    ("text", "expected"), [("8GB", 8e9), ("8 gb", 8e9), ("7.5GiB", 7.5 * 2**30), ("600MB", 6e8), ("1000", 1000)]
)
def test_sizes_as_people_write_them(text: str, expected: float) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "8XB", "lots", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_size(text)


def test_the_command_fits_a_run_and_the_run_has_the_settings(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process that estimates is tried in the next test."""
    pictures = make_pictures(tmp_path / "pictures")
    common = ["train", "--dataset", str(pictures), "--model.base", str(model), "--data-dir", str(tmp_path / "data")]

    def answer(config: RunConfig, _data: DataFolder, budget: int | None) -> MemoryReport:
        assert budget == 8 * 10**9
        found = fit(config, budget, made_up, GPU)
        changes = [{"title": rung.title, "cost": rung.cost, "changes": each} for rung, each in found.taken]
        from trainer.config.loading import flatten

        return MemoryReport(
            "cuda", {"UNet": 1}, {"training": 1}, found.after, found.before, changes, flatten(found.config), []
        )

    monkeypatch.setattr("trainer.cli.commands.train.memory_report", answer)
    monkeypatch.setattr("trainer.cli.commands.train.enqueue", lambda *_: None)
    assert main([*common, "--fit", "8GB", "--training.batch_size", "4", "--model.precision", "bf16", "--detach"]) == 0
    printed = capsys.readouterr().err
    assert "training.gradient_checkpointing = true" in printed
    (run,) = list_runs(DataFolder(tmp_path / "data"))
    assert run.config()["training"]["gradient_checkpointing"] is True
    assert main([*common, "--fit", "a lot"]) == 2


def test_the_estimating_process_answers_and_refuses(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    common = ["train", "--dataset", str(pictures), "--model.base", str(model), "--data-dir", str(tmp_path / "data")]
    savers = ["--model.precision", "bf16", "--training.gradient_checkpointing", "true", "--training.batch_size", "1"]
    assert main([*common, *savers, "--model.quantization", "nf4", "--fit", "1MB"]) == ResourceError.exit_code
    assert "does not fit into 1.0 MB" in capsys.readouterr().err
    assert list_runs(DataFolder(tmp_path / "data")) == []
