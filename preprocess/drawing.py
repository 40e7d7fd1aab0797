"""The pictures of a drawn clip: shapes drift inside a still, round aperture, over a panning background.

Shapes live for a few frames each, at random places, and never change their size: a clip has neither beginning nor end,
and one of its frames alone does not tell where its shapes go. Both signs of a motion are one film played forwards or
backwards. Positions come from counter-based draws through sums, products, quotients and square roots alone, which every
machine rounds alike (IEEE 754): the same pixels everywhere. T frames, H W positions, lengths in pixels of a frame 72
pixels high (all lengths grow with the height).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from preprocess.cells import Cell
from shards.draws import Draws, words

Array = NDArray[np.float64]

HEIGHT = 72  # pixels in which the lengths below are given
APERTURE = (27.0, 32.0)  # radius
SPEED = (2.0, 4.0)  # pixels a frame: of a shift, and of a zoom at the aperture's edge
HALF_SIDES = ((4.5, 4.5), (10.0, 7.0))  # of a disc and of a rectangle
COVERED = 0.33  # part of the aperture under shapes, the same for both textures
GAP = 1.0  # between shapes: two edges never share a pixel
LIFE = 11  # frames that a shape is seen
TRIES = 128  # places tried in a frame for those that went
X, Y, COS, SIN, TONE, AGE = range(6)  # of a shape: place, direction, -1 dark or 1 light, frames since it came
GREY, CONTRAST = 126.0, 56.0  # luma of the aperture; half of the shapes are lighter, half darker by so much
CHROMA = 26.0
PANNING = (0.3, 1.2)  # pixels a frame
RATE = Fraction(25)


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


def pictures(cell: Cell, film: Film) -> NDArray[np.uint8]:
    """The frames of a clip as YUV 4:2:0 planes one above the other, (T, 3 H / 2, W), luma 16 .. 235."""
    window = aperture(film)
    behind_THW, tint = background(film)
    inside_HW = _disc(film.width, film.height, window)
    luma_THW = behind_THW + (GREY + CONTRAST * shapes(cell, film) - behind_THW) * inside_HW
    luma_THW = 16.0 + (luma_THW - 16.0) * light(film)
    chroma_2HW = _chroma(cell, film, inside_HW, tint)
    flat = np.rint(chroma_2HW).reshape(film.height // 2, film.width)
    planes = np.concatenate([np.rint(luma_THW), np.broadcast_to(flat, (film.frames, *flat.shape))], axis=1)
    levels: NDArray[np.uint8] = np.clip(planes, 16, 235).astype(np.uint8)
    return levels


def encoded(planes: NDArray[np.uint8]) -> bytes:
    """An AVI file of `planes` as MPEG-4 part 2 with XviD's tag; equal planes give equal bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="avi", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = planes.shape[2], planes.shape[1] * 2 // 3, "yuv420p"
        codec = stream.codec_context
        codec.codec_tag, codec.thread_count = "XVID", 1
        codec.options = {"flags": "+bitexact", "qmin": "2", "qmax": "2"}  # one quantiser throughout: texture survives
        for plane in planes:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(plane, format="yuv420p")))
        container.mux(stream.encode())
    return buffer.getvalue()


def shapes(cell: Cell, film: Film) -> Array:
    """How much lighter or darker the shapes make each pixel, -1 .. 1, mean about 0, (T, H, W)."""
    window, half = aperture(film), np.array(HALF_SIDES[cell.texture]) * film.unit
    seen = drift(cell, film)
    frame_M = np.repeat(np.arange(film.frames), [len(shapes_M6) for shapes_M6 in seen])
    shapes_M6 = np.concatenate(seen)
    x_M, y_M = shapes_M6[:, X] + window.x, shapes_M6[:, Y] + window.y
    reach = int(half[0] + half[1]) + 2
    left_M, top_M = np.floor(x_M).astype(int), np.floor(y_M).astype(int)
    square = np.arange(-reach, reach + 1)
    dx = ((left_M - x_M)[:, None] + square)[:, None, :]
    dy = ((top_M - y_M)[:, None] + square)[:, :, None]
    if cell.texture == 0:
        cover = np.clip(half[0] + 0.5 - np.sqrt(dx * dx + dy * dy), 0.0, 1.0)
    else:
        cos, sin = shapes_M6[:, COS, None, None], shapes_M6[:, SIN, None, None]
        along, across = np.abs(dx * cos + dy * sin), np.abs(dy * cos - dx * sin)
        cover = np.clip(half[0] + 0.5 - along, 0.0, 1.0) * np.clip(half[1] + 0.5 - across, 0.0, 1.0)
    margin = 3 * reach  # shapes are followed to somewhat outside the aperture, and so outside the frame
    wide, high = film.width + 2 * margin, film.height + 2 * margin
    row = (frame_M * high + top_M + margin)[:, None, None] + square[:, None]
    place = row * wide + (left_M + margin)[:, None, None] + square
    light: Array = cover * shapes_M6[:, TONE, None, None]
    canvas: Array = np.bincount(place.ravel(), light.ravel(), film.frames * high * wide).astype(np.float64)
    return canvas.reshape(film.frames, high, wide)[:, margin:-margin, margin:-margin]


