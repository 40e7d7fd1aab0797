"""A split in another store: tar shards, LMDB or loose files, each from each; the same records, the same digest.

Shards to shards go file by file, whole, and a copy that was interrupted goes on with the files it has; every other way
goes record by record, and begins anew.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import lmdb

from shards.errors import CorruptRecordError, ShardError
from shards.format import MEMBERS, Members, decode, key_of, record_sha256
from shards.index import Row, row_of
from shards.manifest import NAME, Manifest, Part, ShardFile, dump_manifest, parse_manifest
from shards.partial import clear, held, room, tidy
from shards.split import Split, open_split
from shards.stores.connect import is_url, place_of
from shards.stores.lmdb import DATA, value_key
from shards.stream import in_order
from shards.transfer import counted, difference, fetch_file, files_of
from shards.whole import sync_folder, unwritable, whole
from shards.writer import PartWriter, finish_part, finish_split

Kind = Literal["tar", "lmdb", "files"]
Progress = Callable[[int, int], None]  # done, in all: records or bytes

PAGE = max(4096, mmap.PAGESIZE)  # LMDB's are the machine's
PENDING = 64 << 20  # bytes written in one transaction, which LMDB keeps in memory
THREADS = 4  # reading ahead: a store behind a network answers several at once


def kind_of(target: Path) -> Kind:
    """What a copy to `target` becomes: *.lmdb an LMDB, *.files loose files, all else tar shards."""
    kinds: dict[str, Kind] = {".lmdb": "lmdb", ".files": "files"}
    return kinds.get(target.suffix, "tar")


def copy_split(
    source: str | Path, target: str | Path, progress: Progress | None = None, moved: Progress | None = None
) -> Manifest:
    """Copies a split to the folder `target`, which is whole or absent; its manifest. Every byte is checked.

    Where `target` already is this very split in this store, nothing is done. `progress(done, total)` counts records,
    `moved(done, total)` bytes where shards are copied as they are; what is whole of such a copy stays in
    `TARGET.partial` when it is interrupted, and the next goes on from there. Raises ShardError where `target` holds
    anything else, or the disk is full; what reading `source` raises.
    """
    if is_url(str(target)):
        raise ShardError(f"{place_of(str(target)).shown}: expected a folder; shards.publish.publish sends to a bucket")
    path = Path(target)
    kind = kind_of(path)
    with open_split(source, thorough=True) as split:
        if (there := _there(path, split, kind)) is not None:
            return there
        partial = path.with_name(path.name + ".partial")
        if kind == split.manifest.store == "tar" and all(file.sha256 for file in files_of(split.manifest)):
            _move(split, partial, path, moved)
            return split.manifest
        room(path, sum(_size(row) for part in split.manifest.parts for row in split.index(part)))
        try:
            clear(partial)
            partial.mkdir(parents=True)
            manifest = _write(split, partial, kind, _counted(split, progress))
            partial.replace(path)
            sync_folder(path.parent)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError | lmdb.Error):
                raise unwritable(path, error) from error
            raise
        return manifest


def _move(split: Split, partial: Path, path: Path, moved: Progress | None) -> None:
    """Brings the files of `split`, each as it is, into `partial`, which then becomes `path`."""
    files = files_of(split.manifest)
    passed = counted(sum(file.size for file in files), moved)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with held(partial):
            tidy(partial, {file.name for file in files})
            there = [file for file in files if not difference(partial / file.name, file)]
            passed(sum(file.size for file in there))
            missing = [file for file in files if file not in there]
            room(path, sum(file.size for file in missing))
            for file in missing:
                fetch_file(split.store, file, partial, passed)
            with whole(partial / NAME) as manifest:
                manifest.write(dump_manifest(split.manifest))
            partial.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


def _there(path: Path, split: Split, kind: Kind) -> Manifest | None:
    """The manifest of `path` if it is the same split, None if nothing is there."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if (path / NAME).is_file():
        manifest = parse_manifest((path / NAME).read_bytes(), str(path / NAME))
        if (manifest.digest, manifest.store) == (split.manifest.digest, kind):
            return manifest
        found, wanted = manifest.digest[:12], split.manifest.digest[:12]
        raise ShardError(
            f"{path}: already holds another split ({manifest.dataset} {manifest.split} as {manifest.store}, digest"
            f" {found}..., not {wanted}...). Give another target, or delete this one"
        )
    raise ShardError(f"{path}: exists and is no split. Give another target, or delete this one")


