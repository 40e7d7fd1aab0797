"""Threads that make requests: begun when wanted, first come first served, and never in the way of an end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

_Task = tuple["Future[T]", Callable[[], T]]


class Hands:
    """At most `most` daemon threads. One that hangs in a request keeps no process from ending."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._todo: SimpleQueue[tuple[Future[object], Callable[[], object]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._idle = 0

    def begin(self, work: Callable[[], T]) -> Future[T]:
        """What `work()` will give."""
        future: Future[T] = Future()
        with self._lock:
            if self._idle > 0:
                self._idle -= 1  # the thread that it is for has not taken it yet
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            self._todo.put((future, work))  # type: ignore[arg-type]  # of whatever kind
        return future

    def close(self) -> None:
        """Lets the threads go when they have done what was begun."""
        with self._lock:
            for _ in range(self._threads):
                self._todo.put(None)

    def _serve(self) -> None:
        while (task := self._todo.get()) is not None:
            future, work = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # whatever it is: it is raised where the result is asked for
                    future.set_exception(error)
            del task, future, work
            with self._lock:
                self._idle += 1
