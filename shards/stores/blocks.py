"""Short reads of one file, made out of long ones."""

from __future__ import annotations

from shards.record import Blob
from shards.tar import Read

BLOCK = 64 * 1024  # bytes read ahead where a file is scanned, at first
LARGEST_BLOCK = 8 * 1024 * 1024


class Blocks:
    """Reads of one file, mostly onwards, through a block read ahead; it doubles while nothing is passed over.

    A scan of a tar's headers so costs about two small reads for each record, a scan of all its bytes few large ones.
    """

    def __init__(self, fetch: Read, size: int) -> None:
        self._fetch, self._size = fetch, size
        self._start, self._block, self._ahead = 0, memoryview(b""), BLOCK // 2

    def read(self, start: int, stop: int) -> Blob:
        """The bytes start .. stop."""
        head = self._block[start - self._start : stop - self._start] if start >= self._start else self._block[:0]
        if len(head) == stop - start:
            return head
        onwards = self._start <= start <= self._start + len(self._block)
        self._ahead = min(2 * self._ahead, LARGEST_BLOCK) if onwards else BLOCK
        self._start = start + len(head)
        end = max(stop, min(self._start + self._ahead, self._size))
        self._block = memoryview(self._fetch(self._start, end))
        tail = self._block[: stop - self._start]
        return b"".join([head, tail]) if head else tail
