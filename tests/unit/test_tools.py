"""The LoRA tools from settings to figures: as jobs on real files, and from the command line; and what is inside a LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from app import render
from app.services.tools import Figures, ToolService
from trainer.cli.main import main
from trainer.config.fields import describe
from trainer.config.loading import build_tool_settings
from trainer.config.run import RunConfig
from trainer.config.tools import TOOLS, summary
from trainer.errors import ConfigError
from trainer.events import Failed, Finished, Stage, Stopped
from trainer.jobs import JobContext
from trainer.lora_files.file import LoraModule, read_lora, write_lora
from trainer.lora_files.metadata import TrainingFacts, build_metadata
from trainer.lora_tools.anatomy import lora_anatomy, missing_layers
from trainer.objects import load_object
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.runs import Run, RunState, create_run, list_runs
from trainer.tools.job import FIGURES_NAME, PICTURE_NAME, REPORT_NAME
from trainer.worker import work

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DEAD = "lora_unet_up_blocks_1_attentions_0_proj_in"
CROSS = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
SHAPES = {Q: (16, 12), CROSS: (16, 768), DEAD: (16, 10)}


def module(out: int, width: int, seed: int, size: float = 1.0) -> LoraModule:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn((3, width), generator=generator)
    return LoraModule(down, torch.randn((out, 3), generator=generator) * size, 1.5)


def write(path: Path, seed: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    modules = {Q: module(16, 12, seed), CROSS: module(16, 768, seed + 1), DEAD: module(16, 10, seed + 2, 0.0)}
    metadata = {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": f"word{seed}"}
    write_lora(path, modules, metadata, "fp32")
    return path


def change(path: Path, name: str) -> torch.Tensor:
    return read_lora(path).modules[name].delta_weight(torch.zeros(SHAPES[name])).double()


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    data = DataFolder(tmp_path / "data")
    write(data.loras / "a.safetensors", 1)
    write(data.loras / "b.safetensors", 10)
    return data


def run_job(data: DataFolder, tool: str, **settings: Any) -> Run:
    run = create_run(data, "tool", tool, {"tool": tool, "settings": settings})
    run.enqueue()
    work(run)
    return run


def finished(data: DataFolder, tool: str, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run answers, and the figures in its folder."""
    run = run_job(data, tool, **settings)
    final = run.final_event()
    assert isinstance(final, Finished), final
    return final.result, json.loads((run.folder / FIGURES_NAME).read_text(encoding="utf-8"))


# --- the registry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_is_explained_and_its_code_is_there(tool: str) -> None:
    settings = TOOLS[tool]
    assert callable(load_object(settings.implementation))
    assert summary(settings).endswith(".")
    assert settings.examples
    for spec in describe(settings):
        assert spec.help, f"{tool}.{spec.path}"


def test_fields_say_what_is_needed_and_a_groups_own_defaults() -> None:
    fields = {(tool, spec.path): spec for tool, settings in TOOLS.items() for spec in describe(settings)}
    assert fields["merge", "cut.rule"].default == "exact"
    assert (fields["resize", "cut.rule"].default, fields["resize", "cut.value"].default) == ("rank", 16)
    assert "exact" not in fields["extract", "cut.rule"].choices
    needed = {f"{tool}.{path}" for (tool, path), spec in fields.items() if spec.is_required}
    assert needed == {
        *("inspect.file", "check.file", "convert.file", "metadata.file", "compare.first", "compare.second"),
        *(
            "merge.loras",
            "conflicts.loras",
            "resize.file",
            "extract.base_model",
            "extract.tuned_model",
            "bake.base_model",
            "bake.loras",
        ),
    }
    assert all(spec.names and spec.default in ("", []) for spec in fields.values() if spec.is_required)


