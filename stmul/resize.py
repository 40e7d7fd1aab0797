"""Resizing frames on the device, by definition with a matrix for each axis, and fast.

The definition is Pillow's BILINEAR filter with a box: a triangle as wide as the step between output pixels, at least
one input pixel, so it averages when shrinking and interpolates when growing; taps reach over the box's edge, but not
over the picture's. Both ways of computing it agree with the matrices to 1 grey level:

- the matrices themselves; on the CPU in blocks of outputs, since each output reads only a few inputs;
- for bytes on the CPU and boxes that start between two pixels, torch's antialiased interpolation, whose integer kernel
  is fast for 3 or 4 channels side by side. It knows no box: the first outputs, which look over its edge, are made anew.

100 planes of 256x340, box 180x250 to 224x224, ms on a busy core of an EPYC: bytes 11, matrices in blocks 20, whole 80;
of the ways not taken Pillow 26, torch's interpolation plane by plane 60, gathering the taps 90.

Shapes: P planes, C channels, H W positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 32  # outputs that share a matrix on the CPU
CHUNK = 16  # planes at a time: few enough to stay in the cache
GROUP = 4  # planes that the integer kernel takes at once


@dataclass(frozen=True, slots=True)
class Axis:
    """How one side of a picture of `size` pixels is resized: the part `start` .. `stop` of it to `out` pixels."""

    size: int
    start: float
    stop: float
    out: int

    @property
    def step(self) -> float:
        """Input pixels from one output pixel to the next."""
        return (self.stop - self.start) / self.out

    @property
    def kept(self) -> slice | None:
        """The pixels, where they are taken over as they are."""
        same = self.stop - self.start == self.out and self.start == int(self.start)
        return slice(int(self.start), int(self.stop)) if same else None

    @property
    def from_start(self) -> slice | None:
        """The pixels that torch's interpolation is given, where it can be used: those from the box's start on."""
        if self.kept is not None:
            return self.kept
        seen = slice(math.ceil(self.start), self.reach.stop)
        # It starts between two pixels, and takes as many inputs as outputs for nothing to do.
        return seen if seen.start == self.start and seen.stop - seen.start != self.out else None

    @property
    def reach(self) -> slice:
        """The pixels that the outputs are made of."""
        support = max(self.step, 1.0)
        return slice(max(0, math.floor(self.start - support)), min(self.size, math.ceil(self.stop + support)))

    def part(self, first: int, last: int) -> Axis:
        """The axis of the outputs `first` .. `last`-1 alone."""
        return Axis(self.size, self.start + first * self.step, self.start + last * self.step, last - first)


def resize_matrix(
    size_in: int, start: float, stop: float, size_out: int, *, device: torch.device | None = None
) -> Tensor:
    """Weights (size_out, size_in), float32, that resize `start` .. `stop` of an axis to `size_out` pixels.

    Each row sums to 1. The box lies within 0 .. size_in and may begin and end within a pixel.
    """
    step = (stop - start) / size_out
    centres = start + step * (torch.arange(size_out, dtype=torch.float64, device=device) + 0.5)
    pixels = torch.arange(size_in, dtype=torch.float64, device=device) + 0.5
    weights = (1.0 - (pixels - centres[:, None]).abs() / max(step, 1.0)).clamp(min=0.0)
    return (weights / weights.sum(1, keepdim=True)).float()


def resized(planes: Tensor, rows: Axis, columns: Axis, *, mirror: bool = False) -> Tensor:
    """Pictures (P, H, W) or (P, 3, H, W), 0..255, resized to (..., rows.out, columns.out), float32, in new memory."""
    if mirror:  # first, while the values are few and small
        reach = columns.reach
        planes = planes[..., reach].flip(-1)
        columns = Axis(reach.stop - reach.start, reach.stop - columns.stop, reach.stop - columns.start, columns.out)
    if rows.kept is not None and columns.kept is not None:
        kept = planes[..., rows.kept, columns.kept]
        return kept.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    bytes_ = planes.dtype == torch.uint8 and planes.device.type == "cpu" and planes.numel() > 0
    if bytes_ and rows.from_start is not None and columns.from_start is not None:
        return by_bytes(planes, rows, columns)
    return by_matrices(planes, rows, columns)


def by_matrices(planes: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """`resized` as it is defined."""
    x = planes[..., rows.reach, columns.reach].to(torch.float32, memory_format=torch.contiguous_format)
    wide = x.new_empty((*x.shape[:-1], columns.out))
    lines, wide_lines = x.flatten(0, -2), wide.flatten(0, -2)
    for outputs, inputs, weights in _blocks(columns, x.device):
        wide_lines[:, outputs] = lines[:, inputs] @ weights.T
    out = x.new_empty((*x.shape[:-2], rows.out, columns.out))
    pictures, out_pictures = wide.flatten(0, -3), out.flatten(0, -3)
    for outputs, inputs, weights in _blocks(rows, x.device):
        out_pictures[:, outputs] = weights @ pictures[:, inputs]
    return out


def _blocks(axis: Axis, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """Outputs, the inputs they are made of (counted from the reach of all), and their weights."""
    origin, end = axis.reach.start, axis.reach.stop
    weights = resize_matrix(end - origin, axis.start - origin, axis.stop - origin, axis.out, device=device)
    block = BLOCK if device.type == "cpu" else axis.out
    for first in range(0, axis.out, block):
        outputs = slice(first, min(first + block, axis.out))
        reach = axis.part(outputs.start, outputs.stop).reach
        inputs = slice(reach.start - origin, reach.stop - origin)
        yield outputs, inputs, weights[outputs, inputs]


def by_bytes(planes: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """`resized` for uint8 on the CPU through torch's integer kernel; both axes have a `from_start`."""
    down, across = rows.from_start, columns.from_start
    assert down is not None
    assert across is not None
    out = torch.empty((*planes.shape[:-2], rows.out, columns.out))
    for first in range(0, len(planes), CHUNK):
        seen, target = planes[first : first + CHUNK, ..., down, across], out[first : first + CHUNK]
        grouped = _side_by_side(seen) if planes.dim() == 3 else seen.contiguous(memory_format=torch.channels_last)
        made = torch.ops.aten._upsample_bilinear2d_aa(
            grouped, (rows.out, columns.out), False, 1.0 / rows.step, 1.0 / columns.step
        )
        if planes.dim() == 3:
            for i in range(GROUP):
                target[i::GROUP] = made[: len(target[i::GROUP]), i]
        else:
            target.copy_(made)
    if edge := _over_the_edge(rows):
        out[..., :edge, :] = by_matrices(planes, rows.part(0, edge), columns)
    if edge := _over_the_edge(columns):
        out[..., :edge] = by_matrices(planes, rows, columns.part(0, edge))
    return out


def _side_by_side(planes_PHW: Tensor) -> Tensor:
    """(P / 4, 4, H, W), channels-last; the last group is filled up with its own planes."""
    if missing := -len(planes_PHW) % GROUP:
        planes_PHW = torch.cat([planes_PHW, planes_PHW[-1:].expand(missing, -1, -1)])
    return torch.stack([planes_PHW[i::GROUP] for i in range(GROUP)], -1).permute(0, 3, 1, 2)


def _over_the_edge(axis: Axis) -> int:
    """How many of the first outputs look at pixels before the box."""
    if axis.start == 0 or axis.kept is not None:
        return 0
    return min(axis.out, math.ceil(max(axis.step, 1.0) / axis.step - 0.5))
