"""What an index says about one record: who it is, and where in its shard its members and each of its frames lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from shards.errors import FormatError
from shards.format import CLS, FLOW, INDEX, RGB, Members, key_of, name_of, record_sha256
from shards.record import Frames, Record, Table
from shards.tar import Member


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StreamPlace:
    """Where the JPEGs of one stream of a record lie: image i is bytes ends[i - 1] .. ends[i] from `offset`.

    Where they do not lie one behind the other, as in a tar with a member per frame, image i is starts[i] .. ends[i].
    """

    offset: int  # of the first JPEG in the shard
    size: int
    width: int  # pixels
    height: int
    components: int
    ends: Table
    crcs: Table
    starts: Table | None = None  # None: each begins where the one before it ends

    def start(self, image: int) -> int:
        """Where an image begins, from `offset`."""
        if self.starts is not None:
            return int(self.starts[image])
        return int(self.ends[image - 1]) if image else 0

    def begins(self) -> Table:
        """Where every image begins, (images,)."""
        if self.starts is not None:
            return self.starts
        return np.concatenate([np.zeros(1, np.uint32), self.ends[:-1]]) if len(self.ends) else self.ends


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """What the index says about one record. Offsets are bytes from the start of its tar shard."""

    record: int  # its position in the part, 0 .. N-1
    key: str
    label: int
    shard: int  # number of its shard
    frames: int
    sha256: bytes  # 32 bytes, of the record
    fps: tuple[int, int]
    cls_offset: int
    header_offset: int  # loose frames: how many flow images were left out, for they have no header that says it
    header_size: int
    flow: StreamPlace
    rgb: StreamPlace

    @property
    def name(self) -> str:
        """The video's name."""
        return name_of(self.key)

    @property
    def loose(self) -> bool:
        """Whether its frames are members of their own: then `shards.split.Split.members` puts its four together."""
        return not self.header_size

    def span(self, member: str) -> tuple[int, int]:
        """Start and stop of one of the four members in the shard."""
        start, size = {
            CLS: (self.cls_offset, len(str(self.label))),
            INDEX: (self.header_offset, self.header_size),
            FLOW: (self.flow.offset, self.flow.size),
            RGB: (self.rgb.offset, self.rgb.size),
        }[member]
        return start, start + size


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """What the index says about one record without its frame tables, which may be far away."""

    record: int  # its position in the part, 0 .. N-1
    key: str
    label: int
    frames: int
    width: int  # pixels, of the frames
    height: int
    rgb_size: int  # bytes of its frames' JPEGs
    flow_size: int
    rgb_tables: int  # CRC-32C of the table of its frames: where each ends, and each one's CRC-32C

    @property
    def name(self) -> str:
        """The video's name."""
        return name_of(self.key)


def row_of(key: str, record: Record, blobs: Members, *, number: int, shard: int) -> Row:
    """The row of a record that lies nowhere yet. Raises FormatError where `key` is not that of its name."""
    if key_of(record.name) != key:
        raise FormatError(f"record {key!r} holds {record.name!r}, whose key is {key_of(record.name)!r}")
    return Row(
        record=number,
        key=key,
        label=record.label,
        shard=shard,
        frames=record.frames,
        sha256=record_sha256(blobs),
        fps=record.fps,
        cls_offset=0,
        header_offset=0,
        header_size=len(blobs[INDEX]),
        flow=_stream_place(record.flow),
        rgb=_stream_place(record.rgb),
    )


def located(row: Row, places: Mapping[str, Member]) -> Row:
    """`row` with its record's members at `places` in the shard."""
    return replace(
        row,
        cls_offset=places[CLS].offset,
        header_offset=places[INDEX].offset,
        flow=replace(row.flow, offset=places[FLOW].offset),
        rgb=replace(row.rgb, offset=places[RGB].offset),
    )


def _stream_place(frames: Frames) -> StreamPlace:
    return StreamPlace(
        offset=0,
        size=len(frames.blob),
        width=frames.width,
        height=frames.height,
        components=frames.components,
        ends=frames.ends,
        crcs=frames.crcs,
    )
