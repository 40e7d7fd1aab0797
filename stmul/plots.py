"""Curves of a training as SVG for a page: text stays text, and colours are the page's variables, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain, groupby
from typing import Any

from stmul.results import HistoryRow

# Stand-ins that matplotlib can draw with; in the SVG each becomes the page's variable of that name.
COLOURS = {
    "appearance": "#010101",
    "motion": "#020202",
    "joint": "#030303",
    "ink": "#040404",
    "muted": "#050505",
    "line": "#060606",
}
MANNER = {
    "svg.fonttype": "none",
    "font.size": 7.5,
    "text.color": COLOURS["ink"],
    "axes.titlesize": 8,
    "axes.titlepad": 5,
    "axes.labelsize": 7.5,
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 3,
    "lines.solid_capstyle": "round",
}
STAGE_EDGES = {"left": 0.125, "right": 0.985, "top": 0.945, "bottom": 0.095, "hspace": 0.42}  # the same in every figure
SPEED_EDGES = {"left": 0.08, "right": 0.985, "top": 0.87, "bottom": 0.22}
HELD_OUT = {"color": COLOURS["ink"]}
LOG_FROM = 20.0  # largest loss / smallest loss from which a linear axis would hide the end


def stage_curves(rows: Sequence[HistoryRow], chance: float) -> str:
    """Loss, accuracy on the training clips and learning rate of one stage over its epochs, as an SVG element.

    Each head has a thin line of its own where there are two, clips held out a dashed one, with a ring at the epoch
    that is best by them. The loss has a logarithmic axis where it falls far. Values that are not finite leave a gap.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    label = f"{rows[0].stage}: loss, accuracy and learning rate by epoch"
    with _drawing(label, (2.95, 3.6)) as figure:
        loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1.3), gridspec_kw=STAGE_EDGES)
        colour, epochs = COLOURS[rows[0].stage], [row.epoch for row in rows]
        mark = {"color": colour, "marker": "o" if len(rows) <= 12 else "", "clip_on": False}
        losses = [row.loss for row in rows]
        others = [[row.losses.get(head, math.nan) for row in rows] for head in heads_of(rows)]
        held_out = [row.validation.loss if row.validation else math.nan for row in rows]
        _lines(loss, epochs, others, heads_of(rows), held_out)
        loss.plot(epochs, losses, **mark)
        if far := _falls_far([*losses, *held_out, *chain.from_iterable(others)]):
            _logarithmic(loss)
        else:
            loss.set_ylim(bottom=0)
        _title(loss, "loss" + (", logarithmic" if far else ""), f"{losses[-1]:.3g}", colour)
        accuracy.axhline(100 * chance, color=COLOURS["muted"], linestyle=(0, (1, 2)), linewidth=0.8)
        others = [[100 * row.accuracies.get(head, math.nan) for row in rows] for head in heads_of(rows)]
        held_out = [100 * row.validation.accuracy if row.validation else math.nan for row in rows]
        _lines(accuracy, epochs, others, heads_of(rows), held_out)
        accuracy.plot(epochs, [100 * row.accuracy for row in rows], **mark)
        if (best := best_epoch(rows)) is not None:
            accuracy.plot([epochs[best]], [held_out[best]], "o", markersize=5, **HELD_OUT, fillstyle="none")
        accuracy.set_ylim(0, 100)
        accuracy.set_yticks([0, 50, 100])
        on = "" if any(row.validation for row in rows) else " on training clips"
        _title(accuracy, f"accuracy{on}, %", f"{100 * rows[-1].accuracy:.1f}", colour)
        rate.plot(epochs, [row.lr for row in rows], **{**mark, "marker": "", "linewidth": 1.2})
        rate.set_ylim(bottom=0)
        rate.yaxis.set_major_locator(MaxNLocator(2))
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
        _title(rate, "learning rate", f"{rows[-1].lr:.2g}", colour)
        rate.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        rate.set_xlim(min(epochs) - 0.01, max(*epochs, min(epochs) + 1))
        rate.set_xlabel("epoch")
        return _svg(figure, label)


def heads_of(rows: Sequence[HistoryRow]) -> list[str]:
    """The heads of a stage that have curves of their own: none where there is but one."""
    found = sorted({head for row in rows for head in row.losses})
    return found if len(found) > 1 else []


def best_epoch(rows: Sequence[HistoryRow]) -> int | None:
    """Which row is best on the clips held out, the earliest of equal ones; None where none were."""
    held_out = [(row.validation.accuracy, -i) for i, row in enumerate(rows) if row.validation]
    return -max(held_out)[1] if held_out else None


