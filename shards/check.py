"""Every byte of a split, checked against what was written: manifest, indexes, shards or database, each record in them.

Reading goes on behind damage, so that one pass names all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.bare import UNKNOWN
from shards.errors import ShardError
from shards.foreign import files_of
from shards.format import CLS, MEMBERS, RGB, Members, dataset_digest, decode
from shards.index import Row, StreamPlace, records_of, row_of, scan_tar
from shards.manifest import NAME, Part, ShardFile, dump_manifest, parse_manifest
from shards.split import Split
from shards.stores import Range
from shards.stores.lmdb import DATA, pages
from shards.tar import BLOCK, Read, members
from shards.transfer import strays

CHUNK = 8 << 20  # bytes read at a time where they are only hashed

Progress = Callable[[int, int], None]  # records done, records in all


@dataclass(frozen=True, slots=True)
class Problem:
    """Something of a split that is not as it was written."""

    where: str  # the file
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def problems(split: Split, progress: Progress | None = None) -> Iterator[Problem]:
    """What is wrong with `split`, file by file; nothing where every byte is as it was written.

    `progress(done, total)` counts records. A damaged database is reported as such and not searched: where its pages are
    wrong, every record may be, and copying it again is the cure for all.
    """
    total, done = sum(part.records for part in split.manifest.parts.values()), 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    alone = not all(part.index.sha256 for part in split.manifest.parts.values())  # one tar: all was made from it
    if not alone:
        yield from _manifest(split)
    if split.manifest.store == "lmdb":
        found = list(_database(split))
        yield from found
        if found:
            return
    if split.manifest.store == "tar" and not alone and split.folder is not None:
        for path in strays(split.manifest, split.folder):
            yield Problem(str(path), "is not in the manifest: left from another build; delete it")
    for name, part in split.manifest.parts.items():
        if not alone:
            yield from _file(split, part.index)
        yield from _part(split, name, part, step)


def _manifest(split: Split) -> Iterator[Problem]:
    where = f"{split.location}/{NAME}"
    try:
        data = split.store.small(NAME)
        if parse_manifest(data, where) != split.manifest:
            yield Problem(where, "is not the one with which the split was opened: it was replaced meanwhile")
        elif data != dump_manifest(split.manifest):
            yield Problem(where, "says what it should, but not byte for byte as it was written: edited or cut")
    except ShardError as error:
        yield _problem(where, error)


def _database(split: Split) -> Iterator[Problem]:
    """What is wrong with data.mdb as a file."""
    where, total = f"{split.location}/{DATA}", 0
    for name, part in split.manifest.parts.items():
        if name == next(iter(split.manifest.parts)):
            yield from _file(split, part.shards[0])
        total += len(MEMBERS) * part.records
    try:
        found = pages(Path(where)).entries
    except (ShardError, OSError) as error:
        yield _problem(where, error)
    else:
        if found != total:
            yield Problem(where, f"{found} values, expected {total}")


def _file(split: Split, file: ShardFile) -> Iterator[Problem]:
    where = f"{split.location}/{file.name}"
    try:
        if (size := split.store.size(file.name)) != file.size:
            yield Problem(where, f"{size} bytes, expected {file.size}")
            return
        digest = hashlib.sha256()
        _hash(split, file.name, 0, size, digest)
        if digest.hexdigest() != file.sha256:
            yield _differs(where, digest.hexdigest(), file.sha256)
    except ShardError as error:
        yield _problem(where, error)


def _part(split: Split, name: str, part: Part, step: Callable[[], None]) -> Iterator[Problem]:
    where = f"{split.location}/{part.index.name}"
    rows: list[Row] = []
    try:
        index = split.index(name)
        count = len(index)
    except ShardError as error:
        yield _problem(where, error)
        yield from _without_index(split, name, part)
        return
    for record in range(count):
        try:
            rows.append(index.row(record))
        except ShardError as error:
            yield _problem(where, error)
    if split.manifest.store == "tar":
        for number, shard in enumerate(part.shards):
            of_shard = [row for row in rows if row.shard == number]
            kind = _frame_members if any(row.loose for row in of_shard) else _shard
            yield from kind(split, name, shard, of_shard, step)
        if any(row.shard >= len(part.shards) for row in rows):
            yield Problem(where, f"names shards behind the last, {part.shards[-1].name}")
    else:
        for row in rows:
            yield from _loose(split, name, row)
            step()
    if len(rows) == count:
        yield from _totals(where, part, rows)


def _without_index(split: Split, name: str, part: Part) -> Iterator[Problem]:
    """What the tars alone show: the first damage of each."""
    for number, shard in enumerate(part.shards if split.manifest.store == "tar" else ()):
        where = f"{split.location}/{shard.name}"
        try:
            for _ in scan_tar(split.store.reader(shard.name), split.store.size(shard.name), number, where):
                pass
        except ShardError as error:
            yield _problem(where, error)


def _totals(where: str, part: Part, rows: Sequence[Row]) -> Iterator[Problem]:
    keys = [row.key for row in rows]
    if len(set(keys)) != len(keys):
        yield Problem(where, "two records share a key")
    if len(rows) != part.records or sum(row.frames for row in rows) != part.frames:
        yield Problem(where, f"{len(rows)} records, {sum(row.frames for row in rows)} frames: the manifest says others")
    if not part.index.sha256 and any(row.sha256 == UNKNOWN for row in rows):
        return  # made from the tars' headers: no digest of records is known
    if dataset_digest((row.key, row.label, row.sha256) for row in rows) != part.digest:
        yield Problem(where, f"its records have another digest than the manifest's {part.digest[:12]}...")


def _shard(
    split: Split, part: str, shard: ShardFile, rows: Sequence[Row], step: Callable[[], None]
) -> Iterator[Problem]:
    """What is wrong with a tar. It is read once, record by record, and hashed on the way."""
    where, name, digest, position = _place(split, shard.name), shard.name, hashlib.sha256(), 0
    try:
        size = split.store.size(name)
        if size != shard.size:
            yield Problem(where, f"{size} bytes, expected {shard.size}")
        for row in rows:
            start, stop = row.span(CLS)[0], row.span(RGB)[1]
            if position <= start and stop <= size:
                view = memoryview(split.store.fetch([Range(name, position, stop)])[0])
                digest.update(view)
                spans = {member: row.span(member) for member in MEMBERS}
                blobs = {member: view[a - position : b - position] for member, (a, b) in spans.items()}
                yield from _record(split, row, blobs, where)
                position = stop
            else:
                yield Problem(where, f"record {row.record} ({row.key}) should be bytes {start} to {stop} of {size}")
            step()
        _hash(split, name, position, size, digest)
        if size == shard.size and shard.sha256 and digest.hexdigest() != shard.sha256:
            yield _differs(where, digest.hexdigest(), shard.sha256)
        yield from _structure(split, name, size, rows, where)
        if not shard.sha256:
            yield from _idle(split.store.reader(name), where)
    except ShardError as error:
        yield _problem(where, error)


def _frame_members(
    split: Split, part: str, shard: ShardFile, rows: Sequence[Row], step: Callable[[], None]
) -> Iterator[Problem]:
    """What is wrong with a tar that has a member per frame."""
    where = _place(split, shard.name)
    try:
        size = split.store.size(shard.name)
        if size != shard.size:
            yield Problem(where, f"{size} bytes, expected {shard.size}")
        for row in rows:
            yield from _record(split, row, split.members(part, row), where)
            step()
        for _ in files_of(split.store.reader(shard.name), size, where):
            pass
    except ShardError as error:
        yield _problem(where, error)


def _structure(split: Split, name: str, size: int, rows: Sequence[Row], where: str) -> Iterator[Problem]:
    """Whether the tar's own headers and the index tell the same."""
    known, found = {row.key: row for row in rows}, 0
    for places in records_of(members(split.store.reader(name), size, where), where):
        found += 1
        key = places[CLS].name.partition(".")[0]
        spans = {member: (place.offset, place.offset + place.size) for member, place in places.items()}
        if key not in known:
            yield Problem(where, f"holds a record {key!r} that the index does not know")
        elif spans != {member: known[key].span(member) for member in MEMBERS}:
            yield Problem(where, f"record {key!r} lies elsewhere than the index says")
    if found != len(rows):
        yield Problem(where, f"holds {found} records, the index says {len(rows)}")


