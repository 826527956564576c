"""Broken and odd pictures, captions and zips, made on the spot: what people really drop into a data set."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image


def noise(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    """A picture that no other seed makes."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def halves(width: int = 96, height: int = 64) -> Image.Image:
    """Red on the left, blue on the right: shows how it was turned."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height))
    return image


def good(path: Path, caption: str | None = None, seed: int = 0, size: tuple[int, int] = (96, 64)) -> Path:
    noise(*size, seed=seed).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def empty_file(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def text_as_picture(path: Path) -> Path:
    path.write_text("This is a shopping list: ink, paper, brushes.\n", encoding="utf-8")
    return path


def web_page_as_picture(path: Path) -> Path:
    path.write_text("<!DOCTYPE html><html><body>404</body></html>", encoding="utf-8")
    return path


def truncated(path: Path, share: float = 0.6) -> Path:
    buffer = io.BytesIO()
    noise(256, 256, seed=3).save(buffer, format="PNG" if path.suffix == ".png" else "JPEG")
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    return path


def bad_checksum(path: Path) -> Path:
    buffer = io.BytesIO()
    noise().save(buffer, format="PNG")
    data = bytearray(buffer.getvalue())
    data[29] ^= 0xFF  # the checksum of the header chunk
    path.write_bytes(bytes(data))
    return path


def huge(path: Path, side: int = 20_000) -> Path:
    """A real 1-bit PNG of side x side pixels in about 50 kB."""
    path.write_bytes(_huge_png(side))
    return path


@cache
def _huge_png(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = bytes((1 + side // 8) * 500)
    packer = zlib.compressobj(6)
    body = b"".join(packer.compress(rows) for _ in range(side // 500)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def animated(path: Path) -> Path:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    frames[0].putpixel((0, 0), (255, 255, 255))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


def cmyk(path: Path) -> Path:
    image = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    image.paste((255, 0, 0, 0), (0, 0, 16, 64))
    image.save(path, quality=95)
    return path


def deep_grey(path: Path) -> Path:
    """A ramp from black to white in 16 bits: shown wrongly, it is white from 1/256 on."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (64, 1))).save(path)
    return path


def float_grey(path: Path, top: float = 1.0) -> Path:
    ramp = np.linspace(0, top, 256).astype(np.float32)
    Image.fromarray(np.tile(ramp, (64, 1))).save(path)
    return path


def half_transparent(path: Path) -> Path:
    """Opaque red on the left; on the right, green that must not be seen."""
    image = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (32, 0, 64, 64))
    image.save(path)
    return path


def palette_transparent(path: Path) -> Path:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([0, 255, 0, 255, 0, 0])
    image.paste(1, (0, 0, 32, 64))
    image.save(path, transparency=0)
    return path


def rotated(path: Path, orientation: int) -> Path:
    image = halves()
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, quality=95)
    return path


def damaged_exif(path: Path) -> Path:
    noise(seed=9).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)
    return path


def damaged_profile(path: Path) -> Path:
    noise(seed=10).save(path, icc_profile=b"this is no colour profile")
    return path


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def png_bytes(seed: int = 0, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    noise(*size, seed=seed).save(buffer, format="PNG")
    return buffer.getvalue()


def zip_with_link(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", png_bytes())
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return path


def zip_bomb(path: Path, num_bytes: int = 150_000_000) -> Path:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.png", "w") as entry,
    ):
        block = bytes(1_000_000)
        for _ in range(num_bytes // len(block)):
            entry.write(block)
    return path


def zip_encrypted(path: Path) -> Path:
    """The flag is enough: nobody gets as far as the bytes."""
    zip_of(path, {"a.png": png_bytes()})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    return path


def zip_truncated(path: Path) -> Path:
    zip_of(path, {f"{index}.png": png_bytes(index) for index in range(4)})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def zip_damaged(path: Path) -> Path:
    """The list is whole, the content of one entry is not."""
    zip_of(path, {"a.png": png_bytes(1), "b.png": png_bytes(2)})
    data = bytearray(path.read_bytes())
    middle = data.index(b"PK\x03\x04", 10) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(data))
    return path


def zip_with_chinese_windows_names(path: Path) -> Path:
    """As the Chinese Windows shell packs: GBK bytes, and no flag that says so."""
    name = "水墨 山水.png"
    placeholder = "x" * len(name.encode("gb18030").removesuffix(b".png")) + ".png"
    zip_of(path, {placeholder: png_bytes()})
    path.write_bytes(path.read_bytes().replace(placeholder.encode(), name.encode("gb18030")))
    return path


def everything(folder: Path) -> Path:
    """A folder with one of each."""
    folder.mkdir(parents=True, exist_ok=True)
    good(folder / "good 1.png", "a red house in the snow", seed=1)
    good(folder / "水墨 山水.png", "mountains in mist", seed=2)
    good(folder / "evil <img src=x onerror=alert(1)>.png", "<script>alert(1)</script>", seed=4)
    empty_file(folder / "empty.jpg")
    text_as_picture(folder / "text.png")
    web_page_as_picture(folder / "page.jpg")
    truncated(folder / "truncated.jpg")
    truncated(folder / "half.png")
    good(folder / "tiny.png", seed=5, size=(1, 1))
    huge(folder / "huge.png")
    animated(folder / "animated.gif")
    cmyk(folder / "cmyk.jpg")
    deep_grey(folder / "deep.png")
    half_transparent(folder / "transparent.png")
    rotated(folder / "rotated.jpg", 6)
    return folder
