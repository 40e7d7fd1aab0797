"""What a line really gives, measured from its far end through plain sockets: the round trip, and bytes a second."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from dataclasses import dataclass

from tests.bench.line import Line, Shape

BULK_S = 0.6  # for which is counted what is read


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauged:
    """What a line gives."""

    connect_ms: float  # of the first answer on a new connection
    ping_ms: float  # of an answer on a connection that is open
    one: float  # MB/s through one connection
    sixteen: float  # MB/s through sixteen
    cpu: float  # of a core, for the line's own process, while sixteen are busy


def gauged(through: Line, shape: Shape, port: int, path: str) -> Gauged:
    """Shapes the line and measures it by the file at `path`."""
    through.shape(shape)
    pings = _pings(port, path)
    warm_up_s = 0.2 + 3 * shape.rtt_ms / 1000
    one, _ = _bulk(through, port, path, 1, warm_up_s)
    sixteen, cpu = _bulk(through, port, path, 16, warm_up_s)
    time.sleep(warm_up_s)  # what was under way is gone
    return Gauged(connect_ms=pings[0], ping_ms=statistics.median(pings[1:]), one=one, sixteen=sixteen, cpu=cpu)


def _asked(path: str, last: int, then: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: line\r\nRange: bytes=0-{last}\r\nConnection: {then}\r\n\r\n".encode()


def _pings(port: int, path: str, count: int = 6) -> list[float]:
    took, began = [], time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(count):
            connection.sendall(_asked(path, 0, "keep-alive"))
            answer = b""
            while b"\r\n\r\n" not in answer or answer.endswith(b"\r\n\r\n"):
                answer += connection.recv(65536)
            took.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
    return took


def _bulk(through: Line, port: int, path: str, connections: int, warm_up_s: float) -> tuple[float, float]:
    """MB/s of so many connections together, and what part of a core the line's process needed."""
    counts, ended = [0] * connections, threading.Event()

    def read(number: int) -> None:
        buffer = bytearray(1 << 20)
        while not ended.is_set():
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(_asked(path, 1 << 40, "close"))
                while not ended.is_set() and (got := connection.recv_into(buffer)):
                    counts[number] += got

    threads = [threading.Thread(target=read, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    time.sleep(warm_up_s)
    began, before, cpu = time.perf_counter(), sum(counts), through.carried(reset=False).cpu_s
    time.sleep(BULK_S)
    took, read_by_then, cpu = (
        time.perf_counter() - began,
        sum(counts) - before,
        through.carried(reset=False).cpu_s - cpu,
    )
    ended.set()
    for thread in threads:
        thread.join()
    return read_by_then / took / 1e6, cpu / took
