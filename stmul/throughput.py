"""What this machine reads, decodes, cuts and delivers of a split, measured by calling what the trainer calls.

Each station is measured alone, then all together. Reading is measured twice over the same records: whether the first
pass met a cold disk or a page cache that was warm from earlier work cannot be known; that the second one met a warm
one can.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from statistics import median
from typing import Any, TypeVar, cast

import torch

from shards.record import Blob
from shards.split import Split
from shards.stores import Range, Store
from shards.stores.connect import is_url
from shards.stream import Clip, cores, in_order, read_clips
from stmul import clips as instants_of
from stmul.arenas import Arenas
from stmul.clips import Instants
from stmul.config import Config
from stmul.decode import Decoded, Loaded
from stmul.figures import Decoding, Delivery, Figures, Link, Moving, Pass, Reading
from stmul.loading import (
    batch_stream,
    clip_tensors,
    evaluation_clips,
    loader,
    reading_of,
    test_views,
    training_batch,
)

Wanted = Sequence[tuple[int, int, Instants]]  # one sub-batch
Clips = list[Clip[Instants]]
Task = TypeVar("Task")
Out = TypeVar("Out")
KEPT = 64 * 2**20  # bytes of JPEGs kept to decode from memory
DECODED = 4  # sub-batches kept to cut from memory
PROBE = 4 * 2**20  # bytes of a read that measures a connection
PROBES = 8  # of them at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """How the clips of a part are chosen, cut and delivered: as training does, or as testing does."""

    wanted: Sequence[Wanted]  # sub-batches; each record once
    threads: int
    cut: Callable[[Decoded], object]
    cutters: int  # threads that cut
    stream: Callable[[], Iterator[int]]  # a generator: makes what the network would be given; clips of each sub-batch


def training_work(split: Split, config: Config, stage: str, *, device: torch.device) -> Work:
    """The first epoch of `stage`, and its stream."""
    stream = batch_stream(split, config, stage, device=device)
    frames, size = split.index("train").frames(), stream.sub_batch
    wanted = []
    for start in range(0, stream.order.count, size):
        records = [(p, stream.order.record(p)) for p in range(start, min(start + size, stream.order.count))]
        wanted.append([(p, record, stream.choose(p, int(frames[record]))) for p, record in records])
    recipe, data = getattr(config.train, stage), config.data
    reading = reading_of(split, "train", data, clips=size, instants=data.frames if stage == "joint" else 1)

    def delivered() -> Iterator[int]:
        with stream:
            while True:
                for make in stream.step():
                    yield len(_finished(make()).positions)

    arenas = Arenas()
    cut = lambda decoded: training_batch(decoded, config, recipe, stage, arenas=arenas)  # noqa: E731
    cutters = reading.threads if device.type == "cpu" else 1
    return Work(wanted=wanted, threads=reading.threads, cut=cut, cutters=cutters, stream=delivered)


def testing_work(split: Split, config: Config, part: str, *, device: torch.device) -> Work:
    """Every record of `part` in the views that it is scored in."""
    settings, data = config.evaluate, config.data
    wanted = [
        [(record, record, instants_of.testing(int(n), frames=settings.frames, stack=data.stack))]
        for record, n in enumerate(split.index(part).frames())
    ]
    reading = reading_of(split, part, data, clips=1, instants=settings.frames)

    def cut(decoded: Decoded) -> None:
        for clip in decoded.clips:
            for view, size in test_views(config, clip.size):
                clip_tensors(decoded, clip, view, size=size)

    def delivered() -> Iterator[int]:
        with closing(evaluation_clips(split, part, config)) as clips:  # type: ignore[type-var]  # a generator
            for loaded in clips:
                decoded = loaded.to(device)
                cut(decoded)
                yield len(_finished(decoded).clips)

    return Work(wanted=wanted, threads=reading.threads, cut=cut, cutters=1, stream=delivered)


def measure(
    split: Split,
    config: Config,
    *,
    part: str,
    stage: str,
    seconds: float,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
) -> Figures:
    """The figures of `part`, `seconds` for each of some nine measurements; `say` hears which is under way.

    The part "train" is loaded as for training, another one as for testing. Passes over few records end sooner.
    """
    pinned = device.type == "cuda"
    if part == "train":
        work = training_work(split, config, stage, device=device)
    else:
        work = testing_work(split, config, part, device=device)
    counted = Counted(split.store)
    lent = Split(cast(Store, counted), split.manifest, folder=split.folder, indexes={part: split.index(part)})
    first, again, kept = [], [], Kept()
    half = -(-len(work.wanted) // 2)
    for threads, share in ((1, work.wanted[:half]), (work.threads, work.wanted[half:] or work.wanted)):
        say(f"reading, {threads} threads" if threads > 1 else "reading, 1 thread")
        first.append(read_pass(lent, part, share, counted, threads=threads, seconds=seconds, kept=kept))
        done = share[: -(-first[-1].clips // len(share[0]))]
        again.append(read_pass(lent, part, cycle(done), counted, threads=threads, seconds=seconds, kept=None))
    decoding = []
    on_gpu = config.data.decode == "gpu"
    for threads in (1,) if on_gpu else (1, work.threads):
        say(f"decoding, {threads} thread{'s' if threads > 1 else ''}")
        decoding.append(decode_pass(kept.clips, config, threads=threads, seconds=seconds, device=device))
    say("cropping")
    load = loader(config.data, pinned=pinned)
    decoded = [load(clips) for clips in kept.clips[:DECODED]]
    moving = None if device.type == "cpu" or on_gpu else move_pass(decoded, device, seconds)
    cutting = cut_pass([one.to(device) for one in decoded], work, seconds)
    say("all together")
    row = split.index(part).row(0)
    return Figures(
        location=split.location,
        store="remote" if is_url(split.location) else split.manifest.store,
        part=part,
        stage=stage if part == "train" else "testing",
        records=len(split.index(part)),
        cores=cores(),
        device=str(device),
        flow_scale=row.flow.width / row.rgb.width if len(row.flow.ends) else 1.0,
        decode=config.data.decode,
        first_pass=tuple(first),
        again=tuple(again),
        decoding=tuple(decoding),
        moving=moving,
        cutting=cutting,
        delivery=deliver(work, seconds),
        link=probed(split, part, seconds, say) if is_url(split.location) else None,
    )


class Counted:
    """A store that counts what is asked of it; in all else it is the one given."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self.bytes = self.reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, from the store."""
        with self._lock:
            self.bytes += sum(wanted.stop - wanted.start for wanted in ranges)
            self.reads += len(ranges)
        return self._store.fetch(ranges)


