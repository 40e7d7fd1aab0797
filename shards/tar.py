"""The headers of a tar, one after the other, without touching payloads; nothing that is missing goes unnoticed.

Python's own reader ends without a word at a damaged header or a cut file, and so loses records; this one raises. It
knows what our writer writes (POSIX.1-2001 "pax": regular files, long or non-ASCII names in an extended header) and
refuses the rest. A shard is a whole number of 10,240-byte tar records and ends in at least two blocks of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shards.errors import CorruptRecordError, FormatError, TruncatedShardError
from shards.record import Blob

BLOCK = 512
RECORD = 20 * BLOCK
LONGEST_EXTENDED = 1 << 16  # bytes of an extended header

_AGAIN = "Copy or build this shard again."

# What other writers note beside a path and readers may pass over: it changes neither names nor sizes.
_PASSED_OVER = frozenset({"atime", "ctime", "mtime", "uid", "gid", "uname", "gname", "comment"})

Read = Callable[[int, int], Blob]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file in a tar."""

    name: str
    offset: int  # of its bytes, from the start of the tar
    size: int


def members(read: Read, size: int, where: str) -> Iterator[Member]:
    """The members of the tar of `size` bytes that `read(start, stop)` reads, in order.

    Raises TruncatedShardError where it ends early, CorruptRecordError where a header's checksum differs, FormatError
    where it is no tar, or holds what a shard does not: links, folders, devices, sparse files.
    """
    position, name = 0, None
    if size < BLOCK:
        raise TruncatedShardError(f"{where}: {size} bytes; a shard has at least {RECORD}. {_AGAIN}")
    while True:
        if position + BLOCK > size:
            raise TruncatedShardError(f"{where}: {size} bytes, no end mark; the file was cut. {_AGAIN}")
        block = bytes(read(position, position + BLOCK))
        if block == bytes(BLOCK):
            if name is not None:
                raise CorruptRecordError(f"{where}: an extended header before byte {position} belongs to no member")
            return _check_end(read, position, size, where)
        kind, short_name, length = _header(block, position, where)
        start, stop = position + BLOCK, position + BLOCK + length
        position = start + -(-length // BLOCK) * BLOCK
        if position > size:
            raise TruncatedShardError(
                f"{where}: {name or short_name} ends at byte {stop}, but the file has {size} bytes. {_AGAIN}"
            )
        if kind == b"x":
            if length > LONGEST_EXTENDED or name is not None:
                raise FormatError(f"{where}: an extended header of {length} bytes at byte {start}; expected one path")
            name = _path(bytes(read(start, stop)), start, where)
        else:
            yield Member(name=name or short_name, offset=start, size=length)
            name = None


def _check_end(read: Read, position: int, size: int, where: str) -> None:
    rest = size - position
    if rest < 2 * BLOCK or size % RECORD:
        raise TruncatedShardError(
            f"{where}: {size} bytes, cut within its end mark; expected a multiple of {RECORD}. {_AGAIN}"
        )
    if rest > RECORD + BLOCK or any(bytes(read(position, size))):
        raise FormatError(f"{where}: {rest} bytes from the end mark at {position} on, not all zero; joined or damaged")


def _header(block: bytes, position: int, where: str) -> tuple[bytes, str, int]:
    """Type, name and length of a header. The checksum first: nothing of a damaged header is believed."""
    checksum = octal(block[148:156])
    if checksum != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        if position == 0 and block[257:262] != b"ustar":
            raise FormatError(f"{where}: not a tar file")
        raise CorruptRecordError(
            f"{where}: the tar header at byte {position} does not match its checksum. Find all damage with:"
            f" stmul shards verify"
        )
    if block[257:263] != b"ustar\0":
        raise FormatError(f"{where}: the tar header at byte {position} is not of a shard: expected POSIX tar")
    kind, length = block[156:157], octal(block[124:136])
    if kind not in (b"0", b"\0", b"x"):
        raise FormatError(f"{where}: a member of type {kind!r} at byte {position}; a shard holds regular files only")
    if length is None:
        raise FormatError(f"{where}: the tar header at byte {position} has no readable length")
    try:
        name, prefix = (block[start:stop].split(b"\0", 1)[0].decode() for start, stop in ((0, 100), (345, 500)))
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: the name in the tar header at byte {position} is not UTF-8") from error
    return kind, f"{prefix}/{name}" if prefix else name, length


def octal(field: bytes) -> int | None:
    """The number in a field of a header; None where there is none."""
    digits = field.rstrip(b"\0 ").lstrip(b" ")
    return int(digits, 8) if digits and set(digits) <= set(b"01234567") else None


def notes(data: bytes, position: int, where: str) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of an extended header: `<length> <key>=<value>`, the length counting all of its line.

    Raises FormatError where it is not made so.
    """
    start = 0
    while start < len(data):
        length, _, _ = data[start : start + 8].partition(b" ")
        stop = start + int(length) if length.isdigit() else 0
        key, equals, value = data[start + len(length) + 1 : stop - 1].partition(b"=")
        if stop <= start or stop > len(data) or data[stop - 1 : stop] != b"\n" or not equals:
            raise FormatError(f"{where}: the extended header at byte {position} is not readable")
        yield key, value
        start = stop


def _path(data: bytes, position: int, where: str) -> str:
    """The path in an extended header, or ""."""
    path = ""
    for key, value in notes(data, position, where):
        if key == b"path":
            try:
                path = value.decode()
            except UnicodeDecodeError as error:
                raise FormatError(f"{where}: the path at byte {position} is not UTF-8") from error
        elif key.decode(errors="replace") not in _PASSED_OVER:
            raise FormatError(f"{where}: the extended header at byte {position} has {key!r}; expected a path")
    return path
