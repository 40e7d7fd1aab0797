"""What a few frames and flow pairs of a record show: how bright it is, whether anything moves, what is at the bound.

Which records are looked at, and which of their frames, is a function of the index alone, so that a second look sees the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from shards.errors import CorruptRecordError, FormatError, TruncatedShardError
from shards.format import INDEX, parse_index
from shards.index import Row
from shards.picture import decoded, no_bombs
from shards.plan import coalesce, cut
from shards.row import Outline
from shards.split import Split
from shards.stores import Range
from shards.stream import Clip, cores, in_order, read_clips

INSTANTS = 4  # frames and pairs looked at in each record
TOGETHER = 8  # records read at once
AFAR = 16  # threads where the bytes are far away
SHRINK = 8  # frames are looked at at this part of their size, which JPEGs give for little
STILL, BOUND = [127, 128], [0, 255]  # levels of flow: no motion, and +-20 px or more
DAMAGE = (CorruptRecordError, FormatError, TruncatedShardError)
BRIGHT = 99.5  # percentile of the levels that counts as the brightest: single pixels do not


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chosen:
    """The frames and pairs of a record that are looked at."""

    frames: NDArray[np.int64]
    pairs: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What was seen of one record."""

    part: str
    record: int
    name: str
    frames: int  # of the record
    even: bool  # looked at as one of an even sample, not because the index made it suspect
    seen: int = 0  # frames seen
    brightest: float = 0.0  # level that 99.5 % of all values seen are at most
    spread: float = 0.0  # standard deviation of the levels within a frame, of the most varied frame
    apart: float = 0.0  # levels between neighbouring frames seen, on average
    pairs: int = 0  # pairs seen
    still: float = 0.0  # share of the flow values seen that say no motion
    bound: float = 0.0  # share that lies at the bound: levels 0 and 255
    repeats: int = 0  # frames that are byte for byte the one before, of all
    source: str = ""  # SHA-256 of the file it was made from; "" unknown
    damage: str = ""  # why it could not be looked at; then nothing above is known


