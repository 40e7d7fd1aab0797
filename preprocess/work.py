"""One video's share of a build, as a worker does it: found finished, taken over from another split, or made anew.

Each finished record is kept as a file of its own, whole or absent, named by all that decides its bytes: the video's,
the settings, the libraries' versions, its name and label. So nothing finished is ever done again, however a build ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgpack

from preprocess.config import Preprocess
from preprocess.errors import VideoError
from preprocess.listing import Video
from preprocess.record import how_made, make_record
from preprocess.video import source_of
from shards.errors import ShardError
from shards.format import MEMBERS, Members, decode, encode, key_of
from shards.record import Source
from shards.split import Split, open_split
from shards.whole import whole

ENDING = ".record"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the tasks of a build share."""

    settings: Preprocess
    folder: Path  # of the finished records
    splits: tuple[Path, ...] = ()  # built before in the same way; they may hold the same records


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One video to make a record of."""

    video: Video
    part: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A task whose record is kept in `file`."""

    file: Path
    frames: int
    bytes: int
    how: Literal["made", "kept", "taken over"]  # now; by an earlier run of this build; from another split


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A video without a record, as a line of failures.jsonl."""

    name: str
    path: str
    part: str
    reason: str


def worker(job: Job) -> Callable[[Task], Finished | Failure]:
    """The function that does tasks of `job`, with what it needs opened once."""
    recipe_text = json.dumps(how_made(job.settings), sort_keys=True)
    others = [_Records(path) for path in job.splits]

    def work(task: Task) -> Finished | Failure:
        video = task.video
        try:
            source = source_of(video.path)
            file = job.folder / file_name(video, source, recipe_text)
            how: Literal["made", "kept", "taken over"] = "kept"
            members = read_record(file)
            if members is None:
                how, members = "taken over", _taken_over(video, source, others)
            if members is None:
                how, members = "made", encode(make_record(video, job.settings))
            if how != "kept":
                write_record(file, members)
        except VideoError as error:
            return Failure(name=video.name, path=str(video.path), part=task.part, reason=str(error))
        frames = decode(members, str(file)).frames
        return Finished(file=file, frames=frames, bytes=sum(len(blob) for blob in members.values()), how=how)

    return work


def file_name(video: Video, source: Source, recipe_text: str) -> str:
    """The name under which a finished record is kept; it begins with `stem_of(video)`."""
    facts = json.dumps([recipe_text, source.sha256, video.name, video.label, video.class_name])
    return f"{stem_of(video)}{hashlib.sha256(facts.encode()).hexdigest()[:32]}{ENDING}"


def stem_of(video: Video) -> str:
    """What the names of all finished records of `video` begin with."""
    return f"{hashlib.sha256(key_of(video.name).encode()).hexdigest()[:16]}-"


def write_record(file: Path, members: Members) -> None:
    """Keeps a finished record, whole or absent. Raises ShardError where the disk is full or the folder unwritable."""
    with whole(file) as stream:
        stream.write(msgpack.packb([bytes(members[member]) for member in MEMBERS]))


def read_record(file: Path) -> dict[str, bytes] | None:
    """The members of a kept record, every byte checked; None if it is absent or damaged."""
    try:
        blobs = msgpack.unpackb(file.read_bytes())
        members = dict(zip(MEMBERS, blobs, strict=True))
        decode(members, str(file))
    except (OSError, ValueError, TypeError, msgpack.exceptions.UnpackException, ShardError):
        return None
    return members


def _taken_over(video: Video, source: Source, others: Sequence[_Records]) -> dict[str, bytes] | None:
    key = key_of(video.name)
    for split in others:
        members = split.members(key)
        if members is None:
            continue
        try:
            record = decode(members, f"{split.path}: {key}")
        except ShardError:
            continue  # damaged there: it is made anew
        if record.source == source and record.name == video.name:
            return encode(replace(record, label=video.label, class_name=video.class_name))
    return None


class _Records:
    """The records of a split by their keys; opened when first asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._split: Split | None = None
        self._places: Mapping[str, tuple[str, int]] = {}

    def members(self, key: str) -> Members | None:
        """The members of the record with `key`; None if it is not there or cannot be read."""
        try:
            if self._split is None:
                self._split = open_split(self.path)
                self._places = {
                    row.key: (part, row.record)
                    for part in self._split.manifest.parts
                    for row in map(self._split.index(part).row, range(len(self._split.index(part))))
                }
            if key in self._places:
                return self._split.read(*self._places[key])
        except ShardError:
            return None
        return None
