"""What earlier builds made of which file: read out of their shards, without reading a frame."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from preprocess.sources.listing import Video
from shards.errors import ShardError
from shards.format import INDEX, key_of, parse_index
from shards.manifest import NAME
from shards.record import Source
from shards.row import Row
from shards.split import Split, open_split
from shards.stores import Range
from shards.stores.connect import is_url

AT_ONCE = 256  # records' headers read at a time: some 5 kB each
READERS = 8  # threads that read files for their checksums


@dataclass(frozen=True, kw_only=True, slots=True)
class Former:
    """The record of a video in a split that was built before."""

    label: int
    class_name: str
    source: Source | None  # the file that it was made of; None: not looked up, as the split is far away
    when: int  # ns since 1970: when its split was finished


@dataclass(frozen=True, kw_only=True, slots=True)
class FormerRecords:
    """What some splits hold."""

    of: dict[str, list[Former]] = field(default_factory=dict)  # by key, in the order of the splits
    shards: dict[tuple[str, ...], list[str]] = field(default_factory=dict)  # by their keys: the splits that have them


def former_records(locations: Sequence[str]) -> FormerRecords:
    """The records in the splits at `locations`; of what cannot be read there are none."""
    found = FormerRecords()
    for location in locations:
        with suppress(OSError, ShardError), open_split(location) as split:
            for part in split.manifest.parts:
                shards: dict[int, list[str]] = {}
                for row, former in _records(split, part, location):
                    found.of.setdefault(row.key, []).append(former)
                    shards.setdefault(row.shard, []).append(row.key)
                for keys in shards.values():
                    found.shards.setdefault(tuple(keys), []).append(location)
    return found


def unchanged(pairs: Iterable[tuple[Video, Former]]) -> list[bool]:
    """Whether each file is still the one its record was made of: by its size, and by its bytes where it is newer."""
    with ThreadPoolExecutor(READERS) as threads:  # hashing lets other threads run
        return list(threads.map(lambda pair: _same(pair[0].path, pair[1]), pairs))


def changed_files(videos: Iterable[Video], location: str) -> list[str]:
    """Those of `videos` whose record in the split at `location` was made of other bytes; only newer files are read."""
    if is_url(location):
        return []
    when = (Path(location) / NAME).stat().st_mtime_ns
    newer = [video for video in videos if video.flow_path is None and _time(video.path) > when]
    if not newer:
        return []
    records = former_records([location]).of
    pairs = [(video, former) for video in newer for former in records.get(key_of(video.name), ())]
    return sorted(video.name for (video, _), same in zip(pairs, unchanged(pairs), strict=True) if not same)


def _time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _records(split: Split, part: str, location: str) -> Iterator[tuple[Row, Former]]:
    index, classes, far = split.index(part), split.manifest.classes, is_url(location)
    when = 0 if far else (Path(location) / NAME).stat().st_mtime_ns
    for start in range(0, len(index), AT_ONCE):
        rows = index.rows(range(start, min(start + AT_ONCE, len(index))))
        sources: list[Source | None] = [None] * len(rows)
        if not far:
            headers = split.store.fetch([Range(*split.store.member(part, row, INDEX)) for row in rows])
            for i, (row, data) in enumerate(zip(rows, headers, strict=True)):
                with suppress(ShardError):  # damaged: what a build would make anew passes for changed
                    sources[i] = Source(sha256="", bytes=-1)
                    sources[i] = parse_index(data, f"{location}: {row.key}").source
        for row, source in zip(rows, sources, strict=True):
            yield row, Former(label=row.label, class_name=classes[row.label], source=source, when=when)


def _same(path: Path, former: Former) -> bool:
    if former.source is None:
        return True
    try:
        facts = path.stat()
        if facts.st_size != former.source.bytes:
            return False
        if facts.st_mtime_ns <= former.when:
            return True
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == former.source.sha256
    except OSError:
        return False  # the build will say why it cannot be read
