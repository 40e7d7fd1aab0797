"""The engine of a cluster: the tasks of a build as tasks of Ray, on a cluster that is there already.

Each task takes one CPU, and a share of a GPU where it is told so. A worker that dies counts against the task that it
was at, as it does on one machine; a node that is lost does not: what ran there runs again elsewhere. Nodes with other
code, or that do not see the same folders, stop the build before they do anything (ray_node.py).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from preprocess.building.engines import ATTEMPTS, DEATHS, Died, Result, Task
from preprocess.building.ray_node import Answer, Terms, code_here, there, videos_of
from preprocess.errors import PreprocessError
from shards.errors import ShardError

AHEAD = 2  # tasks handed over for each that can run: a worker need not wait for this machine to hear of its result
LOSSES = 10  # how often a task is tried whose node is lost, or short of memory: such a task may be what ends nodes
LOOK_S = 10.0  # how often the cluster's size is asked for: nodes come and go
STOP_S = 5.0  # how long tasks may take to stop in order
START = (
    "Start one with: ray start --head (here), then on each other machine: ray start --address=HOST:6379. Or name one:"
    " RAY_ADDRESS=HOST:6379"
)


def ray_tasks(
    start: Callable[[], Callable[[Task], Result]],
    tasks: Sequence[Task],
    workers: int,
    *,
    gpus: float = 0.0,
    shared: Sequence[Path] = (),
) -> Generator[tuple[int, Result | Died], None, None]:
    """Results from a Ray cluster: the one that RAY_ADDRESS names, or that was started on this machine.

    At most `workers` tasks run at a time; 0: as many as the cluster has CPUs, also those that join later. Each takes
    `gpus` of a GPU. All nodes must see the folders `shared`. Closing the iterator stops the tasks.
    Raises PreprocessError where there is no such cluster, or a node has other code or does not see a folder or video.
    """
    relative = any(not path.is_absolute() for path in (*shared, *videos_of(tuple(tasks[:1]))))
    with _seen(shared) as seen, _connected() as (ray, ours):
        crew = _Crew(ray, start, (code_here(), seen, str(Path.cwd()) if relative else ""), gpus)
        todo, known, deaths = deque(range(len(tasks))), len(tasks), 0
        deaths_of, losses_of, blind = Counter[int](), Counter[int](), set[int]()
        try:
            while todo or crew.running:
                room = crew.room(workers)
                while todo and len(crew.running) < (workers or AHEAD * max(room, 1)):
                    position = todo.popleft()
                    crew.give(position, tasks[position], look=position not in blind)
                for position, node, answer in crew.answers():
                    result: Result | Died
                    if answer is None:
                        losses_of[position] += 1
                        if losses_of[position] < LOSSES:
                            todo.appendleft(position)
                            continue
                        result = Died("lost again and again, with its node or for its memory")
                    elif isinstance(answer, Died):
                        deaths_of[position] += 1
                        deaths += 1
                        if deaths >= DEATHS * max(room, 1):
                            raise PreprocessError(
                                f"worker processes of the Ray cluster keep dying: {deaths} in a row. Is memory short on"
                                " its nodes? --workers N lets fewer run at a time; Ray's logs lie in"
                                " /tmp/ray/session_latest/logs of each node"
                            )
                        if deaths_of[position] < ATTEMPTS:
                            todo.append(position)
                            continue
                        result = answer
                    elif answer[0] == "unseen" and not there(answer[1]):
                        blind.add(position)  # it is gone here, too: not the node's fault, and the task will say so
                        todo.appendleft(position)
                        continue
                    else:
                        deaths, result = 0, _content(answer, node)
                    yield position, result
                    todo.extendleft(range(len(tasks) - 1, known - 1, -1))
                    known = len(tasks)
        finally:
            if not ours:
                crew.cancel()  # else the connection's end ends them; to cancel a task that just ends can abort Ray


class _Crew:
    """The tasks that Ray has been given."""

    def __init__(self, ray: Any, start: Callable[[], Any], terms: Terms, gpus: float) -> None:
        self.running: dict[Any, int] = {}  # Ray's reference: the task's position
        self._ray, self._gpus = ray, gpus
        self._common = (terms, uuid.uuid4().hex, [ray.put(start)])  # in a list: workers unpack it when they are ready
        options = {"num_cpus": 1, "num_gpus": gpus or None, "max_retries": 0, "scheduling_strategy": "SPREAD"}
        self._function = ray.remote(**options)(_travelling())
        self._room, self._looked = 0, -LOOK_S

    def room(self, workers: int) -> int:
        """How many tasks can run at a time, at most `workers` (0: any number). Raises PreprocessError if none ever."""
        if time.monotonic() > self._looked + LOOK_S:
            there = self._ray.cluster_resources()
            self._room = int(there.get("CPU", 0))
            if self._gpus:
                self._room = min(self._room, int(there.get("GPU", 0) / self._gpus))
            if not self._room and self._looked < 0:
                lack = "GPU" if there.get("CPU") else "CPU"
                other = "; or compute flow on CPUs: --set preprocess.flow.backend=cpu" if lack == "GPU" else ""
                raise PreprocessError(
                    f"the Ray cluster has no {lack} for tasks: start a node that has, with ray start"
                    f" --address=HOST:6379 --num-{lack.lower()}s=N{other}"
                )
            self._looked = time.monotonic()
        return min(workers or self._room, self._room)

    def give(self, position: int, task: Any, *, look: bool) -> None:
        """Hands a task over."""
        self.running[self._function.remote(*self._common, [self._ray.put(task)], look)] = position

    def answers(self) -> Iterator[tuple[int, str, Answer | Died | None]]:
        """What came of some tasks, with position and node; None where the node was lost. Waits, but not for ever."""
        lost = self._ray.exceptions
        done, _ = self._ray.wait([*self.running], num_returns=1, timeout=LOOK_S)
        for reference in done:
            position, node, answer = self.running.pop(reference), "", None
            try:
                node, answer = self._ray.get(reference)
            except lost.WorkerCrashedError:
                answer = Died("killed on a node of the cluster")
            except (lost.NodeDiedError, lost.ObjectLostError, lost.OutOfMemoryError):
                pass
            except lost.RayError as error:
                raise PreprocessError(f"the Ray cluster: {' '.join(str(error).split())[-600:]}") from error
            yield position, node, answer

    def cancel(self) -> None:
        """Ends what still runs: in order where it ends soon, so that no half-written file is left."""
        for force in (False, True):
            for reference in self.running:
                with suppress(Exception):  # the cluster may be gone
                    self._ray.cancel(reference, force=force)
            if self.running:
                with suppress(Exception):
                    _, left = self._ray.wait([*self.running], num_returns=len(self.running), timeout=STOP_S)
                    self.running = {reference: self.running[reference] for reference in left}


def _content(answer: Answer, node: str) -> Any:
    """The result. Raises what the task raised, or what is wrong with the node."""
    kind, content = answer
    if kind == "error":
        if isinstance(content, PreprocessError | ShardError) and content.args == (str(content),):
            content.args = (f"{content} (on node {node} of the Ray cluster)",)
        raise content
    if kind == "unfit":
        raise PreprocessError(f"node {node} of the Ray cluster {content}")
    if kind == "unseen":
        raise PreprocessError(
            f"node {node} of the Ray cluster does not see {content}, which is here. Put the videos where all nodes have"
            " them under one path (NFS, a mounted disk), or take the node out of the cluster: ray stop (there)"
        )
    return content


def _travelling() -> Callable[..., Any]:
    """The function that Ray sends to its workers, by value: it must be able to say that a node lacks our code."""

    def on_node(terms: Any, key: str, start: list[Any], task: list[Any], look: bool) -> tuple[str, Any]:
        import socket
        import sys

        import ray

        node = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
        try:
            from preprocess.building.ray_node import Start, serve
        except ImportError as error:
            reason = f"cannot run tasks: {error}. Install stmul there, as it is here, in the Python of its Ray"
            return node, ("unfit", f"{reason} ({sys.prefix})")
        return node, serve(terms, Start(key, lambda: ray.get(start[0])), lambda: ray.get(task[0]), look)

    return on_node


@contextmanager
def _seen(folders: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """A new file in each folder, by which nodes can tell that they see the very same folder."""
    made, host = [], socket.gethostname()
    try:
        for folder in folders:
            for left in folder.glob(f".seen-{host}-*"):
                if not _alive(left.name.rpartition("-")[2]):
                    left.unlink(missing_ok=True)  # by a build that was killed
            path = folder / f".seen-{host}-{uuid.uuid4().hex[:8]}-{os.getpid()}"
            try:
                path.touch()
            except OSError as error:
                raise ShardError(f"{folder}: cannot be written: {error.strerror}; name another with --out") from error
            made.append(path)
        yield tuple(map(str, made))
    finally:
        for path in made:
            with suppress(OSError):
                path.unlink()


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        pass
    return True


@contextmanager
def _connected() -> Iterator[tuple[Any, bool]]:
    """Ray, connected to a cluster that is there, and whether we have connected it: else it is left as it is."""
    try:
        import ray
    except ImportError as error:
        raise PreprocessError("ray is not installed: pip install 'stmul[ray]', here and on all nodes") from error
    if ray.is_initialized():
        yield ray, False
        return
    address, before = _address(), signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise PreprocessError(f"no Ray cluster can be used at {address}: {reason}. {START}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray takes it
    try:
        yield ray, True
    finally:
        ray.shutdown()


def _address() -> str:
    """Where the cluster is, HOST:PORT; somebody listens there. Raises PreprocessError where nobody does.

    Ray itself waits for a cluster that has ended for minutes, and then ends this process.
    """
    from ray._private.services import canonicalize_bootstrap_address as address_of

    named = os.environ.get("RAY_ADDRESS", "")
    if "://" in named or named == "local":
        raise PreprocessError(
            f"RAY_ADDRESS={named}: expected HOST:PORT of a cluster that this machine is part of; the command must run"
            " on one of its machines"
        )
    try:
        address = str(address_of("auto"))
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        where = f"at {named} (RAY_ADDRESS)" if named else "on this machine"
        raise PreprocessError(f"no Ray cluster is running {where}: {error}. {START}") from None
    return address
