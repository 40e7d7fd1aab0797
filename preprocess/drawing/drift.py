"""Where the shapes of a drawn clip are, frame by frame, and how they move.

Shapes live for a few frames each, at random places, and never change their size: a clip has neither beginning nor end,
and one of its frames alone does not tell where its shapes go. Both signs of a motion are one film played forwards or
backwards. Positions come from counter-based draws through sums, products, quotients and square roots alone, which every
machine rounds alike (IEEE 754): the same positions everywhere.

N shapes, K new ones. Lengths are in units of the frame's height / 72; a table of shapes has a row (x, y, cos, sin,
tone, age) for each, x and y from the aperture's centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocess.drawing.cells import Cell
from shards.draws import Draws, words

Array = NDArray[np.float64]

X, Y, COS, SIN, TONE, AGE = range(6)  # of a shape: place, direction, -1 or 1, frames since it came
HEIGHT = 72  # units
APERTURE = (27.0, 32.0)  # radius
SPEED = (2.0, 4.0)  # a frame: of a shift, and of a zoom at the aperture's edge
DISC = 3.0  # radius
RECTANGLE = (14.0, 10.0)  # half of its sides
SPECK = 1.3  # radius
COVERED = 0.33  # part of the plane under shapes, the same for both textures
DUSTED = 0.3  # part of the plane under dust
GAP = 1.0  # between shapes: two edges never share a pixel
LIFE = 11  # frames that a shape is seen
TRIES = 128  # places tried in a frame for those that went


@dataclass(frozen=True, kw_only=True, slots=True)
class Aperture:
    """Where the shapes are seen: a disc that stays where it is for the whole clip. Pixels."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """The size of a clip and the keys it is drawn under."""

    width: int
    height: int
    frames: int
    scene: int  # key of what the clips of one group share: background and light
    clip: int  # key of everything else

    @property
    def unit(self) -> float:
        """Pixels for one of the lengths above."""
        return self.height / HEIGHT


def aperture(film: Film) -> Aperture:
    """The place and size of the aperture, whole inside the frame."""
    draws = Draws.of(film.clip, "aperture")
    radius = draws.uniform(*APERTURE) * film.unit
    slack_x, slack_y = min(film.width / 2 - radius, 9 * film.unit), film.height / 2 - radius
    return Aperture(
        x=film.width / 2 + draws.uniform(-slack_x, slack_x),
        y=film.height / 2 + draws.uniform(-slack_y, slack_y),
        radius=radius,
    )


def shapes(cell: Cell, film: Film) -> list[Array]:
    """The discs or rectangles of each frame, tables of shapes. They never touch; each tone has half of them."""
    area = np.pi * DISC * DISC if cell.texture == 0 else 4 * RECTANGLE[0] * RECTANGLE[1]
    edge = aperture(film).radius / film.unit + (2 * DISC if cell.texture == 0 else sum(RECTANGLE))
    return _drifting(cell, film, "shapes", edge=edge, wanted=round(COVERED * 4 * edge * edge / area))


def dust(cell: Cell, film: Film) -> list[Array]:
    """The specks of each frame, tables of shapes: everywhere, over each other too, and the same for both textures.

    They go where the shapes go, and are what optical flow sees: it would be good on small shapes and bad inside large
    ones, and so tell the texture, if it saw those.
    """
    edge = aperture(film).radius / film.unit + 2 * SPECK
    wanted = round(DUSTED * 4 * edge * edge / (np.pi * SPECK * SPECK))
    return _drifting(cell, film, "dust", edge=edge, wanted=wanted)


def _drifting(cell: Cell, film: Film, kind: str, *, edge: float, wanted: int) -> list[Array]:
    """Tables of `wanted` shapes in a square of half side `edge`, for each frame.

    Frame by frame all shapes move down or out, those too old or too far out go, and others come, anywhere where there
    is room, until there are as many as before: as evenly spread at the end as at the start. Up and in are the same
    played backwards.
    """
    speed = Draws.of(film.clip, "speed").uniform(*SPEED)
    draws = Draws.of(film.clip, kind)
    fill = _room_filled if kind == "shapes" else _filled
    table_N6 = fill(cell, np.empty((0, 6)), _drawn(draws, 10 * TRIES + wanted, edge, newborn=False), wanted, edge)
    tables = []
    for _ in range(2 * LIFE + film.frames):
        if cell.motion == 0:
            table_N6[:, Y] = (table_N6[:, Y] + speed + edge) % (2 * edge) - edge
        else:
            table_N6[:, :COS] *= 1.0 + speed * film.unit / aperture(film).radius
        table_N6[:, AGE] += 1
        stays_N = (table_N6[:, AGE] < LIFE) & (np.abs(table_N6[:, :COS]) <= edge).all(axis=1)
        new_K6 = _drawn(draws, max(TRIES, wanted - int(stays_N.sum())), edge, newborn=True)
        table_N6 = fill(cell, table_N6[stays_N], new_K6, wanted, edge)
        tables.append(table_N6.copy())
    tables = tables[-film.frames :]  # those before were only to mix ages and places
    return tables if cell.sign else tables[::-1]


def _drawn(draws: Draws, count: int, edge: float, *, newborn: bool) -> Array:
    """A table of shapes anywhere in the square, of any age unless `newborn`, of both tones in turn."""
    uniform_K5 = (words(draws.word(), 5 * count) >> np.uint64(11)).astype(np.float64).reshape(-1, 5) * 2.0**-53
    new_K6 = np.zeros((count, 6))
    new_K6[:, :TONE] = 2.0 * uniform_K5[:, :TONE] - 1.0
    new_K6[:, :COS] *= edge
    new_K6[:, COS:TONE] /= np.sqrt((new_K6[:, COS:TONE] ** 2).sum(axis=1, keepdims=True))
    new_K6[:, TONE] = 2.0 * (np.arange(count) % 2) - 1.0
    new_K6[:, AGE] = 0.0 if newborn else np.floor(uniform_K5[:, TONE] * LIFE)
    return new_K6


def _filled(cell: Cell, table_N6: Array, new_K6: Array, wanted: int, edge: float) -> Array:
    """The table filled up to `wanted` shapes."""
    return np.concatenate([table_N6, new_K6[: wanted - len(table_N6)]])


def _room_filled(cell: Cell, table_N6: Array, new_K6: Array, wanted: int, edge: float) -> Array:
    """The table filled up to `wanted` shapes as long as any of the new ones touches none, as many of each tone."""
    for new_6 in new_K6[~_touch(cell, new_K6, table_N6, edge).any(axis=1)]:
        if len(table_N6) >= wanted:
            break
        if _touch(cell, new_6[None], table_N6, edge).any():
            continue  # one added a moment ago
        new_6[TONE] = 1.0 if table_N6[:, TONE].sum() < 0 else -1.0
        table_N6 = np.concatenate([table_N6, new_6[None]])
    return table_N6


def _touch(cell: Cell, new_K6: Array, old_N6: Array, edge: float) -> NDArray[np.bool_]:
    """Which of K shapes come nearer than GAP to which of N others, (K, N). What shifts out below comes back above."""
    x_KN, y_KN = (new_K6[:, None, axis] - old_N6[:, axis] for axis in (X, Y))
    if cell.motion == 0:
        y_KN = y_KN - 2 * edge * np.rint(y_KN / (2 * edge))
    if cell.texture == 0:
        nearest = 2 * DISC + GAP
        return x_KN * x_KN + y_KN * y_KN < nearest * nearest
    # Two rectangles are apart if their shadows are, on one of their four axes.
    long, wide = RECTANGLE
    cos_K1, sin_K1, cos_N, sin_N = new_K6[:, COS, None], new_K6[:, SIN, None], old_N6[:, COS], old_N6[:, SIN]
    along_KN, across_KN = np.abs(cos_K1 * cos_N + sin_K1 * sin_N), np.abs(cos_K1 * sin_N - sin_K1 * cos_N)
    long_KN = long + long * along_KN + wide * across_KN + GAP
    wide_KN = wide + long * across_KN + wide * along_KN + GAP
    touch_KN = np.ones(x_KN.shape, dtype=bool)
    for cos, sin in ((cos_K1, sin_K1), (cos_N, sin_N)):
        touch_KN &= np.abs(x_KN * cos + y_KN * sin) < long_KN
        touch_KN &= np.abs(y_KN * cos - x_KN * sin) < wide_KN
    return touch_KN