@dataclass(slots=True)
class Kept:
    """Clips that were read, up to a bound."""

    clips: list[Clips] = field(default_factory=list)
    bytes: int = 0

    def offer(self, clips: Clips, size: int) -> None:
        """Keeps the clips of `size` bytes, if there is room."""
        if not self.clips or self.bytes + size <= KEPT:
            self.clips.append(clips)
            self.bytes += size


def read_pass(
    split: Split,
    part: str,
    wanted: Iterable[Wanted],
    counted: Counted,
    *,
    threads: int,
    seconds: float,
    kept: Kept | None,
) -> Reading:
    """Reads sub-batches of `wanted` until they or `seconds` end."""
    bytes_before, reads_before = counted.bytes, counted.reads
    clips = used = 0
    clock = Clock()
    for some in passed(wanted, lambda one: read_clips(split, part, one), threads, seconds):
        clips += len(some)
        size = sum(len(jpeg) for clip in some for jpeg in (*clip.rgb, *clip.flow))
        used += size
        if kept is not None:
            kept.offer(some, size)
    spent, cpu = clock.spent()
    return Reading(
        threads=threads,
        clips=clips,
        seconds=spent,
        cpu=cpu,
        used=used,
        read=counted.bytes - bytes_before,
        reads=counted.reads - reads_before,
    )


