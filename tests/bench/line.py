"""A line with a round trip and a bandwidth in front of servers, in a process of its own: `line(ports)`.

What a server sends passes, in turns of a millisecond or less a connection, through one link of so many bytes a
second, and arrives half a round trip later; what clients send is as late and not throttled. The first bytes of a
connection wait for the round trip of its set-up besides. Of every connection at most `WINDOW` bytes are under way.
There is no loss and no slow start: a connection carries from its first byte on what the link and the window allow.

`python tests/bench/line.py PORT ...` prints the ports on which it passes those on, then obeys lines of JSON.
"""

from __future__ import annotations

import heapq
import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from typing import IO

TURN = 256 * 1024  # bytes of a connection, then it is another's turn; fewer where the link is slow
SMALLEST_TURN = 16 * 1024
TURN_S = 0.001  # of the link, at most
WINDOW = 4 << 20  # bytes of a connection under way: of the order of what Linux lets a receiver offer
AHEAD_S = 0.004  # of work for the link that is fetched from servers: it never idles while the process sleeps
PASSED = 64  # turns at once where the bandwidth is not limited


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the line is to be like."""

    rtt_ms: float = 0.0
    mbit: float = 0.0  # millions of bits a second for all connections together; 0: no limit

    @property
    def words(self) -> str:
        """In words."""
        limit = f"{self.mbit / 1000:g} Gb/s" if self.mbit >= 1000 else f"{self.mbit:g} Mb/s"
        return f"{self.rtt_ms:g} ms, {limit if self.mbit else 'no limit'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Carried:
    """What the line has carried since its shape was set, or since it was last asked."""

    down: int  # bytes from servers
    up: int
    connections: int
    cpu_s: float  # of the line's own process


class Line:
    """A running line."""

    def __init__(self, process: subprocess.Popen[str], ports: Sequence[int]) -> None:
        self._process = process
        self.ports = tuple(ports)  # one for each server, in their order

    def shape(self, shape: Shape) -> None:
        """Sets what it is like from now on; there should be nothing under way."""
        self._ask(asdict(shape))

    def carried(self, *, reset: bool = True) -> Carried:
        """What it has carried."""
        return Carried(**self._ask({"carried": reset}))

    def _ask(self, words: dict[str, object]) -> dict[str, float]:
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answers is not None
        print(json.dumps(words), file=asked, flush=True)
        return json.loads(answers.readline())


@contextmanager
def line(servers: Sequence[int]) -> Iterator[Line]:
    """A line to servers on these ports of this machine, ended at the end."""
    command = [sys.executable, __file__, *map(str, servers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Line(process, json.loads(process.stdout.readline()))
        finally:
            process.terminate()


class _Way:
    """One direction of a connection."""

    def __init__(self, source: _End, sink: _End, *, throttled: bool) -> None:
        self.source, self.sink, self.throttled = source, sink, throttled
        self.waiting: deque[memoryview] = deque()  # arrived, but the sink did not take it yet
        self.under_way = 0
        self.ended = False  # nothing more comes
        self.done = False  # ... and all has been delivered


class _End:
    """A socket: the source of one way, the sink of the other."""

    def __init__(self, own: socket.socket) -> None:
        self.own, self.number = own, own.fileno()
        self.out: _Way  # of which this is the source
        self.into: _Way
        self.ready = False  # its turn will come
        self.armed = 0
        self.free_at = 0.0  # when what it sends may first leave
        self.closed = False


class _Loop:
    """The process: one thread, all connections."""

    def __init__(self, servers: Sequence[int]) -> None:
        self.epoll = select.epoll()
        self.listeners: dict[int, tuple[socket.socket, int]] = {}
        for server in servers:
            listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            listener.setblocking(False)
            self.listeners[listener.fileno()] = listener, server
            self.epoll.register(listener, select.EPOLLIN)
        self.ends: dict[int, _End] = {}
        self.turns: deque[_End] = deque()  # sources with something to read
        self.under_way: list[tuple[float, int, _Way, bytes]] = []  # a heap, by the time of arrival
        self.number = count()
        self.delay = self.rate = 0.0
        self.turn = TURN
        self.link_free_at = 0.0
        self.down = self.up = self.connections = 0
        self.cpu = time.process_time()

    def run(self, commands: IO[str], answers: IO[str]) -> None:
        """Passes on until `commands` ends."""
        self.epoll.register(commands.fileno(), select.EPOLLIN)
        while True:
            now = time.monotonic()
            self._arrive(now)
            self._take_turns(now)
            # A wait of `select` ends to the microsecond; epoll itself counts milliseconds.
            select.select([self.epoll.fileno()], [], [], self._idle())
            for number, _ in self.epoll.poll(0):
                if number in self.listeners:
                    self._accept(*self.listeners[number])
                elif number in self.ends:
                    self._woken(self.ends[number])
                else:
                    words = commands.readline()
                    if not words:
                        return
                    print(json.dumps(self._obey(json.loads(words))), file=answers, flush=True)

    def _obey(self, words: dict[str, float]) -> dict[str, float]:
        answer = asdict(
            Carried(down=self.down, up=self.up, connections=self.connections, cpu_s=time.process_time() - self.cpu)
        )
        if "rtt_ms" in words:
            self.delay, self.rate = words["rtt_ms"] / 2000, words["mbit"] * 1e6 / 8
            self.turn = min(TURN, max(SMALLEST_TURN, int(self.rate * TURN_S))) if self.rate else TURN
        if words.get("carried", True):
            self.down = self.up = self.connections = 0
            self.cpu = time.process_time()
        return answer

    def _idle(self) -> float | None:
        """Seconds until something is to be done without being woken; None: nothing is."""
        now, until = time.monotonic(), list[float]()
        if self.under_way:
            until.append(self.under_way[0][0])
        if self.turns:
            until.append(self.link_free_at - AHEAD_S / 2 if self.rate else now)
        return max(0.0, min(until) - now) if until else None

    def _accept(self, listener: socket.socket, server: int) -> None:
        with suppress(BlockingIOError):
            while True:
                own, _ = listener.accept()
                client, other = _End(own), _End(socket.socket())
                other.own.setblocking(False)
                other.own.connect_ex(("127.0.0.1", server))  # until it stands, nothing can be sent
                client.out = other.into = _Way(client, other, throttled=False)
                client.into = other.out = _Way(other, client, throttled=True)
                client.free_at = time.monotonic() + 2 * self.delay
                self.connections += 1
                for end in (client, other):
                    end.own.setblocking(False)
                    end.own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.ends[end.number] = end
                    end.armed = select.EPOLLIN
                    self.epoll.register(end.number, end.armed | select.EPOLLONESHOT)

    def _woken(self, end: _End) -> None:
        armed, end.armed = end.armed, 0  # one wake-up each: what is wanted further is said again
        if armed & select.EPOLLOUT:
            self._send(end.into)
        if armed & select.EPOLLIN and not end.ready:
            end.ready = True
            self.turns.append(end)
        else:
            self._arm(end)

    def _arm(self, end: _End) -> None:
        """Has epoll wake us for what is wanted of a socket, unless it does."""
        if end.closed:
            return
        reading = not (end.ready or end.out.ended or end.out.under_way >= WINDOW)
        wanted = (select.EPOLLIN if reading else 0) | (select.EPOLLOUT if end.into.waiting else 0)
        if wanted and wanted != end.armed:
            end.armed = wanted
            self.epoll.modify(end.number, wanted | select.EPOLLONESHOT)

    def _take_turns(self, now: float) -> None:
        """Reads from sources in turn, as much as the link can take in the next moment."""
        for _ in range(PASSED):
            if not self.turns or (self.rate and self.link_free_at - now > AHEAD_S):
                return
            end = self.turns.popleft()
            if end.closed:
                continue
            way = end.out
            try:
                data = end.own.recv(self.turn)
            except BlockingIOError:
                data = None
            except OSError:
                self._close(end)
                continue
            if data is not None:
                self._leave(way, data, now)
            if data is not None and len(data) == self.turn and way.under_way < WINDOW:
                self.turns.append(end)
            else:
                end.ready = False
                self._arm(end)

    def _leave(self, way: _Way, data: bytes, now: float) -> None:
        start = max(now, way.source.free_at)
        if way.throttled:
            self.down += len(data)
            if self.rate:
                start = self.link_free_at = max(start, self.link_free_at) + len(data) / self.rate
        else:
            self.up += len(data)
        way.under_way += len(data)
        way.ended = not data
        heapq.heappush(self.under_way, (start + self.delay, next(self.number), way, data))

    def _arrive(self, now: float) -> None:
        while self.under_way and self.under_way[0][0] <= now:
            _, _, way, data = heapq.heappop(self.under_way)
            if way.sink.closed:
                continue
            if data:
                way.waiting.append(memoryview(data))
            else:
                way.done = True
            if len(way.waiting) < 2:
                self._send(way)

    def _send(self, way: _Way) -> None:
        """Gives the sink what has arrived, as far as it takes it."""
        if way.sink.closed:
            return
        try:
            while way.waiting:
                sent = way.sink.own.send(way.waiting[0])
                way.under_way -= sent
                if sent < len(way.waiting[0]):
                    way.waiting[0] = way.waiting[0][sent:]
                    break
                way.waiting.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._close(way.sink)
            return
        if way.waiting:
            self._arm(way.sink)
        elif way.done:
            with suppress(OSError):
                way.sink.own.shutdown(socket.SHUT_WR)
            if way.sink.out.done and not way.sink.out.waiting:
                self._close(way.sink)
                return
        self._arm(way.source)

    def _close(self, end: _End) -> None:
        for one in (end, end.out.sink):
            if not one.closed:
                one.closed = True
                del self.ends[one.number]
                one.own.close()  # epoll forgets it


def main() -> None:
    """Runs a line to the servers whose ports stand on the command line."""
    loop = _Loop([int(port) for port in sys.argv[1:]])
    print(json.dumps([listener.getsockname()[1] for listener, _ in loop.listeners.values()]), flush=True)
    loop.run(sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
