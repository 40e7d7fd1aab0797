"""The floor: ranged GETs of exactly the bytes of the frames used, their places known, many at once, nothing checked.

What comes is decoded as ours does it, or only taken. No manifest and no index is read, nothing is merged.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

import numpy as np

from shards.plan import Run, images_of, runs
from shards.row import Row, StreamPlace
from shards.split import Split
from shards.stores import Range
from shards.stream import Clip, cores, in_order, pair_images
from stmul.clips import Instants
from stmul.loading import loader
from tests.bench.from_afar import show
from tests.bench.passes import Opened, Reader, Site, digest
from tests.bench.variants import Delivery, sub_batches
from tests.bench.wanted import PART, Wanted, opened, per_use, record_of

Got = list[Future[memoryview]]
Getting = Callable[[Site, Sequence[Range]], AbstractContextManager[Got]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Exact:
    """What of a clip is fetched: runs of neighbouring JPEGs of both streams."""

    position: int
    row: Row
    chosen: Instants
    rgb: tuple[Run, ...]
    flow: tuple[Run, ...]

    @property
    def ranges(self) -> list[Range]:
        """All of them, in order."""
        return [run.range for run in (*self.rgb, *self.flow)]

    @property
    def used(self) -> int:
        """Bytes of the frames used."""
        return sum(one.stop - one.start for one in self.ranges)


def exact(split: Split, wanted: Sequence[Wanted]) -> tuple[Exact, ...]:
    """What is fetched of each clip."""
    index, rows = split.index(PART), dict[int, Row]()
    found = []
    for clip in wanted:
        row = rows.setdefault(clip.record, index.row(clip.record))
        found.append(
            Exact(
                position=clip.position,
                row=row,
                chosen=clip.instants,
                rgb=tuple(runs(*split.store.place(PART, row, "rgb"), row.rgb, clip.instants.frames)),
                flow=tuple(runs(*split.store.place(PART, row, "flow"), row.flow, pair_images(clip.instants.pairs))),
            )
        )
    return tuple(found)


def readers(server: str, *, obstore: Sequence[int], urllib3: Sequence[int], undecoded: bool) -> list[Reader]:
    """Through obstore and through urllib3, with so many requests at once; and through obstore undecoded."""
    found = []
    for name, get, some in (
        ("obstore", by_obstore, obstore),
        ("urllib3 threads", by_urllib3, urllib3),
    ):
        found += [
            Reader(
                name=f"plain GETs, {name}, {many}",
                kind="floor",
                server=server,
                settings=f"{name}, {many} requests at once, one for each run of neighbouring frames; decoded by as many"
                " threads as ours",
                open=partial(reading, partial(get, many), True),
            )
            for many in some
        ]
    found += [
        Reader(
            name=f"plain GETs, obstore, {many}, undecoded",
            kind="floor",
            server=server,
            settings="the same, and the bytes are let go",
            open=partial(reading, partial(by_obstore, many), False),
            pixels=False,
        )
        for many in obstore[:undecoded]
    ]
    return found


@contextmanager
def reading(get: Getting, decoded: bool, site: Site, count: int) -> Iterator[Opened]:
    """The clips, out of what `get` fetches."""
    ranges = [one for clip in site.exact[:count] for one in clip.ranges]
    with get(site, ranges) as futures:
        coming = iter(futures)
        batches = [
            [(clip, [next(coming) for _ in clip.ranges]) for clip in some]
            for some in sub_batches(site.exact[:count], site.config.train.sub_batch)
        ]
        load = loader(site.config.data, pinned=False)

        def work(batch: list[tuple[Exact, Got]]) -> Delivery:
            clips = [together(clip, [future.result() for future in parts]) for clip, parts in batch]
            loaded = load(clips) if decoded else None
            for _, parts in batch:
                parts.clear()
            return Delivery(tuple(clip.position for clip in clips), loaded)

        threads = cores()
        deliveries = in_order(batches, work, threads=threads, ahead=2 * threads)
        yield Opened(deliveries=deliveries, show=partial(show, site.wanted) if decoded else None)


def together(clip: Exact, parts: Sequence[memoryview]) -> Clip[Instants]:
    """The JPEGs of a clip, undecoded, out of its ranges."""

    def cut(some: Sequence[Run], place: StreamPlace, data: Sequence[memoryview]) -> tuple[memoryview, ...]:
        return tuple(jpeg for run, part in zip(some, data, strict=True) for jpeg in images_of(run, place, part))

    return Clip(
        position=clip.position,
        row=clip.row,
        chosen=clip.chosen,
        rgb=cut(clip.rgb, clip.row.rgb, parts[: len(clip.rgb)]),
        flow=cut(clip.flow, clip.row.flow, parts[len(clip.rgb) :]),
    )


@contextmanager
def by_obstore(at_once: int, site: Site, ranges: Sequence[Range]) -> Iterator[Got]:
    """Through obstore's asyncio functions in a thread."""
    client, futures, coming = _client(site), [Future[memoryview]() for _ in ranges], iter(range(len(ranges)))

    async def one_after_the_other() -> None:
        for number in coming:
            wanted = ranges[number]
            try:
                found = await client.get_range_async(wanted.blob, start=wanted.start, end=wanted.stop)
                futures[number].set_result(memoryview(found))
            except Exception as error:
                futures[number].set_exception(error)

    async def all_of_them() -> None:
        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))

    thread = threading.Thread(target=lambda: asyncio.run(all_of_them()))
    thread.start()
    yield futures
    thread.join()


def _client(site: Site):  # type: ignore[no-untyped-def]
    from obstore.store import HTTPStore, S3Store

    url = urlsplit(site.url)
    options = {"allow_http": True}
    if url.scheme != "s3":
        return HTTPStore(site.url, client_options=options)
    return S3Store(
        url.netloc,
        prefix=url.path.strip("/"),
        endpoint=site.environ["AWS_ENDPOINT_URL"],
        region=site.environ["AWS_REGION"],
        access_key_id=site.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=site.environ["AWS_SECRET_ACCESS_KEY"],
        client_options=options,
    )


@contextmanager
def by_urllib3(at_once: int, site: Site, ranges: Sequence[Range]) -> Iterator[Got]:
    """Through urllib3 in threads, each connection kept; S3 unsigned, from a bucket open to all."""
    import urllib3

    url = urlsplit(site.url)
    base = f"{site.environ['AWS_ENDPOINT_URL']}/{url.netloc}{url.path}" if url.scheme == "s3" else site.url
    pool = urllib3.PoolManager(maxsize=at_once, block=True)

    def get(wanted: Range) -> memoryview:
        headers = {"Range": f"bytes={wanted.start}-{wanted.stop - 1}"}
        answer = pool.request("GET", f"{base}/{wanted.blob}", headers=headers)
        if answer.status != 206:
            raise OSError(f"{wanted.blob}: status {answer.status}")
        return memoryview(answer.data)

    with ThreadPoolExecutor(at_once) as threads:
        yield [threads.submit(get, one) for one in ranges]
        threads.shutdown(cancel_futures=True)


def digests(split: Split, wanted: Sequence[Wanted]) -> dict[int, str]:
    """What the pixels of clips must be, by Pillow from the records themselves."""
    found = {}
    for clip in wanted:
        record = record_of(split, clip)
        frames = [np.array(opened(record.rgb[i], "RGB")) for i in clip.instants.frames.tolist()]
        planes = [np.array(opened(record.flow[i], "L")) for i in clip.images.tolist()]
        found[clip.position] = digest(*per_use(clip, frames, planes))
    return found
