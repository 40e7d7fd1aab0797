"""A read-only HTTP server for the shards below a folder, with byte ranges: for the other machines of a lab.

Nothing is configured and nothing can be written; what is served is what readers of shards ask for: manifest.json,
*.index and *.tar. Names are opened one after the other below the folder, never through a link, so no request leads out
of it. Conditions and ranges are those of RFC 9110; several ranges at once are answered with the whole, as it allows.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from shards.conditions import Found, condition, fresh, span
from shards.errors import ShardError
from shards.manifest import NAME

HOST = "0.0.0.0"  # all networks of the machine: to be read by others is what a server is started for, and it says so
MOST = 512  # connections at the same time; those beyond wait to be accepted
IDLE = 100.0  # seconds without a byte after which a connection is closed: obstore closes its idle ones after 90
EVERY = 60.0  # seconds between two lines about what was served
DEEPEST = 3  # folders below the one that is served in which splits are looked for, for the list

_SERVED = re.compile(r"manifest\.json|.+\.(index|tar)")
_WRITING = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")


class Server(ThreadingHTTPServer):
    """Serves what is below `folder` at (host, port), 0 being any free port; `say` is told once a minute what was sent.

    Raises ShardError where there is no such folder, or the address cannot be had.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(
        self,
        folder: Path,
        host: str = HOST,
        port: int = 8000,
        *,
        most: int = MOST,
        idle: float = IDLE,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        try:
            self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ShardError(f"{folder}: cannot be served: {error.strerror}. Name a folder of splits") from error
        self.listing, self.idle, self.served, self._say = listing(folder), idle, 0, say
        self._most, self._free, self._lock = most, threading.Semaphore(most), threading.Lock()
        self._open, self._told, self._next = 0, 0, time.monotonic() + EVERY
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            if self.root >= 0:
                os.close(self.root)
            reason = getattr(error, "strerror", None) or str(error)
            raise ShardError(f"{host}, port {port}: cannot be served from: {reason}. Try another --port") from error

    @property
    def crowded(self) -> bool:
        """Whether connections had better end after their answer, so that others get their turn."""
        return self._open > self._most // 2

    def count(self, size: int) -> None:
        """Notes that so many bytes were sent."""
        with self._lock:
            self.served += size

    def server_bind(self) -> None:
        """Takes the address, without asking for this machine's name: that can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers a connection in a thread of its own, once there is one free."""
        self._free.acquire()
        with self._lock:
            self._open += 1
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What that thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release()

    def _release(self) -> None:
        with self._lock:
            self._open -= 1
        self._free.release()

    def service_actions(self) -> None:
        """Says once a minute how much was sent, if anything was."""
        if (now := time.monotonic()) >= self._next:
            self._next, sent, self._told = now + EVERY, self.served - self._told, self.served
            if sent:
                self._say(f"{time.strftime('%H:%M')}  {sent / 1e6:.1f} MB in the last minute")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing where the other side went away; a mistake of ours is told."""
        if not isinstance(sys.exception(), OSError):
            logging.getLogger("shards").exception("a request could not be answered")

    def server_close(self) -> None:
        """Gives the address back; what is being sent is cut off when the process ends."""
        super().server_close()
        if self.root >= 0:
            os.close(self.root)
            self.root = -1


class Handler(BaseHTTPRequestHandler):
    """One connection: its requests, one after the other."""

    protocol_version, default_request_version = "HTTP/1.1", "HTTP/1.0"
    server_version, sys_version = "stmul", ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # head and small answers leave together
    server: Server

    def setup(self) -> None:
        """Called first."""
        super().setup()
        self.connection.settimeout(self.server.idle)

    def do_GET(self) -> None:
        """The file, or the part of it that is asked for."""
        self._read()

    def do_HEAD(self) -> None:
        """The same without the bytes."""
        self._read()

    def __getattr__(self, name: str) -> Any:
        if name.removeprefix("do_") in _WRITING:
            return self._refuse
        raise AttributeError(name)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: no line for each request."""

    def _refuse(self) -> None:
        self.close_connection = True  # whatever is sent along is not read
        self._short(405, "only GET and HEAD: nothing can be written here\n", {"Allow": "GET, HEAD"})

    def _read(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that is not read must not pass for the next request
        target = self.path.partition("?")[0]
        if target.lower().startswith("http://"):  # as a proxy is asked; RFC 9112 wants it understood
            target = "/" + target[len("http://") :].partition("/")[2]
        if not target.startswith("/") or (
            self.request_version == "HTTP/1.1" and len(self.headers.get_all("Host", [])) != 1
        ):
            self._short(400, "expected a path, and one Host\n")
        elif target == "/":
            self._short(200, self.server.listing)
        elif (found := opened(self.server.root, unquote(target, errors="surrogateescape"))) is None:
            self._short(404, "not there\n")
        else:
            with found.file:
                self._send(found)

    def _send(self, found: Found) -> None:
        headers = {
            "ETag": found.etag,
            "Last-Modified": formatdate(found.modified, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        status = condition(found, self._header)
        start, stop = 0, found.size
        if status == 200 and self.command == "GET":
            asked = span(self._header("Range"), found.size) if fresh(found, self._header("If-Range")) else None
            if asked is not None:
                start, stop = asked
                status = 206 if stop > start else 416
                shown = f"{start}-{stop - 1}" if status == 206 else "*"
                headers["Content-Range"] = f"bytes {shown}/{found.size}"
        if status in (412, 416):
            self._short(status, "", headers)
            return
        if status != 304:
            headers |= {"Content-Length": str(stop - start), "Content-Type": "application/octet-stream"}
        self._head(status, headers)
        if self.command == "GET" and stop > start and status != 304:
            self.wfile.flush()
            sent = self.connection.sendfile(found.file, start, stop - start)
            self.server.count(sent)
            self.close_connection |= sent < stop - start  # the file was cut meanwhile

    def _header(self, name: str) -> str | None:
        """A header that stands once or several times, as one."""
        values = self.headers.get_all(name)
        return None if values is None else ", ".join(value.strip() for value in values)

    def _short(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode(errors="replace")
        kind = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
        self._head(status, {**(headers or {}), **kind})
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _head(self, status: int, headers: dict[str, str]) -> None:
        if self.server.crowded:
            self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()


def opened(root: int, path: str) -> Found | None:
    """The file at `path` (/ucf101/split1/manifest.json) below the folder that is open as `root`; the caller closes it.

    None where there is none that is served: names that begin with a dot, links, and all but files of a split.
    """
    names = path.split("/")[1:]
    if not all(names) or any(name[0] == "." or "\0" in name for name in names) or not _SERVED.fullmatch(names[-1]):
        return None
    handle, flags = os.dup(root), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe would be awaited
    try:
        for name in names:
            above, handle = handle, os.open(name, flags, dir_fd=handle)
            os.close(above)
    except (OSError, ValueError):  # not there, a link, a name too long or not to be encoded
        os.close(handle)
        return None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        return None
    return Found(
        file=os.fdopen(handle, "rb", buffering=0),
        size=about.st_size,
        etag=f'"{about.st_ino:x}-{about.st_size:x}-{about.st_mtime_ns:x}"',
        modified=about.st_mtime_ns // 10**9,
    )


def listing(folder: Path) -> str:
    """The splits below `folder`, a line each: where they stand below the server's address."""
    found = [""] if (folder / NAME).is_file() else []
    for depth in range(1, DEEPEST + 1):
        for path in folder.glob("*/" * depth + NAME):
            names = path.parent.relative_to(folder).parts
            above = [path, *path.parents][: depth + 1]
            if not any(name.startswith(".") for name in names) and not any(one.is_symlink() for one in above):
                found.append("/".join(names))
    return "".join(f"/{quote(name)}\n" for name in sorted(found))


def addresses(host: str, port: int) -> list[str]:
    """The URLs under which others reach a server at `host` and `port`."""
    if host not in ("0.0.0.0", "::", ""):
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}"]
    names = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect(("192.0.2.1", 9))  # a datagram socket sends nothing by that; it finds out the way
            names.append(outward.getsockname()[0])
        except OSError:
            pass  # no network
    return [f"http://{name}:{port}" for name in names]


def lines(folder: Path, splits: str, urls: list[str]) -> list[str]:
    """What whoever starts a server should know."""
    found = splits.split()
    rest = [f"          {path}" for path in found[1:10]] + (
        [f"          and {len(found) - 10} more"] * (len(found) > 10)
    )
    return [
        f"serving   {folder}: manifest.json, .index and .tar files below it, read-only",
        f"splits    {found[0] if found else 'none there yet'}",
        *rest,
        *(f"address   {url}{found[0].rstrip('/') if found else ''}" for url in urls),
        "readers   everyone who reaches this machine's network, without a password; Ctrl-C ends it"
        if not any(re.match(r"http://(127\.|localhost|\[::1\])", url) for url in urls)
        else "readers   this machine alone; Ctrl-C ends it",
    ]
