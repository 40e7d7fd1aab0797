"""A folder in the making: `NAME.partial` beside its place, written by one process at a time, gone on with later."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import ShardError


@contextmanager
def held(partial: Path) -> Iterator[None]:
    """Keeps other processes out of `partial`, which stays after an error only where a file in it is whole.

    The lock ends with the process, however that ends. Raises ShardError where another one has it.
    """
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield
        except BaseException as error:
            if not any(partial.iterdir()):
                partial.rmdir()
            elif isinstance(error, ShardError):
                error.add_note(f"What is whole waits in {partial}: the same command goes on from there")
            raise
    except BlockingIOError:
        raise ShardError(f"{partial}: another process is writing there; wait for its end") from None
    finally:
        os.close(handle)


def tidy(partial: Path, names: Collection[str]) -> None:
    """Takes away all that an interrupted command left, except files with these names."""
    for left in partial.iterdir():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        elif left.name not in names or left.is_symlink():
            left.unlink()


def clear(partial: Path) -> None:
    """Takes away what an interrupted command left."""
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)


def room(path: Path, needed: int) -> None:
    """Raises ShardError where there is no room for `needed` bytes at `path`."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise ShardError(f"{path}: cannot be written: {needed >> 20} MiB needed, {free >> 20} MiB free in {above}")
