"""A Triton kernel: second pictures and their gradients, warped by the flow; one launch for all pairs.

OpenCV's cubic remap (a = -0.75; what lies outside the picture is 0) of three planes at once, each sum in the order of
the CPU's `warp`; PyTorch's grid_sample takes places as parts of the picture's side, which loses 4e-5 pixels.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# What Triton compiles takes annotations for types of its own.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from preprocess.tvl1.eager import Linearised
from preprocess.tvl1.gpu_kernels import COLUMNS, ROWS, SIZES, WARPS, tiles_of

POINTERS = ("first", "planes", "u1", "u2", "gx", "gy", "grad", "rho_c")

_CUBIC = tl.constexpr(-0.75)


def linearised(first_NHW: Tensor, planes_N3HW: Tensor, u1: Tensor, u2: Tensor) -> Linearised:
    """`tensors.linearised`: from the first pictures, and the second ones as level and gradient."""
    pairs, height, width = first_NHW.shape
    gx, gy, grad, rho_c = (torch.empty_like(u1) for _ in range(4))
    _linearise[(tiles_of(height, width), pairs)](
        first_NHW.contiguous(),
        planes_N3HW.contiguous(),
        u1,
        u2,
        gx,
        gy,
        grad,
        rho_c,
        height,
        width,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
        num_stages=1,
        enable_fp_fusion=False,
    )
    return Linearised(gx=gx, gy=gy, grad=grad, rho_c=rho_c)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=POINTERS)
def _linearise(
    first,
    planes,
    u1,
    u2,
    gx,
    gy,
    grad,
    rho_c,
    height,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile = tl.program_id(0)
    across = tl.cdiv(width, COLUMNS)
    y = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
    x = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (y < height) & (x < width)
    area = height * width
    pair = tl.program_id(1).to(tl.int64) * area
    at = y * width + x
    flow_x = tl.load(u1 + pair + at, inside, 0.0)
    flow_y = tl.load(u2 + pair + at, inside, 0.0)
    # From four pixels outside on all taps lie outside; a whole number larger than 2^31 would not be one.
    place_x = tl.minimum(tl.maximum(x.to(tl.float32) + flow_x, -4.0), (width + 3).to(tl.float32))
    place_y = tl.minimum(tl.maximum(y.to(tl.float32) + flow_y, -4.0), (height + 3).to(tl.float32))
    before_x, before_y = tl.floor(place_x), tl.floor(place_y)
    x0, x1, x2, x3 = _weights(place_x - before_x)
    y0, y1, y2, y3 = _weights(place_y - before_y)
    column, row = before_x.to(tl.int32) - 1, before_y.to(tl.int32) - 1

    plane = planes + pair * 3
    level = _sampled(plane, column, row, x0, x1, x2, x3, y0, y1, y2, y3, height, width, inside)
    dx = _sampled(plane + area, column, row, x0, x1, x2, x3, y0, y1, y2, y3, height, width, inside)
    dy = _sampled(plane + 2 * area, column, row, x0, x1, x2, x3, y0, y1, y2, y3, height, width, inside)
    left = level - dx * flow_x - dy * flow_y - tl.load(first + pair + at, inside, 0.0)
    tl.store(gx + pair + at, dx, inside)
    tl.store(gy + pair + at, dy, inside)
    tl.store(grad + pair + at, dx * dx + dy * dy, inside)
    tl.store(rho_c + pair + at, left, inside)


@triton.jit
def _weights(t):
    """The cubic's four weights of a place t after the second of four pixels."""
    s, r = t + 1.0, 1.0 - t
    first = ((_CUBIC * s - 5.0 * _CUBIC) * s + 8.0 * _CUBIC) * s - 4.0 * _CUBIC
    second = ((_CUBIC + 2.0) * t - (_CUBIC + 3.0)) * t * t + 1.0
    third = ((_CUBIC + 2.0) * r - (_CUBIC + 3.0)) * r * r + 1.0
    return first, second, third, 1.0 - first - second - third


@triton.jit
def _sampled(plane, column, row, x0, x1, x2, x3, y0, y1, y2, y3, height, width, inside):
    """One plane at all places: columns of four taps first, then across."""
    even = _column(plane, column, row, y0, y1, y2, y3, height, width, inside) * x0
    odd = _column(plane, column + 1, row, y0, y1, y2, y3, height, width, inside) * x1
    even += _column(plane, column + 2, row, y0, y1, y2, y3, height, width, inside) * x2
    odd += _column(plane, column + 3, row, y0, y1, y2, y3, height, width, inside) * x3
    return even + odd


@triton.jit
def _column(plane, column, row, y0, y1, y2, y3, height, width, inside):
    there = inside & (column >= 0) & (column < width)
    total = _tap(plane, column, row, height, width, there) * y0
    total += _tap(plane, column, row + 1, height, width, there) * y1
    total += _tap(plane, column, row + 2, height, width, there) * y2
    total += _tap(plane, column, row + 3, height, width, there) * y3
    return total


@triton.jit
def _tap(plane, column, row, height, width, there):
    return tl.load(plane + row * width + column, there & (row >= 0) & (row < height), 0.0)
