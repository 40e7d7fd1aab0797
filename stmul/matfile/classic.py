"""MATLAB files of v5, and of v7, whose variables are packed by deflate ("MAT-File Format", The MathWorks).

A variable is a tree of elements, each with its length before it. scipy reads the same, but a single wrong byte can make
it write beyond its memory, which ends the process.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from stmul.matfile.values import DEEPEST, Allowance, Foreign, allowance

HEADER = 128  # bytes before the first variable
MATRIX, PACKED = 14, 15  # kinds of elements
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CELL, STRUCT, CHAR = 1, 2, 4  # classes of matrices
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
OTHERS = {3: "an object", 5: "a sparse matrix", 16: "a function handle", 17: "an object"}
TEXT = {1: "utf-8", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
COMPLEX = 0x800  # flag
AT_ONCE = 2**18  # bytes

Order = Literal["<", ">"]  # of bytes


def read_classic(path: Path, names: Sequence[str], unread: Set[str]) -> dict[str, Any]:
    """As `read_variables`. Raises ValueError or zlib.error where the file is damaged."""
    found: dict[str, Any] = {}
    size = path.stat().st_size
    left = allowance(size)
    with path.open("rb") as file:
        orders: dict[bytes, Order] = {b"IM": "<", b"MI": ">"}
        order = orders.get(file.read(HEADER)[126:])
        if order is None:
            raise ValueError("neither of v5, v7 nor v7.3")
        place = HEADER
        while place < size:
            file.seek(place)
            kind, count = Struct(f"{order}II").unpack(file.read(8).ljust(8, b"\xff"))
            place += 8 + count
            if place > size:
                raise ValueError(f"it ends {place - size} bytes early")
            if kind == PACKED:
                source = Source(file=file, order=order, left=count, allowance=left, unpack=zlib.decompressobj())
                kind, count = source.tag()
            else:
                source = Source(file=file, order=order, left=count, allowance=left)
                place += -count % 8
            if kind != MATRIX:
                raise ValueError(f"an element of kind {kind}, expected a matrix")
            head = _head(source, end=source.place + count)
            if head.name in found:
                raise ValueError(f"variable {head.name} is there twice")
            if head.name in names:
                found[head.name] = _value(source, head, unread, depth=0)
                source.finish()
    return found


@dataclass(kw_only=True, slots=True)
class Source:
    """The bytes of one variable, in turn."""

    file: BinaryIO
    order: Order
    left: int  # bytes in the file
    allowance: Allowance
    unpack: Any = None  # zlib's state
    place: int = 0  # bytes taken, when unpacked
    ready: memoryview = field(default_factory=lambda: memoryview(b""))

    def take(self, count: int) -> bytearray:
        """The next bytes. Raises ValueError where there are fewer."""
        taken = bytearray()
        while len(taken) < count:
            if not self.ready:
                self.ready = self._more()
            part = self.ready[: count - len(taken)]
            taken += part
            self.ready = self.ready[len(part) :]
        self.place += count
        return taken

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.take(min(count, AT_ONCE)))

    def tag(self) -> tuple[int, int]:
        """Kind and length of the element that begins here."""
        kind, count = Struct(f"{self.order}II").unpack(self.take(8))
        return kind, count

    def data(self, end: int) -> tuple[int, bytearray]:
        """Kind and content of the element that begins here, with its padding gone by."""
        word, count = self.tag_or_small()
        if isinstance(count, bytearray):
            return word, count
        if self.place + count > end:
            raise ValueError("an element longer than what holds it")
        content = self.take(count)
        self.skip(min(-count % 8, end - self.place))
        return word, content

    def tag_or_small(self) -> tuple[int, int | bytearray]:
        """Kind, and length; or content where it is so short that it stands in the tag."""
        word = int.from_bytes(self.take(4), "little" if self.order == "<" else "big")
        rest = self.take(4)
        if (short := word >> 16) > 4:
            raise ValueError(f"an element of kind {word:#x}")
        if short:
            return word & 0xFFFF, rest[:short]
        return word, int.from_bytes(rest, "little" if self.order == "<" else "big")

    def finish(self) -> None:
        """Goes to the end. Raises zlib.error where the checksum there does not fit."""
        while self.unpack is not None and not self.unpack.eof:
            self._more()

    def _more(self) -> memoryview:
        if self.unpack is None:
            found = self._stored(AT_ONCE)
        elif self.unpack.eof:
            raise ValueError("a variable ends early")
        else:
            found = self.unpack.decompress(self.unpack.unconsumed_tail or self._stored(AT_ONCE), AT_ONCE)
        self.allowance.take(size=len(found))
        return memoryview(found)

    def _stored(self, most: int) -> bytes:
        found = self.file.read(min(most, self.left))
        self.left -= len(found)
        if not found:
            raise ValueError("a variable ends early")
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What stands before a matrix's values."""

    kind: int  # its class
    flags: int
    shape: tuple[int, ...]
    name: str
    end: int  # its place in the source


