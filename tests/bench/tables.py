"""What was measured, in tables: for the terminal and as Markdown; and whether the goals hold."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shards.stream import cores
from stmul.config import Config
from tests.bench.measure import Case, Rounds, ratio, spread
from tests.bench.peers import DISTRIBUTIONS
from tests.bench.variants import ENDS, Variant

FLOWS = {"full": "flow at full resolution", "half": "flow at half resolution"}
TAR, LMDB = "ours, tar", "ours, LMDB"
REFERENCE, REFERENCE_BYTES = "loose files, Pillow, float", "loose files, Pillow, uint8"
PURE = "pure decoding, each frame once"
LIBRARIES = ("torch", "numpy", "simplejpeg", "pillow", "opencv-contrib-python-headless", "lmdb")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """All that a run has found."""

    day: str
    machine: str
    load: tuple[float, float]  # of the machine, before and after
    config: Config
    clips: int
    repeats: int
    threads: tuple[int, ...]
    variants: Mapping[str, Sequence[Variant]]  # by the size of their flow
    times: Rounds
    peers: Mapping[str, str]  # name and version
    left_out: tuple[str, ...]

    def over(self, one: str, other: str, end: str, *, flows: tuple[str, str] = ("full", "full")) -> float | None:
        """How many times the CPU time of `one` is that of `other`, with one thread, each with its size of flow."""
        above, below = (
            Case(variant=name, flow=flow, end=end, threads=1) for name, flow in ((one, flows[0]), (other, flows[1]))
        )
        return ratio(self.times, above, below)

    def faster(self, name: str, end: str, flow: str) -> float | None:
        """How many times the wall time of one thread is that of two."""
        one, two = (Case(variant=name, flow=flow, end=end, threads=threads) for threads in (1, 2))
        return ratio(self.times, one, two, "wall")


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal and what was found."""

    what: str
    limit: float
    most: bool  # the limit is the most that it may be; otherwise the least
    found: float | None

    @property
    def verdict(self) -> str:
        """Whether it holds."""
        if self.found is None:
            return "not measured"
        return "holds" if (self.found <= self.limit if self.most else self.found >= self.limit) else "does not hold"


def goals(report: Report) -> Iterator[Goal]:
    """The goals for the local loader, each for both of our stores."""
    for store in (TAR, LMDB):
        yield Goal(f"{store}: decoded, over pure decoding", 1.15, True, report.over(store, PURE, "decoded"))
        for variant in report.variants["full"]:
            if variant.name.startswith(("MosaicML", "LitData")):
                limit = 1.1 if variant.kind == "our payload" else 4.0
                found = report.over(variant.name, store, "decoded")
                yield Goal(f"{variant.name}: decoded, over {store}", limit, False, found)
        yield Goal(f"reference: ready, over {store}", 4.5, False, report.over(REFERENCE, store, "ready"))
        if "half" in report.variants:
            found = report.over(REFERENCE, store, "ready", flows=("full", "half"))
            yield Goal(f"reference: ready, over {store} with half-resolution flow", 10.0, False, found)
        for flow in report.variants:
            for end in ENDS:
                name = f"{store}: {end}, two threads over one, {FLOWS[flow]}"
                yield Goal(name, 1.8, False, report.faster(store, end, flow))
            by_name = {variant.name: variant.bytes_read for variant in report.variants[flow]}
            found = by_name[store] / by_name[PURE]
            yield Goal(f"{store}: bytes read over bytes of the frames used, {FLOWS[flow]}", 1.1, True, found)


def rows(report: Report, flow: str, end: str, threads: int) -> Iterator[list[str]]:
    """The rows of one table: a variant, its times, and how it stands to pure decoding and to the reference."""
    base = Case(variant=REFERENCE, flow=flow, end=end, threads=threads)
    floor = Case(variant=PURE, flow=flow, end="decoded", threads=threads)
    by_name = {variant.name: variant for variant in report.variants[flow]}
    for variant in by_name.values():
        case = Case(variant=variant.name, flow=flow, end=end, threads=threads)
        if case not in report.times:
            continue
        cpu, wall = (spread([getattr(one, clock) for one in report.times[case]]) for clock in ("cpu", "wall"))
        yield [
            variant.name,
            f"{cpu[1]:.2f}",
            f"{cpu[0]:.1f}–{cpu[2]:.1f}",
            f"{wall[1]:.2f}",
            f"{wall[0]:.1f}–{wall[2]:.1f}",
            times_of(ratio(report.times, case, floor)),
            times_of(ratio(report.times, base, case)),
            f"{variant.bytes_read / by_name[PURE].bytes_read:.2f}",
        ]


