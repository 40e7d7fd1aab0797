"""A read-only HTTP server for one folder, with byte ranges and faults on request: `python tests/http_server.py FOLDER`.

Prints its address, then serves until its standard input is closed. Tests start it as a process of its own, because
obstore's threads and a server's threads in one process wait for each other. The first part of a path may name a fault:

    /NAME            the file, ranges understood        /plain/NAME      ranges ignored, the whole file each time
    /forbidden/NAME  403                                /private/NAME    401 unless signed in as reader:secret
    /token/NAME      403 unless the query is ?token=secret
    /busy/NAME       503
    /cut/NAME        says the whole size, ends a ranged answer early, every time
    /moved/NAME?to=URL    302 to URL/NAME, without the query
    /endless/NAME    a body in chunks that does not end        /huge/NAME   says that 10 GB follow, and begins
    /heard           what each request was signed in with since the last look: path and query, Authorization, as JSON
    /sent            how many bytes of endless and huge answers went out since the last look
    /requests        how many requests each path has had since the last look, as JSON
"""

from __future__ import annotations

import base64
import collections
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import urlopen

FAULTS = ("plain", "forbidden", "private", "token", "busy", "cut", "moved", "endless", "huge")
SIGNED_IN = "Basic " + base64.b64encode(b"reader:secret").decode()


class Handler(BaseHTTPRequestHandler):
    """Answers GET for files below `folder`."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 20  # one write for head and body: two would wait for each other (Nagle, delayed ACK)
    folder: Path
    counts: ClassVar[collections.Counter[str]] = collections.Counter()
    heard: ClassVar[list[tuple[str, str | None]]] = []
    sent: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        path = unquote(split.path).lstrip("/")
        if path == "requests":
            counts, Handler.counts = Handler.counts, collections.Counter()
            return self.answer(200, json.dumps(counts).encode())
        if path in ("heard", "sent"):
            heard, Handler.heard = Handler.heard, []
            sent, Handler.sent = Handler.sent, []
            return self.answer(200, json.dumps(heard if path == "heard" else sum(sent)).encode())
        Handler.counts[path] += 1
        Handler.heard.append((self.path, self.headers.get("Authorization")))
        fault, _, rest = path.partition("/")
        fault, path = (fault, rest) if fault in FAULTS else ("", path)
        if fault == "forbidden" or (fault == "token" and split.query != "token=secret"):
            return self.answer(403, b"no")
        if fault == "busy":
            return self.answer(503, b"later")
        if fault == "moved":
            target = parse_qs(split.query)["to"][0]
            return self.answer(302, b"", {"Location": f"{target}/{path}"})
        if fault in ("endless", "huge"):
            return self.without_end(chunked=fault == "endless")
        if fault == "private" and self.headers.get("Authorization") != SIGNED_IN:
            return self.answer(401, b"who are you?", {"WWW-Authenticate": 'Basic realm="shards"'})
        file = (self.folder / path).resolve()
        if not file.is_relative_to(self.folder) or not file.is_file():
            return self.answer(404, b"nothing here")
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        size = file.stat().st_size
        if asked is None or fault == "plain":
            return self.answer(200, file.read_bytes())
        start, stop = int(asked[1]), min(int(asked[2] or size) + 1, size)
        if start >= size:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        stop = start + (stop - start) // 2 if fault == "cut" else stop
        with file.open("rb") as opened:
            opened.seek(start)
            part = opened.read(stop - start)
        return self.answer(206, part, {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "ETag": '"1"'})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def without_end(self, *, chunked: bool) -> None:
        """Sends until nobody listens any more, 1 GiB at most."""
        self.close_connection = True
        self.send_response(200)
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(10 << 30))))
        self.end_headers()
        with suppress(OSError):
            for _ in range(1 << 14):
                part = bytes(1 << 16)
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
                self.wfile.flush()
                Handler.sent.append(len(part))

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests' output is theirs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A running server."""

    url: str  # http://127.0.0.1:PORT

    def requests(self) -> dict[str, int]:
        """How many requests each path has had since the last call."""
        with urlopen(f"{self.url}/requests", timeout=120) as answer:
            counts: dict[str, int] = json.load(answer)
        return counts

    def heard(self) -> list[tuple[str, str | None]]:
        """Path with query, and Authorization, of each request since the last call."""
        with urlopen(f"{self.url}/heard", timeout=120) as answer:
            return [(path, signed) for path, signed in json.load(answer)]

    def sent(self) -> int:
        """How many bytes of endless and huge answers went out since the last call."""
        with urlopen(f"{self.url}/sent", timeout=120) as answer:
            return int(json.load(answer))


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server of `folder` in a process of its own, stopped at the end."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://"), "the test server did not start"
            yield Server(url=url)
        finally:
            process.terminate()


def main() -> None:
    """Serves the folder named on the command line."""
    Handler.folder = Path(sys.argv[1]).resolve()
    ThreadingHTTPServer.request_queue_size = 128  # of its 5, a sixth connection at once would wait a second
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
