"""Pictures of records: flow in colour, and sheets of frames with captions, to look at before believing any number.

Flow is coloured as in Baker et al., "A Database and Evaluation Methodology for Optical Flow" (IJCV 92, 2011): hue is
direction, saturation is length; no motion is white. Arrays are uint8 (H, W, 3).
"""

from __future__ import annotations

import io
import math
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from shards.errors import CorruptRecordError
from shards.format import MOST_PIXELS, PIXELS_PER_BYTE
from shards.record import LEVELS_PER_PIXEL, Blob, Frames, Record, dequantise

Picture = NDArray[np.uint8]

# Round the wheel, from the right by way of down (y points down in pictures): a colour, and the steps to the next.
WHEEL = (
    ((255, 0, 0), 15),
    ((255, 255, 0), 6),
    ((0, 255, 0), 4),
    ((0, 255, 255), 11),
    ((0, 0, 255), 13),
    ((255, 0, 255), 6),
)
BEYOND = 0.75  # brightness of what is longer than the limit
LIMITS = (1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30)  # pixels: what a legend may end at

MARGIN, GAP, LINE = 24, 8, 1.45  # pixels, pixels, font sizes
PAPER, INK, FAINT, EDGE = (255, 255, 255), (28, 30, 34), (105, 110, 118), (214, 217, 222)
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 22, 15, 13


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """Pictures side by side, a caption above them, and a label below each."""

    pictures: Sequence[Picture]
    caption: str = ""
    labels: Sequence[str] = field(default=())


def flow_colour(flow_px_HW2: NDArray[np.floating], limit: float | None = None) -> Picture:
    """Flow in pixels as colours, uint8 (H, W, 3): right is red, down yellow-green, left cyan, up violet.

    Flow of length `limit` (None: the longest there is) is fully saturated, longer flow darker; NaN and infinity are
    black.
    """
    known = np.isfinite(flow_px_HW2).all(axis=2)
    u, v = np.moveaxis(np.where(known[..., None], flow_px_HW2, 0.0).astype(np.float64), 2, 0)
    length = np.hypot(u, v)
    if limit is None:
        limit = float(length.max(initial=0.0))
    radius = length / limit if limit > 0 else np.zeros_like(length)
    radius[np.isclose(radius, 1.0, rtol=1e-9)] = 1.0  # at the limit, whichever way it was rounded
    turn = np.arctan2(v, u) / (2 * np.pi) % 1.0
    starts = np.cumsum([0, *(steps for _, steps in WHEEL)])
    anchors = np.array([*(colour for colour, _ in WHEEL), WHEEL[0][0]], dtype=np.float64)
    hue = np.stack([np.interp(turn * starts[-1], starts, anchors[:, c]) for c in range(3)], axis=2)
    colour = np.where(radius[..., None] <= 1.0, 255 - radius[..., None] * (255 - hue), BEYOND * hue)
    return np.where(known[..., None], np.rint(colour), 0).astype(np.uint8)


