"""The table of a part: one mapped file that says where in its shards every record and every frame lies.

    header   128 bytes: magic, version, counts, start of each section, size of the file, CRCs of the columns and itself
    columns  labels i4 (N,), frames u4 (N,), shards u4 (N,): what an order needs, without touching anything else
    rows     N of 136 bytes: places in the shard, sizes, SHA-256; each with a CRC over itself, its columns and its key
    names    the keys, UTF-8, one after the other
    tables   u4: for each record flow ends, flow CRCs, rgb ends, rgb CRCs; each stream's pair has a CRC in the row

Version 1 is of shards as we write them. Version 2 is of tars whose frames are members of their own: a stream has starts
before its ends, and JPEG i is starts[i] .. ends[i].

Little-endian; sections start at multiples of 8 and can be read as ranges. It opens in O(1): the size is checked before
the file is mapped (a cut file would kill the process later), all else where it is used. Places are those in the tar
shards whatever the store: a split has the same index as tar, LMDB and loose files, and it can be made again from the
tars alone.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import CorruptRecordError, FormatError, ShardError, TruncatedShardError, UnreachableError
from shards.format import CLS, LONGEST_HEADER, LONGEST_KEY, MEMBERS, MOST_PIXELS, crc32c, decode
from shards.record import Blob, Record
from shards.row import Outline
from shards.row import Row as Row
from shards.row import StreamPlace as StreamPlace
from shards.row import located as located
from shards.row import row_of as row_of
from shards.tar import Member, Read, members
from shards.whole import whole

MAGIC = b"STMULIDX"
VERSION, LOOSE_VERSION = 1, 2
HEADER_SIZE = 128
FARTHEST = 1 << 62  # bytes: behind which nothing begins
LARGEST_TABLES = 3 << 25  # bytes of one record's tables, with starts: as long as its index.msgpack may be, and half

# magic, version, size of a row, records, shards; starts of labels, frames, shards, rows, names, tables, size of the
# file; CRCs of the three columns
_HEADER = struct.Struct("<8sII QI4x 7Q 3I24x")
_COLUMNS = struct.Struct("<iII")  # label, frames, shard
# start and length of the key, fps, SHA-256, offset of cls, offset and size of header, start of the tables in words;
# then for flow and rgb: offset, size, width, height, components, CRC of the tables
_ROW = struct.Struct("<QI2I32sQQIQ QIHHII QIHHII")
_ROW_SIZE = _ROW.size + 8  # CRC, four zeros
_WORD = np.dtype("<u4")
_KEY = re.compile(rb"[^./\\\x00-\x1f\x7f]{1,%d}" % LONGEST_KEY)  # a key may become the name of a file


class Index:
    """The rows of a part. Reading is safe in threads; arrays handed out stay valid after `close`."""

    def __init__(self, data: Blob | mmap.mmap, where: str) -> None:
        self.where = where
        fields = _header(bytes(data[:HEADER_SIZE]), len(data), where)
        self.loose = fields[1] == LOOSE_VERSION  # whether it says where each frame begins
        self._tables = 3 if self.loose else 2  # of each stream
        self._count: int = fields[3]
        self.shards: int = fields[4]  # how many there are, empty ones too
        *self._starts, size = fields[5:12]
        self.size: int = size  # bytes of the file
        self.head: int = self._starts[5]  # bytes before the tables
        self._column_crcs = fields[12:15]
        self.classes = 1 << 31  # labels are less than that
        self._data: Blob | mmap.mmap | None = data
        self._checked: dict[int, NDArray[Any]] = {}
        self._sound = bytearray(self._count)  # 1: the tables of this record make sense; whoever wrote them wrote once

    def __len__(self) -> int:
        """How many records."""
        return self._count

    def __iter__(self) -> Iterator[Row]:
        return map(self.row, range(self._count))

    def row(self, record: int) -> Row:
        """The row of a record, its tables views of the file. Raises CorruptRecordError where a CRC differs."""
        label, frames, shard, values, key = self._fixed(record)
        tables = self._starts[5] + 4 * values[8]
        flow = self._stream(record, "flow", values[9:15], tables, 2 * (frames - 1))
        rgb = self._stream(record, "rgb", values[15:21], tables + 8 * self._tables * (frames - 1), frames)
        self._sound[record] = 1
        return Row(
            record=record,
            key=self._text(key, record),
            label=label,
            shard=shard,
            frames=frames,
            sha256=values[4],
            fps=values[2:4],
            cls_offset=values[5],
            header_offset=values[6],
            header_size=values[7],
            flow=flow,
            rgb=rgb,
        )

    def rows(self, records: Sequence[int]) -> list[Row]:
        """The rows of several records, in their order; what an index far away lacks is fetched together."""
        return [self.row(record) for record in records]

    def outline(self, record: int) -> Outline:
        """What stands about a record before the tables. Raises CorruptRecordError where a CRC differs."""
        label, frames, _, values, key = self._fixed(record)
        return Outline(
            record=record,
            key=self._text(key, record),
            label=label,
            frames=frames,
            width=values[17],
            height=values[18],
            rgb_size=values[16],
            flow_size=values[10],
            rgb_tables=values[20],
        )

    def tables_span(self, record: int) -> tuple[int, int]:
        """Where in the file the tables of a record begin and end."""
        _, frames, _, values, _ = self._fixed(record)
        start, size = self._starts[5] + 4 * values[8], 4 * self._tables * (3 * frames - 2)
        if start + size > self.size or size > LARGEST_TABLES:
            raise FormatError(
                f"{self.where}: row {record}: tables of {size} bytes at {start} of {self.size}. {_REBUILD}"
            )
        return start, start + size

    def tables_damage(self, record: int, data: memoryview) -> CorruptRecordError | None:
        """What is wrong with `data` as the tables of a record; None if they match their checksums."""
        _, frames, _, values, _ = self._fixed(record)
        middle = 8 * self._tables * (frames - 1)
        for named, table, expected in (("flow", data[:middle], values[14]), ("rgb", data[middle:], values[20])):
            if (found := crc32c(table)) != expected:
                return self._corrupt(f"row {record}, {named} table", found, expected)
        return None

    def labels(self) -> NDArray[np.int32]:
        """The label of every record, (N,); a view of the file."""
        return self._column(0)

    def frames(self) -> NDArray[np.uint32]:
        """How many frames every record has, (N,); a view of the file."""
        return self._column(1)

    def shard_of(self) -> NDArray[np.uint32]:
        """The shard of every record, (N,); a view of the file."""
        return self._column(2)

    def close(self) -> None:
        """Ends reading. What was handed out keeps the mapping alive until it is gone itself."""
        self._data = None
        self._checked = {}

    def _bytes(self) -> Any:
        if self._data is None:
            raise ShardError(f"{self.where}: already closed")
        return self._data

    def _fixed(self, record: int) -> tuple[int, int, int, tuple[Any, ...], bytes]:
        """What stands about a record before the tables: label, frames, shard, the other values of its row, its key."""
        if not 0 <= record < self._count:
            raise IndexError(f"{self.where}: record {record} of {self._count}")
        data = self._bytes()
        start = self._starts[3] + record * _ROW_SIZE
        row = bytes(data[start : start + _ROW_SIZE])
        values = _ROW.unpack_from(row)
        labels, all_frames, shards = self._column(0), self._column(1), self._column(2)
        label, frames, shard = labels.item(record), all_frames.item(record), shards.item(record)
        key_start = self._starts[4] + values[0]
        key = bytes(data[key_start : key_start + values[1]]) if key_start + values[1] <= self._starts[5] else b""
        found = crc32c(_COLUMNS.pack(label, frames, shard) + row[: _ROW.size] + key)
        expected = int.from_bytes(row[_ROW.size : _ROW.size + 4], "little")
        if found != expected:
            raise self._corrupt(f"row {record}", found, expected)
        if shard >= self.shards or not frames or not _KEY.fullmatch(key):
            raise FormatError(
                f"{self.where}: row {record}: {frames} frames in shard {shard} of {self.shards}, key {key[:80]!r}."
                f" {_REBUILD}"
            )
        if max(values[5], values[6], values[9], values[15]) > FARTHEST or values[7] > LONGEST_HEADER:
            raise FormatError(f"{self.where}: row {record}: its members lie behind the end of any shard. {_REBUILD}")
        return label, frames, shard, values, key

    def _text(self, key: bytes, record: int) -> str:
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.where}: row {record}: its key {key[:80]!r} is not UTF-8. {_REBUILD}") from error

    def _column(self, column: int) -> NDArray[Any]:
        known = self._checked.get(column)
        if known is None:
            known = np.frombuffer(self._bytes(), ("<i4", _WORD, _WORD)[column], self._count, self._starts[column])
            if (found := crc32c(known.data.cast("B"))) != (expected := self._column_crcs[column]):
                raise self._corrupt(f"column {('labels', 'frames', 'shards')[column]}", found, expected)
            if column == 0 and self._count and not 0 <= known.min() <= known.max() < self.classes:
                raise FormatError(
                    f"{self.where}: labels from {known.min()} to {known.max()}, but there are {self.classes} classes."
                    f" {_REBUILD}"
                )
            self._checked[column] = known
        return known

    def _stream(self, record: int, stream: str, values: tuple[int, ...], start: int, count: int) -> StreamPlace:
        offset, size, width, height, components, expected = values
        if start + 4 * self._tables * count > self.size:
            raise FormatError(f"{self.where}: row {record}, {stream} table ends behind the file. {_REBUILD}")
        table = np.frombuffer(self._bytes(), _WORD, self._tables * count, start)
        if (found := crc32c(table.data.cast("B"))) != expected:
            raise self._corrupt(f"row {record}, {stream} table", found, expected)
        ends, starts = table[-2 * count : -count] if count else table, table[:count] if self._tables == 3 else None
        if not self._sound[record] and not (_ordered(starts, ends, size) and width * height <= MOST_PIXELS):
            raise FormatError(
                f"{self.where}: row {record}, {stream} table: {width}x{height} pixels in {size} bytes that end"
                f" elsewhere, or not one behind the other. {_REBUILD}"
            )
        return StreamPlace(
            offset=offset,
            size=size,
            width=width,
            height=height,
            components=components,
            ends=ends,
            crcs=table[-count:] if count else table,
            starts=starts,
        )

    def _corrupt(self, named: str, found: int, expected: int) -> CorruptRecordError:
        return CorruptRecordError(f"{self.where}: {named}: checksum {found:08x}, expected {expected:08x}. {_REBUILD}")


def _ordered(starts: NDArray[Any] | None, ends: NDArray[Any], size: int) -> bool:
    """Whether images lie as they can: each ends behind its start, and together they have `size` bytes."""
    if starts is not None:
        return bool((starts < ends).all()) and int((ends - starts).sum(dtype=np.uint64)) == size
    return bool((ends[1:] > ends[:-1]).all()) and (ends.item(-1) if len(ends) else 0) == size


_REBUILD = "Copy the split again, or build it again: make shards"


def head_size(records: int, names: int) -> int:
    """Bytes of an index before its tables: of so many records, whose keys have `names` bytes together."""
    return HEADER_SIZE + 3 * _padded(4 * records) + _padded(_ROW_SIZE * records) + _padded(names)


def open_index(path: Path) -> Index:
    """The index at `path`, mapped. Raises TruncatedShardError, FormatError, CorruptRecordError, UnreachableError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            _header(file.read(HEADER_SIZE), size, str(path))  # before mapping: a cut file must not be touched
            return Index(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ), str(path))
    except OSError as error:
        raise UnreachableError(f"{path}: cannot be read: {error.strerror}. {_REBUILD}") from error


