"""What it takes to predict a long video with networks of full size: seconds, and the most memory of the process.

    python -m tests.bench.prediction --data FOLDER [--seconds 60] [--flow tvl1] [--alone] [--out FOLDER] [--step 10 ...]

The videos below FOLDER are shown one after the other in one of 320 x 240 pixels and 25 frames a second; a run of
configuration `ucf101` is made up, drawn at random: ResNet-50 twice, 101 classes, checkpoints with an optimiser's state.
With `--alone` it has trained its streams alone, too, as `stmul train` does; all are then scored. Then `stmul predict`
itself runs, in a process of its own, and writes all it can write: film, sheet, picture of the windows, JSON, CSV.
Memory is VmHWM, as Linux counts it: what lay in memory at once, libraries included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from configs import dump, load
from preprocess.config import Flow, Preprocess
from preprocess.record import how_made
from stmul.checkpoint import Checkpoint, save
from stmul.config import Config
from stmul.runs import About, Run
from stmul.stages import build

SIZE, RATE = (320, 240), 25
CLASSES = 101
COMMAND = """
import sys
from pathlib import Path
from stmul.__main__ import main

main(sys.argv[1:], standalone_mode=False)
# Not getrusage's ru_maxrss: a child begins with its parent's.
most = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print("\\nVmHWM", int(most.split()[1]) / 2**20)
"""


def frames_of(videos: list[Path]) -> Iterator[np.ndarray]:
    """The frames of all videos, (240, 320, 3) each, over and over."""
    for path in cycle(videos):
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.reformat(*SIZE, format="rgb24").to_ndarray()


def film(path: Path, videos: list[Path], seconds: float) -> None:
    """The first `seconds` of the videos one after the other, as an MPEG-4 in an AVI, as UCF101's are."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=RATE, options={"qscale": "4"})
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        for picture in islice(frames_of(videos), round(seconds * RATE)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def made_up(folder: Path, flow: str, alone: bool) -> Run:
    """A run with networks of full size, drawn at random."""
    config = load(Config, "ucf101", [f"experiment.folder={folder}", "experiment.use_gpu='no'"])
    classes = tuple(f"class {number}" for number in range(CLASSES))
    run = Run(folder / "made-up")
    about = About(
        shards="",
        dataset="ucf101",
        split=1,
        classes=classes,
        digest="",
        settings={},
        made={"record": how_made(Preprocess(flow=Flow(method=flow)))},  # type: ignore[arg-type]
        done=True,
    )
    run.describe(about, config)
    for stage in ("joint", "appearance", "motion") if alone else ("joint",):
        network = build(stage, config, CLASSES)
        state = network.state_dict()
        momentum = {i: {"momentum_buffer": torch.zeros_like(p)} for i, p in enumerate(network.parameters())}
        save(
            run.epoch(stage, 1),
            Checkpoint(
                stage=stage,
                epoch=1,
                step=1,
                config=dump(config),
                dataset="ucf101",
                split=1,
                classes=list(classes),
                loader="",
                sums=(0.0, 0, 0),
                network=state,
                optimizer={"state": momentum, "param_groups": []},
            ),
        )
    return run


def measured(run: Run, video: Path, options: list[str]) -> tuple[float, float, str]:
    """Seconds, GiB at most, and what was said."""
    words = ["predict", str(video), "-e", str(run.folder.parent), "-i", run.id, "--use-gpu", "no", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *words], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    said, _, most = done.stdout.rpartition("VmHWM")
    return time.perf_counter() - begin, float(most), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--flow", default="tvl1")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--out", type=Path, help="keep what predict writes")
    asked, own = parser.parse_known_args()
    videos = sorted(path for path in asked.data.rglob("*.avi"))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        video, out = folder / "long.avi", asked.out or folder / "out"
        film(video, videos, asked.seconds)
        run = made_up(folder / "experiment", asked.flow, asked.alone)
        seconds, gib, said = measured(run, video, [*own, "--out", str(out)])
    print(said.strip())
    networks = "joint and both streams alone" if asked.alone else "joint"
    shown = f"{asked.seconds:g} s of {SIZE[0]} x {SIZE[1]}"
    print(f"{shown}, flow {asked.flow}, {networks}, {torch.get_num_threads()} threads")
    print(f"{seconds:.0f} s, {gib:.2f} GiB at most")


if __name__ == "__main__":
    main()
