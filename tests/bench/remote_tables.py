"""What reading from afar took, in tables: for the terminal and as Markdown; and whether the goals hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from rich.console import Console
from rich.table import Table

from stmul.config import Config
from tests.bench.gauge import Gauged
from tests.bench.line import Shape
from tests.bench.measure import spread
from tests.bench.passes import Passed, Reader
from tests.bench.peers import DISTRIBUTIONS
from tests.bench.tables import grid

LIBRARIES = ("torch", "numpy", "simplejpeg", "obstore", "boto3", "urllib3")
SECOND = ", second pass"
SERVERS = {"HTTP": "nginx, HTTP", "S3": "seaweedfs, S3"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A reader's pass on a line."""

    shape: Shape
    reader: str  # its name, with `SECOND` where its folder was full
    server: str


Found = Mapping[Turn, Mapping[int, Passed]]  # by the number of the round


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Report:
    """All that a run has found."""

    day: str
    machine: str
    load: tuple[float, float]  # of the machine, before and after
    config: Config
    clips: int
    videos: int
    repeats: int
    readers: Sequence[Reader]
    shapes: Sequence[Shape]
    gauged: Mapping[Shape, Gauged]
    found: Found
    failed: Mapping[Turn, str]
    used: Sequence[int]  # bytes of the frames used, clip by clip
    video_bytes: float  # of a video, all of it, on average
    starts: Mapping[tuple[str, str], float]  # seconds to the first batch with all imports, by server and reader
    peers: Mapping[str, str]  # name and version
    left_out: Sequence[str]

    @property
    def rows(self) -> Iterator[tuple[str, str]]:
        """Server and reader of each row, second passes after their first."""
        for reader in self.readers:
            yield reader.server, reader.name
            if reader.keeps:
                yield reader.server, reader.name + SECOND

    def passes(self, shape: Shape, server: str, reader: str) -> Mapping[int, Passed]:
        """The passes of a reader, by round."""
        return self.found.get(Turn(shape=shape, reader=reader, server=server), {})

    def median(self, shape: Shape, server: str, reader: str, figure: Callable[[Passed], float]) -> float | None:
        """The median of a figure."""
        some = self.passes(shape, server, reader)
        return statistics.median(map(figure, some.values())) if some else None

    def over(self, shape: Shape, server: str, one: str, other: str, figure: Callable[[Passed], float]) -> float | None:
        """The median of the ratios of a figure of `one` and `other` in the rounds that both have."""
        above, below = self.passes(shape, server, one), self.passes(shape, server, other)
        both = above.keys() & below.keys()
        return statistics.median(figure(above[key]) / figure(below[key]) for key in both) if both else None

    def floor(self, shape: Shape, server: str) -> str | None:
        """The fastest of the plain GETs that decode."""
        names = [one.name for one in self.readers if (one.kind, one.server, one.pixels) == ("floor", server, True)]
        rates = {name: self.median(shape, server, name, rate) for name in names}
        found = {name: value for name, value in rates.items() if value is not None}
        return max(found, key=lambda name: found[name]) if found else None

    def excess(self, one: Passed) -> float:
        """Bytes from the server over the bytes of the frames used of all clips fetched."""
        return one.down / sum(self.used[: one.fetched])


def rate(one: Passed) -> float:
    """Clips a second."""
    return one.rate


def first_ms(one: Passed) -> float:
    """Milliseconds to the first batch."""
    return 1000 * one.first_s


def cpu_ms(one: Passed) -> float:
    """CPU of a clip."""
    return one.cpu_ms


def mb(report: Report, one: Passed) -> float:
    """Megabytes from the server for a clip."""
    return report.excess(one) * statistics.mean(report.used[: one.clips]) / 1e6


