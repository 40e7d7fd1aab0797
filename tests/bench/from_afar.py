"""Ours from a URL: the very stream that the trainer takes clips from, by ranges, by whole shards, from the cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

from shards.access import Access
from shards.split import open_split
from stmul.loading import training_stream
from tests.bench.passes import Opened, Reader, Site
from tests.bench.variants import Delivery
from tests.bench.wanted import STAGE, Shown, Wanted, per_use


def readers(server: str) -> list[Reader]:
    """Ranges, and whole shards, whose second pass finds them in the cache."""
    common = "training_stream as the trainer opens it, {}, CRC of every frame checked, simplejpeg, data.* as they are"
    return [
        Reader(
            name="ours, ranges",
            kind="ours",
            server=server,
            settings=common.format("access: ranges"),
            open=partial(reading, "ranges"),
        ),
        Reader(
            name="ours, shards",
            kind="ours",
            server=server,
            settings=common.format("access: shards, an empty cache, then one that has them"),
            open=partial(reading, "shards"),
            whole=True,
            keeps=True,
        ),
    ]


@contextmanager
def reading(mode: Literal["auto", "ranges", "shards"], site: Site, count: int) -> Iterator[Opened]:
    """The stream of a training, taken in its steps until so many clips have come."""
    access = Access(mode=mode, cache=None if mode == "ranges" else site.folder)
    with (
        open_split(site.url, access=access) as split,
        training_stream(split, site.config, STAGE, pinned=False) as stream,
    ):
        opened = Opened(deliveries=(), show=partial(show, site.wanted))
        choose = stream.choose

        def noting(position: int, frames: int) -> object:
            opened.planned.add(position)
            return choose(position, frames)

        def deliveries() -> Iterator[Delivery]:
            left = count
            while left > 0:
                for loaded in stream.step():
                    yield Delivery(tuple(clip.position for clip in loaded.clips), loaded)
                    left -= len(loaded.clips)
                    if left <= 0:
                        return

        stream.choose = noting
        opened.deliveries = deliveries()
        yield opened


def show(wanted: tuple[Wanted, ...], delivery: Delivery) -> Shown:
    """The pixels of a decoded sub-batch."""
    decoded = delivery.content
    for clip in decoded.clips:
        pixels = decoded.rgb_FHWC(clip).numpy(), decoded.flow_PHW(clip).numpy()
        yield clip.position, *per_use(wanted[clip.position], *pixels)
