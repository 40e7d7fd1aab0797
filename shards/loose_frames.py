"""Tars with a member per frame, as webdataset's users write them, read as records.

    <key>.cls                      the label, counted from 0, as ASCII digits
    <key>.json                     optional: {"class": "Archery", "fps": 25}, or "fps": [30000, 1001]
    <key>.rgb.000001.jpg           the frames; any count of digits, numbered from 0 or 1 without holes
    <key>.flow_x.000001.jpg        the flow, x and y, numbered as the frames are: a pair fewer than frames, or as many:
    <key>.flow_y.000001.jpg        then the last is left out

The key is all up to the first dot behind the last slash. A record's members lie together, in any order; files with
other endings are passed over. Such a tar is read through once: each frame's place and checksum go into the index, and a
record's four members, as our own shards have them, can be put together from its frames.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np

from shards.errors import FormatError, ShardError
from shards.fields import INT32, UINT32
from shards.foreign import files_of
from shards.format import INDEX, MOST_PIXELS, Members, encode, key_of, name_of
from shards.record import Blob, FlowMade, Frames, Record, Source, Table
from shards.row import Row, StreamPlace, row_of
from shards.tar import Member, Read

LONGEST_NOTE = 1 << 16  # bytes of a .cls or .json
FARTHEST = 2**32 - 1  # bytes from the start of a stream's first frame to the end of its last

_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_FRAME = re.compile(r"(rgb|flow_x|flow_y)\.([0-9]{1,9})\.(?:jpg|jpeg)", re.IGNORECASE)
_NEARLY = re.compile(r"(rgb|flow|flow_x|flow_y)(\..*)?", re.IGNORECASE | re.DOTALL)  # no other file is called so
_SIZES = frozenset([*range(0xC0, 0xD0)]) - {0xC4, 0xC8, 0xCC}  # markers of a JPEG behind which its size stands


@dataclass(frozen=True, slots=True)
class _File:
    member: Member
    data: bytes


@dataclass(kw_only=True, slots=True)
class _Found:
    """What a tar holds of one record."""

    key: str
    notes: dict[str, _File] = field(default_factory=dict)  # cls, json
    streams: dict[str, dict[int, _File]] = field(default_factory=lambda: {"rgb": {}, "flow_x": {}, "flow_y": {}})


def is_loose(read: Read, size: int, where: str) -> bool:
    """Whether the tar begins with a member per frame; what its first few files are called decides."""
    try:
        named = (_MEMBER.fullmatch(file.name) for file in islice(files_of(read, size, where), 64))
        for found in islice(filter(None, named), 4):
            if _FRAME.fullmatch(found[2]) or found[2] == INDEX:
                return found[2] != INDEX
    except ShardError:
        pass  # whoever reads it says what is wrong
    return False


def scan_loose(read: Read, size: int, shard: int, where: str) -> Iterator[tuple[Row, Record]]:
    """The rows, numbered from 0, and the records of a tar with a member per frame, one at a time; all of it is read.

    Raises FormatError where a record's members are not as the top of this file says, and what `files_of` raises.
    """
    known = dict[str, str]()
    for found in _records(files_of(read, size, where), read, where):
        named = f"{where}: record {found.key!r}"
        key, name = _key_and_name(found.key)
        if key in known:
            raise FormatError(f"{named}: a second record with this key, or one like {known[key]!r}; rename one of them")
        known[key] = found.key
        yield _row(found, name, len(known) - 1, shard, named)


def loose_members(row: Row, class_name: str, rgb: Sequence[Blob], flow: Sequence[Blob]) -> Members:
    """The four members of a record whose frames are `rgb` and x0 y0 x1 y1 ... `flow`, read as its row says.

    Nothing is checked: `shards.format.decode` does that, against the checksums in the row.
    """
    streams = [_joined(place, jpegs) for place, jpegs in ((row.rgb, rgb), (row.flow, flow))]
    return encode(_record(row.name, row.label, class_name, row.fps, row.header_offset, *streams))


def _records(files: Iterator[Member], read: Read, where: str) -> Iterator[_Found]:
    """What belongs together, record by record."""
    found: _Found | None = None
    for file in files:
        parts = _MEMBER.fullmatch(file.name)
        if parts is None:
            continue  # hidden files, files without an ending: webdataset passes them over, too
        if found is None or found.key != parts[1]:
            if found is not None:
                yield found
            found = _Found(key=parts[1])
        _take(found, file, parts[2], read, f"{where}: record {found.key!r}")
    if found is not None:
        yield found


def _take(found: _Found, file: Member, ending: str, read: Read, named: str) -> None:
    frame = _FRAME.fullmatch(ending)
    if frame is not None:
        stream, number = found.streams[frame[1].lower()], int(frame[2])
        if number in stream:
            raise FormatError(f"{named}: {file.name} and {stream[number].member.name} have the same number")
        stream[number] = _File(file, bytes(read(file.offset, file.offset + file.size)))
    elif ending in ("cls", "json"):
        if ending in found.notes or file.size > LONGEST_NOTE:
            raise FormatError(f"{named}: {file.name}: a second one, or of {file.size} bytes; expected {LONGEST_NOTE}")
        found.notes[ending] = _File(file, bytes(read(file.offset, file.offset + file.size)))
    elif _NEARLY.fullmatch(ending):
        raise FormatError(f"{named}: found {file.name}, expected names like rgb.000001.jpg and flow_x.000001.jpg")


def _key_and_name(key: str) -> tuple[str, str]:
    """The record's key and name: a key such as ours is taken as it is, any other is a name and becomes a key."""
    try:
        return key, name_of(key)
    except FormatError:
        return key_of(key), key


