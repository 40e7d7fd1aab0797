"""Open files with their locks, which end with the process that has them, however it ends."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from pathlib import Path

from shards.errors import ShardError


class Held:
    """An open file and its lock. Use as a context manager, or call `close`; `handle` is for os.pread and os.pwrite."""

    __slots__ = ("_exclusive", "_holds", "handle", "path", "thread")

    def __init__(self, handle: int, path: Path, *, exclusive: bool, holds: set[Held]) -> None:
        self.handle, self.path, self.thread = handle, path, threading.get_ident()
        self._exclusive, self._holds = exclusive, holds
        holds.add(self)

    def close(self) -> None:
        """Lets the file go."""
        if self._exclusive and self.handle >= 0:
            fcntl.flock(self.handle, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """Closes the file and says nothing about the lock, which others may have through a fork."""
        self._holds.discard(self)
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)

    def still_named(self) -> bool:
        """Whether the path names this very file."""
        try:
            return os.path.samestat(os.fstat(self.handle), self.path.stat())
        except FileNotFoundError:
            return False

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Holds:
    """What an object of this process holds. Threads may share it.

    A fork shares what is open, and with it the locks. For a file that is read this is right: it is in use until parent
    and child have closed it, and nobody ever says LOCK_UN for it, which would unlock it for both. What is written goes
    on in the parent alone, and its lock must not outlive the parent in a child: the child closes it, which leaves the
    parent's lock alone, and the parent says LOCK_UN at the end, whoever has the file open by then.
    """

    def __init__(self) -> None:
        self._held = set[Held]()
        _all_holds.add(self)

    def locked(self, path: Path, flags: int, *, exclusive: bool) -> Held | None:
        """`path`, opened and locked; None where it is not there, or another one has it.

        Raises OSError where it cannot be opened, ShardError where the file system has no locks.
        """
        try:
            handle = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            return None
        held, kept = Held(handle, path, exclusive=exclusive, holds=self._held), False
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            kept = held.still_named()  # it may have been removed before it was locked
        except BlockingIOError:
            return None
        except OSError as error:
            raise ShardError(
                f"{path}: cannot be locked: {error.strerror}. Name a folder on a disk of this machine"
            ) from error
        finally:
            if not kept:
                held.forget()
        return held if kept else None

    def forked(self) -> None:
        """Called in a child: closes what threads had open that are not here any more."""
        for held in list(self._held):
            if held.thread != threading.get_ident():
                held.forget()


_all_holds = weakref.WeakSet[Holds]()


def _forked() -> None:
    for holds in list(_all_holds):
        holds.forked()


os.register_at_fork(after_in_child=_forked)
