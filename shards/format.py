"""A record as four members of a shard, and back: version 1 of the format.

    <key>.cls               the label, counted from 0, as ASCII digits and nothing else
    <key>.index.msgpack     who the record is, how it was made, and where each JPEG ends, with its CRC-32C
    <key>.video.flow.mjpeg  gray JPEGs x0 y0 x1 y1 ...; empty where there is one frame
    <key>.video.rgb.mjpeg   JPEGs, one after the other

The MessagePack map has a closed schema. Its tables are little-endian 32-bit words; `cls_crc` covers the first member,
and the last entry, `crc`, all bytes before its own four. Equal records give equal bytes: settings are sorted, and there
are no times and no hosts.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c
import msgpack
import numpy as np

from shards.errors import CorruptRecordError, FormatError
from shards.fields import INT32, Fields, is_plain, shown
from shards.record import Blob, FlowMade, Frames, Plain, Record, Source, Table

SCHEMA = 1
CLS, INDEX, FLOW, RGB = MEMBERS = ("cls", "index.msgpack", "video.flow.mjpeg", "video.rgb.mjpeg")  # order in the tar
LONGEST_KEY = 200  # bytes: with the longest member and `.partial` it still is a file name, and an LMDB key
LONGEST_HEADER = 1 << 26  # bytes of index.msgpack: 2.8 million frames
LONGEST_SIDE = 65535  # pixels: what a JPEG can say
MOST_PIXELS = 1 << 25  # of a picture, 8192 x 4096: memory is set aside for them
PIXELS_PER_BYTE = 1024  # of a JPEG, at most: each block of 64 takes two bits, in a progressive one about one

Members = Mapping[str, Blob]

_KEYS = (
    *("schema", "name", "label", "class", "fps", "source", "decoded_frames", "header_frames"),
    *("flow_made", "flow", "rgb", "cls_crc", "crc"),
)
_SOURCE_KEYS = ("sha256", "bytes")
_FLOW_KEYS = ("method", "parameters", "library", "levels_per_pixel", "zero", "scale", "dropped")
_STREAM_KEYS = ("width", "height", "components", "encoder", "count", "ends", "crcs")
_NEXT = "Find all damage with: stmul shards verify"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StreamHeader:
    """What a record says about one of its streams: all but the JPEGs."""

    width: int
    height: int
    components: int
    encoder: Mapping[str, Plain]
    ends: Table
    crcs: Table

    def __len__(self) -> int:
        """How many JPEGs."""
        return len(self.ends)

    @property
    def size(self) -> int:
        """Bytes of all JPEGs together."""
        return int(self.ends[-1]) if len(self.ends) else 0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Header:
    """What a record says about itself: all but the JPEGs."""

    name: str
    label: int
    class_name: str
    fps: tuple[int, int]
    source: Source
    decoded_frames: int
    header_frames: int
    rgb: StreamHeader
    flow: StreamHeader
    flow_made: FlowMade
    cls_crc: int  # of the member with the label

    @property
    def frames(self) -> int:
        """How many frames, n."""
        return len(self.rgb)


def key_of(name: str) -> str:
    """`name` as the key of its record: `.`, `%`, both slashes and control characters become %XX of their bytes.

    No two names share a key. Raises FormatError where the name is empty, no text, or longer than 200 bytes as a key.
    """
    try:
        key = "".join(_escaped(character) for character in name)
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise FormatError(f"{shown(name)}: not UTF-8 text, so it cannot name a record; rename the video") from error
    if not key:
        raise FormatError("a record needs a name; found an empty one")
    if size > LONGEST_KEY:
        raise FormatError(f"{shown(name)}: {size} bytes as a key, expected at most {LONGEST_KEY}; rename the video")
    return key


def name_of(key: str) -> str:
    """The name that `key_of` made `key` of. Raises FormatError where it cannot have."""
    try:
        name = re.sub(r"(?:%[0-9A-F]{2})+", lambda run: bytes.fromhex(run[0].replace("%", "")).decode(), key)
        if key_of(name) == key:
            return name
    except (UnicodeDecodeError, FormatError):
        pass
    raise FormatError(f"{key!r}: not the key of any name; % stands only before hexadecimal of what is escaped")


def encode(record: Record) -> dict[str, bytes]:
    """The members of `record`, in their order. Raises FormatError where something in it cannot be stored."""
    key_of(record.name)
    cls = str(record.label).encode()
    made = record.flow_made
    fields = {
        "schema": SCHEMA,
        "name": record.name,
        "label": record.label,
        "class": record.class_name,
        "fps": list(record.fps),
        "source": {"sha256": record.source.sha256, "bytes": record.source.bytes},
        "decoded_frames": record.decoded_frames,
        "header_frames": record.header_frames,
        "flow_made": {
            "method": made.method,
            "parameters": _sorted(made.parameters, record.name),
            "library": made.library,
            "levels_per_pixel": float(made.levels_per_pixel),
            "zero": float(made.zero),
            "scale": float(made.scale),
            "dropped": made.dropped,
        },
        "flow": _stream_fields(record.flow, record.name),
        "rgb": _stream_fields(record.rgb, record.name),
        "cls_crc": crc32c(cls),
        "crc": bytes(4),
    }
    try:
        header = msgpack.packb(fields)[:-4]
    except (ValueError, OverflowError) as error:  # halves of characters, numbers of more than 64 bits
        raise FormatError(f"{record.name}: something in it cannot be stored: {error}") from error
    header += crc32c(header).to_bytes(4, "little")
    parse_index(header, record.name)  # what could not be read must not be written
    return {CLS: cls, INDEX: header, FLOW: bytes(record.flow.blob), RGB: bytes(record.rgb.blob)}


def decode(members: Members, where: str = "a record") -> Record:
    """The record that `members` are; every byte of it has been checked. The JPEGs are not copied.

    Raises FormatError where a member is missing or unknown, CorruptRecordError where bytes are not those written:
    `where`, the member and the frame are named, with the checksum found and the one expected.
    """
    if missing := [member for member in MEMBERS if member not in members]:
        raise FormatError(f"{where}: lacks {missing[0]}; a record has {', '.join(MEMBERS)}")
    if unknown := [member for member in members if member not in MEMBERS]:
        raise FormatError(f"{where}: unknown member {unknown[0]}; a record has {', '.join(MEMBERS)}")
    header = parse_index(members[INDEX], where)
    check_label(header, members[CLS], where)
    return Record(
        name=header.name,
        label=header.label,
        class_name=header.class_name,
        fps=header.fps,
        source=header.source,
        decoded_frames=header.decoded_frames,
        header_frames=header.header_frames,
        rgb=_frames(header.rgb, members[RGB], f"{where}: {RGB}", "frame {}"),
        flow=_frames(header.flow, members[FLOW], f"{where}: {FLOW}", "image {}"),
        flow_made=header.flow_made,
    )


def parse_index(data: Blob, where: str) -> Header:
    """What index.msgpack says, its own checksum checked first; needs none of the other members.

    Raises CorruptRecordError where the checksum differs, FormatError where what it holds is not of this version.
    """
    place = f"{where}: {INDEX}"
    if not 4 < len(data) <= LONGEST_HEADER:
        raise FormatError(f"{place}: {len(data)} bytes, expected 5 to {LONGEST_HEADER}")
    found, expected = crc32c(data[:-4]), int.from_bytes(data[-4:], "little")
    if found != expected:
        raise CorruptRecordError(f"{place}: checksum {found:08x}, expected {expected:08x}. {_NEXT}")
    fields = Fields(_unpacked(data, place), _KEYS, where=place)
    fields.binary("crc", 4)
    name, source, made = fields.text("name", empty=False), fields.below("source", _SOURCE_KEYS), _flow_made(fields)
    key_of(name)
    numerator, denominator = fields.integers("fps", 2)
    header = Header(
        name=name,
        label=fields.integer("label", high=INT32),
        class_name=fields.text("class"),
        fps=(numerator, denominator),
        source=Source(sha256=source.text("sha256"), bytes=source.integer("bytes", high=2**63 - 1)),
        decoded_frames=fields.integer("decoded_frames"),
        header_frames=fields.integer("header_frames"),
        flow_made=made,
        flow=_stream_header(fields.below("flow", _STREAM_KEYS), f"{place}: flow"),
        rgb=_stream_header(fields.below("rgb", _STREAM_KEYS), f"{place}: rgb"),
        cls_crc=fields.integer("cls_crc"),
    )
    if not len(header.rgb) or len(header.flow) != 2 * (len(header.rgb) - 1):
        raise FormatError(
            f"{place}: {len(header.rgb)} frames, {len(header.flow)} flow images; n frames (n > 0) have 2 (n - 1)"
        )
    return header


def check_label(header: Header, cls: Blob, where: str) -> None:
    """Raises CorruptRecordError where the member with the label is not what the header says."""
    found, said = crc32c(cls), bytes(cls[:20])
    if found != header.cls_crc or said != str(header.label).encode():
        raise CorruptRecordError(
            f"{where}: {CLS}: {said!r} with checksum {found:08x}, expected {str(header.label).encode()!r} with"
            f" {header.cls_crc:08x}. {_NEXT}"
        )


def record_sha256(members: Members) -> bytes:
    """The SHA-256 (32 bytes) of a record: of its members in their order, each with its name and length."""
    digest = hashlib.sha256()
    for member in MEMBERS:
        digest.update(f"{member} {len(members[member])}\n".encode())
        digest.update(members[member])
    return digest.digest()


def dataset_digest(rows: Iterable[tuple[str, int, bytes]]) -> str:
    """The SHA-256 (hexadecimal) of a part: of (key, label, record's SHA-256) in the order of its records."""
    digest = hashlib.sha256()
    for key, label, sha256 in rows:
        digest.update(f"{key} {label} {sha256.hex()}\n".encode())
    return digest.hexdigest()


def split_digest(parts: Mapping[str, str]) -> str:
    """The SHA-256 (hexadecimal) of a split: of the names and digests of its parts, by name."""
    return hashlib.sha256("".join(f"{part} {parts[part]}\n" for part in sorted(parts)).encode()).hexdigest()


def crc32c(data: Blob) -> int:
    """The CRC-32C of `data`. Views are not copied (the library itself takes no memoryview)."""
    if isinstance(data, memoryview):
        return int(google_crc32c.value(np.frombuffer(data, np.uint8))) if len(data) else 0
    return int(google_crc32c.value(data))


def _escaped(character: str) -> str:
    if character in ".%/\\" or unicodedata.category(character) == "Cc":
        return "".join(f"%{byte:02X}" for byte in character.encode())
    return character


def _sorted(settings: Mapping[str, Plain], name: str) -> dict[str, Plain]:
    for key, value in settings.items():
        if type(key) is not str or not is_plain(value):
            raise FormatError(f"{name}: setting {key!r} is {value!r}; expected text, a number, true, false or none")
    return {key: settings[key] for key in sorted(settings)}


def _stream_fields(frames: Frames, name: str) -> dict[str, Any]:
    if len(frames.blob) != (int(frames.ends[-1]) if len(frames) else 0):
        raise FormatError(f"{name}: {len(frames.blob)} bytes of JPEGs, but the last one ends elsewhere")
    return {
        "width": frames.width,
        "height": frames.height,
        "components": frames.components,
        "encoder": _sorted(frames.encoder, name),
        "count": len(frames),
        "ends": frames.ends.astype("<u4").tobytes(),
        "crcs": frames.crcs.astype("<u4").tobytes(),
    }


def _unpacked(data: Blob, place: str) -> dict[str, Any]:
    # Lengths are bounded before anything is allocated for them; binary values are bounded by the data itself.
    try:
        value = msgpack.unpackb(
            data, raw=False, strict_map_key=True, max_array_len=2, max_map_len=256, max_str_len=1 << 16, max_ext_len=0
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise FormatError(f"{place}: not MessagePack as a record has it: {error}") from error
    schema = value.get("schema") if isinstance(value, dict) else None
    if type(schema) is not int or schema != SCHEMA:
        raise FormatError(f"{place}: schema {shown(schema)}, this version reads {SCHEMA}; update the program")
    assert isinstance(value, dict)
    return value


def _flow_made(fields: Fields) -> FlowMade:
    made = fields.below("flow_made", _FLOW_KEYS)
    return FlowMade(
        method=made.text("method"),
        parameters=made.plain("parameters"),
        library=made.text("library"),
        levels_per_pixel=made.number("levels_per_pixel"),
        zero=made.number("zero"),
        scale=made.number("scale"),
        dropped=made.integer("dropped"),
    )


def _stream_header(fields: Fields, place: str) -> StreamHeader:
    count = fields.integer("count", high=LONGEST_HEADER // 8)
    ends = np.frombuffer(fields.binary("ends", 4 * count), "<u4")
    if count and (ends[0] == 0 or (ends[1:] <= ends[:-1]).any()):
        raise FormatError(f"{place}: each JPEG must end after the one before it")
    width, height = (fields.integer(side, high=LONGEST_SIDE) for side in ("width", "height"))
    if width * height > MOST_PIXELS:
        raise FormatError(f"{place}: pictures of {width}x{height}, expected at most {MOST_PIXELS} pixels")
    return StreamHeader(
        width=width,
        height=height,
        components=fields.integer("components", low=1, high=4),
        encoder=fields.plain("encoder"),
        ends=ends,
        crcs=np.frombuffer(fields.binary("crcs", 4 * count), "<u4"),
    )


def _frames(header: StreamHeader, blob: Blob, place: str, image_name: str) -> Frames:
    if len(blob) != header.size:
        raise CorruptRecordError(f"{place}: {len(blob)} bytes, expected {header.size}. {_NEXT}")
    frames = Frames(
        width=header.width,
        height=header.height,
        components=header.components,
        encoder=header.encoder,
        blob=blob,
        ends=header.ends,
        crcs=header.crcs,
    )
    data, start = np.frombuffer(blob or b"0", np.uint8), 0  # one array, cut up: hundreds of views would cost more
    for image, (stop, expected) in enumerate(zip(header.ends.tolist(), header.crcs.tolist(), strict=True)):
        found, start = int(google_crc32c.value(data[start:stop])), stop
        if found != expected:
            named = image_name.format(image) + f" of {len(frames)}"
            raise CorruptRecordError(f"{place}: {named}: checksum {found:08x}, expected {expected:08x}. {_NEXT}")
    return frames