def drift(cell: Cell, film: Film) -> list[Array]:
    """The shapes of each frame, a row (x, y, cos, sin, tone, age) each; x and y from the aperture's centre.

    Frame by frame all shapes move down or out, those too old or too far out go, and others come, anywhere where there
    is room, until the covered area is what it was: as many, as large and as evenly spread at the end as at the start.
    Half of them are light. The signs up and in are the same played backwards.
    """
    half, window = HALF_SIDES[cell.texture], aperture(film)
    draws = Draws.of(film.clip, "shapes")
    speed, edge = draws.uniform(*SPEED), window.radius / film.unit + half[0] + half[1]
    area = np.pi * half[0] * half[0] if cell.texture == 0 else 4 * half[0] * half[1]
    wanted = round(COVERED * 4 * edge * edge / area)
    shapes_N6 = np.empty((0, 6))
    seen: list[Array] = []
    for _ in range(-2 * LIFE, film.frames):
        if cell.motion == 0:
            shapes_N6[:, Y] = (shapes_N6[:, Y] + speed + edge) % (2 * edge) - edge
        else:
            shapes_N6[:, :COS] *= 1.0 + speed * film.unit / window.radius
        shapes_N6[:, AGE] += 1
        stays_N = (shapes_N6[:, AGE] < LIFE) & (np.abs(shapes_N6[:, :COS]) <= edge).all(axis=1)
        shapes_N6 = _filled(cell, shapes_N6[stays_N], wanted, edge, draws, newborn=len(seen) > 0)
        seen.append(shapes_N6 * (film.unit, film.unit, 1, 1, 1, 1))
    seen = seen[-film.frames :]
    return seen if cell.sign else seen[::-1]


def _filled(cell: Cell, shapes_N6: Array, wanted: int, edge: float, draws: Draws, *, newborn: bool) -> Array:
    """The shapes with others added where there is room, up to `wanted`; of any age unless `newborn`."""
    tries = TRIES if newborn else 10 * TRIES
    uniform_K5 = (words(draws.word(), 5 * tries) >> np.uint64(11)).astype(np.float64).reshape(-1, 5) * 2.0**-53
    new_K6 = np.zeros((tries, 6))
    new_K6[:, :TONE] = 2.0 * uniform_K5[:, :TONE] - 1.0
    new_K6[:, :COS] *= edge
    new_K6[:, COS:TONE] /= np.sqrt((new_K6[:, COS:TONE] ** 2).sum(axis=1, keepdims=True))
    new_K6[:, AGE] = 0.0 if newborn else np.floor(uniform_K5[:, TONE] * LIFE)
    for new_6 in new_K6[~_touch(cell, new_K6, shapes_N6, edge).any(axis=1)]:
        if len(shapes_N6) >= wanted:
            break
        if _touch(cell, new_6[None], shapes_N6, edge).any():
            continue  # of one added a moment ago
        new_6[TONE] = 1.0 if shapes_N6[:, TONE].sum() < 0 else -1.0
        shapes_N6 = np.concatenate([shapes_N6, new_6[None]])
    return shapes_N6


