"""The files in a tar that others wrote: python's tarfile, webdataset, GNU tar; what is missing does not go unnoticed.

`shards.tar` knows what our writer writes and refuses the rest. Here folders and notes of other writers are passed over,
and long names may be told the GNU or the POSIX way; all that could change which bytes a file has (sparse files, links,
another length in an extended header) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from shards.errors import CorruptRecordError, FormatError, TruncatedShardError
from shards.tar import BLOCK, LONGEST_EXTENDED, Member, Read, notes, octal

_FILE, _FOLDER, _LONG_NAME, _NOTE, _NOTE_FOR_ALL = (b"0", b"\0", b"7"), b"5", b"L", b"x", b"g"
_CHANGES_BYTES = (b"size", b"GNU.sparse")  # in an extended header
_AGAIN = "Copy or make this tar again."


def files_of(read: Read, size: int, where: str) -> Iterator[Member]:
    """The regular files in the tar of `size` bytes that `read(start, stop)` reads, in order, without a leading ./

    Raises TruncatedShardError where it ends early, CorruptRecordError where a header's checksum differs, FormatError
    where it is no tar, or holds links or sparse files.
    """
    position, long_name = 0, ""
    while True:
        if position + BLOCK > size:
            raise TruncatedShardError(f"{where}: {size} bytes, no end mark; the file was cut. {_AGAIN}")
        block = bytes(read(position, position + BLOCK))
        if block == bytes(BLOCK):
            if long_name or position + 2 * BLOCK > size or any(read(position + BLOCK, position + 2 * BLOCK)):
                raise TruncatedShardError(f"{where}: no end mark at byte {position}; joined, damaged or cut. {_AGAIN}")
            return
        kind, short_name, length = _header(block, position, where)
        # A name that was too long may have been cut within a character: it is looked at only where no other is told.
        name = long_name or _text(short_name, position, where)
        start, stop = position + BLOCK, position + BLOCK + length
        if stop > size:
            raise TruncatedShardError(f"{where}: {name} ends at byte {stop}, but the file has {size} bytes. {_AGAIN}")
        if kind in (_LONG_NAME, _NOTE, _NOTE_FOR_ALL):
            if length > LONGEST_EXTENDED:
                raise FormatError(f"{where}: a name of {length} bytes at byte {start}; expected {LONGEST_EXTENDED}")
            data = bytes(read(start, stop))
            found = _text(data.rstrip(b"\0"), start, where) if kind == _LONG_NAME else _path(data, start, where)
            if found and kind == _NOTE_FOR_ALL:
                raise FormatError(f"{where}: a path for all files at byte {start}; expected one for each")
            long_name = found or long_name
        elif kind == _FOLDER:
            long_name = ""
        elif kind in _FILE:
            yield Member(name=name.removeprefix("./"), offset=start, size=length)
            long_name = ""
        else:
            raise FormatError(
                f"{where}: {name} at byte {position} is of type {kind!r}; expected files and folders only"
            )
        position = start + -(-length // BLOCK) * BLOCK


def _header(block: bytes, position: int, where: str) -> tuple[bytes, bytes, int]:
    """Type, name and length of a header, once its checksum is found to be right."""
    if octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        if position == 0 and block[257:262] != b"ustar":
            raise FormatError(f"{where}: not a tar file")
        raise CorruptRecordError(
            f"{where}: the tar header at byte {position} does not match its checksum: damaged. {_AGAIN}"
        )
    length = octal(block[124:136])
    if length is None:
        raise FormatError(f"{where}: the tar header at byte {position} has no readable length, or 8 GiB and more")
    prefix = block[345:500] if block[257:263] == b"ustar\0" else b""  # GNU has times there
    name, above = (field.split(b"\0", 1)[0] for field in (block[:100], prefix))
    return block[156:157], above + b"/" + name if above else name, length


def _text(data: bytes, position: int, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: the name at byte {position} is not UTF-8") from error


def _path(data: bytes, position: int, where: str) -> str:
    """The path in an extended header, or ""."""
    path = ""
    for key, value in notes(data, position, where):
        if key.startswith(_CHANGES_BYTES):
            raise FormatError(f"{where}: the extended header at byte {position} has {key!r}; expected a path or a time")
        path = _text(value, position, where) if key == b"path" else path
    return path