HEADS = ("", "CPU", "quartiles", "wall", "quartiles", "× pure", "reference ×", "bytes")


def times_of(found: float | None) -> str:
    """A ratio in two digits after the point."""
    return "" if found is None else f"{found:.2f}"


def tables(report: Report) -> Iterator[tuple[str, list[list[str]]]]:
    """Every table with its title."""
    for flow in report.variants:
        for threads in report.threads:
            for end in ENDS:
                how = "one thread" if threads == 1 else f"{threads} threads"
                yield f"{end}, {FLOWS[flow]}, {how}", list(rows(report, flow, end, threads))


def machine() -> str:
    """The machine in a line: no names, no places."""
    found = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        found = lines[0] if lines else found
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{found}, {cores()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def described(report: Report) -> str:
    """What was measured, and with what, in sentences."""
    data, unit, count = report.config.data, report.config.train.sub_batch, report.clips
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    peers = ", ".join(f"{DISTRIBUTIONS[name]} {number}" for name, number in report.peers.items()) or "none"
    absent = f" Left out: {', '.join(report.left_out)}." if report.left_out else ""
    used = next(variant.bytes_read for variant in report.variants["full"] if variant.name == PURE)
    before, after = report.load
    return (
        f"{report.machine}. {libraries}. Peers: {peers}.{absent} {count} clips of {data.frames} instants, each a frame"
        f" and {data.stack} flow pairs: {used / 1e6:.2f} MB of JPEGs a clip; crops of {data.crop}; batches of {unit};"
        f" page cache warm. Medians and quartiles of {report.repeats} rounds, in which all variants alternate, after"
        f" one that is not counted. Load of the machine {before:.1f} before, {after:.1f} after."
    )


COLUMNS = (
    "CPU and wall: ms per clip; CPU counts all threads and worker processes. × pure: this over pure decoding of each"
    " frame once; reference ×: loose files with Pillow and float over this; both are medians of the ratios within each"
    " round, of CPU time. bytes: read for a clip, over the bytes of the frames used."
)


def show(report: Report, console: Console) -> None:
    """Prints the tables and the goals."""
    console.print(described(report), highlight=False)
    for title, some in tables(report):
        table = Table(title=title, title_justify="left")
        for number, head in enumerate(HEADS):
            table.add_column(head, justify="right" if number else "left", no_wrap=number > 0)
        for row in some:
            table.add_row(*row)
        console.print(table)
    console.print(COLUMNS, highlight=False)
    table = Table(title="goals", title_justify="left")
    for head in ("", "goal", "found", ""):
        table.add_column(head)
    for goal in goals(report):
        table.add_row(*goal_row(goal))
    console.print(table)


def goal_row(goal: Goal) -> list[str]:
    """A goal as a row."""
    return [goal.what, f"{'at most' if goal.most else 'at least'} {goal.limit:g}", times_of(goal.found), goal.verdict]


def as_markdown(report: Report, chart: str) -> str:
    """The report as a page; `chart` is the picture's name beside it."""
    lines = [
        f"# {report.day}, loading a clip",
        "",
        described(report),
        "",
        f"![CPU time per clip]({chart})",
        "",
        COLUMNS,
    ]
    for title, some in tables(report):
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *grid(HEADS, some)]
    lines += ["", "## Goals", "", *grid(("", "goal", "found", ""), [goal_row(goal) for goal in goals(report)])]
    lines += ["", "## Settings", ""]
    lines += [f"- **{variant.name}** ({variant.kind}): {variant.settings}." for variant in report.variants["full"]]
    lines += ["", *NOTES]
    return "\n".join(lines) + "\n"


def grid(heads: Sequence[str], some: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table in Markdown."""
    for row in (heads, ["---"] + ["---:"] * (len(heads) - 1), *some):
        yield f"| {' | '.join(row)} |"


NOTES = (
    "All variants load the same clips: same videos, same instants, same crops. Before anything is timed the pixels of"
    " the first clips are compared with Pillow's: decoded frames to the bit, crops as defined to one grey level.",
    "",
    "Peers get one sample for each clip, in the order of the clips, unshuffled; they check no checksums. Their crops"
    " are made by OpenCV's linear interpolation, which does not average where it shrinks: less work than the crops of"
    " ours and of the reference, and other pixels. One thread: no worker processes. More: worker processes, which are"
    " started and have delivered an epoch before they are timed. Ours and the reference use threads, which crop as"
    " well, as in a training without a GPU.",
)
