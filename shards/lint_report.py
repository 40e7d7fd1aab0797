"""A lint on one page: findings with pictures, balance of classes, lengths, flow at the bound.

The page is one HTML file that needs no network and no script. Equal input gives equal bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.findings import CLIPPED, INSTANTS, LEVELS, NEAR, STACK, Finding, Kind, Lint
from shards.looks import read_chosen
from shards.picture import Picture, decoded, flow_colour, legend, no_bombs, shown_flow
from shards.split import Split
from shards.whole import whole

LISTED = 1000  # findings of a kind that the page lists
OPEN = 12  # ... that it shows without being asked
PICTURES = 6  # findings of a kind that have a picture
TILE, GAP = 96, 3  # pixels: height of a frame in a picture, and what lies between two
WHEEL = 20.0  # pixels of flow at the edge of the wheel of colours: the bound
BINS = 40  # of the histogram of lengths
USUAL = 99.0  # percentile of the lengths where its axis ends
BOUNDS = (0.001, NEAR, CLIPPED)  # between the shares of flow at the bound that are told apart


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """The findings of a kind as the page has them."""

    about: Kind
    advice: str
    count: int
    first: Sequence[Finding]
    more: Sequence[Finding]
    pictures: Sequence[tuple[str, str]]  # caption, data URI


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """How often a class is in each part."""

    name: str
    bars: Sequence[tuple[str, int, float]]  # part, records, share of the part over the largest share of all


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """A histogram of the lengths in a part; x and heights from 0 to 1."""

    part: str
    bars: Sequence[tuple[int, int, int, float]]  # from and to so many frames (0: or more), records, height
    marks: Sequence[tuple[int, float]]  # frames, x
    last: int  # frames where the axis ends
    facts: str


def write_page(path: Path, lint: Lint, split: Split) -> None:
    """Writes the page on `lint`, of `split`, to `path`: whole or absent."""
    page = _page(lint, split)
    with whole(path) as file:
        file.write(page.encode())


def _page(lint: Lint, split: Split) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("lint.html.j2").render(
        lint=lint,
        levels=[(level, lint.count(level)) for level in LEVELS],
        shown=[_shown(about, found, lint, split) for about, found in lint.by_kind()],
        legend=_uri(legend(WHEEL), "PNG"),
        classes=_class_rows(lint),
        lengths=_lengths(lint),
        bounds=_bounds(lint),
        stack=STACK,
        instants=INSTANTS,
    )


def _shown(about: Kind, found: Sequence[Finding], lint: Lint, split: Split) -> Shown:
    pictured = [one for one in found if one.record >= 0][:PICTURES] if about.pictured else []
    pictures = [(f"{one.part}: {one.subject}", _uri(strip(split, one.part, one.record), "JPEG")) for one in pictured]
    return Shown(
        about=about,
        advice=about.advice.replace("SPLIT", lint.location),
        count=len(found),
        first=found[:OPEN],
        more=found[OPEN:LISTED],
        pictures=pictures,
    )


def strip(split: Split, part: str, record: int) -> Picture:
    """Frames spread over a record side by side, and below each its flow to the next, (H, W, 3).

    Raises ShardError where they cannot be read.
    """
    row = split.index(part).row(record)
    clip = read_chosen(split, part, [row])[0]
    rgb, flow, name = row.rgb, row.flow, f"{part}: record {record} ({row.name})"
    with no_bombs():
        frames = [decoded(jpeg, (rgb.width, rgb.height), "RGB", name) for jpeg in clip.rgb]
        levels = [decoded(jpeg, (flow.width, flow.height), "L", name) for jpeg in clip.flow]
    flows = [flow_colour(shown_flow(np.stack(pair, axis=2)), WHEEL) for pair in zip(*[iter(levels)] * 2, strict=True)]
    rows = [_side_by_side(pictures) for pictures in (frames, flows) if pictures]
    height, width = sum(one.shape[0] + GAP for one in rows) - GAP, max(one.shape[1] for one in rows)
    whole_strip, top = np.full((height, width, 3), 255, np.uint8), 0
    for one in rows:
        whole_strip[top : top + one.shape[0], : one.shape[1]] = one
        top += one.shape[0] + GAP
    return whole_strip


def _side_by_side(pictures: Sequence[Picture]) -> Picture:
    """Pictures as tiles in a row, on white."""
    tiles = []
    for picture in pictures:
        width = max(1, round(picture.shape[1] * TILE / picture.shape[0]))
        tile = Image.fromarray(picture).convert("RGB").resize((width, TILE), Image.Resampling.BOX)
        tiles += [np.full((TILE, GAP, 3), 255, np.uint8), np.asarray(tile)]
    return np.concatenate(tiles[1:], axis=1)


def _uri(picture: Picture, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _class_rows(lint: Lint) -> list[ClassRow]:
    """The classes that have records, the most frequent first."""
    shares = {part.name: part.counts_K / max(part.counts_K.sum(), 1) for part in lint.parts}
    largest = max((float(share.max(initial=0.0)) for share in shares.values()), default=0.0) or 1.0
    totals_K = sum((part.counts_K for part in lint.parts), np.zeros(len(lint.classes), np.int64))
    return [
        ClassRow(
            name=lint.classes[label],
            bars=[
                (part.name, int(part.counts_K[label]), float(shares[part.name][label]) / largest) for part in lint.parts
            ],
        )
        for label in np.argsort(-totals_K, kind="stable").tolist()
    ]


def _lengths(lint: Lint) -> list[Lengths]:
    """The lengths of each part that has records, on one axis."""
    parts = [part for part in lint.parts if len(part.frames_N)]
    if not parts:
        return []
    usual = float(np.percentile(np.concatenate([part.frames_N for part in parts]), USUAL))
    width = max(1, -(-max(round(usual), INSTANTS + 1) // BINS))  # frames of a bin
    last = BINS * width
    return [
        Lengths(
            part=part.name,
            bars=_bars(part.frames_N, width),
            marks=[(mark, mark / last) for mark in (STACK, INSTANTS)],
            last=last,
            facts=f"{part.frames_N.min():,} to {part.frames_N.max():,}, median {np.median(part.frames_N):g}",
        )
        for part in parts
    ]


def _bars(frames_N: NDArray[np.int64], width: int) -> list[tuple[int, int, int, float]]:
    counts = np.bincount(np.minimum(frames_N // width, BINS - 1), minlength=BINS).tolist()
    highest = max(counts)
    return [
        (bin_ * width, 0 if bin_ == BINS - 1 else (bin_ + 1) * width - 1, count, count / highest)
        for bin_, count in enumerate(counts)
    ]


def _bounds(lint: Lint) -> list[tuple[str, list[tuple[str, int, float]]]]:
    """How many records of the even sample have how much flow at the bound: range, then part, records, their share."""
    edges = (-1.0, 0.0, *BOUNDS, 1.0)
    names = [f"{100 * edge:g}" for edge in BOUNDS]
    titles = ["none", f"up to {names[0]} %", *(f"{a} to {b} %" for a, b in pairwise(names))]
    titles.append(f"over {names[-1]} %")
    rows = []
    for title, (low, high) in zip(titles, pairwise(edges), strict=True):
        bars = []
        for part in lint.parts:
            count = int(np.count_nonzero((part.bounds_M > low) & (part.bounds_M <= high)))
            bars.append((part.name, count, count / max(len(part.bounds_M), 1)))
        rows.append((title, bars))
    return rows
