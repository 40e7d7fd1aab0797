"""What packing extracted frames costs beside tar, SHA-256 and fsync of the same files, alternating in one run.

    python -m tests.bench.packing --shards data/ucf101/split1 --out docs/benchmarks/NAME

The frames and the flow of a split are unpacked as loose JPEGs, as other programs extract them, and packed again: by
the function that a build's workers pack with; by the commands tar, sha256sum and sync; by tar with OpenSSL's SHA-256,
which is several times as fast as many a sha256sum; by Python's tarfile with the same. Each is given the same files in
the same shards in as many processes, started before. What is packed is compared with the files, byte by byte, before
anything is timed. A whole build, with its plan, start of processes, index and manifest, is timed too. All files are in
the page cache; what is written is on disk when the clock stops. (Ours hashes all three times: shard, record, source.)
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preprocess.build import build
from preprocess.config import Preprocess
from preprocess.extracted import record_from_frames
from preprocess.sources.listing import Dataset, Video
from shards.format import decode, key_of
from shards.split import open_split
from shards.writer import pack_shard, shard_slots
from tests.bench.measure import spread

OURS, COMMANDS, TAR, TARFILE = "ours", "tar, sha256sum, sync", "tar, OpenSSL's SHA-256, fsync", "Python's tarfile, same"
FRAMES = "frames"  # folder of what is packed
GOAL = 0.8  # of the speed of tar, SHA-256 and fsync
PIECE = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One shard to write."""

    path: Path
    videos: tuple[Video, ...]
    root: Path  # of all frames and flow
    names: tuple[str, ...]  # of their files, from the root: listed beforehand for those who do not look themselves


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """What one round of all shards took, in seconds."""

    wall: float
    cpu: float  # of the processes and of what they start


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """All that a run has found."""

    files: int
    bytes: int
    shards: int
    processes: int
    times: dict[str, list[Times]]
    builds: list[float]  # seconds of whole builds

    def speed(self, way: str, over: str, clock: str) -> float:
        """How fast `way` is, as a part of the speed of `over`: the median of the rounds' ratios."""
        pairs = zip(self.times[over], self.times[way], strict=True)
        return spread([getattr(base, clock) / getattr(one, clock) for base, one in pairs])[1]


def pack(job: Job) -> None:
    """As a build's workers do it."""
    records = ((key_of(video.name), record_from_frames(video, Preprocess())) for video in job.videos)
    pack_shard(job.path, records, shard=0)


