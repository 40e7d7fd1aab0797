"""The log on disk and in TensorBoard tell the same; a signal asks for the next step's end, a second one interrupts."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from stmul.errors import RunError
from stmul.logs import run_log, stop_requests
from stmul.runs import Run


def row(epoch, loss, stage="joint"):
    return {"stage": stage, "epoch": epoch, "step": 3 * epoch, "loss": loss, "seconds": 0.5}


def drawn(run):
    """(tag, epoch, value) of every point that TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points = []
    for path in (run.folder / "tensorboard").iterdir():
        events = EventAccumulator(str(path)).Reload()
        points += [(tag, one.step, one.value) for tag in events.Tags()["scalars"] for one in events.Scalars(tag)]
    return sorted(points)


def test_an_epoch_trained_again_is_drawn_once_and_every_epoch_is_drawn(tmp_path):
    run = Run(tmp_path)
    with run_log(run) as log:
        log(row(1, 2.0))
        log(row(2, 1.5))
    with run_log(run) as log:
        log(row(2, 1.5))
        log(row(3, 1.0))
    assert [one["epoch"] for one in run.history()] == [1, 2, 3]
    assert [point for point in drawn(run) if "loss" in point[0]] == [
        ("joint/loss", 1, 2.0),
        ("joint/loss", 2, 1.5),
        ("joint/loss", 3, 1.0),
    ]
    assert len(drawn(run)) == 6


def test_what_was_logged_is_drawn_although_nobody_closed_the_log(tmp_path):
    with run_log(Run(tmp_path)) as log:
        log(row(1, 2.0))
        assert ("joint/loss", 1, 2.0) in drawn(Run(tmp_path))


def test_a_run_is_logged_by_one_process_at_a_time(tmp_path):
    with run_log(Run(tmp_path)), pytest.raises(RunError, match="another process"), run_log(Run(tmp_path)):
        pass
    with run_log(Run(tmp_path)):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number, capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert "stopping after this step; once more to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_another_thread_nothing_asks_and_no_handler_is_touched():
    asked = []

    def work() -> None:
        with stop_requests() as stop:
            asked.append(stop())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]
    assert signal.getsignal(signal.SIGTERM) == before
