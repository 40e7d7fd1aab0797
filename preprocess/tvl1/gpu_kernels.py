"""Triton kernels of TV-L1: one inner iteration, and the median filter, of many pairs in one launch.

A block works on a tile of one picture; axis 0 of the grid is the tile, axis 1 the place in the list of running pairs.
u_new = u + TH(rho) + theta div p, then p_new = (p + tau/theta grad u_new) / (1 + tau/theta |grad u_new|), after Zach,
Pock, Bischof, 2007, as `eager` says it in a few lines of PyTorch. Pixels are float32; a place within a picture
fits 32 bits, a place within a batch may not.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# What Triton compiles takes annotations for types of its own.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, WARPS = 8, 64, 16  # of a tile, and what works on it. A sum's rounding, so the bytes, are of this tile
BLOCKS = 1584  # of a launch, about; with more work a block takes several tiles, so that ended pairs cost few blocks
LIMIT = 1 << 40  # the sum of squared changes at which a pair ends, as a whole number
AT_MOST = 1 << 41  # of one tile: so 2 million tiles add up to less than 2^63

# One binary for all batches and sizes: another one might sum a tile in another order.
SIZES = ("height", "width")
STEP = ("u_old", "p_old", "u_new", "p_new", "running", "where", "error_now", "error_sum", "error_next")

_LIMIT = tl.constexpr(LIMIT)
_AT_MOST = tl.constexpr(float(AT_MOST))
_FLAT = tl.constexpr(1.1920929e-07)  # of the squared gradient, as OpenCV has it


def step_pass(
    *,
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    line: Tensor,
    running: Tensor,
    where: Tensor,
    place: int,
    errors: tuple[Tensor, Tensor, Tensor],
    scale: float,
    bound: float,
    theta: float,
    dual_step: float,
) -> None:
    """Launches one iteration of the running pairs, from the sets u, p of `old` to those of `new`.

    `errors`: what the launch before summed up, where this one adds, and what it makes 0 for the next. `place` is
    written to `where` for pairs that have not ended.
    """
    height, width = line.shape[2:]
    each = _tiles_each(height, width, len(running))
    grid = (-(-tiles_of(height, width) // each), len(running))
    _step[grid](
        *old,
        line,
        *new,
        running,
        where,
        *errors,
        place,
        each,
        scale,
        bound,
        theta,
        dual_step,
        height,
        width,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
        num_stages=1,
        enable_fp_fusion=False,
    )


def median_pass(source: Tensor, target: Tensor, running: Tensor, error: Tensor, side: int) -> None:
    """Launches a median filter (side 3 or 5) of both parts of u, (C, 2, H, W), for pairs that have not ended."""
    height, width = source.shape[2:]
    grid = (tiles_of(height, width), len(running), 2)
    _median[grid](
        source,
        target,
        running,
        error,
        height,
        width,
        SIDE=side,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
        num_stages=1,
        enable_fp_fusion=False,
    )


def tiles_of(height: int, width: int) -> int:
    """How many tiles cover a picture."""
    return -(-height // ROWS) * -(-width // COLUMNS)


def _tiles_each(height: int, width: int, pairs: int) -> int:
    return max(1, min(tiles_of(height, width) * pairs // BLOCKS, tiles_of(height, width)))


@triton.jit(do_not_specialize=["place", "each", *SIZES], do_not_specialize_on_alignment=["line", *STEP])
def _step(
    u_old,
    p_old,
    line,
    u_new,
    p_new,
    running,
    where,
    error_now,
    error_sum,
    error_next,
    place,
    each,
    scale,
    bound,
    theta,
    dual_step,
    height,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    block = tl.program_id(0)
    pair = tl.load(running + tl.program_id(1))
    if pair >= 0:
        error = tl.load(error_now + pair)
        if block == 0:
            tl.store(error_next + pair, tl.zeros((), tl.int64))
        if error <= _LIMIT:
            if block == 0:  # handed on, so that it stays ended
                tl.store(error_sum + pair, error)
        else:
            if block == 0:
                tl.store(where + pair, place)
            area = height * width
            u_first = pair.to(tl.int64) * 2 * area
            p_first = u_first * 2
            changed = tl.zeros((), tl.int64)
            for tile in range(block * each, block * each + each):  # past the last one nothing is inside
                changed += _tile_step(
                    u_old + u_first,
                    p_old + p_first,
                    line + pair.to(tl.int64) * 3 * area,
                    u_new + u_first,
                    p_new + p_first,
                    tile,
                    scale,
                    bound,
                    theta,
                    dual_step,
                    height,
                    width,
                    ROWS,
                    COLUMNS,
                )
            tl.atomic_add(error_sum + pair, changed, sem="relaxed")


@triton.jit
def _tile_step(
    u_old,
    p_old,
    line,
    u_new,
    p_new,
    tile,
    scale,
    bound,
    theta,
    dual_step,
    height,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile of a picture; gives the sum of its squared changes, in parts of the limit."""
    across = tl.cdiv(width, COLUMNS)
    y = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
    x = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    area = height * width
    at = y * width + x
    inside = (y < height) & (x < width)
    has_right = inside & (x + 1 < width)
    has_below = inside & (y + 1 < height)
    has_left = inside & (x > 0)
    has_above = inside & (y > 0)

    u1 = u_old + at
    u2 = u1 + area
    p11 = p_old + at
    p12 = p11 + area
    p21 = p12 + area
    p22 = p21 + area
    gx = line + at
    gy = gx + area
    rho_c = gy + area

    # Before the first row and column p is 0.
    p11_here = tl.load(p11, inside, 0.0)
    p12_here = tl.load(p12, inside, 0.0)
    p21_here = tl.load(p21, inside, 0.0)
    p22_here = tl.load(p22, inside, 0.0)
    u1_here = tl.load(u1, inside, 0.0)
    u2_here = tl.load(u2, inside, 0.0)
    u1_new, u2_new = _flow(
        u1_here,
        u2_here,
        tl.load(gx, inside, 0.0),
        tl.load(gy, inside, 0.0),
        tl.load(rho_c, inside, 0.0),
        p11_here - tl.load(p11 - 1, has_left, 0.0) + (p12_here - tl.load(p12 - width, has_above, 0.0)),
        p21_here - tl.load(p21 - 1, has_left, 0.0) + (p22_here - tl.load(p22 - width, has_above, 0.0)),
        bound,
        theta,
    )
    right1, right2 = _flow(
        tl.load(u1 + 1, has_right, 0.0),
        tl.load(u2 + 1, has_right, 0.0),
        tl.load(gx + 1, has_right, 0.0),
        tl.load(gy + 1, has_right, 0.0),
        tl.load(rho_c + 1, has_right, 0.0),
        tl.load(p11 + 1, has_right, 0.0)
        - p11_here
        + (tl.load(p12 + 1, has_right, 0.0) - tl.load(p12 + 1 - width, has_right & (y > 0), 0.0)),
        tl.load(p21 + 1, has_right, 0.0)
        - p21_here
        + (tl.load(p22 + 1, has_right, 0.0) - tl.load(p22 + 1 - width, has_right & (y > 0), 0.0)),
        bound,
        theta,
    )
    below1, below2 = _flow(
        tl.load(u1 + width, has_below, 0.0),
        tl.load(u2 + width, has_below, 0.0),
        tl.load(gx + width, has_below, 0.0),
        tl.load(gy + width, has_below, 0.0),
        tl.load(rho_c + width, has_below, 0.0),
        tl.load(p11 + width, has_below, 0.0)
        - tl.load(p11 + width - 1, has_below & (x > 0), 0.0)
        + (tl.load(p12 + width, has_below, 0.0) - p12_here),
        tl.load(p21 + width, has_below, 0.0)
        - tl.load(p21 + width - 1, has_below & (x > 0), 0.0)
        + (tl.load(p22 + width, has_below, 0.0) - p22_here),
        bound,
        theta,
    )
    change1 = u1_new - u1_here
    change2 = u2_new - u2_here
    change = tl.sum(tl.where(inside, change1 * change1 + change2 * change2, 0.0)) * scale
    counted = tl.where(change < _AT_MOST, change, _AT_MOST)
    counted = tl.where(change != change, 0.0, counted)  # not a number ends a pair, as a comparison would

    # Past the last row and column u stays the same.
    u1x = tl.where(has_right, right1 - u1_new, 0.0)
    u2x = tl.where(has_right, right2 - u2_new, 0.0)
    u1y = tl.where(has_below, below1 - u1_new, 0.0)
    u2y = tl.where(has_below, below2 - u2_new, 0.0)
    shrink1 = 1.0 + dual_step * tl.sqrt_rn(u1x * u1x + u1y * u1y)
    shrink2 = 1.0 + dual_step * tl.sqrt_rn(u2x * u2x + u2y * u2y)
    u_out = u_new + at
    p_out = p_new + at
    tl.store(u_out, u1_new, inside)
    tl.store(u_out + area, u2_new, inside)
    tl.store(p_out, tl.div_rn(p11_here + dual_step * u1x, shrink1), inside)
    tl.store(p_out + area, tl.div_rn(p12_here + dual_step * u1y, shrink1), inside)
    tl.store(p_out + 2 * area, tl.div_rn(p21_here + dual_step * u2x, shrink2), inside)
    tl.store(p_out + 3 * area, tl.div_rn(p22_here + dual_step * u2y, shrink2), inside)
    return counted.to(tl.int64)


