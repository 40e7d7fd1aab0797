"""Records -> one shard, as a worker does it; what was packed before is found, not packed.

A shard is written beside its place and moved there; then it is noted; then the records that were kept for it go. So at
any time each finished record is in one of the two at least, and the disk holds little twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from preprocess.building.links import share, siblings_of
from preprocess.building.notes import Note, read_note, write_note
from preprocess.building.places import FolderPlace
from preprocess.building.takeover import Held, Library, relabelled
from preprocess.building.work import Failure, Job, read_record, record_name
from preprocess.errors import VideoError
from preprocess.extracted import record_from_frames
from preprocess.sources.listing import Video
from shards.errors import ShardError
from shards.format import Members
from shards.manifest import ShardFile
from shards.record import Record
from shards.row import Row
from shards.transfer import difference
from shards.writer import Packed, pack_shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One record of a shard. `record`, its name, is empty where it is made of extracted frames, as the shard is."""

    key: str
    video: Video
    record: str = ""
    held: Held | None = None  # where it stands; None: it is kept, or in the shard that was packed before


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard to be packed."""

    name: str
    part: str
    number: int
    videos: str  # `contents_of` what was planned
    began: float  # seconds since 1970: no video was read before
    entries: tuple[Entry, ...]
    failures: tuple[Failure, ...] = ()  # of the other videos that were to be in it


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A shard in its place, noted; or nothing, where records are `lost` that must be made again."""

    file: ShardFile | None
    made: int = 0  # records, of extracted frames
    kept: int = 0  # the same, of an earlier run
    failures: tuple[Failure, ...] = ()
    lost: tuple[str, ...] = ()  # keys


def packer(job: Job) -> Callable[[Shard], Result]:
    """The function that packs shards of `job`."""
    library = Library()
    siblings = siblings_of(job.shards.root) if isinstance(job.shards, FolderPlace) else {}

    def pack(shard: Shard) -> Result:
        shard = replace(shard, entries=tuple(map(_named, shard.entries)))
        note = read_note(job.work, job.split, shard.name)
        extracted = sum(entry.video.flow_path is not None for entry in shard.entries)
        if note is not None and _is_packed(job, note, shard):
            return Result(file=note.file, kept=extracted, failures=note.failures)
        failures: list[Failure] = []
        records = _Records(job, shard, note, library, failures)
        try:
            packed = _copied(job, shard, library)
            if packed is None and any(one.held and one.held.location == job.shards.location for one in shard.entries):
                return Result(file=None, lost=tuple(entry.key for entry in shard.entries))
            packed = packed or _packed(job, shard, records)
        except _LostError:
            return Result(file=None, lost=records.lost())
        if isinstance(job.shards, FolderPlace):
            share(job.shards.root / shard.name, packed.file, siblings)
        stamp = job.shards.stamp(shard.name)
        if stamp is None:
            raise ShardError(f"{job.shards.location}/{shard.name}: it was written, and is gone; who removes it?")
        failed = {failure.name for failure in failures}
        entries = [entry for entry in shard.entries if entry.video.name not in failed]
        write_note(
            job.work,
            job.split,
            Note(
                videos=shard.videos,
                keys=tuple(entry.key for entry in entries),
                records=tuple(entry.record for entry in entries),
                file=packed.file,
                stamp=stamp,
                rows_sha256="",
                began=shard.began,
                failures=(*shard.failures, *failures),
                share=job.share,
            ),
            packed.rows,
        )
        job.work.remove([entry.record for entry in entries if entry.video.flow_path is None and entry.held is None])
        return Result(file=packed.file, made=extracted - len(failures), failures=tuple(failures))

    return pack


def frames_identity(video: Video) -> str:
    """Changes when frames are added to the folders of an extracted video, or taken away; they are not read."""
    facts: list[object] = [video.name, video.label, video.class_name]
    for folder in (video.path, *(video.flow_path or ())):
        with suppress(OSError), os.scandir(folder) as scan:
            facts.append([str(folder), folder.stat().st_mtime_ns, sum(1 for _ in scan)])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def stands(job: Job, note: Note) -> bool:
    """Whether the shard is still the one that was noted; it is read where it may have been written since."""
    return job.shards.stamp(note.file.name) == note.stamp or not job.shards.differs(note.file)


class _LostError(Exception):
    """A record that was finished is not there any more, or was damaged."""