def tables(report: Report) -> Iterator[tuple[str, tuple[str, ...], list[list[str]]]]:
    """Every table of figures: its title, its heads, its rows."""
    heads = ("", *(shape.words for shape in report.shapes))
    yield "the line", LINE, [_line_row(report, shape) for shape in report.shapes]
    for server, words in SERVERS.items():
        rows = [name for where, name in report.rows if where == server]

        def table(cell: Callable[[Shape, str], str], rows: Sequence[str] = rows) -> list[list[str]]:
            return [[name, *(cell(shape, name) for shape in report.shapes)] for name in rows]

        if rows:
            figure = _figure(report, server)
            yield f"clips a second, {words}", heads, table(figure(rate, "{:.1f}", quartiles=True))
            yield f"clips a second over plain GETs, {words}", heads, table(_over_floor(report, server))
            yield f"ms to the first batch, {words}", heads, table(figure(first_ms, "{:.0f}", quartiles=True))
            yield f"bytes over the bytes of the frames used, {words}", heads, table(figure(report.excess, "{:.3f}"))
            yield f"MB from the server for a clip, {words}", heads, table(figure(lambda one: mb(report, one), "{:.2f}"))
            yield f"CPU ms for a clip, {words}", heads, table(figure(cpu_ms, "{:.1f}"))
            yield f"connections, {words}", heads, table(figure(lambda one: one.connections, "{:.0f}"))
    if report.starts:
        some = [[f"{name}, {server}", f"{seconds:.2f}"] for (server, name), seconds in report.starts.items()]
        yield "seconds to the first batch from the start of the interpreter", ("", report.shapes[0].words), some


LINE = (
    "",
    "answer on a new connection, ms",
    "on an open one, ms",
    "MB/s, 1 connection",
    "MB/s, 16",
    "its CPU, % of a core",
)


def _line_row(report: Report, shape: Shape) -> list[str]:
    one = report.gauged[shape]
    numbers = (one.connect_ms, one.ping_ms, one.one, one.sixteen, 100 * one.cpu)
    return [shape.words, *(f"{number:.1f}" for number in numbers)]


def _figure(report: Report, server: str) -> Callable[..., Callable[[Shape, str], str]]:
    def figure(of: Callable[[Passed], float], digits: str, *, quartiles: bool = False) -> Callable[[Shape, str], str]:
        def cell(shape: Shape, name: str) -> str:
            some = report.passes(shape, server, name)
            if not some:
                return _missing(report, shape, server, name)
            low, middle, high = spread([of(one) for one in some.values()])
            around = f" ({digits.format(low)}–{digits.format(high)})" if quartiles and len(some) > 1 else ""
            return digits.format(middle) + around

        return cell

    return figure


def _over_floor(report: Report, server: str) -> Callable[[Shape, str], str]:
    def cell(shape: Shape, name: str) -> str:
        floor = report.floor(shape, server)
        found = report.over(shape, server, name, floor, rate) if floor else None
        return _missing(report, shape, server, name) if found is None else f"{found:.2f}"

    return cell


def _missing(report: Report, shape: Shape, server: str, name: str) -> str:
    return "failed" if Turn(shape=shape, reader=name, server=server) in report.failed else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A goal, and what was found on each line."""

    what: str
    limit: float
    most: bool  # the limit is the most that it may be; otherwise the least
    found: tuple[float | None, ...]

    def holds(self, found: float) -> bool:
        """Whether it holds."""
        return found <= self.limit if self.most else found >= self.limit

    @property
    def row(self) -> list[str]:
        """As a row: what was found, and "no" where it does not hold."""
        cells = ["" if one is None else f"{one:.2f}{'' if self.holds(one) else ' no'}" for one in self.found]
        return [self.what, f"{'at most' if self.most else 'at least'} {self.limit:g}", *cells]


def goals(report: Report) -> Iterator[Goal]:
    """The goals of reading from afar."""

    def goal(what: str, limit: float, cell: Callable[[Shape], float | None], *, most: bool = False) -> Goal:
        return Goal(what=what, limit=limit, most=most, found=tuple(cell(shape) for shape in report.shapes))

    def ahead(
        server: str, one: str, other: str, figure: Callable[[Passed], float] = rate
    ) -> Callable[[Shape], float | None]:
        return lambda shape: report.over(shape, server, one, other, figure)

    def of_floor(server: str) -> Callable[[Shape], float | None]:
        def cell(shape: Shape) -> float | None:
            floor = report.floor(shape, server)
            return report.over(shape, server, "ours, ranges", floor, rate) if floor else None

        return cell

    for server in dict.fromkeys(reader.server for reader in report.readers):
        name = f"ours, ranges, {server}"

        def excess(shape: Shape, server: str = server) -> float | None:
            return report.median(shape, server, "ours, ranges", report.excess)

        yield goal(f"{name}: clips a second over plain GETs", 0.9, of_floor(server))
        yield goal(f"{name}: bytes over the bytes of the frames used", 1.1, excess, most=True)
        for peer in (one for one in report.readers if (one.kind, one.server) == ("peer", server)):
            yield goal(f"{name}: clips a second over {peer.name}", 1.0, ahead(server, "ours, ranges", peer.name))
            first = ahead(server, peer.name, "ours, ranges", first_ms)
            yield goal(f"{peer.name}: time to the first batch over {name}", 1.0, first)
            if peer.keeps:
                shards = "ours, shards"
                yield goal(f"{shards}, {server}: over {peer.name}", 1.0, ahead(server, shards, peer.name))
                both = ahead(server, shards + SECOND, peer.name + SECOND)
                yield goal(f"{shards}, {server}{SECOND}: over {peer.name}", 1.0, both)


def described(report: Report) -> str:
    """What was measured, and with what, in sentences."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    peers = ", ".join(f"{DISTRIBUTIONS[name]} {number}" for name, number in report.peers.items()) or "none"
    absent = f" Left out: {', '.join(report.left_out)}." if report.left_out else ""
    before, after = report.load
    used = statistics.mean(report.used[: report.clips]) / 1e6
    return (
        f"{report.machine}. {libraries}. Peers: {peers}.{absent} {report.videos} videos of"
        f" {report.video_bytes / 1e6:.2f} MB each; who reads ranges is asked for {report.clips} clips, who fetches"
        f" whole shards for one of each video; a clip uses {used:.2f} MB. Medians and quartiles of {report.repeats}"
        f" rounds, in which all take turns on each line; a pass of more than 5 s has every other round. Load of the"
        f" machine {before:.1f} before, {after:.1f} after."
    )