def decode_pass(
    kept: Sequence[Clips], config: Config, *, threads: int, seconds: float, device: torch.device
) -> Decoding:
    """Decodes clips from memory for `seconds`: in threads on the CPU, or on `device` where the settings say so."""
    load = loader(config.data, pinned=device.type == "cuda")
    if config.data.decode == "gpu":
        work: Callable[[Clips], Loaded] = lambda clips: _finished(load(clips).to(device))  # noqa: E731
    else:
        work = load
    clips = images = pixels = flow_pixels = 0
    sizes = [
        (
            len(some),
            sum(len(clip.rgb) + len(clip.flow) for clip in some),
            sum(3 * len(clip.rgb) * clip.row.rgb.width * clip.row.rgb.height for clip in some),
            sum(len(clip.flow) * clip.row.flow.width * clip.row.flow.height for clip in some),
        )
        for some in kept
    ]
    clock = Clock()
    for size, _ in zip(cycle(sizes), passed(cycle(kept), work, threads, seconds), strict=False):
        clips, images = clips + size[0], images + size[1]
        pixels, flow_pixels = pixels + size[2] + size[3], flow_pixels + size[3]
    spent, cpu = clock.spent()
    return Decoding(
        threads=threads,
        clips=clips,
        seconds=spent,
        cpu=cpu,
        images=images,
        pixels=pixels,
        flow_pixels=flow_pixels,
    )


def move_pass(decoded: Sequence[Loaded], device: torch.device, seconds: float) -> Moving:
    """Copies decoded sub-batches to `device` for `seconds`."""
    clips = moved = 0
    clock = Clock()
    for one in until(cycle(decoded), seconds):
        there = _finished(one.to(device))
        clips, moved = clips + len(there.clips), moved + there.arena.nbytes
    spent, cpu = clock.spent()
    return Moving(threads=1, clips=clips, seconds=spent, cpu=cpu, moved=moved)


def cut_pass(decoded: Sequence[Decoded], work: Work, seconds: float) -> Pass:
    """Cuts decoded sub-batches where they lie for `seconds`, in as many threads as the trainer does."""

    def cut(one: Decoded) -> int:
        work.cut(one)
        return len(_finished(one).clips)

    cut(decoded[0])
    clock = Clock()
    clips = sum(passed(cycle(decoded), cut, work.cutters, seconds))
    spent, cpu = clock.spent()
    return Pass(threads=work.cutters, clips=clips, seconds=spent, cpu=cpu)


def deliver(work: Work, seconds: float) -> Delivery:
    """Takes sub-batches as the trainer does, for `seconds` from the first one on or to the end of the part."""
    clock, clips = Clock(), 0
    with closing(work.stream()) as stream:  # type: ignore[type-var]  # a generator
        next(stream)
        waited, _ = clock.spent()
        clock = Clock()
        for count in until(stream, seconds):
            clips += count
        spent, cpu = clock.spent()
        return Delivery(threads=work.threads, clips=clips, seconds=spent, cpu=cpu, first=waited)


def probed(split: Split, part: str, seconds: float, say: Callable[[str], None]) -> Link:
    """The round trip to the split's server, and what it sends in large reads."""
    say("connection")
    blob, _ = split.store.place(part, split.index(part).row(0), "rgb")
    size, trips = split.store.size(blob), []
    for start in until(islice(cycle(range(min(size, 64))), 15), seconds):
        clock = Clock()
        split.store.fetch([Range(blob, start, start + 1)])
        trips.append(clock.spent()[0])
    starts, done = cycle(range(0, size, PROBE)), 0
    clock = Clock()
    for start in until(starts, seconds):
        some = [start, *islice(starts, PROBES - 1)]
        ranges = [Range(blob, one, min(size, one + PROBE)) for one in dict.fromkeys(some)]
        done += sum(len(data) for data in split.store.fetch(ranges))
    return Link(round_trip=median(trips), bytes=done, seconds=clock.spent()[0])


class Clock:
    """A clock that is set when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def spent(self) -> tuple[float, float]:
        """Seconds since then, and seconds of the cores that this process had."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def passed(tasks: Iterable[Task], work: Callable[[Task], Out], threads: int, seconds: float) -> Iterator[Out]:
    """What `work` makes of the tasks in threads, none begun after `seconds`."""
    return in_order(until(tasks, seconds), work, threads=threads, ahead=2 * threads)


def until(tasks: Iterable[Task], seconds: float) -> Iterator[Task]:
    """The tasks, the first in any case, as long as `seconds` have not passed."""
    end = time.perf_counter() + seconds
    for task in tasks:
        yield task
        if time.perf_counter() >= end:
            return


def _finished(found: Out) -> Out:
    """The same, once the GPU has done it, where one is used."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return found


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Inside, Ctrl-C ends the process without a word, also in the middle of a read: nothing is there to be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
