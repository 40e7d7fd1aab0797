"""From wanted frames to reads: which bytes, merged where one read is cheaper than two, and how to cut them up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.index import StreamPlace
from shards.record import Blob
from shards.stores import Range


@dataclass(frozen=True, slots=True)
class Piece:
    """A wanted range as a part of a read: bytes start .. stop of read number `read`."""

    read: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring images of a stream, numbers first .. last-1, and where they lie as a whole."""

    first: int
    last: int
    range: Range


def runs(blob: str, offset: int, place: StreamPlace, images: NDArray[np.int64]) -> list[Run]:
    """The runs that `images` make (ascending numbers of JPEGs of a stream that begins at `offset` of `blob`)."""
    if not len(images):
        return []
    apart = np.diff(images) != 1
    if place.starts is not None:  # loose frames: neighbours only where one begins where the other ends
        apart |= place.starts[images[1:]] != place.ends[images[:-1]]
    breaks = np.flatnonzero(apart)
    firsts, lasts = images[np.r_[0, breaks + 1]], images[np.r_[breaks, len(images) - 1]] + 1
    starts = [place.start(first) for first in firsts.tolist()]
    stops = place.ends[lasts - 1].tolist()
    return [
        Run(first, last, Range(blob, offset + start, offset + stop))
        for first, last, start, stop in zip(firsts.tolist(), lasts.tolist(), starts, stops, strict=True)
    ]


def images_of(run: Run, place: StreamPlace, data: memoryview) -> list[memoryview]:
    """The JPEGs of a run, one by one, out of its bytes; nothing is copied."""
    ends = place.ends[run.first : run.last].astype(np.int64)
    begin = place.start(run.first)
    edges = [0, *(ends - begin).tolist()]
    return [data[start:stop] for start, stop in pairwise(edges)]


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
