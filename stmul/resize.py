"""Resizing frames, by definition with a matrix for each axis, and fast.

The definition: what lies in the box is cut out, then resized with a triangle as wide as the step between output pixels,
at least one input pixel, so it averages when shrinking and interpolates when growing (Pillow's BILINEAR filter; of a
pixel that the box cuts, the whole is seen). Levels stay levels: bytes in, bytes out, rounded. All ways of computing it
agree with the matrices to 1 grey level:

- the matrices themselves, on a GPU and for floats;
- for bytes on the CPU and boxes of whole pixels, OpenCV's integer interpolation where both axes grow, and otherwise
  torch's antialiased one, whose integer kernel is fast for four planes laid side by side as channels;
- for bytes on the CPU and boxes that begin or end within a pixel, Pillow.

Bytes on the CPU are resized in the reading threads, and nothing there may begin a team of OpenMP threads, as most of
torch does: all teams would then be more than the cores, and the training's, no longer waiting awake, half as fast.

100 planes to 224x224, ms on a core of an EPYC: OpenCV 4, torch's kernel 6 (plane by plane 36), matrices in blocks 20,
whole 80, Pillow 38.

Shapes: P planes, F frames, C channels, H W positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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
    if pictures.dtype == torch.uint8 and pictures.device.type == "cpu":
        by_bytes(pictures, rows, columns, out, mirror=mirror)
        return out
    if rows.kept and columns.kept:
        cut = pictures[..., rows.reach, columns.reach]
        return out.copy_(cut.flip(-1) if mirror else cut)
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


def by_bytes(pictures: Tensor, rows: Axis, columns: Axis, out: Tensor, *, mirror: bool) -> None:
    """`resized` for bytes on the CPU, into `out`."""
    growing, whole = rows.step <= 1 and columns.step <= 1, rows.whole and columns.whole
    height, width = rows.reach, columns.reach
    sources, targets = pictures.numpy(), out.numpy()
    if rows.kept and columns.kept:
        cut = sources[..., height, width]
        np.copyto(targets, cut[..., ::-1] if mirror else cut)
        return
    if pictures.dim() == 4:
        for frame_CHW, target_CHW in zip(sources, targets, strict=True):
            cut_HWC = np.ascontiguousarray(frame_CHW[:, height, width].transpose(1, 2, 0))
            if not whole:
                made_HWC = _by_pillow(cut_HWC, rows, columns)
            else:
                made_HWC = _grown(cut_HWC, out.shape[-2:]) if growing else _shrunk(cut_HWC, out.shape[-2:])
            cv2.split(cv2.flip(made_HWC, 1) if mirror else made_HWC, [*target_CHW])
        return
    if not whole:
        for source, target in zip(sources, targets, strict=True):
            target[:] = _by_pillow(np.ascontiguousarray(source[height, width]), rows, columns)
    elif growing:
        for source, target in zip(sources, targets, strict=True):
            _grown(source[height, width], out.shape[-2:], target)
    else:
        _shrink_planes(sources[:, height], width, targets)
    if mirror:
        for target in targets:
            cv2.flip(target, 1, dst=target)


def _by_pillow(cut: Levels, rows: Axis, columns: Axis) -> Levels:
    """A picture that was cut out, resized by a box that begins or ends within its first or last pixels."""
    left, top = columns.start - columns.reach.start, rows.start - rows.reach.start
    box = (left, top, left + columns.stop - columns.start, top + rows.stop - rows.start)
    size = (columns.out, rows.out)
    return np.asarray(Image.fromarray(cut).resize(size, Image.Resampling.BILINEAR, box=box))


def _grown(source: Levels, size: Sequence[int], target: Levels | None = None) -> Levels:
    return np.asarray(cv2.resize(source, (size[1], size[0]), dst=target, interpolation=cv2.INTER_LINEAR))


def _shrunk(source_HWC: Levels, size: Sequence[int]) -> Levels:
    """A picture of up to 4 channels, its bytes in that order, through torch's antialiased kernel."""
    batch = torch.from_numpy(source_HWC)[None].permute(0, 3, 1, 2)  # in this order torch sees that channels are last
    made: Tensor = torch.ops.aten._upsample_bilinear2d_aa(batch, size, False)
    return made.permute(0, 2, 3, 1)[0].numpy()


def _shrink_planes(sources: Levels, columns: slice, targets: Levels) -> None:
    """Planes, four side by side as the channels of one picture; the last group repeats its last plane."""
    group_HWC = np.empty((*sources.shape[1:], GROUP), np.uint8)
    spare = np.empty_like(targets[0])
    for first in range(0, len(sources), GROUP):
        members = [min(first + i, len(sources) - 1) for i in range(GROUP)]
        cv2.merge([sources[member] for member in members], group_HWC)  # whole lines: parts take six times as long
        made_HWC = _shrunk(np.ascontiguousarray(group_HWC[:, columns]), targets.shape[1:])
        cv2.split(made_HWC, [targets[first + i] if first + i < len(targets) else spare for i in range(GROUP)])