@triton.jit
def _flow(u1, u2, gx, gy, rho_c, divergence1, divergence2, bound, theta):
    """The new flow: along the gradient by -rho / |gradient|^2, but by no more than lambda theta gradients."""
    rho = rho_c + (gx * u1 + gy * u2)
    along = tl.div_rn(-rho, tl.maximum(gx * gx + gy * gy, _FLAT))
    along = tl.minimum(tl.maximum(along, -bound), bound)
    return u1 + along * gx + theta * divergence1, u2 + along * gy + theta * divergence2


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["source", "target", "running", "error_now"])
def _median(
    source,
    target,
    running,
    error_now,
    height,
    width,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile = tl.program_id(0)
    pair = tl.load(running + tl.program_id(1))
    if pair >= 0:
        error = tl.load(error_now + pair)
        if error > _LIMIT:
            across = tl.cdiv(width, COLUMNS)
            y = (tile // across) * ROWS + tl.arange(0, ROWS)[:, None]
            x = (tile % across) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
            inside = (y < height) & (x < width)
            plane = (pair.to(tl.int64) * 2 + tl.program_id(2)) * height * width
            picture = source + plane
            if SIDE == 3:
                found = _median9(picture, x, y, height, width, inside)
            else:
                found = _median25(picture, x, y, height, width, inside)
            tl.store(target + plane + y * width + x, found, inside)


@triton.jit
def _median9(picture, x, y, height, width, inside):
    """Columns in order; then the median of the greatest least, the middle middle and the least greatest."""
    a0, b0, c0 = _column3(picture, x - 1, y, height, width, inside)
    a1, b1, c1 = _column3(picture, x, y, height, width, inside)
    a2, b2, c2 = _column3(picture, x + 1, y, height, width, inside)
    low = tl.maximum(tl.maximum(a0, a1), a2)
    high = tl.minimum(tl.minimum(c0, c1), c2)
    return _middle3(low, _middle3(b0, b1, b2), high)


@triton.jit
def _median25(picture, x, y, height, width, inside):
    """Columns in order, then rows, which leaves columns in order: places i, j (row, column) grow both ways.

    The median is then that of three: the greatest with i + j = 3, the median of those with i + j = 4, the least with
    i + j = 5. (What grows both ways has 252 patterns of 0 and 1; a network that is right for them is right.)
    """
    a0, b0, c0, d0, e0 = _column5(picture, x - 2, y, height, width, inside)
    a1, b1, c1, d1, e1 = _column5(picture, x - 1, y, height, width, inside)
    a2, b2, c2, d2, e2 = _column5(picture, x, y, height, width, inside)
    a3, b3, c3, d3, e3 = _column5(picture, x + 1, y, height, width, inside)
    a4, b4, c4, d4, e4 = _column5(picture, x + 2, y, height, width, inside)
    a0, a1, a2, a3, a4 = _ordered5(a0, a1, a2, a3, a4)
    b0, b1, b2, b3, b4 = _ordered5(b0, b1, b2, b3, b4)
    c0, c1, c2, c3, c4 = _ordered5(c0, c1, c2, c3, c4)
    d0, d1, d2, d3, d4 = _ordered5(d0, d1, d2, d3, d4)
    e0, e1, e2, e3, e4 = _ordered5(e0, e1, e2, e3, e4)
    low = tl.maximum(tl.maximum(a3, b2), tl.maximum(c1, d0))
    high = tl.minimum(tl.minimum(b4, c3), tl.minimum(d2, e1))
    a4, b3, c2, d1, e0 = _ordered5(a4, b3, c2, d1, e0)
    return _middle3(low, c2, high)


@triton.jit
def _column3(picture, x, y, height, width, inside):
    """Three values around y in column x, in order; past the border the nearest value counts."""
    a = _value(picture, x, y - 1, height, width, inside)
    b = _value(picture, x, y, height, width, inside)
    c = _value(picture, x, y + 1, height, width, inside)
    a, b = tl.minimum(a, b), tl.maximum(a, b)
    b, c = tl.minimum(b, c), tl.maximum(b, c)
    a, b = tl.minimum(a, b), tl.maximum(a, b)
    return a, b, c


@triton.jit
def _column5(picture, x, y, height, width, inside):
    """Five values around y in column x, in order."""
    return _ordered5(
        _value(picture, x, y - 2, height, width, inside),
        _value(picture, x, y - 1, height, width, inside),
        _value(picture, x, y, height, width, inside),
        _value(picture, x, y + 1, height, width, inside),
        _value(picture, x, y + 2, height, width, inside),
    )


@triton.jit
def _value(picture, x, y, height, width, inside):
    near_y = tl.minimum(tl.maximum(y, 0), height - 1)
    near_x = tl.minimum(tl.maximum(x, 0), width - 1)
    return tl.load(picture + near_y * width + near_x, inside, 0.0)


@triton.jit
def _ordered5(a, b, c, d, e):
    """Five values in order, by nine exchanges."""
    a, b = tl.minimum(a, b), tl.maximum(a, b)
    d, e = tl.minimum(d, e), tl.maximum(d, e)
    c, e = tl.minimum(c, e), tl.maximum(c, e)
    c, d = tl.minimum(c, d), tl.maximum(c, d)
    a, d = tl.minimum(a, d), tl.maximum(a, d)
    a, c = tl.minimum(a, c), tl.maximum(a, c)
    b, e = tl.minimum(b, e), tl.maximum(b, e)
    b, d = tl.minimum(b, d), tl.maximum(b, d)
    b, c = tl.minimum(b, c), tl.maximum(b, c)
    return a, b, c, d, e


@triton.jit
def _middle3(a, b, c):
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))