def _row(found: _Found, name: str, number: int, shard: int, named: str) -> tuple[Row, Record]:
    if "cls" not in found.notes:
        raise FormatError(f"{named}: has no {found.key}.cls; its members must lie together in the tar")
    cls = found.notes["cls"]
    text = cls.data.strip()
    if not (text.isdigit() and len(text) <= 10 and int(text) <= INT32):
        raise FormatError(f"{named}: {cls.member.name}: expected a label counted from 0, found {cls.data[:20]!r}")
    label = int(text)
    class_name, fps = _said(found.notes.get("json"), label, named)
    rgb, (x, y) = _ordered(found, "rgb", named), (_ordered(found, stream, named) for stream in ("flow_x", "flow_y"))
    if not rgb:
        raise FormatError(f"{named}: has no frames {found.key}.rgb.000001.jpg")
    pairs = _pairs(found, len(rgb), named)
    flow = [one for pair in zip(x[:pairs], y[:pairs], strict=True) for one in pair]
    frames = [_frames(files, fallback, named) for files, fallback in ((rgb, None), (flow, rgb))]
    record = _record(name, label, class_name, fps, 2 * (len(x) - pairs), *frames)
    row = row_of(key_of(name), record, encode(record), number=number, shard=shard)
    return (
        replace(
            row,
            cls_offset=cls.member.offset,
            header_offset=record.flow_made.dropped,
            header_size=0,
            rgb=_place(row.rgb, rgb, named),
            flow=_place(row.flow, flow, named),
        ),
        record,
    )


