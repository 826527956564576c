"""Where the LoRAs of a stack fight, against dense sums; and that the suggested weights settle it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

from trainer.blocks import parse_blocks
from trainer.config.loading import build_tool_settings
from trainer.errors import ConfigError, LoraFileError
from trainer.lora_files.file import LoraModule
from trainer.lora_tools.conflict_picture import conflicts_svg
from trainer.lora_tools.conflicts import StackedFile, find_conflicts
from trainer.lora_tools.names import block_of
from trainer.lora_tools.settling import block_text, settled_weights
from trainer.paths import DataFolder
from trainer.tools.result import ToolContext, run_tool

Q = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
K = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k"
CONV = "lora_unet_up_blocks_1_resnets_0_conv1"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
SHAPES: dict[str, tuple[int, ...]] = {Q: (24, 24), K: (24, 24), CONV: (20, 12, 3, 3), TEXT: (18, 14)}
Modules = Mapping[str, LoraModule]


def modules(seed: int, rank: int = 3) -> dict[str, LoraModule]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LoraModule(
            torch.randn((rank, *shape[1:]), generator=generator),
            torch.randn((shape[0], rank, *(1 for _ in shape[2:])), generator=generator),
            float(rank),
        )
        for name, shape in SHAPES.items()
    }


def turned(made: Modules, factor: float) -> dict[str, LoraModule]:
    return {name: replace(module, up=module.up * factor) for name, module in made.items()}


def write(path: Path, made: Modules) -> Path:
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, module in made.items()
        for key, value in (
            ("lora_down.weight", module.down),
            ("lora_up.weight", module.up),
            ("alpha", torch.tensor(module.alpha)),
        )
    }
    save_file(tensors, path)
    return path


def dense(made: Modules, block: str, unet: float, text: float) -> torch.Tensor:
    """A LoRA's change of a block as one long vector."""
    parts = [
        (module.up.flatten(1) @ module.down.flatten(1)).double().flatten()
        * (unet if name.startswith("lora_unet") else text)
        for name, module in made.items()
        if block in ("all", block_of(name))
    ]
    return torch.cat(parts)


def test_figures_are_those_of_dense_changes(tmp_path: Path) -> None:
    made = [modules(1), modules(2, rank=5), turned(modules(1), 0.5)]
    weights = [(0.8, 0.5), (1.0, 1.0), (-0.6, 1.2)]
    stack = [
        StackedFile(write(tmp_path / f"{index}.safetensors", part), *weight)
        for index, (part, weight) in enumerate(zip(made, weights, strict=True))
    ]
    report = find_conflicts(stack)
    assert {pair.block for pair in report.pairs} == {block_of(name) for name in SHAPES} | {"all"}
    for pair in report.pairs:
        first, second = (dense(made[i], pair.block, *weights[i]) for i in (pair.first, pair.second))
        assert pair.cosine == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)), abs=1e-5)
        assert pair.on_first == pytest.approx(float(second @ first / (first @ first)), abs=1e-5)
        assert pair.on_second == pytest.approx(float(second @ first / (second @ second)), abs=1e-5)
    for row in report.shares:
        norms = torch.stack(
            [dense(part, row.block, *weight).norm() for part, weight in zip(made, weights, strict=True)]
        )
        assert row.norms == pytest.approx(norms.tolist(), rel=1e-5)
        assert row.shares == pytest.approx((norms**2 / (norms**2).sum()).tolist(), rel=1e-5)
    whole = [dense(part, "all", *weight) for part, weight in zip(made, weights, strict=True)]
    assert report.kept == pytest.approx([float(sum(whole) @ part / (part @ part)) for part in whole], rel=1e-5)


