"""Prompt weights as people know them, and long prompts in chunks."""

from __future__ import annotations

import pytest
import torch

from tests.tiny_model import make_tiny_model
from trainer.models.components import Components, load_components
from trainer.models.text import PromptOptions, emphasise, to_chunks
from trainer.paths import DataFolder
from trainer.prompts import parse_weights

WEIGHTED = PromptOptions(has_weights=True)


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red house", [("a red house", 1.0)]),
        ("a (red) house", [("a ", 1.0), ("red", 1.1), (" house", 1.0)]),
        ("a ((red)) house", [("a ", 1.0), ("red", 1.21), (" house", 1.0)]),
        ("a [red] house", [("a ", 1.0), ("red", 1 / 1.1), (" house", 1.0)]),
        ("a (red:1.5) house", [("a ", 1.0), ("red", 1.5), (" house", 1.0)]),
        ("(a (red:1.5) house:0.5)", [("a ", 0.5), ("red", 0.75), (" house", 0.5)]),
        ("zib \\(robot\\)", [("zib (robot)", 1.0)]),
        ("a (red", [("a ", 1.0), ("red", 1.1)]),
        ("a red) house", [("a red) house", 1.0)]),
        ("ratio 16:9", [("ratio 16:9", 1.0)]),
        ("(ratio 16:9)", [("ratio 16", 9.0)]),
        ("(at 5:30 pm)", [("at 5:30 pm", 1.1)]),
        ("a :1.5) b", [("a :1.5) b", 1.0)]),
        ("(red: 1.5 )", [("red", 1.5)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("水墨(山水:1.3)", [("水墨", 1.0), ("山水", 1.3)]),
        ("back\\slash", [("back\\slash", 1.0)]),
    ],
)
def test_brackets(prompt: str, expected: list[tuple[str, float]]) -> None:
    (section,) = parse_weights(prompt)
    assert [segment.text for segment in section] == [text for text, _ in expected]
    assert [segment.weight for segment in section] == pytest.approx([weight for _, weight in expected])


def test_break_begins_a_chunk() -> None:
    sections = parse_weights("a red house BREAK (blue tree:1.2)")
    assert [[(s.text, s.weight) for s in section] for section in sections] == [
        [("a red house", 1.0)],
        [("blue tree", 1.2)],
    ]
    assert len(parse_weights("BREAKFAST")) == 1


def test_long_prompts_are_cut_into_chunks_with_marks(components: Components) -> None:
    tokenizer = components.tokenizer
    words = "red " * 76
    chunks = to_chunks(tokenizer, 77, [words, "red"], PromptOptions())
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    red = tokenizer("red", add_special_tokens=False).input_ids
    assert chunks.ids.shape == (2, 2, 77)
    assert chunks.ids[0, 0].tolist() == [start, *red * 75, end]
    assert chunks.ids[0, 1, :3].tolist() == [start, *red, end]
    assert chunks.ids[1, 1, :2].tolist() == [start, end]
    assert to_chunks(tokenizer, 77, [words], PromptOptions(max_chunks=1)).ids.shape == (1, 1, 77)
    usual = tokenizer(["red house"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(to_chunks(tokenizer, 77, ["red house"], WEIGHTED).ids[:, 0], usual)


def test_what_stands_after_75_tokens_is_seen(components: Components) -> None:
    with torch.no_grad():
        first, second = (
            components.family.encode_prompts(components, ["ink " * 80 + word], WEIGHTED).states
            for word in ("red house", "blue tree")
        )
    assert first.shape == (1, 154, 32)
    assert torch.equal(first[:, :77], second[:, :77])
    assert not torch.allclose(first[:, 77:], second[:, 77:])


def test_weights_scale_their_tokens_alone_and_keep_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 8, generator=generator) + 1
    weights = torch.ones(2, 5)
    weights[0, 2] = 1.4
    found = emphasise(states, weights)
    assert torch.equal(found[1], states[1])
    torch.testing.assert_close(found[0].mean(), states[0].mean())
    ratio = found[0] / states[0]
    torch.testing.assert_close(ratio[2] / ratio[0], torch.full((8,), 1.4))
    # Without a mean to speak of it is left alone, rather than blown up.
    centred = states - states.mean((1, 2), keepdim=True)
    assert float(emphasise(centred, weights)[0, 0].div(centred[0, 0]).abs().max()) < 2.1


def test_weights_change_generation_and_captions_do_not_have_them(components: Components) -> None:
    def states(prompt: str, options: PromptOptions) -> torch.Tensor:
        with torch.no_grad():
            return components.family.encode_prompts(components, [prompt], options).states

    assert not torch.allclose(states("a (red:1.4) house", WEIGHTED), states("a red house", WEIGHTED), atol=1e-3)
    assert torch.equal(states("a (red:1.0) house", WEIGHTED), states("a red house", WEIGHTED))
    assert not torch.equal(states("a (red:1.0) house", PromptOptions()), states("a red house", PromptOptions()))
