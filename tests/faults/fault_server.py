"""A read-only HTTP server for one folder that breaks things on purpose: `python fault_server.py FOLDER PLANS`.

It serves as a good server does (ranges, ETag, If-Match, Last-Modified, HEAD, connections kept), and to some requests,
drawn from a seed, it does one of these instead:

    busy      503                                          wait      503 with Retry-After
    refused   the connection is reset before any answer    reset     ... in the middle of the body
    short     the connection ends in the middle of the body, as if it were whole
    drip      `rate` bytes a second, for `drip_s`          stall     nothing for `stall_s`, in the middle or before
    wrong     a bit of the body, none near it before       plain     the whole file, whatever was asked for
    stale     another object: other bytes, another ETag; 412 to If-Match
    swapped   the same, to If-Match too: a server that does not know it

What is drawn depends on the path, the end of the range and how often that was asked for, not on what other threads do.
A plan strikes a range at most `most` times, so that it ends: a range is known by where it stops, since who asks for
what is missing starts further on.

    /requests   how often each path was asked for, as JSON    /faults   how often each fault happened
    /bytes      how many bytes of bodies were sent            /asked    every range that was asked for, in order
    /keys       a new access key, as `credential_process` prints it: it is good for `key_requests` requests

It prints its address, then serves until its standard input is closed.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

KINDS = ("busy", "wait", "refused", "reset", "short", "drip", "stall", "wrong", "plain", "stale", "swapped")
OTHERS = ("stale", "swapped")
BEFORE_RESET_S = 0.05  # a reset throws away what has arrived and was not yet read
STATUS = {200: "OK", 206: "Partial Content", 400: "Bad Request", 403: "Forbidden", 404: "Not Found"} | {
    405: "Method Not Allowed",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    503: "Service Unavailable",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultPlan:
    """Which faults befall which requests. Of several plans the first one that strikes does."""

    chances: Mapping[str, float] = field(default_factory=dict)  # of each kind, for a request
    seed: int = 0
    most: int = 1  # times that a range is struck; 0: whenever it is drawn
    paths: str = ".*"  # regular expression: what is struck
    whole: bool | None = None  # True: only requests for whole files are struck; False: only those for ranges
    first: int = 0  # requests for these paths that are spared at first
    at: float | None = None  # of a body, where it breaks off; None: drawn
    stall_s: float = 3.0
    drip_s: float = 2.0  # after which the rest comes at once
    retry_after_s: int = 1
    rate: int = 2000  # bytes a second
    key_requests: int = 0  # an access key is good for; 0: none is needed
    key_seconds: float = 3600  # that a key says it is good for
    expired_status: int = 400  # as AWS; others say 403


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls one answer."""

    kind: str  # or nothing
    plan: FaultPlan
    draws: random.Random

    def cut(self, size: int) -> int:
        """Where a body of `size` bytes breaks off."""
        at = self.draws.uniform(0.05, 0.95) if self.plan.at is None else self.plan.at
        return int(size * at)


