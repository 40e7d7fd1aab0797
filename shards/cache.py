"""Whole files from afar, kept on this machine: bounded by bytes, shared by its processes and threads, whole or absent.

    FOLDER/shards/<name>                  a file; where its SHA-256 is known, it was verified. Its time is its last use
    FOLDER/shards/<name>.<size>.partial   one on its way; it counts as `size` bytes from the first one on

A name is 64 hexadecimal digits. Whatever has another name is neither counted nor removed.

Everything is agreed by flock, which the kernel ends with the process, so a kill at any moment leaves nothing to clean:

    the folder     exclusive, for an instant: making room, beginning, publishing, dropping
    a partial      exclusive, while it is downloaded; whoever finds it free goes on from its length
    a file         shared, while it is read; what cannot be locked exclusively is in use, and stays

A lock counts only if the path still names what was locked: that may have been removed between opening and locking.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shards.errors import CorruptRecordError, ShardError, TruncatedShardError
from shards.held import Held, Holds
from shards.manifest import NAME
from shards.record import Blob
from shards.whole import unwritable

Source = Callable[[int], Iterator[Blob]]  # the bytes of a file from an offset on, in order
Stop = Callable[[], bool]  # whether nobody waits any more

TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Shards that can be fetched again: see https://bford.info/cachedir/\n"
BLOCK = 1 << 20  # bytes hashed at a time
TOUCH = 0.1  # seconds within which two uses of a file are one
SHORTEST, LONGEST = 0.01, 0.1  # seconds between two looks at what others do

_NAME = re.compile(r"[0-9a-f]{64}")
_PARTIAL = re.compile(r"[0-9a-f]{64}\.([0-9]{1,19})\.partial")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """A file as the cache knows it."""

    name: str  # its SHA-256, or 64 digits that stand for its place and version
    size: int  # bytes
    sha256: str  # hexadecimal; empty where nobody noted it
    where: str  # for messages, without credentials


class Cache:
    """The files kept in `folder`, never more than `limit` bytes. Threads, processes and forks may share it.

    Nobody is waited for longer than `patience` seconds in which nothing moves. Raises ShardError where the folder holds
    a split: that is no copy.
    """

    def __init__(self, folder: Path, limit: int, *, patience: float = 240.0) -> None:
        if (folder / NAME).exists():
            raise ShardError(f"{folder}: holds a split, so it is no place for a cache; name another folder")
        self.folder, self.limit, self.patience = folder / "shards", limit, patience
        self._holds = Holds()

    def find(self, wanted: Wanted) -> Held | None:
        """The file where it is here and has its size, else None; it counts as used now."""
        try:
            held = self._holds.locked(self._path(wanted), os.O_RDONLY | os.O_NOFOLLOW, exclusive=False)
        except OSError:  # nothing that can be read
            return None
        if held is not None:
            said = os.fstat(held.handle)
            if said.st_size != wanted.size or not stat.S_ISREG(said.st_mode):
                held.close()  # damaged: who downloads it will replace it
                return None
            if time.time() - said.st_mtime > TOUCH:
                with suppress(OSError):  # another user's file
                    os.utime(held.handle)
        return held

    def get(self, wanted: Wanted, source: Source, stop: Stop) -> Held:
        """The file, downloaded through `source` unless it is here, or another thread or process is about it.

        What was not used for longest makes room. Raises CorruptRecordError where the SHA-256 is another one, twice;
        ShardError where there is no room, the disk is full, or `stop()` says so; and whatever `source` raises.
        """
        if wanted.size > self.limit:
            raise ShardError(f"{wanted.where}: {self._needed(wanted)}")
        patience = _Patience(self.patience, wanted.where, stop)
        while True:
            begun = self.find(wanted) or self._begun(wanted, patience)
            if begun is None:
                continue
            if begun.path == self._path(wanted):
                return begun
            with begun:
                try:
                    _fill(begun, wanted, source, stop)
                    held = self._published(begun, wanted)
                except BaseException:
                    self._tidied(begun, wanted)
                    raise
            if held is not None:
                return held

    def drop(self, held: Held) -> None:
        """Forgets a file that was found damaged, unless it was replaced meanwhile. Who reads it may read on."""
        with self._alone(self._patience(held.path)):
            if held.still_named():
                held.path.unlink()

    def _begun(self, wanted: Wanted, patience: _Patience) -> Held | None:
        """The file, if others have published it; its partial, which is ours now; None after waiting a moment."""
        path = self._partial(wanted)
        with self._alone(patience):
            if (held := self.find(wanted)) is not None:
                return held
            there = path.exists()
            partial = self._writable(path) if there else None
            busy = there and partial is None
            if not busy and self._room(0 if there else wanted.size, keep=path):
                return partial or self._writable(path, os.O_CREAT)
            if partial is not None:
                partial.close()
            lengths = {entry.path: entry.length for entry in self._entries()}
        if busy:
            patience.wait(lengths.get(path), f"another process is downloading it to {path}")
        else:
            patience.wait(lengths, self._needed(wanted))
        return None

    def _published(self, partial: Held, wanted: Wanted) -> Held | None:
        """The file under its name; None where somebody cleared the folder meanwhile."""
        with _written(partial):
            os.fsync(partial.handle)
        with self._alone(self._patience(wanted.where)):  # so that nobody takes it away before it is held
            if not partial.still_named():
                return None
            with suppress(FileNotFoundError):
                partial.path.replace(self._path(wanted))
            partial.close()
            return self.find(wanted)

    def _tidied(self, partial: Held, wanted: Wanted) -> None:
        """Removes a partial in which nothing is left that would be of use to the next."""
        if partial.handle >= 0 and not os.fstat(partial.handle).st_size:
            with self._alone(self._patience(wanted.where)):
                if partial.still_named():
                    partial.path.unlink()

    def _room(self, needed: int, keep: Path) -> bool:
        """Whether `needed` more bytes may come: removes for it what was not used for longest, and nothing in vain."""
        entries = self._entries()
        excess = sum(entry.size for entry in entries) + needed - self.limit
        victims: list[Held] = []
        try:
            for entry in entries:
                if excess <= 0:
                    break
                if entry.path != keep and (victim := self._writable(entry.path)) is not None:
                    victims.append(victim)
                    excess -= entry.size
            if excess <= 0:
                for victim in victims:
                    victim.path.unlink(missing_ok=True)
        finally:
            for victim in victims:
                victim.close()
        return excess <= 0

    def _entries(self) -> list[_Entry]:
        """What counts, the least recently used first."""
        found = []
        for path in self._paths():
            partial = _PARTIAL.fullmatch(path.name)
            if partial or _NAME.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    said = path.lstat()
                    if stat.S_ISREG(said.st_mode):
                        size = int(partial[1]) if partial else said.st_size
                        found.append(_Entry(said.st_mtime_ns, path, size, said.st_size))
        return sorted(found, key=lambda entry: (entry.used, entry.path))

    def _paths(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except FileNotFoundError:  # somebody is clearing it
            return []

    @contextmanager
    def _alone(self, patience: _Patience) -> Iterator[None]:
        """Inside the block nobody else begins, publishes or removes anything; it must be short."""
        while True:
            try:
                if not self.folder.is_dir():
                    self.folder.mkdir(parents=True, exist_ok=True)
                    (self.folder / "CACHEDIR.TAG").write_bytes(TAG)  # backups then pass it over
                folder = self._holds.locked(self.folder, os.O_RDONLY | os.O_DIRECTORY, exclusive=True)
                if folder is not None:
                    with folder:
                        yield
                    return
            except OSError as error:
                raise unwritable(self.folder, error) from error
            patience.wait("folder", f"{self.folder} is locked")

    def _writable(self, path: Path, create: int = 0) -> Held | None:
        # For writing even where nothing will be written: network file systems give no other exclusive lock.
        try:
            return self._holds.locked(path, os.O_RDWR | os.O_NOFOLLOW | create, exclusive=True)
        except PermissionError:
            if create:
                raise
            return None  # another user's

    def _path(self, wanted: Wanted) -> Path:
        assert _NAME.fullmatch(wanted.name), wanted.name
        return self.folder / wanted.name

    def _partial(self, wanted: Wanted) -> Path:
        return self.folder / f"{wanted.name}.{wanted.size}.partial"

    def _patience(self, where: object) -> _Patience:
        return _Patience(self.patience, str(where))

    def _needed(self, wanted: Wanted) -> str:
        in_use = "" if wanted.size > self.limit else ", all of it in use"
        return (
            f"{wanted.size} bytes are needed in {self.folder}, which may hold {self.limit}{in_use}. Allow more"
            " (data.cache_limit), or read by ranges (data.access=ranges)"
        )


@dataclass(frozen=True, slots=True)
class _Entry:
    used: int  # ns
    path: Path
    size: int  # bytes it has or will have
    length: int  # bytes it has


class _Patience:
    """Short sleeps while others work: until told to stop, or until nothing has moved for too long."""

    def __init__(self, seconds: float, where: str, stop: Stop = lambda: False) -> None:
        self._seconds, self._where, self._stop = seconds, where, stop
        self._pause, self._since, self._seen = SHORTEST, time.monotonic(), object()

    def wait(self, seen: object, problem: str) -> None:
        """Returns after a moment. Raises ShardError with `problem` where `seen` has been the same for too long."""
        _must_go_on(self._where, self._stop)
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        if (waited := time.monotonic() - self._since) > self._seconds:
            raise ShardError(f"{self._where}: {problem}; nothing has moved for {waited:.0f} s")
        time.sleep(self._pause)
        self._pause = min(LONGEST, 1.5 * self._pause)


def _fill(partial: Held, wanted: Wanted, source: Source, stop: Stop) -> None:
    """Downloads what is missing; where the digest of all of it is wrong, everything once more.

    Raises what `get` does; what is then of no use to the next has been cut away.
    """
    found = ""
    for again in (False, True):
        if again:
            os.ftruncate(partial.handle, 0)
        digest = hashlib.sha256()
        length = os.fstat(partial.handle).st_size
        with _written(partial):
            for start in range(0, length if wanted.sha256 else 0, BLOCK):
                _must_go_on(wanted.where, stop)
                digest.update(os.pread(partial.handle, BLOCK, start))
        with closing(_rest(wanted, source, length)) as blobs:
            for blob in blobs:
                _must_go_on(wanted.where, stop)
                if length + len(blob) > wanted.size:
                    os.ftruncate(partial.handle, 0)
                    raise CorruptRecordError(
                        f"{wanted.where}: more came than the {wanted.size} bytes that were expected: it is another file"
                        " than the manifest names. Copy both there again"
                    )
                with _written(partial):
                    _write(partial.handle, length, memoryview(blob))
                digest.update(blob if wanted.sha256 else b"")
                length += len(blob)
        if length < wanted.size:
            raise TruncatedShardError(
                f"{wanted.where}: expected {wanted.size} bytes, found {length}: its copy was cut, or it is another file"
                " than the manifest names. Copy it there again"
            )
        if not wanted.sha256 or (found := digest.hexdigest()) == wanted.sha256:
            return
    os.ftruncate(partial.handle, 0)
    raise CorruptRecordError(
        f"{wanted.where}: came with SHA-256 {found}, twice, expected {wanted.sha256}: it is damaged, or another file"
        " than the manifest names. Copy it there again"
    )


def _rest(wanted: Wanted, source: Source, start: int) -> Generator[Blob, None, None]:
    if start < wanted.size:
        yield from source(start)


def _write(handle: int, at: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written


@contextmanager
def _written(partial: Held) -> Iterator[None]:
    """What fails in the block fails on this machine's disk: gives back the space, and says so."""
    try:
        yield
    except OSError as error:
        os.ftruncate(partial.handle, 0)
        raise unwritable(partial.path, error) from error


def _must_go_on(where: str, stop: Stop) -> None:
    if stop():
        raise ShardError(f"{where}: closed while it was being fetched")
