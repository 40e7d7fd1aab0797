"""The index of a part that lies afar: small ones whole, of large ones only what is wanted.

What every order needs (columns, rows and keys) is read when the index is opened; the tables of a record when it is
first wanted, those of several records together. All of it goes into a file without a name, as large as the index and
empty but for what was read, so that memory is the system's to manage; only tables that match their checksums are
written there, and a full disk is an error here, not a signal later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Protocol, TypeVar

from shards.errors import FormatError, TruncatedShardError
from shards.format import LONGEST_KEY
from shards.index import Index, head_size, parse_index_bytes
from shards.manifest import Part
from shards.record import Blob
from shards.row import Row
from shards.stores import Range
from shards.unnamed import Unnamed

SMALL = 4 << 20  # bytes of an index that is read whole
PIECE = 4 << 20  # bytes of one request for the start of a large one
PIECES = 8  # requests at once
USUAL_KEY = 32  # bytes: the keys of UCF101 have 19 to 33
AT_ONCE = PIECE * PIECES  # bytes fetched at once, whatever is wanted
GROUP = 256  # records whose tables are read ahead where an index is gone through from its start

T = TypeVar("T")


class Afar(Protocol):
    """What of a remote store an index needs."""

    def small(self, name: str, limit: int) -> bytes: ...

    def size(self, blob: str) -> int: ...

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]: ...

    def again(self, wanted: Range) -> Blob: ...

    def whole(self, blob: str) -> Iterator[Blob]: ...


def open_ranged(store: Afar, part: Part, where: str, small: int = SMALL) -> Index:
    """The index of `part`, which the manifest describes, read from `store`; up to `small` bytes are read whole.

    Raises FormatError, TruncatedShardError or CorruptRecordError where it is not what the manifest says, before more is
    read or reserved than it says; ShardError where the disk is full; what `store` raises.
    """
    expected = part.index
    if expected.size <= small:
        data = store.small(expected.name, expected.size)
        if len(data) == expected.size and hashlib.sha256(data).hexdigest() != expected.sha256:
            raise FormatError(f"{where}: {_ANOTHER}")
        return parse_index_bytes(data, where)
    most = head_size(part.records, LONGEST_KEY * part.records) + 36 * part.frames
    if not head_size(part.records, 0) <= expected.size <= most:
        raise FormatError(
            f"{where}: the manifest says {expected.size} bytes for {part.records} records of {part.frames} frames,"
            f" which need {head_size(part.records, 0)} to {most}. Copy or build the split again"
        )
    if (size := store.size(expected.name)) != expected.size:
        kind = TruncatedShardError if size < expected.size else FormatError
        raise kind(f"{where}: {size} bytes, but the manifest says {expected.size}. Copy or build the split again")
    return _opened(store, part, where)


def _opened(store: Afar, part: Part, where: str) -> Index:
    from shards.stores.remote import WithoutRanges

    name, size, records = part.index.name, part.index.size, part.records
    file = Unnamed(size)
    wanted = min(head_size(records, USUAL_KEY * records), size)
    try:
        _read(store, name, 0, wanted, file)
    except WithoutRanges:
        return _whole(store, name, size, file, where)
    index = RangedIndex(file, store, name, where)
    if len(index) != records or index.head > head_size(records, LONGEST_KEY * records):
        raise FormatError(
            f"{where}: {len(index)} records with keys up to byte {index.head}, but the manifest says {records} records:"
            f" {_ANOTHER}"
        )
    if index.head > wanted:
        _read(store, name, wanted, index.head, file)
    return index


def _whole(store: Afar, name: str, size: int, file: Unnamed, where: str) -> Index:
    position = 0
    for blob in store.whole(name):
        if position + len(blob) > size:
            break
        file.write(blob, position)
        position += len(blob)
    if position != size:
        raise TruncatedShardError(f"{where}: {position} bytes were sent, expected {size}. Copy the split again")
    return Index(file.mapped(), where)


class RangedIndex(Index):
    """An index of which only the start is here; tables come when they are wanted, to any number of threads.

    No lock is held while the network is waited for: two threads may fetch the same tables, which are the same bytes.
    """

    def __init__(self, file: Unnamed, store: Afar, name: str, where: str) -> None:
        super().__init__(file.mapped(), where)
        self._file, self._store, self._name = file, store, name
        self._here = bytearray(len(self))  # 1: the tables of this record are
        self._next = 0  # the record after those fetched last

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.rows(group) for group in _groups(range(len(self)), GROUP))

    def row(self, record: int) -> Row:
        """The row of a record; its tables are fetched if they are not here. Raises what that raises, too."""
        if 0 <= record < len(self) and not self._here[record]:
            last = min(record + GROUP, len(self)) if record == self._next else record + 1
            self._fetch([one for one in range(record, last) if not self._here[one]])
        return super().row(record)

    def rows(self, records: Sequence[int]) -> list[Row]:
        """The rows of several records, in their order; the tables that are not here are fetched together."""
        missing = sorted({record for record in records if 0 <= record < len(self) and not self._here[record]})
        if missing:
            self._fetch(missing)
        return super().rows(records)

    def _fetch(self, records: Sequence[int]) -> None:
        """Fetches the tables of `records`, ascending. Raises what is wrong with those of the first.

        Those of another that are damaged stay missing: whoever asks for that one is told.
        """
        batch, size = list[tuple[int, int, int]](), 0  # record, start, stop
        for record in records:
            start, stop = self.tables_span(record)
            if batch and size + stop - start > AT_ONCE:
                self._fetch_batch(batch, records[0])
                batch, size = [], 0
            batch.append((record, start, stop))
            size += stop - start
        self._fetch_batch(batch, records[0])
        self._next = records[-1] + 1

    def _fetch_batch(self, batch: Sequence[tuple[int, int, int]], first: int) -> None:
        ranges, failure = list[Range](), None
        places = list[tuple[int, int]]()  # of each record: the read, and the byte in it
        for _, start, stop in batch:
            if ranges and ranges[-1].stop == start:
                ranges[-1] = Range(self._name, ranges[-1].start, stop)
            else:
                ranges.append(Range(self._name, start, stop))
            places.append((len(ranges) - 1, start - ranges[-1].start))
        blobs = [memoryview(blob) for blob in self._store.fetch(ranges)]
        for (record, start, stop), (number, begin) in zip(batch, places, strict=True):
            data = blobs[number][begin : begin + stop - start]
            if self.tables_damage(record, data) is not None:
                data = memoryview(self._store.again(Range(self._name, start, stop)))
            if (damage := self.tables_damage(record, data)) is None:
                self._file.write(data, start)
                self._here[record] = 1
            elif record == first:
                failure = damage
        if failure is not None:
            raise failure


def _read(store: Afar, name: str, start: int, stop: int, file: Unnamed) -> None:
    pieces = (Range(name, at, min(at + PIECE, stop)) for at in range(start, stop, PIECE))
    for some in _groups(pieces, PIECES):
        for piece, blob in zip(some, store.fetch(some), strict=True):
            file.write(blob, piece.start)


def _groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


_ANOTHER = "it is of another build than the manifest. Copy or build the split again"
