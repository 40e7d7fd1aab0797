"""The clips that every variant loads, and what their pixels must be.

Shapes: T instants, L flow pairs at each, F frames and P pairs each once, H W positions, S the crop's side.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from shards.format import decode as decode_record
from shards.record import Record
from shards.split import Split
from shards.stream import pair_images
from stmul.arenas import Arenas
from stmul.augment import View
from stmul.clips import NO_PAIR, Instants
from stmul.config import Config
from stmul.loading import training_stream, training_view
from stmul.resize import resize_matrix

PART, STAGE = "train", "joint"
Pixels = NDArray[np.uint8]
Answer = dict[str, tuple[NDArray[Any], NDArray[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Wanted:
    """One clip: what is read of which record, and what is cut out of it."""

    position: int
    record: int
    name: str
    frames: int  # of its video
    instants: Instants
    size: tuple[int, int]  # height and width of its RGB frames
    flow_size: tuple[int, int]
    view: View

    @property
    def images(self) -> NDArray[np.int64]:
        """The flow images to read, each once, ascending: x and y of each pair."""
        return pair_images(self.instants.pairs)

    @property
    def rgb_of(self) -> NDArray[np.int64]:
        """(T,) which of the F frames."""
        return np.searchsorted(self.instants.frames, self.instants.rgb)

    @property
    def flow_of(self) -> NDArray[np.int64]:
        """(T, L) which of the P pairs."""
        return np.searchsorted(self.instants.pairs, self.instants.flow)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """The view's left, top, right and bottom in a picture of `size` (height, width)."""
        down, across = size[0] / self.size[0], size[1] / self.size[1]
        view = self.view
        return view.left * across, view.top * down, view.right * across, view.bottom * down


def wanted_clips(split: Split, config: Config, count: int) -> tuple[Wanted, ...]:
    """The first `count` clips that the trainer would load from these shards."""
    index = split.index(PART)
    found, numbers = [], index.frames()
    with training_stream(split, config, STAGE, pinned=False) as stream:
        for position in range(count):
            record = stream.order.record(position)
            row, instants = index.row(record), stream.choose(position, int(numbers[record]))
            if (instants.flow == NO_PAIR).any():
                raise SystemExit(f"{row.name}: a video of one frame has no motion to load; take other shards")
            size, flow_size = (row.rgb.height, row.rgb.width), (row.flow.height, row.flow.width)
            view = training_view(config, config.train.joint, STAGE, position, size, flow=flow_size)
            found.append(
                Wanted(
                    position=position,
                    record=record,
                    name=row.name,
                    frames=row.frames,
                    instants=instants,
                    size=size,
                    flow_size=flow_size,
                    view=view,
                )
            )
    return tuple(found)


def record_of(split: Split, clip: Wanted) -> Record:
    """The record of a clip, all of it, checked."""
    return decode_record(split.read(PART, clip.record))


def opened(jpeg: bytes | memoryview, mode: str) -> Image.Image:
    """The picture that Pillow makes of a JPEG."""
    return Image.open(io.BytesIO(jpeg)).convert(mode)


