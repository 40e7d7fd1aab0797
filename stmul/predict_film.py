"""The pages of a film of a prediction: each frame, its flow in colour beside it, and below what is seen at that time.

Pages are uint8 (H, W, 3) with even sides, on dark paper, as players have it. A class keeps its colour through the film.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.picture import Picture, decoded, flow_colour, legend, no_bombs, round_limit, shown_flow
from shards.record import Record
from stmul.predict import Prediction, Window

PAPER, INK, FAINT, TRACK = (20, 22, 26), (238, 240, 243), (150, 156, 166), (48, 52, 60)
# Of the classes that the film names most, the first first (Okabe and Ito, told apart by most who are colour-blind).
COLOURS = ((86, 180, 233), (230, 159, 0), (0, 178, 128), (240, 228, 66), (204, 121, 167), (213, 94, 0), (0, 114, 178))
OTHER = (120, 126, 136)
MARGIN, GAP, ROW = 12, 8, 24  # pixels; ROW: from one bar to the next
TEXT, SMALL = 15, 12  # pixels of type
TALL = (200, 540)  # pixels that a frame may be high as it is; others are shown USUAL high
USUAL = 256
NARROWEST = 560  # pixels: bars need some room
WHEEL = 60
TIMES, PERCENT = 130, 76  # widths of the words about time, and of a bar's number
PAIRS = 24  # pairs whose flow decides the scale of colours


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where things are on every page of a film."""

    picture: tuple[int, int]  # width and height of a frame as it is shown
    page: tuple[int, int]
    left: int  # of the frame
    edge: int  # right end of the words about time: the wheel of colours is beyond
    bars: int  # top of the first
    strip: int  # top of the strip of classes over time


def pages(record: Record, found: Prediction, *, top: int = 3) -> Iterator[Picture]:
    """A page for each frame of `record`, with the `top` classes of the window nearest to it.

    Raises CorruptRecordError where a picture of the record cannot be decoded.
    """
    top = min(top, len(found.classes))
    layout = layout_of(record.rgb.width, record.rgb.height, bars=top)
    colours, limit = class_colours(found), flow_limit(record)
    every = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=2).astype(np.uint8)
    wheel = flow_colour(shown_flow(every), limit)  # of each pair of levels: looked up, not computed for each pixel
    still = _strip(found, colours, layout)
    seen: Window | None = None
    for frame in range(record.frames):
        if seen is not (window := found.at(frame)):
            seen, base = window, _base(found, window, layout, still, colours, limit if len(record.flow) else None, top)
        page = base.copy()
        with no_bombs():
            rgb = decoded(record.rgb[frame], (record.rgb.width, record.rgb.height), "RGB", record.name)
            flow = _flow(record, min(frame, record.frames - 2), wheel)
        page.paste(_shown(rgb, layout), (layout.left, MARGIN))
        if flow is not None:
            page.paste(_shown(flow, layout), (layout.left + layout.picture[0] + GAP, MARGIN))
        _cursor(page, found, frame, layout)
        yield np.asarray(page)


def layout_of(width: int, height: int, *, bars: int) -> Layout:
    """The places on a page for frames of `width` x `height` pixels."""
    if not TALL[0] <= height <= TALL[1]:
        width, height = max(2, round(width * USUAL / height)), USUAL
    across = max(2 * width + GAP, NARROWEST) + 2 * MARGIN
    across += across % 2
    first = MARGIN + height + GAP
    strip = first + max(bars * ROW, WHEEL + 2 * SMALL) + GAP
    down = strip + ROW + MARGIN // 2
    left = (across - 2 * width - GAP) // 2
    return Layout(
        picture=(width, height),
        page=(across, down + down % 2),
        left=left,
        edge=across - MARGIN - WHEEL - 2 * GAP,
        bars=first,
        strip=strip,
    )


def class_colours(found: Prediction) -> Mapping[int, tuple[int, int, int]]:
    """A colour for each of the classes that lead most windows, by label; all others are gray."""
    leading = [found.top(1, window)[0].label for window in found.windows]
    overall = [guess.label for guess in found.top(len(COLOURS))]
    by_windows = sorted(set(leading), key=lambda label: -leading.count(label))
    order = list(dict.fromkeys([*by_windows, *overall]))
    return dict(zip(order, COLOURS, strict=False))


def flow_limit(record: Record) -> float:
    """Pixels of flow at the edge of the wheel of colours: for some pairs spread over the video, the same for all."""
    pairs = np.unique(np.linspace(0, max(0, record.frames - 2), PAIRS).round().astype(int)).tolist()
    with no_bombs():
        levels = [_levels(record, pair) for pair in pairs] if len(record.flow) else []
    lengths = [np.hypot(*np.moveaxis(shown_flow(one), 2, 0)).ravel() for one in levels]
    return round_limit(np.concatenate(lengths) if lengths else np.zeros(0))


