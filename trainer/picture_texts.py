"""Texts inside picture files: text chunks of PNG, EXIF of JPEG and WebP. No pixel is decoded; no torch."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, PngImagePlugin

from trainer.errors import ConfigError
from trainer.files import unused_path, write_atomically

INFOTEXT_KEY = "parameters"
RECIPE_KEY = "inkwash"
FORMATS: Mapping[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
"""Formats that pictures are saved in, and their suffixes."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_EXIF_IFD = 0x8769
_USER_COMMENT, _MAKER_NOTE = 0x9286, 0x927C
_MARK = b"inkwash\0"
_MAX_EXIF_BYTES = 4_000_000
# A marker of JPEG counts its length in two bytes.
_MAX_JPEG_EXIF_BYTES = 65_000
_UNICODE, _ASCII, _UNDEFINED = b"UNICODE\0", b"ASCII\0\0\0", b"\0" * 8


@dataclass(frozen=True)
class PictureFile:
    """What a picture file says: its texts by name, and the size of the picture in pixels."""

    width: int
    height: int
    texts: Mapping[str, str] = field(default_factory=dict)


def write_picture(image: Image.Image, path: Path, texts: Mapping[str, str], quality: int = 90) -> Path:
    """Save a picture with the texts INFOTEXT_KEY and RECIPE_KEY inside, atomically, in the format of its suffix.

    Args:
        image: the pixels.
        path: ends in .png, .jpg, .jpeg or .webp.
        texts: for PNG any others, too.
        quality: of JPEG and WebP, 1 to 100.

    Returns: where it lies: a name with the suffix .png that was free where JPEG has no room for so long a text.
    Raises: ResourceError: the disk is full. ValueError: another suffix.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{suffix} is no format of pictures")
    exif = b"" if suffix == ".png" else _exif(texts).tobytes()
    if suffix in (".jpg", ".jpeg") and len(exif) > _MAX_JPEG_EXIF_BYTES:
        # The caller made sure of the other name only.
        path, suffix = unused_path(path.with_suffix(".png")), ".png"
    if suffix == ".png":
        chunks = PngImagePlugin.PngInfo()
        for key, text in texts.items():
            chunks.add_text(key, text)
        write_atomically(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=chunks), "the picture")
        return path
    name = "WEBP" if suffix == ".webp" else "JPEG"
    # Full colour: halved colours blur the thin coloured lines that drawings are made of.
    options = {"method": 4} if name == "WEBP" else {"subsampling": 0, "optimize": True}
    write_atomically(
        path,
        lambda temporary: image.convert("RGB").save(temporary, format=name, exif=exif, quality=quality, **options),
        "the picture",
    )
    return path


def read_picture_texts(path: Path) -> PictureFile:
    """The texts in a PNG, JPEG or WebP file. Texts that are too long, or no text, are left out.

    Returns: `parameters` (infotext), `inkwash` (our settings), `prompt` and `workflow` (ComfyUI), where they are there.
    Raises: ConfigError: it is no picture that can be read.
    """
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as image:
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            if isinstance(image.info.get("exif"), bytes) and len(image.info["exif"]) <= _MAX_EXIF_BYTES:
                texts = {**_exif_texts(image.getexif()), **texts}
            return PictureFile(image.width, image.height, texts)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, zlib.error, Image.DecompressionBombError) as error:
        raise ConfigError(
            "The picture cannot be read.", where=str(path), fix="Choose a PNG, JPEG or WebP picture."
        ) from error


def _exif(texts: Mapping[str, str]) -> Image.Exif:
    exif = Image.Exif()
    inner: dict[int, bytes] = {}
    if INFOTEXT_KEY in texts:
        inner[_USER_COMMENT] = _UNICODE + texts[INFOTEXT_KEY].encode("utf-16-be", errors="replace")
    if RECIPE_KEY in texts:
        inner[_MAKER_NOTE] = _MARK + texts[RECIPE_KEY].encode("utf-8", errors="replace")
    exif[_EXIF_IFD] = inner
    return exif


def _exif_texts(exif: Image.Exif) -> dict[str, str]:
    found: dict[str, str] = {}
    inner = exif.get_ifd(_EXIF_IFD)
    comment, note = inner.get(_USER_COMMENT), inner.get(_MAKER_NOTE)
    if text := decode_user_comment(comment):
        found[INFOTEXT_KEY] = text
    if isinstance(note, bytes) and note.startswith(_MARK):
        found[RECIPE_KEY] = note.removeprefix(_MARK).decode("utf-8", errors="replace")
    for value in exif.values():
        # ComfyUI writes `prompt:{…}` and `workflow:{…}` into whatever text tags come first.
        name, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
        if colon and name.casefold() in ("prompt", "workflow") and rest.lstrip().startswith("{"):
            found.setdefault(name.casefold(), rest)
    return found


def decode_user_comment(comment: object) -> str:
    """EXIF's UserComment: eight bytes name the code, UTF-16 in either order, or ASCII, which programs fill with UTF-8."""
    if isinstance(comment, str):
        return comment.strip("\0 ")
    if not isinstance(comment, bytes):
        return ""
    code, body = comment[:8], comment[8:]
    if code == _UNICODE:
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", errors="replace").strip("\0 ")
        # The order is that of the file by the standard, big-endian by habit; whose high bytes are alike is the right one.
        kinds = {name: len(set(body[start::2])) for name, start in (("utf-16-be", 0), ("utf-16-le", 1))}
        order = "utf-16-le" if kinds["utf-16-le"] < kinds["utf-16-be"] else "utf-16-be"
        return body.decode(order, errors="replace").strip("\0 ")
    text = body if code in (_ASCII, _UNDEFINED) else comment
    return text.decode("utf-8", errors="replace").strip("\0 ")
