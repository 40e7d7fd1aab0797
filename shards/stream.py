"""Clips in their order, read ahead and checked, not yet decoded.

Order, choice of frames and reads are decided by pure functions (`order`, `plan`, the caller's choice); here they meet
the store. The unit of work is the sub-batch: one thread reads it in few merged reads, checks the CRC of every frame
used and hands it to the caller's `then` (decoding), so that reading and decoding of many sub-batches overlap.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.errors import CorruptRecordError, ShardError
from shards.format import crc32c
from shards.index import Row, StreamPlace
from shards.order import Order, State, sub_batches
from shards.plan import coalesce, cut, image_ranges
from shards.split import Split
from shards.stores import Range, Stream


class Chosen(Protocol):
    """The frames and flow pairs of a clip, each once, ascending."""

    @property
    def frames(self) -> NDArray[np.int64]: ...

    @property
    def pairs(self) -> NDArray[np.int64]: ...


C = TypeVar("C", bound=Chosen)
Task = TypeVar("Task")
Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip(Generic[C]):
    """The JPEGs of one clip, undecoded, and what they are."""

    position: int  # in the endless stream; in evaluation the record's number
    row: Row
    chosen: C
    rgb: tuple[memoryview, ...]  # one for each of chosen.frames
    flow: tuple[memoryview, ...]  # two, x then y, for each of chosen.pairs


def read_clips(split: Split, part: str, wanted: Sequence[tuple[int, int, C]]) -> list[Clip[C]]:
    """The clips (position, record, chosen frames), in order, from as few reads as pay; every byte used is checked.

    Raises CorruptRecordError (after one more try for the damaged frames), TruncatedShardError, UnreachableError.
    """
    index = split.index(part)
    rows = [index.row(record) for _, record, _ in wanted]
    ranges: list[Range] = []
    for row, (_, _, chosen) in zip(rows, wanted, strict=True):
        if len(chosen.frames):
            ranges += image_ranges(*split.store.place(part, row, "rgb"), row.rgb, chosen.frames.tolist())
        if len(chosen.pairs):
            images = pair_images(chosen.pairs).tolist()
            ranges += image_ranges(*split.store.place(part, row, "flow"), row.flow, images)
    reads, pieces = coalesce(ranges, split.store.gap)
    jpegs = iter(zip(cut(split.store.fetch(reads), pieces), ranges, strict=True))
    clips = []
    for row, (position, _, chosen) in zip(rows, wanted, strict=True):
        images = pair_images(chosen.pairs).tolist()
        rgb = [_checked(split, row, "rgb", row.rgb, image, next(jpegs)) for image in chosen.frames.tolist()]
        flow = [_checked(split, row, "flow", row.flow, image, next(jpegs)) for image in images]
        clips.append(Clip(position=position, row=row, chosen=chosen, rgb=tuple(rgb), flow=tuple(flow)))
    return clips


def pair_images(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The image numbers x0 y0 x1 y1 ... of flow pairs."""
    return (2 * pairs[:, None] + np.arange(2)).reshape(-1)


def _ranges(
    split: Split, part: str, row: Row, stream: Stream, place: StreamPlace, images: NDArray[np.int64]
) -> list[Range]:
    if not len(images):
        return []
    blob, offset = split.store.place(part, row, stream)
    return image_ranges(blob, offset, place, images.tolist())


def _checked(
    split: Split, row: Row, stream: Stream, place: StreamPlace, image: int, found: tuple[memoryview, Range]
) -> memoryview:
    data, where = found
    expected = int(place.crcs[image])
    if crc32c(data) == expected:
        return data
    data = memoryview(split.store.fetch([where])[0])  # a transfer may have gone wrong: once more, this frame alone
    if (crc := crc32c(data)) == expected:
        return data
    frame = f"frame {image}" if stream == "rgb" else f"pair {image // 2} {'xy'[image % 2]}"
    raise CorruptRecordError(
        f"{split.location}: {where.blob}: record {row.record} ({row.name}), {stream} {frame}, bytes {where.start} to"
        f" {where.stop}: checksum {crc:08x}, expected {expected:08x}."
        f" Find all damage with: stmul shards verify {split.location}"
    )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(tasks: Iterable[Task], work: Callable[[Task], Out], *, threads: int, ahead: int) -> Iterator[Out]:
    """`work(task)` for each task, in order, done by `threads` threads at most `ahead` tasks early.

    Closing the iterator (or an error, or Ctrl-C) cancels what has not begun and waits for what has.
    """
    pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="stmul-read")
    waiting: deque[Future[Out]] = deque()
    remaining = iter(tasks)
    try:
        for task in remaining:
            waiting.append(pool.submit(work, task))
            if len(waiting) > max(1, ahead):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class TrainingStream(Generic[C, Out]):
    """The endless stream of a part's sub-batches for one rank; each is what `then` makes of its clips.

    `choose(position, frames of the video)` says which frames. `state()` counts what has been *consumed*: a stream made
    with `start=state` goes on with the very next position. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        split: Split,
        part: str,
        order: Order,
        *,
        batch: int,
        sub_batch: int,
        choose: Callable[[int, int], C],
        then: Callable[[list[Clip[C]]], Out],
        threads: int,
        start: State | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.split, self.part, self.order = split, part, order
        self.batch, self.sub_batch, self.rank, self.world = batch, sub_batch, rank, world
        self.choose, self.then = choose, then
        self.steps = 0
        if start is not None:
            start.must_fit(self.state())
            self.steps = start.position // batch
        ahead = max(2, 2 * threads)
        self._outs = in_order(self._tasks(self.steps), self._work, threads=threads, ahead=ahead)

    def _tasks(self, step: int) -> Iterator[range]:
        while True:
            yield from sub_batches(step, batch=self.batch, sub_batch=self.sub_batch, rank=self.rank, world=self.world)
            step += 1

    def _work(self, positions: range) -> Out:
        frames = self.split.index(self.part).frames()
        wanted = []
        for position in positions:
            record = self.order.record(position)
            wanted.append((position, record, self.choose(position, int(frames[record]))))
        return self.then(read_clips(self.split, self.part, wanted))

    def step(self) -> Iterator[Out]:
        """The sub-batches of the next step; the step counts as consumed once the last of them has been taken.

        Raises what reading raised; after that, and once closed, ShardError.
        """
        mine = len(sub_batches(0, batch=self.batch, sub_batch=self.sub_batch, rank=self.rank, world=self.world))
        for left in range(mine, 0, -1):
            try:
                out = next(self._outs)
            except StopIteration:
                raise ShardError(f"{self.split.location}: this stream has ended: it was closed, or failed") from None
            self.steps += left == 1
            yield out
        self.steps += not mine

    def state(self) -> State:
        """Where the stream stands: whole steps consumed."""
        order = self.order.kind if self.order.kind == "full" else f"windowed:{self.order.window}"
        return State(
            digest=self.split.manifest.parts[self.part].digest,
            seed=self.order.seed,
            order=order,
            batch=self.batch,
            sub_batch=self.sub_batch,
            position=self.steps * self.batch,
        )

    def close(self) -> None:
        """Ends reading: nothing is left behind."""
        self._outs.close()  # type: ignore[attr-defined]  # a generator

    def __enter__(self) -> TrainingStream[C, Out]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
