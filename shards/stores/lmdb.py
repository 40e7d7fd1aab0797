"""A split as one LMDB: each member of each record is a value, its key `train/<key>.<member>`.

The library `lmdb` writes it and anyone's LMDB reads it; here it is read with pread. The library maps the file and
believes its pages: a cut file or one wrong byte can end the process, and from a disk slower than memory it fetches
several times the bytes that are asked for, or, with its read-ahead off, 4 KiB at a time (docs/shards.md has figures).
The pages are a B+tree whose format is that of every LMDB 0.9; a value is found in three or four steps, and every number
on the way is checked. So nothing is mapped, locked or shared: threads, children and processes read side by side.
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from shards.errors import CorruptRecordError, FormatError, TruncatedShardError, UnreachableError
from shards.index import Row
from shards.record import Blob
from shards.stores import Range, Stream
from shards.stores.files import GAP, Folder
from shards.tar import Read

DATA = "data.mdb"
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = struct.Struct("<16x II 16x I 76x QQ QQ")  # magic, version; bytes of a page; entries, root; last page, change
_PAGE = struct.Struct("<Q2xHH2x")  # its number, its kind, where its list of nodes ends
_NODE = struct.Struct("<IHH")  # bytes of the value, flags, bytes of the key; in a branch the first two name a page
_BRANCH, _LEAF = 1, 2
_ELSEWHERE = 1  # flag of a value that fills pages of its own: the number of the first follows the key
_NO_PAGE = 2**64 - 1  # the root of an empty tree
_DEEPEST = 32  # levels that a tree can have

_AGAIN = "Copy the LMDB again: stmul shards copy SOURCE"


def value_key(part: str, key: str, member: str) -> str:
    """The key of a value."""
    return f"{part}/{key}.{member}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """What an LMDB says about itself."""

    size: int  # bytes that its file has at least
    entries: int
    page: int  # bytes of a page
    root: int  # the page where every search begins


def pages(path: Path) -> Pages:
    """What the first two pages of a data.mdb say. Raises FormatError where it is no LMDB of this kind."""
    with path.open("rb") as file:
        return _parsed(lambda start, stop: os.pread(file.fileno(), stop - start, start), path)


def _parsed(read: Read, path: Path) -> Pages:
    first = read(0, _META.size)
    page = _META.unpack(first)[2] if len(first) == _META.size else 0
    if not 512 <= page <= 65536 or page & (page - 1):
        page = 4096
    metas = [_META.unpack(meta) for meta in (first, read(page, page + _META.size)) if len(meta) == _META.size]
    for magic, version, size, *_ in metas:
        if magic == int.from_bytes(_MAGIC.to_bytes(4, "little"), "big"):
            raise FormatError(f"{path}: an LMDB of a machine with the other byte order. {_AGAIN} {path.parent}")
        if magic == _MAGIC and version != _VERSION:
            raise FormatError(f"{path}: an LMDB of version {version}, expected {_VERSION}. {_AGAIN} {path.parent}")
        if magic != _MAGIC or size != page:
            metas = []
            break
    if len(metas) < 2:
        raise FormatError(f"{path}: not an LMDB: its first two pages do not say so. {_AGAIN} {path.parent}")
    _, _, _, entries, root, last, _ = max(metas, key=lambda meta: meta[6])  # the newer change counts
    return Pages(size=(last + 1) * page, entries=entries, page=page, root=root)


class LmdbStore:
    """A split in an LMDB, read only; threads and forked children may share it. `size` is data.mdb's by its manifest."""

    gap = GAP
    waste = inf

    def __init__(self, folder: Path, size: int | None = None) -> None:
        self.folder, self._expected = folder, size
        self._files = Folder(folder)
        self._tree: _Tree | None = None

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
        value = self._value(blob)
        return value.stop - value.start

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
        """The bytes of each range, in order. Raises CorruptRecordError too, where the database's own pages are."""
        values = {blob: self._value(blob) for blob in {wanted.blob for wanted in ranges}}
        for wanted in ranges:
            value = values[wanted.blob]
            if wanted.stop > value.stop - value.start:
                raise TruncatedShardError(
                    f"{self.folder / DATA}: {wanted.blob}: expected {wanted.stop - wanted.start} bytes at"
                    f" {wanted.start}, but the value has {value.stop - value.start}. {_AGAIN} {self.folder}"
                )
        starts = [values[wanted.blob].start for wanted in ranges]
        return self._files.fetch(
            [Range(DATA, start + one.start, start + one.stop) for start, one in zip(starts, ranges, strict=True)]
        )

    def again(self, wanted: Range) -> Blob:
        """The bytes of a range once more."""
        return self.fetch([wanted])[0]

    def close(self) -> None:
        """Ends reading; bytes already handed out stay valid."""
        self._files.close()

    def _value(self, key: str) -> Range:
        """Where in data.mdb a value lies."""
        tree = self._tree
        if tree is None:  # two threads may both find the same; either will do
            tree = self._tree = self._opened()
        value = tree.find(key.encode())
        if value is None:
            raise FormatError(
                f"{self.folder / DATA}: has no value {key!r}, though the index does. {_AGAIN} {self.folder}"
            )
        return value

    def _opened(self) -> _Tree:
        path = self.folder / DATA
        try:
            status = path.stat()
        except OSError as error:
            raise UnreachableError(f"{path}: cannot be read: {error.strerror}. {_AGAIN} {self.folder}") from error
        if not stat.S_ISREG(status.st_mode):
            raise UnreachableError(f"{path}: cannot be read: not a file. {_AGAIN} {self.folder}")
        read, needed = self._files.reader(DATA), self._expected or 0
        if status.st_size >= max(needed, 2 * _META.size):
            said = _parsed(lambda start, stop: read(start, min(stop, status.st_size)), path)
            needed = max(needed, said.size)
        if status.st_size < max(needed, 2 * _META.size):
            raise TruncatedShardError(
                f"{path}: {status.st_size} bytes, expected {needed}: its copy was cut. {_AGAIN} {self.folder}"
            )
        return _Tree(read=read, where=path, said=said)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tree:
    """The B+tree of keys; what it reads is believed only as far as it fits into the page and the file."""

    read: Read
    where: Path
    said: Pages
    branches: dict[int, tuple[list[bytes], list[int]]] = field(default_factory=dict)  # above the leaves; few

    def find(self, key: bytes) -> Range | None:
        """Where in the file the value of `key` lies; None where there is no such key."""
        number = self.said.root
        for _ in range(_DEEPEST):
            if number == _NO_PAGE:
                return None
            if number not in self.branches:
                page, leaf, nodes = self._page(number)
                if leaf:
                    place = bisect_left(nodes, key, key=lambda node: self._node(page, node)[0])
                    found = self._node(page, place) if place < len(nodes) else None
                    return self._range(number, page, *found[1:]) if found and found[0] == key else None
                entries = [self._node(page, node) for node in nodes]
                self.branches[number] = [one[0] for one in entries], [low | high << 32 for _, low, high, _ in entries]
            keys, children = self.branches[number]
            number = children[bisect_right(keys, key, lo=1) - 1]  # the first stands for all before the second
        raise self._damaged(number, f"lies more than {_DEEPEST} levels deep")

    def _page(self, number: int) -> tuple[bytes, bool, range]:
        """A page, whether it is a leaf, and the numbers of its nodes: one at least."""
        size = self.said.page
        if (number + 1) * size > self.said.size:
            raise self._damaged(number, f"is wanted, but there are {self.said.size // size}")
        page = bytes(self.read(number * size, (number + 1) * size))
        found, kind, end = _PAGE.unpack_from(page)
        if found != number or kind not in (_BRANCH, _LEAF) or not _PAGE.size + 2 <= end <= size:
            raise self._damaged(number, f"says that it is page {found} of kind {kind} with nodes up to byte {end}")
        return page, kind == _LEAF, range((end - _PAGE.size) // 2)

    def _node(self, page: bytes, node: int) -> tuple[bytes, int, int, int]:
        """A node's key, its first two fields, and where in the page its value follows."""
        start = int.from_bytes(page[_PAGE.size + 2 * node : _PAGE.size + 2 * node + 2], "little")
        if start + _NODE.size <= len(page):
            low, flags, size = _NODE.unpack_from(page, start)
            value = start + _NODE.size + size
            if value <= len(page):
                return page[value - size : value], low, flags, value
        raise self._damaged(_PAGE.unpack_from(page)[0], f"says that node {node} is at byte {start}")

    def _range(self, number: int, page: bytes, size: int, flags: int, value: int) -> Range:
        first, limit = number * self.said.page + value, (number + 1) * self.said.page
        if flags == _ELSEWHERE:
            first = int.from_bytes(page[value : value + 8], "little") * self.said.page + _PAGE.size
            limit = self.said.size
        if flags not in (0, _ELSEWHERE) or first + size > limit:
            raise self._damaged(number, f"says that a value of kind {flags} has {size} bytes at {first}")
        return Range(DATA, first, first + size)

    def _damaged(self, number: int, what: str) -> CorruptRecordError:
        return CorruptRecordError(f"{self.where}: damaged: page {number} {what}. {_AGAIN} {self.where.parent}")
