"""A training killed anywhere and run again is the training that nobody killed: its log and its weights, bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stmul.runs import Run, runs
from tests.faults.conftest import assert_same_training, learnt
from tests.faults.victims import KINDS

KILLED = -signal.SIGKILL


def drawn_losses(run: Run) -> dict[tuple[str, int], set[float]]:
    """What TensorBoard shows as the loss of each epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown: dict[tuple[str, int], set[float]] = {}
    for path in (run.folder / "tensorboard").iterdir():
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            stage, _, name = tag.partition("/")
            for event in events.Scalars(tag) if name == "loss" else []:
                shown.setdefault((stage, event.step), set()).add(event.value)
    return shown


def assert_drawn_once(run: Run) -> None:
    """TensorBoard shows every epoch, and one loss of each."""
    expected = {(stage, epoch): {float(np.float32(loss))} for stage, epoch, _, loss, _, _ in learnt(run)}
    assert drawn_losses(run) == expected


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(8, 6), *(pytest.param(seed, 20, marks=[pytest.mark.slow, pytest.mark.timeout(600)]) for seed in range(6))],
)
def test_killed_at_random_moments_and_run_again(place, uninterrupted, seed, kills):
    whole, ended = uninterrupted
    draws, struck = np.random.default_rng(seed), 0
    for _ in range(kills):
        kind = str(draws.choice(KINDS))
        number = int(draws.integers(1, max(2, ended.moments[kind] // kills), endpoint=True))
        delay_s = float(draws.choice([0, draws.uniform(0, 0.2)]))
        print(f"kill at {kind} {number}, {delay_s:.3f} s later")
        code = place.train(kind=kind, number=number, how="kill", delay_s=delay_s).code
        assert code in (KILLED, 0)
        struck += code == KILLED  # else it has come to its end before, and the next training is a new one
    assert place.train().code == 0
    assert struck >= kills / 2
    for run in runs(place.folder / "experiment"):
        assert_same_training(run, whole)
        assert_drawn_once(run)


def test_killed_at_each_moment_that_could_matter_and_run_again(place, uninterrupted):
    whole, _ = uninterrupted

    def killed(kind: str, number: int, **more: float) -> list[str]:
        assert place.train(kind=kind, number=number, how="kill", **{"save_minutes": 0, **more}).code == KILLED
        return sorted(path.name for path in place.run.folder.glob("*/*.pt*"))

    assert killed("replace", 4) == []  # the run has just been described
    assert killed("log", 1) == []  # before the row of the first epoch
    assert killed("log", 2) == []  # after it, before the checkpoint
    assert killed("write", 40) == ["epoch-0001.pt.partial"]
    assert killed("fsync", 3) == ["epoch-0001.pt.partial"]  # all written, but perhaps not on disk
    assert killed("replace", 1) == ["epoch-0001.pt.partial"]
    assert killed("replace", 2) == ["epoch-0001.pt"]
    assert killed("backward", 5, save_minutes=1e-9) == ["epoch-0001.pt", "mid-epoch.pt"]
    assert killed("write", 40, save_minutes=1e-9) == ["epoch-0001.pt", "mid-epoch.pt", "mid-epoch.pt.partial"]
    # Before the checkpoint within the epoch is removed: the unlinks before are of the half one.
    assert killed("unlink", 3, save_minutes=1e-9) == ["epoch-0001.pt", "epoch-0001.pt", "mid-epoch.pt"]
    assert len(killed("replace", 9)) == 4  # before the run is said to be done
    assert place.train().code == 0
    assert_same_training(place.run, whole)
    assert_drawn_once(place.run)


def test_killed_while_its_folder_is_described_a_run_is_begun_beside_it(place, uninterrupted):
    assert place.train(kind="replace", number=3, how="kill").code == KILLED
    assert place.train(kind="backward", number=1, how="kill").code == KILLED
    assert place.run.id == "tiny-002"


def test_the_command_killed_from_outside_and_run_again(place, uninterrupted):
    whole, _ = uninterrupted
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stmul", *place.words()]
    process = subprocess.Popen(command, cwd=place.folder, stdout=subprocess.DEVNULL, env=environment)
    wait_for(place.folder / "experiment" / "tiny-001" / "appearance" / "mid-epoch.pt")
    time.sleep(delay_s := np.random.default_rng().uniform(0, 0.5))
    print(f"killed {delay_s:.3f} s after the first checkpoint")
    process.kill()
    assert process.wait(120) in (KILLED, 0)
    out = subprocess.run(command, cwd=place.folder, env=environment, check=True, capture_output=True, text=True).stdout
    assert "goes on where it was stopped" in out or process.returncode == 0
    assert_same_training(place.run, whole)


def wait_for(path: Path, seconds: float = 240) -> None:
    """Returns when `path` is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
