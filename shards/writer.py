"""Records -> shards, index and manifest: each file whole or absent, the manifest last, equal input giving equal bytes.

Processes may pack shards side by side (`pack_shard`); one `PartWriter` then puts their rows together. Which record goes
into which shard is decided beforehand (`shard_slots`), so that one that fails or is repaired later moves no other.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal

from shards.errors import FormatError, ShardError
from shards.format import MEMBERS, Members, dataset_digest, decode, encode, split_digest
from shards.index import Row, located, records_of, row_of, write_index
from shards.manifest import NAME, Manifest, Part, ShardFile, index_name, write_manifest
from shards.manifest import shard_name as shard_name
from shards.record import Record
from shards.tar import members
from shards.whole import sync_folder, unwritable
from shards.whole import whole as whole

OWNER = "stmul"  # in every tar header, whoever writes
PIECE = 1 << 20  # bytes that small pieces are gathered into before they are hashed and written
AHEAD = 1 << 23  # bytes after which the disk is set to work, so that the end of a shard is not waited for


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A shard that was written: the file and its rows, numbered from 0."""

    file: ShardFile
    rows: tuple[Row, ...]


def shard_slots(keys: Sequence[str], per_shard: int) -> list[list[str]]:
    """Which keys go into which shard: permuted by a hash of the key, then cut into `per_shard` each.

    Official lists are sorted by class; a shard should not be. The hash alone decides, whatever the order of `keys`.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard {per_shard}: a shard holds at least one record")
    order = sorted(keys, key=lambda key: (hashlib.sha256(key.encode()).digest(), key))
    return [order[start : start + per_shard] for start in range(0, len(order), per_shard)]


def pack_shard(path: Path, records: Iterable[tuple[str, Members | Record]], *, shard: int | None = None) -> Packed:
    """Writes a tar of `records` (key, members), whole or not at all; what was written, with its checksums.

    Records are checked, written and forgotten one at a time; one that comes as a Record was just made, and its JPEGs
    are not checked again. `shard` is the shard's number (None: the one in its name).
    Raises FormatError or CorruptRecordError for a record that is not whole, ShardError where the disk is full.
    """
    number, rows, keys = _number(path) if shard is None else shard, list[Row](), set[str]()
    with whole(path) as file, _Hashed(file) as hashed:
        # Without times, and with fixed owners and modes: equal records give equal bytes. The writer sorts members by
        # name, which is their order; a name too long for a plain header gets an extended one.
        tar = _tar_writer()(hashed, user=OWNER, group=OWNER, mode=0o444, mtime=0, encoder=False, compress=False)
        # Between the two stands a buffer that cuts all into pieces of 10 KiB, as tapes want them: members go past it
        # at once, and are not copied.
        tar.tarstream.fileobj, tar.tarstream.copybufsize = hashed, sys.maxsize
        for key, made in records:
            if key in keys:
                raise FormatError(f"{path}: a second record with the key {key!r}; the names of videos must differ")
            keys.add(key)
            blobs = encode(made) if isinstance(made, Record) else made
            record = made if isinstance(made, Record) else decode(blobs, f"{path}: record {key!r}")
            rows.append(row_of(key, record, blobs, number=len(rows), shard=number))
            tar.write({"__key__": key, **{member: bytes(blobs[member]) for member in MEMBERS}})
        tar.close()
        hashed.flush()
        rows = _located(rows, Path(file.name), hashed.size)
    written = ShardFile(name=path.name, size=hashed.size, sha256=hashed.digest.hexdigest(), records=len(rows))
    return Packed(file=written, rows=tuple(rows))


def write_shard(path: Path, records: Iterable[tuple[str, Members]]) -> list[Row]:
    """`pack_shard` for those who want the rows alone."""
    return list(pack_shard(path, records).rows)


class PartWriter:
    """Puts a part together, shard by shard, in the folder of its split."""

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part
        self._files: list[ShardFile] = []
        self._rows: list[Row] = []

    def write(self, records: Iterable[tuple[str, Members]]) -> Packed:
        """Packs `records` as the next shard."""
        number = len(self._files)
        packed = pack_shard(self.folder / shard_name(self.part, number), records, shard=number)
        self.add(packed)
        return packed

    def add(self, packed: Packed) -> None:
        """Takes over a shard that was packed elsewhere as the next one; it must have its number."""
        number, first = len(self._files), len(self._rows)
        if packed.file.name != shard_name(self.part, number) or any(row.shard != number for row in packed.rows):
            raise FormatError(f"{self.folder}: {packed.file.name} cannot follow {number} shards of {self.part}")
        self._files.append(packed.file)
        self._rows += [replace(row, record=first + i) for i, row in enumerate(packed.rows)]

    def finish(self) -> Part:
        """Writes the index. Raises FormatError where two records share a key."""
        return finish_part(self.folder, self.part, self._rows, tuple(self._files), len(self._files))


def finish_part(folder: Path, part: str, rows: Sequence[Row], files: tuple[ShardFile, ...], shards: int) -> Part:
    """Writes the index of a part whose bytes are stored in `files`; what the manifest says about it."""
    if len({row.key for row in rows}) != len(rows):
        seen = set[str]()
        twice = next(row.key for row in rows if row.key in seen or seen.add(row.key))  # type: ignore[func-returns-value]
        raise FormatError(f"{folder}: {part} has two records with the key {twice!r}; the names of videos must differ")
    path = folder / index_name(part)
    write_index(path, rows, shards)
    with path.open("rb") as index:  # of a large part it does not fit into memory
        digest = hashlib.file_digest(index, "sha256").hexdigest()
    return Part(
        shards=files,
        index=ShardFile(name=path.name, size=path.stat().st_size, sha256=digest, records=len(rows)),
        records=len(rows),
        frames=sum(row.frames for row in rows),
        digest=dataset_digest((row.key, row.label, row.sha256) for row in rows),
    )


def finish_split(
    folder: Path,
    *,
    dataset: str,
    split: int,
    classes: Sequence[str],
    made: Mapping[str, Any],
    parts: Mapping[str, Part],
    store: Literal["tar", "lmdb", "files"] = "tar",
) -> Manifest:
    """Writes the manifest, which makes the split complete."""
    manifest = Manifest(
        dataset=dataset,
        split=split,
        classes=tuple(classes),
        parts=dict(parts),
        made=dict(made),
        store=store,
        digest=split_digest({name: part.digest for name, part in parts.items()}),
    )
    write_manifest(folder / NAME, manifest)
    return manifest


def write_split(
    folder: Path,
    *,
    dataset: str,
    split: int,
    classes: Sequence[str],
    made: Mapping[str, Any],
    parts: Mapping[str, Iterable[Iterable[tuple[str, Members]]]],
) -> Manifest:
    """Writes a split: each part's shards (an iterable of records for each), its index, then the manifest.

    Holds one record at a time, and the rows. An older manifest in `folder` goes first, so that what is half written
    never passes for whole. Raises as `pack_shard`.
    """
    start_split(folder)
    finished = {}
    for part, shards in parts.items():
        writer = PartWriter(folder, part)
        for records in shards:
            writer.write(records)
        finished[part] = writer.finish()
    return finish_split(folder, dataset=dataset, split=split, classes=classes, made=made, parts=finished)


def start_split(folder: Path) -> None:
    """Makes the folder, and takes away an older manifest. Raises ShardError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise unwritable(folder, error) from error


