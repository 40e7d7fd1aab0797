"""What the terminal shows while shards are built, and after; plain lines where it is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from preprocess.build import FAILURES, BuildReport, Progress
from preprocess.estimate import bytes_in_words, in_words
from preprocess.listing import PARTS

Watch = Callable[[Progress], None]


@contextmanager
def build_display(console: Console) -> Iterator[Watch]:
    """A function that shows how far a build is: a bar for each stage with rate, time left and failures."""
    pace = _Pace()
    if not console.is_terminal:
        yield _plain(console, pace)
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Bars(*columns, console=console, refresh_per_second=2) as bars:
        tasks = {stage: bars.add_task(stage, total=None, words="", visible=False) for stage in ("videos", "shards")}

        def watch(progress: Progress) -> None:
            words = pace.words(progress)
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total, words=words, visible=True)

        yield watch


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that shows a bar; nothing where it is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def summary(report: BuildReport) -> Table:
    """The table at the end of a build."""
    manifest = report.manifest
    table = Table()
    for heading in ("part", "videos", "frames", "shards", "size"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name in sorted(manifest.parts, key=[*PARTS].index):
        part = manifest.parts[name]
        size = bytes_in_words(sum(shard.size for shard in part.shards))
        table.add_row(name, f"{part.records:,}", f"{part.frames:,}", f"{len(part.shards):,}", size)
    return table


def closing_lines(report: BuildReport) -> Iterator[str]:
    """What else there is to say about a build."""
    how = ", ".join(f"{count:,} {word}" for word, count in sorted(report.how.items()) if count)
    yield f"{sum(report.how.values()):,} records ({how}) in {in_words(report.seconds)}"
    if report.failures:
        yield f"{len(report.failures):,} videos could not be used; {report.folder / FAILURES} says why; the first:"
        yield f"  {report.failures[0].reason}"
    for part, name in report.without_records:
        yield f"warning: no video of class {name} is left in {part}"


class _Pace:
    """Rate and time left, from the records that were really made; those found finished cost nothing."""

    def __init__(self) -> None:
        self.stage, self.start, self.at_start = "", 0.0, 0

    def words(self, progress: Progress) -> str:
        now = time.monotonic()
        worked = progress.done - progress.kept if progress.stage == "videos" else progress.done
        if progress.stage != self.stage:
            self.stage, self.start, self.at_start = progress.stage, now, worked
        elapsed, count = now - self.start, worked - self.at_start
        words = []
        if count and elapsed > 0:
            rate = count / elapsed
            words.append(f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
            words.append(
                f"{in_words((progress.total - progress.done) / rate)} left" if progress.done < progress.total else ""
            )
        if progress.failed:
            words.append(f"{progress.failed} failed")
        return "  ".join(filter(None, words))


def _plain(console: Console, pace: _Pace) -> Watch:
    shown: dict[str, int] = {}

    def watch(progress: Progress) -> None:
        words = pace.words(progress)
        tenth = 10 * progress.done // progress.total if progress.total else 0
        if tenth != shown.get(progress.stage, 0):
            shown[progress.stage] = tenth
            console.print(f"{progress.stage:<8} {progress.done:>6}/{progress.total}  {words}", highlight=False)

    return watch