def show(report: Report, console: Console) -> None:
    """Prints the tables and the goals."""
    console.print(described(report), highlight=False)
    for title, heads, some in (*tables(report), goal_table(report)):
        table = Table(title=title, title_justify="left")
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left")
        for row in some:
            table.add_row(*row)
        console.print(table)
    for turn, why in report.failed.items():
        console.print(f"{turn.reader}, {turn.server}, {turn.shape.words}: {why}", highlight=False, markup=False)


def goal_table(report: Report) -> tuple[str, tuple[str, ...], list[list[str]]]:
    """The goals as a table."""
    heads = ("", "goal", *(shape.words for shape in report.shapes))
    return "goals", heads, [one.row for one in goals(report)]


def as_markdown(report: Report, chart: str) -> str:
    """The report as a page; `chart` is the picture's name beside it."""
    lines = [f"# {report.day}, streaming clips", "", described(report), "", f"![Clips a second]({chart})"]
    for title, heads, some in (*tables(report), goal_table(report)):
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *grid(heads, some)]
    if report.failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {turn.reader}, {turn.server}, {turn.shape.words}: {why}" for turn, why in report.failed.items()]
    lines += ["", "## Settings", ""]
    lines += [f"- **{reader.name}**, {reader.server} ({reader.kind}): {reader.settings}." for reader in report.readers]
    lines += ["", *NOTES]
    return "\n".join(lines) + "\n"


NOTES = (
    "All read the same videos through the same line, and of each clip the same frames; before anything is timed the"
    " pixels of the first clips are compared with Pillow's, to the bit. The end point is uint8 frames in memory. Each"
    " pass is a process that has read nothing before; it has been forked from one that has imported everything, so that"
    " the time to the first batch is without imports (with them it stands in a table of its own). Clips a second count"
    " from when the split or the data set is open; the time to the first batch includes opening it.",
    "",
    "The line is a process of its own before the servers: half the round trip in each direction, a whole one more for a"
    " new connection, one bandwidth for all connections in turns, at most 4 MiB under way in each. It has no loss and"
    " no slow start. It counts the bytes from the server, HTTP's own among them. Who reads ahead is let finish what it"
    " has asked for, and its bytes are set over the frames used of all those clips. CPU is of the reading process and"
    " all below it (worker processes, curl), not of the servers and the line, which share the machine's cores with it;"
    " for ours it holds what was fetched ahead and not yet asked for, for peers the starts of their processes.",
    "",
    "Peers get our two blobs of JPEGs as bytes and decode only the frames wanted, with our decoder: their own lists of"
    " frames would decode a whole video for a clip. They fetch every byte of a video all the same. They check no"
    " checksums. Worker processes are begun within the pass.",
)
