"""What the terminal shows while the network trains and is tested: one live line per stage; plain lines where piped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stmul.meter import Progress as Step
from stmul.meter import Watch
from stmul.results import Results, table, table_header, table_notes


class Measured(ProgressColumn):
    """Loss, accuracy, rate and waiting of the stage under way."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("measured", ""), style="dim")


def in_words(step: Step) -> str:
    """A step's measures in a few aligned words."""
    return (
        f"epoch {step.epoch:6.1f}  loss {step.loss:7.4f}  top-1 {100 * step.accuracy:5.1f} %"
        f"  {step.clips_per_second:7.1f} clips/s  data wait {100 * step.data_wait:4.1f} %"
    )


@contextmanager
def training_display(console: Console) -> Iterator[Watch]:
    """A function that shows each step: a bar per stage with rate and ETA, or some ten lines per stage where piped."""
    if not console.is_terminal:
        yield _plain(console)
        return
    name = TextColumn("{task.description:<10}")
    columns = (name, BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), Measured())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        tasks: dict[str, Any] = {}

        def watch(step: Step) -> None:
            if step.stage not in tasks:
                tasks[step.stage] = progress.add_task(step.stage, total=step.steps)
            progress.update(tasks[step.stage], completed=step.step, measured=in_words(step))

        yield watch


def _plain(console: Console) -> Watch:
    shown: dict[str, int] = {}

    def watch(step: Step) -> None:
        tenth = 10 * step.step // step.steps
        if tenth != shown.get(step.stage, 0):
            shown[step.stage] = tenth
            line = f"{step.stage:<10} {step.step:>6}/{step.steps}  {in_words(step)}"
            console.print(line, highlight=False, soft_wrap=True)

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
