"""How far a video file's own sizes reach: a file that ends before its container says so was cut short.

Decoders hide this: of an AVI cut in half they hand out the first half and no error. Header frame counts prove nothing,
for they are wrong in whole data sets; sizes and offsets that point past the end of the file do.
Formats: RIFF AVI (with OpenDML's AVIX and the idx1 table), ISO base media (mp4, mov), EBML (Matroska, WebM).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

KEYFRAME_INDEX = np.dtype([("name", "S4"), ("flags", "<u4"), ("offset", "<u4"), ("size", "<u4")])


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One sized piece of a container: where its payload starts, and how long it claims to be."""

    name: bytes
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + self.size


def shortfall(path: Path) -> str | None:
    """What shows that the file was cut short, as the end of a sentence; None if nothing does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return _riff(file, size)
        if head[4:8] in {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"}:
            return _iso(file, size)
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _ebml(file, size)
    return None


def _beyond(chunk: Chunk, size: int) -> str:
    name = chunk.name.decode("latin-1").strip()
    return f"its {name!r} reaches to byte {chunk.end}, the file ends at byte {size}"


def _riff(file: BinaryIO, size: int) -> str | None:
    position = 0
    while (form := _riff_chunk(file, position)) and form.name == b"RIFF":
        if position and _word(file, form.start) != b"AVIX":
            break  # what follows the AVI proper and is not its OpenDML continuation is padding: HMDB51 has it
        if form.end > size:
            return _beyond(form, size)
        # A size of 0 was never filled in: the writer was stopped, or wrote into a pipe. All that follows is its.
        end = form.end if form.size else size
        movie = None
        for chunk in _riff_chunks(file, form.start + 4, end):
            if chunk.end > size:
                return _beyond(chunk, size)
            if chunk.name == b"movi":
                movie = chunk
            if chunk.name == b"idx1" and movie is not None and (what := _index(file, chunk, movie, size)):
                return what
        position = end + (end & 1)
    return None


def _riff_chunk(file: BinaryIO, position: int) -> Chunk | None:
    file.seek(position)
    head = file.read(8)
    if len(head) < 8:
        return None
    return Chunk(name=head[:4], start=position + 8, size=struct.unpack("<I", head[4:])[0])


def _riff_chunks(file: BinaryIO, position: int, end: int, depth: int = 8) -> Iterator[Chunk]:
    """All chunks in [position, end), those inside lists too; a list goes by its type and comes before its contents."""
    while position + 8 <= end and (chunk := _riff_chunk(file, position)):
        if chunk.name == b"LIST":
            # As above: a list without a size holds all that follows.
            chunk = chunk if chunk.size else replace(chunk, size=max(end - chunk.start, 0))
            yield replace(chunk, name=_word(file, chunk.start))
            if depth:
                yield from _riff_chunks(file, chunk.start + 4, min(chunk.end, end), depth - 1)
        else:
            yield chunk
        position = chunk.end + (chunk.size & 1)


def _word(file: BinaryIO, position: int) -> bytes:
    file.seek(position)
    return file.read(4)


def _index(file: BinaryIO, chunk: Chunk, movie: Chunk, size: int) -> str | None:
    file.seek(chunk.start)
    entries = np.frombuffer(file.read(chunk.size - chunk.size % 16), dtype=KEYFRAME_INDEX)
    if len(entries) == 0:
        return None
    # Offsets count from the list's type word, or, in files of some writers, from the start of the file.
    base = 0 if int(entries["offset"][0]) >= movie.start else movie.start
    ends = base + 8 + entries["offset"].astype(np.int64) + entries["size"]
    if (past := int((ends > size).sum())) and size < 2**32:
        return f"{past} of the {len(entries)} entries of its index point past the end of the file at byte {size}"
    return None


def _iso(file: BinaryIO, size: int) -> str | None:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length, name = struct.unpack(">I4s", head[:8])
        if length == 0:  # to the end of the file
            return None
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        if length < 8 or not name.isalnum():
            return None  # padding behind the last box
        box = Chunk(name=name, start=position, size=length)
        if box.end > size:
            return _beyond(box, size)
        position = box.end
    return None


def _ebml(file: BinaryIO, size: int) -> str | None:
    position = 0
    for _ in range(8):  # EBML head, perhaps Void, then the Segment that holds everything
        file.seek(position)
        head = file.read(12)
        if len(head) < 5:
            return None
        id_length = 9 - head[0].bit_length()
        if id_length > 4 or not head[id_length:]:
            return None
        size_length = 9 - head[id_length].bit_length()
        field = head[id_length : id_length + size_length]
        if size_length > 8 or len(field) < size_length:
            return None
        length = int.from_bytes(field, "big") & ((1 << 7 * size_length) - 1)
        if length == (1 << 7 * size_length) - 1:
            return None  # of unknown size: a live stream
        name = b"Segment" if head[:id_length] == b"\x18\x53\x80\x67" else b"EBML element"
        element = Chunk(name=name, start=position + id_length + size_length, size=length)
        if element.end > size:
            return _beyond(element, size)
        if name == b"Segment":
            return None
        position = element.end
    return None
