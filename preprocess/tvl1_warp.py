"""Scales and warps of TV-L1 on the CPU: OpenCV's bilinear resize, and its cubic remap of a picture and its gradient.

`planes` holds a picture and its gradient side by side, four float32 a pixel (level, d/dx, d/dy, 0), with BORDER pixels
of zeros around: what lies outside counts as 0, and no bound is looked at. Rows of `state` and `line`: see
preprocess/tvl1_iterate.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocess.lanes import COUNT, compiled, down, every, halves, halves_added, least, load, most, store
from preprocess.tvl1_iterate import FIELDS, LINES, MARGIN, pitch_of

Floats = NDArray[np.float32]

BORDER = 6  # pixels: the taps of a place that is kept within 4 of the picture
CUBIC = -0.75  # OpenCV's choice of the cubic's free parameter
FLAT = np.float32(np.finfo(np.float32).eps)  # a square of the gradient below which a picture tells nothing of motion


@compiled
def resized(picture: NDArray[np.float32], height: int, width: int, ratio_y: float, ratio_x: float) -> Floats:
    """A picture at another size, bilinear without antialiasing; a ratio is the old side over the new one."""
    rows, columns = picture.shape
    at, share = _between(width, columns, ratio_x)
    wide = np.empty((rows, width), np.float32)
    for y in range(rows):
        for x in range(width):
            left = at[x]
            right = min(left + 1, columns - 1)
            wide[y, x] = picture[y, left] * (np.float32(1) - share[x]) + picture[y, right] * share[x]
    at, share = _between(height, rows, ratio_y)
    out = np.empty((height, width), np.float32)
    for y in range(height):
        above, below = wide[at[y]], wide[min(at[y] + 1, rows - 1)]
        for x in range(width):
            out[y, x] = above[x] * (np.float32(1) - share[y]) + below[x] * share[y]
    return out


@compiled
def _between(count: int, old: int, ratio: float) -> tuple[NDArray[np.int64], Floats]:
    """For each new position the old one before it, and how far on it lies."""
    at, share = np.empty(count, np.int64), np.empty(count, np.float32)
    for i in range(count):
        place = np.float32((i + 0.5) * ratio - 0.5)
        before = np.floor(place)
        at[i], share[i] = int(before), place - before
        if before < 0:
            at[i], share[i] = 0, 0
        if at[i] >= old - 1:
            at[i], share[i] = old - 1, 0
    return at, share


@compiled
def planes_of(picture: NDArray[np.float32]) -> Floats:
    """A picture and its central differences; at the border the missing neighbour is the pixel itself."""
    height, width = picture.shape
    planes = np.zeros((height + 2 * BORDER, width + 2 * BORDER, 4), np.float32)
    for y in range(height):
        above, here, below = picture[max(y - 1, 0)], picture[y], picture[min(y + 1, height - 1)]
        out = planes[y + BORDER]
        for x in range(width):
            out[x + BORDER, 0] = here[x]
            out[x + BORDER, 1] = np.float32(0.5) * (here[min(x + 1, width - 1)] - here[max(x - 1, 0)])
            out[x + BORDER, 2] = np.float32(0.5) * (below[x] - above[x])
    return planes.ravel()


@compiled
def linearise(first: NDArray[np.float32], planes: Floats, state: Floats, line: Floats) -> None:
    """Fill `line`: the second picture, in `planes`, warped by the flow of `state`, against the first."""
    height, width = first.shape
    pitch = pitch_of(width)
    places = np.zeros(10 * pitch, np.float32)  # rows: whole place x, y; weights of the four columns, of the four rows
    warped = np.zeros(4 * pitch, np.float32)  # rows: level, gradient x, y; the first picture
    xs, ys = np.arange(pitch).astype(np.float32), np.empty(pitch, np.float32)
    for y in range(height):
        u = (y + 2) * FIELDS * pitch + MARGIN
        ys[:] = y
        _place(xs, state, u, width, width, places, 0, 2 * pitch, pitch)
        _place(ys, state, u + pitch, width, height, places, pitch, 6 * pitch, pitch)
        _take(planes, places, warped, width, pitch, 4 * (width + 2 * BORDER))
        warped[3 * pitch : 3 * pitch + width] = first[y]
        _explain(warped, state, u, line, y * LINES * pitch + MARGIN, width, pitch)


@compiled
def _place(
    start: Floats, flow: Floats, u: int, width: int, size: int, places: Floats, whole: int, weights: int, pitch: int
) -> None:
    """Where a row's pixels go along one axis, of `size` pixels: the pixel before, and the cubic's four weights."""
    low, high = every(np.float32(-4)), every(np.float32(size + 3))  # from there on all taps lie outside
    one, two = every(np.float32(1)), every(np.float32(CUBIC + 2))
    three, a = every(np.float32(CUBIC + 3)), every(np.float32(CUBIC))
    five, eight, four = every(np.float32(5 * CUBIC)), every(np.float32(8 * CUBIC)), every(np.float32(4 * CUBIC))
    for x in range(0, width, COUNT):
        place = most(least(load(start, x) + load(flow, u + x), high), low)
        before = down(place)
        t = place - before
        s, r = t + one, one - t
        first = ((a * s - five) * s + eight) * s - four
        second = (two * t - three) * t * t + one
        third = (two * r - three) * r * r + one
        store(places, whole + x, before)
        store(places, weights + x, first)
        store(places, weights + pitch + x, second)
        store(places, weights + 2 * pitch + x, third)
        store(places, weights + 3 * pitch + x, one - first - second - third)


@compiled
def _take(planes: Floats, places: Floats, warped: Floats, width: int, pitch: int, row: int) -> None:
    """The sixteen taps of each pixel of a row, of all three planes at once. `row`: length of one of `planes`."""
    for x in range(width):
        column, line = int(places[x]), int(places[pitch + x])
        tap = (line + BORDER - 1) * row + (column + BORDER - 1) * 4
        y0, y1 = every(places[6 * pitch + x]), every(places[7 * pitch + x])
        y2, y3 = every(places[8 * pitch + x]), every(places[9 * pitch + x])
        left, right = load(planes, tap) * y0, load(planes, tap + 8) * y0  # two columns each
        tap += row
        left, right = left + load(planes, tap) * y1, right + load(planes, tap + 8) * y1
        tap += row
        left, right = left + load(planes, tap) * y2, right + load(planes, tap + 8) * y2
        tap += row
        left, right = left + load(planes, tap) * y3, right + load(planes, tap + 8) * y3
        left = left * halves(places[2 * pitch + x], places[3 * pitch + x])
        right = right * halves(places[4 * pitch + x], places[5 * pitch + x])
        level, gx, gy, _ = halves_added(left + right)
        warped[x] = level
        warped[pitch + x] = gx
        warped[2 * pitch + x] = gy


@compiled
def _explain(warped: Floats, state: Floats, u: int, line: Floats, g: int, width: int, pitch: int) -> None:
    """A row of `line`: the gradient, one over its square, and what is left where the flow is 0."""
    one, flat = every(np.float32(1)), every(FLAT)
    for x in range(0, width, COUNT):
        gx, gy = load(warped, x + pitch), load(warped, x + 2 * pitch)
        rho = load(warped, x) - gx * load(state, u + x) - gy * load(state, u + pitch + x) - load(warped, x + 3 * pitch)
        store(line, g + x, gx)
        store(line, g + pitch + x, gy)
        store(line, g + 2 * pitch + x, one / most(gx * gx + gy * gy, flat))
        store(line, g + 3 * pitch + x, rho)
