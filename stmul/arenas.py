"""Memory for pixels, used again and again.

Fresh memory costs a page fault for every 4 kB that is written: on a virtual machine more than half of what decoding a
clip costs. Memory that was written before costs nothing.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPARE = 4  # buffers kept though nobody uses them
STEP = 1 << 20  # sizes are rounded up to a multiple, so that clips of nearly equal size share buffers


class Arenas:
    """Buffers on the CPU; each is lent again once no tensor looks at it any more. Threads may share it."""

    def __init__(self) -> None:
        self._free: deque[NDArray[np.uint8]] = deque()
        self._lock = threading.Lock()

    def take(self, shape: Sequence[int]) -> Tensor:
        """A uint8 tensor of `shape`; what is in it is left from its last use."""
        size = math.prod(shape)
        with self._lock:
            buffer = self._fitting(size)
        if buffer is None:
            buffer = np.empty(-(-size // STEP) * STEP, np.uint8)
        # The tensor's storage holds this view while any tensor uses it; when the view goes, the buffer is free.
        lent = buffer[:size]
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent).view(*shape)

    def _fitting(self, size: int) -> NDArray[np.uint8] | None:
        """The free buffer that is large enough and wastes least; too many of other sizes are given up."""
        free = [self._free.popleft() for _ in range(len(self._free))]
        fitting = [buffer for buffer in free if size <= len(buffer) <= 2 * size + STEP]
        best = min(fitting, key=len, default=None)
        rest = [buffer for buffer in free if buffer is not best]
        self._free.extend(rest[-SPARE:] if best is None else rest)
        return best
