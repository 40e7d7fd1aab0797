"""Reading ahead from afar: in the order of the plan, as much as a number of bytes holds.

A network answers late and many at a time, so many sub-batches are on their way at once, and as many bytes lie ready as
are allowed; the threads that decode them are others, as many as there are cores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from shards.errors import ShardError
from shards.stores.hands import Hands

Task = TypeVar("Task")
Out = TypeVar("Out")
Room = Callable[[int], None]  # is told how many bytes are about to be read, and waits until there is room for them

THREADS = 16  # tasks on their way at once: each makes dozens of requests
LONGEST = 256  # tasks begun and not yet asked for, however small
FIRST = 8 << 20  # bytes that may be held at first: what comes later must not keep the first batch waiting


@dataclass(frozen=True, slots=True)
class Reading(Generic[Task, Out]):
    """A task whose result is on its way."""

    task: Task
    result: Callable[[], Out]
    done: Callable[[], None]  # to be called when the bytes are needed no more


def at_once(tasks: Iterable[Task], read: Callable[[Task, Room], Out]) -> Iterator[Reading[Task, Out]]:
    """The tasks, each read by whoever asks for its result: where the bytes are near."""
    for task in tasks:
        yield Reading(task, partial(read, task, _any_room), _nothing)


class Ahead:
    """Reads tasks before they are asked for. `budget` is in bytes; one task alone may have more."""

    def __init__(self, budget: int) -> None:
        self._hands, self._held = Hands(THREADS, "stmul-ahead"), Budget(budget)

    def of(self, tasks: Iterable[Task], read: Callable[[Task, Room], Out]) -> Iterator[Reading[Task, Out]]:
        """The tasks in their order; `read(task, room)` is to call `room` once, before it reads."""
        begun = deque[Reading[Task, Out]]()
        for turn, task in enumerate(tasks):
            begun.append(self._begun(turn, task, read))
            if len(begun) > LONGEST:
                yield begun.popleft()
        yield from begun

    def close(self) -> None:
        """Lets go of all that is waiting."""
        self._held.close()
        self._hands.close()

    def _begun(self, turn: int, task: Task, read: Callable[[Task, Room], Out]) -> Reading[Task, Out]:
        held = self._held

        def work() -> Out:
            try:
                return read(task, partial(held.take, turn))
            finally:
                held.take(turn, 0)  # one that failed early must not keep the next from their turn

        return Reading(task, self._hands.begin(work).result, partial(held.give, turn))


class Budget:
    """Bytes that may be held at a time, few at first, handed out in the order of turns 0, 1, 2, ..."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.given = limit, 0, 0
        self._next = 0
        self._taken: dict[int, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def take(self, turn: int, size: int) -> None:
        """Waits for the turn, and until there is room for `size` bytes or nothing is held; a turn takes once."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or turn < self._next or self._may(turn, size))
            if self._closed:
                raise ShardError("reading ahead was ended")
            if turn == self._next:
                self._next, self._taken[turn] = turn + 1, size
                self.held += size
                self._changed.notify_all()

    def give(self, turn: int) -> None:
        """Takes back what `turn` has."""
        with self._changed:
            size = self._taken.pop(turn, 0)
            self.held, self.given = self.held - size, self.given + size
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _may(self, turn: int, size: int) -> bool:
        limit = min(self.limit, FIRST + self.given)
        return turn == self._next and (not self.held or self.held + size <= limit)


def _any_room(size: int) -> None:
    """There is always room for what is read by whoever needs it."""


def _nothing() -> None:
    """Nothing is held."""
