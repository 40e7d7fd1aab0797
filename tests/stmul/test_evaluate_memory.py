"""The dense test of a whole video fits an ordinary machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WHOLE = """
import time
from pathlib import Path
import numpy as np
from configs import load
from stmul.config import Config
from stmul.evaluate import clip_scores
from stmul.stages import build

network = build("joint", load(Config, "ucf101"), 101)
draws = np.random.default_rng(1)
clip = [draws.integers(0, 256, (25, 256, 340, channels), dtype=np.uint8) for channels in (3, 20)]
begin = time.perf_counter()
scores = clip_scores(network, *clip, mirror=True)
assert all(one.shape == (101,) and one.isfinite().all() for one in scores)
seconds = time.perf_counter() - begin
# Not getrusage's ru_maxrss: a child begins with its parent's.
most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(seconds, int(most.split()[1]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux what a process took at most")
def test_a_whole_video_of_25_frames_and_its_mirror_image_is_scored_within_four_gib_on_the_cpu():
    """ResNet-50 twice, 340 x 256 pixels; everything in the process counts."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    run = [sys.executable, "-c", WHOLE]
    found = subprocess.run(run, check=True, capture_output=True, text=True, env=environment, timeout=280)
    seconds, gib = (float(word) for word in found.stdout.split())
    print(f"{seconds:.1f} s, {gib:.2f} GiB at most")
    assert gib < 4