def commands(job: Job) -> None:
    """As one types it: what was written is hashed from the page cache."""
    archived(job)
    subprocess.run(["sha256sum", str(job.path)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["sync", str(job.path)], check=True)


def tar(job: Job) -> None:
    """GNU tar, then the SHA-256 of what it wrote, from the page cache."""
    archived(job)
    synced(job.path)


def archived(job: Job) -> None:
    """Writes the tar with GNU tar."""
    command = ["tar", "--create", "--format=ustar", "--no-recursion", f"--file={job.path}", f"--directory={job.root}"]
    subprocess.run([*command, "--files-from=-"], input="\n".join(job.names), text=True, check=True)


def by_tarfile(job: Job) -> None:
    """Python's own writer, then the SHA-256 of what it wrote."""
    with tarfile.open(job.path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in job.names:
            archive.add(job.root / name, arcname=name, recursive=False)
    synced(job.path)


WAYS: dict[str, Callable[[Job], None]] = {OURS: pack, COMMANDS: commands, TAR: tar, TARFILE: by_tarfile}


def synced(path: Path) -> None:
    """Returns when the file has been hashed and is on disk."""
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")
        os.fsync(file.fileno())


def files_of(videos: Sequence[Video]) -> list[Path]:
    """Every frame and flow image of `videos`."""
    folders = [folder for video in videos for folder in (video.path, *(video.flow_path or ()))]
    return [path for folder in folders for path in sorted(folder.iterdir())]


def unpacked(shards: Path, root: Path, count: int) -> Dataset:
    """The first `count` videos of a split as folders of loose JPEGs below `root`."""
    videos = []
    with open_split(shards) as split:
        rows = [(part, row.record) for part in split.manifest.parts for row in split.index(part)][:count]
        for part, number in rows:
            record = decode(split.read(part, number))
            folders = [root / kind / record.name for kind in ("images", "flows/u", "flows/v")]
            flow = [record.flow[image] for image in range(len(record.flow))]
            streams = [[record.rgb[image] for image in range(len(record.rgb))], flow[::2], flow[1::2]]
            for folder, images in zip(folders, streams, strict=True):
                folder.mkdir(parents=True)
                for image, blob in enumerate(images, 1):
                    (folder / f"frame{image:06}.jpg").write_bytes(blob)
            u, v = folders[1:]
            videos.append(Video(name=record.name, path=folders[0], label=0, class_name="a", flow_path=(u, v)))
        return Dataset(name="packing", kind="extracted", split=1, classes=("a",), parts={"train": tuple(videos)})


def must_agree(path: Path, videos: Sequence[Video]) -> None:
    """Raises ValueError unless the split at `path` holds the files of `videos`, byte for byte."""
    with open_split(path) as split:
        names = {split.index("train").row(number).name: number for number in range(len(split.index("train")))}
        for video in videos:
            record = decode(split.read("train", names.pop(video.name)))
            u, v = video.flow_path or (video.path, video.path)
            streams = {video.path: (record.rgb, 0, 1), u: (record.flow, 0, 2), v: (record.flow, 1, 2)}
            for folder, (frames, first, step) in streams.items():
                packed = [bytes(frames[image]) for image in range(first, len(frames), step)]
                if packed != [path.read_bytes() for path in sorted(folder.iterdir())]:
                    raise ValueError(f"{folder}: what was packed are other bytes; nothing was timed")
        if names:
            raise ValueError(f"{path}: holds {', '.join(names)} besides; nothing was timed")


def cpu_of(way: str, job: Job) -> float:
    """Does one shard; CPU seconds of this process and of what it started."""
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    WAYS[way](job)
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))


def one_round(pool: Pool, way: str, jobs: Sequence[Job]) -> Times:
    """All shards, once."""
    for job in jobs:
        job.path.unlink(missing_ok=True)
    os.sync()  # what others wrote is not waited for by us
    start = time.perf_counter()
    cpu = sum(pool.imap_unordered(partial(cpu_of, way), jobs))
    return Times(wall=time.perf_counter() - start, cpu=cpu)


def measured(dataset: Dataset, folder: Path, *, processes: int, per_shard: int, repeats: int, builds: int) -> Found:
    """The times of all ways, `repeats` rounds after one that is not counted, every other one backwards."""
    root = folder / FRAMES
    videos = {key_of(video.name): video for video in dataset.parts["train"]}
    slots = shard_slots(list(videos), per_shard)
    jobs = []
    for number, keys in enumerate(slots):
        ours = tuple(videos[key] for key in keys)
        names = tuple(str(path.relative_to(root)) for path in files_of(ours))
        jobs.append(Job(path=folder / f"{number:06}.tar", videos=ours, root=root, names=names))
    settings = Preprocess(per_shard=per_shard, workers=processes)
    seconds = []
    for repeat in range(builds):
        start = time.perf_counter()
        report = build(dataset, settings, folder / f"build{repeat}")
        seconds.append(time.perf_counter() - start)
        must_agree(report.folder, dataset.parts["train"])
    times: dict[str, list[Times]] = {way: [] for way in WAYS}
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for repeat in range(repeats + 1):
            for way in WAYS if repeat % 2 else reversed(WAYS):
                found = one_round(pool, way, jobs)
                if repeat:
                    times[way].append(found)
    files = files_of(dataset.parts["train"])
    return Found(
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        shards=len(jobs),
        processes=processes,
        times=times,
        builds=seconds,
    )


