"""Which instants of a video a clip is made of. Pure: whole numbers in, whole numbers out.

An instant t is an RGB frame and a stack of L flow pairs t - L/2 .. t + L/2 - 1 about it. With L = 10 and n frames the
centres that need no edge rule are 5 .. n - 6 (st-resnet `cnn_get_im_flow_batch.m`, counted from 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.draws import Draws

Numbers = NDArray[np.int64]
NO_PAIR = -1  # a video of one frame has no motion: its flow is constant


@dataclass(frozen=True, slots=True, eq=False)
class Instants:
    """The frames and the flow pairs of one clip."""

    rgb: Numbers  # (T,) frame numbers; (0,) if RGB is not wanted
    flow: Numbers  # (T, L) pair numbers, NO_PAIR in a video of one frame; (0, L) if flow is not wanted

    @property
    def frames(self) -> Numbers:
        """The frames to read, each once, ascending."""
        return np.unique(self.rgb)

    @property
    def pairs(self) -> Numbers:
        """The pairs to read, each once, ascending."""
        return np.unique(self.flow[self.flow != NO_PAIR])


def centres(n: int, stack: int) -> range:
    """The instants of a video of `n` frames whose stack of `stack` pairs lies inside it; at least the middle one."""
    inside = range(stack // 2, n - stack // 2)
    return inside if len(inside) else range((n - 1) // 2, (n - 1) // 2 + 1)


def stacks(instants: Numbers, n: int, stack: int) -> Numbers:
    """The pairs about each instant, (T, L); in a video shorter than a stack the first and last pair repeat."""
    if n < 2:
        return np.full((len(instants), stack), NO_PAIR, dtype=np.int64)
    pairs: Numbers = instants[:, None] + np.arange(-(stack // 2), stack // 2)
    return pairs.clip(0, n - 2)


def evenly(among: range, count: int) -> Numbers:
    """`count` of the numbers in `among` (step 1), evenly spread, ends included, rounded half up; too few repeat."""
    if count == 1:
        return np.array([among[(len(among) - 1) // 2]], dtype=np.int64)
    steps, last = count - 1, len(among) - 1
    return among[0] + (2 * np.arange(count, dtype=np.int64) * last + steps) // (2 * steps)


def training(
    n: int, *, frames: int, stack: int, stride: int, draws: Draws, original_window_start: bool = False
) -> Instants:
    """A training clip: `frames` instants `stride` apart, a window of them drawn; evenly spread where they do not fit.

    With `original_window_start` the window never starts at the first position, as in the released code (a quirk).
    """
    inside = centres(n, stack)
    fitting = inside[::stride]
    if len(fitting) < frames:
        chosen = evenly(inside, frames)
    else:
        spare = len(fitting) - frames
        start = draws.integer(min(1, spare) if original_window_start else 0, spare)
        chosen = np.array(fitting[start : start + frames], dtype=np.int64)
    return Instants(chosen, stacks(chosen, n, stack))


def single(n: int, *, stack: int, draws: Draws) -> Instants:
    """One drawn instant: how the streams are trained alone."""
    inside = centres(n, stack)
    chosen = np.array([inside[draws.integer(0, len(inside) - 1)]], dtype=np.int64)
    return Instants(chosen, stacks(chosen, n, stack))


def testing(n: int, *, frames: int, stack: int) -> Instants:
    """The instants that a video is scored on: `frames` of them, evenly spread."""
    chosen = evenly(centres(n, stack), frames)
    return Instants(chosen, stacks(chosen, n, stack))


def only(instants: Instants, stream: str) -> Instants:
    """The same instants with only the frames (`appearance`) or only the flow (`motion`) wanted."""
    if stream == "appearance":
        return Instants(instants.rgb, instants.flow[:0])
    if stream == "motion":
        return Instants(instants.rgb[:0], instants.flow)
    return instants