def legend(limit: float, *, size: int = 96) -> Picture:
    """The wheel of colours that flow up to `limit` pixels has, on white, with the limit written below."""
    scale = 4
    axis = (np.arange(size * scale) + 0.5) / (size * scale) * 2 - 1
    flow_HW2 = np.stack(np.meshgrid(axis, axis), axis=2)
    colours = flow_colour(flow_HW2, limit=1.0)
    colours[np.hypot(*np.moveaxis(flow_HW2, 2, 0)) > 1] = 255
    disc = Image.fromarray(colours).resize((size, size), Image.Resampling.BOX)
    text, font = f"edge: {limit:g} px", _font(LABEL_SIZE)
    width = max(size, math.ceil(font.getlength(text)))
    page = Image.new("RGB", (width, size + 2 * LABEL_SIZE), PAPER)
    page.paste(disc, ((width - size) // 2, 0))
    ImageDraw.Draw(page).text((width / 2, page.height - LABEL_SIZE // 2), text, fill=FAINT, font=font, anchor="ms")
    return np.asarray(page)


def contact_sheet(
    rows: Sequence[Row], *, title: str = "", lines: Sequence[str] = (), corner: Picture | None = None, height: int = 152
) -> Image.Image:
    """A page with `rows` of pictures, all `height` pixels high, under a title and lines of text, `corner` beside them.

    Text that is too long for the page is wrapped; characters that the font lacks are replaced.
    """
    tiles = [[_tile(picture, height) for picture in row.pictures] for row in rows]
    width = max([sum(tile.width + GAP for tile in row) - GAP for row in tiles if row] + [360])
    beside = corner.shape[1] + 3 * GAP if corner is not None else 0
    head = _wrapped([title] if title else [], TITLE_SIZE, INK, width - beside)
    head += _wrapped(lines, TEXT_SIZE, FAINT, width - beside)
    head_height = max(_height(head), corner.shape[0] if corner is not None else 0)
    captions = [_wrapped([row.caption] if row.caption else [], TEXT_SIZE, INK, width) for row in rows]
    heights = [
        _height(caption) + height + (round(LABEL_SIZE * LINE) if row.labels else 0)
        for row, caption in zip(rows, captions, strict=True)
    ]
    between = 2 * GAP
    total = head_height + sum(heights) + between * (len(rows) if head_height else max(0, len(rows) - 1))
    page = Image.new("RGB", (width + 2 * MARGIN, total + 2 * MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    _write(draw, head, MARGIN, MARGIN)
    if corner is not None:
        page.paste(Image.fromarray(corner), (MARGIN + width - corner.shape[1], MARGIN))
    y = MARGIN + (head_height + between if head_height else 0)
    for row, caption, images, row_height in zip(rows, captions, tiles, heights, strict=True):
        below = _write(draw, caption, MARGIN, y)
        _paste(page, images, row.labels, below, height)
        y += row_height + between
    return page


def record_sheet(record: Record, columns: int = 6, *, said: str = "") -> Image.Image:
    """A page on `record`: up to `columns` frames spread over it, below each its flow to the next, in one scale.

    It says the record's class, or what is `said` instead.
    """
    count = min(columns, max(1, record.frames - 1))
    instants = [(2 * i + 1) * max(1, record.frames - 1) // (2 * count) for i in range(count)]
    frames = [_decoded(record.rgb, instant, "RGB", record.name) for instant in instants]
    rate = record.fps[0] / record.fps[1] if record.fps[0] and record.fps[1] else 0.0
    labels = [f"frame {instant}" + (f" · {instant / rate:.2f} s" if rate else "") for instant in instants]
    rows = [Row(pictures=frames, labels=labels)]
    made, rgb, flow = record.flow_made, record.rgb, record.flow
    lines = [
        said or f"class {record.class_name} (label {record.label})",
        f"{record.frames} frames of {rgb.width} x {rgb.height}" + (f", {rate:g} per second" if rate else ""),
    ]
    if not len(flow):
        lines.append("one frame, so there is no flow")
        return contact_sheet(rows, title=record.name, lines=lines)
    flows = [_flow(record, instant) for instant in instants]
    limit = round_limit(np.concatenate([np.hypot(px[..., 0], px[..., 1]).ravel() for px in flows]))
    pairs = [f"{instant} to {instant + 1}" for instant in instants]
    rows.append(Row(pictures=[flow_colour(px, limit) for px in flows], labels=pairs))
    lines.append(f"flow {made.method} ({made.library}), stored as {flow.width} x {flow.height}")
    lines.append("hue: direction, saturation: length, white: no motion, darker: beyond the edge of the wheel")
    return contact_sheet(rows, title=record.name, lines=lines, corner=legend(limit))


@contextmanager
def no_bombs() -> Iterator[None]:
    """Inside, in all threads, pictures that Pillow finds suspiciously large are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def shown_flow(levels_HW2: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stored levels as pixels of flow; the two levels beside zero, which still pictures flicker between, count as none.

    (H, W, 2) in and out.
    """
    flow_px = dequantise(levels_HW2)
    return np.where(np.abs(flow_px) * LEVELS_PER_PIXEL <= 0.5, np.float32(0), flow_px)


def decoded(jpeg: Blob, size: tuple[int, int], mode: str, where: str, *, shrink: int = 1) -> Picture:
    """A JPEG's levels, (H, W) for mode "L", (H, W, 3) for "RGB"; with `shrink` 2, 4 or 8 at that part of its size.

    To be called inside `no_bombs`. Raises CorruptRecordError, which names `where`, if it is no JPEG of `size` (width,
    height).
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as opened:
            if opened.size != size or size[0] * size[1] > min(MOST_PIXELS, PIXELS_PER_BYTE * len(jpeg)):
                raise CorruptRecordError(
                    f"{where}: a picture of {opened.width}x{opened.height} in {len(jpeg)} bytes, expected"
                    f" {size[0]}x{size[1]} by its record"
                )
            if shrink > 1:
                opened.draft(mode, (size[0] // shrink, size[1] // shrink))
            return np.asarray(opened.convert(mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptRecordError(f"{where} cannot be decoded: {error}") from error


def round_limit(lengths: NDArray[np.floating]) -> float:
    """A round number of pixels for a legend to end at: all but the longest half per cent of `lengths` stay below."""
    reach = float(np.quantile(lengths, 0.995)) if lengths.size else 0.0
    return next((float(limit) for limit in LIMITS if limit >= reach), float(LIMITS[-1]))


def _flow(record: Record, pair: int) -> NDArray[np.float32]:
    """Flow of a pair in pixels, as it is shown."""
    return shown_flow(np.stack([_decoded(record.flow, 2 * pair + axis, "L", record.name) for axis in (0, 1)], axis=2))


def _decoded(frames: Frames, image: int, mode: str, name: str) -> Picture:
    """A picture of a record. Raises CorruptRecordError where it is no JPEG of the size that the record says."""
    where = f"{name}: image {image} of {len(frames)}"
    with no_bombs():
        return decoded(frames[image], (frames.width, frames.height), mode, where)


def _tile(picture: Picture, height: int) -> Image.Image:
    image = Image.fromarray(picture).convert("RGB")
    width = max(1, round(image.width * height / image.height))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _paste(page: Image.Image, images: Sequence[Image.Image], labels: Sequence[str], top: int, height: int) -> None:
    draw, font, x = ImageDraw.Draw(page), _font(LABEL_SIZE), MARGIN
    for i, image in enumerate(images):
        page.paste(image, (x, top))
        draw.rectangle((x, top, x + image.width - 1, top + height - 1), outline=EDGE)
        if i < len(labels):
            label = _cut(_printable(labels[i]), font, image.width)
            baseline = top + height + round(LABEL_SIZE * 1.2)
            draw.text((x + image.width / 2, baseline), label, fill=FAINT, font=font, anchor="ms")
        x += image.width + GAP


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    text: str
    size: int
    ink: tuple[int, int, int]


def _wrapped(texts: Sequence[str], size: int, ink: tuple[int, int, int], width: int) -> list[_Line]:
    font, lines = _font(size), []
    for text in texts:
        line = ""
        for word in _printable(text).split(" "):
            longer = f"{line} {word}" if line else word
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return [_Line(text=_cut(line, font, width), size=size, ink=ink) for line in lines]


def _height(lines: Sequence[_Line]) -> int:
    return sum(round(line.size * LINE) for line in lines)


def _write(draw: ImageDraw.ImageDraw, lines: Sequence[_Line], x: int, y: int) -> int:
    """Writes `lines` from the point (x, y) down and returns where they end."""
    for line in lines:
        draw.text((x, y + line.size), line.text, fill=line.ink, font=_font(line.size), anchor="ls")
        y += round(line.size * LINE)
    return y


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _printable(text: str) -> str:
    """`text` in the characters that Pillow's own font has: ASCII and the middle dot."""
    plain = unicodedata.normalize("NFKD", text.replace("·", "\0"))
    kept = [c for c in plain if not unicodedata.combining(c)]
    return "".join("·" if c == "\0" else c if " " <= c <= "~" else "?" for c in kept)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
