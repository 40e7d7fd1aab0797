"""The pictures of a drawn clip: shapes drift inside a still, round aperture, over a panning background.

All of it is a function of counter-based draws through sums, products, quotients and square roots: the same pixels on
every machine. T frames, M shapes in all frames together, H W positions.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from preprocess.drawing.cells import Cell
from preprocess.drawing.drift import (
    COS,
    DISC,
    RECTANGLE,
    SIN,
    SPECK,
    TONE,
    Aperture,
    Array,
    Film,
    X,
    Y,
    aperture,
    dust,
    shapes,
)
from shards.draws import Draws, words

GREY = 126.0  # luma of the aperture
DUST_CONTRAST = 18.0  # half of the specks are lighter, half darker by so much
WARM = (-20.0, 22.0)  # Cb and Cr of the aperture; cool is the opposite
TONES = (32.0, 30.0)  # added for half of the shapes, subtracted for the others: red and yellow, or blue and green
PANNING = (0.3, 1.2)  # units a frame, across and down
RATE = Fraction(25)


def pictures(cell: Cell, film: Film) -> NDArray[np.uint8]:
    """The frames of a clip as YUV 4:2:0 planes one above the other, (T, 3 H / 2, W), levels 16 .. 235.

    Shapes are drawn in colour alone, dust in grey alone: flow, which is computed on grey, cannot see the texture.
    """
    behind_THW, tint_2 = background(film)
    inside_HW = _disc(film.width, film.height, aperture(film))
    dust_THW = painted(dust(cell, film), film, (SPECK, SPECK), is_round=True)
    luma_THW = behind_THW + (GREY + DUST_CONTRAST * dust_THW - behind_THW) * inside_HW
    luma_THW = 16.0 + (luma_THW - 16.0) * light(film)
    half_sides = (DISC, DISC) if cell.texture == 0 else RECTANGLE
    shapes_THW = painted(shapes(cell, film), film, half_sides, is_round=cell.texture == 0)
    chroma_T2HW = _chroma(cell, film, inside_HW, shapes_THW, tint_2)
    planes = np.concatenate([luma_THW, chroma_T2HW.reshape(film.frames, film.height // 2, film.width)], axis=1)
    levels: NDArray[np.uint8] = np.clip(np.rint(planes), 16, 235).astype(np.uint8)
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


def painted(tables: list[Array], film: Film, half_sides: tuple[float, float], *, is_round: bool) -> Array:
    """The sum of the tones of all shapes on each pixel, edges softened over one pixel, (T, H, W)."""
    window, (long, wide) = aperture(film), np.array(half_sides) * film.unit
    reach = int(np.sqrt(long * long + (0 if is_round else wide * wide)) + 1.5)
    frame_M = np.repeat(np.arange(film.frames), [len(table) for table in tables])
    shapes_M6 = np.concatenate(tables)
    from_centre_M2 = shapes_M6[:, [X, Y]] * film.unit
    seen_M = (from_centre_M2 * from_centre_M2).sum(axis=1) < (window.radius + reach) ** 2
    frame_M, shapes_M6 = frame_M[seen_M], shapes_M6[seen_M]
    x_M, y_M = (from_centre_M2[seen_M] + (window.x, window.y)).T
    left_M, top_M = np.floor(x_M).astype(int), np.floor(y_M).astype(int)
    square = np.arange(-reach, reach + 1)
    dx_M1Q, dy_MQ1 = (left_M - x_M)[:, None, None] + square, (top_M - y_M)[:, None, None] + square[:, None]
    if is_round:
        cover_MQQ = np.clip(long + 0.5 - np.sqrt(dx_M1Q * dx_M1Q + dy_MQ1 * dy_MQ1), 0.0, 1.0)
    else:
        cos, sin = shapes_M6[:, COS, None, None], shapes_M6[:, SIN, None, None]
        along, across = np.abs(dx_M1Q * cos + dy_MQ1 * sin), np.abs(dy_MQ1 * cos - dx_M1Q * sin)
        cover_MQQ = np.clip(long + 0.5 - along, 0.0, 1.0) * np.clip(wide + 0.5 - across, 0.0, 1.0)
    margin = 2 * reach + 1  # a shape may lie partly, its square wholly outside the frame
    high, broad = film.height + 2 * margin, film.width + 2 * margin
    row_MQ1 = (frame_M * high + top_M + margin)[:, None, None] + square[:, None]
    pixel_MQQ = row_MQ1 * broad + (left_M + margin)[:, None, None] + square
    tones: Array = cover_MQQ * shapes_M6[:, TONE, None, None]
    canvas: Array = np.bincount(pixel_MQQ.ravel(), tones.ravel(), film.frames * high * broad).astype(np.float64)
    return canvas.reshape(film.frames, high, broad)[:, margin:-margin, margin:-margin]


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


def _chroma(cell: Cell, film: Film, inside_HW: Array, shapes_THW: Array, tint_2: Array) -> Array:
    """Cb and Cr, (T, 2, H / 2, W / 2): of the hue and the shapes' tones inside the aperture, of the group outside."""
    draws = Draws.of(film.clip, "hue")
    warm_2 = np.array(WARM) * draws.uniform(0.8, 1.0) + (draws.uniform(-4, 4), draws.uniform(-4, 4))
    hue_2, tone_2 = (-warm_2 if cell.hue else warm_2), np.array(TONES)
    inside_HW = _halved(inside_HW)
    colour_T2HW = hue_2[:, None, None] + tone_2[:, None, None] * _halved(shapes_THW)[:, None]
    return 128.0 + tint_2[:, None, None] + (colour_T2HW - tint_2[:, None, None]) * inside_HW


def _halved(x_HW: Array) -> Array:
    """The mean of every two by two pixels, (..., H / 2, W / 2)."""
    return (x_HW[..., ::2, ::2] + x_HW[..., ::2, 1::2] + x_HW[..., 1::2, ::2] + x_HW[..., 1::2, 1::2]) / 4.0


def _disc(width: int, height: int, window: Aperture) -> Array:
    """1 inside the aperture, 0 outside, between on its edge, (H, W)."""
    dx_W, dy_H = np.arange(width) - window.x, np.arange(height)[:, None] - window.y
    inside_HW: Array = np.clip(window.radius + 0.5 - np.sqrt(dx_W * dx_W + dy_H * dy_H), 0.0, 1.0)
    return inside_HW
