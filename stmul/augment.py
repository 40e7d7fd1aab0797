"""Cutting, resizing and mirroring frames on the device, alike for both streams.

Mirroring also turns motion to the right into motion to the left: q becomes 255 - q.

Shapes: F frames, P flow planes (x0 y0 x1 y1 ...), C channels, H W positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shards.draws import Draws
from stmul.resize import Axis, resized

FLOW_TOP = 255.0
BORDER = 0.25  # of the room between crop and frame, that corners are drawn from
SCALES = (256 / 224, 1.0, 192 / 224, 168 / 224)  # sides of `multiscale`, over the crop's


@dataclass(frozen=True, slots=True)
class View:
    """What of a frame is looked at: a box in pixels of the RGB frame, fractions allowed, and whether it is mirrored."""

    top: float
    left: float
    bottom: float
    right: float
    mirror: bool = False

    def mirrored(self) -> View:
        """The mirror image of the same box."""
        return replace(self, mirror=not self.mirror)


def whole_view(height: int, width: int) -> View:
    """The whole frame."""
    return View(0.0, 0.0, float(height), float(width))


class Box(NamedTuple):
    """A box of whole pixels of the RGB frame."""

    top: int
    left: int
    height: int
    width: int


def independent(height: int, width: int, size: int, draws: Draws, quadrants: int) -> Box:
    """Height and width drawn by themselves from 0.75 to 1.25 of the crop, corner near the border (`f25noCtr`)."""
    tall, wide = (round(min(size * draws.uniform(0.75, 1.25), side)) for side in (height, width))
    return _near_border(height, width, tall, wide, draws, quadrants)


def border(height: int, width: int, size: int, draws: Draws, quadrants: int) -> Box:
    """The crop's own size, corner near the border."""
    return _near_border(height, width, min(size, height), min(size, width), draws, quadrants)


def multiscale(height: int, width: int, size: int, draws: Draws, quadrants: int) -> Box:
    """Sides from four scales, at most one step apart, in one of the four corners or the centre."""
    pairs = [(i, j) for i in range(len(SCALES)) for j in range(len(SCALES)) if abs(i - j) <= 1]
    i, j = pairs[draws.integer(0, len(pairs) - 1)]
    tall, wide = min(round(SCALES[i] * size), height), min(round(SCALES[j] * size), width)
    places = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)]
    down, across = places[draws.integer(0, len(places) - 1)]
    return Box(int((height - tall) * down), int((width - wide) * across), tall, wide)


def anywhere(height: int, width: int, size: int, draws: Draws, quadrants: int) -> Box:
    """The crop's own size, every place alike likely."""
    tall, wide = min(size, height), min(size, width)
    return Box(draws.integer(0, height - tall), draws.integer(0, width - wide), tall, wide)


def centre(height: int, width: int, size: int, draws: Draws, quadrants: int) -> Box:
    """The crop's own size in the middle; nothing is drawn."""
    tall, wide = min(size, height), min(size, width)
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def _near_border(height: int, width: int, tall: int, wide: int, draws: Draws, quadrants: int) -> Box:
    quadrant = draws.integer(0, quadrants - 1)
    # Two quadrants, as released: top left and bottom right.
    down, across = (quadrant, quadrant) if quadrants == 2 else divmod(quadrant, 2)
    top, left = (draws.uniform(0.0, BORDER) + (1.0 - BORDER) * far for far in (down, across))
    return Box(int((height - tall) * top), int((width - wide) * left), tall, wide)


def _even(box: Box, height: int, width: int) -> Box:
    tall, wide = (
        side if side in (1, whole) else side // 2 * 2 for side, whole in ((box.height, height), (box.width, width))
    )
    return Box(box.top // 2 * 2, box.left // 2 * 2, tall, wide)


CROPS: dict[str, Callable[[int, int, int, Draws, int], Box]] = {
    "independent": independent,
    "border": border,
    "multiscale": multiscale,
    "random": anywhere,
    "centre": centre,
}


def crop_view(
    method: str,
    height: int,
    width: int,
    size: int,
    draws: Draws,
    *,
    original_crop_corners: bool = False,
    even: bool = False,
) -> View:
    """A view of a frame of `height` x `width` pixels, to be resized to `size`, drawn by `method` (a key of CROPS).

    Boxes never leave the frame: a side longer than the frame's is the frame's. `even` ones begin and end at even
    pixels, so that flow stored at half the size is cut between two pixels too. Mirrored half of the time, but `centre`
    never. With `original_crop_corners` only corners top left and bottom right are drawn, a quirk of the released code.
    """
    mirror = method != "centre" and draws.flag()
    box = CROPS[method](height, width, size, draws, 2 if original_crop_corners else 4)
    box = _even(box, height, width) if even else box
    return View(float(box.top), float(box.left), float(box.top + box.height), float(box.left + box.width), mirror)


def see_rgb(
    frames_FHWC: Tensor, view: View, *, size: int | None, frame: tuple[int, int], out: Tensor | None = None
) -> Tensor:
    """The view of RGB frames, 0..255: (F, 3, S, S), in new memory or in `out`.

    uint8 gives uint8, float gives float32; what is given stays as it is. `size` None keeps the size of the box in RGB
    pixels: the whole frame is then unchanged. `frame` is the height and width that the view's box is counted in.
    """
    return _seen(frames_FHWC.permute(0, 3, 1, 2), view, size, frame, out)


def see_flow(
    planes_PHW: Tensor, view: View, *, size: int | None, frame: tuple[int, int], out: Tensor | None = None
) -> Tensor:
    """The view of flow planes x0 y0 x1 y1 ..., 0..255: (P, S, S); as `see_rgb`, and levels of x mirrored too.

    Flow stored at another size than the frame's is seen at the frame's.
    """
    seen_PHW = _seen(planes_PHW, view, size, frame, out)
    if view.mirror:  # 255 - q, in place
        across = seen_PHW[0::2]
        if across.dtype != torch.uint8:
            across.neg_().add_(FLOW_TOP)
        elif across.device.type == "cpu":  # by numpy, in a reading thread: see `resize`
            np.bitwise_not(across.numpy(), out=across.numpy())
        else:
            torch.bitwise_not(across, out=across)
    return seen_PHW


def _seen(pictures: Tensor, view: View, size: int | None, frame: tuple[int, int], out: Tensor | None) -> Tensor:
    tall, wide = (size, size) if size is not None else (round(view.bottom - view.top), round(view.right - view.left))
    height, width = pictures.shape[-2:]
    down, across = height / frame[0], width / frame[1]
    rows = Axis(height, view.top * down, view.bottom * down, tall)
    columns = Axis(width, view.left * across, view.right * across, wide)
    with torch.autocast(pictures.device.type, enabled=False):
        return resized(pictures, rows, columns, mirror=view.mirror, out=out)
