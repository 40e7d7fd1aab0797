"""Finished records -> one shard, as a worker does it; what an earlier run of the build packed is found, not packed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from preprocess.config import Preprocess
from preprocess.errors import VideoError
from preprocess.extracted import record_from_frames
from preprocess.listing import Video
from preprocess.work import Failure, read_record
from shards.errors import CorruptRecordError, ShardError
from shards.format import Members, encode
from shards.index import index_tar
from shards.manifest import ShardFile
from shards.writer import Packed, pack_shard, whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One record of a shard: kept in a file, or to be made of frames and flow that were extracted before."""

    key: str
    identity: str  # changes when the record does
    source: Path | Video


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A shard to be packed."""

    path: Path
    part: str
    number: int
    entries: tuple[Entry, ...]
    note: Path  # where is noted that it was packed


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A shard on disk."""

    packed: Packed
    failures: tuple[Failure, ...]


def packer(settings: Preprocess) -> Callable[[Shard], Result]:
    """The function that packs shards."""

    def pack(shard: Shard) -> Result:
        if (packed := _packed_before(shard)) is not None:
            return Result(packed=packed, failures=())
        shard.note.unlink(missing_ok=True)
        failures: list[Failure] = []
        packed = pack_shard(shard.path, _records(shard, settings, failures), shard=shard.number)
        if not failures:
            with whole(shard.note) as file:
                note = {"entries": [entry.identity for entry in shard.entries], "file": asdict(packed.file)}
                file.write(json.dumps(note).encode())
        return Result(packed=packed, failures=tuple(failures))

    return pack


def frames_identity(video: Video) -> str:
    """Changes when frames are added to the folders of an extracted video, or taken away; they are not read."""
    facts: list[object] = [video.name, video.label, video.class_name]
    for folder in (video.path, *(video.flow_path or ())):
        with suppress(OSError):
            facts.append([str(folder), folder.stat().st_mtime_ns, sum(1 for _ in folder.iterdir())])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _records(shard: Shard, settings: Preprocess, failures: list[Failure]) -> Iterator[tuple[str, Members]]:
    for entry in shard.entries:
        if isinstance(entry.source, Path):
            members = read_record(entry.source)
            if members is None:
                raise CorruptRecordError(
                    f"{entry.source}: a finished record was damaged or removed meanwhile; run the same command again"
                )
            yield entry.key, members
            continue
        try:
            record = record_from_frames(entry.source, settings)
        except VideoError as error:
            video = entry.source
            failures.append(Failure(name=video.name, path=str(video.path), part=shard.part, reason=str(error)))
        else:
            yield entry.key, encode(record)


def _packed_before(shard: Shard) -> Packed | None:
    """The shard, if it was packed of just these records and is still whole; every byte of it is read."""
    try:
        note = json.loads(shard.note.read_text(encoding="utf-8"))
        file = ShardFile(**note["file"])
        if note["entries"] != [entry.identity for entry in shard.entries] or shard.path.stat().st_size != file.size:
            return None
        with shard.path.open("rb") as tar:
            if hashlib.file_digest(tar, "sha256").hexdigest() != file.sha256:
                return None
            rows = index_tar(
                lambda start, stop: os.pread(tar.fileno(), stop - start, start),
                file.size,
                shard.number,
                str(shard.path),
            )
        return Packed(file=file, rows=tuple(rows))
    except (OSError, ValueError, TypeError, KeyError, ShardError):
        return None
