"""Resizing frames, by definition with a matrix for each axis, and fast.

The definition: what lies in the box is cut out, then resized with a triangle as wide as the step between output pixels,
at least one input pixel, so it averages when shrinking and interpolates when growing (Pillow's BILINEAR filter; of a
pixel that the box cuts, the whole is seen). Levels stay levels: bytes in, bytes out, rounded. All ways of computing it
agree with the matrices to 1 grey level:

- the matrices themselves: on a GPU, for floats, and for boxes that begin or end within a pixel;
- for bytes on the CPU and boxes of whole pixels, OpenCV's integer interpolation where both axes grow, and otherwise
  torch's antialiased one, whose integer kernel is fast for 4 channels side by side.

100 planes to 224x224, ms on a busy core of an EPYC: OpenCV 6, torch's kernel with planes laid side by side 8, matrices
in blocks 20, whole 80; of the ways not taken Pillow 38, torch's kernel plane by plane 36.

Shapes: P planes, F frames, C channels, H W positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Levels = NDArray[np.uint8]

BLOCK = 32  # outputs that share a matrix on the CPU
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
    def reach(self) -> slice:
        """The pixels that the outputs are made of: those that the box touches."""
        return slice(math.floor(self.start), math.ceil(self.stop))

    @property
    def whole(self) -> bool:
        """Whether the box begins and ends between two pixels."""
        return self.start == int(self.start) and self.stop == int(self.stop)

    @property
    def kept(self) -> bool:
        """Whether pixels are taken over as they are."""
        return self.whole and self.stop - self.start == self.out


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
    weights[:, : math.floor(start)] = 0.0
    weights[:, math.ceil(stop) :] = 0.0
    return (weights / weights.sum(1, keepdim=True)).float()


def resized(pictures: Tensor, rows: Axis, columns: Axis, *, mirror: bool = False, out: Tensor | None = None) -> Tensor:
    """Pictures (P, H, W) or (F, 3, H, W), 0..255, resized to (..., rows.out, columns.out), in new memory or in `out`.

    uint8 gives uint8, rounded; float gives float32. With `mirror` the result is the mirror image.
    """
    shape = (*pictures.shape[:-2], rows.out, columns.out)
    if out is None:
        out = pictures.new_empty(shape, dtype=torch.uint8 if pictures.dtype == torch.uint8 else torch.float32)
    if not out.numel():
        return out
    cut = pictures[..., rows.reach, columns.reach]
    if rows.kept and columns.kept:
        return out.copy_(cut.flip(-1) if mirror else cut)
    if pictures.dtype == torch.uint8 and pictures.device.type == "cpu" and rows.whole and columns.whole:
        by_bytes(cut, out, mirror=mirror)
        return out
    exact = by_matrices(pictures, rows, columns)
    exact = exact.flip(-1) if mirror else exact
    return out.copy_(exact.round_() if out.dtype == torch.uint8 else exact)


def by_matrices(pictures: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """`resized` as it is defined, float32 and not rounded."""
    x = pictures[..., rows.reach, columns.reach].to(torch.float32, memory_format=torch.contiguous_format)
    wide = x.new_empty((*x.shape[:-1], columns.out))
    lines, wide_lines = x.flatten(0, -2), wide.flatten(0, -2)
    for outputs, inputs, weights in _blocks(columns, x.device):
        wide_lines[:, outputs] = lines[:, inputs] @ weights.T
    made = x.new_empty((*x.shape[:-2], rows.out, columns.out))
    planes, made_planes = wide.flatten(0, -3), made.flatten(0, -3)
    for outputs, inputs, weights in _blocks(rows, x.device):
        made_planes[:, outputs] = weights @ planes[:, inputs]
    return made


def _blocks(axis: Axis, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """Outputs, the inputs they are made of (counted from the first that any is), and their weights."""
    first, last = axis.reach.start, axis.reach.stop
    weights = resize_matrix(last - first, axis.start - first, axis.stop - first, axis.out, device=device)
    block, support = (BLOCK if device.type == "cpu" else axis.out), max(axis.step, 1.0)
    for output in range(0, axis.out, block):
        outputs = slice(output, min(output + block, axis.out))
        begin, end = (axis.start - first + axis.step * edge for edge in (outputs.start, outputs.stop))
        inputs = slice(max(0, math.floor(begin - support)), min(last - first, math.ceil(end + support)))
        yield outputs, inputs, weights[outputs, inputs]


def by_bytes(cut: Tensor, out: Tensor, *, mirror: bool) -> None:
    """`resized` for bytes on the CPU: the pictures that were cut out, whole pixels, into `out` of another size."""
    size = (out.shape[-2], out.shape[-1])
    growing = cut.shape[-2] <= size[0] and cut.shape[-1] <= size[1]
    if cut.dim() == 4:
        for frame_HWC, target_CHW in zip(cut.permute(0, 2, 3, 1).numpy(), out, strict=True):
            made = _grown(frame_HWC, size) if growing else _shrunk(np.ascontiguousarray(frame_HWC), size)
            made = cv2.flip(made, 1) if mirror else made
            target_CHW.copy_(torch.from_numpy(made).permute(2, 0, 1))
        return
    sources, targets = cut.numpy(), out.numpy()
    if growing:
        for source, target in zip(sources, targets, strict=True):
            _grown(source, size, target)
    else:
        _shrink_planes(sources, targets)
    if mirror:
        for target in targets:
            cv2.flip(target, 1, dst=target)


def _grown(source: Levels, size: tuple[int, int], target: Levels | None = None) -> Levels:
    return np.asarray(cv2.resize(source, size[::-1], dst=target, interpolation=cv2.INTER_LINEAR))


def _shrunk(source_HWC: Levels, size: tuple[int, int]) -> Levels:
    """One picture of up to 4 channels, its bytes in that order, through torch's antialiased kernel."""
    batch = torch.from_numpy(source_HWC)[None].permute(0, 3, 1, 2)  # in this order torch sees that channels are last
    made: Tensor = torch.ops.aten._upsample_bilinear2d_aa(batch, size, False)
    return made.permute(0, 2, 3, 1)[0].numpy()


def _shrink_planes(sources: Levels, targets: Levels) -> None:
    """Planes, four side by side as the channels of one picture; the last group repeats its last plane."""
    group = np.empty((*sources.shape[1:], GROUP), np.uint8)
    spare = np.empty_like(targets[0])
    for first in range(0, len(sources), GROUP):
        members = [min(first + i, len(sources) - 1) for i in range(GROUP)]
        cv2.merge([sources[member] for member in members], group)
        made = _shrunk(group, (targets.shape[1], targets.shape[2]))
        cv2.split(made, [targets[first + i] if first + i < len(targets) else spare for i in range(GROUP)])
