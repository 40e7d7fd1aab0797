"""A run's log, as lines of JSON and for TensorBoard; and asking a training to stop at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from stmul.runs import Run


@contextmanager
def run_log(run: Run) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds a row to the run's log.jsonl and its numbers to TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(run.folder / "tensorboard"))

    def log(row: dict[str, Any]) -> None:
        run.log(row)
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(f"{row['stage']}/{name}", value, row["epoch"])

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT (Ctrl-C) or SIGTERM has come; a second one interrupts at once."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
