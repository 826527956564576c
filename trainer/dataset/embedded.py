"""Descriptions that lie inside a picture: XMP, IPTC, EXIF, and the text chunks of PNG files. Read as strangers' data."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from PIL import ExifTags, Image, IptcImagePlugin

from trainer.dataset.captions import MAX_CAPTION_CHARACTERS, clean_caption
from trainer.dataset.colours import DECODER_ERRORS
from trainer.dataset.encodings import decode_text

_MAX_XMP_CHARACTERS = 1 << 20
_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
_ITEM = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
_XP_COMMENT, _USER_COMMENT, _IMAGE_DESCRIPTION, _EXIF_IFD = 0x9C9C, 0x9286, 0x010E, 0x8769
_IPTC_CAPTION = (2, 120)
# What cameras and programs write of themselves into every picture.
_OF_A_MACHINE = re.compile(
    r"(olympus|sony|kodak|samsung|minolta|konica|casio|nikon|canon|fuji\w*|pentax|panasonic|lead technologies)\b.*"
    r"|digital (still )?camera|dcim\W.*|.*\bdsc|created with .*|binary comment|default|screenshot|untitled|exif_jpeg\w*"
    r"|charset=.*|file written by .*|optimized by .*|\W*",
    re.IGNORECASE,
)
_LORA_TAG = re.compile(r"<[^<>]{1,200}>")


def embedded_caption(opened: Image.Image) -> str:
    """What a picture says of itself, as one line, or an empty text.

    In this order: XMP `dc:description`, IPTC caption, EXIF ImageDescription and comments, a PNG's `Description`, and the prompt that
    it was generated with (`parameters`). What cameras write into every picture is passed over.

    Args:
        opened: a picture whose data has been read: PNG files keep texts behind it.
    """
    for read in (_xmp, _iptc, _exif, _png, _prompt):
        try:
            text = clean_caption(read(opened)[: 4 * MAX_CAPTION_CHARACTERS]).text or ""
        except (*DECODER_ERRORS, ElementTree.ParseError):
            continue  # damaged notes are no reason against a picture
        if text and not _OF_A_MACHINE.fullmatch(text):
            return text[:MAX_CAPTION_CHARACTERS].rstrip()
    return ""


def _xmp(opened: Image.Image) -> str:
    data: Any = opened.info.get("xmp") or opened.info.get("XML:com.adobe.xmp") or b""
    # As text, so that no other encoding can hide what is looked for.
    text = data if isinstance(data, str) else bytes(data).decode("utf-8")
    # Without a document type there are no entities, so nothing in it can grow.
    if not text or len(text) > _MAX_XMP_CHARACTERS or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return ""
    root = ElementTree.fromstring(text.strip("\ufeff\0 \r\n\t"))  # noqa: S314 - see above
    for node in root.iter(_DESCRIPTION):
        texts = [item.text or "" for item in node.iter(_ITEM)] or [node.text or ""]
        if texts[0].strip():
            return texts[0]
    return ""


def _iptc(opened: Image.Image) -> str:
    info = IptcImagePlugin.getiptcinfo(opened) or {}  # pyright: ignore[reportArgumentType] - it takes any picture
    value: Any = info.get(_IPTC_CAPTION, b"")
    value = value[0] if isinstance(value, list) else value
    return _decoded(value)


def _exif(opened: Image.Image) -> str:
    exif = opened.getexif()
    details = exif.get_ifd(ExifTags.IFD.Exif)
    readers: list[Callable[[], str]] = [
        lambda: _decoded(exif.get(_IMAGE_DESCRIPTION, "")),
        lambda: bytes(exif.get(_XP_COMMENT, b"")).decode("utf-16-le", errors="replace").rstrip("\0"),
        lambda: _prompt_of(_user_comment(details.get(_USER_COMMENT, b""))),
    ]
    for read in readers:
        text = clean_caption(read()).text
        if text and not _OF_A_MACHINE.fullmatch(text):
            return text
    return ""


def _user_comment(value: Any) -> str:
    """EXIF 3.0, 4.6.5: eight bytes name the encoding, then the text."""
    if not isinstance(value, bytes):
        return _decoded(value)
    kind, text = value[:8], value[8:]
    if kind == b"UNICODE\0":
        # In the byte order of the file or not: the letters tell.
        return text.decode("utf-16-le" if text[1:2] == b"\0" else "utf-16-be", errors="replace")
    return _decoded(text if kind in (b"ASCII\0\0\0", bytes(8)) else value)


def _png(opened: Image.Image) -> str:
    return next((_decoded(opened.info[key]) for key in ("Description", "description") if key in opened.info), "")


def _prompt(opened: Image.Image) -> str:
    return _prompt_of(_decoded(opened.info.get("parameters", "")))


def _prompt_of(text: str) -> str:
    """The prompt in what AUTOMATIC1111's web UI and others write into pictures, without tags of LoRAs; another text as it is."""
    prompt = re.split(r"\n(?:Negative prompt:|Steps: \d)", text, maxsplit=1)[0]
    return _LORA_TAG.sub("", prompt) if prompt != text else text


def _decoded(value: Any) -> str:
    if isinstance(value, bytes):
        return (decode_text(value)[0] or "") if value else ""
    return value if isinstance(value, str) else ""
