from __future__ import annotations

from pathlib import Path

import pytest

from trainer.dataset.captions import (
    MAX_CAPTION_CHARACTERS,
    caption_from_name,
    compose_caption,
    fill_template,
    read_caption,
)
from trainer.errors import DatasetError


def read(tmp_path: Path, content: bytes) -> tuple[str | None, list[str]]:
    (tmp_path / "a.txt").write_bytes(content)
    found = read_caption(tmp_path / "a.txt")
    return found.text, [problem.code for problem in found.problems]


@pytest.mark.parametrize(
    ("content", "text", "codes"),
    [
        (b"a red house\n", "a red house", []),
        ("a red house".encode("utf-8-sig"), "a red house", []),
        ("水墨, 山水".encode(), "水墨, 山水", []),
        ("水墨, a house".encode("utf-16"), "水墨, a house", ["caption_encoding"]),
        ("a red house".encode("utf-16-le"), "a red house", ["caption_encoding"]),
        ("a red house".encode("utf-16-be"), "a red house", ["caption_encoding"]),
        ("一座山, 水墨".encode("gbk"), "一座山, 水墨", ["caption_encoding"]),
        ("水墨山水".encode("gbk"), "水墨山水", ["caption_encoding"]),
        ("café, naïve, Ωμέγα, чай".encode(), "café, naïve, Ωμέγα, чай", []),
        ("un café à Paris".encode("latin-1"), "un café à Paris", ["caption_encoding"]),
        (b"a red\0 house", "a red house", ["caption_control"]),
        ("a\u200b red \u202ehouse\ufeff".encode(), "a red house", ["caption_control"]),
        (b"one\r\ntwo\r\n\tthree", "one two three", ["caption_lines"]),
        (b"", None, []),
        (b"  \r\n", None, []),
        (b", , ,", None, []),
        (bytes(range(256)) * 8, None, ["caption_binary"]),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x01\x02\x03\x04\x05\x06", None, ["caption_binary"]),
        (b"word " * 76, ("word " * 76).strip(), ["caption_long"]),
        (b"word " * 75, ("word " * 75).strip(), []),
        (b"<lora:x:1> (((, (a:nan)", "<lora:x:1> (((, (a:nan)", []),
    ],
)
def test_captions_of_every_origin_become_one_clean_line(
    tmp_path: Path, content: bytes, text: str | None, codes: list[str]
) -> None:
    assert read(tmp_path, content) == (text, codes)


@pytest.mark.parametrize("letter", ["a", "墨"])
def test_a_huge_caption_is_cut_and_said(tmp_path: Path, letter: str) -> None:
    text, codes = read(tmp_path, letter.encode() * 1_000_000)
    assert text == letter * MAX_CAPTION_CHARACTERS
    assert "caption_cut" in codes


def test_an_unreadable_caption_is_no_exception(tmp_path: Path) -> None:
    found = read_caption(tmp_path)
    assert found.text is None
    assert [problem.code for problem in found.problems] == ["caption_unreadable"]


@pytest.mark.parametrize(
    ("caption", "trigger", "instance", "use_captions", "expected"),
    [
        ("a house", "zsy", "", True, "zsy, a house"),
        ("a house by ZSY", "zsy", "", True, "a house by ZSY"),
        ("a house by zsyx", "zsy", "", True, "zsy, a house by zsyx"),
        ("ink wash style, a house", "ink wash style", "", True, "ink wash style, a house"),
        (None, "zsy", "a photo of zsy robot", True, "a photo of zsy robot"),
        (None, "zsy", "a robot", True, "zsy, a robot"),
        (None, "zsy", "", True, "zsy"),
        ("a house", "zsy", "a photo", False, "zsy, a photo"),
        ("a house", "", "", True, "a house"),
        ("", "", "", True, ""),
        ("a (b", "(b", "", True, "a (b"),
        ("一座山", "水墨", "", True, "水墨, 一座山"),
    ],
)
def test_composing(caption: str | None, trigger: str, instance: str, use_captions: bool, expected: str) -> None:
    assert compose_caption(caption, trigger, instance, use_captions) == expected


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("misty-mountain_03", "misty mountain"),
        ("IMG_2041", "IMG"),
        ("00017", ""),
        ("a house (2)", "a house"),
        ("水墨 山水", "水墨 山水"),
    ],
)
def test_captions_from_file_names(stem: str, expected: str) -> None:
    assert caption_from_name(stem) == expected


def test_templates() -> None:
    assert fill_template("{trigger}, {name}", stem="red-house_1", trigger_word="zsy") == "zsy, red house"
    assert fill_template("{trigger}, {name}", stem="001", trigger_word="zsy") == "zsy"
    assert fill_template("a drawing of {name}", stem="cat", trigger_word="") == "a drawing of cat"
    for bad in ("", "{nam}", "{trigger.__class__}", "{"):
        with pytest.raises(DatasetError, match="template"):
            fill_template(bad, stem="a", trigger_word="b")
