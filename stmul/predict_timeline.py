"""A picture of a prediction over its video: frames, and below them how likely each class is in each window."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.picture import Picture, decoded, no_bombs
from shards.record import Record
from stmul.predict import Prediction

ROWS = 8  # classes, at most
FRAMES = 10  # above them
WIDE = 11.0  # inches, at DPI
DPI = 110
NUMBERS = 24  # windows up to which each cell says its percentage
INK, FAINT = "#1c1e22", "#696e76"


def write_timeline(file: BinaryIO, record: Record, found: Prediction, *, title: str = "") -> None:
    """Writes a PNG: the classes that are likely at some time by the video's time; darker is likelier.

    A window is drawn from half way to the one before to half way to the one after. Raises CorruptRecordError where a
    frame cannot be decoded.
    """
    import matplotlib
    from matplotlib.figure import Figure

    likely_WK = np.stack([found.likely(window) for window in found.windows])
    shown = classes_shown(likely_WK)
    duration = found.frames / found.rate
    frames = thumbnails(record, FRAMES)
    tall = WIDE * 0.78 / len(frames) * record.rgb.height / record.rgb.width
    heights = (tall, 0.34 * len(shown))
    figure_tall = sum(heights) + 1.32
    with matplotlib.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": FAINT, "xtick.color": FAINT}):
        figure = Figure(figsize=(WIDE, figure_tall), facecolor="white")
        names = [_cut(found.classes[label]) for label in shown]  # they stand left of the axes
        left, right, bottom = 0.03 + 0.0068 * max(map(len, names)), 0.985, 0.52 / figure_tall
        figure.text(0.015, 1 - 0.2 / figure_tall, title or found.name, fontsize=12, fontweight="bold", va="center")
        figure.text(0.015, 1 - 0.45 / figure_tall, _words(found), color=FAINT, va="center")
        cells = figure.add_axes((left, bottom, right - left, heights[1] / figure_tall))
        strip = figure.add_axes((left, bottom + (heights[1] + 0.08) / figure_tall, right - left, tall / figure_tall))
        strip.imshow(np.concatenate(frames, axis=1), aspect="auto", extent=(0, duration, 0, 1))
        strip.set_axis_off()
        edges = borders(found)
        mesh = cells.pcolormesh(
            edges, np.arange(len(shown) + 1), 100 * likely_WK[:, shown].T, cmap="Blues", vmin=0, vmax=100
        )
        mesh.set_edgecolor("white")
        mesh.set_linewidth(0.8)
        cells.set_xlim(0, duration)
        cells.set_ylim(len(shown), 0)
        cells.set_yticks(np.arange(len(shown)) + 0.5, names)
        cells.tick_params(axis="y", length=0, pad=6)
        cells.tick_params(axis="x", length=3)
        cells.set_xlabel("seconds")
        for side in cells.spines.values():
            side.set_visible(False)
        if len(found.windows) <= NUMBERS:
            for (row, column), part in np.ndenumerate(likely_WK[:, shown].T):
                x = (edges[column] + edges[column + 1]) / 2
                colour = "white" if part > 0.55 else INK if part >= 0.1 else "#b4b9c1"
                cells.text(x, row + 0.5, f"{100 * part:.0f}", color=colour, ha="center", va="center", fontsize=8)
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})


def classes_shown(likely_WK: NDArray[np.float64], count: int = ROWS) -> list[int]:
    """The labels of the `count` classes that are likeliest in some window, the likeliest on average first."""
    peaks = np.argsort(-likely_WK.max(axis=0), kind="stable")[:count]
    return [int(label) for label in peaks[np.argsort(-likely_WK.mean(axis=0)[peaks], kind="stable")]]


def borders(found: Prediction) -> NDArray[np.float64]:
    """Where each window's cell begins, in seconds, and the end of the last: half way between middles of windows."""
    middles = np.array([(window.first + window.last) / 2 for window in found.windows])
    inner = (middles[1:] + middles[:-1]) / 2
    return np.concatenate([[0.0], inner, [float(found.frames)]]) / found.rate


def thumbnails(record: Record, count: int) -> list[Picture]:
    """`count` frames spread over the video, each from the middle of its part."""
    instants = (2 * np.arange(count) + 1) * record.frames // (2 * count)
    size = (record.rgb.width, record.rgb.height)
    with no_bombs():
        return [decoded(record.rgb[int(frame)], size, "RGB", record.name) for frame in instants]


def _words(found: Prediction) -> str:
    best = found.top(1)[0]
    length = f"{found.frames / found.rate:.1f} s"
    said = f"{length}: {best.name} {100 * best.probability:.1f} %"
    if len(found.windows) == 1:
        return f"{said}, scored as a whole"
    begin, end = found.seconds(found.windows[0])
    step = found.seconds(found.windows[1])[0] - begin
    return f"{said} on average; windows of {end - begin:.3g} s every {step:.3g} s, in percent of each"


def _cut(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
