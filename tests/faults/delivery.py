"""Clips as a training takes them out of a split, to be compared with those of another place, byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.access import Access
from shards.draws import Draws
from shards.order import Order, State
from shards.split import Split, open_split
from shards.stream import Clip, Skip, TrainingStream

BATCH, SUB_BATCH = 20, 4
SECRETS = ("reader", "secret", "hidden-", "token-", "AKIDFAULT")  # parts of all that is secret in these tests


@dataclass(frozen=True, eq=False)
class Chosen:
    """The frames and pairs of a clip."""

    frames: np.ndarray
    pairs: np.ndarray


@dataclass(frozen=True)
class Delivered:
    """A clip, by its place in the stream: what it is and the SHA-256 of its bytes, each JPEG with its length."""

    position: int
    name: str
    label: int
    sha256: str
    valid: bool = True


def choose(position: int, n: int) -> Chosen:
    """Some frames and pairs, ascending: others at every position."""
    draws = Draws.of("delivery", position)
    return Chosen(np.sort(draws.permutation(n)[:3]), np.sort(draws.permutation(n - 1)[:4]))


def delivered(clips: list[Clip[Chosen]]) -> list[Delivered]:
    """What has come of a sub-batch."""
    return [
        Delivered(
            clip.position,
            clip.row.name,
            clip.row.label,
            hashlib.sha256(
                b"".join(len(jpeg).to_bytes(4, "little") + jpeg for jpeg in clip.rgb + clip.flow)
            ).hexdigest(),
            clip.valid,
        )
        for clip in clips
    ]


def order_of(split: Split, kind: str = "full") -> Order:
    """The order of the training part."""
    index = split.index("train")
    return Order(count=len(index), seed=7, kind=kind, shard_of=index.shard_of(), window=3)  # type: ignore[arg-type]


def stream(
    split: Split,
    *,
    kind: str = "full",
    threads: int = 16,
    read_ahead: int = 0,
    start: State | None = None,
    skip: Skip | None = None,
    rank: int = 0,
    world: int = 1,
) -> TrainingStream[Chosen, list[Delivered]]:
    """The training part of a split, read for good."""
    return TrainingStream(
        split,
        "train",
        order_of(split, kind),
        batch=BATCH,
        sub_batch=SUB_BATCH,
        choose=choose,
        then=delivered,
        threads=threads,
        read_ahead=read_ahead,
        start=start,
        skip=skip,
        rank=rank,
        world=world,
    )


def steps(reading: TrainingStream[Chosen, list[Delivered]], count: int) -> Iterator[Delivered]:
    """The clips of the next `count` steps."""
    for _ in range(count):
        for clips in reading.step():
            yield from clips


def taken(
    location: str | Path, count: int, *, kind: str = "full", access: Access | None = None, **more: Any
) -> list[Delivered]:
    """The first clips of a training from `location`: `count` steps of them."""
    with open_split(location, access=access or Access()) as split, stream(split, kind=kind, **more) as reading:
        return list(steps(reading, count))
