"""One pass of a reader over its clips, in a process that is new to it: how long, with how much of the processors.

Processes are forked from one that has imported everything and read nothing (`forkserver`): each begins with an open
split, with connections, with worker processes of its own. What imports cost is measured apart (`from_nothing`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stmul.config import Config
from tests.bench.line import Line
from tests.bench.variants import Delivery
from tests.bench.wanted import Shown, Wanted

OURS = ("tests.bench.from_afar", "tests.bench.plain_gets", "obstore.store", "boto3", "urllib3")
QUIET_S = 0.1  # and two round trips without a byte: nothing is under way any more
PATIENCE_S = 120.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """What a reader is to read, and where it lies."""

    url: str  # of the split, through the line
    peers: Mapping[str, str]  # where what else was written lies, by name
    environ: Mapping[str, str]
    config: Config
    wanted: tuple[Wanted, ...]  # the first clips; an epoch, and some more for those who read ranges
    exact: tuple[Any, ...]  # `plain_gets.Exact` of each of them
    epoch: int  # clips
    folder: Path  # empty, or what a first pass has left there


@dataclass(kw_only=True, slots=True)
class Opened:
    """A reader that can be asked for clips."""

    deliveries: Iterable[Delivery]
    show: Callable[[Delivery], Shown] | None  # None: nothing to see, the bytes alone
    fetched: Callable[[], int] | None = None  # clips whose bytes were asked for, where others than those delivered were


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reader:
    """One way of reading the wanted clips from a server."""

    name: str
    kind: str  # "floor", "ours", "peer"
    server: str  # "HTTP" or "S3"
    settings: str  # in words
    open: Callable[[Site, int], AbstractContextManager[Opened]]  # of a site, for so many clips; can be pickled
    whole: bool = False  # fetches whole shards: it is asked for an epoch, which needs every video
    keeps: bool = False  # leaves in its folder what a second pass need not fetch
    processes: bool = False  # has worker processes, whose CPU is known once they have ended
    pixels: bool = True

    def clips(self, site: Site) -> int:
        """Clips of a pass."""
        return site.epoch if self.whole else len(site.wanted)


@dataclass(frozen=True, kw_only=True, slots=True)
class Passed:
    """What a pass took."""

    open_s: float  # from the call until it could be asked for clips
    first_s: float  # ... until the first batch was there
    all_s: float  # ... until the last was
    cpu_s: float  # of its process and all below it, from the call
    clips: int
    fetched: int  # clips, with those fetched ahead
    positions: tuple[int, ...]  # of the clips, in the order in which they came
    digests: Mapping[int, str]  # of the pixels of clips, where asked for
    down: int = 0  # bytes from the server
    connections: int = 0
    line_s: float = 0.0  # CPU of the line meanwhile

    @property
    def rate(self) -> float:
        """Clips a second, once it is open."""
        return self.clips / (self.all_s - self.open_s)

    @property
    def cpu_ms(self) -> float:
        """CPU of a clip."""
        return 1000 * self.cpu_s / self.clips


def prepare(peers: Sequence[str]) -> None:
    """Says what the process that others are forked from is to import: all that any of them will."""
    multiprocessing.set_forkserver_preload([*OURS, "tests.bench.remote_peers", *peers])


def passed(
    reader: Reader, site: Site, through: Line, *, rtt_ms: float, checked: Container[int] = frozenset()
) -> Passed:
    """A pass of a reader over its clips; everything it has asked for arrives before it is closed.

    The pixels of clips whose positions are `checked` are digested.

    Raises RuntimeError where it fails.
    """
    context = multiprocessing.get_context("forkserver")
    mine, its = context.Pipe()
    process = context.Process(target=_work, args=(its, reader, site, checked))
    process.start()
    its.close()
    try:
        through.carried()
        mine.send("begin")
        _expect(mine, "done", reader)
        down, connections, line_s = _until_quiet(through, rtt_ms, wait=not reader.whole)
        mine.send("close")
        found = _expect(mine, "closed", reader)
    finally:
        mine.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()
    return Passed(**found, down=down, connections=connections, line_s=line_s)


def _expect(pipe: Connection, word: str, reader: Reader) -> Any:
    if not pipe.poll(PATIENCE_S):
        raise RuntimeError(f"{reader.name}: nothing within {PATIENCE_S:.0f} s")
    try:
        found, content = pipe.recv()
    except EOFError:
        raise RuntimeError(f"{reader.name}: its process ended") from None
    if found != word:
        raise RuntimeError(f"{reader.name}: {content}")
    return content


def _until_quiet(through: Line, rtt_ms: float, *, wait: bool) -> tuple[int, int, float]:
    """Bytes, connections and CPU of the line, once nothing has come for a while: what is read ahead has come, too."""
    carried = through.carried(reset=False)
    while wait:
        time.sleep(QUIET_S + 2 * rtt_ms / 1000)
        later = through.carried(reset=False)
        if later.down == carried.down:
            break
        carried = later
    return carried.down, carried.connections, carried.cpu_s


def _cpu_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _work(pipe: Connection, reader: Reader, site: Site, checked: Container[int]) -> None:
    """In the new process: begins when told, and closes when told."""
    os.environ.update(site.environ)
    try:
        pipe.recv()
        cpu, began = _cpu_s(), time.perf_counter()
        with reader.open(site, reader.clips(site)) as opened:
            open_s = time.perf_counter() - began
            positions, first_s, digests = list[int](), 0.0, dict[int, str]()
            for delivery in opened.deliveries:
                first_s = first_s or time.perf_counter() - began
                positions += delivery.positions
                if opened.show is not None and any(position in checked for position in delivery.positions):
                    digests.update((position, digest(rgb, flow)) for position, rgb, flow in opened.show(delivery))
            count = len(positions)
            all_s, at_end = time.perf_counter() - began, _cpu_s()
            pipe.send(("done", None))
            pipe.recv()
            fetched = opened.fetched() if opened.fetched is not None and not reader.whole else count
        cpu_s = (_cpu_s() if reader.processes else at_end) - cpu
        found = {"open_s": open_s, "first_s": first_s, "all_s": all_s, "cpu_s": cpu_s}
        found |= {"clips": count, "fetched": fetched}
        pipe.send(("closed", {**found, "positions": tuple(positions), "digests": digests}))
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))


def digest(rgb: Any, flow: Any) -> str:
    """A digest of a clip's pixels, (T, H, W, 3) and (T, 2L, H, W)."""
    found = hashlib.sha256()
    for pixels in (rgb, flow):
        found.update(repr(pixels.shape).encode())
        found.update(pixels.tobytes())
    return found.hexdigest()


def from_nothing(reader: Reader, site: Site) -> float:
    """Seconds from the start of a new interpreter until the first batch is there, all imports included."""
    with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
        pickle.dump((reader, site), file)
        file.flush()
        began = time.perf_counter()
        command = [sys.executable, "-m", "tests.bench.passes", file.name]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | dict(site.environ)
        ) as process:
            assert process.stdout is not None
            words = process.stdout.readline()
            took = time.perf_counter() - began
            process.kill()
    if json.loads(words or "null") != "first":
        raise RuntimeError(f"{reader.name}: no batch")
    return took


def _first(path: Path) -> Iterator[str]:
    reader, site = pickle.loads(path.read_bytes())
    with reader.open(site, reader.clips(site)) as opened:
        for _ in opened.deliveries:
            yield "first"


def main() -> None:
    """Reads the first batch as the pickled reader on the command line would, and says so."""
    for word in _first(Path(sys.argv[1])):
        print(json.dumps(word), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