class _Records:
    """The records of a shard, from wherever they are."""

    def __init__(self, job: Job, shard: Shard, note: Note | None, library: Library, failures: list[Failure]) -> None:
        self._job, self._shard, self._library, self._failures = job, shard, library, failures
        # What was packed into the shard of this name before: its records are kept nowhere else.
        self._before: Mapping[str, Held] = {}
        if note is not None and job.shards.stamp(shard.name) is not None:
            tar = f"{job.shards.location}/{shard.name}"
            held = (Held(location=tar, part=shard.part, record=record, shard=0) for record in count())
            self._before = dict(zip(note.records, held, strict=False))

    def __iter__(self) -> Iterator[tuple[str, Members | Record]]:
        for entry in self._shard.entries:
            if entry.video.flow_path is None:
                if (members := self._members(entry)) is None:
                    raise _LostError
                yield entry.key, members
                continue
            try:
                record = record_from_frames(entry.video, self._job.settings)
            except VideoError as error:
                video = entry.video
                self._failures.append(
                    Failure(name=video.name, path=str(video.path), part=self._shard.part, reason=str(error))
                )
            else:
                yield entry.key, record

    def lost(self) -> tuple[str, ...]:
        """The keys of all records that are not to be had."""
        return tuple(entry.key for entry in self._shard.entries if self._members(entry) is None)

    def _members(self, entry: Entry) -> Members | None:
        if entry.held is None and (members := read_record(self._job.work, entry.record)) is not None:
            return members
        held = entry.held or self._before.get(entry.record)
        if held is None or (record := self._library.read(held)) is None:
            return None
        if record_name(entry.video, record.source, self._job.recipe) != entry.record or record.name != entry.video.name:
            return None  # the shard was replaced meanwhile
        return relabelled(record, entry.video)


def _named(entry: Entry) -> Entry:
    return entry if entry.video.flow_path is None else replace(entry, record=frames_identity(entry.video))


def _is_packed(job: Job, note: Note, shard: Shard) -> bool:
    """Whether the shard was packed of just these records, and of all of them, and still stands."""
    wanted = tuple(entry.record for entry in shard.entries)
    return (note.videos, note.records, note.failures) == (shard.videos, wanted, shard.failures) and stands(job, note)


def _packed(job: Job, shard: Shard, records: Iterable[tuple[str, Members | Record]]) -> Packed:
    with job.shards.desk() as desk:
        packed = pack_shard(desk / shard.name, records, shard=shard.number)
        job.shards.take(desk / shard.name, packed.file)
    return packed


def _copied(job: Job, shard: Shard, library: Library) -> Packed | None:
    """The shard, where one stands that holds just these records: that one, or a second name or a copy of it."""
    held = [entry.held for entry in shard.entries if entry.held is not None]
    if len(held) < len(shard.entries) or len({(one.location, one.part, one.shard) for one in held}) != 1:
        return None
    first, records = held[0], [one.record for one in held]
    stays = first.location == job.shards.location
    if first.location.endswith(".tar") or not (stays or isinstance(job.shards, FolderPlace)):
        return None
    try:
        split = library.split(first.location)
        file = split.manifest.parts[first.part].shards[first.shard]
        if file.records != len(held) or records != [*range(first.record, first.record + len(held))]:
            return None
        rows = [split.index(first.part).row(record) for record in records]
        labels = [(row.label, split.manifest.classes[row.label]) for row in rows]
        if labels != [(entry.video.label, entry.video.class_name) for entry in shard.entries]:
            return None
        ours = replace(file, name=shard.name)
        if stays:
            if file.name != shard.name or job.shards.differs(file):
                return None
        else:
            with job.shards.desk() as desk:
                _link_or_copy(Path(first.location) / file.name, desk / shard.name)
                if difference(desk / shard.name, ours):
                    return None
                job.shards.take(desk / shard.name, ours)
    except (OSError, ShardError, LookupError):
        return None  # it is packed instead, which says what is wrong
    return Packed(file=ours, rows=tuple(_renumbered(rows, shard.number)))


def _renumbered(rows: Sequence[Row], shard: int) -> Iterator[Row]:
    for record, row in enumerate(rows):
        yield replace(row, record=record, shard=shard)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as there, target.open("wb") as here:
            shutil.copyfileobj(there, here, 1 << 20)
            here.flush()
            os.fsync(here.fileno())
