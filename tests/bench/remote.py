"""What streaming clips costs and reaches: ours beside plain ranged GETs and peers, on lines of many kinds, in one run.

    python -m tests.bench.remote --shards data/ucf101/split1 --out docs/benchmarks/NAME

All read the same clips of the same videos through one shaped line from nginx (HTTP) or seaweedfs (S3), each pass in a
process that has read nothing before. That they deliver the same pixels is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path

import cv2
import torch
from rich.console import Console

from configs import load
from stmul.config import Config
from tests.bench import from_afar, plain_gets, remote_peers
from tests.bench.gauge import gauged
from tests.bench.line import Shape
from tests.bench.loader import progress_line
from tests.bench.measure import Progress
from tests.bench.passes import Passed, Reader, Site, from_nothing, passed, prepare
from tests.bench.peers import installed
from tests.bench.remote_chart import draw
from tests.bench.remote_tables import SECOND, Report, Turn, as_markdown, show
from tests.bench.served import NAME, Served, served
from tests.bench.tables import machine

RTT_MS, MBIT = (0.0, 20.0, 80.0), (0.0, 1000.0, 200.0)
READ_AHEAD = 16  # MiB: the default would outlast a pass, which is to show how an endless stream goes on
LONG_S = 5.0  # a pass that lasts longer is repeated in every other round only
WIDTH = 200  # of what is printed into a file


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measures, prints the tables, writes them where asked; gives what was found."""
    asked = parsed(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    config = load(Config, asked.config, [f"data.read_ahead={READ_AHEAD}", *asked.set])
    unit = config.train.sub_batch * 2  # so that every worker process has whole batches
    videos, clips = (-(-count // unit) * unit for count in (asked.videos, asked.clips))
    present = installed()
    chosen = {"all": list(present), "none": []}.get(asked.peers[0], asked.peers)
    if asked.quick:
        chosen, asked.repeats, asked.starts = [], 1, False
    if missing := [name for name in chosen if name not in present]:
        raise SystemExit(f"--peers {' '.join(missing)}: not installed; install the extra: pip install -e '.[bench]'")
    shapes = [Shape(rtt_ms=rtt, mbit=mbit) for rtt in asked.rtt for mbit in asked.mbit]
    prepare(chosen)
    with ExitStack() as stack:
        progress = stack.enter_context(progress_line())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stmul-bench-")))
        there = stack.enter_context(
            served(
                asked.shards,
                folder,
                config,
                videos=videos,
                clips=clips,
                peers=chosen,
                quick=asked.quick,
                progress=progress,
            )
        )
        readers = [reader for reader in all_readers(chosen, config, quick=asked.quick) if reader.server in there.sites]
        readers = [reader for reader in readers if not asked.only or any(word in reader.name for word in asked.only)]
        must_agree(readers, there, progress)
        before = os.getloadavg()[0]
        starts = {
            (reader.server, reader.name): _start(reader, there, folder, shapes[0], progress)
            for reader in readers
            if asked.starts
        }
        measured = {shape: gauged(there.through, shape, *there.bulk) for shape in shapes}
        found, failed = rounds(readers, shapes, there, repeats=asked.repeats, progress=progress)
        report = Report(
            day=date.today().isoformat(),
            machine=machine(),
            load=(before, os.getloadavg()[0]),
            config=config,
            clips=clips,
            videos=videos,
            repeats=asked.repeats,
            readers=readers,
            shapes=shapes,
            gauged=measured,
            found=found,
            failed=failed,
            used=there.used,
            video_bytes=sum(path.stat().st_size for path in (folder / NAME).glob("*.tar")) / videos,
            starts=starts,
            peers={name: present[name] for name in chosen},
            left_out=[name for name in ("webdataset", "streaming", "litdata") if name not in chosen],
        )
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
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
    parser.add_argument("--shards", type=Path, required=True, help="folder of tar shards")
    parser.add_argument("--config", default="ucf101")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--videos", type=int, default=32, help="of an epoch")
    parser.add_argument("--clips", type=int, default=128, help="asked of who reads ranges")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rtt", type=float, nargs="+", default=RTT_MS, help="ms")
    parser.add_argument("--mbit", type=float, nargs="+", default=MBIT, help="0: no limit")
    parser.add_argument("--peers", nargs="+", default=["all"], help="all that are installed, none, or names")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="only readers with a word in their names")
    parser.add_argument("--no-starts", dest="starts", action="store_false", help="without imports being timed")
    parser.add_argument("--quick", action="store_true", help="for tests: their own server, no peers")
    parser.add_argument("--out", type=Path, help="write NAME.md and NAME.svg, for example docs/benchmarks/NAME")
    return parser.parse_args(arguments)


def all_readers(peers: Sequence[str], config: Config, *, quick: bool = False) -> Iterator[Reader]:
    """Every reader, those of a server together."""
    others = remote_peers.readers(peers, config.train.sub_batch)
    for server in ("HTTP", "S3"):
        obstore, urllib3 = ((8,), (8,)) if quick else ((64, 128), (32,) if server == "HTTP" else ())
        yield from plain_gets.readers(server, obstore=obstore, urllib3=urllib3, undecoded=server == "HTTP")
        yield from from_afar.readers(server)
        yield from (one for one in others if one.server == server)


def must_agree(readers: Sequence[Reader], there: Served, progress: Progress) -> None:
    """Stops the run where a reader delivers other pixels than Pillow's, or not each clip once."""
    there.through.shape(Shape())
    for reader in readers:
        if reader.pixels:
            progress(f"comparing pixels: {reader.name}, {reader.server}")
            site = there.sites[reader.server]
            if not reader.whole:
                site = replace(site, wanted=site.wanted[: len(there.digests)])
            for number, one in enumerate(_passes(reader, site, there, Shape(), checked=set(there.digests))):
                where = f"{reader.name}, {reader.server}, pass {number + 1}"
                if sorted(one.positions) != list(range(reader.clips(site))):
                    raise SystemExit(f"{where}: delivered the clips {sorted(one.positions)}, expected each once")
                for position, right in there.digests.items():
                    if one.digests.get(position, right) != right:
                        raise SystemExit(f"{where}: clip {position} has other pixels than Pillow decodes")


def rounds(
    readers: Sequence[Reader],
    shapes: Sequence[Shape],
    there: Served,
    *,
    repeats: int,
    progress: Progress,
) -> tuple[dict[Turn, dict[int, Passed]], dict[Turn, str]]:
    """The passes of all readers on every line in each round, every other round backwards; and what failed."""
    found: dict[Turn, dict[int, Passed]] = {}
    failed: dict[Turn, str] = {}
    for repeat, shape in itertools.product(range(repeats), shapes):
        there.through.shape(shape)
        for reader in readers if repeat % 2 else reversed(readers):
            turns = [
                Turn(shape=shape, reader=reader.name + suffix, server=reader.server)
                for suffix in ("", SECOND)[: 1 + reader.keeps]
            ]
            last = found.get(turns[0], {}).get(repeat - 1)
            if turns[0] in failed or (repeat % 2 and last is not None and last.all_s > LONG_S):
                continue
            progress(f"round {repeat + 1} of {repeats}, {shape.words}: {reader.name}, {reader.server}")
            try:
                for turn, one in zip(turns, _passes(reader, there.sites[reader.server], there, shape), strict=True):
                    found.setdefault(turn, {})[repeat] = one
            except RuntimeError as error:
                failed[turns[0]] = str(error)
    return found, failed


def _passes(
    reader: Reader, site: Site, there: Served, shape: Shape, *, checked: Container[int] = frozenset()
) -> Iterator[Passed]:
    """A pass with an empty folder, and one with what the first has left there, if it leaves anything."""
    with tempfile.TemporaryDirectory(prefix="pass-", dir=site.folder, ignore_cleanup_errors=True) as own:
        site = replace(site, folder=Path(own) / "kept")
        site.folder.mkdir()
        for _ in range(1 + reader.keeps):
            yield passed(reader, site, there.through, rtt_ms=shape.rtt_ms, checked=checked)


def _start(reader: Reader, there: Served, folder: Path, shape: Shape, progress: Progress) -> float:
    progress(f"with imports: {reader.name}, {reader.server}")
    there.through.shape(shape)
    own = folder / "start"
    own.mkdir()
    try:
        return from_nothing(reader, replace(there.sites[reader.server], folder=own))
    finally:
        shutil.rmtree(own, ignore_errors=True)


if __name__ == "__main__":
    main()