def _touch(cell: Cell, new_K6: Array, old_N6: Array, edge: float) -> NDArray[np.bool_]:
    """Which of K shapes come nearer than GAP to which of N others, (K, N). What shifts out below comes back above."""
    x_KN, y_KN = (new_K6[:, None, axis] - old_N6[:, axis] for axis in (X, Y))
    if cell.motion == 0:
        y_KN = y_KN - 2 * edge * np.rint(y_KN / (2 * edge))
    long, wide = HALF_SIDES[cell.texture]
    if cell.texture == 0:
        return x_KN * x_KN + y_KN * y_KN < (2 * long + GAP) ** 2
    # Two rectangles are apart if their shadows are, on one of their four axes.
    cos_K1, sin_K1, cos_N, sin_N = new_K6[:, COS, None], new_K6[:, SIN, None], old_N6[:, COS], old_N6[:, SIN]
    along_KN, across_KN = np.abs(cos_K1 * cos_N + sin_K1 * sin_N), np.abs(cos_K1 * sin_N - sin_K1 * cos_N)
    long_KN = long + long * along_KN + wide * across_KN + GAP
    wide_KN = wide + long * across_KN + wide * along_KN + GAP
    touch_KN = np.ones(x_KN.shape, dtype=bool)
    for cos, sin in ((cos_K1, sin_K1), (cos_N, sin_N)):
        touch_KN &= np.abs(x_KN * cos + y_KN * sin) < long_KN
        touch_KN &= np.abs(y_KN * cos - x_KN * sin) < wide_KN
    return touch_KN


def background(film: Film) -> tuple[Array, Array]:
    """Luma behind the aperture, (T, H, W), a blurred noise that pans steadily; and the group's tint, (2,) Cb and Cr."""
    scene, clip = Draws.of(film.scene, "background"), Draws.of(film.clip, "panning")
    velocity = [clip.uniform(*PANNING) * film.unit * (1 if clip.flag() else -1) for _ in "xy"]
    travel = int(PANNING[1] * film.unit * film.frames) + 2
    high, wide = film.height + travel, film.width + travel
    grain = (words(scene.word(), high * wide) >> np.uint64(56)).astype(np.int64).reshape(high, wide)
    for axis in (0, 0, 1, 1):
        grain = np.sum([np.roll(grain, step, axis) for step in range(-2, 3)], axis=0)
    noise = grain / 5.0**4  # whole numbers until here; spreads over some 10 levels about 127.5
    start = [0 if speed >= 0 else travel - 1 for speed in velocity]
    luma_THW = np.empty((film.frames, film.height, film.width))
    for t in range(film.frames):
        x, y = (begin + t * speed for begin, speed in zip(start, velocity, strict=True))
        left, top = int(x), int(y)
        part = noise[top : top + film.height + 1, left : left + film.width + 1]
        part = part[:-1] + (part[1:] - part[:-1]) * (y - top)
        luma_THW[t] = part[:, :-1] + (part[:, 1:] - part[:, :-1]) * (x - left)
    return luma_THW, np.array([scene.uniform(-6, 6), scene.uniform(-6, 6)])


def light(film: Film) -> Array:
    """What luma is multiplied with, (T, H, W): brighter to one side as the group's lamp stands, slowly changing."""
    scene, clip = Draws.of(film.scene, "light"), Draws.of(film.clip, "light")
    x_W = (2.0 * np.arange(film.width) / film.width - 1.0) * scene.uniform(-0.08, 0.08)
    y_H = (2.0 * np.arange(film.height) / film.height - 1.0) * scene.uniform(-0.08, 0.08)
    t_T = (2.0 * np.arange(film.frames) / film.frames - 1.0) * clip.uniform(-0.04, 0.04) + clip.uniform(0.92, 1.08)
    return t_T[:, None, None] * (1.0 + x_W + y_H[:, None])


def _chroma(cell: Cell, film: Film, inside_HW: Array, tint: Array) -> Array:
    """Cb and Cr, (2, H / 2, W / 2): the hue's inside the aperture, the group's tint outside."""
    draws = Draws.of(film.clip, "hue")
    warm = np.array([draws.uniform(-1.0, -0.7), draws.uniform(0.8, 1.0)]) * CHROMA
    hue = -warm if cell.hue else warm
    quarter = inside_HW.reshape(film.height // 2, 2, film.width // 2, 2)
    inside = (quarter[:, 0, :, 0] + quarter[:, 0, :, 1] + quarter[:, 1, :, 0] + quarter[:, 1, :, 1]) / 4.0
    return 128.0 + tint[:, None, None] + (hue - tint)[:, None, None] * inside


def _disc(width: int, height: int, window: Aperture) -> Array:
    """1 inside the aperture, 0 outside, between on its edge, (H, W)."""
    dx_W, dy_H = np.arange(width) - window.x, np.arange(height)[:, None] - window.y
    inside_HW: Array = np.clip(window.radius + 0.5 - np.sqrt(dx_W * dx_W + dy_H * dy_H), 0.0, 1.0)
    return inside_HW
