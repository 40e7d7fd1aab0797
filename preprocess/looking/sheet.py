"""What was seen of a video, as a picture, as a short film, and in a few lines."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from preprocess.errors import PreprocessError
from preprocess.looking.charts import histogram, timeline
from preprocess.looking.inspection import BIN, BOUND, MUCH, Inspection
from preprocess.looking.movie import shown_rate
from preprocess.videos.timing import in_words
from shards.picture import (
    FAINT,
    GAP,
    LABEL_SIZE,
    PAPER,
    Picture,
    Row,
    contact_sheet,
    flow_colour,
    legend,
    round_limit,
    shown_flow,
)

TALL = 168  # pixels: height of a frame in the picture
WIDE, COLUMNS = 1400, 10  # pixels that frames side by side may take together, and how many there are at most
NARROW = 120  # pixels of a frame under which there is no room for its time
NARROWEST = 900  # pixels of a sheet: charts need some room
STRIP = 24  # pixels below the film's pictures, for words
WHEEL = 56  # ... of the wheel of colours in its corner
# The first there is writes the film: with what options.
CODECS = {"libx264": {"preset": "veryfast", "crf": "20"}, "mpeg4": {"qscale": "3"}}


def lines_of(look: Inspection) -> Iterator[tuple[str, str]]:
    """What there is to say, by subject."""
    count, rate = len(look.frames), look.fps[0] / look.fps[1] if look.fps[0] else 0.0
    yield "file", f"{look.container}, {look.codec}, {look.width}x{look.height}"
    header = f"{look.header_frames} by the header" if look.header_frames else "the header tells none"
    decoded = f"{count} decoded, {header}" if look.ended and not look.damage else f"the first {count}, {header}"
    yield "frames", decoded + (f"; {rate:.4g} a second, {count / rate:.2f} s" if rate else "; rate unknown")
    yield "times", in_words(look.timing)
    yield "repeated", _repeated(look)
    stored = f"{look.size[0]}x{look.size[1]}"
    yield "stored", stored if look.flow_size == look.size else f"{stored}, flow {look.flow_size[0]}x{look.flow_size[1]}"
    yield "flow", f"{look.method} ({look.library}); " + _flow(look)
    if look.flows:
        yield "bound", _beyond(look)
    if look.damage:
        yield "damage", look.damage


def sheet(look: Inspection) -> Image.Image:
    """A page: frames spread over the video, their flow to the next, flow against its bound, the video over its time."""
    tile = max(1, round(look.size[0] * TALL / look.size[1]))
    count = min(COLUMNS, max(1, len(look.frames) - 1), max(1, WIDE // (tile + GAP)))
    instants = [(2 * i + 1) * max(1, len(look.frames) - 1) // (2 * count) for i in range(count)]
    labels = [_when(look, one) if tile >= NARROW else f"frame {one}" for one in instants]
    rows = [Row(pictures=[look.frame(one) for one in instants], labels=labels)]
    words = [f"{subject}: {text}" for subject, text in lines_of(look)]
    if not look.flows:
        return contact_sheet(rows, title=look.path.name, lines=words, height=TALL)
    limit = wheel_limit(look)
    flows = [flow_colour(look.flow_px(one), limit) for one in instants]
    rows.append(Row(pictures=flows, labels=[f"{one} to {one + 1}" for one in instants]))
    half = (max(NARROWEST, count * (tile + GAP) - GAP) - GAP) // 2
    shares = histogram(look.histogram, BIN, BOUND, (half, TALL))
    late = [gap.after + 1 for gap in look.timing.gaps]
    times = timeline(look.length_P, look.beyond_P, sorted((*look.equal, *look.alike)), late, (half, TALL))
    labels = [
        "flow values by size, both directions; red: stored as the bound",
        "mean length of each pair's flow by frame; red: its share beyond the bound",
    ]
    rows.append(Row(pictures=[shares, times], labels=labels))
    return contact_sheet(rows, title=look.path.name, lines=words, corner=legend(limit), height=TALL)


def film(look: Inspection) -> bytes:
    """An MP4: each frame, beside it its flow to the next, and below what there is to say of the two."""
    limit = wheel_limit(look)
    width, height = (2 * side for side in (look.size[0] // 2, look.size[1] // 2))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        codec = _codec()
        stream: Any = container.add_stream(codec, options=CODECS[codec], rate=shown_rate(look.fps))
        stream.width, stream.height = 2 * width + 2 * (GAP // 2), height + STRIP
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on any machine
        for page in _pages(look, limit, (width, height)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(page, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def wheel_limit(look: Inspection) -> float:
    """Pixels of flow at the edge of the wheel of colours: for some pairs spread over the video, the same for all."""
    pairs = np.unique(np.linspace(0, len(look.flows) - 1, min(len(look.flows), 24)).round().astype(int)).tolist()
    lengths = [np.hypot(*np.moveaxis(look.flow_px(pair), 2, 0)).ravel() for pair in pairs]
    return round_limit(np.concatenate(lengths)) if lengths else round_limit(np.zeros(0))


def _pages(look: Inspection, limit: float, size: tuple[int, int]) -> Iterator[Picture]:
    """The pictures of the film, (H, W, 3) each."""
    (width, height), font = size, ImageFont.load_default(LABEL_SIZE)
    wheel = Image.fromarray(legend(limit, size=WHEEL))
    alike, still = frozenset(look.alike), np.full((height, width, 3), 255, np.uint8)
    every = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=2).astype(np.uint8)
    colours = flow_colour(shown_flow(every), limit)  # of each pair of levels: looked up, not computed for each pixel
    for number in range(len(look.frames)):
        page = Image.new("RGB", (2 * width + 2 * (GAP // 2), height + STRIP), PAPER)
        page.paste(Image.fromarray(look.frame(number)).crop((0, 0, width, height)), (0, 0))
        flow = still
        if number < len(look.flows):
            levels = look.flow_levels(number)
            flow = colours[levels[..., 0], levels[..., 1]]
        shown = Image.fromarray(flow).resize((width, height), Image.Resampling.BILINEAR)
        page.paste(shown, (width + 2 * (GAP // 2), 0))
        draw = ImageDraw.Draw(page)
        draw.text((4, height + STRIP // 2), _under(look, number, alike), fill=FAINT, font=font, anchor="lm")
        page.paste(wheel, (page.width - wheel.width, page.height - wheel.height))
        yield np.asarray(page)


def _under(look: Inspection, number: int, alike: frozenset[int]) -> str:
    words = [_when(look, number)]
    if number < len(look.flows):
        words += [f"flow {look.length_P[number]:.1f} px", f"{look.beyond_P[number]:.1%} beyond {BOUND:g} px"]
    if number in look.equal:
        words.append("repeats the one before")
    elif number in alike:
        words.append("all but repeats the one before")
    return " · ".join(words)


def _when(look: Inspection, number: int) -> str:
    rate = look.fps[0] / look.fps[1] if look.fps[0] else 0.0
    return f"frame {number}" + (f" · {number / rate:.2f} s" if rate else "")


def _repeated(look: Inspection) -> str:
    """Frames that repeat the one before, and the rhythm in which they do."""
    if not look.equal and not look.alike:
        return "no frame repeats the one before"
    both, words = sorted((*look.equal, *look.alike)), []
    for frames, how in ((look.equal, "repeat"), (look.alike, "all but repeat")):
        if frames:
            words.append(f"{len(frames)} of {len(look.frames)} frames {how} the one before ({_some(frames)})")
    every, times = Counter(b - a for a, b in pairwise(both)).most_common(1)[0] if len(both) > 1 else (0, 0)
    if times >= 3 and 2 * times >= len(both) - 1:
        ending = {2: "nd", 3: "rd"}.get(every, "th")
        words.append(f"mostly every {every}{ending}: the video was stretched to its rate; flow is nearly zero there")
    return "; ".join(words)


def _flow(look: Inspection) -> str:
    if not look.flows:
        return "one frame, so there is none"
    total = int(look.histogram.sum())
    most = np.searchsorted(np.cumsum(look.histogram), 0.99 * total) + 1
    reach = f"under {most * BIN:g} px" if most <= len(look.histogram) - 1 else f"beyond {BIN * (most - 1):g} px"
    return f"{look.length_P.mean():.2f} px long on average, 99 % of the values {reach}"


def _beyond(look: Inspection) -> str:
    """How much flow lies beyond the bound, and where."""
    if not look.beyond:
        return f"no flow beyond {BOUND:g} px"
    much = np.flatnonzero(look.beyond_P >= MUCH).tolist()
    worst = int(look.beyond_P.argmax())
    words = f"{100 * look.beyond:.3g}% of the values lie beyond {BOUND:g} px and are stored as {BOUND:g} px"
    pairs = f"{len(much)} of {len(look.flows)} pairs have {MUCH:.0%} or more"
    return f"{words}; {pairs}, the worst is {worst} to {worst + 1} with {look.beyond_P[worst]:.1%}"


def _some(numbers: Sequence[int], most: int = 8) -> str:
    left = len(numbers) - most
    return ", ".join(map(str, numbers[:most])) + (f" and {left} more" if left > 0 else "")


def _codec() -> str:
    for name in CODECS:
        with suppress(av.codec.codec.UnknownCodecError):
            return str(av.codec.Codec(name, "w").name)
    raise PreprocessError(f"this PyAV can write none of {', '.join(CODECS)}; leave the film out: --no-film")
