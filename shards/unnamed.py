"""A file without a name, to map what is too large for memory; it is gone with whoever holds it."""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

from shards.errors import ShardError
from shards.record import Blob
from shards.whole import unwritable


class Unnamed:
    """A file of `size` bytes in the folder for temporary files ($TMPDIR); only what is written takes room on the disk.

    It is written by calls, so that a full disk is an error here and no signal to whoever reads the map. Threads may
    share it. Raises ShardError where it cannot be made or written.
    """

    def __init__(self, size: int) -> None:
        self._handle = -1
        try:
            with tempfile.TemporaryFile(prefix="stmul-") as file:
                file.truncate(size)
                self._handle = os.dup(file.fileno())
        except (OSError, OverflowError) as error:
            raise _failed(error) from error

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def write(self, data: Blob, start: int) -> None:
        """Writes `data` at byte `start`."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._handle, view, start)
                view, start = view[written:], start + written
        except OSError as error:
            raise _failed(error) from error

    def mapped(self) -> mmap.mmap:
        """All of it, to read; what is written later is seen, too. It may outlive the file."""
        try:
            return mmap.mmap(self._handle, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError, OverflowError) as error:
            raise _failed(error) from error


def _failed(error: Exception) -> ShardError:
    return unwritable(Path(tempfile.gettempdir()), error)
