"""What optical flow costs and how right it is: ours beside OpenCV, scikit-image, DIS, Farneback and RAFT, in one run.

    python -m tests.bench.flow --data FOLDER --out docs/benchmarks/NAME
    python -m tests.bench.flow --data FOLDER --device cuda --out docs/benchmarks/NAME

FOLDER holds the videos that tests/bench/flow_pairs.py names, at any depth. Our TV-L1 is compared with OpenCV's on these
pairs, and OpenCV's with itself under noise that no one sees; all are compared with drawn motion that is known exactly;
that a batch gives the bytes of its pairs alone is checked; then all are timed on one core, and ours on the GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import cv2
import torch
from rich.console import Console

from tests.bench.flow_drawn import drawn_pairs
from tests.bench.flow_found import Agreement, GpuRate, agreement, batches_agree, gpu_rates, known_errors, rates
from tests.bench.flow_pairs import NAMED, Pair, consecutive, named_pairs
from tests.bench.flow_tables import Report, as_markdown, picture, show
from tests.bench.flow_ways import GPU, RAFT, Way, ours, raft_way, ways
from tests.bench.loader import WIDTH, progress_line
from tests.bench.measure import Progress
from tests.bench.tables import machine

BATCHED = 12  # pairs whose bytes in a batch are compared with those alone
SLOW = {RAFT: 1}  # pairs of a round at most
STREAMED = "v_HorseRace_g05_c04"  # the video whose pairs a GPU gets one after the other
GPU_BATCHES = (1, 8, 16, 32, 64)


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measures, prints the tables, writes them where asked; gives what was found."""
    asked = parsed(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    with progress_line() as progress:
        report = measured(asked, progress)
    show(report, console)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        where = asked.out.with_suffix(".png")
        found = [one for some in report.agreement.values() for one in some]
        if found:
            picture(found, where)
        asked.out.with_suffix(".md").write_text(as_markdown(report, where.name if found else ""))
        console.print(f"written: {asked.out.with_suffix('.md')}{f', {where}' if found else ''}")
    return report


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of UCF101's, HMDB51's and JHMDB's videos")
    source.add_argument("--drawn", action="store_true", help="drawn pairs alone: nothing is compared with OpenCV")
    parser.add_argument("--pairs", type=int, default=len(NAMED), help="of the named ones, spread over them")
    parser.add_argument("--timed", type=int, default=8, help="pairs that are timed, spread over the named ones")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of timing; 0: none")
    parser.add_argument("--draws", type=int, default=2, help="of noise for OpenCV against itself")
    parser.add_argument("--ways", nargs="+", default=[], metavar="NAME", help="beside OpenCV's and ours; default: all")
    parser.add_argument("--raft", type=Path, metavar="FILE", help="RAFT's weights; default: as drawn, for its time")
    parser.add_argument("--device", default="cpu", help="cuda: ours there too")
    parser.add_argument("--size", type=int, nargs=2, default=(340, 256), metavar=("WIDTH", "HEIGHT"), help="if drawn")
    parser.add_argument("--out", type=Path, help="write NAME.md and NAME.png, for example docs/benchmarks/NAME")
    asked = parser.parse_args(arguments)
    if not 1 <= asked.pairs <= len(NAMED) or asked.timed < 1 or asked.draws < 1 or asked.repeats < 0:
        parser.error(f"expected --pairs 1 to {len(NAMED)}, --timed and --draws 1 or more, --repeats 0 or more")
    return asked


def measured(asked: argparse.Namespace, progress: Progress) -> Report:
    """All that was asked for, in this order: agreement, batches, drawn motion, times."""
    before = os.getloadavg()[0]
    width, height = asked.size
    drawn = list(drawn_pairs(height, width))
    pairs = [known.pair for known in drawn] if asked.drawn else named_pairs(asked.data, asked.pairs, progress)
    some = ways(asked.ways, asked.raft)
    compared: dict[str, list[Agreement]] = {}
    batched: dict[str, int] = {}
    devices = ["cpu"] if asked.device == "cpu" else ["cpu", asked.device]
    for device in devices:

        def alone(pair: Pair, device: str = device) -> object:
            return ours(pair, device)

        if not asked.drawn:
            compared[device] = agreement(pairs, alone, asked.draws, progress)
        progress(f"batches on {device}")
        batched[device] = batches_agree(pairs[:BATCHED], alone, device)
    on_gpu = Way(name=GPU, flow=lambda pair: ours(pair, asked.device), settings="as a build calls it, on the GPU")
    seeing = [way for way in some if way.name != RAFT or asked.raft is not None]
    known = known_errors(drawn, seeing + ([on_gpu] if len(devices) > 1 else []), progress)
    timed = [pairs[i * len(pairs) // asked.timed] for i in range(min(asked.timed, len(pairs)))]
    timed = [pair for pair in timed if pair.first.shape == timed[0].first.shape]
    return Report(
        day=date.today().isoformat(),
        machine=machine(),
        ways=[*some, on_gpu] if len(devices) > 1 else some,
        agreement=compared,
        batched=batched,
        known=known,
        rates=rates(timed, some, SLOW, asked.repeats, progress) if asked.repeats else {},
        size=(timed[0].first.shape[1], timed[0].first.shape[0]),
        gpu=torch.cuda.get_device_name() if len(devices) > 1 else "",
        gpu_rates=gpu_measured(asked, pairs, progress) if len(devices) > 1 else (),
        load=(before, os.getloadavg()[0]),
    )


def gpu_measured(asked: argparse.Namespace, pairs: Sequence[Pair], progress: Progress) -> list[GpuRate]:
    """Pairs a second on the GPU: of one video, one after the other, and of as many videos as there are pairs."""
    same = [pair for pair in pairs if pair.first.shape == pairs[0].first.shape]
    found = gpu_rates("drawn" if asked.drawn else "pairs of many videos", same, GPU_BATCHES, asked.device, progress)
    if not asked.drawn:
        video = list(consecutive(asked.data, STREAMED, max(GPU_BATCHES)))
        found += gpu_rates("pairs of one video", video, GPU_BATCHES, asked.device, progress)
    raft = raft_way(asked.raft, asked.device)
    assert raft.together is not None
    return found + gpu_rates(raft.name, same, (1, 8), asked.device, progress, together=raft.together)


if __name__ == "__main__":
    main()
