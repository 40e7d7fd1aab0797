"""How long a network of long ways is waited for: counted in round trips, on a line that has long ones."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from urllib.parse import urlsplit

from tests.bench.line import Line, Shape, line

# Seconds: on a busy machine all else is little only beside a long one.
ROUND_TRIPS = (0.2, 0.5, 1.0, 2.0)

PROGRAM = """
import sys, time
import numpy as np, obstore, boto3  # imported, so that only the network is timed
from dataclasses import dataclass
from shards.order import Order
from shards.split import open_split
from shards.stream import TrainingStream

@dataclass
class Chosen:
    frames: np.ndarray
    pairs: np.ndarray

begun = time.perf_counter()
with open_split(sys.argv[1]) as split:
    opened = time.perf_counter()
    stream = TrainingStream(
        split, "train", Order(count=20, seed=1), batch=4, sub_batch=4, threads=2, read_ahead=1 << 20,
        choose=lambda position, n: Chosen(np.array([1, 5, 9]), np.array([2, 3, 8])), then=lambda clips: clips,
    )
    with stream:
        clips = [clip for clips in stream.step() for clip in clips]
        first = time.perf_counter()
        for _ in range(15):
            clips = [clip for clips in stream.step() for clip in clips]
        print(opened - begun, first - opened, (time.perf_counter() - first) / 15)
"""


def test_a_first_batch_comes_within_three_round_trips_and_the_others_wait_for_none(serve, make_split, tmp_path):
    make_split(tmp_path / "split1", train=20, test=1, classes=4, width=32, height=24, frames=12)
    url = urlsplit(serve(tmp_path).url)
    with line([url.port]) as shaped:
        opened, first, each = least(shaped)
    assert 4 <= opened < 6  # a look at where the server leads, then the manifest; a connection for each
    # The index, then the frames, for which connections are made as well.
    assert 3 <= first < 6
    assert each < 0.9


def least(shaped: Line) -> tuple[float, ...]:
    """The least of each time printed, in round trips: a busy machine adds to them and takes nothing away."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), f"http://127.0.0.1:{shaped.ports[0]}/split1"]
    found = (math.inf,) * 3
    for rtt in ROUND_TRIPS:
        shaped.shape(Shape(rtt_ms=1000 * rtt))
        printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=250).stdout
        found = tuple(min(old, float(word) / rtt) for old, word in zip(found, printed.split(), strict=True))
        if found[0] < 6 and found[1] < 6 and found[2] < 0.9:
            break
    return found
