"""A run's log, as lines of JSON and for TensorBoard; and asking a training to stop at the next step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import Any

from shards.provenance import leaves
from stmul.runs import Run


@contextmanager
def run_log(run: Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds a row to the run's log.jsonl and its numbers to TensorBoard; the run is held meanwhile.

    An epoch that is trained again after a kill is drawn once. Raises RunError where another process trains the run.
    """
    from torch.utils.tensorboard import SummaryWriter

    with run.held(), closing(SummaryWriter(str(run.folder / "tensorboard"))) as writer:
        drawn = {(row["stage"], row["epoch"]) for row in run.history()}

        def log(row: dict[str, Any]) -> None:
            if (row["stage"], row["epoch"]) not in drawn:
                for name, value in _numbers(row):
                    writer.add_scalar(f"{row['stage']}/{name}", value, row["epoch"])
                writer.flush()  # first, since what the log holds counts as drawn
            run.log(row)

        yield log


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What of a row is measured, each with a name: loss, losses/motion, validation/accuracy, ..."""
    for name, value in leaves(row):
        if isinstance(value, float) or name == "skipped":
            yield name.replace(".", "/"), value


@contextmanager
def stop_requests(*, quiet: bool = False) -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT (Ctrl-C) or SIGTERM has come; a second one interrupts at once.

    The first is answered on standard error, unless `quiet`: a step may take a while.
    """
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if quiet:
            return
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, b"stopping after this step; once more to stop at once\n")

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