def _head(source: Source, end: int) -> Head:
    flags, shape, name = (source.data(end) for _ in range(3))
    lengths = tuple(map(int, _numbers(source, *shape)))
    word = int(_numbers(source, *flags)[0])
    if min(lengths, default=-1) < 0:
        raise ValueError(f"a matrix of shape {lengths}")
    return Head(kind=word & 0xFF, flags=word, shape=lengths, name=name[1].decode(), end=end)


def _matrix(source: Source, end: int, unread: Set[str], depth: int) -> Any:
    """The matrix that begins here."""
    count = _enter(source, end)
    own_end = source.place + count
    if not count:
        return np.zeros((0, 0))
    value = _value(source, _head(source, own_end), unread, depth)
    source.skip(own_end - source.place)
    return value


def _enter(source: Source, end: int) -> int:
    """The length of the matrix that begins here, with its tag gone by."""
    kind, count = source.tag()
    if kind != MATRIX or source.place + count > end:
        raise ValueError(
            f"an element of kind {kind} and {count} bytes, expected a matrix of {end - source.place} at most"
        )
    return count


def _value(source: Source, head: Head, unread: Set[str], depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"structs and cells {depth} levels deep")
    count = math.prod(head.shape)
    if head.kind == CELL:
        source.allowance.take(parts=count)
        return [_matrix(source, head.end, unread, depth + 1) for _ in range(count)]
    if head.kind == STRUCT:
        return _structs(source, head, count, unread, depth)
    if head.kind == CHAR:
        return _text(source, head, count)
    if head.kind not in CLASSES or head.flags & COMPLEX:
        return Foreign(OTHERS.get(head.kind, "complex numbers" if head.kind in CLASSES else "an unknown class"))
    numbers = _numbers(source, *source.data(head.end)).astype(CLASSES[head.kind], copy=False)
    return numbers.reshape(head.shape, order="F")


def _structs(source: Source, head: Head, count: int, unread: Set[str], depth: int) -> Any:
    length = int(_numbers(source, *source.data(head.end))[0])
    _, joined = source.data(head.end)
    if length < 1 or len(joined) % length:
        raise ValueError(f"{len(joined)} bytes of field names of {length} each")
    names = [joined[i : i + length].split(b"\0")[0].decode() for i in range(0, len(joined), length)]
    source.allowance.take(parts=count * max(len(names), 1))
    structs: list[dict[str, Any]] = []
    for _ in range(count):
        structs.append({})
        for name in names:
            if name in unread:
                source.skip(_enter(source, head.end))
            else:
                structs[-1][name] = _matrix(source, head.end, unread, depth + 1)
    return structs[0] if count == 1 else structs


def _text(source: Source, head: Head, count: int) -> Any:
    if not count:
        return ""
    kind, content = source.data(head.end)
    if kind not in TEXT:
        raise ValueError(f"text of kind {kind}")
    code = TEXT[kind]
    text = content.decode(code if code == "utf-8" else code + ("-le" if source.order == "<" else "-be"))
    if head.shape[0] == 1:
        return text
    letters = np.array(list(text), dtype="U1").reshape(head.shape[0], -1, order="F")
    return ["".join(row) for row in letters]


def _numbers(source: Source, kind: int, content: bytearray) -> NDArray[Any]:
    if kind not in STORED:
        raise ValueError(f"numbers of kind {kind}")
    stored = np.frombuffer(content, np.dtype(STORED[kind]).newbyteorder(source.order))
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)
