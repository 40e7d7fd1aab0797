"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.errors import ShardError


@contextmanager
def whole(path: Path, *, mark: str = "") -> Iterator[BinaryIO]:
    """A file to write that becomes `path` when the block ends well, on disk and all at once; else nothing is left.

    Writers of one `path` at the same time, on nodes that share a folder, each need a `mark` of their own.
    Raises ShardError with the path and the reason where the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.{mark}.partial" if mark else f"{path.name}.partial")
    try:
        file = partial.open("wb")
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.filename is not None and Path(error.filename) not in (path, partial):
            raise  # of something else that was read or written in the block
        raise unwritable(path, error) from error


def sync_folder(folder: Path) -> None:
    """Returns when the names in `folder` are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Makes `folder` if need be. Raises ShardError where nothing can be written there: better before hours of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        file = next(path for path in (folder, *folder.parents) if path.exists())
        raise ShardError(f"{folder}: cannot be written: expected a folder, found a file, {file}") from error
    except OSError as error:
        raise unwritable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def unwritable(path: Path, error: Exception) -> ShardError:
    """The error that says that `path` cannot be written, and why."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ShardError(f"{path}: cannot be written: {reason}. Check the disk's free space and the folder's permissions")