class BrokenError(Exception):
    """The connection is to be broken off: by a reset, or as if all had been sent."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset


@dataclass(slots=True)
class Ledger:
    """What was asked for and what was done; threads share it."""

    plans: Sequence[FaultPlan]
    lock: threading.Lock = field(default_factory=threading.Lock)
    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    asked: list[tuple[str, int, int]] = field(default_factory=list)
    times: Counter[tuple[str, int]] = field(default_factory=Counter)  # that a range was asked for
    struck: Counter[tuple[int, str, int]] = field(default_factory=Counter)  # by a plan
    wrong: dict[str, list[tuple[int, int]]] = field(default_factory=dict)  # ranges of each path with a wrong bit
    seen: Counter[int] = field(default_factory=Counter)  # requests that a plan is about
    keys: Counter[str] = field(default_factory=Counter)  # requests signed with each

    def fault(self, path: str, start: int, stop: int, *, ranged: bool) -> Fault:
        """What befalls this request; it is counted."""
        with self.lock:
            self.requests[path] += 1
            self.asked.append((path, start, stop))
            self.times[path, stop] += 1
            for number, plan in enumerate(self.plans):
                if not re.fullmatch(plan.paths, path) or plan.whole is ranged:
                    continue
                self.seen[number] += 1
                draws = random.Random(f"{plan.seed} {number} {path} {stop} {self.times[path, stop]}")
                kind = _drawn(plan.chances, draws.random())
                spared = self.seen[number] <= plan.first or 0 < plan.most <= self.struck[number, path, stop]
                if kind == "wrong" and plan.most:
                    # Whoever asks once more, for whatever part, gets it right: a range is struck once.
                    known = self.wrong.setdefault(path, [])
                    probe = stop - start < 2  # who asks for one byte wants to know the size
                    spared = spared or probe or any(start < last and first < stop for first, last in known)
                    known += [] if spared else [(start, stop)]
                if kind and not spared:
                    self.struck[number, path, stop] += 1
                    self.faults[kind] += 1
                    return Fault(kind, plan, draws)
        return Fault("", FaultPlan(), random.Random(0))

    def sent(self, path: str, size: int) -> None:
        """Counts bytes of a body."""
        with self.lock:
            self.bytes[path] += size

    def key(self) -> bytes:
        """A new access key."""
        plan = self.plans[0] if self.plans else FaultPlan()
        with self.lock:
            name = f"AKIDFAULT{len(self.keys):07d}"
            self.keys[name] = 0
        expires = datetime.now(UTC) + timedelta(seconds=plan.key_seconds)
        names = {"AccessKeyId": name, "SecretAccessKey": f"hidden-{name}", "SessionToken": f"token-{name}"}
        return json.dumps({"Version": 1, **names, "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()

    def missed(self, path: str, asked: str) -> None:
        """Counts a request for what is not there."""
        first, last = [*re.findall(r"\d+", asked), "0", "0"][:2]
        with self.lock:
            self.requests[path] += 1
            self.asked.append((path, int(first), int(last) + 1))
            self.faults["missing"] += 1

    def refusal(self, authorization: str) -> tuple[int, str, str] | None:
        """Status, code and key for a request that no good key has signed."""
        plan = self.plans[0] if self.plans else FaultPlan()
        if not plan.key_requests:
            return None
        signed = re.search(r"Credential=([^/]+)/", authorization)
        name = signed[1] if signed else ""
        with self.lock:
            if name not in self.keys:
                self.faults["unsigned"] += 1
                return 403, "AccessDenied", name
            self.keys[name] += 1
            if self.keys[name] <= plan.key_requests:
                return None
            self.faults["expired"] += 1
            return plan.expired_status, "ExpiredToken", name

    def report(self, name: str) -> bytes:
        """One of the counts."""
        with self.lock:
            return json.dumps(getattr(self, name)).encode()


def _drawn(chances: Mapping[str, float], drawn: float) -> str:
    for kind, chance in chances.items():
        if (drawn := drawn - chance) < 0:
            return kind
    return ""


@dataclass(slots=True)
class Connection:
    """One connection of a client, in a thread of its own."""

    socket: socket.socket
    folder: Path
    ledger: Ledger
    received: bytes = b""

    def serve(self) -> None:
        """Answers until either side ends the connection."""
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while self.one():
                pass
        except BrokenError as broken:
            if broken.reset:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:  # the client has gone
            pass
        finally:
            self.socket.close()

    def one(self) -> bool:
        """Answers one request; whether there was one."""
        while (end := self.received.find(b"\r\n\r\n")) < 0:
            if not (more := self.socket.recv(1 << 16)):
                return False
            self.received += more
        lines = self.received[:end].decode("latin-1").split("\r\n")
        self.received = self.received[end + 4 :]
        method, target, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        path = unquote(urlsplit(target).path).strip("/")
        if path in ("requests", "faults", "bytes", "asked"):
            self.answer(200, self.ledger.report(path))
        elif path == "keys":
            self.answer(200, self.ledger.key())
        elif method not in ("GET", "HEAD"):
            self.answer(405, b"")
        else:
            self.file(path, headers, method == "HEAD")
        return True

    def file(self, path: str, headers: Mapping[str, str], head: bool) -> None:
        """Answers with a file, or part of it, or what the plans have for it."""
        if refused := self.ledger.refusal(headers.get("authorization", "")):
            self.refuse(*refused, head)
            return
        file = (self.folder / path).resolve()
        if not file.is_relative_to(self.folder) or not file.is_file():
            self.ledger.missed(path, headers.get("range", ""))
            self.refuse(404, "NoSuchKey", "", head)
            return
        size = file.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        start = int(asked[1]) if asked else 0
        stop = min(int(asked[2] or size) + 1, size) if asked else size
        fault = self.ledger.fault(path, start, stop, ranged=asked is not None)
        if fault.kind == "refused":
            raise BrokenError(reset=True)
        if fault.kind in ("busy", "wait"):
            wait = {"Retry-After": str(fault.plan.retry_after_s)} if fault.kind == "wait" else {}
            self.answer(503, b"", wait)
            return
        known = _described(file, fault)
        if headers.get("if-match", known["ETag"]) not in (known["ETag"], "*") and fault.kind != "swapped":
            self.answer(412, b"", known)
            return
        if asked and start >= size:
            self.answer(416, b"", {**known, "Content-Range": f"bytes */{size}"})
            return
        status, span = (206, (start, stop)) if asked and fault.kind != "plain" else (200, (0, size))
        if status == 206:
            known["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        known["Content-Length"] = str(span[1] - span[0])
        self.send(path, _head(status, known), b"" if head else _spoiled(_read(file, *span), fault), fault)

    def send(self, path: str, head: bytes, body: bytes, fault: Fault) -> None:
        """Sends an answer, or what a fault makes of it."""
        if fault.kind in ("reset", "short", "stall"):
            cut = fault.cut(len(body))
            silent = fault.kind == "stall" and cut % 2 == 0  # not even a status
            self.socket.sendall(b"" if silent else head + body[:cut])
            self.ledger.sent(path, 0 if silent else cut)
            if fault.kind != "stall":
                time.sleep(BEFORE_RESET_S)
                raise BrokenError(reset=fault.kind == "reset")
            time.sleep(fault.plan.stall_s)
            head, body = (head, body) if silent else (b"", body[cut:])
        if fault.kind == "drip":
            self.socket.sendall(head)
            head, step, until = b"", max(1, fault.plan.rate // 10), time.monotonic() + fault.plan.drip_s
            while len(body) > step and time.monotonic() < until:
                self.socket.sendall(body[:step])
                self.ledger.sent(path, step)
                body = body[step:]
                time.sleep(0.1)
        self.socket.sendall(head + body)
        self.ledger.sent(path, len(body))

    def refuse(self, status: int, code: str, key: str, head: bool) -> None:
        """Sends an error as S3 words it."""
        text = f"<Error><Code>{code}</Code><Message>{code}</Message><AWSAccessKeyId>{key}</AWSAccessKeyId></Error>"
        self.answer(status, b"" if head else text.encode(), {"Content-Type": "application/xml"})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Sends a short answer."""
        self.socket.sendall(_head(status, {"Content-Length": str(len(body)), **(headers or {})}) + body)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {STATUS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _described(file: Path, fault: Fault) -> dict[str, str]:
    """The headers that describe the object."""
    about = file.stat()
    version = "other" if fault.kind in OTHERS else "first"
    return {
        "ETag": f'"{version}-{about.st_size:x}-{about.st_mtime_ns:x}"',
        "Last-Modified": formatdate(about.st_mtime, usegmt=True),
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }


def _spoiled(body: bytes, fault: Fault) -> bytes:
    if fault.kind in OTHERS:
        return bytes(byte ^ 1 for byte in body)
    if fault.kind != "wrong" or not body:
        return body
    byte = fault.draws.randrange(len(body))
    return body[:byte] + bytes([body[byte] ^ (1 << fault.draws.randrange(8))]) + body[byte + 1 :]


def _read(file: Path, start: int, stop: int) -> bytes:
    handle = os.open(file, os.O_RDONLY)
    try:
        return os.pread(handle, stop - start, start)
    finally:
        os.close(handle)


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultServer:
    """A running server."""

    url: str  # http://127.0.0.1:PORT

    def requests(self) -> dict[str, int]:
        """How often each path was asked for."""
        return self._told("requests")

    def faults(self) -> dict[str, int]:
        """How often each fault happened."""
        return self._told("faults")

    def sent(self) -> dict[str, int]:
        """How many bytes of bodies were sent, by path."""
        return self._told("bytes")

    def asked(self) -> list[tuple[str, int, int]]:
        """(path, start, stop) of every request for a file, in order."""
        return [(path, start, stop) for path, start, stop in self._told("asked")]

    def _told(self, name: str):
        with urlopen(f"{self.url}/{name}", timeout=120) as answer:
            return json.load(answer)


@contextmanager
def serving(folder: Path, *plans: FaultPlan) -> Iterator[FaultServer]:
    """A server of `folder` in a process of its own, stopped at the end."""
    command = [sys.executable, "-S", __file__, str(folder), json.dumps([asdict(plan) for plan in plans])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), "the fault server did not start"
            yield FaultServer(url=url)
        finally:
            process.kill()


def main() -> None:
    """Serves the folder named on the command line by the plans named there."""
    folder, plans = Path(sys.argv[1]).resolve(), [FaultPlan(**plan) for plan in json.loads(sys.argv[2])]
    ledger = Ledger(plans)
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)

    def accept() -> None:
        while True:
            client, _ = listening.accept()
            threading.Thread(target=Connection(client, folder, ledger).serve, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
