"""Fifty epochs take no more memory than five, and however reading ends, it ends at once and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.copy import copy_split
from shards.manifest import Manifest

KINDS = ("split1", "split1.lmdb")

# Streams whose store can be made to stand still, as a network folder does. Clips as they are stored, without torch:
STORED = """
import os, signal, sys, threading, time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.order import Order
from shards.split import Split, open_split
from shards.stream import TrainingStream

class Slow:
    stands = threading.Event()

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        return getattr(self.store, name)

    def fetch(self, ranges):
        if self.stands.is_set():
            time.sleep(600)  # far longer than any wait below
        return self.store.fetch(ranges)

@dataclass
class Chosen:
    frames: np.ndarray
    pairs: np.ndarray

opened = open_split(sys.argv[1])
split = Split(Slow(opened.store), opened.manifest, folder=opened.folder)
stream = TrainingStream(
    split, "train", Order(count=20, seed=1), batch=4, sub_batch=2, threads=2,
    choose=lambda position, n: Chosen(np.arange(3), np.arange(4)), then=lambda clips: clips,
)

def step():
    return list(stream.step())

def readers():
    return [one.name for one in threading.enumerate() if one.name.startswith("stmul-read")]
"""

# And as they are trained on:
DECODED = (
    STORED
    + """
import torch

from configs import load
from stmul.config import Config
from stmul.loading import training_batch, training_stream

torch.set_num_threads(1)
config = load(Config, None, [
    "data.crop=32", "data.frames=2", "data.stack=4", "data.stride=[2, 4]", "data.threads=2",
    "train.batch=4", "train.sub_batch=2",
])
stream.close()
stream = training_stream(split, config, "joint", pinned=False)

def step():
    return [training_batch(one, config, config.train.joint, "joint") for one in stream.step()]
"""
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    root = tmp_path_factory.mktemp("endurance")
    make_split(root / "split1", train=20, test=1, width=96, height=80, frames=14)
    copy_split(root / "split1", root / "split1.lmdb")
    return root


def begun(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], seconds: float) -> tuple[int, str, str]:
    """The exit status, and what it has written; an error where it has not ended after `seconds`."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"has not ended after {seconds} s:\n{out}\n{err}")
    return process.returncode, out, err


# Memory

EPOCHS = """
def held():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) >> 10, int(status["Threads"]), len(os.listdir("/proc/self/fd"))

with stream:
    for epoch in range(1, 51):
        for _ in range(5):
            batches = step()
        if epoch in (5, 50):
            print(*held())
print(*readers())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what a process holds")
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_epochs_take_no_more_memory_files_and_threads_than_five(root: Path, kind: str) -> None:
    code, out, err = ended(begun(DECODED + EPOCHS, root / kind), 280)
    assert code == 0, err
    fifth, fiftieth, readers = (line.split() for line in out.splitlines())
    # 900 clips lie between: their pixels are 150 MiB, their JPEGs 15 MiB. Allocators keep some MiB, by who came first.
    assert int(fiftieth[0]) - int(fifth[0]) <= 10, f"MiB, threads, files: {fifth} after 5 epochs, {fiftieth} after 50"
    assert fiftieth[1:] == fifth[1:]
    assert readers == []


# Ends

INTERRUPTED = """
try:
    with stream:
        while True:
            step()
            if stream.state().position == 40:
                if sys.argv[2] == "stands":
                    Slow.stands.set()
                print("begun", flush=True)
except KeyboardInterrupt:
    print("interrupted", *readers())
    raise
"""


@pytest.mark.parametrize("store", ["reads", "stands"])
@pytest.mark.parametrize(("clips", "kind"), [(STORED, "split1"), (DECODED, "split1.lmdb")], ids=["stored", "decoded"])
def test_an_interrupt_ends_reading_at_once_even_where_a_read_stands_still(
    root: Path, clips: str, kind: str, store: str
) -> None:
    before = sorted(root.rglob("*"))
    process = begun(clips + INTERRUPTED, root / kind, store)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(0.3)  # where reads stand still, the stream by now waits for one
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process, 120)
    _, *readers = out.split()
    assert (code, err.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")
    assert store == "stands" or not readers
    assert sorted(root.rglob("*")) == before


ENDS = {
    "an error of the consumer": """
with stream:
    step()
    Slow.stands.set()
    raise ValueError("mine")
""",
    "an error without closing": """
step()
Slow.stands.set()
raise ValueError("mine")
""",
    "an error in a worker": """
handed = set()

def then(clips):
    handed.add(clips[0].position)
    if clips[0].position == 8:
        while not handed >= {0, 2, 4, 6}:  # an error comes in its turn
            time.sleep(0.01)
        Slow.stands.set()
        raise ValueError("mine")
    return clips

stream.then = then
with stream:
    while True:
        step()
""",
    "a break": """
with stream:
    for _ in iter(step, None):
        Slow.stands.set()
        break
raise ValueError("mine")
""",
    "an interrupt while it closes": """
step()
Slow.stands.set()
time.sleep(0.2)
timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
try:
    timer.start()
    stream.close()
    timer.join()
except KeyboardInterrupt:
    raise ValueError("mine") from None
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_reading_ends_with_the_error_that_was_raised_even_where_a_read_stands_still(root: Path, end: str) -> None:
    code, out, err = ended(begun(STORED + ENDS[end], root / "split1"), 120)
    assert (code, err.splitlines()[-1]) == (1, "ValueError: mine")
    assert out == ""


CLOSED = """
from shards.errors import ShardError

step()
if sys.argv[2] == "stands":
    Slow.stands.set()
closed = []

def close():
    time.sleep(0.3)
    stream.close()
    closed.append(True)

closing = threading.Thread(target=close)
closing.start()
try:
    while True:
        step()
except ShardError as error:
    assert "has ended" in str(error), error
closing.join(100)
assert closed, "it waits for a read that stands still"
assert sys.argv[2] == "stands" or not readers(), readers()
"""


@pytest.mark.parametrize("store", ["reads", "stands"])
def test_a_stream_may_be_closed_from_another_thread(root: Path, store: str) -> None:
    code, _, err = ended(begun(STORED + CLOSED, root / "split1", store), 280)
    assert code == 0, err
