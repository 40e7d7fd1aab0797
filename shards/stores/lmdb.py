"""A split as one LMDB: each member of each record is a value, its key `train/<key>.<member>`.

LMDB maps its file, and a file that is shorter than it should be kills the process at the first page that is not there.
So its size is compared with the manifest's, and with what LMDB's own pages say, before it is opened. LMDB also bears
only one environment of a file in a process: the stores of a process share it, and a forked child opens its own.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from shards.errors import CorruptRecordError, FormatError, TruncatedShardError, UnreachableError
from shards.index import Row
from shards.record import Blob
from shards.stores import Range, Stream
from shards.stores.files import Folder
from shards.tar import Read

DATA = "data.mdb"
GAP = 4096  # bytes: a value is mapped, so joining ranges saves a look-up and no more
_MAGIC = 0xBEEFC0DE
_META = struct.Struct(
    "<16x II 16x I 76x QQ QQ"
)  # magic, version; size of a page; entries, root; last page, transaction


def value_key(part: str, key: str, member: str) -> str:
    """The key of a value."""
    return f"{part}/{key}.{member}"


@dataclass(frozen=True, slots=True)
class Pages:
    """What an LMDB says about itself."""

    size: int  # bytes that its file has at least
    entries: int


def pages(path: Path) -> Pages:
    """What the first two pages of a data.mdb say, read as a file. FormatError where it is no LMDB."""
    with path.open("rb") as file:
        first = file.read(_META.size)
        page = _META.unpack(first)[2] if len(first) == _META.size else 0
        file.seek(page)
        metas = [_META.unpack(meta) for meta in (first, file.read(_META.size)) if len(meta) == _META.size]
    if len(metas) < 2 or any(meta[:2] != (_MAGIC, 1) for meta in metas) or not 512 <= page <= 65536:
        raise FormatError(
            f"{path}: not an LMDB of this kind; copy it again with: stmul shards copy SOURCE {path.parent}"
        )
    _, _, _, entries, _, last, _ = max(metas, key=lambda meta: meta[6])  # the newer transaction counts
    return Pages(size=(last + 1) * page, entries=entries)


class LmdbStore:
    """A split in an LMDB, read only, without locks; threads may share it. `size` is data.mdb's by its manifest."""

    gap = GAP

    def __init__(self, folder: Path, size: int | None = None) -> None:
        self.folder, self._expected = folder, size
        self._files = Folder(folder)
        self._shared: _Shared | None = None

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.folder)

    def small(self, name: str) -> bytes:
        """A whole small file, of those that lie beside the database."""
        return self._files.small(name)

    def size(self, blob: str) -> int:
        """Bytes of a value, or of a file of the folder: the keys of values have a slash, files have none."""
        if "/" not in blob:
            return self._files.size(blob)
        with self._lent() as environment, _explained(self.folder), environment.begin(buffers=True) as transaction:
            return len(self._value(transaction, blob))

    def reader(self, blob: str) -> Read:
        """A function (start, stop) -> bytes of a value, or of a file of the folder."""
        if "/" not in blob:
            return self._files.reader(blob)
        return lambda start, stop: self.fetch([Range(blob, start, stop)])[0]

    def place(self, part: str, row: Row, stream: Stream) -> tuple[str, int]:
        """The value that is a stream; its first JPEG is at 0."""
        return value_key(part, row.key, f"video.{stream}.mjpeg"), 0

    def member(self, part: str, row: Row, member: str) -> tuple[str, int, int]:
        """The value that is a member, from its start to its end."""
        start, stop = row.span(member)
        return value_key(part, row.key, member), 0, stop - start

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, in order, copied out of the map."""
        found: list[Blob] = []
        with self._lent() as environment, _explained(self.folder), environment.begin(buffers=True) as transaction:
            for wanted in ranges:
                value = self._value(transaction, wanted.blob)
                if wanted.stop > len(value):
                    raise TruncatedShardError(
                        f"{self.folder / DATA}: {wanted.blob}: expected {wanted.stop - wanted.start} bytes at"
                        f" {wanted.start}, but the value has {len(value)}. Copy the LMDB again"
                    )
                found.append(bytes(value[wanted.start : wanted.stop]))
        return found

    def close(self) -> None:
        """Ends reading; the environment is closed with the last store that uses it."""
        self._files.close()
        with _lock:
            if self._shared is not None:
                self._shared.stores -= 1
                _close_unused(self._shared)
                self._shared = None

    def _value(self, transaction: Any, key: str) -> memoryview:
        value = transaction.get(key.encode())
        if value is None:
            raise FormatError(f"{self.folder / DATA}: has no value {key!r}, though the index does. Copy the LMDB again")
        return memoryview(value)

    @contextmanager
    def _lent(self) -> Iterator[Any]:
        """The environment; it is not closed while it is lent, for that would take pages away from under a reader."""
        with _lock:
            if self._shared is None:
                self._shared = self._joined()
            shared = self._shared
            if shared.environment is None:
                shared.environment = self._opened()
            shared.reads += 1
        try:
            yield shared.environment
        finally:
            with _lock:
                shared.reads -= 1
                _close_unused(shared)

    def _joined(self) -> _Shared:
        """What the stores of this process share for this file, this one counted."""
        path = self.folder / DATA
        try:
            status = path.stat()
            needed = self._expected or 0
            if status.st_size >= needed:
                needed = max(needed, pages(path).size)
        except OSError as error:
            raise UnreachableError(f"{path}: cannot be read: {error.strerror}. Copy the LMDB again") from error
        if status.st_size < needed:
            raise TruncatedShardError(
                f"{path}: {status.st_size} bytes, expected {needed}: its copy was cut. Copy the LMDB again"
            )
        shared = _open.setdefault((status.st_dev, status.st_ino), _Shared())
        shared.stores += 1
        return shared

    def _opened(self) -> Any:
        with _explained(self.folder):
            return lmdb.open(str(self.folder), readonly=True, lock=False, create=False)


@dataclass(slots=True)
class _Shared:
    """An environment, None where it is yet to be opened, and how many stores and reads use it."""

    environment: Any = None
    stores: int = 0
    reads: int = 0


_lock = threading.Lock()
_open: dict[tuple[int, int], _Shared] = {}  # by device and inode: LMDB refuses a second environment of one file


def _close_unused(shared: _Shared) -> None:
    if not shared.stores and not shared.reads:
        for key in [key for key, value in _open.items() if value is shared]:
            del _open[key]
        if shared.environment is not None:
            shared.environment.close()
            shared.environment = None


def _forked() -> None:
    # In a child: its parent's lock may be held by a thread that is not here any more, and so may a read. An environment
    # with such a read cannot be closed, so it is kept: it is read only and without locks, and nothing in it is shared.
    global _lock
    _lock = threading.Lock()
    for shared in _open.values():
        if shared.environment is not None and not shared.reads:
            shared.environment.close()
            shared.environment = None


os.register_at_fork(after_in_child=_forked)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except lmdb.Error as error:
        raise CorruptRecordError(f"{folder / DATA}: damaged: {error}. Copy the LMDB again") from error
