"""All videos of a split -> its shards: planned first, worked through by processes, resumed where it was stopped.

What goes where is decided from names alone, so neither the number of workers nor a stop on the way changes a byte of
the result. A video that cannot be used is noted in failures.jsonl and leaves a hole; the others stay where they are.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from preprocess.config import Preprocess
from preprocess.engines import Died, Engine, here, processes
from preprocess.errors import PreprocessError
from preprocess.listing import Dataset, Video
from preprocess.pack import Entry, Shard, frames_identity, packer
from preprocess.standing import differences, made_alike, made_of, standing
from preprocess.work import Failure, Finished, Job, Task, worker
from preprocess.workplace import clear, workplace
from shards.errors import ShardError
from shards.format import key_of
from shards.latest import remember
from shards.manifest import Manifest
from shards.writer import Packed, PartWriter, finish_split, shard_name, shard_slots, start_split, whole

FAILURES = "failures.jsonl"
PACKED_HERE = 1 << 28  # bytes of records; to start processes does not pay for packing fewer


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a build is."""

    stage: str  # "videos", then "shards"
    done: int
    total: int
    failed: int = 0
    kept: int = 0  # of the videos done, those found finished or taken over


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did."""

    folder: Path  # of the split
    manifest: Manifest
    new: bool  # False: it was complete before
    seconds: float = 0.0
    how: Mapping[str, int] = field(default_factory=dict)  # records made, kept (of an earlier run), taken over
    failures: tuple[Failure, ...] = ()
    without_records: tuple[tuple[str, str], ...] = ()  # (part, class)

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(shard.size for part in self.manifest.parts.values() for shard in part.shards)


def build(
    dataset: Dataset,
    settings: Preprocess,
    out: Path,
    progress: Callable[[Progress], None] | None = None,
    *,
    rebuild: bool = False,
    engine: Engine = processes,
) -> BuildReport:
    """Makes the shards of `dataset` in <out>/<data set>/split<n>, or finds them complete; notes them as the latest.

    Records finished before, by this build or for another split in the same way, are not made again. Raises
    PreprocessError where there are shards of other settings (unless `rebuild`), where more videos fail than
    `settings.failures`, or none is left; ShardError where `out` cannot be written. The same call then goes on.
    """
    start = time.monotonic()
    folder, made = split_folder(dataset, out), made_of(dataset, settings)
    if not rebuild and (complete := complete_before(folder, made)) is not None:
        remember(out, folder)
        return BuildReport(folder=folder, manifest=complete, new=False, failures=read_failures(folder))
    tally = _Tally(folder, settings.failures, progress or (lambda _: None))
    with workplace(out, dataset.name, made["record"]) as work:
        _make_folder(folder)
        alike = made_alike(out / dataset.name, made["record"])
        job = Job(settings=settings, folder=work, splits=tuple(alike))
        entries = _finish_videos(dataset, job, tally, engine)
        shards = _shards(dataset, settings, folder, work, entries)
        start_split(folder)
        manifest = _pack(dataset, settings, folder, shards, made, tally, engine)
        _remove_stale(folder, manifest, tally)
        remember(out, folder)
        kept = [entry.source for entry in entries.values() if isinstance(entry.source, Path)]
        clear(work, [*kept, *(shard.note for shard in shards)])
    return BuildReport(
        folder=folder,
        manifest=manifest,
        new=True,
        seconds=time.monotonic() - start,
        how={how: count for how, count in tally.how.items() if count},
        failures=tuple(tally.failures),
        without_records=tuple(
            (part, name)
            for part, videos in dataset.parts.items()
            for label, name in enumerate(dataset.classes)
            if videos and label not in tally.labels[part]
        ),
    )


def split_folder(dataset: Dataset, out: Path) -> Path:
    """Where the shards of a split go: <out>/<data set>/split<n>."""
    return out / dataset.name / f"split{dataset.split}"


def complete_before(folder: Path, made: Mapping[str, Any]) -> Manifest | None:
    """The manifest of shards in `folder` that are complete and just those asked for; None if there are none, or parts.

    Raises PreprocessError where there are others, and says what differs.
    """
    before = standing(folder)
    if before.manifest is None and not before.problem:
        return None
    changes = [before.problem] if before.manifest is None else differences(before.manifest.made, made)
    if changes:
        raise PreprocessError(
            f"{folder}: holds other shards ({'; '.join(changes)}). Keep them and name another folder with --out, or"
            " make them anew with --rebuild"
        )
    return None if before.missing else before.manifest


def worker_count(settings: Preprocess) -> int:
    """How many processes work: as set, or one for each core that this process may use."""
    return settings.workers or len(os.sched_getaffinity(0))


def read_failures(folder: Path) -> tuple[Failure, ...]:
    """The videos without a record, as the build of the split in `folder` noted them."""
    with suppress(OSError, ValueError, TypeError):
        lines = (folder / FAILURES).read_text(encoding="utf-8").splitlines()
        return tuple(Failure(**json.loads(line)) for line in lines)
    return ()


class _Tally:
    """What has been done, what has failed, and who is told."""

    def __init__(self, folder: Path, failures_allowed: int, progress: Callable[[Progress], None]) -> None:
        self.folder, self.allowed, self.progress = folder, failures_allowed, progress
        self.failures: list[Failure] = []
        self.how: Counter[str] = Counter()
        self.labels: dict[str, set[int]] = {}
        self.bytes = 0

    def finished(self, result: Finished) -> None:
        self.how[result.how] += 1
        self.bytes += result.bytes

    def failed(self, failure: Failure) -> None:
        """Notes the failure on disk. Raises PreprocessError where there are more than are put up with."""
        self.failures = sorted([*self.failures, failure], key=lambda one: (one.part, one.name))
        with whole(self.folder / FAILURES) as file:
            file.write("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in self.failures).encode())
        if len(self.failures) > self.allowed:
            raise PreprocessError(
                f"{len(self.failures)} broken videos, at most {self.allowed} are put up with (preprocess.failures);"
                f" the last: {failure.reason}. All stand in {self.folder / FAILURES}: repair them and run the same"
                " command again, what is finished is kept"
            )

    def tell(self, stage: str, done: int, total: int) -> None:
        kept = self.how["kept"] + self.how["taken over"]
        self.progress(Progress(stage=stage, done=done, total=total, failed=len(self.failures), kept=kept))


def _finish_videos(dataset: Dataset, job: Job, tally: _Tally, engine: Engine) -> dict[tuple[str, str], Entry]:
    """The records by (part, key): finished and kept; of extracted frames, which are only packed, where they lie."""
    entries, tasks = {}, []
    for part, videos in dataset.parts.items():
        for video in videos:
            if video.flow_path is None:
                tasks.append(Task(video=video, part=part))
            else:
                key = key_of(video.name)
                entries[part, key] = Entry(key=key, identity=frames_identity(video), source=video)
    tally.tell("videos", 0, len(tasks))
    results = engine(partial(worker, job), tasks, worker_count(job.settings))
    with closing(results):
        for done, (position, result) in enumerate(results, 1):
            task = tasks[position]
            if isinstance(result, Finished):
                key = key_of(task.video.name)
                entries[task.part, key] = Entry(key=key, identity=result.file.name, source=result.file)
                tally.finished(result)
            else:
                tally.failed(_crash(task, result) if isinstance(result, Died) else result)
            tally.tell("videos", done, len(tasks))
    return entries


def _shards(
    dataset: Dataset, settings: Preprocess, folder: Path, work: Path, entries: Mapping[tuple[str, str], Entry]
) -> list[Shard]:
    """Which record goes into which shard: decided over all listed videos, so that those that fail move no other."""
    return [
        Shard(
            path=folder / shard_name(part, number),
            part=part,
            number=number,
            entries=tuple(entries[part, key] for key in keys if (part, key) in entries),
            note=work / f"split{dataset.split}-{shard_name(part, number)}.packed",
        )
        for part, videos in dataset.parts.items()
        for number, keys in enumerate(shard_slots([key_of(video.name) for video in videos], settings.per_shard))
    ]


def _pack(
    dataset: Dataset,
    settings: Preprocess,
    folder: Path,
    shards: Sequence[Shard],
    made: Mapping[str, Any],
    tally: _Tally,
    engine: Engine,
) -> Manifest:
    """The manifest, after all shards and indexes have been written."""
    tally.tell("shards", 0, len(shards))
    few = tally.bytes < PACKED_HERE and not any(isinstance(e.source, Video) for shard in shards for e in shard.entries)
    packed: dict[int, Packed] = {}
    results = (here if few else engine)(partial(packer, settings), shards, worker_count(settings))
    with closing(results):
        for done, (position, result) in enumerate(results, 1):
            shard = shards[position]
            if isinstance(result, Died):
                raise PreprocessError(
                    f"{shard.path}: the process writing it was {result.reason}, twice; is memory short?"
                )
            packed[position] = result.packed
            tally.how["made"] += sum(isinstance(entry.source, Video) for entry in shard.entries) - len(result.failures)
            for failure in result.failures:
                tally.failed(failure)
            tally.tell("shards", done, len(shards))
    if not any(one.rows for one in packed.values()):
        why = f"; the first: {tally.failures[0].reason}" if tally.failures else ""
        raise PreprocessError(f"{folder}: not one video could be used, so there is nothing to train or test on{why}")
    parts = {}
    for part in dataset.parts:
        writer = PartWriter(folder, part)
        for position, shard in enumerate(shards):
            if shard.part == part:
                writer.add(packed[position])
                tally.labels.setdefault(part, set()).update(row.label for row in packed[position].rows)
        parts[part] = writer.finish()
    return finish_split(
        folder, dataset=dataset.name, split=dataset.split, classes=dataset.classes, made=made, parts=parts
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"{folder}: cannot be made: {error.strerror}; name another folder with --out") from error


def _crash(task: Task, died: Died) -> Failure:
    path = task.video.path
    reason = f"{path}: the process decoding it was {died.reason}, twice: it crashes the decoder, or memory is short"
    return Failure(name=task.video.name, path=str(path), part=task.part, reason=reason)


def _remove_stale(folder: Path, manifest: Manifest, tally: _Tally) -> None:
    """Removes what earlier builds left and this one has not: shards with higher numbers, a list of failures."""
    ours = {shard.name for part in manifest.parts.values() for shard in part.shards}
    for path in [*folder.glob("*.tar"), *folder.glob("*.tar.partial")]:
        if path.name not in ours and path.name.partition("-")[0] in manifest.parts:
            path.unlink()
    if not tally.failures:
        (folder / FAILURES).unlink(missing_ok=True)
