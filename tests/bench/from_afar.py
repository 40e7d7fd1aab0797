"""Ours from a URL: the very stream that the trainer takes clips from, by ranges, by whole shards, from the cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from shards.record import Blob
from shards.stores import Range, Store
from stmul.loading import training_stream
from stmul.opening import open_shards
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
    changed = {"access": mode, "cache": "" if mode == "ranges" else str(site.folder)}
    config = site.config.model_copy(update={"data": site.config.data.model_copy(update=changed)})
    with open_shards(config.data, site.url) as split, training_stream(split, config, STAGE, pinned=False) as stream:
        opened = Opened(deliveries=(), show=partial(show, site.wanted))
        split.store = store = Counting(split.store)

        def deliveries() -> Iterator[Delivery]:
            left = count
            while left > 0:
                for loaded in stream.step():
                    yield Delivery(tuple(clip.position for clip in loaded.clips), loaded)
                    left -= len(loaded.clips)
                    if left <= 0:
                        return

        opened.deliveries = deliveries()
        opened.fetched = lambda: store.fetches * config.train.sub_batch
        yield opened


class Counting:
    """A store that counts how often it is asked: once for each sub-batch, in the order of the plan."""

    def __init__(self, store: Store) -> None:
        self._store, self.fetches, self._lock = store, 0, threading.Lock()

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """What the store gives."""
        with self._lock:
            self.fetches += 1
        return self._store.fetch(ranges)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def show(wanted: tuple[Wanted, ...], delivery: Delivery) -> Shown:
    """The pixels of a decoded sub-batch."""
    decoded = delivery.content
    for clip in decoded.clips:
        pixels = decoded.rgb_FHWC(clip).numpy(), decoded.flow_PHW(clip).numpy()
        yield clip.position, *per_use(wanted[clip.position], *pixels)