def test_the_same_lora_twice_is_told_and_halved(tmp_path: Path) -> None:
    stack = [StackedFile(write(tmp_path / f"{name}.safetensors", modules(1))) for name in ("first", "second")]
    report = find_conflicts(stack)
    assert {pair.verdict for pair in report.pairs} == {"the same twice"}
    assert report.warnings == ("'first' and 'second' do much the same as a whole: together it is too strong.",)
    assert [pair.overlap for pair in report.pairs] == pytest.approx([1.0] * len(report.pairs), abs=1e-4)
    assert [(s.new_unet_weight, s.new_text_encoder_weight) for s in report.suggestion] == [(0.5, 0.5)] * 2
    assert (report.kept, report.kept_after) == (pytest.approx((2, 2)), pytest.approx((1, 1)))


def test_weights_of_blocks_count_as_on_the_stack(tmp_path: Path) -> None:
    made = [modules(1), {**modules(2), CONV: modules(1)[CONV]}]
    files = [write(tmp_path / f"{index}.safetensors", part) for index, part in enumerate(made)]
    stack = [StackedFile(files[0], 0.8, 0.5, "BASE:0.5,IN04:-0.5"), StackedFile(files[1], 1.0, 1.0, "BASE:2")]
    as_set = [
        {name: replace(module, up=module.up * factor[name]) for name, module in part.items()}
        for part, factor in zip(
            made, ({Q: -0.5, K: -0.5, CONV: 1, TEXT: 0.5}, {Q: 1, K: 1, CONV: 1, TEXT: 2}), strict=True
        )
    ]
    report = find_conflicts(stack, by_block=False)
    for pair in report.pairs:
        first, second = dense(as_set[0], pair.block, 0.8, 0.5), dense(as_set[1], pair.block, 1.0, 1.0)
        assert pair.cosine == pytest.approx(float(torch.cosine_similarity(first, second, dim=0)), abs=1e-5)
        assert pair.on_first == pytest.approx(float(second @ first / (first @ first)), abs=1e-5)
    assert {pair.verdict for pair in report.pairs if pair.block.startswith("up_blocks.1")} == {"the same twice"}
    # Switched off where they fight, they fight nowhere.
    apart = [replace(stack[0], blocks="OUT03:0"), stack[1]]
    assert "up_blocks.1.resnets.0" not in {pair.block for pair in find_conflicts(apart).pairs}
    with pytest.raises(LoraFileError, match="block weights of '1' cannot be used"):
        find_conflicts([stack[0], replace(stack[1], blocks="OUT40:1")])