def rows(found: Found) -> list[list[str]]:
    """A row for each way: seconds, speed, and how many times the speed of the two with GNU tar."""
    table = []
    for way, times in found.times.items():
        wall, cpu = (spread([getattr(one, clock) for one in times]) for clock in ("wall", "cpu"))
        table.append(
            [
                way,
                f"{wall[1]:.2f}",
                f"{wall[0]:.2f}–{wall[2]:.2f}",
                f"{cpu[1]:.2f}",
                f"{found.bytes / wall[1] / 1e6:.0f}",
                f"{found.files / wall[1]:,.0f}",
                f"{found.speed(way, COMMANDS, 'wall'):.2f}",
                f"{found.speed(way, COMMANDS, 'cpu'):.2f}",
                f"{found.speed(way, TAR, 'wall'):.2f}",
                f"{found.speed(way, TAR, 'cpu'):.2f}",
            ]
        )
    return table


HEADS = ("", "wall, s", "quartiles", "CPU, s", "MB/s", "files/s", "× sha256sum, wall", "CPU", "× OpenSSL, wall", "CPU")


def sentences(found: Found) -> list[str]:
    """What was packed, how long a whole build takes, and whether the goal holds."""
    verdicts = []
    for base in (COMMANDS, TAR):
        speed = found.speed(OURS, base, "wall")
        held = "holds" if speed >= GOAL else "does not hold"
        verdicts.append(f"{base}: {speed:.2f}, {held} ({found.speed(OURS, base, 'cpu'):.2f} by CPU time)")
    return [
        f"{found.files:,} JPEGs of {found.bytes / 1e6:.0f} MB ({found.bytes / found.files / 1e3:.1f} kB each) in"
        f" {found.shards} shards, {found.processes} processes.",
        f"A whole build, processes started anew: {spread(found.builds)[1]:.2f} s.",
        f"Goal: at least {GOAL:g} of the speed of tar, SHA-256 and fsync. {'; '.join(verdicts)}.",
    ]


def as_markdown(found: Found, day: str, where: str, load: tuple[float, float]) -> str:
    """The page."""
    lines = ["| " + " | ".join(row) + " |" for row in (HEADS, ["---"] * len(HEADS), *rows(found))]
    about = [f"{day}. {where}. Load before and after: {load[0]:.1f}, {load[1]:.1f}.", ""]
    head = ["# Packing extracted frames", "", *about]
    return "\n".join([*head, *(line + "\n" for line in sentences(found)), *lines, ""])


def main(arguments: Sequence[str] | None = None) -> Found:
    """Runs the benchmark; see the top of this file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.packing")
    parser.add_argument("--shards", type=Path, required=True, help="a split on disk, whose frames are packed again")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--per-shard", type=int, default=8)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--builds", type=int, default=2, help="at least one: what it packs is compared with the files")
    parser.add_argument("--at", type=Path, help="folder on the disk to measure; the system's temporary one unless set")
    parser.add_argument("--out", type=Path, help="where the page goes, without its ending")
    given = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=given.at) as name:
        folder = Path(name)
        dataset = unpacked(given.shards, folder / FRAMES, given.videos)
        found = measured(
            dataset,
            folder,
            processes=given.processes,
            per_shard=given.per_shard,
            repeats=given.repeats,
            builds=max(given.builds, 1),
        )
    console, table = Console(), Table(*HEADS, title="Packing extracted frames")
    for row in rows(found):
        table.add_row(*row)
    console.print(table, *sentences(found), sep="\n")
    if given.out:
        from tests.bench.tables import machine  # loads torch, which the processes that pack can do without

        page = as_markdown(found, time.strftime("%Y-%m-%d"), machine(), (before, os.getloadavg()[0]))
        given.out.with_suffix(".md").write_text(page, encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
