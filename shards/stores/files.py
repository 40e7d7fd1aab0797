"""Files in a folder, read at offsets; and a split whose records lie there as loose files: train/<key>.<member>."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

from shards.errors import TruncatedShardError, UnreachableError
from shards.index import Row
from shards.record import Blob
from shards.stores import Range, Stream
from shards.tar import Read

MOST_OPEN = 128  # files held open: well under what a process may
GAP = 16 * 1024  # bytes: reading them costs less than another call


@dataclass(slots=True)
class _Open:
    handle: int
    users: int = 0


class Folder:
    """The files of a folder, opened when first read and held open; threads and forked children may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Open] = OrderedDict()  # the one used last stands last
        self._most = MOST_OPEN
        _folders.add(self)

    def small(self, name: str) -> bytes:
        """The whole of a file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise self._unreachable(name, error) from error

    def size(self, name: str) -> int:
        """Bytes of a file."""
        try:
            return (self.path / name).stat().st_size
        except OSError as error:
            raise self._unreachable(name, error) from error

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, in order."""
        found: list[Blob] = []
        for wanted in ranges:
            with self._lent(wanted.blob) as handle:
                found.append(self._read(handle, wanted))
        return found

    def reader(self, name: str) -> Read:
        """A function (start, stop) -> bytes of a file."""
        return lambda start, stop: self.fetch([Range(name, start, stop)])[0]

    def close(self) -> None:
        """Closes what is open; what a thread is just reading, when it has read it."""
        with self._lock:
            self._most = 0
            self._shrink()

    def forked(self) -> None:
        """Called in a child: the lock may be held, and files be lent, by threads that are not here any more."""
        self._lock = threading.Lock()
        for file in self._open.values():
            file.users = 0

    @contextmanager
    def _lent(self, name: str) -> Iterator[int]:
        with self._lock:
            file = self._use(name)
        if file is None:
            try:  # without the lock: where a network folder stands still, only its readers do
                handle = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise self._unreachable(name, error) from error
            with self._lock:
                file = self._use(name)
                if file is None:
                    file = self._open[name] = _Open(handle, users=1)
                else:  # another thread was first
                    os.close(handle)
        try:
            yield file.handle
        finally:
            with self._lock:
                file.users -= 1
                self._shrink()

    def _use(self, name: str) -> _Open | None:
        file = self._open.get(name)
        if file is not None:
            self._open.move_to_end(name)
            file.users += 1
        return file

    def _shrink(self) -> None:
        while len(self._open) > self._most:
            name = next((name for name, file in self._open.items() if not file.users), None)
            if name is None:
                return
            os.close(self._open.pop(name).handle)

    def _read(self, handle: int, wanted: Range) -> bytes:
        parts, start = list[bytes](), wanted.start
        try:
            there = os.fstat(handle).st_size
            if wanted.stop > there:  # before memory is set aside for what is not there
                raise self._cut(wanted, max(0, there - start))
            while start < wanted.stop:
                part = os.pread(handle, wanted.stop - start, start)
                if not part:
                    raise self._cut(wanted, start - wanted.start)
                parts.append(part)
                start += len(part)
        except OSError as error:
            raise self._unreachable(wanted.blob, error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _cut(self, wanted: Range, found: int) -> TruncatedShardError:
        return TruncatedShardError(
            f"{self.path / wanted.blob}: expected {wanted.stop - wanted.start} bytes at {wanted.start}, found {found}:"
            f" the file was cut. Copy or build it again; find all damage with: stmul shards verify {self.path}"
        )

    def _unreachable(self, name: str, error: OSError) -> UnreachableError:
        return UnreachableError(
            f"{self.path / name}: cannot be read: {error.strerror}. See what is missing with: stmul shards verify"
            f" {self.path}"
        )


_folders = weakref.WeakSet[Folder]()


def _forked() -> None:
    for folder in list(_folders):
        folder.forked()


os.register_at_fork(after_in_child=_forked)


class FileStore:
    """A split as loose files, as `tar xf` of its shards would give them."""

    gap = GAP
    waste = inf

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = Folder(folder)

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.folder)

    def small(self, name: str) -> bytes:
        """A whole small file."""
        return self._files.small(name)

    def size(self, blob: str) -> int:
        """Bytes of a file."""
        return self._files.size(blob)

    def reader(self, blob: str) -> Read:
        """A function (start, stop) -> bytes of a file."""
        return self._files.reader(blob)

    def place(self, part: str, row: Row, stream: Stream) -> tuple[str, int]:
        """The file of a stream; its first JPEG is at 0."""
        return f"{part}/{row.key}.video.{stream}.mjpeg", 0

    def member(self, part: str, row: Row, member: str) -> tuple[str, int, int]:
        """The file of a member, from its start to its end."""
        start, stop = row.span(member)
        return f"{part}/{row.key}.{member}", 0, stop - start

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, in order."""
        return self._files.fetch(ranges)

    def again(self, wanted: Range) -> Blob:
        """The bytes of a range once more."""
        return self.fetch([wanted])[0]

    def close(self) -> None:
        """Closes the files."""
        self._files.close()
