"""The widgets of the stack, without a browser: what each answers to what a user does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from app.services.generation import GenerationService
from app.services.stack_rows import Row, find_row
from app.stack_shown import mark, with_shown
from app.tabs.lora_settings import RowSettings
from app.tabs.lora_stack import LoraStackEditor, new_row
from app.tabs.saved_stacks import SavedStacks
from tests.unit.test_lora_tags import put
from trainer.paths import DataFolder

SKIP = gr.skip()


class Editor:
    """The editor on a page of its own, with its panel and the saved stacks."""

    def __init__(self, data: DataFolder) -> None:
        self.service = GenerationService(data)
        with gr.Blocks() as self.page, gr.Tabs(), gr.Tab("Generate") as tab:
            prompt, steps = gr.Textbox(), gr.Number(20)
            self.stack = LoraStackEditor(self.service, tab, prompt)
            self.settings = RowSettings(self.service, self.stack)
            self.saved = SavedStacks(self.service, self.stack)
            self.stack.connect(steps)
            self.settings.wire()
            self.saved.wire()


@pytest.fixture
def editor(tmp_path: Path) -> Editor:
    data = DataFolder(tmp_path)
    put(data, "ink", 1, **{"modelspec.trigger_phrase": "ink style"})
    put(data, "oil", 2)
    return Editor(data)


def test_typing_makes_rows_and_leaves_alone_what_is_not_about_them(editor: Editor) -> None:
    assert editor.stack._typed("a house", [], 3, 20) == (SKIP, SKIP)
    rows, version = editor.stack._typed("a <lora:ink:0.8>", [], 3, 20)
    assert ([row["name"] for row in rows], version) == (["ink"], 4)
    assert editor.stack._typed("a house <lora:ink:0.8>", rows, 4, 20) == (SKIP, SKIP)
    assert editor.stack._typed("a house", rows, 4, 20) == ([], 5)


def test_a_slider_writes_its_row_and_its_tag(editor: Editor) -> None:
    rows = editor.service.rows_of_prompt("a <lora:ink:0.8>", [], 20)
    function: Any = editor.stack.change(lambda value, rows: [{**rows[0], "unet": value}])
    new, prompt = function(0.3, rows, "a <lora:ink:0.8>", 20)
    assert (new[0]["unet"], prompt) == (0.3, "a <lora:ink:0.3:0.8>")
    assert function(0.3, [new_row("ink")], "a house", 20)[1] == SKIP


def test_every_row_is_drawn_with_its_words(editor: Editor) -> None:
    with editor.page:
        editor.stack._draw([new_row("ink", blocks="MIDD", end=0.5), new_row("oil", tag="typed"), new_row("gone")], 0)
    labels = [str(getattr(block, "label", "")) for block in editor.page.blocks.values()]
    texts = [str(getattr(block, "value", "")) for block in editor.page.blocks.values()]
    assert "ink · MIDD, steps 0% to 50%" in labels
    assert "oil" in labels
    assert "+ ink style" in texts


def test_the_panel_shows_and_sets_the_chosen_row(editor: Editor) -> None:
    panel, (first, second) = editor.settings, [new_row("ink"), new_row("oil", blocks="OUTS", start=0.2)]
    rows: list[Row] = [first, second]
    assert panel._show("", rows, 0)[0]["visible"] is False
    shown = panel._show(second["id"], rows, 0)
    assert shown[0]["visible"] is True
    assert shown[2:] == ("OUTS", 0.2, 1.0, False)
    set_blocks, set_end = panel._setter("blocks"), panel._setter("end")
    version, rows, prompt = set_blocks("MIDD", first["id"], 1, rows, "a house", 20)
    assert (version, rows[0]["blocks"], prompt) == (2, "MIDD", SKIP)
    assert set_blocks("MIDD", first["id"], 2, rows, "", 20) == (SKIP, SKIP, SKIP)
    version, rows, prompt = panel._put_into_prompt(True, first["id"], 2, rows, "a house", 20)
    assert prompt == "a house <lora:ink:1:blocks=MIDD>"
    version, rows, prompt = set_end(0.5, first["id"], version, rows, prompt, 20)
    assert prompt == "a house <lora:ink:1:blocks=MIDD:steps=0-0.5>"
    version, rows, text = set_blocks("MID", first["id"], version, rows, prompt, 20)
    version, rows, text = set_blocks("ALL", first["id"], version, rows, text, 20)
    assert text == "a house <lora:ink:1:steps=0-0.5>"
    # While block weights are half typed, the prompt keeps its last good tag.
    version, half, text2 = set_blocks("MIDDD", first["id"], version, rows, text, 20)
    assert (half[0]["blocks"], text2) == ("MIDDD", SKIP)
    version, rows, text = panel._put_into_prompt(False, first["id"], version, rows, text, 20)
    assert text == "a house"
    assert find_row(rows, first["id"])["tag"] == ""  # type: ignore[index]


def test_saved_stacks_fill_the_rows(editor: Editor) -> None:
    saved = editor.saved
    rows = [new_row("ink", 0.8, 0.5, blocks="MIDD", end=0.5), new_row("oil", on=False)]
    listed, name = saved._keep("evening", rows, 0, None)
    assert (listed["value"], name) == ("evening", "")
    _, version, loaded, prompt = saved._fill("evening", 7, [new_row("oil", tag="typed")], "a house <lora:oil:1>", 20)
    assert [{**row, "id": ""} for row in loaded] == [{**row, "id": ""} for row in rows]
    assert (version, prompt) == (8, "a house")
    file = Path(saved._file("evening")["value"])
    assert file.is_file()
    picked, *_ = saved._import(str(file), 8, [], "", 20)
    assert picked["value"] != "evening"
    saved._remove("evening")
    assert "evening" not in editor.service.stacks()


def test_a_click_brings_along_what_the_sliders_say() -> None:
    rows = [new_row("ink", 1.0, 0.5), new_row("oil", 0.2, 0.2)]
    ink, oil = (mark(row["id"], 4) for row in rows)
    moved = [[ink, {"on": True, "unet": -0.3, "text": 0.5}], [oil, {"on": False, "unet": 0.2, "text": None}]]
    now = with_shown(rows, 4, [*moved, [oil, {"start": 0.25, "end": 1}]])
    assert [(row["on"], row["unet"], row["text"]) for row in now] == [(True, -0.3, 0.5), (False, 0.2, 0.2)]
    assert (now[1]["start"], now[1]["end"]) == (0.25, 1)
    assert (rows[0]["unet"], rows[1]["on"]) == (1.0, True)  # the app hears of it by the slider's own event
    # What was drawn before the stack was changed otherwise, or is of a row that has gone, says nothing.
    assert with_shown(rows, 5, moved) == rows
    assert with_shown(rows[1:], 4, moved[:1]) == rows[1:]
    assert with_shown(rows, 4, None) == rows