def to_look_at(outlines: Sequence[Outline], count: int) -> tuple[list[int], list[int]]:
    """At most `count` positions among `outlines`: an even sample, and those whose sizes make them suspect, ascending.

    Frames that are black or of one colour give small JPEGs, flow at the bound gives large ones. A split is permuted,
    so positions at equal distances are a fair sample.
    """
    total = len(outlines)
    if count >= total:
        return list(range(total)), []
    suspects = count // 4  # of each kind
    small = sorted(range(total), key=lambda i: outlines[i].rgb_size / _pixels(outlines[i]))[:suspects]
    large = sorted(range(total), key=lambda i: -outlines[i].flow_size / _pixels(outlines[i]))[:suspects]
    even = (np.arange(count - 2 * suspects, dtype=np.int64) * total // max(count - 2 * suspects, 1)).tolist()
    return even, sorted({*small, *large} - {*even})


def look(
    split: Split, wanted: Sequence[tuple[str, int, bool]], progress: Callable[[int, int], None] | None = None
) -> Iterator[Look]:
    """A look at each record of `wanted`: part, number, whether it is of the even sample; in their order.

    `progress(done, total)` counts records. A record that is damaged gives a Look that says so.
    """
    of_parts = [list(entries) for _, entries in groupby(wanted, key=lambda entry: entry[0])]
    batches = [part[start : start + TOGETHER] for part in of_parts for start in range(0, len(part), TOGETHER)]
    threads = cores() if split.folder is not None else AFAR
    done = 0
    with no_bombs():
        for looks in in_order(batches, lambda batch: _looks(split, batch), threads=threads, ahead=4 * threads):
            yield from looks
            done += len(looks)
            if progress is not None:
                progress(done, len(wanted))


def spread_over(count: int, among: int) -> NDArray[np.int64]:
    """`count` numbers of 0 .. among - 1, in the middle of equal pieces; each once where there are fewer."""
    count = min(count, among)
    return (2 * np.arange(count, dtype=np.int64) + 1) * among // (2 * max(count, 1))


def read_chosen(split: Split, part: str, rows: Sequence[Row], count: int = INSTANTS) -> list[Clip[Chosen]]:
    """`count` frames and pairs of each record, spread over it, undecoded. Raises as `shards.stream.read_clips`."""
    wanted = [
        (
            row.record,
            row.record,
            Chosen(frames=spread_over(count, row.frames), pairs=spread_over(count, row.frames - 1)),
        )
        for row in rows
    ]
    return read_clips(split, part, wanted)


def _looks(split: Split, batch: Sequence[tuple[str, int, bool]]) -> list[Look]:
    try:
        return _looked(split, batch)
    except DAMAGE:  # of one of them: which?
        return [_alone(split, entry) for entry in batch]


def _alone(split: Split, entry: tuple[str, int, bool]) -> Look:
    part, record, even = entry
    try:
        return _looked(split, [entry])[0]
    except DAMAGE as error:
        outline = split.index(part).outline(record)
        return Look(part=part, record=record, name=outline.name, frames=outline.frames, even=even, damage=str(error))


def _looked(split: Split, batch: Sequence[tuple[str, int, bool]]) -> list[Look]:
    """Looks at records of one part."""
    part = batch[0][0]
    rows = split.index(part).rows([record for _, record, _ in batch])
    sources = _sources(split, part, rows)
    clips = read_chosen(split, part, rows)
    return [_seen(clip, part, even, source) for clip, source, (_, _, even) in zip(clips, sources, batch, strict=True)]


def _sources(split: Split, part: str, rows: Sequence[Row]) -> list[str]:
    """SHA-256 of the file that each record was made from, as its header says; "" where it says none."""
    headed = [row for row in rows if not row.loose]  # a tar with a member per frame has no headers
    places = [Range(*split.store.member(part, row, INDEX)) for row in headed]
    reads, pieces = coalesce(places, 0)
    found = {}
    for row, data in zip(headed, cut(split.store.fetch(reads), pieces), strict=True):
        sha256 = parse_index(data, f"{split.location}: {part}: record {row.record} ({row.name})").source.sha256
        found[row.record] = sha256 if sha256.strip("0") else ""
    return [found.get(row.record, "") for row in rows]


def _seen(clip: Clip[Chosen], part: str, even: bool, source: str) -> Look:
    row, name = clip.row, f"{part}: record {clip.row.record} ({clip.row.name})"
    rgb, flow = row.rgb, row.flow
    frames = [
        decoded(jpeg, (rgb.width, rgb.height), "RGB", f"{name}: frame {number}", shrink=SHRINK).astype(np.float32)
        for jpeg, number in zip(clip.rgb, clip.chosen.frames.tolist(), strict=True)
    ]
    counts = np.zeros(256, np.int64)
    for number, jpeg in enumerate(clip.flow):
        pair = clip.chosen.pairs.item(number // 2)
        levels = decoded(jpeg, (flow.width, flow.height), "L", f"{name}: flow {'xy'[number % 2]} of pair {pair}")
        counts += np.bincount(levels.ravel(), minlength=256)
    values = max(int(counts.sum()), 1)
    same = (rgb.crcs[1:] == rgb.crcs[:-1]) & (np.diff(rgb.ends - rgb.begins()) == 0) if row.frames > 1 else []
    return Look(
        part=part,
        record=row.record,
        name=row.name,
        frames=row.frames,
        even=even,
        seen=len(frames),
        brightest=max(float(np.percentile(frame, BRIGHT)) for frame in frames),
        spread=max(float(frame.std(axis=(0, 1)).max()) for frame in frames),
        apart=float(np.mean([np.abs(b - a).mean() for a, b in pairwise(frames)])) if len(frames) > 1 else 0.0,
        pairs=len(clip.chosen.pairs),
        still=float(counts[STILL].sum()) / values,
        bound=float(counts[BOUND].sum()) / values,
        repeats=int(np.count_nonzero(same)),
        source=source,
    )


def _pixels(outline: Outline) -> int:
    """Pixels of all frames of a record; at least one."""
    return max(outline.frames * outline.width * outline.height, 1)
