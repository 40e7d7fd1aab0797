"""Pictures as they are meant to be seen: turned and mirrored as the file says, as FFmpeg and players do.

Telephones write what the sensor saw and a display matrix beside it (in the container, in the stream, in EXIF). It maps
a stored point (x, y) to (a x + c y, b x + d y), x to the right and y down; only its signs count here, not its scale.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import SupportsBytes, cast

import av
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

MATRIX = struct.Struct("=9i")  # a b u, c d v, x y w; 16.16, the third column 2.30; FFmpeg hands on the machine's order

QUARTERS = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))  # a b c d of so many turns to the left


def upright(picture: Picture, frame: av.VideoFrame) -> Picture:
    """`picture` (H, W, C), which is the pixels of `frame`, turned by quarters and mirrored as `frame` says.

    A matrix of another angle than a quarter turn is passed over, as browsers do; FFmpeg would cut the corners off.
    """
    a, b, c, d = _matrix(frame)
    if (a or d) and not (b or c):
        sideways, down = a < 0, d < 0
    elif (b or c) and not (a or d):
        picture = picture.swapaxes(0, 1)
        sideways, down = c < 0, b < 0
    else:
        return picture
    return np.ascontiguousarray(picture[:: -1 if down else 1, :: -1 if sideways else 1])


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The four values that turn and mirror; those of less than a hundredth of the largest are taken for zero."""
    try:
        beside = cast(Mapping[str, SupportsBytes], frame.side_data)
    except ValueError:  # beside lies something that PyAV does not know, as EXIF; the turn it tells, no mirror image
        turns, off = divmod(frame.rotation + 1, 90)
        return QUARTERS[turns % 4] if off <= 2 else QUARTERS[0]
    raw = bytes(beside["DISPLAYMATRIX"]) if "DISPLAYMATRIX" in beside else b""
    if len(raw) < MATRIX.size:
        return QUARTERS[0]
    a, b, _, c, d, *_ = MATRIX.unpack_from(raw)
    small = max(map(abs, (a, b, c, d))) // 100
    a, b, c, d = (0 if abs(value) <= small else value for value in (a, b, c, d))
    return a, b, c, d