@pytest.mark.parametrize(
    ("tool", "settings", "where", "words"),
    [
        ("merge", {"loras": []}, "loras", "choose a LoRA"),
        ("merge", {"loras": [{"file": "a"}], "method": "ties"}, "cut.rule", "not of low rank"),
        ("merge", {"loras": [{"file": "a"}], "cut": {"max_rank": 4}}, "cut.max_rank", "goes with a rule"),
        ("resize", {"file": "a", "cut": {"rule": "rank", "value": 1.5}}, "cut.value", "whole number"),
        ("resize", {"file": "a", "cut": {"rule": "sv_fro", "value": 95}}, "cut.value", "up to 1"),
        ("extract", {"base_model": "", "tuned_model": "b"}, "base_model", "choose a base model"),
        ("metadata", {"file": "a", "set": ["no value"]}, "set", "KEY=VALUE"),
    ],
)
def test_what_cannot_be_run_is_said_at_its_field(tool: str, settings: Any, where: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_tool_settings(tool, settings)
    found = {finding.where: finding.message for finding in caught.value.findings}
    assert list(found) == [where]
    assert words in found[where]


# --- as jobs ----------------------------------------------------------------------------------------------------------


def test_a_merge_lands_in_the_library_and_never_overwrites(data: DataFolder) -> None:
    asked = {"loras": [{"file": "a", "unet_weight": 0.5}, {"file": "b", "unet_weight": -2}], "name": "both"}
    paths = [Path(finished(data, "merge", **asked)[0]["files"][0]) for _ in range(2)]
    assert paths == [data.loras / "both.safetensors", data.loras / "both 2.safetensors"]
    one, two = (change(data.loras / f"{name}.safetensors", CROSS) for name in "ab")
    torch.testing.assert_close(change(paths[0], CROSS), 0.5 * one - 2 * two, rtol=1e-4, atol=1e-5)


def test_the_figures_of_a_cut_are_kept_in_the_runs_folder(data: DataFolder) -> None:
    result, figures = finished(data, "resize", file="a", cut={"rule": "rank", "value": 1})
    table = figures["tables"][0]
    row = dict(
        zip(table["header"], next(row for row in table["rows"] if row[0] == "mid_block.attentions.0"), strict=True)
    )
    values = np.linalg.svd(change(data.loras / "a.safetensors", CROSS).numpy(), compute_uv=False)[:3]
    lost = np.sqrt((values[1:] ** 2).sum() / (values**2).sum())
    assert row["error"] == f"{100 * lost:.3g} %"
    assert row["rank"] == "1"
    assert Path(result["files"][0]).name == "a-rank-1.safetensors"
    assert figures["files"] == result["files"]


def test_inspect_draws_and_keeps_all_figures_out_of_the_events(data: DataFolder) -> None:
    run = run_job(data, "inspect", file="a")
    assert run.state() is RunState.FINISHED
    assert run.events_path.stat().st_size < 4000
    report = json.loads((run.folder / REPORT_NAME).read_text(encoding="utf-8"))
    assert report["anatomy"]["dead"] == [DEAD]
    assert report["trigger_words"] == ["word1"]
    picture = (run.folder / PICTURE_NAME).read_text(encoding="utf-8")
    assert picture.startswith("<svg ")
    assert "mid_block.attentions.0" in picture


def test_checking_and_metadata_need_no_base_and_write_only_what_was_asked(data: DataFolder) -> None:
    before = {path: path.read_bytes() for path in data.loras.iterdir()}
    _, figures = finished(data, "check", file="a")
    assert [row[1] for row in figures["tables"][0]["rows"]] == ["yes"] * 6
    finished(data, "metadata", file="a")
    assert {path: path.read_bytes() for path in data.loras.iterdir()} == before
    result, _ = finished(data, "metadata", file="a", trigger_words="zib, ink", strip_private=True, new_file=True)
    new = Path(result["files"][0])
    assert new == data.loras / "a 2.safetensors"
    assert read_lora(new).metadata["modelspec.trigger_phrase"] == "zib, ink"
    finished(data, "metadata", file="a", description="mine")
    assert read_lora(data.loras / "a.safetensors").metadata["modelspec.description"] == "mine"
    assert (data.loras / "b.safetensors").read_bytes() == before[data.loras / "b.safetensors"]
    for name in (Q, CROSS):
        assert torch.equal(change(new, name), change(data.loras / "a.safetensors", name))


def test_the_job_changes_no_file_outside_the_data_folder_and_the_command_does(
    data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = write(tmp_path / "mine.safetensors")
    before = outside.read_bytes()
    assert finished(data, "metadata", file=str(outside))[0]["files"] == []
    result, _ = finished(data, "metadata", file=str(outside), description="new")
    assert outside.read_bytes() == before
    assert result["files"] == [str(data.loras / "mine.safetensors")]
    assert read_lora(data.loras / "mine.safetensors").metadata["modelspec.description"] == "new"
    assert lora(capsys, "metadata", outside, "--description", "new")["file"] == str(outside)
    assert read_lora(outside).metadata["modelspec.description"] == "new"


def test_bake_and_extract_are_each_others_reverse(data: DataFolder, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    unet = "model.diffusion_model."
    generator = torch.Generator().manual_seed(5)
    save_file(
        {
            f"{unet}input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": torch.randn(16, 12, generator=generator),
            f"{unet}middle_block.1.transformer_blocks.0.attn2.to_k.weight": torch.randn(16, 768, generator=generator),
            f"{unet}output_blocks.3.1.proj_in.weight": torch.randn(16, 10, 1, 1, generator=generator),
        },
        base,
    )
    baked, _ = finished(data, "bake", base_model=str(base), loras=[{"file": "a", "unet_weight": 0.5}])
    tuned = Path(baked["files"][0])
    assert tuned == data.models / "base+a.safetensors"
    assert load_file(tuned).keys() == load_file(base).keys()
    got, _ = finished(
        data,
        "extract",
        base_model=str(base),
        tuned_model=str(tuned),
        cut={"rule": "rank", "value": 3},
        precision="fp32",
    )
    found, expected = change(Path(got["files"][0]), CROSS), 0.5 * change(data.loras / "a.safetensors", CROSS)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_a_fault_is_a_sentence_and_nothing_is_written(data: DataFolder) -> None:
    before = sorted(data.loras.iterdir())
    (data.loras / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00nonsense")
    for tool, settings in (
        ("merge", {"loras": [{"file": "a"}, {"file": "broken"}]}),
        ("resize", {"file": "gone"}),
        ("merge", {"loras": [{"file": "a"}], "cut": {"rule": "size_mb", "value": 0.0001}}),
    ):
        final = run_job(data, tool, **settings).final_event()
        assert isinstance(final, Failed)
        assert final.error["message"].endswith(".")
        assert "Traceback" not in json.dumps(final.error)
    assert sorted(data.loras.iterdir()) == sorted([*before, data.loras / "broken.safetensors"])


def test_a_tool_stops_where_the_user_asks_and_writes_nothing(data: DataFolder) -> None:
    before = sorted(data.loras.iterdir())
    run = create_run(data, "tool", "merge", {"tool": "merge", "settings": {"loras": [{"file": "a"}, {"file": "b"}]}})
    run.enqueue()
    run.request("stop")
    work(run)
    assert isinstance(run.final_event(), Stopped)
    assert sorted(data.loras.iterdir()) == before


def test_progress_is_told_with_the_time_left_and_not_too_often(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Stage] = []
    clock = iter(range(10_000))
    monkeypatch.setattr("trainer.progress.time.monotonic", lambda: next(clock) / 100)
    run = create_run(data, "tool", "merge", {})
    progress = StageProgress(JobContext(run, told.append))  # type: ignore[arg-type]
    for done in range(1, 201):
        progress("Cutting the layers", done, 200)
    assert told[-1].done == told[-1].total == 200
    assert len(told) < 15
    middle = told[len(told) // 2]
    assert middle.eta_seconds == pytest.approx((200 - middle.done) / 100, rel=0.1)


# --- from the command line --------------------------------------------------------------------------------------------


def lora(capsys: pytest.CaptureFixture[str], *arguments: object, expect: int = 0) -> dict[str, Any]:
    assert main(["lora", *map(str, arguments), "--json"]) == expect
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_the_commands_do_what_they_say(data: DataFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, at = data.loras / "a.safetensors", ("--data-dir", data.root)
    picture, out, small = tmp_path / "a.svg", tmp_path / "m.safetensors", tmp_path / "s.safetensors"
    assert lora(capsys, "inspect", file, "--picture", picture)["anatomy"]["dead"] == [DEAD]
    assert picture.read_text(encoding="utf-8").startswith("<svg ")
    assert lora(capsys, "inspect", file, "--picture", picture, expect=5)["error"]
    assert "anatomy" not in lora(capsys, "inspect", "a", "--no-measure", *at)
    merged = lora(capsys, "merge", f"{file}:0.5", "a:-2:3", "--out", out, *at)
    assert merged["inputs"] == [[str(file), 0.5, 0.5], [str(file), -2.0, 3.0]]
    torch.testing.assert_close(change(out, Q), -1.5 * change(file, Q), rtol=1e-4, atol=1e-5)
    assert lora(capsys, "resize", out, "--rank", "2", "--out", small)["max_rank"] == 2
    assert lora(capsys, "compare", file, out)["total"]["cosine"] == pytest.approx(-1, abs=1e-4)
    error = lora(capsys, "resize", out, "--rank", "2", "--out", small, expect=5)["error"]
    assert "--overwrite" in error["fix"]
    assert lora(capsys, "resize", out, "--rank", "1", "--out", small, "--overwrite")["max_rank"] == 1
    assert lora(capsys, "resize", file, "--exact", "--name", "plain", *at)["output"] == str(
        data.loras / "plain.safetensors"
    )
    assert lora(capsys, "merge", file, "--method", "ties", "--out", tmp_path / "t.safetensors", expect=2)["error"]
    assert lora(capsys, "resize", file, "--out", tmp_path / "t.safetensors", expect=2)["error"]
    assert not (tmp_path / "t.safetensors").exists()


# --- what is inside ---------------------------------------------------------------------------------------------------


def test_norms_spectra_and_dead_layers_are_those_of_the_dense_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    report = lora_anatomy(path)
    found = {item.name: item for item in report.modules}
    for name in (Q, CROSS):
        plain = read_lora(path).modules[name]
        assert isinstance(plain, LoraModule)
        dense = (plain.up.double() @ plain.down.double()).numpy() * 0.5
        values = np.linalg.svd(dense, compute_uv=False)[:3]
        assert found[name].norm == pytest.approx(np.linalg.norm(dense), rel=1e-5)
        np.testing.assert_allclose(found[name].spectrum, values, rtol=1e-4)
        shares = values / values.sum()
        assert found[name].effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        assert (found[name].rank, found[name].alpha, found[name].is_dead) == (3, 1.5, False)
    assert report.dead == (DEAD,)
    assert [block.block for block in report.blocks] == [
        "down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0"
    ]  # fmt: skip
    assert report.blocks[0].spectrum[0] == pytest.approx(1)
    assert not report.damaged
    assert not report.missing


def test_layers_with_nan_are_named_and_the_others_measured(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    tensors = load_file(path)
    tensors[f"{Q}.lora_up.weight"][2, 1] = torch.nan
    save_file(tensors, path, {"ss_base_model_version": "sd_v1"})
    report = lora_anatomy(path)
    assert report.damaged == (Q,)
    assert {item.name for item in report.modules} == {CROSS, DEAD}


def test_layers_that_like_blocks_have_are_missing_and_whole_kinds_are_not() -> None:
    blocks = [f"lora_unet_down_blocks_{i}_attentions_{j}_transformer_blocks_0" for i in range(3) for j in range(2)]
    names = [f"{block}_attn1_to_{side}" for block in blocks for side in "qkv"]
    texts = [f"lora_te_text_model_encoder_layers_{i}_mlp_fc1" for i in range(4)]
    assert missing_layers([*names, *texts]) == ()
    lost = f"{blocks[2]}_attn1_to_k"
    assert missing_layers([name for name in names if name != lost] + texts) == (lost,)


# --- the app's service ------------------------------------------------------------------------------------------------


def test_what_is_not_on_this_computer_is_said_at_its_field_before_the_start(data: DataFolder) -> None:
    service = ToolService(data)

    def where(tool: str, **values: Any) -> dict[str, str]:
        return {fault.where: fault.message for fault in service.faults(tool, values)}

    assert "There is no LoRA 'gone'" in where("inspect", file="gone")["file"]
    assert "Did you mean" in where("merge", loras=[{"file": "a"}, {"file": "aa"}])["loras"]
    assert list(where("compare", first="a", second="x")) == ["second"]
    assert "no base model 'nothing'" in where("extract", base_model="nothing", tuned_model=str(data.root))["base_model"]
    assert where("merge", loras=[{"file": "a"}, {"file": str(data.loras / "b.safetensors")}]) == {}
    with pytest.raises(ConfigError):
        service.start("inspect", {"file": "gone"})
    assert list_runs(data) == []


def test_a_finished_run_leads_to_its_file_and_figures(data: DataFolder) -> None:
    service = ToolService(data)
    run = run_job(data, "merge", loras=[{"file": "a"}, {"file": "b"}], name="both")
    figures = service.figures(run)
    assert service.library_name(figures) == "both"
    assert figures.lines[0].startswith("2 LoRAs, 3 layers")
    assert figures.tables[0][0][0] == "block"
    (data.loras / "both.safetensors").unlink()
    assert service.library_name(figures) is None
    (run.folder / FIGURES_NAME).write_text("{", encoding="utf-8")
    assert service.figures(run) == Figures()


def test_figures_of_a_strangers_file_are_inert() -> None:
    shown = render.figures(["<img src=x onerror=alert(1)>"], [(["<b>"], [["<script>alert(2)</script>"]])])
    assert "<img" not in shown
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


# --- training again ---------------------------------------------------------------------------------------------------


def trained(path: Path, **data_settings: Any) -> Path:
    config = RunConfig.model_validate({"data": data_settings, "training": {"steps": 77}})
    facts = TrainingFacts("mine", "Inkwash tiny", 77, 1, 4, 64, 64, 0.0, 1.0)
    write_lora(path, {Q: module(16, 12, 1)}, build_metadata(config, facts), "fp32")
    return path


def train_again(
    data: DataFolder, capsys: pytest.CaptureFixture[str], *arguments: object, expect: int = 0
) -> dict[str, Any]:
    command = ["train", "--data-dir", data.root, "--detach", "--json", *arguments]
    assert main([str(word) for word in command]) == expect
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_train_from_a_lora_takes_its_settings_and_names_what_is_missing(
    data: DataFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.cli.commands.train.enqueue", lambda run, data: run.enqueue())
    trained(data.loras / "gone.safetensors", dataset="/home/someone/gone-set", trigger_word="zib")
    error = train_again(data, capsys, "--from", "gone", expect=2)["error"]
    assert [fault["where"] for fault in error["findings"]] == ["data.dataset"]
    assert "gone-set" in error["findings"][0]["message"]
    assert "--dataset" in error["fix"]
    done = train_again(data, capsys, "--from", "gone", "--dataset", "ink-wash", "--training.batch_size", "3")
    config = Run(Path(done["run"])).config()
    assert (config["training"]["steps"], config["training"]["batch_size"]) == (77, 3)
    assert config["data"]["trigger_word"] == "zib"
    assert config["data"]["dataset"] == "ink-wash"
    refused = train_again(data, capsys, "--from", "a", expect=5)["error"]
    assert "does not carry Inkwash's training settings" in refused["message"]