def parse_index_bytes(data: Blob, where: str) -> Index:
    """The index that `data` is: a file read from afar. Raises as `open_index`."""
    return Index(data, where)


def write_index(path: Path, rows: Sequence[Row], shards: int | None = None) -> None:
    """Writes the index of a part, whole or not at all: `rows` in order, `shards` in all (None: up to the last used)."""
    with whole(path) as file:
        for piece in index_bytes(rows, shards):
            file.write(piece)


def index_bytes(rows: Sequence[Row], shards: int | None = None) -> Iterator[bytes]:
    """The bytes of an index, piece by piece. Raises FormatError where the rows are not numbered from 0."""
    loose = any(place.starts is not None for row in rows for place in (row.flow, row.rgb))
    columns = np.zeros((3, len(rows)), _WORD)
    packed, names, words, highest = bytearray(), bytearray(), 0, 0
    for record, row in enumerate(rows):
        if row.record != record:
            raise FormatError(f"row {record} of an index says that it is record {row.record}")
        key, column = row.key.encode(), _COLUMNS.pack(row.label, row.frames, row.shard)
        columns[:, record] = np.frombuffer(column, _WORD)
        values = _ROW.pack(
            *(len(names), len(key), *row.fps, row.sha256, row.cls_offset, row.header_offset, row.header_size, words),
            *_stream_values(row.flow, loose),
            *_stream_values(row.rgb, loose),
        )
        packed += values + crc32c(column + values + key).to_bytes(8, "little")
        names += key
        words += (3 if loose else 2) * (len(row.flow.ends) + len(row.rgb.ends))
        highest = max(highest, row.shard + 1)
    sections = [*(column.tobytes() for column in columns), bytes(packed), bytes(names)]
    starts = [HEADER_SIZE]
    for section in sections:
        starts.append(starts[-1] + _padded(len(section)))
    crcs = [crc32c(section) for section in sections[:3]]
    count = highest if shards is None else shards
    if count < highest:
        raise FormatError(f"an index of {count} shards has a record in shard {highest - 1}")
    version = LOOSE_VERSION if loose else VERSION
    header = _HEADER.pack(MAGIC, version, _ROW_SIZE, len(rows), count, *starts, starts[-1] + 4 * words, *crcs)
    yield header + crc32c(header).to_bytes(4, "little")
    for section in sections:
        yield section + bytes(_padded(len(section)) - len(section))
    for row in rows:
        yield _tables(row.flow, loose) + _tables(row.rgb, loose)


