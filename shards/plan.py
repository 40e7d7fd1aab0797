"""From wanted frames to reads: which bytes, merged where one read is cheaper than two, and how to cut them up again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

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


def coalesce(wanted: Sequence[Range], gap: int, waste: float = inf) -> tuple[list[Range], list[Piece]]:
    """Reads that cover `wanted`, sorted and never overlapping, and for each wanted range its piece, in its order.

    Two neighbours in a blob share a read where at most `gap` unwanted bytes lie between them, the closest first, as
    long as all that is unwanted is at most the share `waste` of what is wanted.
    """
    order = sorted(range(len(wanted)), key=lambda number: (wanted[number].blob, wanted[number].start))
    reads = _joined([wanted[number] for number in order], 0)
    between = Counter(b.start - a.stop for a, b in pairwise(reads) if a.blob == b.blob and b.start - a.stop <= gap)
    allowed, widest = waste * sum(read.stop - read.start for read in reads), 0
    for width in sorted(between):
        allowed -= width * between[width]
        if allowed < 0:
            break
        widest = width
    reads = _joined(reads, widest)
    pieces: list[Piece | None] = [None] * len(wanted)
    read = 0
    for number in order:
        one = wanted[number]
        while reads[read].blob != one.blob or reads[read].stop < one.stop:
            read += 1
        start = one.start - reads[read].start
        pieces[number] = Piece(read, start, start + one.stop - one.start)
    return reads, [piece for piece in pieces if piece is not None]


def _joined(ranges: Sequence[Range], gap: int) -> list[Range]:
    """`ranges`, sorted, with those joined that lie at most `gap` apart."""
    joined: list[Range] = []
    for one in ranges:
        last = joined[-1] if joined else None
        if last is not None and last.blob == one.blob and one.start - last.stop <= gap:
            joined[-1] = Range(last.blob, last.start, max(last.stop, one.stop))
        else:
            joined.append(one)
    return joined


def cut(blobs: Sequence[Blob], pieces: Sequence[Piece]) -> list[memoryview]:
    """The wanted bytes, in the order they were asked for, out of what was read; nothing is copied."""
    views = [memoryview(blob) for blob in blobs]
    return [views[piece.read][piece.start : piece.stop] for piece in pieces]
