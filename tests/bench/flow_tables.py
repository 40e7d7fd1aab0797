"""What was found of flow, as a page and for the terminal, and whether the goals hold; the worst pairs as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from shards.picture import Row, contact_sheet, flow_colour, legend, round_limit
from tests.bench.flow_found import ALLOWANCE, Agreement, GpuRate, Rate, faster
from tests.bench.flow_ways import EAGER, OPENCV, OURS, Field, Way
from tests.bench.measure import spread
from tests.bench.tables import Goal, goal_row, grid

WORST = 5  # pairs in the picture
LIBRARIES = ("opencv-contrib-python-headless", "numpy", "numba", "torch", "triton")
KNOWN_SLACK = 0.005  # pixels: two errors against a known flow that differ by less are the same
GPU_GOAL = 200.0  # pairs a second at 340 x 256


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """All that a run has found."""

    day: str
    machine: str
    load: tuple[float, float]  # of the machine, before and after
    ways: Sequence[Way]
    agreement: Mapping[str, Sequence[Agreement]]  # by device
    batched: Mapping[str, int]  # pairs whose bytes in a batch are those alone, by device
    known: Mapping[str, Mapping[str, float]]  # drawn pair -> way -> pixels
    rates: Mapping[str, Rate]
    size: tuple[int, int]  # width and height of the frames that are timed
    gpu: str = ""
    gpu_rates: Sequence[GpuRate] = field(default=())


def goals(report: Report) -> Iterator[Goal]:
    """The goals for TV-L1."""
    for device, found in report.agreement.items():
        means = [one.difference for one in found]
        where = f"{device}: "
        yield Goal(f"{where}mean end-point difference from OpenCV, px", 0.03, True, statistics.mean(means))
        yield Goal(f"{where}of the median pair, px", 0.015, True, statistics.median(means))
        yield Goal(f"{where}share of pairs within 0.05 px", 0.9, False, float(np.mean([m <= 0.05 for m in means])))
        inside = float(np.mean([one.within for one in found]))
        yield Goal(f"{where}share of pairs within twice OpenCV against itself + {ALLOWANCE} px", 1.0, False, inside)
        off = statistics.mean(one.levels_off for one in found)
        yield Goal(f"{where}share of stored levels off by more than 1", 0.006, True, off)
    if report.known:
        worse = [errors[OURS] - errors[OPENCV] for errors in report.known.values()]
        yield Goal("known flow: error beyond OpenCV's, worst drawn pair, px", KNOWN_SLACK, True, max(worse))
        yield Goal("known flow: error beyond OpenCV's, mean, px", KNOWN_SLACK / 5, True, statistics.mean(worse))
    if report.rates:
        yield Goal("one core: pairs a second over OpenCV's", 3.0, False, faster(report.rates, OURS))
        yield Goal(
            "one core: the same in plain PyTorch, for devices without kernels", 2.0, False, faster(report.rates, EAGER)
        )
    best = max((rate.pairs_a_second for rate in report.gpu_rates), default=None)
    yield Goal("GPU: pairs a second", GPU_GOAL, False, best)


def tables(report: Report) -> Iterator[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Every table: title, heads, rows."""
    for device, found in report.agreement.items():
        yield f"Agreement with OpenCV, ours on {device}", AGREEMENT, list(_agreement(found))
        heads = ("the five worst pairs", "ours", "OpenCV itself", "levels off, %")
        yield f"The worst, ours on {device}", heads, [_row(one) for one in worst(found)]
    if report.known:
        names = list(next(iter(report.known.values())))
        errors = [[pair, *(f"{some[name]:.3f}" for name in names)] for pair, some in report.known.items()]
        yield "Drawn motion with known flow: mean end-point error, px", ("", *names), errors
    if report.rates:
        yield "One core", RATES, list(_rates(report.rates))
    if report.gpu_rates:
        found_on = [[rate.what, str(rate.batch), f"{rate.pairs_a_second:.1f}"] for rate in report.gpu_rates]
        yield report.gpu, ("", "pairs at once", "pairs a second"), found_on


AGREEMENT = ("mean end-point difference of a pair, px", "ours", "OpenCV itself, 1e-5 grey noise")
RATES = ("", "CPU s a pair", "quartiles", "pairs a second", "times OpenCV", "pairs")


def worst(found: Sequence[Agreement]) -> list[Agreement]:
    """The pairs that differ most."""
    return sorted(found, key=lambda one: -one.difference)[:WORST]


def _agreement(found: Sequence[Agreement]) -> Iterator[list[str]]:
    ours, again = ([one.difference for one in found], [max(one.again) for one in found])
    rows = {"mean": statistics.mean, "median": statistics.median, "worst": max}
    for name, of in rows.items():
        yield [name, f"{of(ours):.4f}", f"{of(again):.4f}"]
    for bound in (0.05, 0.1):
        shares = (f"{100 * np.mean([one <= bound for one in some]):.0f} %" for some in (ours, again))
        yield [f"pairs within {bound}", *shares]
    off = 100 * statistics.mean(one.levels_off for one in found)
    yield ["stored levels off by more than 1", f"{off:.3f} %", ""]


