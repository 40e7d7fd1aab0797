"""What the header of a JPEG says, read without decoding it: hundreds of thousands of frames are looked at when packed.

Only headers as encoders write them are read here; Pillow has the last word on all others (`extracted`). What is
accepted here Pillow accepts too, with the same size: a walk over marker segments, each of the length it claims, up to
the start of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass

SIZES = frozenset([0xC0, 0xC1, 0xC2])  # baseline, extended, progressive: behind them stands the size
PASSED_OVER = frozenset([0xC4, 0xDD, *range(0xE0, 0xF0), 0xFE])  # Huffman tables, restarts, APP0 .. APP15, a comment
TABLES, SCAN = 0xDB, 0xDA


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegHeader:
    """A JPEG's size, and all its bytes before the first scan: equal ones need not be read again."""

    width: int  # pixels
    height: int
    components: int
    bytes: bytes


def jpeg_header(blob: bytes) -> JpegHeader | None:
    """The header of a plain JPEG of 8 bits with 1 or 3 components; None for all else, JPEG or not."""
    if blob[:3] != b"\xff\xd8\xff":
        return None
    position, last, size = 2, len(blob) - 4, None
    while position <= last and blob[position] == 0xFF:
        marker = blob[position + 1]
        length = blob[position + 2] << 8 | blob[position + 3]
        start, position = position + 4, position + 2 + length
        if length < 2 or position > len(blob):
            return None
        if marker == SCAN:
            return None if size is None else JpegHeader(**size, bytes=blob[:position])
        if marker in SIZES:
            if size is not None or (size := _size(blob[start:position])) is None:
                return None
        elif marker == TABLES:
            if not _are_tables(blob[start:position]):
                return None
        elif marker not in PASSED_OVER:
            return None
    return None


def _size(segment: bytes) -> dict[str, int] | None:
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3) or len(segment) != 6 + 3 * segment[5]:
        return None
    height, width = segment[1] << 8 | segment[2], segment[3] << 8 | segment[4]
    return {"width": width, "height": height, "components": segment[5]} if width and height else None


def _are_tables(segment: bytes) -> bool:
    """Whether `segment` is whole quantisation tables: a byte each that says of how many bits, and 64 values."""
    position = 0
    while position < len(segment):
        position += 65 if segment[position] < 16 else 129
    return position == len(segment)
