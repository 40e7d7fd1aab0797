"""Where the bytes of a split lie: one Protocol, and one file for each kind of place.

A store hands out bytes; it decides nothing about records. Its reads may come from many threads at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shards.index import Row
from shards.record import Blob
from shards.tar import Read

Stream = Literal["rgb", "flow"]


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes start .. stop - 1 of a blob: a shard, a loose file, a value of a database."""

    blob: str
    start: int
    stop: int


class Store(Protocol):
    """The bytes of one split."""

    @property
    def location(self) -> str:
        """Where it is, as the user gave it, without credentials."""

    @property
    def gap(self) -> int:
        """Bytes between two ranges of a blob under which one read is cheaper than two."""

    @property
    def waste(self) -> float:
        """How many unwanted bytes may be read between wanted ones, as a share of these."""

    def small(self, name: str) -> bytes:
        """A whole small file of the split: manifest.json, train.index. UnreachableError where there is none."""

    def size(self, blob: str) -> int:
        """Bytes of a blob. UnreachableError where there is none."""

    def reader(self, blob: str) -> Read:
        """A function (start, stop) -> bytes for going through a blob from its start."""

    def place(self, part: str, row: Row, stream: Stream) -> tuple[str, int]:
        """The blob that holds the JPEGs of a record's stream, and the offset of the first."""

    def member(self, part: str, row: Row, member: str) -> tuple[str, int, int]:
        """The blob that holds one of a record's four members, with start and stop."""

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, whole, in order; the caller has merged neighbours.

        Raises TruncatedShardError where a blob ends early, UnreachableError where there is none.
        """

    def again(self, wanted: Range) -> Blob:
        """The bytes of a range once more, past any copy: those read before were damaged."""

    def close(self) -> None:
        """Ends reading; bytes already handed out stay valid."""