def _write(split: Split, folder: Path, kind: Kind, records: Records) -> Manifest:
    parts = {"tar": _to_tar, "lmdb": _to_lmdb, "files": _to_files}[kind](split, folder, records)
    old = split.manifest
    manifest = finish_split(
        folder, dataset=old.dataset, split=old.split, classes=old.classes, made=old.made, parts=parts, store=kind
    )
    if manifest.digest != old.digest:
        raise CorruptRecordError(
            f"{split.location}: its records have the digest {manifest.digest[:12]}..., but its manifest says"
            f" {old.digest[:12]}.... Find all damage with: stmul shards verify {split.location}"
        )
    return manifest


Records = Callable[[str, Sequence[Row]], Iterator[tuple[Row, Members]]]


def _counted(split: Split, progress: Progress | None) -> Records:
    """A function (part, rows) -> the checked members of those records, in order; it counts them."""
    total, done = sum(part.records for part in split.manifest.parts.values()), 0

    def records(part: str, rows: Sequence[Row]) -> Iterator[tuple[Row, Members]]:
        nonlocal done
        with closing(checked_records(split, part, rows)) as checked:  # type: ignore[type-var]  # a generator
            for one in checked:
                yield one
                done += 1
                if progress is not None:
                    progress(done, total)

    return records


def checked_records(split: Split, part: str, rows: Sequence[Row]) -> Iterator[tuple[Row, Members]]:
    """The rows and the members of records, in order, every byte checked; some are read ahead.

    A record with a member per frame gets the row of its four members. Raises CorruptRecordError where one is not what
    its row says; what reading it raises.
    """
    checked = in_order(rows, lambda row: _checked(split, part, row), threads=THREADS, ahead=THREADS)
    with closing(checked):  # type: ignore[type-var]  # a generator
        yield from checked


def _checked(split: Split, part: str, row: Row) -> tuple[Row, Members]:
    """The members of a record, and its row; one with a member per frame gets that of its four members."""
    members, where = split.members(part, row), f"{split.location}: {part} record {row.record} ({row.key})"
    record = decode(members, where)
    if record_sha256(members) != row.sha256 or key_of(record.name) != row.key:
        raise CorruptRecordError(f"{where}: is another record than the index says; copy or build the split again")
    if row.loose:
        row = row_of(row.key, record, members, number=row.record, shard=row.shard)
    return row, members


def _to_tar(split: Split, folder: Path, records: Records) -> dict[str, Part]:
    parts = {}
    for part in split.manifest.parts:
        index, writer = split.index(part), PartWriter(folder, part)
        of_shard: list[list[Row]] = [[] for _ in range(index.shards)]
        for row in index:
            of_shard[row.shard].append(row)
        for rows in of_shard:
            writer.write((row.key, members) for row, members in records(part, rows))
        parts[part] = writer.finish()
    return parts


def _to_lmdb(split: Split, folder: Path, records: Records) -> dict[str, Part]:
    rows = {part: list(split.index(part)) for part in split.manifest.parts}
    written: dict[str, list[Row]] = {part: [] for part in rows}
    # Each value takes whole pages, and its key a place in a leaf; half as much again for what a transaction rewrites.
    pages = sum(-(-_size(row) // PAGE) + 2 * len(MEMBERS) for part in rows.values() for row in part)
    map_size = (pages + pages // 2) * PAGE + PENDING
    environment = lmdb.open(str(folder), map_size=map_size, lock=False, sync=False, mode=0o644)
    with closing(environment):
        for part, part_rows in rows.items():
            pending: list[tuple[bytes, Any]] = []
            for row, members in records(part, part_rows):
                written[part].append(row)
                pending += [(value_key(part, row.key, member).encode(), members[member]) for member in MEMBERS]
                if sum(len(value) for _, value in pending) > PENDING:
                    _put(environment, pending)
                    pending = []
            _put(environment, pending)
        environment.sync(True)
    with (folder / DATA).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = (folder / DATA).stat().st_size
    return {
        part: finish_part(
            folder,
            part,
            part_rows,
            (ShardFile(name=DATA, size=size, sha256=sha256, records=len(part_rows)),),
            split.index(part).shards,
        )
        for part, part_rows in written.items()
    }


def _put(environment: Any, values: Sequence[tuple[bytes, Any]]) -> None:
    with environment.begin(write=True) as transaction:
        for key, value in values:
            transaction.put(key, value)


def _to_files(split: Split, folder: Path, records: Records) -> dict[str, Part]:
    parts = {}
    for part in split.manifest.parts:
        index, written = split.index(part), list[Row]()
        (folder / part).mkdir()
        for row, members in records(part, list(index)):
            written.append(row)
            for member in MEMBERS:
                (folder / part / f"{row.key}.{member}").write_bytes(members[member])
        parts[part] = finish_part(folder, part, written, (), index.shards)
    os.sync()  # thousands of files: waiting once, and not for each
    return parts


def _size(row: Row) -> int:
    """Bytes of a record's members."""
    return sum(stop - start for start, stop in (row.span(member) for member in MEMBERS))