def _idle(read: Read, where: str) -> Iterator[Problem]:
    """What is wrong between the members of a tar whose structure is right and whose SHA-256 nobody noted."""
    position = 0
    while any(block := bytes(read(position, position + BLOCK))):
        if block[148:156] != b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * ord(" ")):
            yield Problem(where, f"the checksum in the header at byte {position} is not written as a shard's are")
        stop = position + BLOCK + int(block[124:136].strip(b"\0 "), 8)
        position = -(-stop // BLOCK) * BLOCK
        if any(read(stop, position)):
            yield Problem(where, f"bytes {stop} to {position}, behind a member, are not all zero")


def _loose(split: Split, part: str, row: Row) -> Iterator[Problem]:
    """What is wrong with a record whose members are files or values."""
    where = f"{split.location}/{part}/{row.key}"
    try:
        for member in MEMBERS:
            blob, _, stop = split.store.member(part, row, member)
            if (size := split.store.size(blob)) != stop:
                yield Problem(f"{split.location}/{blob}", f"{size} bytes, expected {stop}")
                return
        yield from _record(split, row, split.members(part, row), where)
    except ShardError as error:
        yield _problem(where, error)


def _record(split: Split, row: Row, blobs: Members, where: str) -> Iterator[Problem]:
    named = f"record {row.record} ({row.key})"
    try:
        record = decode(blobs, f"{where}: {named}")
        found = row_of(row.key, record, blobs, number=row.record, shard=row.shard)
    except ShardError as error:
        yield _problem(where, error)
        return
    unknown = (*(["sha256"] if row.sha256 == UNKNOWN else []), *(["header_size"] if row.loose else []))
    for field in ("label", "frames", "fps", "header_size", "sha256"):
        if field not in unknown and getattr(found, field) != getattr(row, field):
            yield Problem(where, f"{named}: {field} is {getattr(found, field)!r}, in the index {getattr(row, field)!r}")
    if not (_same(found.rgb, row.rgb) and _same(found.flow, row.flow)):
        yield Problem(where, f"{named}: its frame tables differ from those in the index")
    classes = split.manifest.classes
    if not record.label < len(classes) or classes[record.label] != record.class_name:
        yield Problem(where, f"{named}: label {record.label} is {record.class_name!r}, but not in the manifest")


def _same(one: StreamPlace, other: StreamPlace) -> bool:
    plain = ("size", "width", "height", "components")
    return all(getattr(one, field) == getattr(other, field) for field in plain) and bool(
        np.array_equal(one.ends - one.begins(), other.ends - other.begins()) and np.array_equal(one.crcs, other.crcs)
    )


def _hash(split: Split, name: str, start: int, stop: int, digest: Any) -> None:
    read = split.store.reader(name)
    for position in range(start, stop, CHUNK):
        digest.update(read(position, min(position + CHUNK, stop)))


def _place(split: Split, name: str) -> str:
    return split.location if split.location.endswith(name) else f"{split.location}/{name}"


def _differs(where: str, found: str, expected: str) -> Problem:
    return Problem(where, f"SHA-256 {found[:12]}..., expected {expected[:12]}...")


def _problem(where: str, error: Exception) -> Problem:
    return Problem(where, str(error).removeprefix(f"{where}: "))
