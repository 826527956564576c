"""Opening one picture as it is trained: checked before it is decoded, upright, opaque, 8-bit RGB.

Pictures come from strangers, so only the decoders of a few formats are ever asked, and size is checked in the header.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from PIL import (
    AvifImagePlugin,  # noqa: F401 - each registers its format, so that no other plugin need be loaded
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from trainer.dataset import jxl
from trainer.dataset.colours import DECODER_ERRORS, extremes, to_coverage, to_rgb
from trainer.dataset.problems import Problem, error, warning
from trainer.errors import DatasetError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
MAX_PIXELS = 64_000_000
BIG_PIXELS = 16_000_000
"""Larger pictures are decoded one at a time: a scan by four threads then needs the memory of one of them, not of four."""
MAX_SCANNED_PIXELS = 2_000_000_000
"""A progressive JPEG is decoded once for each of its scans, and a few bytes make a scan. Cameras and programs write about
12: twice that many at the size limit pass, a file made to keep the computer busy for hours does not."""
MIN_SIDE = 32

# A phone's JPEG with a depth map behind it is opened by the JPEG plugin and then calls itself MPO.
_SUFFIXES_OF_FORMAT = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png", ".apng"},
    "WEBP": {".webp"},
    "BMP": {".bmp", ".dib"},
    "TIFF": {".tif", ".tiff"},
    "GIF": {".gif"},
    "AVIF": {".avif"},
    "JXL": set(jxl.SUFFIXES),
}
PICTURE_SUFFIXES = frozenset(suffix for suffixes in _SUFFIXES_OF_FORMAT.values() for suffix in suffixes)
HEIF_SUFFIXES = frozenset({".heic", ".heif"})
UNREADABLE_SUFFIXES = frozenset(
    {".svg", ".psd", ".xcf", ".kra", ".clip", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
    | {".jp2", ".tga", ".exr", ".hdr", ".ico", ".pdf", ".eps"}
)
"""Pictures of a kind that is not read: said, instead of passed over in silence."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_one_big_at_a_time = threading.Lock()


@dataclass(frozen=True)
class ReadPicture:
    """A picture as it is trained, and what had to be said about it."""

    image: Image.Image
    problems: tuple[Problem, ...]
    description: str = ""
    """What it says of itself (`trainer.dataset.embedded`), where that was asked for."""


class UnusablePicture(DatasetError):
    """This file cannot be used as a picture; `problem` says why."""

    def __init__(self, problem: Problem, path: Path) -> None:
        super().__init__(problem.message, where=str(path), fix=problem.fix)
        self.problem = problem


@cache
def heif_is_readable() -> bool:
    """Whether photos of phones in HEIC can be opened: the optional package pillow-heif is installed."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


@cache
def jxl_is_readable() -> bool:
    """Whether JPEG XL can be opened: the optional package pillow-jxl-plugin is installed."""
    try:
        import pillow_jxl  # noqa: F401 # pyright: ignore[reportMissingImports] - registers its format
    except ImportError:
        return False
    return True


def is_picture_name(path: Path) -> bool:
    """Whether a file is taken for a picture by its name."""
    return path.suffix.lower() in PICTURE_SUFFIXES | HEIF_SUFFIXES | UNREADABLE_SUFFIXES


def open_picture(path: Path) -> Image.Image:
    """The picture exactly as it is trained: upright, on white where transparent, the first frame, RGB with 8 bits.

    Raises: DatasetError: the file is missing, unreadable, broken, too large, or not a picture.
    """
    return read_picture(path).image


def open_coverage(path: Path) -> Image.Image:
    """What a picture covers, upright, as grey: its alpha channel where that is used, else its brightness.

    Raises: DatasetError: as `open_picture`.
    """
    return read_picture(path, to_coverage).image


Convert = Callable[[Image.Image], tuple[Image.Image, list[Problem]]]
Describe = Callable[[Image.Image], str]


def read_picture(path: Path, convert: Convert | None = None, describe: Describe | None = None) -> ReadPicture:
    """Open and fully decode `path`; `convert` makes of its colours what is wanted, RGB without one; `describe` reads its notes.

    Raises: UnusablePicture.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UnusablePicture(error("not_a_file", "This is not a file.", "Take it out of the folder."), path)
        with open(path, "rb") as handle:
            return _read(handle, path, convert or to_rgb, describe)
    except PermissionError as failure:
        problem = error("unreadable", "This file may not be read.", "Change its permissions.")
        raise UnusablePicture(problem, path) from failure
    except FileNotFoundError as failure:
        raise UnusablePicture(error("missing", "This file is gone.", "Put it back, or scan again."), path) from failure
    except OSError as failure:
        problem = error("unreadable", f"This file cannot be read ({failure.strerror or failure}).", "Copy it anew.")
        raise UnusablePicture(problem, path) from failure


