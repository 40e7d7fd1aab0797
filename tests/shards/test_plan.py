"""Reads cover what is wanted, once, with no more between than pays; cutting them up gives the wanted bytes."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.index import StreamPlace
from shards.plan import Run, coalesce, cut, images_of, runs
from shards.stores import Range

SIZE = 400
BLOBS = {name: hashlib.shake_128(name.encode()).digest(SIZE) for name in ("a", "b", "c")}

ranges = st.builds(
    lambda blob, start, length: Range(blob, start, min(SIZE, start + length)),
    st.sampled_from(sorted(BLOBS)),
    st.integers(0, SIZE - 1),
    st.integers(0, 60),
)
wishes = st.lists(ranges, max_size=30)
gaps = st.integers(0, 80)


def alone(one: Range) -> bytes:
    return BLOBS[one.blob][one.start : one.stop]


def covered(parts: list[Range]) -> set[tuple[str, int]]:
    return {(one.blob, byte) for one in parts for byte in range(one.start, one.stop)}


@given(wishes, gaps)
def test_cut_gives_the_bytes_of_each_range_read_alone(wanted, gap):
    reads, pieces = coalesce(wanted, gap)
    assert [bytes(one) for one in cut([alone(read) for read in reads], pieces)] == [alone(one) for one in wanted]


@given(wishes, gaps)
def test_reads_are_sorted_and_never_overlap_or_come_closer_than_the_gap(wanted, gap):
    reads, _ = coalesce(wanted, gap)
    for one, next_one in pairwise(reads):
        assert one.blob < next_one.blob or (one.blob == next_one.blob and next_one.start - one.stop > gap)


@given(wishes, gaps)
def test_nothing_unwanted_is_read_but_gaps_below_the_threshold(wanted, gap):
    reads, _ = coalesce(wanted, gap)
    needed, read = covered(wanted), covered(reads)
    assert needed <= read
    assert (
        len(read) == sum(one.stop - one.start for one in reads) <= len(needed) + gap * max(0, len(wanted) - len(reads))
    )
    for one in reads:
        idle = "".join(".x"[(one.blob, byte) in needed] for byte in range(one.start, one.stop))
        # An empty range counts for nothing, but may stand in the middle of a gap.
        longest = gap * (1 + sum(other.start == other.stop for other in wanted))
        assert max(map(len, idle.split("x")), default=0) <= longest


@given(wishes)
def test_without_a_gap_only_neighbours_that_touch_are_merged(wanted):
    reads, _ = coalesce(wanted, 0)
    assert covered(reads) == covered(wanted)


def test_ranges_inside_others_repeated_or_out_of_order_are_fine():
    wanted = [Range("a", 50, 60), Range("a", 0, 100), Range("a", 50, 60), Range("a", 10, 20), Range("a", 110, 120)]
    reads, pieces = coalesce(wanted, 10)
    assert reads == [Range("a", 0, 120)]
    assert [(piece.start, piece.stop) for piece in pieces] == [(50, 60), (0, 100), (50, 60), (10, 20), (110, 120)]
    assert coalesce(wanted, 9)[0] == [Range("a", 0, 100), Range("a", 110, 120)]


def test_nothing_wanted_is_nothing_read():
    assert coalesce([], 100) == ([], [])
    assert cut([], []) == []


def test_what_is_cut_is_not_copied():
    read = bytearray(BLOBS["a"])
    _, pieces = coalesce([Range("a", 0, SIZE), Range("a", 3, 5)], 0)
    views = cut([read], pieces)
    read[3] ^= 255
    assert views[1][0] == read[3]


def stream(sizes: list[int]) -> StreamPlace:
    ends = np.cumsum(sizes).astype(np.uint32)
    return StreamPlace(
        offset=0, size=int(ends[-1]), width=1, height=1, components=1, ends=ends, crcs=np.zeros_like(ends)
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 100), st.data())
def test_runs_hold_the_images_asked_for_and_no_others(sizes, offset, data):
    place, whole = stream(sizes), bytes(range(256)) + bytes(range(256))
    images = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1))))
    found = runs("a", offset, place, np.array(images, dtype=np.int64))
    assert [image for run in found for image in range(run.first, run.last)] == images
    for one, other in pairwise(found):
        assert one.last < other.first
    cut_up = [
        bytes(jpeg)
        for run in found
        for jpeg in images_of(run, place, memoryview(whole)[run.range.start : run.range.stop])
    ]
    assert cut_up == [whole[offset + sum(sizes[:image]) : offset + sum(sizes[: image + 1])] for image in images]


def test_a_stack_of_flow_pairs_is_one_run():
    assert runs("a", 1000, stream([7] * 60), np.arange(10, 30)) == [Run(10, 30, Range("a", 1070, 1210))]


@given(wishes, gaps, st.floats(0, 2))
def test_what_is_read_without_being_wanted_stays_under_its_share(wanted, gap, waste):
    reads, pieces = coalesce(wanted, gap, waste)
    needed, read = covered(wanted), covered(reads)
    assert needed <= read
    assert len(read) <= (1 + waste) * len(needed)
    assert [bytes(one) for one in cut([alone(read) for read in reads], pieces)] == [alone(one) for one in wanted]


@given(wishes, gaps, st.floats(0, 2))
def test_the_smallest_gaps_are_closed_first(wanted, gap, waste):
    """Every gap that was closed is smaller than every one that could have been and was not."""
    apart, together = coalesce(wanted, 0)[0], coalesce(wanted, gap, waste)[0]
    starts = {(one.blob, one.start) for one in together}
    closed, left = [], []
    for one, next_one in pairwise(apart):
        if one.blob == next_one.blob:
            (left if (next_one.blob, next_one.start) in starts else closed).append(next_one.start - one.stop)
    assert max(closed, default=0) < min(left, default=SIZE)
