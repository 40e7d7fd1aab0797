"""Ours, the reference and pure decoding as variants: each delivers the wanted clips to an end point."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image

from shards.split import Split, open_split
from shards.stores import Range
from shards.stream import in_order, pair_images, read_clips
from stmul.config import Config
from stmul.loading import batch_stream, training_stream
from tests.bench.wanted import PART, STAGE, Pixels, Shown, Wanted, per_use, record_of, seen

ENDS = ("decoded", "ready")


class Delivery(NamedTuple):
    """Some clips in memory."""

    positions: tuple[int, ...]
    content: Any  # the variant knows


Epoch = Callable[[], Iterator[Delivery]]  # every wanted clip once


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Variant:
    """One way of loading the wanted clips."""

    name: str
    kind: str  # "reference", "floor", "as documented", "our payload", "ours"
    settings: str  # in words
    bytes_read: float  # per clip
    open: Callable[[str, int], AbstractContextManager[Epoch]]  # of an end point and a number of threads
    show: Callable[[str, Delivery], Shown] | None  # a delivery's pixels, as `Wanted` wants them; None: it keeps none
    ends: tuple[str, ...] = ENDS
    by_cv2: bool = False  # its crops are made by cv2
    processes: bool = False  # more threads than one are worker processes, which need an epoch to come up


def sub_batches(wanted: Sequence[Wanted], size: int) -> list[Sequence[Wanted]]:
    """The clips in the units that are delivered."""
    return [wanted[start : start + size] for start in range(0, len(wanted), size)]


def each(tasks: Sequence[Any], work: Callable[[Any], Any], threads: int) -> Iterator[Any]:
    """`work(task)` in order; threads as the trainer's stream has them, one: without any."""
    return map(work, tasks) if threads == 1 else in_order(tasks, work, threads=threads, ahead=max(2, 2 * threads))


def ours(name: str, split: Split, wanted: Sequence[Wanted], config: Config) -> Variant:
    """What the trainer does: threads read and decode sub-batches for a GPU, and crop them too where there is none."""
    tasks, device = sub_batches(wanted, config.train.sub_batch), torch.device("cpu")
    with training_stream(split, config, STAGE, pinned=False) as stream:
        decode = stream.then
    with batch_stream(split, config, STAGE, device=device) as batches:
        crop = batches.then

    def read(clips: Sequence[Wanted]) -> list[Any]:
        return read_clips(split, PART, [(clip.position, clip.record, clip.instants) for clip in clips])

    def epoch(end: str, threads: int) -> Iterator[Delivery]:
        if end == "ready":
            for make in each(tasks, lambda clips: crop(read(clips)), threads):
                batch = make()
                yield Delivery(batch.positions, batch)
        else:
            for loaded in each(tasks, lambda clips: decode(read(clips)), threads):
                yield Delivery(tuple(clip.position for clip in loaded.clips), loaded)

    def show(end: str, delivery: Delivery) -> Shown:
        for number, position in enumerate(delivery.positions):
            if end == "ready":
                batch = delivery.content
                rgb_THWC = batch.rgb_BTCHW[number].permute(0, 2, 3, 1)
                yield position, rgb_THWC.numpy(), batch.flow_BTCHW[number].numpy()
            else:
                decoded, clip = delivery.content, delivery.content.clips[number]
                pixels = decoded.rgb_FHWC(clip).numpy(), decoded.flow_PHW(clip).numpy()
                yield position, *per_use(wanted[position], *pixels)

    return Variant(
        name=name,
        kind="ours",
        settings=f"sub-batches of {config.train.sub_batch} clips, ranges merged over gaps of up to"
        f" {split.store.gap} bytes, CRC of every frame checked, simplejpeg",
        bytes_read=bytes_fetched(split, wanted, config.train.sub_batch),
        open=opener(epoch),
        show=show,
    )


def opener(epoch: Callable[[str, int], Iterator[Delivery]]) -> Callable[[str, int], AbstractContextManager[Epoch]]:
    """How a variant is opened that keeps nothing between epochs."""

    @contextmanager
    def opened(end: str, threads: int) -> Iterator[Epoch]:
        yield partial(epoch, end, threads)

    return opened


class Counting:
    """A store that counts what is fetched from it."""

    def __init__(self, store: Any) -> None:
        self._store, self.bytes = store, 0

    def fetch(self, ranges: Sequence[Range]) -> Any:
        self.bytes += sum(wanted.stop - wanted.start for wanted in ranges)
        return self._store.fetch(ranges)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def bytes_fetched(split: Split, wanted: Sequence[Wanted], sub_batch: int) -> float:
    """Bytes that our stream asks its store for, per clip."""
    with open_split(split.location) as counted:
        counted.store = store = Counting(counted.store)
        for clips in sub_batches(wanted, sub_batch):
            read_clips(counted, PART, [(clip.position, clip.record, clip.instants) for clip in clips])
        return store.bytes / len(wanted)


def loose_files(split: Split, wanted: Sequence[Wanted], folder: Path) -> None:
    """The videos of the wanted clips as one JPEG file per frame and plane, as the earlier implementation keeps them."""
    for clip in {clip.record: clip for clip in wanted}.values():
        video = record_of(split, clip)
        for stream, frames in (("rgb", video.rgb), ("flow", video.flow)):
            place = folder / str(clip.record) / stream
            place.mkdir(parents=True)
            for number in range(len(frames)):
                (place / f"{number}.jpg").write_bytes(frames[number])