def index_tar(read: Read, size: int, shard: int, where: str) -> list[Row]:
    """The rows of the records in a tar, from the tar alone, numbered from 0; every byte of every record is checked.

    Raises TruncatedShardError, CorruptRecordError, FormatError: a record's members must lie together, in their order.
    """
    return [row for row, _ in scan_tar(read, size, shard, where)]


def scan_tar(read: Read, size: int, shard: int, where: str) -> Iterator[tuple[Row, Record]]:
    """The rows and the records of a tar, as `index_tar`, one at a time."""
    keys = set[str]()
    for places in records_of(members(read, size, where), where):
        blobs = {member: read(place.offset, place.offset + place.size) for member, place in places.items()}
        key = places[CLS].name.partition(".")[0]
        record = decode(blobs, f"{where}: record {key!r}")
        if key in keys:
            raise FormatError(f"{where}: two records with the key {key!r}; build this shard again")
        yield located(row_of(key, record, blobs, number=len(keys), shard=shard), places), record
        keys.add(key)


def records_of(listing: Iterator[Member], where: str) -> Iterator[dict[str, Member]]:
    """The members of a tar record by record, by the member's name. Raises FormatError where one is out of place."""
    key, places = "", dict[str, Member]()
    for place in listing:
        found_key, _, found = place.name.partition(".")
        expected = MEMBERS[len(places)]
        if found != expected or (places and found_key != key):
            wanted = f"{key}.{expected}" if places else f"<key>.{expected}"
            raise FormatError(f"{where}: found {place.name!r} at byte {place.offset}, expected {wanted}")
        key, places[found] = found_key, place
        if len(places) == len(MEMBERS):
            yield places
            places = {}
    if places:
        raise FormatError(f"{where}: record {key!r} lacks {MEMBERS[len(places)]} and what follows it")