def clock(seconds: float) -> str:
    """A time as players show it, with tenths: 1:02.5."""
    minutes, rest = divmod(round(10 * seconds), 600)
    return f"{minutes}:{rest / 10:04.1f}"


def _levels(record: Record, pair: int) -> NDArray[np.uint8]:
    size = (record.flow.width, record.flow.height)
    return np.stack([decoded(record.flow[2 * pair + axis], size, "L", record.name) for axis in (0, 1)], axis=2)


def _flow(record: Record, pair: int, wheel: Picture) -> Picture | None:
    if not len(record.flow):
        return None
    levels = _levels(record, pair)
    return wheel[levels[..., 0], levels[..., 1]]


def _shown(picture: Picture, layout: Layout) -> Image.Image:
    image = Image.fromarray(picture)
    return image if image.size == layout.picture else image.resize(layout.picture, Image.Resampling.BILINEAR)


def _base(
    found: Prediction,
    window: Window,
    layout: Layout,
    strip: Image.Image,
    colours: Mapping[int, tuple[int, int, int]],
    limit: float | None,
    top: int,
) -> Image.Image:
    """What stays while a window lasts: its bars, its times, the wheel of colours, the strip of classes."""
    page = Image.new("RGB", layout.page, PAPER)
    draw, font, small = ImageDraw.Draw(page), _font(TEXT), _font(SMALL)
    names = MARGIN + (layout.edge - TIMES - MARGIN) * 2 // 5
    end = layout.edge - TIMES - PERCENT
    for number, guess in enumerate(found.top(top, window)):
        middle = layout.bars + number * ROW + ROW // 2
        draw.text((MARGIN, middle), _cut(guess.name, font, names - MARGIN - GAP), INK, font, anchor="lm")
        draw.rounded_rectangle((names, middle - 6, end, middle + 6), 3, TRACK)
        if (full := round((end - names) * guess.probability)) > 2:
            draw.rounded_rectangle((names, middle - 6, names + full, middle + 6), 3, colours.get(guess.label, OTHER))
        draw.text((end + PERCENT - GAP, middle), f"{100 * guess.probability:.1f} %", INK, font, anchor="rm")
    begin, stop = found.seconds(window)
    words = f"{clock(begin)} to {clock(stop)}" if len(found.windows) > 1 else "scored as a whole"
    draw.text((layout.edge, layout.bars + ROW + ROW // 2), words, FAINT, small, anchor="rm")
    if limit is not None:
        page.paste(_disc(limit), (layout.edge + 2 * GAP, layout.bars + 4))
        draw.text(
            (layout.edge + 2 * GAP + WHEEL / 2, layout.bars + WHEEL + 14), f"{limit:g} px", FAINT, small, anchor="mm"
        )
    page.paste(strip, (MARGIN, layout.strip))
    return page


def _strip(found: Prediction, colours: Mapping[int, tuple[int, int, int]], layout: Layout) -> Image.Image:
    """The likeliest class over the time of the video, a colour each."""
    width = layout.page[0] - 2 * MARGIN
    strip = Image.new("RGB", (width, 8), TRACK)
    frames = (np.arange(width) * found.frames // width).tolist()
    labels = {id(window): found.top(1, window)[0].label for window in found.windows}
    pixels = [colours.get(labels[id(found.at(frame))], OTHER) for frame in frames]
    strip.paste(Image.fromarray(np.array([pixels] * 8, dtype=np.uint8)))
    return strip


def _cursor(page: Image.Image, found: Prediction, frame: int, layout: Layout) -> None:
    """Where in the video a frame is: on the strip, and in words."""
    draw = ImageDraw.Draw(page)
    x = MARGIN + round((layout.page[0] - 2 * MARGIN) * frame / max(1, found.frames - 1))
    draw.rectangle((x - 1, layout.strip - 4, x + 1, layout.strip + 11), INK)
    draw.text((layout.edge, layout.bars + ROW // 2), clock(frame / found.rate), INK, _font(TEXT), anchor="rm")


def _disc(limit: float) -> Image.Image:
    """The wheel of colours alone, on the film's paper."""
    drawn = legend(limit, size=WHEEL)
    wheel = Image.fromarray(drawn[:WHEEL, (drawn.shape[1] - WHEEL) // 2 :][:, :WHEEL])
    scale = 4
    mask = Image.new("L", (WHEEL * scale, WHEEL * scale), 0)
    ImageDraw.Draw(mask).ellipse((2, 2, WHEEL * scale - 3, WHEEL * scale - 3), fill=255)
    disc = Image.new("RGB", wheel.size, PAPER)
    disc.paste(wheel, (0, 0), mask.resize(wheel.size, Image.Resampling.BOX))
    return disc


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Pillow's own has ASCII alone, and classes may be named in any language."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
