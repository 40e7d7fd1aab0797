"""What a build works on: its plan, its places, and what is known there of records finished before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.building.notes import Note, noted_shards, read_notes
from preprocess.building.places import FolderPlace, Place, place_at
from preprocess.building.plan import PlannedShard, planned
from preprocess.building.standing import made_alike, made_of
from preprocess.building.work import Job
from preprocess.building.workplace import Plan, Share, must_not_lose, workplace
from preprocess.config import Preprocess
from preprocess.sources.listing import Dataset, Video
from shards.errors import ShardError
from shards.format import key_of
from shards.manifest import shard_name
from shards.stores.connect import is_url


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What is known of records that were finished before, but for those that are kept by themselves."""

    notes: Mapping[str, Note]  # by shard: packed by an earlier run of this build
    tars: Mapping[str, tuple[str, ...]]  # by key: shards of other builds that were not finished
    ours: bool  # whether shards that this build replaces hold records which it can take over
    lost: int  # how many records they hold that it does not take over


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A build's data set and settings, its places and its plan."""

    dataset: Dataset
    settings: Preprocess
    out: str | Path
    made: Mapping[str, Any]
    plan: tuple[PlannedShard, ...]
    videos: Mapping[tuple[str, str], Video]  # by part and key
    standing: tuple[str, ...]  # splits whose records were made in the same way
    work: Place
    shards: Place
    share: str  # "3/16"; empty: all

    def job(self) -> Job:
        """What the tasks share."""
        return Job(
            settings=self.settings,
            work=self.work,
            shards=self.shards,
            split=self.dataset.split,
            recipe=json.dumps(self.made["record"], sort_keys=True),
            standing=self.standing,
            share=self.share,
        )

    def known(self, ours: Sequence[PlannedShard]) -> Known:
        """What is known of the records of the shards `ours`; other planned shards are left to others."""
        notes, tars = dict[str, Note](), dict[str, tuple[str, ...]]()
        replaced, lost, keys = self.shards.location in self.standing, 0, {key for _, key in self.videos}
        wanted = {named(shard): set(shard.keys) for shard in ours}
        others = {named(shard) for shard in self.plan} - wanted.keys()
        for split, names in noted_shards(self.work).items():
            mine = split == self.dataset.split
            names = [name for name in names if not (mine and name in others)]
            for name, note in read_notes(self.work, split, names):
                if mine and wanted.get(name, set()).issuperset(note.keys):
                    notes[name] = note
                    continue
                replaced |= mine
                lost += mine and len(set(note.keys) - keys)
                tar = f"{data_set_location(self.dataset, self.out)}/split{split}/{name}"
                for key in note.keys:
                    tars[key] = (*tars.get(key, ()), tar)
        return Known(notes=notes, tars=tars, ours=replaced, lost=lost)


@contextmanager
def opened_site(
    dataset: Dataset, settings: Preprocess, out: str | Path, share: Share | None = None, *, again: bool = False
) -> Iterator[Site]:
    """The site of a build, or of a part of it, locked against others while the block lasts.

    Raises PreprocessError where others are at work there, ShardError where it cannot be written.
    """
    made, plan = made_of(dataset, settings), planned(dataset, settings.per_shard)
    agreed = None
    if share is not None:
        agreed = Plan(
            data_set=dataset.name, split=dataset.split, record=made["record"], shards=_digest(plan), parts=share.of
        )
    with (
        workplace(out, dataset.name, dataset.split, made["record"], share=share, plan=agreed, again=again) as work,
        _shards_place(split_location(dataset, out), share) as shards,
    ):
        must_not_lose(out, dataset.name, dataset.split, made["record"], shards, again)
        ours = shards.location  # first: what stands in this split may stay where it is
        alike = made_alike(data_set_location(dataset, out), made["record"])
        yield Site(
            dataset=dataset,
            settings=settings,
            out=out,
            made=made,
            plan=plan,
            videos={(part, key_of(video.name)): video for part, videos in dataset.parts.items() for video in videos},
            standing=tuple(sorted(alike, key=lambda location: (location != ours, location))),
            work=work,
            shards=shards,
            share=str(share or ""),
        )


def named(shard: PlannedShard) -> str:
    """The file name of a planned shard."""
    return shard_name(shard.part, shard.number)


def split_location(dataset: Dataset, out: str | Path) -> str:
    """Where the shards of a split go: <out>/<data set>/split<n>."""
    return f"{data_set_location(dataset, out)}/split{dataset.split}"


def data_set_location(dataset: Dataset, out: str | Path) -> str:
    """Where its splits go."""
    return f"{str(out).rstrip('/')}/{dataset.name}" if is_url(str(out)) else str(Path(out) / dataset.name)


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


def _digest(plan: Sequence[PlannedShard]) -> str:
    facts = [[shard.part, shard.number, shard.keys] for shard in plan]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
