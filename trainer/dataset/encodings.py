"""Text of any maker: Unicode with and without a mark, Chinese, else the usual encoding of Western Windows."""

from __future__ import annotations

import codecs
import re

# Pairs of high bytes only: text in the usual Chinese encoding. Latin-1 accents stand beside ASCII letters.
_GBK = re.compile(rb"(?:[\x00-\x7f]++|(?:[\x81-\xfe][\xa1-\xfe])++)*+")


def decode_text(data: bytes, *, is_cut: bool = False) -> tuple[str | None, str]:
    """`data` as text and the name of its encoding; (None, "") where it is no text. `is_cut`: it may end within a letter."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data[: len(data) // 2 * 2].decode("utf-16", errors="replace"), "utf-16"
    if data.startswith(b"\xef\xbb\xbf"):
        return data.decode("utf-8-sig", errors="replace"), "utf-8-sig"
    zeros = data.count(0)
    if zeros >= len(data) // 3 and zeros and len(data) > 3:
        is_little = data[1::2].count(0) >= data[0::2].count(0)
        encoding = "utf-16-le" if is_little else "utf-16-be"
        text = data[: len(data) // 2 * 2].decode(encoding, errors="replace")
        return (text, encoding) if _looks_like_text(text) else (None, "")
    text, encoding = decode_unmarked(data, fallback="cp1252", is_cut=is_cut)
    return (text, encoding) if _looks_like_text(text) else (None, "")


def decode_unmarked(data: bytes, *, fallback: str, is_cut: bool = False) -> tuple[str, str]:
    """`data` as UTF-8, else as Chinese where it looks like that, else in the `fallback` encoding; with the encoding's name.

    Some Chinese words are valid UTF-8 by chance ("水墨"): they give themselves away by letters of phonetic script.
    """
    is_chinese = not data.isascii() and _GBK.fullmatch(data) is not None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=not is_cut)
        if not (is_chinese and any("\u0250" <= char <= "\u02ff" for char in text)):
            return text, "utf-8"
    except UnicodeDecodeError:
        pass  # it is in one of the other encodings
    encoding = "gb18030" if is_chinese else fallback
    return data.decode(encoding, errors="replace"), encoding


def _looks_like_text(text: str) -> bool:
    if text.isprintable() and "\ufffd" not in text:
        return True
    strange = sum(1 for char in text if (ord(char) < 32 and char not in "\t\r\n\0") or char == "\ufffd")
    return strange <= len(text) // 20