def per_use(
    clip: Wanted, frames: Sequence[NDArray[Any]], planes: Sequence[NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Frames and planes each once, as each instant uses them: (T, H, W, 3) and (T, 2L, H, W)."""
    rgb = np.stack([frames[i] for i in clip.rgb_of])
    flow = np.stack([[planes[2 * i + axis] for i in pairs for axis in (0, 1)] for pairs in clip.flow_of])
    return rgb, flow


def expected(split: Split, clip: Wanted, size: int) -> Answer:
    """What a clip must be, slowly: decoded by Pillow, cut and resized by the matrices that define crops.

    decoded: (T, H, W, 3) and (T, 2L, H, W). ready: (T, S, S, 3) and (T, 2L, S, S), rounded; ready by cv2: the same
    with its linear interpolation.
    """
    record = record_of(split, clip)
    frames = [np.array(opened(record.rgb[i], "RGB")) for i in clip.instants.frames.tolist()]
    planes = [np.array(opened(record.flow[i], "L")) for i in clip.images.tolist()]
    by_cv2 = cropped(frames, planes, clip, size, Arenas())
    ready = [defined(frame, clip, size) for frame in frames], [defined(plane, clip, size) for plane in planes]
    if clip.view.mirror:
        ready[1][0::2] = [255 - plane for plane in ready[1][0::2]]
    return {
        "decoded": per_use(clip, frames, planes),
        "ready": per_use(clip, *ready),
        "ready by cv2": (by_cv2[0].numpy(), by_cv2[1].numpy()),
    }


def defined(picture: Pixels, clip: Wanted, size: int) -> NDArray[np.int64]:
    """The clip's view of a frame by the matrices."""
    height, width = picture.shape[:2]
    left, top, right, bottom = clip.box((height, width))
    rows, columns = resize_matrix(height, top, bottom, size), resize_matrix(width, left, right, size)
    made = np.einsum("yh,hw...,xw->yx...", rows.double(), picture.astype(np.float64), columns.double(), optimize=True)
    return np.rint(made[:, ::-1] if clip.view.mirror else made).astype(np.int64)


def seen(image: Image.Image, clip: Wanted, size: int) -> Pixels:
    """The clip's view of a frame by Pillow, as crops are defined: the box is cut out, then resized with BILINEAR."""
    left, top, right, bottom = clip.box((image.height, image.width))
    x, y = math.floor(left), math.floor(top)  # of a pixel that the box cuts, the whole is seen
    image = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    box = left - x, top - y, right - x, bottom - y
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if clip.view.mirror else image)


def cropped(
    frames: Sequence[Pixels], planes: Sequence[Pixels], clip: Wanted, size: int, arenas: Arenas
) -> tuple[Tensor, Tensor]:
    """Frames and planes each once, through the clip's view by cv2: uint8 (T, S, S, 3) and (T, 2L, S, S).

    Its linear interpolation does not average where it shrinks, so it is less work than what is defined; boxes that
    begin within a pixel begin at the nearest. Pictures that instants share are resized once.
    """
    rgb = arenas.take([len(frames), size, size, 3])
    flow = arenas.take([len(planes), size, size])
    for pictures, targets in ((frames, rgb.numpy()), (planes, flow.numpy())):
        left, top, right, bottom = (round(edge) for edge in clip.box(pictures[0].shape[:2]))
        for picture, target in zip(pictures, targets, strict=True):
            cv2.resize(picture[top:bottom, left:right], (size, size), dst=target)
            if clip.view.mirror:
                cv2.flip(target, 1, dst=target)
    if clip.view.mirror:
        across = flow[0::2]
        torch.bitwise_not(across, out=across)
    if len(frames) != len(clip.rgb_of):
        rgb = rgb[torch.from_numpy(clip.rgb_of)]
    pairs = flow.view(-1, 2, size, size)
    if len(pairs) != clip.flow_of.size:
        pairs = pairs[torch.from_numpy(clip.flow_of.reshape(-1))]
    return rgb, pairs.view(len(clip.flow_of), -1, size, size)


Shown = Iterator[tuple[int, Pixels, Pixels]]  # position, RGB (T, H, W, 3), flow (T, 2L, H, W)


def must_agree(name: str, end: str, shown: Shown, answers: dict[int, Answer], *, by_cv2: bool) -> None:
    """Stops the run where a variant delivers other pixels than the others, or not each clip once.

    Decoded frames and crops by cv2 agree to the bit, crops as defined to one grey level.
    """
    answer, levels = (f"{end} by cv2", 0) if by_cv2 and end == "ready" else (end, 1 if end == "ready" else 0)
    seen_positions = []
    for position, rgb, flow in shown:
        seen_positions.append(position)
        if position not in answers:
            continue
        for stream, found, right in zip(("RGB", "flow"), (rgb, flow), answers[position][answer], strict=True):
            if found.shape != right.shape:
                raise SystemExit(
                    f"{name}, {end}: {stream} of clip {position} has the shape {found.shape}, not {right.shape}"
                )
            off = int(np.abs(found.astype(np.int64) - right).max())
            if off > levels:
                raise SystemExit(
                    f"{name}, {end}: {stream} of clip {position} differs by {off} grey levels, expected {levels} at"
                    " most: it does something else than the others"
                )
    if sorted(seen_positions) != list(range(len(seen_positions))) or not answers.keys() <= set(seen_positions):
        raise SystemExit(f"{name}, {end}: delivered the clips {sorted(seen_positions)}, expected each once")