def _said(note: _File | None, label: int, named: str) -> tuple[str, tuple[int, int]]:
    """The class's name and the frames per second that the .json tells, if there is one."""
    if note is None:
        return str(label), (0, 1)
    where = f"{named}: {note.member.name}"
    try:
        said = json.loads(note.data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not readable as JSON: {error}") from error
    if not isinstance(said, dict):
        raise FormatError(f'{where}: expected a map like {{"class": "Archery", "fps": 25}}')
    class_name = said.get("class", str(label))
    if type(class_name) is not str or not class_name:
        raise FormatError(f"{where}: class: expected a name, found {str(class_name)[:40]!r}")
    return class_name, _rate(said.get("fps", [0, 1]), where)


def _rate(fps: Any, where: str) -> tuple[int, int]:
    if isinstance(fps, list) and len(fps) == 2 and all(type(one) is int and 0 <= one <= UINT32 for one in fps):
        return fps[0], fps[1]
    if type(fps) in (int, float) and math.isfinite(fps) and 0 <= fps <= 1e6:
        rate = Fraction(fps).limit_denominator(1001)
        return rate.numerator, rate.denominator
    raise FormatError(f"{where}: fps: expected frames per second, or [numerator, denominator], found {str(fps)[:40]!r}")


def _ordered(found: _Found, stream: str, named: str) -> list[_File]:
    """The pictures of a stream by number. Raises FormatError where a number is missing."""
    pictures = found.streams[stream]
    numbers = sorted(pictures)
    first = min(found.streams["rgb"], default=0)
    if first not in (0, 1):
        raise FormatError(f"{named}: its frames begin with {found.streams['rgb'][first].member.name}; expected 0 or 1")
    for expected, number in enumerate(numbers, first):
        if number != expected:
            raise FormatError(f"{named}: lacks {stream} number {expected}; found {pictures[number].member.name}")
    return [pictures[number] for number in numbers]


def _pairs(found: _Found, frames: int, named: str) -> int:
    x, y = (found.streams[stream] for stream in ("flow_x", "flow_y"))
    if alone := sorted(x.keys() ^ y.keys()):
        member = (x.get(alone[0]) or y[alone[0]]).member.name
        raise FormatError(f"{named}: {member} is alone; flow has an x and a y for each number")
    if len(x) not in (frames - 1, frames):
        raise FormatError(f"{named}: {frames} frames have {frames - 1} or {frames} flow pairs, found {len(x)}")
    return frames - 1


def _frames(files: Sequence[_File], fallback: Sequence[_File] | None, named: str) -> Frames:
    """The pictures as a stream; one without any has the size of `fallback`."""
    sizes = [_size(file, named) for file in files]
    for file, size in zip(files, sizes, strict=True):
        if size != sizes[0]:
            raise FormatError(f"{named}: {file.member.name} is {_shown(size)}, the others {_shown(sizes[0])}")
    width, height, components = sizes[0] if sizes else (*_size(fallback[0], named)[:2], 1) if fallback else (0, 0, 1)
    return Frames.of([file.data for file in files], width=width, height=height, components=components, encoder={})


def _shown(size: tuple[int, int, int]) -> str:
    return f"{size[0]}x{size[1]} with {size[2]} components"


def _size(file: _File, named: str) -> tuple[int, int, int]:
    """Width, height and components of a JPEG, out of its header. Raises FormatError where it is none."""
    data, position = file.data, 2
    if data[:3] == b"\xff\xd8\xff" and data.rstrip(b"\0")[-2:] == b"\xff\xd9":
        while position + 10 <= len(data) and data[position] == 0xFF:
            marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
            if marker in _SIZES:
                height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
                components = data[position + 9]
                if not (0 < width * height <= MOST_PIXELS and 1 <= components <= 4):
                    break
                return width, height, components
            position += 1 if marker == 0xFF else 2 + length
    raise FormatError(f"{named}: {file.member.name}: not a JPEG of at most {MOST_PIXELS} pixels, or cut short")


def _record(
    name: str, label: int, class_name: str, fps: tuple[int, int], dropped: int, rgb: Frames, flow: Frames
) -> Record:
    digest = hashlib.sha256(rgb.blob)
    digest.update(flow.blob)
    return Record(
        name=name,
        label=label,
        class_name=class_name,
        fps=fps,
        source=Source(sha256=digest.hexdigest(), bytes=len(rgb.blob) + len(flow.blob)),
        decoded_frames=len(rgb),
        header_frames=0,
        rgb=rgb,
        flow=flow,
        flow_made=FlowMade(
            method="extracted", parameters={}, library="", scale=flow.width / rgb.width, dropped=dropped
        ),
    )


def _place(place: StreamPlace, files: Sequence[_File], named: str) -> StreamPlace:
    """`place` with each image where it lies in the tar."""
    offset = min((file.member.offset for file in files), default=0)
    stops = [file.member.offset + file.member.size - offset for file in files]
    if max(stops, default=0) > FARTHEST:
        raise FormatError(f"{named}: its frames lie more than 4 GiB apart; cut the video")
    starts = np.array([file.member.offset - offset for file in files], np.uint32)
    return replace(place, offset=offset, starts=starts, ends=np.array(stops, np.uint32))


def _joined(place: StreamPlace, jpegs: Sequence[Blob]) -> Frames:
    ends: Table = np.cumsum([len(jpeg) for jpeg in jpegs], dtype=np.uint64).astype(np.uint32)
    return Frames(
        width=place.width,
        height=place.height,
        components=place.components,
        encoder={},
        blob=b"".join(jpegs),
        ends=ends,
        crcs=place.crcs,
    )
