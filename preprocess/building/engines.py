"""Where the work of a build runs: an engine hands tasks to workers and their results back, in any order.

An engine takes `start` (makes the working function, once in each worker), the tasks and the number of workers, and
yields (task's position, result) as results come. The function must be idempotent: a task whose worker is killed runs
again. Its exceptions stop everything; what concerns one task alone it returns. Tasks may be appended while results are
taken: an engine does them too, before those that wait. (One that does not leaves them to the next call.)
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from configs import SettingsError
from preprocess.errors import PreprocessError
from shards.errors import ShardError

Task = TypeVar("Task")
Result = TypeVar("Result")
ATTEMPTS = 2  # how often a task is tried whose worker dies
DEATHS = 4  # of each worker, with no result between them: it is not the tasks


@dataclass(frozen=True, slots=True)
class Died:
    """A task's result when each worker that tried it was killed: by a crash of a decoder, or for its memory."""

    reason: str


class Engine(Protocol):
    """Runs tasks somewhere; see the module's first lines."""

    def __call__(
        self, start: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], workers: int
    ) -> Generator[tuple[int, Result | Died], None, None]: ...


def processes(
    start: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], workers: int
) -> Generator[tuple[int, Result | Died], None, None]:
    """Results from `workers` processes on this machine, spawned anew (a fork would copy locks held by threads).

    They are named worker-0, worker-1 ..., and end with this process, however it ends. Closing the iterator stops them.
    Raises PreprocessError where they do not start, or keep dying.
    """
    todo, known, deaths = deque(range(len(tasks))), len(tasks), 0
    tries: Counter[int] = Counter()
    crew: dict[Connection, _Worker[Task, Result]] = {}
    try:
        while todo or any(worker.task is not None for worker in crew.values()):
            while todo and len(crew) < min(workers, len(tasks)):
                slots = {worker.slot for worker in crew.values()}
                worker = _Worker(start, next(slot for slot in range(workers) if slot not in slots))
                crew[worker.pipe] = worker
            for worker in crew.values():
                if todo and worker.ready and worker.task is None:
                    worker.give(todo.popleft(), tasks)
            for pipe in wait(list(crew)):
                assert isinstance(pipe, Connection)
                worker = crew[pipe]
                position, answer = worker.task, worker.take()
                if isinstance(answer, Died):
                    del crew[pipe]
                    if position is None:
                        raise PreprocessError(
                            f"a worker process could not start ({answer.reason}); where a script of your own starts the"
                            ' build, it must do so under: if __name__ == "__main__":'
                        )
                    tries[position] += 1
                    deaths += 1
                    if deaths >= DEATHS * workers:
                        raise PreprocessError(
                            f"worker processes keep dying: {deaths} in a row, the last {answer.reason}; is memory short"
                            f" for {workers} of them? Try fewer: --workers {max(workers // 2, 1)}"
                        )
                    if tries[position] < ATTEMPTS:
                        todo.append(position)
                        continue
                elif position is not None:
                    deaths = 0
                if position is not None:
                    yield position, answer
                    todo.extendleft(range(len(tasks) - 1, known - 1, -1))
                    known = len(tasks)
    finally:
        for worker in crew.values():
            worker.stop()


def here(
    start: Callable[[], Callable[[Task], Result]], tasks: Sequence[Task], workers: int
) -> Generator[tuple[int, Result | Died], None, None]:
    """Results from this process, one after the other: for what is too short to start processes for."""
    function, todo, known = start(), deque(range(len(tasks))), len(tasks)
    while todo:
        position = todo.popleft()
        yield position, function(tasks[position])
        todo.extendleft(range(len(tasks) - 1, known - 1, -1))
        known = len(tasks)


class _Worker(Generic[Task, Result]):
    """One process and the pipe to it."""

    def __init__(self, start: Callable[[], Callable[[Task], Result]], slot: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.slot = slot  # 0 .. workers - 1, unlike those of the others alive
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, start), name=f"worker-{slot}", daemon=True)
        self.process.start()
        there.close()
        self.ready = False
        self.task: int | None = None

    def give(self, position: int, tasks: Sequence[Task]) -> None:
        self.task = position
        with suppress(OSError):  # it has died: `take` says so
            self.pipe.send(tasks[position])

    def take(self) -> Any:
        """What the process sends: that it is ready, a result, an exception (raised here), or, by ending, its death."""
        try:
            good, answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.pipe.close()
            code = self.process.exitcode or 0
            return Died(f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        if not good:
            raise answer
        self.ready, self.task = True, None
        return answer

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, start: Callable[[], Callable[[Any], Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us in order
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        function = start()
        pipe.send((True, None))
        while True:
            pipe.send((True, function(pipe.recv())))
    except EOFError:
        return
    except Exception as error:
        if not isinstance(error, PreprocessError | ShardError | SettingsError):
            error.add_note(traceback.format_exc())  # it would be lost on the way
        pipe.send((False, error))


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
