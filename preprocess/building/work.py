"""One video's share of a build, as a worker does it: found finished, taken over from shards that stand, or made anew.

Each finished record is kept as a file of its own, whole or absent, named by all that decides its bytes: the video's,
the settings, the libraries' versions, its name and label. So nothing finished is ever done again, however a build ends.
It goes when the shard that it belongs to is safe.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgpack

from preprocess.building.places import Place
from preprocess.building.standing import differences
from preprocess.building.takeover import Held, Library, relabelled
from preprocess.config import Preprocess
from preprocess.errors import PreprocessError, VideoError
from preprocess.record import how_made, make_record
from preprocess.sources.listing import Video
from preprocess.video import source_of
from shards.errors import ShardError
from shards.format import MEMBERS, Members, decode, encode, key_of
from shards.record import Source

ENDING = ".record"

How = Literal["made", "kept", "taken over"]  # now; by an earlier run of this build; from shards that stand


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the tasks of a build share."""

    settings: Preprocess
    work: Place  # of the finished records and the notes
    shards: Place  # of the split
    split: int
    recipe: str  # all that decides a record's bytes but its video, as the build began
    standing: tuple[str, ...] = ()  # splits made before in the same way; they may hold the same records
    share: str = ""  # "3/16": of which this build is one; empty: it is all


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One video to make a record of."""

    video: Video
    part: str
    packed: str = ""  # the name of its record in the shard that was packed before; empty: in none
    tars: tuple[str, ...] = ()  # shards of builds that were not finished; they hold a record of this name
    copy: bool = False  # keep the record, also where it stands in this split, whose shards will be replaced


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A task whose record is there."""

    record: str  # its name, whether or not it is kept under it
    held: Held | None  # where it stands; None: it is kept, or in the shard that was packed before
    frames: int  # 0: it was not looked into
    bytes: int
    how: How


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A video without a record, as a line of failures.jsonl."""

    name: str
    path: str
    part: str
    reason: str


def video_worker(job: Job) -> Callable[[Task], Finished | Failure]:
    """The function that does tasks of `job`, with what it needs opened once."""
    library, ours = Library(), job.shards.location
    checked = False

    def work(task: Task) -> Finished | Failure:
        nonlocal checked
        if not checked:
            _must_be_alike(job)
            checked = True
        video, held = task.video, None
        how: How = "kept"
        try:
            source = source_of(video.path)
            name = record_name(video, source, job.recipe)
            if name == task.packed:
                return Finished(record=name, held=None, frames=0, bytes=0, how=how)
            members: Members | None = read_record(job.work, name)
            if members is None and (found := library.find(video, source, (*task.tars, *job.standing))) is not None:
                how, held, members = "taken over", found[0], relabelled(found[1], video)
                if held.location.startswith(f"{ours}/") or (held.location == ours and task.copy):
                    held = None  # its shard will be replaced; others of it may still be needed when it is
                    write_record(job.work, name, members)
            if members is None:
                how, members = "made", encode(make_record(video, job.settings))
                write_record(job.work, name, members)
        except VideoError as error:
            return Failure(name=video.name, path=str(video.path), part=task.part, reason=str(error))
        size = sum(len(blob) for blob in members.values())
        return Finished(record=name, held=held, frames=decode(members, name).frames, bytes=size, how=how)

    return work


def recipe_text(settings: Preprocess) -> str:
    """All that decides a record's bytes but its video, as text."""
    return json.dumps(how_made(settings), sort_keys=True)


def _must_be_alike(job: Job) -> None:
    """Raises PreprocessError where this process would make other records than the one that began the build."""
    if recipe_text(job.settings) != job.recipe:
        other = differences(json.loads(job.recipe), how_made(job.settings))
        raise PreprocessError(
            f"{platform.node()}: would make other records than the machine that began the build ({'; '.join(other)})."
            " Install the same versions there"
        )


def record_name(video: Video, source: Source, recipe: str) -> str:
    """The name under which a finished record is kept: in one of 256 folders, with `stem_of(video)` at its beginning."""
    facts = json.dumps([recipe, source.sha256, video.name, video.label, video.class_name])
    stem = stem_of(video)
    return f"{stem[:2]}/{stem}{hashlib.sha256(facts.encode()).hexdigest()[:32]}{ENDING}"


def stem_of(video: Video) -> str:
    """What the file names of all finished records of `video` begin with."""
    return f"{hashlib.sha256(key_of(video.name).encode()).hexdigest()[:16]}-"


def write_record(place: Place, name: str, members: Members) -> None:
    """Keeps a finished record, whole or absent. Raises ShardError where the disk is full or the folder unwritable."""
    place.write(name, msgpack.packb([bytes(members[member]) for member in MEMBERS]))


def read_record(place: Place, name: str) -> dict[str, bytes] | None:
    """The members of a kept record, every byte checked; None if it is absent or damaged."""
    if (data := place.read(name)) is None:
        return None
    try:
        members = dict(zip(MEMBERS, msgpack.unpackb(data), strict=True))
        decode(members, name)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, ShardError):
        return None
    return members