def references(folder: Path, wanted: Sequence[Wanted], config: Config) -> tuple[Variant, Variant]:
    """The earlier implementation's way on the files in `folder`: every use of a frame is opened, decoded, cut, resized
    and mirrored by Pillow, and goes into a float tensor; and the same with a uint8 tensor.
    """

    def images(clip: Wanted) -> Iterator[tuple[int, int, Image.Image]]:
        place = folder / str(clip.record)
        for t, number in enumerate(clip.instants.rgb.tolist()):
            yield t, -1, Image.open(place / "rgb" / f"{number}.jpg").convert("RGB")
        for t, pairs in enumerate(clip.instants.flow):
            for channel, number in enumerate(pair_images(pairs).tolist()):
                yield t, channel, Image.open(place / "flow" / f"{number}.jpg").convert("L")

    def decoded(clip: Wanted) -> Delivery:
        return Delivery((clip.position,), [np.array(image) for _, _, image in images(clip)])

    def ready(kind: torch.dtype, clip: Wanted) -> Delivery:
        size, (instants, stack) = config.data.crop, clip.instants.flow.shape
        rgb = torch.empty(instants, size, size, 3, dtype=kind)
        flow = torch.empty(instants, 2 * stack, size, size, dtype=kind)
        for t, channel, image in images(clip):
            pixels = torch.from_numpy(seen(image, clip, size))
            if channel < 0:
                rgb[t].copy_(pixels)
            else:
                flow[t, channel].copy_(255 - pixels if clip.view.mirror and channel % 2 == 0 else pixels)
        return Delivery((clip.position,), (rgb, flow))

    def epoch(kind: torch.dtype, end: str, threads: int) -> Iterator[Delivery]:
        return each(wanted, decoded if end == "decoded" else partial(ready, kind), threads)

    def show(end: str, delivery: Delivery) -> Shown:
        position = delivery.positions[0]
        if end == "ready":
            yield position, delivery.content[0].numpy(), delivery.content[1].numpy()
        else:
            frames = len(wanted[position].instants.rgb)
            planes = np.stack(delivery.content[frames:])
            yield position, np.stack(delivery.content[:frames]), planes.reshape(frames, -1, *planes.shape[1:])

    used = sum(len(jpeg) for jpeg, _, _ in jpegs_of(folder, wanted, once=False)) / len(wanted)
    settings = "a file for each frame and plane, every use opened, decoded, cut and resized by Pillow"
    shared = {"kind": "reference", "bytes_read": used, "show": show}
    return (
        Variant(
            name="loose files, Pillow, float",
            settings=f"{settings}; ready: a float32 tensor",
            open=opener(partial(epoch, torch.float32)),
            **shared,
        ),
        Variant(
            name="loose files, Pillow, uint8",
            settings=f"{settings}; ready: a uint8 tensor",
            open=opener(partial(epoch, torch.uint8)),
            ends=("ready",),
            **shared,
        ),
    )


Jpeg = tuple[bytes, str, tuple[int, ...]]  # itself, its colour space, its shape when decoded


def jpegs_of(folder: Path, wanted: Sequence[Wanted], *, once: bool) -> list[Jpeg]:
    """The JPEGs of the wanted clips, in memory; `once`: what several instants of a clip share is there once."""
    found = []
    for clip in wanted:
        instants, place = clip.instants, folder / str(clip.record)
        frames = instants.frames if once else instants.rgb
        images = clip.images if once else pair_images(instants.flow.reshape(-1))
        for stream, numbers, colour, shape in (
            ("rgb", frames, "RGB", (*clip.size, 3)),
            ("flow", images, "GRAY", (*clip.flow_size, 1)),
        ):
            found += [((place / stream / f"{i}.jpg").read_bytes(), colour, shape) for i in numbers.tolist()]
    return found


def pure(folder: Path, wanted: Sequence[Wanted], config: Config, *, once: bool) -> Variant:
    """The JPEG decoder alone: bytes in memory, into one buffer of each size, which stays in the cache."""
    jpegs = {clip.position: jpegs_of(folder, [clip], once=once) for clip in wanted}
    tasks, buffers = sub_batches(wanted, config.train.sub_batch), threading.local()

    def work(clips: Sequence[Wanted]) -> Delivery:
        kept: dict[tuple[int, ...], Pixels] = buffers.__dict__
        for clip in clips:
            for jpeg, colour, shape in jpegs[clip.position]:
                buffer = kept.get(shape)
                if buffer is None:
                    buffer = kept[shape] = np.empty(shape, np.uint8)
                simplejpeg.decode_jpeg(jpeg, colorspace=colour, buffer=buffer)
        return Delivery(tuple(clip.position for clip in clips), None)

    return Variant(
        name=f"pure decoding, {'each frame once' if once else 'every use'}",
        kind="floor",
        settings="simplejpeg on bytes in memory, into one buffer for each size of frame; nothing is kept",
        bytes_read=sum(len(jpeg) for some in jpegs.values() for jpeg, _, _ in some) / len(wanted),
        open=opener(lambda end, threads: each(tasks, work, threads)),
        show=None,
        ends=("decoded",),
    )
