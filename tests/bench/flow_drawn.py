"""Drawn pairs whose flow is known exactly: a texture given by a formula, moved by translation, zoom and rotation.

The second picture shows at x + f(x) what the first shows at x, with f linear, so that both are the formula's values at
exact places: no picture is resampled. Levels are rounded to bytes, as in a video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.bench.flow_pairs import Pair

Places = NDArray[np.float64]  # (..., 2): x, y in pixels from the middle
MARGIN = 4  # pixels at the picture's edge that are not judged


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """x + f(x) = zoom R(turn) x + shift."""

    name: str
    shift: tuple[float, float] = (0.0, 0.0)  # pixels, to the right and down
    zoom: float = 1.0
    turn: float = 0.0  # degrees

    @property
    def matrix(self) -> NDArray[np.float64]:
        """zoom R(turn)."""
        angle = np.deg2rad(self.turn)
        return self.zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


MOTIONS = (
    Motion(name="shift of (0.25, -0.5)", shift=(0.25, -0.5)),
    Motion(name="shift of (1.7, 0.6)", shift=(1.7, 0.6)),
    Motion(name="shift of (-4.3, 2.9)", shift=(-4.3, 2.9)),
    Motion(name="shift of (9.5, 3.1)", shift=(9.5, 3.1)),
    Motion(name="zoom of 1.03", zoom=1.03),
    Motion(name="turn of 2 degrees", turn=2.0),
    Motion(name="zoom of 0.98, turn of -1.5 degrees, shift of (1.3, -0.7)", shift=(1.3, -0.7), zoom=0.98, turn=-1.5),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """A drawn pair, its flow, and where both pictures show the same."""

    pair: Pair
    flow_HW2: NDArray[np.float64]
    judged_HW: NDArray[np.bool_]


def drawn_pairs(height: int = 256, width: int = 340) -> Iterator[Drawn]:
    """Each motion with each texture."""
    for texture, sharpness in (("smooth", 0.7), ("sharp", 4.0)):
        for number, motion in enumerate(MOTIONS):
            yield drawn(motion, height, width, texture=texture, sharpness=sharpness, seed=number)


def drawn(motion: Motion, height: int, width: int, *, texture: str, sharpness: float, seed: int) -> Drawn:
    """One motion of one texture."""
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([columns - (width - 1) / 2, rows - (height - 1) / 2], axis=-1)
    moved = places @ motion.matrix.T + motion.shift
    origin = (places - motion.shift) @ np.linalg.inv(motion.matrix).T  # of what the second picture shows
    limit = np.array([(width - 1) / 2, (height - 1) / 2]) - MARGIN
    first, second = (_levels(where, sharpness, seed) for where in (places, origin))
    return Drawn(
        pair=Pair(name=f"{motion.name}, {texture}", first=first, second=second),
        flow_HW2=moved - places,
        judged_HW=((np.abs(moved) <= limit) & (np.abs(places) <= limit)).all(axis=-1),
    )


def end_point_error(flow_HW2: NDArray[np.floating], known: Drawn) -> float:
    """The mean distance from the known flow, in pixels, where it is judged."""
    distance = np.linalg.norm(flow_HW2.astype(np.float64) - known.flow_HW2, axis=-1)
    return float(distance[known.judged_HW].mean())


def _levels(places: Places, sharpness: float, seed: int) -> NDArray[np.uint8]:
    """A sum of forty waves 6 to 60 pixels long, pressed together so that it is smooth or nearly black and white."""
    draw = np.random.default_rng(seed)
    waves = 40
    length = 6 * 10 ** draw.random(waves)
    angle, phase = 2 * np.pi * draw.random((2, waves))
    total = np.zeros(places.shape[:-1])
    for i in range(waves):
        along = places[..., 0] * np.cos(angle[i]) + places[..., 1] * np.sin(angle[i])
        total += np.sqrt(length[i]) * np.cos(2 * np.pi * along / length[i] + phase[i])
    total *= sharpness / np.sqrt(length.sum() / 2)
    levels = np.round(127.5 + 110 * np.tanh(total)).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)