def test_loras_that_never_work_in_the_same_step_do_not_fight(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.safetensors", modules(1)) for name in ("first", "second")]
    stack = [StackedFile(files[0], end=0.4), StackedFile(files[1], start=0.4)]
    report = find_conflicts(stack)
    assert (report.pairs, report.warnings, report.suggestion) == ((), (), ())
    assert report.kept == (1.0, 1.0)
    assert find_conflicts([stack[0], replace(stack[1], start=0.3)]).suggestion


def test_loras_against_each_other_are_told_and_strengthened(tmp_path: Path) -> None:
    common, own = modules(1), modules(2)
    against = {
        name: replace(
            module,
            down=torch.cat([module.down, own[name].down]),
            up=torch.cat([-0.5 * module.up, own[name].up], 1),
            alpha=2 * module.alpha,
        )
        for name, module in common.items()
    }
    stack = [
        StackedFile(write(tmp_path / "a.safetensors", common)),
        StackedFile(write(tmp_path / "b.safetensors", against)),
    ]
    report = find_conflicts(stack)
    assert {pair.verdict for pair in report.pairs if pair.block == "all"} == {"against each other"}
    assert all(kept < 0.75 for kept in report.kept)
    assert all(s.new_unet_weight > 1 for s in report.suggestion)
    assert all(abs(after - 1) < abs(before - 1) for before, after in zip(report.kept, report.kept_after, strict=True))


def test_unrelated_loras_stay_and_a_weak_one_is_drowned(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.safetensors", modules(1)), write(tmp_path / "b.safetensors", modules(2))
    report = find_conflicts([StackedFile(first), StackedFile(second, 0.9, 0.9)])
    assert (report.warnings, report.suggestion) == ((), ())
    assert report.kept == report.kept_after == pytest.approx((1, 1), abs=0.1)
    drowned = find_conflicts([StackedFile(first, 0.1, 0.1), StackedFile(second)])
    assert drowned.warnings[0].startswith("Of 'a' and 'b' one has less than 5% of the change as a whole")


def with_common(seed: int, names: Sequence[str]) -> dict[str, LoraModule]:
    """Changes of its own, but in these layers those that all such LoRAs have."""
    return {**modules(seed), **{name: modules(7)[name] for name in names}}


def test_a_lora_that_fights_in_one_block_is_lowered_there_and_only_there(tmp_path: Path) -> None:
    made = [with_common(1, [CONV]), with_common(2, [CONV])]
    stack = [StackedFile(write(tmp_path / f"{index}.safetensors", part), 0.8, 0.8) for index, part in enumerate(made)]
    report = find_conflicts(stack)
    lowered = [suggestion.new_blocks for suggestion in report.suggestion]
    assert sorted(lowered) == ["", "OUT03:0"]
    assert {(s.new_unet_weight, s.new_text_encoder_weight) for s in report.suggestion} == {(0.8, 0.8)}
    # What the whole stack does along each LoRA's change in each block, by dense sums.
    table = [parse_blocks(text).table(12) for text in lowered]
    blocks = {block_of(name): "OUT03" if name == CONV else "IN04" if name in (Q, K) else "BASE" for name in SHAPES}
    off = []
    for mine in made:
        changes = {block: [dense(part, block, 0.8, 0.8) for part in made] for block in blocks}
        own = {block: dense(mine, block, 0.8, 0.8) for block in blocks}
        total = {b: sum(t[blocks[b]] * c for t, c in zip(table, changes[b], strict=True)) for b in blocks}
        whole = sum(float(own[b] @ own[b]) for b in blocks)
        off.append(sum(abs(float((total[b] - own[b]) @ own[b])) for b in blocks) / whole)
    assert report.off_after == pytest.approx(off, rel=1e-4)
    # Better for both than one number for all blocks.
    one_number = find_conflicts(stack, by_block=False)
    assert {suggestion.new_blocks for suggestion in one_number.suggestion} == {""}
    assert all(after < other for after, other in zip(report.off_after, one_number.off_after, strict=True))
    assert max(report.off_after) < 0.1 < min(report.off)


def test_blocks_are_written_as_the_stack_reads_them() -> None:
    weights = {"OUT04": 0.5, "OUT03": 0.5, "MID": 0.25, "BASE": 0.0, "IN04": 0.5, "OUT06": 0.5}
    text = block_text(weights)
    assert text == "BASE:0,IN04:0.5,MID:0.25,OUT03-OUT04:0.5,OUT06:0.5"
    assert parse_blocks(text).table(12) == {**dict.fromkeys(parse_blocks("").table(12), 1.0), **weights}


def test_the_picture_has_a_cell_for_each_pair_and_block(tmp_path: Path) -> None:
    made = [modules(1), turned(modules(1), -1.0), modules(3)]
    stack = [StackedFile(write(tmp_path / f"{index}.safetensors", part)) for index, part in enumerate(made)]
    report = find_conflicts(stack)
    root = ElementTree.fromstring(conflicts_svg(report.pairs, ["a <b>", "c", "d"]))
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(report.pairs) == 3 * (len({block_of(name) for name in SHAPES}) + 1)
    assert titles[0] == "down_blocks.1.attentions.0: -100% and -100%, against each other"
    assert any(text.text == "a <b> and c" for text in root.iter("{http://www.w3.org/2000/svg}text"))
    assert conflicts_svg([], []) == ""


def test_settled_weights_leave_each_change_what_it_does_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    changes = torch.randn((3, 8), generator=generator, dtype=torch.float64) + 0.5
    weights = torch.tensor([1.0, 0.7, -0.4], dtype=torch.float64)
    new = torch.tensor(settled_weights(changes @ changes.T, weights.tolist()), dtype=torch.float64)
    alone = weights * (changes * changes).sum(1)
    assert torch.allclose(changes @ (new @ changes), alone)
    assert settled_weights(torch.zeros(2, 2, dtype=torch.float64), [1.0, 0.3]) == [1.0, 0.3]


def test_the_tool_says_what_it_found_as_tags_for_the_prompt(tmp_path: Path) -> None:
    data = DataFolder(tmp_path)
    data.loras.mkdir()
    for name in ("ink", "wash"):
        write(data.loras / f"{name}.safetensors", modules(1))
    settings = build_tool_settings("conflicts", {"loras": [{"file": "ink"}, {"file": "wash"}]})
    result = run_tool(settings, ToolContext(data))
    assert result.lines[-1] == "suggestion: <lora:ink:0.5> <lora:wash:0.5>"
    assert result.lines[1] == (
        "ink: on the stack it is 2.00 times as strong as alone, its blocks 100% off; "
        "with the suggested weights 1.00 times, 0% off"
    )
    assert result.picture.startswith("<svg")
    assert result.tables[-1].rows[-1] == ("all", "50%", "50%")
    with pytest.raises(ConfigError, match="loras"):
        build_tool_settings("conflicts", {"loras": [{"file": "ink"}]})
    with pytest.raises(LoraFileError, match="One LoRA"):
        find_conflicts([StackedFile(data.loras / "ink.safetensors")])


def test_the_app_puts_the_suggested_weights_on_the_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.services import tools
    from app.services.generation import GenerationService
    from app.services.stack_conflicts import ConflictService
    from app.services.stack_rows import new_row, with_value
    from trainer.jobs import JobContext
    from trainer.runs import Run
    from trainer.tools.job import work

    monkeypatch.setattr(tools, "enqueue", lambda run, data: None)
    data = DataFolder(tmp_path)
    data.loras.mkdir()
    for name in ("ink", "wash", "other"):
        write(data.loras / f"{name}.safetensors", modules(9 if name == "other" else 1))
    service = ConflictService(data, GenerationService(data))
    rows = [new_row("ink"), new_row("other", on=False), new_row("wash")]
    with pytest.raises(ConfigError, match="nothing to fight with"):
        service.start(rows[:2], "")
    run = Run(data.runs / service.start(rows, ""))
    work(JobContext(run, lambda event: None))
    assert "do much the same" in service.figures(run).lines[0]
    new = service.suggested(run, rows)
    assert new is not None
    assert [(row["name"], row["unet"], row["text"], row["on"]) for row in new] == [
        ("ink", 0.5, 0.5, True), ("other", 1.0, 1.0, False), ("wash", 0.5, 0.5, True),
    ]  # fmt: skip
    assert service.suggested(run, new) is None  # measured at other weights
    for index in (1, 2):
        write(data.loras / f"part{index}.safetensors", with_common(index, [CONV]))
    parts = [new_row("part1"), new_row("part2")]
    other = Run(data.runs / service.start(parts, ""))
    work(JobContext(other, lambda event: None))
    lowered = service.suggested(other, parts)
    assert lowered is not None
    assert sorted(row["blocks"] for row in lowered) == ["", "OUT03:0"]
    assert {(row["unet"], row["text"]) for row in lowered} == {(1.0, 1.0)}
    # Block weights that the user chose are not replaced.
    chosen = [with_value(parts, row["id"], "blocks", "MIDD") for row in parts]
    assert [service.suggested(other, rows) for rows in chosen] == [None, None]
    typed = with_value(parts, parts[0]["id"], "blocks", "MID")  # not yet what can be read
    assert service.suggested(other, typed) is None
    third = Run(data.runs / service.start(chosen[0], ""))
    work(JobContext(third, lambda event: None))
    assert "OUT03" not in "".join(service.figures(third).lines)
    moved = with_value(rows, rows[0]["id"], "unet", 0.9)
    assert service.suggested(run, moved) is None