def _read(handle: IO[bytes], path: Path, convert: Convert, describe: Describe | None) -> ReadPicture:
    start = handle.read(512)
    _refuse_by_start(start, path)
    handle.seek(0)
    problems: list[Problem] = []
    opened = _open_header(handle, start, path)
    _refuse_by_size(opened, path)
    _refuse_by_scans(handle, opened, path)
    problems += _look_at_container(opened, path)
    orientation, exif_problems = _orientation(opened)
    problems += exif_problems
    with _one_big_at_a_time if opened.width * opened.height > BIG_PIXELS else nullcontext():
        image, colour_problems = _decode(opened, path, convert)
        problems += colour_problems
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        if _is_blank(image):
            problems.append(
                warning("blank", "This picture has a single colour all over.", "Remove it if that is no intent.")
            )
    return ReadPicture(image, tuple(problems), describe(opened) if describe else "")


def _is_blank(image: Image.Image) -> bool:
    """Whether all pixels are equal. Hardly ever, and then a few of them tell."""
    few = image.resize((8, 8), Image.Resampling.NEAREST)
    return all(low == high for some in (few, image) for low, high in map(extremes, some.split()))


def _decode(opened: Image.Image, path: Path, convert: Convert) -> tuple[Image.Image, list[Problem]]:
    try:
        opened.load()
    except DECODER_ERRORS as failure:
        problem = error("broken", "This picture is incomplete or damaged.", "Save or download it again.")
        raise UnusablePicture(problem, path) from failure
    try:
        return convert(opened)
    except DECODER_ERRORS as failure:
        problem = error("colours", "The colours of this picture cannot be read.", "Save it as an 8-bit PNG or JPEG.")
        raise UnusablePicture(problem, path) from failure


def _refuse_by_start(start: bytes, path: Path) -> None:
    if not start:
        raise UnusablePicture(error("empty_file", "This file is empty (0 bytes).", "Save or download it again."), path)
    suffix = path.suffix.lower()
    if suffix in HEIF_SUFFIXES and not heif_is_readable():
        fix = "Save it as JPEG or PNG, or install the extra: `python launch.py --extra heif`."
        raise UnusablePicture(error("unsupported", "HEIC pictures cannot be read without an extra package.", fix), path)
    if suffix in jxl.SUFFIXES and not jxl_is_readable():
        fix = "Save it as JPEG or PNG, or install the extra: `python launch.py --extra jxl`."
        raise UnusablePicture(error("unsupported", "JPEG XL cannot be read without an extra package.", fix), path)
    if suffix in UNREADABLE_SUFFIXES:
        problem = error("unsupported", f"Files of the kind {suffix} are not read.", "Save it as PNG or JPEG.")
        raise UnusablePicture(problem, path)


def _open_header(handle: IO[bytes], start: bytes, path: Path) -> Image.Image:
    """The picture with its header read, by the first of our formats that knows its beginning.

    Not `Image.open`: beyond 89 megapixels that one warns, and silencing a warning is no thing to do in threads. The
    limit that follows here is lower.
    """
    names = (*FORMATS, "HEIF") if path.suffix.lower() in HEIF_SUFFIXES else FORMATS
    if path.suffix.lower() in jxl.SUFFIXES:
        names = (*FORMATS, "JXL")
        _refuse_large_jxl(handle, start, path)
    for factory, accept in (Image.OPEN[name] for name in names):
        # Some plugins answer with a text: why a picture that they know cannot be read.
        answer = accept(start[:16]) if accept is not None else True
        if not answer or isinstance(answer, str):
            continue
        handle.seek(0)
        try:
            return factory(handle, path.name)
        except DECODER_ERRORS as failure:
            problem = error("broken", "This picture is incomplete or damaged.", "Save or download it again.")
            raise UnusablePicture(problem, path) from failure
    raise UnusablePicture(_not_a_picture(start), path)