class _Hashed:
    """A file to write through: its SHA-256 and its size are known after `flush`.

    After the block nothing is written any more: a tar that was given up still tries to, when it is collected.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.digest, self.size = hashlib.sha256(), 0
        self._file: BinaryIO | None = file
        self._waiting = bytearray()  # a tar's headers and padding come in small pieces
        self._begun = 0  # bytes that the disk was told of

    def __enter__(self) -> _Hashed:
        return self

    def __exit__(self, *_: object) -> None:
        self._file = None

    def write(self, data: bytes) -> int:
        """Takes all of `data`."""
        if len(data) < PIECE:
            self._waiting += data
            if len(self._waiting) >= PIECE:
                self.flush()
        else:
            self.flush()
            self._put(data)
        return len(data)

    def flush(self) -> None:
        """Writes what is waiting."""
        self._put(self._waiting)
        self._waiting = bytearray()

    def close(self) -> None:
        """Writes what is waiting; the file itself is its opener's to close."""
        self.flush()

    def _put(self, data: bytes | bytearray) -> None:
        if self._file is not None:
            self._file.write(data)
            self._file.flush()
            self.digest.update(data)
            self.size += len(data)
            if self.size - self._begun >= AHEAD and hasattr(os, "posix_fadvise"):
                # Linux begins to write what is dirty and does not wait; nothing is dropped that is not yet written.
                os.posix_fadvise(self._file.fileno(), self._begun, self.size - self._begun, os.POSIX_FADV_DONTNEED)
                self._begun = self.size


@cache
def _tar_writer() -> Any:
    """webdataset's TarWriter, from its module alone: the whole package loads torch, which takes seconds."""
    if "webdataset" in sys.modules:
        return import_module("webdataset.writer").TarWriter
    found = find_spec("webdataset")
    if found is None or found.submodule_search_locations is None:
        raise ShardError("webdataset is not installed, which writes shards: pip install webdataset")
    package = ModuleType("_webdataset_alone")  # by another name: who imports webdataset later gets all of it
    package.__path__ = list(found.submodule_search_locations)
    sys.modules[package.__name__] = package
    return import_module(f"{package.__name__}.writer").TarWriter


def _located(rows: Sequence[Row], path: Path, size: int) -> list[Row]:
    """The rows with the places where their members lie in the tar at `path`, as its headers say."""
    with path.open("rb") as file:
        listing = members(lambda start, stop: os.pread(file.fileno(), stop - start, start), size, str(path))
        return [located(row, places) for row, places in zip(rows, records_of(listing, str(path)), strict=True)]


def _number(path: Path) -> int:
    found = re.search(r"-(\d+)\.tar$", path.name)
    return int(found[1]) if found else 0
