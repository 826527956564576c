"""The rows of the stack and the tags of the prompt say the same, and typing is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.services.generation import GenerationService
from app.services.stack_rows import Row, find_row, new_row, with_tag, with_value, without, without_tag
from tests.unit.test_lora_tags import put
from trainer.errors import ConfigError
from trainer.paths import DataFolder


@pytest.fixture
def service(tmp_path: Path) -> GenerationService:
    data = DataFolder(tmp_path)
    put(data, "ink", 1, ss_output_name="inkwash-v2")
    put(data, "oil", 2)
    return GenerationService(data)


def brief(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row["name"], row["unet"], row["text"], row["tag"]) for row in rows]


def type_out(service: GenerationService, text: str, rows: list[Row] | None = None) -> list[Row]:
    """The rows after a text was typed letter by letter."""
    rows = rows or []
    for length in range(1, len(text) + 1):
        rows = service.rows_of_prompt(text[:length], rows, 20)
    return rows


def test_a_typed_tag_makes_one_row_and_changes_it(service: GenerationService) -> None:
    rows = type_out(service, "a house <lora:ink:0.8:0.5:blocks=MIDD:steps=0-10>")
    assert brief(rows) == [("ink", 0.8, 0.5, "typed")]
    assert (rows[0]["blocks"], rows[0]["start"], rows[0]["end"]) == ("MIDD", 0.0, 0.5)
    again = service.rows_of_prompt("a house <lora:ink:0.3>", rows, 20)
    assert brief(again) == [("ink", 0.3, 0.3, "typed")]
    assert again[0]["id"] == rows[0]["id"]
    # In the middle of a correction nothing goes away.
    for half in ("a <lora:ink:", "a <lora:ink:>", "a <lora:in:1>", "a <lora:ink:0.3"):
        assert service.rows_of_prompt(half, again, 20) == again
    assert service.rows_of_prompt("a house", again, 20) == []


def test_a_row_from_the_library_is_taken_up_by_a_tag_and_outlives_it(service: GenerationService) -> None:
    row = new_row("ink", 0.6, 0.6)
    rows = service.rows_of_prompt("<lora:ink:0.9>", [new_row("oil"), row], 20)
    assert brief(rows) == [("oil", 1.0, 1.0, ""), ("ink", 0.9, 0.9, "shown")]
    assert rows[1]["id"] == row["id"]
    assert brief(service.rows_of_prompt("", rows, 20)) == [("oil", 1.0, 1.0, ""), ("ink", 0.9, 0.9, "")]


def test_two_tags_of_one_lora_are_two_rows(service: GenerationService) -> None:
    prompt = "<lora:ink:0.5> and <lora:inkwash-v2:0.25>"
    rows = service.rows_of_prompt(prompt, [], 20)
    assert [row["unet"] for row in rows] == [0.5, 0.25]
    assert service.rows_of_prompt(prompt, rows, 20) == rows
    changed = with_value(rows, rows[1]["id"], "unet", 0.75)
    text = service.prompt_of_rows(prompt, changed, 20)
    assert text == "<lora:ink:0.5> and <lora:inkwash-v2:0.75:0.25>"
    assert service.rows_of_prompt(text, changed, 20) == changed


def test_a_slider_rewrites_its_tag_alone(service: GenerationService) -> None:
    prompt = "a ( <lora:ink: 0.50 :steps=5-10> house), <lora:oil>, <lora:unknown:1> <lora:oil"
    rows = service.rows_of_prompt(prompt, [], 20)
    # What says the same already stays as it was typed.
    assert service.prompt_of_rows(prompt, rows, 20) == prompt
    changed = with_value(rows, rows[0]["id"], "unet", 0.65)
    text = service.prompt_of_rows(prompt, changed, 20)
    assert text == prompt.replace("<lora:ink: 0.50 :steps=5-10>", "<lora:ink:0.65:0.5:steps=0.25-0.5>")
    assert service.rows_of_prompt(text, changed, 20) == changed
    assert service.prompt_of_rows(prompt, [*rows, new_row("ink", 0.1)], 20) == prompt
    # A tag that was typed a moment ago, and that the rows do not have yet.
    assert service.prompt_of_rows("<lora:ink:1>", [new_row("oil")], 20) == "<lora:ink:1>"


def test_rows_that_go_take_their_tags_along(service: GenerationService) -> None:
    prompt = "a <lora:ink:0.5>, b <lora:oil:1> c"
    rows = service.rows_of_prompt(prompt, [], 20)
    text = service.prompt_of_rows(prompt, without(rows, rows[0]["id"]), 20, is_whole=True)
    assert text == "a, b <lora:oil:1> c"
    hidden = without_tag(rows, rows[1]["id"])
    text = service.prompt_of_rows(prompt, hidden, 20, is_whole=True)
    assert text == "a <lora:ink:0.5>, b c"
    assert brief(service.rows_of_prompt(text, hidden, 20)) == [("ink", 0.5, 0.5, "typed"), ("oil", 1.0, 1.0, "")]


def test_a_row_is_put_into_the_prompt(service: GenerationService) -> None:
    row = new_row("ink", 0.8, 0.5, on=False, blocks="down1:0.5,mid:0", start=0.2)
    text = with_tag("a house", row)
    assert text == "a house <lora:ink:0.8:0.5:blocks=down1:0.5,mid:0:steps=0.2-1:on=0>"
    (read,) = service.rows_of_prompt(text, [row], 20)
    assert read == {**row, "tag": "shown"}
    assert with_tag("", new_row("a:b")) is None
    assert with_tag("", new_row("ink", blocks="half typ")) is None
    assert find_row([row], row["id"]) == row
    assert find_row([row], "") is None


def test_what_is_generated_with_is_the_rows_once(service: GenerationService) -> None:
    values = {"prompt": "a <lora:ink:0.8> house <lora:oil:0.5>", "num_inference_steps": 20}
    config = service.check(values, [new_row("ink", 0.8, 0.8, tag="typed"), new_row("ink", 0.1, 0.2)])
    assert config.prompt == "a house"
    stack = [(Path(lora.file).stem, lora.unet_weight) for lora in config.loras]
    assert stack == [("ink", 0.8), ("ink", 0.1), ("oil", 0.5)]
    for prompt, word in (("<lora:gone:1>", "no LoRA 'gone'"), ("<lora:ink", "not closed")):
        with pytest.raises(ConfigError) as caught:
            service.check({**values, "prompt": prompt}, [])
        assert (caught.value.findings[0].where, word in caught.value.findings[0].message) == ("prompt", True)
    with pytest.raises(ConfigError, match="negative prompt"):
        service.check({**values, "negative_prompt": "<lora:ink:1>"}, [])
    with pytest.raises(ConfigError) as caught:
        service.check({"prompt": ""}, [new_row("ink", blocks="MIDDD")])
    assert caught.value.findings[0].where == "loras.0.blocks"


def test_a_stack_is_saved_from_rows_and_comes_back(service: GenerationService) -> None:
    name = service.save_stack("evening", [new_row("ink", 0.8, 0.5, blocks="MIDD", end=0.5), new_row("oil", on=False)])
    assert service.stacks() == [name]
    first, second = service.load_stack(name).loras
    assert (first.file, first.blocks, first.end, second.is_on) == ("ink", "MIDD", 0.5, False)
    service.delete_stack(name)
    assert service.stacks() == []
