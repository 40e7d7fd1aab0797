"""A split as tar shards in a folder, or one tar alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

from shards.index import Row
from shards.manifest import shard_name
from shards.record import Blob
from shards.stores import Range, Stream
from shards.stores.files import GAP, Folder
from shards.tar import Read


class TarStore:
    """Tar shards on disk, read at offsets. `names` are the files of each part where no manifest names them."""

    gap = GAP
    waste = inf

    def __init__(self, folder: Path, names: Mapping[str, Sequence[str]] | None = None) -> None:
        self.folder, self._names = folder, names
        self._files = Folder(folder)

    @property
    def location(self) -> str:
        """The folder, or the one tar."""
        tars = [name for of_part in (self._names or {}).values() for name in of_part]
        return str(self.folder / tars[0] if len(tars) == 1 else self.folder)

    def small(self, name: str) -> bytes:
        """A whole small file."""
        return self._files.small(name)

    def size(self, blob: str) -> int:
        """Bytes of a shard."""
        return self._files.size(blob)

    def reader(self, blob: str) -> Read:
        """A function (start, stop) -> bytes of a shard."""
        return self._files.reader(blob)

    def place(self, part: str, row: Row, stream: Stream) -> tuple[str, int]:
        """The shard of a record, and where in it a stream begins."""
        return self._name(part, row), (row.rgb if stream == "rgb" else row.flow).offset

    def member(self, part: str, row: Row, member: str) -> tuple[str, int, int]:
        """The shard of a record, and where in it a member begins and ends."""
        return self._name(part, row), *row.span(member)

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        """The bytes of each range, in order."""
        return self._files.fetch(ranges)

    def again(self, wanted: Range) -> Blob:
        """The bytes of a range once more."""
        return self.fetch([wanted])[0]

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def _name(self, part: str, row: Row) -> str:
        return self._names[part][row.shard] if self._names else shard_name(part, row.shard)
