"""Threads that make requests: begun when wanted, first come first served.

They are daemons, so that one that hangs keeps nobody from going on. But a daemon that comes back from native code when
Python has already ended aborts the process: so at its end those that are at work are waited for, as long as a request
that stands still may last. A program in a hurry asks `at_work` and ends itself.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

LEAVE = 15.0  # seconds: longer than a connection may stand still (`connect.TIMES`)


class Hands:
    """At most `most` daemon threads. With `awaited` they are those that the end of the process waits for."""

    def __init__(self, most: int, name: str, *, awaited: bool = False) -> None:
        self._most, self._name, self.process = most, name, os.getpid()
        self._todo: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads, self._under_way = 0, set[Future[Any]]()
        self.open = 0  # tasks begun and not done
        self.closed = False  # nothing more is begun
        if awaited:
            _awaited.add(self)

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """What `work()` will give; cancelled where all was closed before."""
        future: Future[T] = Future()
        with self._lock:
            if self.closed:
                _cancel(future)
                return future
            self.open += 1
            if self._threads < min(self._most, self.open):
                self._threads += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            self._todo.put((future, work))
        return future

    def close(self) -> None:
        """Gives up all that is not done: who waits is told so. The threads go when they have done what they are at."""
        with self._lock:
            self.closed = True
            for future in self._under_way:
                with suppress(InvalidStateError):  # just done
                    future.set_exception(CancelledError())
            try:
                while (task := self._todo.get_nowait()) is not None:
                    _cancel(task[0])
                    self.open -= 1
            except Empty:
                pass
            for _ in range(self._threads):
                self._todo.put(None)

    def _serve(self) -> None:
        while (task := self._todo.get()) is not None:
            future, work = task
            with self._lock:
                wanted = future.set_running_or_notify_cancel()
                if wanted and self.closed:
                    future.set_exception(CancelledError())
                    wanted = False
                elif wanted:
                    self._under_way.add(future)
            if wanted:
                with suppress(InvalidStateError):  # given up meanwhile
                    try:
                        future.set_result(work())
                    except BaseException as error:  # whatever it is: it is raised where the result is asked for
                        future.set_exception(error)
            with self._lock:
                self._under_way.discard(future)
                self.open -= 1
            del task, future, work


def at_work(seconds: float = 0.0) -> bool:
    """Whether some awaited thread of this process is at work after `seconds` at most; nothing new is begun from now."""
    hands = [some for some in _awaited if some.process == os.getpid()]
    for some in hands:
        some.close()
    until = time.monotonic() + seconds
    while any(some.open for some in hands):
        if time.monotonic() >= until:
            return True
        time.sleep(0.005)
    return False


def _cancel(future: Future[Any]) -> None:
    future.cancel()
    future.set_running_or_notify_cancel()  # tells those who wait


_awaited = weakref.WeakSet[Hands]()  # threads end with their process: one list for all of it
atexit.register(at_work, LEAVE)