def _lines(
    axes: Any,
    epochs: Sequence[int],
    others: Sequence[Sequence[float]],
    heads: Sequence[str],
    held_out: Sequence[float],
) -> None:
    for head, values in zip(heads, others, strict=True):
        axes.plot(epochs, values, color=COLOURS[head], linewidth=0.9, clip_on=False)
    scored = [(epoch, value) for epoch, value in zip(epochs, held_out, strict=True) if math.isfinite(value)]
    if scored:
        axes.plot(*zip(*scored, strict=True), linestyle=(0, (4, 1.5)), linewidth=1.2, clip_on=False, **HELD_OUT)


def speed_curves(history: Sequence[HistoryRow]) -> tuple[str, ...]:
    """Clips a second, the part of the time spent waiting for clips, and GPU memory where there is one, as SVG elements.

    Over the time of training.
    """
    rates = [row.clips_per_second for row in history]
    waits = [100 * row.data_wait for row in history]
    found = [
        _over_time(history, rates, "clips a second"),
        _over_time(history, waits, "waiting for clips, % of the time"),
    ]
    if any(memory := [row.memory for row in history]):
        found.append(_over_time(history, memory, "GPU memory at most, GiB"))
    return tuple(found)


def _over_time(history: Sequence[HistoryRow], values: Sequence[float], title: str) -> str:
    from matplotlib.ticker import MaxNLocator

    unit, size = _unit(sum(row.seconds for row in history))
    ends = list(accumulate(row.seconds / size for row in history))
    label = f"{title}, over the time of training"
    with _drawing(label, (4.6, 1.75)) as figure:
        axes = figure.subplots(gridspec_kw=SPEED_EDGES)
        for stage, group in groupby(range(len(history)), key=lambda i: history[i].stage):
            places = list(group)
            edges = [ends[places[0] - 1] if places[0] else 0.0, *(ends[i] for i in places)]
            heights = [values[i] for i in places]
            axes.stairs(heights, edges, color=COLOURS[stage], fill=True, alpha=0.18, linewidth=0)
            axes.stairs(heights, edges, color=COLOURS[stage], baseline=None, linewidth=1.4)
        axes.set_xlim(0, ends[-1] or 1)
        axes.set_ylim(0, 1.08 * max((value for value in values if math.isfinite(value)), default=0) or 1)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        _title(axes, title)
        axes.set_xlabel(f"{unit} of training")
        return _svg(figure, label)


def _unit(seconds: float) -> tuple[str, float]:
    """The unit in which a time reads well, and its length in seconds."""
    return ("hours", 3600.0) if seconds >= 7200 else ("minutes", 60.0) if seconds >= 120 else ("seconds", 1.0)


def _falls_far(losses: Sequence[float]) -> bool:
    seen = [loss for loss in losses if math.isfinite(loss)]
    return len(seen) > 1 and min(seen) > 0 and max(seen) > LOG_FROM * min(seen)


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    within = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)  # of a decade
    axes.yaxis.set_major_locator(LogLocator(subs=within, numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _title(axes: Any, text: str, last: str = "", colour: str = COLOURS["ink"]) -> None:
    axes.set_title(text, loc="left", color=COLOURS["ink"])
    axes.set_title(last, loc="right", color=colour, fontweight="bold")


@contextmanager
def _drawing(label: str, size: tuple[float, float]) -> Iterator[Any]:
    """A figure without pyplot, drawn in the page's manner; `label` makes the ids in its SVG its own."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**MANNER, "svg.hashsalt": label}):
        yield Figure(figsize=size)


def _svg(figure: Any, label: str) -> str:
    """The figure as an element that takes its width, font and colours from the page around it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None
    text = text[text.index(">", text.index("<svg")) + 1 :]
    for pattern, kept in OWN_MANNER:
        text = re.sub(pattern, kept, text, flags=re.DOTALL)
    for name, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{name})")
    return f'<svg class="plot" role="img" aria-label="{label}" viewBox="{box[1]}">{text.strip()}'


OWN_MANNER = (  # what the page decides, or what would clash with another figure on it
    (r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", ""),
    (r'<g id="[^"]*"', "<g"),
    (r"font-family: [^;\"]*;? ?", ""),
    (r"font: (\d+ )?([\d.]+px) [^;\"]*", r"font-size: \2"),
    (r' transform="rotate\(-0 [^"]*\)"', ""),
    (r"xlink:href", "href"),
    (r"\s*\n\s*", " "),
    (r"> <", "><"),
)
