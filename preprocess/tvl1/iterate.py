"""The iterations of TV-L1 on the CPU: several at once down the rows of a picture, so that they work in the cache.

Rows lie one after the other. A row of `state` holds u1 u2 p11 p12 p21 p22, a row of `line` gx gy 1/grad rho_c, each
`pitch` float32 long with the picture's first column at MARGIN. `state` begins with two rows of zeros: no p comes before
the first row. What stands right of the picture is finite and never counts.
Equations: preprocess/tvl1/eager.py, which says the same in whole pictures. Here lengths are in units of theta / tau
pixels, which makes the step of the dual update 1: u, gx and gy are tau / theta times as great, rho_c its square.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocess.tvl1.lanes import COUNT, Lanes, every, least, load, most, put, root, store, total, value
from preprocess.tvl1.machine_code import compiled
from preprocess.tvl1.median import filter_rows

Floats = NDArray[np.float32]

MARGIN = 8  # before each row, zeros
FIELDS = 6  # of a row of `state`
LINES = 4  # of a row of `line`
AHEAD = 4  # iterations at most between two looks at the stop: more are done in vain more often than they save


@compiled
def pitch_of(width: int) -> int:
    """Length of a row with its margins."""
    return MARGIN + (width + COUNT - 1) // COUNT * COUNT + COUNT


@compiled
def solve(
    state: Floats,
    other: Floats,
    line: Floats,
    height: int,
    width: int,
    tau: float,
    bound: float,
    limit: float,
    inner: int,
    outer: int,
    median: int,
) -> bool:
    """One warp from `state`; whether the result lies in `other` rather than there again.

    `bound`: of v - u, in gradients; `limit`: of an iteration's squared change of u, where the warp ends. Iterations are
    done AHEAD of the stop where it seems far, from one state into the other; where the stop lay among them they are
    done again up to it. So the result is that of one after the other.
    """
    pitch = pitch_of(width)
    tail = np.zeros(COUNT, np.float32)
    tail[: (width - 1) % COUNT + 1] = 1
    errors = np.zeros(AHEAD, np.float64)
    swapped, error, ratio = False, np.inf, 0.25
    for _ in range(outer):
        if not error > limit:
            break
        if median > 1:
            for field in range(2):
                filter_rows(state, (2 * FIELDS + field) * pitch + MARGIN, FIELDS * pitch, height, width, median)
        done = 0
        while error > limit and done < inner:
            count = min(_far(error, ratio, limit), inner - done)
            _iterate(state, other, line, tail, height, width, count, np.float32(tau), np.float32(bound), errors)
            used = 1
            while used < count and errors[used - 1] > limit:
                used += 1
            if used < count:
                _iterate(state, other, line, tail, height, width, used, np.float32(tau), np.float32(bound), errors)
            before = error if used == 1 else errors[used - 2]
            error = errors[used - 1]
            if before < np.inf:
                ratio = error / before
            done += used
            state, other, swapped = other, state, not swapped
    return swapped


@compiled
def _far(error: float, ratio: float, limit: float) -> int:
    """How many iterations the stop is away if the error goes on falling as it did, 1 to AHEAD."""
    if error == np.inf:
        return 1
    count = 0
    while error > limit and count < AHEAD:
        error *= ratio
        count += 1
    return count


@compiled
def _iterate(
    state: Floats,
    new: Floats,
    line: Floats,
    tail: Floats,
    height: int,
    width: int,
    count: int,
    tau: np.float32,
    bound: np.float32,
    errors: NDArray[np.float64],
) -> None:
    """`count` iterations, each a row behind the one before; the first from `state` to `new`, the others in place."""
    pitch = pitch_of(width)
    row = FIELDS * pitch
    errors[:] = 0.0
    for front in range(height + count):
        for k in range(max(front - height, 0), min(count, front + 1)):
            y = front - k
            old = state if k == 0 else new
            here = (y + 2) * row + MARGIN
            if y < height:
                errors[k] += _flow_row(old, new, line, tail, y, width, pitch, tau, bound)
                put(new, here + width, value(new, here + width - 1))  # forward differences end at the last column
                put(new, here + pitch + width, value(new, here + pitch + width - 1))
            if y > 0:  # and at the last row
                _dual_row(old, new, here - row, here if y < height else here - row, width, pitch)


@compiled
def _flow_row(
    old: Floats,
    new: Floats,
    line: Floats,
    tail: Floats,
    y: int,
    width: int,
    pitch: int,
    tau: np.float32,
    bound: np.float32,
) -> float:
    """u of row y: by the data, by no more than the bound, and by the divergence of p. The sum of its squared change."""
    here, g = (y + 2) * FIELDS * pitch + MARGIN, y * LINES * pitch + MARGIN
    last = (width - 1) // COUNT * COUNT
    error = every(np.float32(0))
    for x in range(0, last, COUNT):
        error = error + _flow_lanes(old, new, line, here + x, g + x, pitch, every(tau), every(bound), every(-bound))
    change = _flow_lanes(old, new, line, here + last, g + last, pitch, every(tau), every(bound), every(-bound))
    summed: float = total(error + change * load(tail, 0))
    return summed


@compiled
def _flow_lanes(
    old: Floats, new: Floats, line: Floats, here: int, g: int, pitch: int, tau: Lanes, high: Lanes, low: Lanes
) -> Lanes:
    """u of eight pixels; its squared change."""
    above = here - FIELDS * pitch
    gx, gy = load(line, g), load(line, g + pitch)
    u1, u2 = load(old, here), load(old, here + pitch)
    rho = load(line, g + 3 * pitch) + (gx * u1 + gy * u2)
    back = most(least(rho * load(line, g + 2 * pitch), high), low)
    p1 = (load(old, here + 2 * pitch) - load(old, here + 2 * pitch - 1)) + (
        load(old, here + 3 * pitch) - load(old, above + 3 * pitch)
    )
    p2 = (load(old, here + 4 * pitch) - load(old, here + 4 * pitch - 1)) + (
        load(old, here + 5 * pitch) - load(old, above + 5 * pitch)
    )
    change1, change2 = tau * p1 - back * gx, tau * p2 - back * gy
    store(new, here, u1 + change1)
    store(new, here + pitch, u2 + change2)
    return change1 * change1 + change2 * change2


@compiled
def _dual_row(old: Floats, new: Floats, row: int, below: int, width: int, pitch: int) -> None:
    """p of a row, from the flow there and in the row below."""
    one = every(np.float32(1))
    for x in range(0, width, COUNT):
        here, under = row + x, below + x
        u1, u2 = load(new, here), load(new, here + pitch)
        x1, y1 = load(new, here + 1) - u1, load(new, under) - u1
        x2, y2 = load(new, here + pitch + 1) - u2, load(new, under + pitch) - u2
        shrink1, shrink2 = one + root(x1 * x1 + y1 * y1), one + root(x2 * x2 + y2 * y2)
        both = one / (shrink1 * shrink2)  # one division for two
        shrink1, shrink2 = shrink2 * both, shrink1 * both
        store(new, here + 2 * pitch, (load(old, here + 2 * pitch) + x1) * shrink1)
        store(new, here + 3 * pitch, (load(old, here + 3 * pitch) + y1) * shrink1)
        store(new, here + 4 * pitch, (load(old, here + 4 * pitch) + x2) * shrink2)
        store(new, here + 5 * pitch, (load(old, here + 5 * pitch) + y2) * shrink2)
