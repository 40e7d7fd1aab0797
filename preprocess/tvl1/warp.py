"""Scales and warps of TV-L1 on the CPU: OpenCV's bilinear resize, and its cubic remap of a picture and its gradient.

`planes` holds a picture and its gradient side by side, four float32 a pixel (level, d/dx, d/dy, 0), with BORDER pixels
of zeros around: what lies outside counts as 0, and no bound is looked at. Rows of `state` and `line`: see
preprocess/tvl1/iterate.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocess.tvl1.iterate import FIELDS, LINES, MARGIN, pitch_of
from preprocess.tvl1.lanes import (
    COUNT,
    Lanes,
    down,
    every,
    halves,
    halves_added,
    least,
    load,
    most,
    put,
    store,
    value,
)
from preprocess.tvl1.machine_code import compiled

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
def linearise(
    first: Floats, planes: Floats, state: Floats, line: Floats, steps: Floats, height: int, width: int, unit: float
) -> None:
    """Fill `line`: the second picture, in `planes`, warped by the flow of `state`, against the first.

    `first`: its rows, and COUNT values more; `steps`: 0, 1 .. COUNT - 1; `unit`: pixels in the unit of the flow.
    """
    pitch, row = pitch_of(width), 4 * (width + 2 * BORDER)
    places = np.zeros(10 * COUNT, np.float32)  # of eight pixels: whole place x, y; weights of four columns, four rows
    warped = np.zeros(3 * pitch, np.float32)  # rows: level, gradient x, y
    scale = np.float32(unit)
    for y in range(height):
        u = (y + 2) * FIELDS * pitch + MARGIN
        for x in range(0, width, COUNT):
            across = every(np.float32(x)) + load(steps, 0) + load(state, u + x) * every(scale)
            along = every(np.float32(y)) + load(state, u + pitch + x) * every(scale)
            _place(across, width, places, 0, 2 * COUNT)
            _place(along, height, places, COUNT, 6 * COUNT)
            for i in range(COUNT):
                level, gx, gy, _ = _taken(planes, places, i, row)
                put(warped, x + i, level)
                put(warped, pitch + x + i, gx)
                put(warped, 2 * pitch + x + i, gy)
        _explain(warped, first, y * width, state, u, line, y * LINES * pitch + MARGIN, width, pitch, scale)


@compiled
def _place(place: Lanes, size: int, places: Floats, whole: int, weights: int) -> None:
    """Where eight pixels go along one axis, of `size` pixels: the pixel before, and the cubic's four weights."""
    low, high = every(np.float32(-4)), every(np.float32(size + 3))  # from there on all taps lie outside
    one, two = every(np.float32(1)), every(np.float32(CUBIC + 2))
    three, a = every(np.float32(CUBIC + 3)), every(np.float32(CUBIC))
    five, eight, four = every(np.float32(5 * CUBIC)), every(np.float32(8 * CUBIC)), every(np.float32(4 * CUBIC))
    place = most(least(place, high), low)
    before = down(place)
    t = place - before
    s, r = t + one, one - t
    first = ((a * s - five) * s + eight) * s - four
    second = (two * t - three) * t * t + one
    third = (two * r - three) * r * r + one
    store(places, whole, before)
    store(places, weights, first)
    store(places, weights + COUNT, second)
    store(places, weights + 2 * COUNT, third)
    store(places, weights + 3 * COUNT, one - first - second - third)


@compiled
def _taken(planes: Floats, places: Floats, i: int, row: int) -> tuple[float, float, float, float]:
    """The sixteen taps of pixel i of eight, of all three planes at once. `row`: length of one of `planes`."""
    tap = (int(value(places, COUNT + i)) + BORDER - 1) * row + (int(value(places, i)) + BORDER - 1) * 4
    weight = every(value(places, 6 * COUNT + i))
    left, right = load(planes, tap) * weight, load(planes, tap + 8) * weight  # two columns each
    weight = every(value(places, 7 * COUNT + i))
    left, right = left + load(planes, tap + row) * weight, right + load(planes, tap + row + 8) * weight
    weight, tap = every(value(places, 8 * COUNT + i)), tap + 2 * row
    left, right = left + load(planes, tap) * weight, right + load(planes, tap + 8) * weight
    weight = every(value(places, 9 * COUNT + i))
    left, right = left + load(planes, tap + row) * weight, right + load(planes, tap + row + 8) * weight
    left = left * halves(value(places, 2 * COUNT + i), value(places, 3 * COUNT + i))
    right = right * halves(value(places, 4 * COUNT + i), value(places, 5 * COUNT + i))
    summed: tuple[float, float, float, float] = halves_added(left + right)
    return summed


@compiled
def _explain(
    warped: Floats,
    first: Floats,
    start: int,
    state: Floats,
    u: int,
    line: Floats,
    g: int,
    width: int,
    pitch: int,
    unit: np.float32,
) -> None:
    """A row of `line`: the gradient, one over its square, and what is left where the flow is 0."""
    one, per = every(np.float32(1)), every(np.float32(1) / unit)
    for x in range(0, width, COUNT):
        gx, gy = load(warped, x + pitch) * per, load(warped, x + 2 * pitch) * per
        apart = (load(warped, x) - load(first, start + x)) * per * per
        store(line, g + x, gx)
        store(line, g + pitch + x, gy)
        store(line, g + 2 * pitch + x, one / most(gx * gx + gy * gy, every(FLAT) * per * per))
        store(line, g + 3 * pitch + x, apart - (gx * load(state, u + x) + gy * load(state, u + pitch + x)))
