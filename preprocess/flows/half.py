"""Flow at half the size: each side halved and rounded down, by area; the whole picture maps onto the whole picture.

An output pixel is the mean of what lies under it: of 2 x 2 pixels where both sides are even. Where a side is odd,
2m + 1 pixels become m, and output i reaches from 2i + i/m to 2i + 2 + (i + 1)/m: it is made of m - i parts of one
pixel, m of the next and i + 1 of the third. So a place x of a side of n pixels lies at x m / n, as whoever resizes by
the two sizes takes it to.

Only where flow is stored changes, not what it says: values stay pixels of the full-size frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 16  # pixels of a side that can be halved; less than 8 would be left of it


def halved(flow_px_HW2: NDArray[np.float32]) -> NDArray[np.float64]:
    """A field of flow (H, W, 2) in pixels at half its size, (H // 2, W // 2, 2), in pixels as before."""
    sums, parts = _summed(flow_px_HW2.astype(np.float64))
    return np.asarray(sums / parts)


def halved_levels(levels_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Levels (H, W) at half their size, (H // 2, W // 2): exact means, rounded once, half to even as in `quantise`."""
    sums, parts = _summed(levels_HW.astype(np.int64))
    below, rest = np.divmod(sums, parts)
    up = (2 * rest > parts) | ((2 * rest == parts) & (below % 2 == 1))
    return np.asarray(below + up, dtype=np.uint8)


def _summed(x: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Weighted sums over the first two axes, and what to divide them by. Weights are whole, so levels sum exactly."""
    down, rows = _summed_along(x)
    across, columns = _summed_along(down.swapaxes(0, 1))
    return across.swapaxes(0, 1), rows * columns


def _summed_along(x: NDArray[Any]) -> tuple[NDArray[Any], int]:
    half, odd = divmod(len(x), 2)
    if not odd:
        return x[0::2] + x[1::2], 2
    i = np.arange(half).reshape(-1, *(1,) * (x.ndim - 1))
    return (half - i) * x[:-1:2] + half * x[1::2] + (i + 1) * x[2::2], 2 * half + 1
