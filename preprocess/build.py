"""All videos of a split -> its shards: planned first, worked through by an engine, resumed where it was stopped.

What goes where is decided from names alone, so neither the number of workers, nor parts that are built apart, nor a
stop on the way changes a byte of the result. A video that cannot be used is noted in failures.jsonl and leaves a hole;
the others stay where they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.config import Preprocess
from preprocess.disk import some
from preprocess.engines import Engine, processes
from preprocess.errors import PreprocessError
from preprocess.finish import Complete, finish, start
from preprocess.listing import Dataset, Video
from preprocess.notes import AT_ONCE, Note, noted_shards, read_notes
from preprocess.pack import stands
from preprocess.places import FolderPlace, Place, place_at
from preprocess.plan import PlannedShard, planned
from preprocess.schedule import Schedule, planned_contents, work_off
from preprocess.standing import differences, made_alike, made_of, standing
from preprocess.tally import FAILURES, Progress, Tally, check_failures, failures_in
from preprocess.work import Failure, Job
from preprocess.workplace import Plan, Share, clear, workplace
from shards.errors import ShardError
from shards.format import key_of
from shards.latest import remember
from shards.manifest import Manifest, shard_name
from shards.stores.connect import is_url

__all__ = ["FAILURES", "BuildReport", "PartReport", "Progress", "build", "build_part", "merge"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did."""

    location: str  # of the split: a folder, or a URL
    manifest: Manifest
    new: bool  # False: it was complete before
    seconds: float = 0.0
    how: Mapping[str, int] = field(default_factory=dict)  # records made, kept (of an earlier run), taken over
    failures: tuple[Failure, ...] = ()
    without_records: tuple[tuple[str, str], ...] = ()  # (part, class)

    @property
    def folder(self) -> Path:
        """The location, where it is a folder."""
        return Path(self.location)

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(shard.size for part in self.manifest.parts.values() for shard in part.shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What the build of one part did."""

    location: str  # of the split
    shards: int  # packed now, or before
    of_shards: int  # in all parts
    seconds: float
    how: Mapping[str, int]
    failures: tuple[Failure, ...]


def build(
    dataset: Dataset,
    settings: Preprocess,
    out: str | Path,
    progress: Callable[[Progress], None] | None = None,
    *,
    rebuild: bool = False,
    engine: Engine = processes,
) -> BuildReport:
    """Makes the shards of `dataset` in <out>/<data set>/split<n>, or finds them complete; notes them as the latest.

    `out` is a folder or s3://BUCKET/FOLDER. Records finished before, by this build, by parts of it, or for another
    split in the same way, are not made again. Raises PreprocessError where there are shards of other settings (unless
    `rebuild`), where more videos fail than `settings.failures`, or none is left; ShardError where `out` cannot be
    written. The same call then goes on.
    """
    start_s = time.monotonic()
    location, made = split_location(dataset, out), made_of(dataset, settings)
    if not rebuild and (complete := complete_before(location, made)) is not None:
        return _complete_report(dataset, out, complete)
    with workplace(out, dataset.name, dataset.split, made["record"]) as work, _shards_place(location) as shards:
        plan = planned(dataset, settings.per_shard)
        tally = Tally(shards, settings.failures, progress)
        alike = made_alike(_of_data_set(dataset, out), made["record"])
        notes, tars, foreign = _noted(dataset, out, work, plan, plan)
        hold = shards.location in alike or foreign
        if not hold:
            start(shards)
        job = Job(settings=settings, work=work, shards=shards, split=dataset.split, standing=tuple(alike))
        schedule = Schedule(plan, _by_key(dataset), notes, tars, tally, hold=(lambda: start(shards)) if hold else None)
        tally.begin()
        work_off(schedule, job, worker_count(settings), engine)
        ours = dict(read_notes(work, dataset.split, map(_name, plan)))
        done = finish(dataset, made, shards, work, _by_part(dataset, plan, ours))
        _remember(out, location)
        clear(out, work, dataset.name, dataset.split, _by_key(dataset).values())
    return _report(dataset, location, done, tally.how, time.monotonic() - start_s)


def build_part(
    dataset: Dataset,
    settings: Preprocess,
    out: str | Path,
    share: Share,
    progress: Callable[[Progress], None] | None = None,
    *,
    rebuild: bool = False,
    engine: Engine = processes,
) -> PartReport:
    """Makes and packs every n-th shard of `dataset`; `merge` makes the split of them when all parts are done.

    Parts work side by side on a folder that they share, or a bucket. Raises as `build`, where another build that is no
    part is at work there, and where shards stand that only a build of the whole can take over.
    """
    start_s = time.monotonic()
    location, made = split_location(dataset, out), made_of(dataset, settings)
    plan = planned(dataset, settings.per_shard)
    ours = [shard for position, shard in enumerate(plan) if position % share.of == share.number - 1]
    if _asked_for(location, made) or (not rebuild and complete_before(location, made) is not None):
        return PartReport(location=location, shards=len(ours), of_shards=len(plan), seconds=0.0, how={}, failures=())
    agreed = Plan(
        data_set=dataset.name,
        split=dataset.split,
        record=made["record"],
        shards=_digest(plan),
        parts=share.of,
    )
    with (
        workplace(out, dataset.name, dataset.split, made["record"], share=share, plan=agreed, again=rebuild) as work,
        _shards_place(location, share) as shards,
    ):
        tally = Tally(shards, settings.failures, progress, f"failures-{share.number}-of-{share.of}.jsonl")
        alike = made_alike(_of_data_set(dataset, out), made["record"])
        notes, tars, foreign = _noted(dataset, out, work, ours, plan)
        if shards.location in alike or foreign:
            raise PreprocessError(
                f"{location}: holds shards whose records can be taken over, but not by parts, which would replace them"
                " under each other's hands; build it once without --part (nothing is computed twice), or name another"
                " folder with --out"
            )
        start(shards)
        job = Job(
            settings=settings,
            work=work,
            shards=shards,
            split=dataset.split,
            standing=tuple(alike),
            share=str(share),
        )
        schedule = Schedule(ours, _by_key(dataset), notes, tars, tally)
        tally.begin()
        work_off(schedule, job, worker_count(settings), engine)
        if not tally.failures:
            shards.remove([f"failures-{share.number}-of-{share.of}.jsonl"])
    return PartReport(
        location=location,
        shards=len(ours),
        of_shards=len(plan),
        seconds=time.monotonic() - start_s,
        how={how: count for how, count in tally.how.items() if count},
        failures=tuple(tally.failures),
    )


def merge(dataset: Dataset, settings: Preprocess, out: str | Path) -> BuildReport:
    """Makes the split of shards that parts have packed: indexes and manifest; nothing is computed.

    Raises PreprocessError where shards are missing, and says which parts they are of.
    """
    start_s = time.monotonic()
    location, made = split_location(dataset, out), made_of(dataset, settings)
    if (complete := complete_before(location, made)) is not None:
        return _complete_report(dataset, out, complete)
    with workplace(out, dataset.name, dataset.split, made["record"]) as work, _shards_place(location) as shards:
        plan = planned(dataset, settings.per_shard)
        notes = dict(read_notes(work, dataset.split, map(_name, plan)))
        job = Job(settings=settings, work=work, shards=shards, split=dataset.split)
        videos = _by_key(dataset)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = threads.map(lambda shard: _lacking(job, shard, notes.get(_name(shard)), videos), plan)
            missing = {position: why for position, why in enumerate(found) if why}
        if missing:
            raise PreprocessError(_missing_in_words(location, plan, notes, missing))
        failures = [failure for note in notes.values() for failure in note.failures]
        if failures:
            check_failures(failures, failures[-1], settings.failures, f"{location}/failures-*.jsonl")
        start(shards)
        done = finish(dataset, made, shards, work, _by_part(dataset, plan, notes))
        _remember(out, location)
        clear(out, work, dataset.name, dataset.split, _by_key(dataset).values())
    how = {"packed by parts": sum(len(note.keys) for note in notes.values())}
    return _report(dataset, location, done, how, time.monotonic() - start_s)


def split_location(dataset: Dataset, out: str | Path) -> str:
    """Where the shards of a split go: <out>/<data set>/split<n>."""
    return f"{_of_data_set(dataset, out)}/split{dataset.split}"


def split_folder(dataset: Dataset, out: Path) -> Path:
    """The same, below a folder."""
    return Path(split_location(dataset, out))


def complete_before(location: str | Path, made: Mapping[str, Any]) -> Manifest | None:
    """The manifest of shards at `location` that are complete and just those asked for; None if there is none.

    Raises PreprocessError where there are others, and says what differs.
    """
    before = standing(location)
    if before.manifest is None and not before.problem:
        return None
    changes = [before.problem] if before.manifest is None else differences(before.manifest.made, made)
    if changes:
        raise PreprocessError(
            f"{location}: holds other shards ({'; '.join(changes)}). Keep them and name another folder with --out, or"
            " make them anew with --rebuild"
        )
    return None if before.missing else before.manifest


def worker_count(settings: Preprocess) -> int:
    """How many processes work: as set, or one for each core that this process may use."""
    return settings.workers or len(os.sched_getaffinity(0))


def read_failures(location: str | Path) -> tuple[Failure, ...]:
    """The videos without a record, as the build of the split at `location` noted them."""
    return failures_in(place_at(location))


def _of_data_set(dataset: Dataset, out: str | Path) -> str:
    return f"{str(out).rstrip('/')}/{dataset.name}" if is_url(str(out)) else str(Path(out) / dataset.name)


def _asked_for(location: str, made: Mapping[str, Any]) -> bool:
    """Whether the split there is complete, and just the one asked for."""
    before = standing(location)
    return before.manifest is not None and not before.missing and not differences(before.manifest.made, made)


@contextmanager
def _shards_place(location: str, share: Share | None = None) -> Iterator[Place]:
    """The place of the shards, made if need be, without what killed builds left there half written."""
    place = place_at(location, f"part{share.number}of{share.of}" if share else "build")
    if not isinstance(place, FolderPlace):
        yield place
        return
    try:
        place.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"{location}: cannot be made: {error.strerror}; name another folder with --out") from error
    whole = place if share else FolderPlace(place.root)
    whole.tidy()
    try:
        yield place
    finally:
        whole.tidy()


def _noted(
    dataset: Dataset, out: str | Path, work: Place, ours: Sequence[PlannedShard], whole: Sequence[PlannedShard]
) -> tuple[dict[str, Note], dict[str, tuple[str, ...]], bool]:
    """The notes of `ours`; the shards of other builds that were not finished, by the keys of the records they hold; and
    whether shards of this split are among those."""
    notes, tars, foreign = dict[str, Note](), dict[str, tuple[str, ...]](), False
    wanted = {_name(shard): set(shard.keys) for shard in ours}
    others = {_name(shard) for shard in whole} - wanted.keys()  # of other parts, which look after them
    for split, shards in noted_shards(work).items():
        mine = split == dataset.split
        for name, note in read_notes(work, split, [name for name in shards if not (mine and name in others)]):
            if mine and wanted.get(name, set()).issuperset(note.keys):
                notes[name] = note
                continue
            foreign |= mine
            for key in note.keys:
                tars[key] = (*tars.get(key, ()), f"{_of_data_set(dataset, out)}/split{split}/{name}")
    return notes, tars, foreign


def _lacking(job: Job, shard: PlannedShard, note: Note | None, dataset: Mapping[tuple[str, str], Video]) -> str:
    """Why a shard cannot be merged; empty: it can."""
    if note is None:
        return "not packed"
    if note.videos != planned_contents(shard, dataset):
        return "packed of other videos or files"
    return "" if stands(job, note) else "gone, or not the file that was packed"


def _missing_in_words(
    location: str, plan: Sequence[PlannedShard], notes: Mapping[str, Note], missing: Mapping[int, str]
) -> str:
    """What to do about missing shards."""
    said = some([f"{_name(plan[position])} ({why})" for position, why in missing.items()])
    text = f"{location}: {len(missing):,} of {len(plan):,} shards are missing: {said}"
    counts = {int(note.share.partition("/")[2]) for note in notes.values() if note.share}
    if not notes:
        return f"{text}; no part was built with these settings yet. Build the parts with --part, or all without it"
    if len(counts) != 1:
        return f"{text}. Build them with the same command as the others, without --part"
    count = counts.pop()
    parts = sorted({position % count + 1 for position in missing})
    return f"{text}. Build part {some([f'{part}/{count}' for part in parts])} again: what is finished is kept"


def _by_key(dataset: Dataset) -> dict[tuple[str, str], Video]:
    return {(part, key_of(video.name)): video for part, videos in dataset.parts.items() for video in videos}


def _by_part(dataset: Dataset, plan: Sequence[PlannedShard], notes: Mapping[str, Note]) -> dict[str, list[Note]]:
    return {part: [notes[_name(shard)] for shard in plan if shard.part == part] for part in dataset.parts}


def _name(shard: PlannedShard) -> str:
    return shard_name(shard.part, shard.number)


def _digest(plan: Sequence[PlannedShard]) -> str:
    facts = [[shard.part, shard.number, shard.keys] for shard in plan]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _remember(out: str | Path, location: str) -> None:
    if not is_url(str(out)):
        remember(Path(out), Path(location))


def _complete_report(dataset: Dataset, out: str | Path, manifest: Manifest) -> BuildReport:
    location = split_location(dataset, out)
    _remember(out, location)
    return BuildReport(location=location, manifest=manifest, new=False, failures=read_failures(location))


def _report(dataset: Dataset, location: str, done: Complete, how: Mapping[str, int], seconds: float) -> BuildReport:
    return BuildReport(
        location=location,
        manifest=done.manifest,
        new=True,
        seconds=seconds,
        how={one: count for one, count in how.items() if count},
        failures=done.failures,
        without_records=tuple(
            (part, name)
            for part, videos in dataset.parts.items()
            for label, name in enumerate(dataset.classes)
            if videos and label not in done.labels[part]
        ),
    )