def _refuse_large_jxl(handle: IO[bytes], start: bytes, path: Path) -> None:
    """Its decoder makes the whole picture before it tells the size."""
    if not start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return
    handle.seek(0)
    try:
        width, height = jxl.jxl_size(handle.read(1 << 20))
    except ValueError as failure:
        problem = error("broken", "This picture is incomplete or damaged.", "Save or download it again.")
        raise UnusablePicture(problem, path) from failure
    _refuse_pixels(width, height, path)


def _not_a_picture(start: bytes) -> Problem:
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        message = "This is a web page or a drawing in text form with the name of a picture."
    elif b"\0" not in start and not any(byte < 9 for byte in start):
        message = "This is a text file with the name of a picture."
    else:
        message = "This is not a picture of a kind that can be read, or its beginning is damaged."
    return error("not_a_picture", message, "Use JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF files.")


def _refuse_by_size(opened: Image.Image, path: Path) -> None:
    width, height = opened.size
    _refuse_pixels(width, height, path)
    if min(width, height) < MIN_SIDE:
        message = f"This picture is too small to learn from ({width}×{height})."
        fix = f"Both sides must have at least {MIN_SIDE} pixels, better those of the training resolution."
        raise UnusablePicture(error("too_small", message, fix), path)


def _refuse_pixels(width: int, height: int, path: Path) -> None:
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS // 1_000_000} megapixels"
        message = f"This picture is larger than {limit} ({width}×{height})."
        raise UnusablePicture(error("too_large", message, f"Make it smaller than {limit}."), path)


def _refuse_by_scans(handle: IO[bytes], opened: Image.Image, path: Path) -> None:
    if opened.format not in ("JPEG", "MPO"):
        return
    place = handle.tell()
    handle.seek(0)
    # In the data of a scan an FF is always followed by 00 or a restart marker: what is found is a scan, or in metadata.
    num_scans, last = 0, b""
    while block := handle.read(1 << 20):
        num_scans += (last + block).count(b"\xff\xda")
        last = block[-1:] if block.endswith(b"\xff") else b""
    handle.seek(place)
    if num_scans * opened.width * opened.height > MAX_SCANNED_PIXELS:
        message = f"This JPEG is built of {num_scans} layers, far more than any camera or program writes."
        raise UnusablePicture(error("too_many_scans", message, "Save it again, as PNG or JPEG."), path)


def _look_at_container(opened: Image.Image, path: Path) -> list[Problem]:
    """Warnings about file name and frames; to be called before `load`, which may close the file."""
    found: list[Problem] = []
    kind = opened.format or ""
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES_OF_FORMAT.get(kind, {suffix}):
        found.append(warning("suffix", f"The name ends in {suffix}, but this is a {kind} picture; it is read as that."))
    if kind == "MPO":
        return found  # a JPEG with a depth map or second view behind it
    try:
        has_frames = bool(getattr(opened, "is_animated", False))
        opened.seek(0)
    except DECODER_ERRORS:
        has_frames = False  # damage behind the first frame does not touch us; in it, `load` finds it
    if has_frames:
        what = "pages" if kind == "TIFF" else "frames"
        found.append(warning("animated", f"This picture has several {what}; only the first is used."))
    return found


def _orientation(opened: Image.Image) -> tuple[int, list[Problem]]:
    try:
        value = opened.getexif().get(_ORIENTATION_TAG, 1)
    except DECODER_ERRORS:
        return 1, [warning("exif", "The camera's notes in this picture are damaged; if it is turned, turn it by hand.")]
    return (value if isinstance(value, int) else 1), []
