"""Records that stand in shards already, of another split or of a build that was not finished: found, read, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from preprocess.sources.listing import Video
from shards.errors import ShardError
from shards.format import Members, decode, encode, key_of
from shards.record import Record, Source
from shards.split import Split, open_split

TARS = 16  # held open at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Where a record stands."""

    location: str  # of a split, or of one .tar
    part: str
    record: int  # its position in the part
    shard: int  # its shard's number there


class Library:
    """The records of splits and of single tars by their keys; each is opened when first asked."""

    def __init__(self) -> None:
        self._opened: dict[str, _Records] = {}

    def find(self, video: Video, source: Source, locations: Iterable[str]) -> tuple[Held, Record] | None:
        """The record of just this video in the first of `locations` that has it whole, as it is there.

        Its label and its class may be others: `relabelled` puts that right.
        """
        key = key_of(video.name)
        for location in locations:
            if (held := self._records(location).find(key)) is None or (record := self.read(held)) is None:
                continue
            if record.source == source and record.name == video.name:
                return held, record
        return None

    def read(self, held: Held) -> Record | None:
        """The record, every byte checked; None where it is damaged, or there no more."""
        try:
            return decode(self._records(held.location).split().read(held.part, held.record), held.location)
        except (ShardError, LookupError):
            return None

    def split(self, location: str) -> Split:
        """The split at `location`, open. Raises ShardError."""
        return self._records(location).split()

    def _records(self, location: str) -> _Records:
        found = self._opened.pop(location, None) or _Records(location)
        self._opened[location] = found
        tars = [one for one in self._opened if one.endswith(".tar")]
        for old in tars[:-TARS]:
            self._opened.pop(old).close()
        return found


def relabelled(record: Record, video: Video) -> Members:
    """The members of `record` with the label and the class that the video has now."""
    return encode(replace(record, label=video.label, class_name=video.class_name))


class _Records:
    """The records of one location by their keys."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._split: Split | None = None
        self._places: Mapping[str, Held] | None = None

    def split(self) -> Split:
        if self._split is None:
            self._split = open_split(self.location)
        return self._split

    def find(self, key: str) -> Held | None:
        if self._places is None:
            self._places = {}
            try:
                split = self.split()
                self._places = {
                    row.key: Held(location=self.location, part=part, record=row.record, shard=row.shard)
                    for part in split.manifest.parts
                    for row in map(split.index(part).row, range(len(split.index(part))))
                }
            except ShardError:
                return None  # nothing can be taken over from there
        return self._places.get(key)

    def close(self) -> None:
        if self._split is not None:
            self._split.close()
