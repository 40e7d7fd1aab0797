"""What a two-stream clip costs to load: ours beside the slow obvious way, peers and pure decoding, in one run.

    python -m tests.bench.loader --shards data/ucf101/split1 --half data/ucf101-half/split1 --out docs/benchmarks/NAME

All variants load the same clips, the first that the trainer would: same videos, same instants, same crops. That they
deliver the same pixels is checked before anything is timed. Two end points: *decoded*, uint8 frames in memory, and
*ready*, crops of the configured size in memory (uint8; float for the reference, as it works, with a uint8 one beside).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

import cv2
import torch
from rich.console import Console

from configs import load
from shards.copy import copy_split
from shards.split import open_split
from stmul.config import Config
from tests.bench.chart import draw
from tests.bench.measure import Case, Progress, Times, rounds, timed
from tests.bench.peers import installed, peers
from tests.bench.tables import Report, as_markdown, machine, show
from tests.bench.variants import Epoch, Variant, loose_files, ours, pure, references
from tests.bench.wanted import Wanted, expected, must_agree, wanted_clips

CHECKED = 4  # clips whose pixels are compared
WIDTH = 120  # of what is printed into a file


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measures, prints the tables, writes them where asked; gives what was found."""
    asked = parsed(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    console, config = Console(width=None if sys.stdout.isatty() else WIDTH), load(Config, asked.config, asked.set)
    unit = config.train.sub_batch * max(asked.threads)
    count = -(-asked.clips // unit) * unit  # so that every worker process has whole batches
    present = installed()
    chosen = {"all": list(present), "none": []}.get(asked.peers[0], asked.peers)
    if missing := [name for name in chosen if name not in present]:
        raise SystemExit(f"--peers {' '.join(missing)}: not installed; install the extra: pip install -e '.[bench]'")
    with ExitStack() as stack:
        progress = stack.enter_context(progress_line())
        variants: dict[str, list[Variant]] = {}
        names: dict[str, list[str]] = {}
        for flow, shards in (("full", asked.shards), ("half", asked.half)):
            if shards is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stmul-bench-")))
                variants[flow], wanted = prepared(stack, shards, folder, config, count, chosen, asked.threads, progress)
                names[flow] = [clip.name for clip in wanted]
        if "half" in names and names["half"] != names["full"]:
            raise SystemExit(f"{asked.half}: holds other videos than {asked.shards}, so its clips are others")
        before = os.getloadavg()[0]
        cases = [
            Case(variant=variant.name, flow=flow, end=end, threads=threads)
            for threads in asked.threads
            for flow, some in variants.items()
            for end in ("decoded", "ready")
            for variant in some
            if end in variant.ends
        ]
        times = measured(stack, cases, variants, count, repeats=asked.repeats, progress=progress)
    report = Report(
        day=date.today().isoformat(),
        machine=machine(),
        load=(before, os.getloadavg()[0]),
        config=config,
        clips=count,
        repeats=asked.repeats,
        threads=tuple(asked.threads),
        variants=variants,
        times=times,
        left_out=tuple(name for name in ("webdataset", "streaming", "litdata") if name not in chosen),
        peers={name: present[name] for name in chosen},
    )
    show(report, console)
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        chart = asked.out.with_suffix(".svg")
        draw(report, chart)
        asked.out.with_suffix(".md").write_text(as_markdown(report, chart.name))
        console.print(f"written: {asked.out.with_suffix('.md')}, {chart}")
    return report


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="folder of tar shards, frames and flow alike large")
    parser.add_argument("--half", type=Path, help="the same split with flow of half the size")
    parser.add_argument("--config", default="ucf101")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--clips", type=int, default=32, help="of an epoch; rounded up to whole sub-batches")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", nargs="+", default=["all"], help="all that are installed, none, or names")
    parser.add_argument("--out", type=Path, help="write NAME.md and NAME.svg, for example docs/benchmarks/NAME")
    return parser.parse_args(arguments)


@contextmanager
def progress_line() -> Iterator[Progress]:
    """A line on the terminal that says what is being done; silent elsewhere."""
    console = Console(stderr=True)
    with console.status("") as status:
        yield lambda text: status.update(text)


def prepared(
    stack: ExitStack,
    shards: Path,
    folder: Path,
    config: Config,
    count: int,
    chosen: Sequence[str],
    threads: Sequence[int],
    progress: Progress,
) -> tuple[list[Variant], tuple[Wanted, ...]]:
    """All variants for the shards, their data in `folder`, their pixels compared; and the clips that they load."""
    tar = stack.enter_context(open_split(shards))
    wanted = wanted_clips(tar, config, count)
    progress(f"copying {shards} to an LMDB and to loose files")
    copy_split(shards, folder / "copy.lmdb")
    lmdb = stack.enter_context(open_split(folder / "copy.lmdb"))
    loose = folder / "loose"
    loose_files(tar, wanted, loose)
    variants = [
        *references(loose, wanted, config),
        *peers(chosen, tar, wanted, config, folder, progress),
        ours("ours, tar", tar, wanted, config),
        ours("ours, LMDB", lmdb, wanted, config),
        pure(loose, wanted, config, once=False),
        pure(loose, wanted, config, once=True),
    ]
    answers = {clip.position: expected(tar, clip, config.data.crop) for clip in wanted[:CHECKED]}
    for variant, end, some in [(one, end, some) for one in variants for end in one.ends for some in threads]:
        progress(f"comparing pixels: {variant.name}, {end}, {some} threads")
        if variant.show is not None:
            with variant.open(end, some) as epoch:
                shown = (one for delivery in epoch() for one in variant.show(end, delivery))
                must_agree(variant.name, end, shown, answers, by_cv2=variant.by_cv2)
    return variants, wanted


def measured(
    stack: ExitStack,
    cases: Sequence[Case],
    variants: dict[str, list[Variant]],
    count: int,
    *,
    repeats: int,
    progress: Progress,
) -> dict[Case, list[Times]]:
    """The times of all cases. What loads in this process stays open; worker processes last as long as their turn."""
    found = {(flow, variant.name): variant for flow, some in variants.items() for variant in some}
    epochs: dict[Case, Epoch] = {}

    def run(case: Case) -> Times:
        variant = found[case.flow, case.variant]
        if variant.processes and case.threads > 1:
            with variant.open(case.end, case.threads) as epoch:
                drain(epoch, count)  # until the workers have come up
                return timed(lambda: drain(epoch, count), count)
        if case not in epochs:
            epochs[case] = stack.enter_context(variant.open(case.end, case.threads))
        return timed(lambda: drain(epochs[case], count), count)

    return rounds(cases, run, repeats=repeats, progress=progress)


def drain(epoch: Epoch, count: int) -> None:
    """Takes every clip and forgets it."""
    found = sum(len(delivery.positions) for delivery in epoch())
    assert found == count, f"{found} clips were delivered instead of {count}"


if __name__ == "__main__":
    main()
