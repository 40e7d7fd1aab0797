"""What the terminal shows while the network trains and is tested: one live line per stage; plain lines where piped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from stmul.meter import Progress as Step
from stmul.meter import Watch
from stmul.results import Results, table, table_header, table_notes

WIDTH = 100  # letters of a line
BEFORE = 23  # of them the stage's name, the bar, its percentage


class Measured(ProgressColumn):
    """What has been measured, in words."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("measured", ""), style="dim")


def in_words(step: Step, width: int) -> str:
    """A step's time left and measures, in at most `width` letters: each stream's loss, what both together get right.

    What there is no room for is left out from the end.
    """
    losses = [*step.losses.values()] or [step.loss]
    words = [
        f"ETA {_left(step.left)}",
        f"loss {'+'.join(f'{loss:.3f}' if loss < 1 else f'{loss:.2f}' for loss in losses)}",
        f"top-1 {100 * step.accuracy:.1f} %",
        f"{_short(step.clips_per_second)} clips/s",
        f"wait {100 * step.data_wait:.0f} %",
        *([f"{_short(step.memory)} GiB"] if step.memory else []),
        *([f"{step.skipped} skipped"] if step.skipped else []),
    ]
    while len(words) > 1 and len("  ".join(words)) > width:
        words.pop()
    return "  ".join(words)


def validation_in_words(step: Step) -> str:
    """What the clips held out say of the network, in a line."""
    assert step.validation is not None
    found = step.validation
    right = f"top-1 {100 * found['accuracy']:.1f} % of {found['clips']} clips held out"
    return f"{step.stage:<10} epoch {round(step.epoch)}: {right}, loss {found['loss']:.3f}"


def _short(number: float) -> str:
    """Three digits, and more only before the point."""
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"


def _left(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes: 17:37, 34h17."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}"


@contextmanager
def training_display(console: Console) -> Iterator[Watch]:
    """A function that shows each step: a bar per stage with pace and time left, or ten lines per stage where piped."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(5), TextColumn("{task.percentage:3.0f} %"), Measured())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        tasks: dict[str, Any] = {}

        def watch(step: Step) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = progress.add_task(step.stage, total=step.steps)
            measured = in_words(step, min(WIDTH, console.width) - BEFORE)
            progress.update(tasks[step.stage], completed=step.step, measured=measured)
            if step.validation is not None:
                progress.console.print(validation_in_words(step), highlight=False)

        yield watch


def _plain(console: Console) -> Watch:
    shown: dict[str, int] = {}

    def watch(step: Step) -> None:
        tenth = 10 * step.step // step.steps
        if tenth != shown.get(step.stage, 0):
            shown[step.stage] = tenth
            line = f"{step.stage:<10} {f'{step.step}/{step.steps}':>11} "
            console.print(line + in_words(step, WIDTH - len(line)), highlight=False, soft_wrap=True)
        if step.validation is not None:
            console.print(validation_in_words(step), highlight=False, soft_wrap=True)

    return watch


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that shows rate and time left: beside a bar, or in some ten lines where piped."""
    begin, shown = time.perf_counter(), -1
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), Measured())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)

        def watch(done: int, total: int) -> None:
            nonlocal shown
            measured = pace(done, total, time.perf_counter() - begin, what)
            progress.update(task, completed=done, total=total, measured=measured)
            if not console.is_terminal and 10 * done // total > shown:  # the first says how long it will take
                shown = 10 * done // total
                console.print(f"{what:<10} {done:>6}/{total}  {measured}", highlight=False, soft_wrap=True)

        yield watch


def pace(done: int, total: int, seconds: float, what: str) -> str:
    """Rate and time left after `seconds`, at the mean rate so far: "0.0513 clips/s, 20:28:50 left"."""
    left = timedelta(seconds=round((total - done) * seconds / max(done, 1)))
    return f"{done / max(seconds, 1e-9):.3g} {what}/s, {left} left"


def results_table(results: Results) -> Table:
    """The headline table: each head with top-1 and its interval, top-5, mean class."""
    shown = Table(
        title=f"{results.dataset} split {results.split}, {results.part}: {results.scored} of {results.expected} clips",
        caption=table_notes(results),
        title_justify="left",
        caption_justify="left",
    )
    for number, column in enumerate(table_header(results)):
        shown.add_column(column, justify="right" if number else "left")
    for row in table(results):
        shown.add_row(*row)
    return shown