def _row(one: Agreement) -> list[str]:
    again = " ".join(f"{value:.4f}" for value in one.again)
    return [one.pair.name, f"{one.difference:.4f}", again, f"{100 * one.levels_off:.2f}"]


def _rates(found: Mapping[str, Rate]) -> Iterator[list[str]]:
    for name, rate in found.items():
        low, middle, high = spread(rate.seconds)
        times = faster(found, name)
        if times is None:  # fewer pairs: the ratio of medians, as a hint
            times = statistics.median(found[OPENCV].seconds) / middle
        yield [name, f"{middle:.3f}", f"{low:.3f}–{high:.3f}", f"{1 / middle:.2f}", f"{times:.2f}", str(rate.pairs)]


def described(report: Report) -> str:
    """What was measured, and with what, in sentences."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    before, after = report.load
    counts = {device: len(found) for device, found in report.agreement.items()}
    pairs = ", ".join(f"{count} on {device}" for device, count in counts.items())
    width, height = report.size
    batched = ", ".join(f"{count} pairs on {device}" for device, count in report.batched.items())
    text = (
        f"{report.machine}. {libraries}. Pairs compared with OpenCV: {pairs or 'none'}. Frames that are timed:"
        f" {width} x {height}. Each way runs on one thread; times are CPU time, of rounds in which all ways alternate"
        f" on the same pairs. Load of the machine {before:.1f} before, {after:.1f} after."
    )
    return text + (f" In batches, the same bytes as alone: {batched}." if batched else "")


def show(report: Report, console: Console) -> None:
    """Prints the tables and the goals."""
    console.print(described(report), highlight=False)
    for title, heads, rows in [*tables(report), _goal_table(report)]:
        table = Table(title=title, title_justify="left")
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def as_markdown(report: Report, picture: str) -> str:
    """The report as a page; `picture` is the name of the picture beside it, empty where there is none."""
    lines = [f"# {report.day}, optical flow", "", described(report)]
    for title, heads, rows in [_goal_table(report), *tables(report)]:
        lines += ["", f"## {title}", "", *grid(heads, rows)]
    if picture:
        lines += ["", f"![The worst pairs]({picture})", "", PICTURE]
    lines += ["", "## Settings", "", *(f"- **{way.name}**: {way.settings}." for way in report.ways), "", *NOTES]
    return "\n".join(lines) + "\n"


def _goal_table(report: Report) -> tuple[str, tuple[str, ...], list[list[str]]]:
    return "Goals", ("", "goal", "found", ""), [_goal(goal) for goal in goals(report)]


def _goal(goal: Goal) -> list[str]:
    found = "" if goal.found is None else f"{goal.found:.4f}" if abs(goal.found) < 0.1 else f"{goal.found:.2f}"
    return [*goal_row(goal)[:2], found, goal.verdict]


def picture(found: Sequence[Agreement], path: Path) -> None:
    """Writes the worst pairs: OpenCV's flow and ours in colour, and where ours and OpenCV's with noise differ."""
    lengths = np.concatenate([np.linalg.norm(one.opencv, axis=-1).ravel() for one in worst(found)])
    limit = round_limit(lengths)
    rows = [
        Row(
            caption=f"{one.pair.name}: ours {one.difference:.3f} px, OpenCV itself {max(one.again):.3f} px",
            pictures=[
                flow_colour(one.opencv, limit),
                flow_colour(one.ours, limit),
                _apart(one.ours, one.opencv),
                _apart(one.noisy, one.opencv),
            ],
            labels=["OpenCV", "ours", "ours - OpenCV, white: 0.5 px", "OpenCV with noise - OpenCV"],
        )
        for one in worst(found)
    ]
    title = "The pairs that differ most from OpenCV's TV-L1"
    sheet = contact_sheet(rows, title=title, corner=legend(limit), height=200)
    sheet.save(path, optimize=True)  # with a palette the wheel would lose most of its colours


def _apart(one: Field, other: Field) -> NDArray[np.uint8]:
    distance = np.linalg.norm(one.astype(np.float64) - other, axis=-1)
    return np.repeat(np.clip(distance * 510, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


PICTURE = (
    "The five pairs that differ most: OpenCV's flow and ours in colour, and the end-point differences of ours and of"
    " OpenCV's with noise from OpenCV's, half a pixel and more in white."
)

NOTES = (
    "**OpenCV itself**: the same implementation with noise of 1e-5 grey levels on the first picture; of several draws"
    " the one that differs most. TV-L1's stop makes it sensitive: an iteration more or less in one warp leads"
    " elsewhere. No other implementation can be expected to come nearer.",
    "",
    "**Drawn motion**: textures by a formula, moved by a linear map; errors are judged where both pictures show the"
    " same, four pixels from the edge. Levels are whole numbers, as in a video. Nine pixels of so fine a texture are"
    " beyond five scales of 0.8, for OpenCV's TV-L1 as for ours.",
    "",
    "scikit-image's TV-L1 does another amount of work (ten iterations a warp, no median), so its time says little"
    " alone; its errors against known flow stand above. Plain PyTorch is what runs on devices without kernels of ours;"
    " our kernels on the CPU need no compiler on the machine.",
)
