"""What webdataset, MosaicML streaming and LitData are given, and what is made of a sample of theirs.

Each gets one sample for each clip, in the order of the clips: a video that two clips use is there twice, so that every
loader reads onwards and may forget what it has delivered. Nothing is shuffled. Samples of our payload hold the two
blobs of concatenated JPEGs; only the frames wanted are decoded, by simplejpeg, into memory that was used before. Crops
are made by cv2 for all of them (`wanted.cropped`). None of them checks a checksum.

One thread is a loader without worker processes; more are worker processes, which are started and have delivered an
epoch before they are timed.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from torch import Tensor
from torch.utils.data import get_worker_info

from shards.record import Record
from shards.split import Split
from stmul.arenas import Arenas
from tests.bench.variants import Delivery, Epoch
from tests.bench.wanted import Pixels, Shown, Wanted, cropped, per_use

Clip = tuple[int, Any, Any]  # position; decoded: frames and planes each once; ready: (T, S, S, 3) and (T, 2L, S, S)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """What is to be loaded, by whatever loader."""

    split: Split
    wanted: Sequence[Wanted]
    batch: int
    size: int  # of a crop's side
    arenas: Arenas

    def finished(self, end: str, position: int, frames: Sequence[Pixels], planes: Sequence[Pixels]) -> Clip:
        """A clip from its frames and planes each once."""
        if end == "ready":
            return position, *cropped(frames, planes, self.wanted[position], self.size, self.arenas)
        if get_worker_info() is None:
            return position, frames, planes
        return position, self._together(frames), self._together(planes)  # a tensor travels without being pickled

    def from_blobs(self, end: str, position: int, rgb: tuple[bytes, Pixels], flow: tuple[bytes, Pixels]) -> Clip:
        """A clip from its video's blobs with the ends of their JPEGs: only what is wanted is decoded."""
        clip = self.wanted[position]
        frames = self._decoded(*rgb, clip.instants.frames, "RGB", (*clip.size, 3))
        planes = self._decoded(*flow, clip.images, "GRAY", (*clip.flow_size, 1))[..., 0]
        if end == "ready":
            return position, *cropped(frames.numpy(), planes.numpy(), clip, self.size, self.arenas)
        return position, frames, planes

    def _decoded(self, blob: bytes, ends: Pixels, numbers: Pixels, colour: str, shape: tuple[int, ...]) -> Tensor:
        view, starts = memoryview(blob), np.concatenate([[0], ends])
        found = self.arenas.take([len(numbers), *shape])
        for target, start, stop in zip(found.numpy(), starts[numbers].tolist(), ends[numbers].tolist(), strict=True):
            simplejpeg.decode_jpeg(view[start:stop], colorspace=colour, buffer=target)
        return found

    def _together(self, pictures: Sequence[Pixels]) -> Tensor:
        found = self.arenas.take([len(pictures), *pictures[0].shape])
        np.stack(pictures, out=found.numpy())
        return found

    def show(self, end: str, delivery: Delivery) -> Shown:
        """The pixels of a delivery."""
        for position, rgb, flow in delivery.content:
            if end == "ready":
                yield position, rgb.numpy(), flow.numpy()
            else:
                yield position, *per_use(self.wanted[position], np.asarray(rgb), np.asarray(flow))


def delivered(clips: list[Clip]) -> Delivery:
    """A batch, as every loader's collate function gives it: nothing is copied."""
    return Delivery(tuple(clip[0] for clip in clips), clips)


def frames_of(record: Record) -> dict[str, list[bytes]]:
    """The JPEGs of a record by what they are: RGB, flow to the right, flow downwards."""
    rgb, flow = ([bytes(frames[i]) for i in range(len(frames))] for frames in (record.rgb, record.flow))
    return {"rgb": rgb, "x": flow[0::2], "y": flow[1::2]}


def used(clip: Wanted, sample: Any, picture: Callable[[Any, str], Pixels]) -> tuple[list[Pixels], list[Pixels]]:
    """Frames and planes of a clip, each once, out of a sample's three lists of pictures."""
    frames = [picture(sample["rgb"][i], "RGB") for i in clip.instants.frames.tolist()]
    planes = [picture(sample[axis][k], "L") for k in clip.instants.pairs.tolist() for axis in "xy"]
    return frames, planes


def converted(picture: Any, mode: str) -> Pixels:
    """A picture that Pillow has opened or decoded, as an array."""
    return np.array(picture if picture.mode == mode else picture.convert(mode))


def loader_settings(workers: int) -> dict[str, Any]:
    """What is given to a DataLoader."""
    return {"num_workers": workers} | (
        {"persistent_workers": True, "multiprocessing_context": "fork"} if workers else {}
    )


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def loading(make: Callable[[int], Any], threads: int) -> Iterator[Epoch]:
    """A loader, open: one thread without workers; its workers are ended with it."""
    loader = make(0 if threads == 1 else threads)
    try:
        yield lambda: iter(loader)
    finally:
        for one in (loader, *getattr(loader, "pipeline", ())):  # webdataset's is a chain that begins with a DataLoader
            iterator = getattr(one, "_iterator", None)
            if iterator is not None:
                iterator._shutdown_workers()
        assert threads == 1 or not multiprocessing.active_children(), "worker processes are left"


def payload(record: Record) -> dict[str, Any]:
    """Our two blobs, with the ends of their JPEGs."""
    ends = {f"{name}_ends": frames.ends.astype("<u4").tobytes() for name, frames in streams(record)}
    return {name: bytes(frames.blob) for name, frames in streams(record)} | ends


def streams(record: Record) -> tuple[tuple[str, Any], ...]:
    """Both streams by name."""
    return ("rgb", record.rgb), ("flow", record.flow)


def from_payload(work: Work, end: str, sample: dict[str, Any]) -> Clip:
    """A clip from a sample as `payload` made it."""
    rgb, flow = ((sample[name], np.frombuffer(sample[f"{name}_ends"], "<u4")) for name in ("rgb", "flow"))
    return work.from_blobs(end, sample["position"], rgb, flow)
