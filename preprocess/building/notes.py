"""What is noted about a shard once it is packed: of which records, which file it is, which videos failed, its rows.

Two files for each shard, in the place where finished records wait: `split1/train-000000.tar.rows`, an index of the one
shard, and then `split1/train-000000.tar.packed`. A shard with a note is safe: its records need not be kept any longer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from preprocess.building.places import Place, Stamp
from preprocess.building.work import Failure
from preprocess.sources.listing import Video
from shards.errors import CorruptRecordError
from shards.format import key_of
from shards.index import Index, index_bytes, open_index
from shards.manifest import ShardFile
from shards.row import Row

ENDING = ".packed"
ROWS = ".rows"
AT_ONCE = 16  # notes read side by side: a shared folder or a bucket answers slowly, but many at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What was noted when a shard had been packed."""

    videos: str  # `contents_of` what was planned
    keys: tuple[str, ...]  # of its records, in order
    records: tuple[str, ...]  # their names, which change when they do
    file: ShardFile
    stamp: Stamp
    rows_sha256: str
    began: float  # seconds since 1970: no video of it was read before
    failures: tuple[Failure, ...] = ()  # of the videos that were to be in it
    share: str = ""  # "3/16": of the build that packed it; empty: it was the whole


def folder_of(split: int) -> str:
    """Where the notes of a split lie."""
    return f"split{split}"


def contents_of(videos: Iterable[tuple[Video, int]]) -> str:
    """A digest of what is to be in a shard: keys, labels, classes and the sizes of the videos, in order."""
    facts = [[key_of(video.name), video.label, video.class_name, size] for video, size in videos]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def write_note(place: Place, split: int, note: Note, rows: Sequence[Row]) -> None:
    """Notes a shard of the split; `rows` are its own, numbered from 0. Raises ShardError."""
    name = f"{folder_of(split)}/{note.file.name}"
    data = b"".join(index_bytes(rows))
    place.write(name + ROWS, data)
    noted = asdict(replace(note, rows_sha256=hashlib.sha256(data).hexdigest()))
    place.write(name + ENDING, json.dumps(noted, ensure_ascii=False).encode())


def read_note(place: Place, split: int, shard: str) -> Note | None:
    """The note of a shard; None where there is none, or none that can be read."""
    try:
        data: Any = json.loads(place.read(f"{folder_of(split)}/{shard}{ENDING}") or b"null")
        fields = {**data, **{name: tuple(data[name]) for name in ("keys", "records")}}
        fields["file"], fields["stamp"] = ShardFile(**data["file"]), Stamp(**data["stamp"])
        fields["failures"] = tuple(Failure(**one) for one in data["failures"])
        return Note(**fields)
    except (ValueError, TypeError, KeyError):
        return None


def read_notes(place: Place, split: int, shards: Iterable[str]) -> Iterator[tuple[str, Note]]:
    """The notes of those of `shards` that have one, with their names."""
    names = list(shards)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for name, note in zip(names, threads.map(lambda name: read_note(place, split, name), names), strict=True):
            if note is not None:
                yield name, note


def noted_shards(place: Place) -> Mapping[int, list[str]]:
    """The names of the shards that have a note, by the split."""
    found: dict[int, list[str]] = {}
    for split in (1, 2, 3):
        folder = folder_of(split)
        names = [name.removeprefix(f"{folder}/") for name in place.names(folder)]
        if shards := [name.removesuffix(ENDING) for name in names if name.endswith(ENDING)]:
            found[split] = shards
    return found


def remove_notes(place: Place, split: int, shards: Iterable[str]) -> None:
    """Takes the notes of `shards` away."""
    names = [f"{folder_of(split)}/{shard}" for shard in shards]
    place.remove([name + ending for name in names for ending in (ENDING, ROWS)])


class NotedRows(Sequence[Row]):
    """The rows of a part, shard by shard, as they were noted; only those of one shard are in memory at a time.

    They are fetched once into `folder`, on this machine, for an index is made in several passes over them.
    Raises CorruptRecordError where what was noted is not there any more.
    """

    def __init__(self, place: Place, split: int, notes: Sequence[Note], folder: Path) -> None:
        self._place, self._split, self._notes, self._folder = place, split, notes, folder
        self._starts = [0]
        for note in notes:
            self._starts.append(self._starts[-1] + len(note.keys))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in threads.map(self._fetch, notes):
                pass

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Row]:
        for start, note in zip(self._starts, self._notes, strict=False):
            with closing(self._index(note)) as index:
                yield from (replace(index.row(i), record=start + i) for i in range(len(index)))

    def __getitem__(self, position: Any) -> Any:
        raise TypeError("these rows are read one after the other")

    def labels(self) -> set[int]:
        """All labels that occur."""
        found: set[int] = set()
        for note in self._notes:
            with closing(self._index(note)) as index:
                found.update(map(int, index.labels()))
        return found

    def _index(self, note: Note) -> Index:
        return open_index(self._folder / (note.file.name + ROWS))

    def _fetch(self, note: Note) -> None:
        name = f"{folder_of(self._split)}/{note.file.name}"
        data = self._place.read(name + ROWS)
        if data is None or hashlib.sha256(data).hexdigest() != note.rows_sha256:
            raise CorruptRecordError(
                f"{self._place.location}/{name}{ROWS}: {'is gone' if data is None else 'was changed or damaged'} since"
                f" the shard was packed; remove {name}{ENDING} there, and run the same command again"
            )
        (self._folder / (note.file.name + ROWS)).write_bytes(data)
