"""The size of a JPEG XL picture, from its header alone: the decoder that Pillow is given makes the whole picture at once.

ISO/IEC 18181-1: a codestream begins with FF 0A and the SizeHeader, bits from the lowest up; 18181-2: it may lie in boxes (`jxlc`, `jxlp`).
"""

from __future__ import annotations

SUFFIXES = frozenset({".jxl"})
_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM = b"\xff\x0a"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_BITS = (9, 13, 18, 30)


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError("the header is cut off")
        found = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return found


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height in px, before orientation, of a file that begins with `data`. Raises ValueError: it is none."""
    stream = _codestream(data)
    if not stream.startswith(_CODESTREAM):
        raise ValueError("there is no JPEG XL codestream")
    bits = _Bits(stream[2:14])
    is_small = bits.take(1)
    height = _length(bits, is_small)
    ratio = bits.take(3)
    if not ratio:
        return _length(bits, is_small), height
    wide, high = _RATIOS[ratio - 1]
    return height * wide // high, height


def _length(bits: _Bits, is_small: int) -> int:
    if is_small:
        return 8 * (bits.take(5) + 1)
    return bits.take(_BITS[bits.take(2)]) + 1


def _codestream(data: bytes) -> bytes:
    if not data.startswith(_CONTAINER):
        return data
    at = 0
    while at + 8 <= len(data):
        size, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            return data[at + start + (4 if kind == b"jxlp" else 0) :][:64]
        if size < start:
            break  # up to the end of the file, or nonsense
        at += size
    raise ValueError("there is no codestream in the beginning of the file")
