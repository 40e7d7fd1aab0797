"""Clips in their order, read ahead and checked, not yet decoded.

Order, choice of frames and reads are decided by pure functions (`order`, `plan`, the caller's choice); here they meet
the store. The unit of work is the sub-batch: one thread reads it in few merged reads, checks the CRC of every frame
used and hands it to the caller's `then` (decoding), so that reading and decoding of many sub-batches overlap. From afar
reading runs further ahead than that, in threads of its own (`ahead`).

A damaged frame is read once more; then its clip is an error, or left out with its place kept: never another video.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.ahead import Ahead, Reading, Room, at_once
from shards.errors import CorruptRecordError, ShardError, TruncatedShardError
from shards.format import crc32c
from shards.index import Row, StreamPlace
from shards.order import Order, State, sub_batches
from shards.plan import Run, coalesce, cut, images_of, runs
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
Got = TypeVar("Got")
Out = TypeVar("Out")
Skip = Callable[[Row, ShardError], None]  # is told of a damaged clip that is left out; may raise instead

DAMAGE = (CorruptRecordError, TruncatedShardError)  # what reading again does not cure, and another clip need not have
GRACE = 0.5  # seconds that threads have to end in; one that hangs in a read is left behind
PATIENCE = 30.0  # seconds after which it is said what is being waited for

_log = logging.getLogger("shards")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip(Generic[C]):
    """The JPEGs of one clip, undecoded, and what they are."""

    position: int  # in the endless stream; in evaluation the record's number
    row: Row
    chosen: C
    rgb: tuple[memoryview, ...]  # one for each of chosen.frames
    flow: tuple[memoryview, ...]  # two, x then y, for each of chosen.pairs
    valid: bool = True  # False: damaged and left out; there are no JPEGs


def read_clips(
    split: Split, part: str, wanted: Sequence[tuple[int, int, C]], room: Room | None = None
) -> list[Clip[C]]:
    """The clips (position, record, chosen frames), in order, from as few reads as pay; every byte used is checked.

    `room` is told how many bytes they take before they are read. Raises CorruptRecordError (after one more try for the
    damaged frames), TruncatedShardError, UnreachableError.
    """
    index, store = split.index(part), split.store
    rows = index.rows([record for _, record, _ in wanted])
    planned: list[tuple[Row, StreamPlace, Stream, list[Run]]] = []
    for row, (_, _, chosen) in zip(rows, wanted, strict=True):
        images = pair_images(chosen.pairs)
        planned.append((row, row.rgb, "rgb", runs(*store.place(part, row, "rgb"), row.rgb, chosen.frames)))
        planned.append((row, row.flow, "flow", runs(*store.place(part, row, "flow"), row.flow, images)))
    reads, pieces = coalesce([run.range for *_, found in planned for run in found], store.gap, waste=store.waste)
    if room is not None:
        room(sum(read.stop - read.start for read in reads))
    data = iter(cut(store.fetch(reads), pieces))
    streams = iter(
        [
            tuple(jpeg for run in found for jpeg in _checked(split, row, stream, place, run, next(data)))
            for row, place, stream, found in planned
        ]
    )
    return [
        Clip(position=position, row=row, chosen=chosen, rgb=next(streams), flow=next(streams))
        for row, (position, _, chosen) in zip(rows, wanted, strict=True)
    ]


def pair_images(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """The image numbers x0 y0 x1 y1 ... of flow pairs."""
    return (2 * pairs[:, None] + np.arange(2)).reshape(-1)


def _checked(
    split: Split, row: Row, stream: Stream, place: StreamPlace, run: Run, data: memoryview
) -> list[memoryview]:
    jpegs = images_of(run, place, data)
    crcs = place.crcs[run.first : run.last].tolist()
    for number, (jpeg, crc) in enumerate(zip(jpegs, crcs, strict=True)):
        if crc32c(jpeg) != crc:
            jpegs[number] = _again(split, row, stream, place, run, run.first + number)
    return jpegs


def _again(split: Split, row: Row, stream: Stream, place: StreamPlace, run: Run, image: int) -> memoryview:
    """A frame that was damaged, read once more and alone: a transfer may have gone wrong."""
    begin, start, stop = place.start(run.first), place.start(image), int(place.ends[image])
    where = Range(run.range.blob, run.range.start + start - begin, run.range.start + stop - begin)
    data = memoryview(split.store.again(where))
    expected = int(place.crcs[image])
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


def in_order(
    tasks: Iterable[Task],
    work: Callable[[Task], Out],
    *,
    threads: int,
    ahead: int,
    stop: Future[None] | None = None,
    what: str = "",
) -> Iterator[Out]:
    """`work(task)` for each task, in order, done by `threads` threads at most `ahead` tasks early.

    Closing the iterator (or an error, or Ctrl-C) drops what has not begun and waits a moment for what has: threads are
    daemons, so that one that hangs in a read (a network folder, a server) keeps nobody from ending. Another thread ends
    it by completing `stop`: it then stops waiting, too. Where nothing comes for long, that is said of `what`.
    """
    stop = stop or Future()
    todo: SimpleQueue[tuple[Future[Out], Task] | None] = SimpleQueue()
    pool = [
        threading.Thread(target=_serve, args=(todo, work), name=f"stmul-read-{number}", daemon=True)
        for number in range(max(1, threads))
    ]
    waiting: deque[Future[Out]] = deque()
    try:
        for thread in pool:
            thread.start()
        for task in tasks:
            future: Future[Out] = Future()
            waiting.append(future)
            todo.put((future, task))
            if len(waiting) > max(1, ahead):
                if _stopped(waiting[0], stop, what):
                    return
                yield waiting.popleft().result()
        while waiting:
            if _stopped(waiting[0], stop, what):
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for _ in pool:
            todo.put(None)
        deadline = time.monotonic() + GRACE
        for thread in pool:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))


def _stopped(first: Future[Any], stop: Future[None], what: str) -> bool:
    """Whether all has been stopped, once `first` is done or that is so."""
    begun = time.monotonic()
    while not wait((first, stop), timeout=PATIENCE, return_when=FIRST_COMPLETED).done:
        _log.warning("%s: nothing for %.0f s; still waiting", what or "reading", time.monotonic() - begun)
    return stop.done()


def _serve(todo: SimpleQueue[tuple[Future[Out], Task] | None], work: Callable[[Task], Out]) -> None:
    while (item := todo.get()) is not None:
        future, task = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(task))
            except BaseException as error:  # whatever it is: it is raised where the result is asked for
                future.set_exception(error)
        del item, future, task  # a result that nobody waits for must not live on while the next is awaited


def staged(
    tasks: Iterable[Task],
    read: Callable[[Task, Room], Got],
    work: Callable[[Reading[Task, Got]], Out],
    *,
    threads: int,
    ahead: int,
    read_ahead: int,
    stop: Future[None] | None = None,
    what: str = "",
) -> Iterator[Out]:
    """What `work` makes of each task and what was read for it, in order, as `in_order` does it.

    Up to `read_ahead` bytes are read before they are worked on; with 0, each thread reads what it works on.
    """
    far = Ahead(read_ahead) if read_ahead else None

    def worked(reading: Reading[Task, Got]) -> Out:
        try:
            return work(reading)
        finally:
            reading.done()

    readings = at_once(tasks, read) if far is None else far.of(tasks, read)
    try:
        yield from in_order(readings, worked, threads=threads, ahead=ahead, stop=stop, what=what)
    finally:
        if far is not None:
            far.close()


class TrainingStream(Generic[C, Out]):
    """The endless stream of a part's sub-batches for one rank; each is what `then` makes of its clips.

    `choose(position, frames of the video)` says which frames. `read_ahead` bytes are read before they are wanted, where
    that pays; 0: the `threads` read what they decode. `state()` counts what has been *consumed*: a stream made
    with `start=state` goes on with the very next position, whatever the threads and ranks. A damaged clip raises where
    it is asked for; with `skip` it is told to that, and its place is kept without it. Use as a context manager, or call
    `close`.
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
        ahead: int | None = None,
        read_ahead: int = 0,
        start: State | None = None,
        rank: int = 0,
        world: int = 1,
        skip: Skip | None = None,
    ) -> None:
        self.split, self.part, self.order = split, part, order
        self.batch, self.sub_batch, self.rank, self.world = batch, sub_batch, rank, world
        self.choose, self.then, self.skip = choose, then, skip
        self.steps = 0
        if start is not None:
            start.must_fit(self.state())
            self.steps = start.position // batch
        ahead = max(2, 2 * threads) if ahead is None else ahead  # sub-batches
        self._stop, self._turn = Future[None](), threading.Lock()
        self._outs = staged(
            self._tasks(self.steps),
            self._read,
            self._work,
            threads=threads,
            ahead=ahead,
            read_ahead=read_ahead,
            stop=self._stop,
            what=f"{split.location}: {part}",
        )

    def _tasks(self, step: int) -> Iterator[range]:
        while True:
            yield from sub_batches(step, batch=self.batch, sub_batch=self.sub_batch, rank=self.rank, world=self.world)
            step += 1

    def _wanted(self, positions: range) -> list[tuple[int, int, C]]:
        frames = self.split.index(self.part).frames()
        records = [(position, self.order.record(position)) for position in positions]
        return [(position, record, self.choose(position, int(frames[record]))) for position, record in records]

    def _read(self, positions: range, room: Room) -> list[Clip[C]]:
        return read_clips(self.split, self.part, self._wanted(positions), room)

    def _work(self, reading: Reading[range, list[Clip[C]]]) -> Out:
        try:
            return self.then(reading.result())
        except DAMAGE:
            if self.skip is None:
                raise
        return self.then([self._whole_or_blank(one, self.skip) for one in self._wanted(reading.task)])

    def _whole_or_blank(self, wanted: tuple[int, int, C], skip: Skip) -> Clip[C]:
        position, record, chosen = wanted
        row = self.split.index(self.part).row(record)  # without its row nothing is known of a clip: that is an error
        try:
            (clip,) = read_clips(self.split, self.part, [wanted])
            self.then([clip])  # its bytes may be as they were written and yet no picture
            return clip
        except DAMAGE as error:
            skip(row, error)
            return Clip(position=position, row=row, chosen=chosen, rgb=(), flow=(), valid=False)

    def step(self) -> Iterator[Out]:
        """The sub-batches of the next step; the step counts as consumed once the last of them has been taken.

        Raises what reading raised; after that, and once closed, ShardError.
        """
        mine = len(sub_batches(0, batch=self.batch, sub_batch=self.sub_batch, rank=self.rank, world=self.world))
        for left in range(mine, 0, -1):
            try:
                with self._turn:
                    out = next(self._outs)
            except StopIteration:
                raise ShardError(f"{self.split.location}: this stream has ended: it was closed, or failed") from None
            self.steps += left == 1
            yield out
        self.steps += not mine

    def state(self) -> State:
        """Where the stream stands: whole steps consumed."""
        return State(
            digest=self.split.manifest.parts[self.part].digest,
            seed=self.order.seed,
            order=self.order.name,
            batch=self.batch,
            sub_batch=self.sub_batch,
            position=self.steps * self.batch,
        )

    def close(self) -> None:
        """Ends reading: nothing is left behind. Any thread may call it; one that waits for a step gets ShardError."""
        with suppress(InvalidStateError):  # closed before
            self._stop.set_result(None)
        if self._turn.acquire(timeout=2 * GRACE):
            try:
                self._outs.close()  # type: ignore[attr-defined]  # a generator
            finally:
                self._turn.release()

    def __enter__(self) -> TrainingStream[C, Out]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
