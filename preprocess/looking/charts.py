"""Small charts drawn in pixels, to stand in a sheet beside frames: flow against its bound, a video over its time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.picture import EDGE, FAINT, INK, LABEL_SIZE, PAPER, Picture

FLOW, OVER, REPEATED, MISSING = (28, 113, 216), (196, 40, 27), (222, 140, 20), (138, 63, 143)
LEFT, RIGHT, TOP, BOTTOM = 68, 10, 26, 24  # pixels about the axes
LOWEST = 0.5  # pixels: where the axis of the timeline ends at least, so that noise looks like noise
LEAST = 1e-6  # share at which the axis of the histogram begins: one value in some pairs


def histogram(counts: NDArray[np.int64], bin_px: float, bound_px: float, size: tuple[int, int]) -> Picture:
    """Shares of flow values by their absolute size, on a logarithmic axis; what is beyond the bound is red.

    The last of `counts` is all beyond the others. `size` is width and height.
    """
    page, draw, (left, top, right, bottom) = _axes(size)
    share = counts / max(int(counts.sum()), 1)
    decades = round(-np.log10(LEAST))
    step = (right - left) / len(counts)
    for decade in range(0, decades + 1, 2):
        y = top + (bottom - top) * decade / decades
        draw.line((left, y, right, y), fill=EDGE)
        words = "100 %" if not decade else f"{100 * 10.0**-decade:g} %"
        draw.text((left - 6, y), words, fill=FAINT, font=_font(), anchor="rm")
    for number, part in enumerate(share.tolist()):
        if part > 0:
            tall = max(0.0, 1 + np.log10(max(part, LEAST)) / decades) * (bottom - top)
            x = left + number * step
            beyond = number * bin_px >= bound_px
            draw.rectangle((x, bottom - max(tall, 1), x + step - 1.5, bottom), fill=OVER if beyond else FLOW)
    last = (len(counts) - 1) * bin_px
    for px in np.arange(0, last, 10):
        _tick(draw, left + px / bin_px * step, bottom, f"{px:g}")
    _tick(draw, right - step / 2, bottom, f"{last:g} px +", anchor="rt")
    x = left + bound_px / bin_px * step
    _dashed(draw, x, top - 6, bottom)
    draw.text((x + 6, top - 8), f"bound {bound_px:g} px", fill=INK, font=_font(), anchor="lm")
    return np.asarray(page)


def timeline(
    length_P: NDArray[np.float64],
    beyond_P: NDArray[np.float64],
    repeated: Sequence[int],
    late: Sequence[int],
    size: tuple[int, int],
) -> Picture:
    """Mean length of the flow of each pair, the share of it beyond the bound in red.

    Marks above: frames that repeat the one before (orange), and frames before which others are missing (violet).
    """
    page, draw, (left, top, right, bottom) = _axes(size)
    highest = _round_up(float(length_P.max(initial=LOWEST)))
    for part in (0.0, 0.5, 1.0):
        y = bottom - part * (bottom - top)
        draw.line((left, y, right, y), fill=EDGE)
        draw.text((left - 6, y), f"{part * highest:g} px", fill=FAINT, font=_font(), anchor="rm")
    pairs = max(len(length_P), 1)
    step = (right - left) / pairs
    for pair, (length, beyond) in enumerate(zip(length_P.tolist(), beyond_P.tolist(), strict=True)):
        x, tall = left + pair * step, length / highest * (bottom - top)
        ends = (x, x + max(step - (1.0 if step >= 3 else 0.0), 0.5))
        draw.rectangle((ends[0], bottom - max(tall, 1), ends[1], bottom), fill=FLOW)
        if beyond > 0:
            draw.rectangle((ends[0], bottom - max(tall * beyond, 2), ends[1], bottom), fill=OVER)
    for frames, colour, y in ((repeated, REPEATED, top - 10), (late, MISSING, top - 20)):
        for frame in frames:
            x = left + (frame - 0.5) * step
            draw.polygon([(x - 3, y), (x + 3, y), (x, y + 6)], fill=colour)
    _key(draw, [("repeats the one before", REPEATED, repeated), ("frames are missing", MISSING, late)], right)
    for frame in range(0, pairs, _spacing(pairs)):
        _tick(draw, left + frame * step, bottom, f"{frame}")
    return np.asarray(page)


def _axes(size: tuple[int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[int, int, int, int]]:
    """An empty chart of this width and height, and the edges of what is drawn in it: left, top, right, bottom."""
    page = Image.new("RGB", size, PAPER)
    return page, ImageDraw.Draw(page), (LEFT, TOP, max(size[0] - RIGHT, LEFT + 10), max(size[1] - BOTTOM, TOP + 10))


def _tick(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, anchor: str = "mt") -> None:
    draw.line((x, y, x, y + 3), fill=FAINT)
    draw.text((x, y + 7), text, fill=FAINT, font=_font(), anchor=anchor)


def _dashed(draw: ImageDraw.ImageDraw, x: float, top: float, bottom: float) -> None:
    for y in np.arange(top, bottom, 6):
        draw.line((x, y, x, min(y + 3, bottom)), fill=INK)


def _key(draw: ImageDraw.ImageDraw, marks: Sequence[tuple[str, tuple[int, int, int], Sequence[int]]], x: float) -> None:
    """What the marks mean, those that there are, from the right edge `x` to the left, below the marks."""
    for words, colour, there in marks:
        if there:
            width = _font().getlength(words)
            draw.rectangle((x - width - 18, TOP + 1, x, TOP + LABEL_SIZE + 5), fill=PAPER)
            draw.text((x, TOP + 3), words, fill=colour, font=_font(), anchor="rt")
            draw.polygon([(x - width - 14, TOP + 6), (x - width - 8, TOP + 6), (x - width - 11, TOP + 12)], fill=colour)
            x -= width + 30


def _round_up(value: float) -> float:
    """The next number that an axis may end at: 1, 1.5, 2, 3, 4, 5, 6, 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return float(next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value * (1 - 1e-9)))


def _spacing(count: int) -> int:
    """From one tick to the next, of about eight among `count`: 1, 2, 5, 10, 20, 50 ..."""
    power: int = 10 ** int(math.log10(max(count / 8, 1)))
    return next(step * power for step in (1, 2, 5, 10) if step * power * 8 >= count)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(LABEL_SIZE)