def _header(data: bytes, size: int, where: str) -> tuple[Any, ...]:
    if len(data) < HEADER_SIZE:
        raise TruncatedShardError(f"{where}: {size} bytes, an index has at least {HEADER_SIZE}. {_REBUILD}")
    fields = _HEADER.unpack_from(data)
    if fields[0] != MAGIC:
        raise FormatError(f"{where}: not an index of shards. {_REBUILD}")
    found, expected = crc32c(data[: _HEADER.size]), int.from_bytes(data[_HEADER.size : HEADER_SIZE], "little")
    if found != expected:
        raise CorruptRecordError(f"{where}: header: checksum {found:08x}, expected {expected:08x}. {_REBUILD}")
    if fields[1] not in (VERSION, LOOSE_VERSION) or fields[2] != _ROW_SIZE:
        raise FormatError(
            f"{where}: version {fields[1]}, this program reads {VERSION} and {LOOSE_VERSION}; update the program"
        )
    if size != fields[11]:
        kind = TruncatedShardError if size < fields[11] else FormatError
        raise kind(f"{where}: {size} bytes, expected {fields[11]}. {_REBUILD}")
    count, starts = fields[3], fields[5:12]
    sizes = (4 * count, 4 * count, 4 * count, _ROW_SIZE * count, 0, 0)
    if starts[0] != HEADER_SIZE or any(a + b > c for a, b, c in zip(starts[:-1], sizes, starts[1:], strict=True)):
        raise FormatError(f"{where}: its sections overlap. {_REBUILD}")
    return fields


def _stream_values(place: StreamPlace, loose: bool) -> tuple[int, ...]:
    crc = crc32c(_tables(place, loose))
    return place.offset, place.size, place.width, place.height, place.components, crc


def _tables(place: StreamPlace, loose: bool) -> bytes:
    tables = [place.begins()] if loose else []
    return b"".join(table.astype(_WORD).tobytes() for table in [*tables, place.ends, place.crcs])


def _padded(size: int) -> int:
    return -(-size // 8) * 8
