"""Undecoded clips -> one flat uint8 arena with a table of what lies where. simplejpeg decodes without the GIL.

The unit is the sub-batch. A frame used by several instants is decoded once; the table says which instant wants which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import CorruptRecordError
from shards.index import StreamPlace
from shards.stream import Clip
from stmul.clips import NO_PAIR, Instants


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Placed:
    """Where a decoded clip lies in the arena, and how its instants are made of its frames."""

    position: int
    record: int
    name: str
    label: int
    size: tuple[int, int]  # height and width of the video's RGB frames, whether they are read or not
    rgb: tuple[int, int, int, int]  # offset, frames F, height, width; of (F, H, W, 3)
    flow: tuple[int, int, int, int]  # offset, planes 2P, height, width; of (2P, H, W), x and y in turn
    rgb_of: NDArray[np.int64]  # (T,) which of the F frames
    flow_of: NDArray[np.int64]  # (T, L) which of the P pairs, NO_PAIR for no motion


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A sub-batch of decoded clips."""

    arena: Tensor  # uint8, flat; pinned on request
    clips: tuple[Placed, ...]

    def to(self, device: torch.device) -> Decoded:
        """The same on `device`, copied without waiting where the arena is pinned."""
        return replace(self, arena=self.arena.to(device, non_blocking=True))

    def rgb_FHWC(self, clip: Placed) -> Tensor:
        """The clip's RGB frames as they lie in the arena, uint8."""
        offset, frames, height, width = clip.rgb
        return self.arena[offset : offset + frames * height * width * 3].view(frames, height, width, 3)

    def flow_PHW(self, clip: Placed) -> Tensor:
        """The clip's flow planes, x0 y0 x1 y1 ..., as they lie in the arena, uint8."""
        offset, planes, height, width = clip.flow
        return self.arena[offset : offset + planes * height * width].view(planes, height, width)


def decode(clips: Sequence[Clip[Instants]], *, pinned: bool = False) -> Decoded:
    """The clips decoded into one arena, in their order.

    Raises CorruptRecordError where a JPEG is not what its record says.
    """
    placed, size = [], 0
    for clip in clips:
        row, chosen = clip.row, clip.chosen
        rgb = (size, len(clip.rgb), row.rgb.height, row.rgb.width)
        size += 3 * rgb[1] * rgb[2] * rgb[3]
        flow = (size, len(clip.flow), row.flow.height, row.flow.width)
        size += flow[1] * flow[2] * flow[3]
        flow_of = np.where(chosen.flow == NO_PAIR, NO_PAIR, np.searchsorted(chosen.pairs, chosen.flow))
        placed.append(
            Placed(
                position=clip.position,
                record=row.record,
                name=row.name,
                label=row.label,
                size=(row.rgb.height, row.rgb.width),
                rgb=rgb,
                flow=flow,
                rgb_of=np.searchsorted(chosen.frames, chosen.rgb),
                flow_of=flow_of,
            )
        )
    arena = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    decoded = Decoded(arena, tuple(placed))
    for clip, place in zip(clips, placed, strict=True):
        _fill(decoded.rgb_FHWC(place).numpy(), clip.rgb, "RGB", clip.row.rgb, clip.row.name)
        _fill(decoded.flow_PHW(place).numpy()[..., None], clip.flow, "GRAY", clip.row.flow, clip.row.name)
    return decoded


def _fill(
    target_NHWC: NDArray[np.uint8], jpegs: Sequence[memoryview], colour: str, place: StreamPlace, name: str
) -> None:
    for image_HWC, jpeg in zip(target_NHWC, jpegs, strict=True):
        height, width = image_HWC.shape[:2]
        try:
            # The size is looked at before the pixels: a wrong one must not write past its place in the arena.
            found = simplejpeg.decode_jpeg_header(jpeg)[:2]
            if found != (height, width):
                raise ValueError(f"{found[1]}x{found[0]} pixels, expected {width}x{height}")
            simplejpeg.decode_jpeg(jpeg, colorspace=colour, buffer=image_HWC)
        except ValueError as error:
            raise CorruptRecordError(f"{name}: a {colour} frame of {place.width}x{place.height}: {error}") from error
