"""From wanted frames to reads: which bytes, merged where one read is cheaper than two, and how to cut them up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shards.index import StreamPlace
from shards.record import Blob
from shards.stores import Range


@dataclass(frozen=True, slots=True)
class Piece:
    """A wanted range as a part of a read: bytes start .. stop of read number `read`."""

    read: int
    start: int
    stop: int


def image_ranges(blob: str, offset: int, place: StreamPlace, images: Sequence[int]) -> list[Range]:
    """The byte ranges of `images` (numbers of JPEGs of a stream that begins at `offset` of `blob`)."""
    ends = place.ends
    return [Range(blob, offset + (int(ends[image - 1]) if image else 0), offset + int(ends[image])) for image in images]


def coalesce(wanted: Sequence[Range], gap: int) -> tuple[list[Range], list[Piece]]:
    """Reads that cover `wanted`, sorted and never overlapping, and for each wanted range its piece, in its order.

    Two neighbours in a blob share a read where at most `gap` unwanted bytes lie between them.
    """
    reads: list[Range] = []
    pieces: list[Piece | None] = [None] * len(wanted)
    for number in sorted(range(len(wanted)), key=lambda number: (wanted[number].blob, wanted[number].start)):
        one = wanted[number]
        if reads and reads[-1].blob == one.blob and one.start - reads[-1].stop <= gap:
            last = reads[-1]
            reads[-1] = Range(last.blob, last.start, max(last.stop, one.stop))
        else:
            reads.append(one)
        start = one.start - reads[-1].start
        pieces[number] = Piece(len(reads) - 1, start, start + one.stop - one.start)
    return reads, [piece for piece in pieces if piece is not None]


def cut(blobs: Sequence[Blob], pieces: Sequence[Piece]) -> list[memoryview]:
    """The wanted bytes, in the order they were asked for, out of what was read; nothing is copied."""
    views = [memoryview(blob) for blob in blobs]
    return [views[piece.read][piece.start : piece.stop] for piece in pieces]
