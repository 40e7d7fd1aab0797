"""A split behind a URL, by ranges or as whole shards that are kept on this machine.

ranges   the bytes that are used, and nothing is kept
shards   every shard as a whole, when it is first wanted
both     what is kept is read there; the rest by ranges at once, while one shard after the other is fetched
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, InvalidStateError, wait
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from shards.access import Access
from shards.cache import BLOCK, Cache, Wanted
from shards.errors import ShardError, TruncatedShardError, UnreachableError
from shards.held import Held
from shards.index import Row
from shards.manifest import ShardFile
from shards.record import Blob
from shards.stores import Range, Stream
from shards.stores.files import GAP
from shards.stores.hands import Hands
from shards.stores.later import Later
from shards.stores.remote import RemoteStore, WithoutRanges
from shards.tar import Read

AT_ONCE = 4  # shards of one reader on their way at the same time

_log = logging.getLogger("shards")


class CachedStore:
    """`store` and what of it is kept on this machine. Threads may share it; a fork may read what is kept.

    `files` are the shards; anything else (an index) is read by ranges wherever that is possible.
    """

    def __init__(self, store: RemoteStore, access: Access, files: Mapping[str, ShardFile]) -> None:
        self._remote, self._access, self._files = store, access, dict(files)
        fits = access.cache is not None and sum(file.size for file in files.values()) <= access.cache_limit
        self._mode: Literal["ranges", "shards", "both"]
        self._mode = access.mode if access.mode != "auto" else "both" if fits else "ranges"
        self._without_ranges = False  # whether the server has been found to send whole files only
        self._entries: dict[str, Wanted] = {}
        self._cache = None if self._mode == "ranges" else self._new_cache()
        self._begin()
        _stores.add(self)

    @property
    def location(self) -> str:
        """The URL without what is secret in it."""
        return self._remote.location

    @property
    def gap(self) -> int:
        """Bytes between two ranges of a blob under which one read is cheaper than two."""
        return GAP if self._mode == "shards" else self._remote.gap

    @property
    def waste(self) -> float:
        """How many unwanted bytes may be read between wanted ones, as a share of these."""
        return self._remote.waste

    def small(self, name: str) -> bytes:
        """A whole small file, as it is there now."""
        return self._remote.small(name)

    def size(self, blob: str) -> int:
        """Bytes of a blob, as it is there now."""
        return self._remote.size(blob)

    def place(self, part: str, row: Row, stream: Stream) -> tuple[str, int]:
        """The shard of a record, and where in it the JPEGs of `stream` begin."""
        return self._remote.place(part, row, stream)

    def member(self, part: str, row: Row, member: str) -> tuple[str, int, int]:
        """The shard of a record, and where in it `member` begins and ends."""
        return self._remote.member(part, row, member)

    def reader(self, blob: str) -> Read:
        """A function (start, stop) -> bytes for scanning `blob`, as it is there now unless whole shards are fetched."""
        ahead = None if self._whole(blob) else self._remote.reader(blob)

        def read(start: int, stop: int) -> Blob:
            if ahead is not None and not self._whole(blob):
                try:
                    return ahead(start, stop)
                except WithoutRanges:
                    self._go_without_ranges()
            return self.fetch([Range(blob, start, stop)])[0]

        return read

    def whole(self, blob: str) -> Iterator[Blob]:
        """The bytes of `blob` in order, as it is there now, for those who keep them elsewhere: nothing is kept here."""
        return self._remote.whole(blob)

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, in order.

        Raises what the remote store and the cache do; ShardError where it was closed meanwhile.
        """
        left: dict[str, list[int]] = {}
        for number, wanted in enumerate(ranges):
            if wanted.stop > wanted.start:
                left.setdefault(wanted.blob, []).append(number)
        found: list[Blob] = [b""] * len(ranges)

        def keep(numbers: Sequence[int], blobs: Sequence[Blob]) -> None:
            for number, blob in zip(numbers, blobs, strict=True):
                found[number] = blob

        def of(numbers: Sequence[int]) -> list[Range]:
            return [ranges[number] for number in numbers]

        for blob, numbers in list(left.items()):
            if (kept := self._kept(blob, of(numbers))) is not None:
                keep(left.pop(blob), kept)
        missing = [blob for blob in left if not self._whole(blob)]
        if missing:
            numbers = [number for blob in missing for number in left[blob]]
            if self._mode == "both":
                self._later.want([blob for blob in missing if blob in self._files])
            try:
                keep(numbers, self._remote.fetch(of(numbers)))
            except WithoutRanges:
                self._go_without_ranges()
            else:
                left = {blob: numbers for blob, numbers in left.items() if blob not in missing}
        begun = {blob: self._hands.begin(partial(self._from_whole, blob, of(left[blob]))) for blob in left}
        for blob, future in begun.items():
            keep(left[blob], self._result(future))
        return found

    def again(self, wanted: Range) -> Blob:
        """The bytes of a range once more, past what is kept; where that is to blame, it is forgotten."""
        if not self._without_ranges:
            try:
                fresh = self._remote.again(wanted)
            except WithoutRanges:
                self._go_without_ranges()
            else:
                if (kept := self._kept(wanted.blob, [wanted])) is not None and kept[0] != fresh:
                    self._forget(wanted.blob)
                return fresh
        self._forget(wanted.blob)  # the whole of it must come once more, unless it is known to be as it was written
        return self._result(self._hands.begin(partial(self._from_whole, wanted.blob, [wanted])))[0]

    def close(self) -> None:
        """Ends reading; what is half downloaded stays for the next. Who waits gets ShardError."""
        self._end()
        self._remote.close()
        self._later.join()

    def forked(self) -> None:
        """Called in a child: threads are not here any more, and what they locked may be locked for ever."""
        ended = self._hands.closed
        self._begin()
        if ended:
            self._end()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._closed = Future[None]()
        self._hands = Hands(AT_ONCE, "shards-whole", awaited=True)  # they may be inside obstore
        self._later = Later(self._download)

    def _end(self) -> None:
        with suppress(InvalidStateError):  # closed before
            self._closed.set_result(None)
        self._later.end()
        self._hands.close()

    def _whole(self, blob: str) -> bool:
        """Whether `blob` is only read as a whole."""
        return self._without_ranges or (self._mode == "shards" and blob in self._files)

    def _kept(self, blob: str, ranges: Sequence[Range]) -> list[Blob] | None:
        """The ranges of a blob that is kept and can be read, else None."""
        if self._cache is None or not (blob in self._files or self._without_ranges):
            return None
        held = self._cache.find(self._entry(blob))
        if held is None:
            return None
        with held:
            return _read(held, ranges)

    def _from_whole(self, blob: str, ranges: Sequence[Range]) -> list[Blob]:
        entry = self._entry(blob)
        if (last := max(wanted.stop for wanted in ranges)) > entry.size:
            raise TruncatedShardError(
                f"{entry.where} has {entry.size} bytes and ends before byte {last}: its copy was cut, or it is another"
                " file than the index was made of. Copy it there again, with the index"
            )
        with self._the_cache().get(entry, partial(self._source, blob), lambda: self._hands.closed) as held:
            if (found := _read(held, ranges)) is not None:
                return found
            self._the_cache().drop(held)
            raise UnreachableError(f"{held.path}: cannot be read, so it was removed. Check the disk, and begin again")

    def _download(self, blob: str) -> None:
        self._the_cache().get(self._entry(blob), partial(self._source, blob), lambda: self._later.ended).close()

    def _source(self, blob: str, start: int) -> Iterator[Blob]:
        """The bytes of a blob from `start` on; without ranges they all come, and the first ones are passed over."""
        try:
            try:
                for part in self._remote.whole(blob, start):
                    yield part
                    start += len(part)
                return
            except WithoutRanges:
                self._go_without_ranges()
            for part in self._remote.whole(blob):
                if start < len(part):
                    yield memoryview(part)[start:]
                start = max(0, start - len(part))
        except CancelledError:
            raise self._closed_meanwhile() from None

    def _forget(self, blob: str) -> None:
        """Drops what is kept of a blob, unless it is known to be what was published."""
        entry, cache = self._entry(blob), self._the_cache()
        held = cache.find(entry)
        if held is not None:
            with held:
                if not entry.sha256 or _sha256(held, entry.size) != entry.sha256:
                    cache.drop(held)
                    self._later.anew(blob)

    def _entry(self, blob: str) -> Wanted:
        """The blob as the cache knows it: by its digest, or by its place and version where nobody noted that."""
        known = self._entries.get(blob)
        if known is None:
            file, shown = self._files.get(blob), self.location
            size = file.size if file is not None else self._remote.size(blob)
            sha256 = file.sha256 if file is not None else ""
            version = "" if sha256 else json.dumps([shown, blob, self._remote.etag(blob), size])
            known = self._entries[blob] = Wanted(
                name=sha256 or hashlib.sha256(version.encode()).hexdigest(),
                size=size,
                sha256=sha256,
                where=shown if blob == self._remote.file else f"{shown}/{blob}",
            )
        return known

    def _go_without_ranges(self) -> None:
        """From now on everything is fetched as a whole; said once."""
        with self._lock:
            if self._without_ranges:
                return
            cache = self._the_cache()
            self._without_ranges, self._mode = True, "shards"
        _log.warning("%s: sends whole files only: whole shards are fetched into %s", self.location, cache.folder.parent)

    def _the_cache(self) -> Cache:
        if self._cache is None:
            self._cache = self._new_cache()
        return self._cache

    def _new_cache(self) -> Cache:
        # Who downloads gives a silent server up first, and then another one may try.
        return Cache(self._access.folder, self._access.cache_limit, patience=2 * self._access.deadline)

    def _result(self, future: Future[list[Blob]]) -> list[Blob]:
        either: list[Future[Any]] = [future, self._closed]
        wait(either, return_when=FIRST_COMPLETED)
        try:
            if future.done():
                return future.result()
        except CancelledError:
            pass
        raise self._closed_meanwhile()

    def _closed_meanwhile(self) -> ShardError:
        return ShardError(f"{self.location}: closed while it was being read")


def _read(held: Held, ranges: Sequence[Range]) -> list[Blob] | None:
    """The ranges, or None where the file cannot be read to their end."""
    try:
        return [_bytes(held, wanted.start, wanted.stop) for wanted in ranges]
    except (OSError, EOFError):
        return None


def _bytes(held: Held, start: int, stop: int) -> bytes:
    found = os.pread(held.handle, stop - start, start)
    while len(found) < stop - start:
        part = os.pread(held.handle, stop - start - len(found), start + len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _sha256(held: Held, size: int) -> str:
    digest = hashlib.sha256()
    with suppress(OSError, EOFError):
        for start in range(0, size, BLOCK):
            digest.update(_bytes(held, start, min(start + BLOCK, size)))
    return digest.hexdigest()


_stores = weakref.WeakSet[CachedStore]()


def _forked() -> None:
    for store in list(_stores):
        store.forked()


os.register_at_fork(after_in_child=_forked)
