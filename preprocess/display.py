"""What the terminal shows while shards are built, and after; plain lines where it is not a terminal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from preprocess.build import FAILURES, BuildReport, Progress
from preprocess.building.estimate import Estimate, bytes_in_words, in_words
from preprocess.building.links import shared_bytes
from preprocess.building.parts import PartReport
from preprocess.building.workplace import Share
from preprocess.sources.listing import PARTS
from shards.stores.connect import is_url

Watch = Callable[[Progress], None]
STAGES = ("videos", "shards")
REMEMBERED = 200  # reports that the rate is reckoned from: an hour's pause of a laptop is soon forgotten
SILENT_S = 600.0  # after which a line is printed where it is not a terminal, with nothing else to say


@contextmanager
def build_display(console: Console) -> Iterator[Watch]:
    """A function that shows how far a build is: a bar for each stage with rate, time left, failures, disk, shard."""
    pace = _Pace()
    if not console.is_terminal:
        yield _plain(console, pace)
        return
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}", markup=False),
    )
    with Bars(*columns, console=console, refresh_per_second=2) as bars:
        tasks = {stage: bars.add_task(stage, total=None, words="", visible=False) for stage in STAGES}

        def watch(progress: Progress) -> None:
            words, shown = pace.words(progress), progress.total > 0
            bars.update(
                tasks[progress.stage], completed=progress.done, total=progress.total, words=words, visible=shown
            )

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


def planned_table(estimate: Estimate) -> Table:
    """The table of a dry run; frames and sizes are estimates."""
    table = Table()
    for heading in ("part", "videos", "frames, about", "shards", "size, about", "index, about"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name in sorted(estimate.parts, key=[*PARTS].index):
        part = estimate.parts[name]
        sizes = bytes_in_words(part.bytes), bytes_in_words(part.index_bytes)
        table.add_row(name, f"{part.videos:,}", f"{part.frames:,}", f"{part.shards:,}", *sizes)
    return table


def closing_lines(report: BuildReport) -> Iterator[str]:
    """What else there is to say about a build."""
    how = ", ".join(f"{count:,} {word}" for word, count in sorted(report.how.items()) if count)
    yield f"{sum(report.how.values()):,} records ({how}) in {in_words(report.seconds)}"
    files = [shard.name for part in report.manifest.parts.values() for shard in part.shards]
    if not is_url(report.location) and (shared := shared_bytes(Path(report.location) / name for name in files)):
        yield f"{bytes_in_words(shared)} of the shards are files of other splits too, and on the disk once"
    if report.failures:
        yield f"{len(report.failures):,} videos could not be used; {report.location}/{FAILURES} says why; the first:"
        yield f"  {report.failures[0].reason}"
    for part, name in report.without_records:
        yield f"warning: no video of class {name} is left in {part}"


def part_lines(report: PartReport, share: Share) -> Iterator[str]:
    """What there is to say about a part that was built."""
    how = ", ".join(f"{count:,} {word}" for word, count in sorted(report.how.items()) if count)
    yield (
        f"part {share}: {report.shards:,} of {report.of_shards:,} shards stand in {report.location}; "
        + (f"{sum(report.how.values()):,} records ({how}) in {in_words(report.seconds)}" if how else "nothing to do")
    )
    if report.failures:
        yield f"{len(report.failures):,} videos could not be used; the first:"
        yield f"  {report.failures[0].reason}"
    yield "when all parts are done: stmul preprocess merge, with the same options but --part"


class _Pace:
    """Rate, time left and disk to come, from what was really made; records found finished cost no time."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)
        self._videos = Progress(stage="videos", done=0, total=0)  # the last
        self._weighed = 0  # records whose bytes are known

    def words(self, progress: Progress) -> str:
        """What is said beside the bar of its stage."""
        return self._of_shards(progress) if progress.stage == "shards" else self._of_videos(progress)

    def _of_videos(self, progress: Progress) -> str:
        if progress.bytes > self._videos.bytes:
            self._weighed += progress.done - self._videos.done
        self._videos, left, rate = progress, progress.total - progress.done, self._rate(progress)
        words = []
        if rate:
            words.append(f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min")
            words.append(f"{in_words(left / rate)} left" if left else "")
        words.append(f"{progress.failed} failed" if progress.failed else "")
        return "  ".join(filter(None, words))

    def _rate(self, progress: Progress) -> float:
        """Records a second; 0 unknown."""
        self._seen.append((time.monotonic(), progress.done - progress.kept))
        (start, before), (now, worked) = self._seen[0], self._seen[-1]
        return (worked - before) / (now - start) if worked > before and now > start else 0.0

    def _of_shards(self, progress: Progress) -> str:
        left, come = progress.total - progress.done, 0.0
        if left and self._weighed > 0:
            come = self._videos.bytes / self._weighed * self._videos.total - progress.bytes
        if left and progress.done and come <= 0:
            come = progress.bytes / progress.done * left
        words = [bytes_in_words(progress.bytes) if progress.bytes else ""]
        words.append(f"{bytes_in_words(come)} to come" if come > 0 else "")
        words.append(progress.shard)
        return "  ".join(filter(None, words))


def _plain(console: Console, pace: _Pace) -> Watch:
    tenths: dict[str, int] = {}
    spoke = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal spoke
        words, now = pace.words(progress), time.monotonic()
        tenth = 10 * progress.done // progress.total if progress.total else 0
        if tenth != tenths.get(progress.stage, 0) or now - spoke > SILENT_S:
            tenths[progress.stage], spoke = tenth, now
            console.print(f"{progress.stage:<8} {progress.done:>6}/{progress.total}  {words}", highlight=False)

    return watch
