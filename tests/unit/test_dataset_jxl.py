"""JPEG XL: its size is known before anything is decoded; without its plug-in a sentence says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.dataset import pictures
from trainer.dataset.jxl import jxl_size
from trainer.dataset.pictures import UnusablePicture, read_picture

# First bytes of pictures that libjxl wrote.
HEADERS = {
    (64, 48): "ff0acb060013880200300 1b5",
    (97, 31): "ff0af000c00c001388020030",
    (300, 200): "ff0a31070013880200 60810b",
    (1920, 1080): "ff0aba211d00138802009040",
    (2000, 2000): "ff0a7a3e1900138802009040",
    (5000, 300): "ff0a58890ee70013880200 78",
    (8200, 40): "ff0a38010f40180013880200",
}
HEADERS = {size: bytes.fromhex(text.replace(" ", "")) for size, text in HEADERS.items()}


def boxed(stream: bytes, kind: bytes = b"jxlc") -> bytes:
    other = (16).to_bytes(4, "big") + b"ftypjxl \0\0\0\0"
    return b"\0\0\0\x0cJXL \r\n\x87\n" + other + (8 + len(stream)).to_bytes(4, "big") + kind + stream


@pytest.mark.parametrize("size", HEADERS)
def test_the_size_stands_in_the_header(size: tuple[int, int]) -> None:
    assert jxl_size(HEADERS[size]) == size
    assert jxl_size(boxed(HEADERS[size])) == size
    assert jxl_size(boxed(bytes(4) + HEADERS[size], b"jxlp")) == size


@pytest.mark.parametrize("data", [b"", b"\xff\x0a", b"\x89PNG", boxed(b""), b"\0\0\0\x0cJXL \r\n\x87\n", bytes(99)])
def test_what_has_no_size_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"codestream|cut off"):
        jxl_size(data)


def test_without_the_plug_in_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "jxl_is_readable", lambda: False)
    (tmp_path / "a.jxl").write_bytes(HEADERS[64, 48])
    with pytest.raises(UnusablePicture, match="extra jxl"):
        read_picture(tmp_path / "a.jxl")


def test_a_huge_one_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "jxl_is_readable", lambda: True)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1_000_000)
    (tmp_path / "a.jxl").write_bytes(HEADERS[1920, 1080])
    with pytest.raises(UnusablePicture, match="larger than 1 megapixels"):
        read_picture(tmp_path / "a.jxl")


def test_the_plug_in_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    from PIL import Image

    Image.new("RGB", (64, 48), (200, 30, 40)).save(tmp_path / "a.jxl", lossless=True)
    image = read_picture(tmp_path / "a.jxl").image
    assert (image.size, image.getpixel((5, 5))) == ((64, 48), (200, 30, 40))
