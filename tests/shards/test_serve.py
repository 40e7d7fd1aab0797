"""The server for a lab: what it sends is the file, for every range and condition, and nothing outside of its folder."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.check import problems
from shards.conditions import span
from shards.errors import ShardError
from shards.serve import Server, addresses, lines, listing
from shards.split import open_split

SIZE = 300_007
DATA = random.Random(1).randbytes(SIZE)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_split: Any) -> Path:
    root = tmp_path_factory.mktemp("serve")
    (root / "outside").mkdir()
    (root / "outside" / "manifest.json").write_bytes(b"secret")
    (root / "outside.tar").write_bytes(b"secret")
    folder = root / "data"
    make_split(folder / "ucf101" / "split1", train=3, test=1, frames=3)
    (folder / "blob.tar").write_bytes(DATA)
    (folder / "empty.tar").write_bytes(b"")
    (folder / "a b+ü.tar").write_bytes(b"odd name")
    (folder / "notes.txt").write_bytes(b"secret")
    (folder / ".hidden.tar").write_bytes(b"secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.index").write_bytes(b"secret")
    (folder / "link.tar").symlink_to(root / "outside.tar")
    (folder / "linked").symlink_to(root / "outside")
    (folder / "folder.tar").mkdir()
    os.mkfifo(folder / "pipe.tar")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with running(Server(folder, "127.0.0.1", 0)) as server:
        yield server


class running:  # noqa: N801  a context, like closing
    def __init__(self, server: Server) -> None:
        self.server = server
        self.thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Server:
        self.thread.start()
        return self.server

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def connection(server: Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=120)


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> Answer:
    talk = connection(server)
    try:
        talk.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = talk.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        talk.close()


def raw(server: Server, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=120) as talk:
        talk.sendall(data)
        talk.shutdown(socket.SHUT_WR)
        found = b""
        while part := talk.recv(65536):
            found += part
        return found


# What is sent


def test_a_whole_file_and_its_head(server: Server) -> None:
    answer, head = ask(server, "/blob.tar"), ask(server, "/blob.tar", "HEAD")
    assert (answer.status, answer.body) == (200, DATA)
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "ETag", "Last-Modified", "Accept-Ranges", "Content-Type"):
        assert answer.headers[name] == head.headers[name]
    assert answer.headers["Content-Length"] == str(SIZE)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["Server"].strip() == "stmul"
    assert ask(server, "/empty.tar").body == b""
    assert ask(server, "/a%20b+%C3%BC.tar?x=y").body == b"odd name"
    assert ask(server, f"http://127.0.0.1:{server.server_port}/empty.tar").status == 200


numbers = st.one_of(st.integers(0, SIZE + 10), st.sampled_from([0, 1, SIZE - 1, SIZE, 10**18, 10**40]))


@settings(max_examples=150)
@given(first=st.one_of(st.none(), numbers), last=st.one_of(st.none(), numbers))
def test_any_range_is_the_bytes_of_the_file(server: Server, first: int | None, last: int | None) -> None:
    text = f"{'' if first is None else first}-{'' if last is None else last}"
    answer = ask(server, "/blob.tar", Range=f"bytes={text}")
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert (answer.status, answer.body) == (200, DATA)  # nonsense is passed over
        return
    if first is None:
        assert last is not None
        start, stop = max(0, SIZE - last), SIZE
    else:
        start, stop = first, SIZE if last is None else min(last + 1, SIZE)
    if start >= stop:
        assert (answer.status, answer.body) == (416, b"")
        assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    else:
        assert (answer.status, answer.body) == (206, DATA[start:stop])
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize(
    "value",
    [
        "bytes=0-0,5-9",
        "bytes=",
        "bytes",
        "lines=0-4",
        "bytes=a-b",
        "bytes=-",
        "bytes=1--2",
        "bytes=²-3",
        "bytes=+1-2",
        "",
    ],
)
def test_what_is_no_single_range_is_answered_with_the_whole(server: Server, value: str) -> None:
    talk = connection(server)
    talk.putrequest("GET", "/blob.tar")
    talk.putheader("Range", value.encode("latin-1"))
    talk.endheaders()
    answer = talk.getresponse()
    assert (answer.status, answer.read()) == (200, DATA)
    talk.close()


@given(value=st.text(alphabet="bytes=0123456789-, \t²", max_size=24), size=st.integers(0, 30))
def test_no_range_header_leads_outside_of_the_file(value: str, size: int) -> None:
    for asked in (span(value, size), span(f"bytes={value}", size)):
        assert asked is None or asked == (0, 0) or 0 <= asked[0] < asked[1] <= size


def test_ranges_of_an_empty_file_and_of_heads(server: Server) -> None:
    assert ask(server, "/empty.tar", Range="bytes=0-").status == 416
    assert ask(server, "/empty.tar", Range="bytes=-5").status == 200
    assert ask(server, "/blob.tar", "HEAD", Range="bytes=0-4").status == 200  # a range means something to GET alone
    assert ask(server, "/blob.tar", Range="BYTES= 0-4 ").body == DATA[:5]


# Conditions


def test_conditions_are_those_of_the_standard(server: Server) -> None:
    now = ask(server, "/blob.tar", "HEAD").headers
    etag, modified = now["ETag"], now["Last-Modified"]
    earlier, later = formatdate(1e9, usegmt=True), formatdate(4e9, usegmt=True)
    for expected, headers in (
        (200, {"If-Match": etag}),
        (200, {"If-Match": f'"other", {etag}'}),
        (200, {"If-Match": "*"}),
        (412, {"If-Match": '"other"'}),
        (412, {"If-Match": f"W/{etag}"}),  # strong comparison
        (412, {"If-Match": ""}),
        (200, {"If-Match": etag, "If-Unmodified-Since": earlier}),  # the date is passed over then
        (412, {"If-Unmodified-Since": earlier}),
        (200, {"If-Unmodified-Since": later}),
        (200, {"If-Unmodified-Since": "yesterday"}),
        (304, {"If-None-Match": etag}),
        (304, {"If-None-Match": f"W/{etag}"}),  # weak comparison
        (304, {"If-None-Match": "*"}),
        (200, {"If-None-Match": '"other"'}),
        (200, {"If-None-Match": '"other"', "If-Modified-Since": later}),
        (304, {"If-Modified-Since": modified}),
        (200, {"If-Modified-Since": earlier}),
        (412, {"If-Match": '"other"', "If-None-Match": etag, "Range": "bytes=0-4"}),
        (206, {"If-Match": etag, "Range": "bytes=0-4"}),
        (206, {"If-Range": etag, "Range": "bytes=0-4"}),
        (200, {"If-Range": '"other"', "Range": "bytes=0-4"}),
        (200, {"If-Range": f"W/{etag}", "Range": "bytes=0-4"}),
        (200, {"If-Range": earlier, "Range": "bytes=0-4"}),
        (200, {"If-Range": "nonsense", "Range": "bytes=0-4"}),
        (200, {"If-Range": '"other"', "Range": f"bytes={SIZE}-"}),
    ):
        answer = ask(server, "/blob.tar", **headers)
        assert answer.status == expected, headers
        assert answer.headers["ETag"] == etag
        assert answer.body == {200: DATA, 206: DATA[:5]}.get(expected, b"")


def test_a_date_lets_a_range_through_once_it_is_old(server: Server, folder: Path) -> None:
    path = folder / "dated.tar"
    path.write_bytes(DATA)
    for age, expected in ((3600, 206), (1, 200)):
        os.utime(path, (time.time(), time.time() - age))
        date = ask(server, "/dated.tar", "HEAD").headers["Last-Modified"]
        assert ask(server, "/dated.tar", If_Range=date, Range="bytes=0-4").status == expected


def test_a_file_that_changes_has_another_etag(server: Server, folder: Path) -> None:
    path, seen = folder / "changing.tar", set[str]()
    for data in (b"one", b"two", b"longer"):
        path.write_bytes(data)
        os.utime(path, ns=(0, 10**18 + len(seen)))
        seen.add(ask(server, "/changing.tar").headers["ETag"])
    path.with_suffix(".new").write_bytes(b"longer")  # the same size at the same time, but another file
    os.utime(path.with_suffix(".new"), ns=(0, 10**18 + 2))
    path.with_suffix(".new").replace(path)
    seen.add(ask(server, "/changing.tar").headers["ETag"])
    assert len(seen) == 4
    assert all(tag.startswith('"') for tag in seen)


# What is not sent


@pytest.mark.parametrize(
    "path",
    [
        "/../outside.tar",
        "/ucf101/../../outside.tar",
        "/%2e%2e/outside.tar",
        "/..%2foutside.tar",
        "/ucf101%2f..%2f..%2foutside.tar",
        "//outside.tar",
        "/./blob.tar",
        "/ucf101//split1/manifest.json",
        "/.hidden.tar",
        "/.git/x.index",
        "/link.tar",
        "/linked/manifest.json",
        "/notes.txt",
        "/folder.tar",
        "/pipe.tar",
        "/blob.tar/",
        "/blob.tar/x.tar",
        "/blob.tar%00",
        "/blob.tar%00.tar",
        "/ucf101",
        "/ucf101/split1",
        "/ucf101/split1/",
        "/ucf101/split1/manifest.json.partial",
        "/nothing.tar",
        "/%ff%fe.tar",
        f"/{'x' * 300}.tar",
        "/proc/self/environ",
        "/\\..\\outside.tar",
    ],
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = ask(server, path, method)
        assert answer.status == 404
        assert b"secret" not in answer.body


@settings(max_examples=200)
@given(
    names=st.lists(
        st.sampled_from(["..", ".", "", "ucf101", "outside", "linked", "%2e%2e", "..%2f", "%252e", "data", "\\"])
    )
)
def test_no_path_leads_out_of_the_folder(server: Server, names: list[str]) -> None:
    for last in ("outside.tar", "manifest.json", "link.tar", ".hidden.tar"):
        assert b"secret" not in ask(server, "/" + "/".join([*names, last])).body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_written(server: Server, folder: Path, method: str) -> None:
    answer = ask(server, "/blob.tar", method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert answer.headers["Connection"] == "close"
    assert (folder / "blob.tar").read_bytes() == DATA
    assert ask(server, "/blob.tar", "BREW").status == 501


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /blob.tar HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /blob.tar HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET blob.tar HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /blob.tar HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_requests_that_are_none_are_refused(server: Server, data: bytes, status: int) -> None:
    assert raw(server, data).split()[1] == b"%d" % status


def test_what_is_sent_along_never_passes_for_a_request(server: Server) -> None:
    hidden = b"GET /blob.tar HTTP/1.1\r\nHost: a\r\n\r\n"
    for header in (b"Content-Length: %d" % len(hidden), b"Transfer-Encoding: chunked"):
        found = raw(server, b"GET /empty.tar HTTP/1.1\r\nHost: a\r\n" + header + b"\r\n\r\n" + hidden)
        assert found.count(b"HTTP/1.1 ") == 1


# Many, and for long


def test_a_connection_serves_many_requests(server: Server) -> None:
    talk = connection(server)
    for start in range(0, 100_000, 10_000):
        talk.request("GET", "/blob.tar", headers={"Range": f"bytes={start}-{start + 99}"})
        assert talk.getresponse().read() == DATA[start : start + 100]
        address = talk.sock.getsockname()
        talk.request("GET", "/nothing.tar")
        assert talk.getresponse().read() == b"not there\n"
        assert talk.sock.getsockname() == address
    talk.close()


def test_fifty_clients_at_once_get_their_bytes(server: Server) -> None:
    def client(seed: int) -> bool:
        draws, talk, right = random.Random(seed), connection(server), True
        for _ in range(10):
            start = draws.randrange(SIZE)
            stop = min(SIZE, start + draws.randrange(1, 200_000))
            talk.request("GET", "/blob.tar", headers={"Range": f"bytes={start}-{stop - 1}"})
            right &= talk.getresponse().read() == DATA[start:stop]
        talk.close()
        return right

    with ThreadPoolExecutor(50) as clients:
        assert all(clients.map(client, range(50)))


def test_more_clients_than_connections_all_get_their_turn(folder: Path) -> None:
    with running(Server(folder, "127.0.0.1", 0, most=4)) as server, ThreadPoolExecutor(20) as clients:
        assert all(answer.body == DATA for answer in clients.map(lambda _: ask(server, "/blob.tar"), range(60)))


def test_who_keeps_connections_in_a_crowd_is_asked_to_let_go(folder: Path) -> None:
    with running(Server(folder, "127.0.0.1", 0, most=2)) as server:
        first, second = connection(server), connection(server)
        for talk, kept in ((first, "keep"), (second, "close")):
            talk.request("GET", "/empty.tar")
            answer = talk.getresponse()
            assert answer.headers.get("Connection", "keep") == kept
            answer.read()
        first.close()
        second.close()


def test_idle_connections_are_closed(folder: Path) -> None:
    with running(Server(folder, "127.0.0.1", 0, idle=0.2)) as server:
        for data in (b"", b"GET /blob", b"GET /empty.tar HTTP/1.1\r\nHost: a\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", server.server_port), timeout=120) as talk:
                talk.sendall(data)
                while talk.recv(65536):
                    pass


def test_who_goes_away_in_the_middle_disturbs_nobody(
    server: Server, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.server_port)) as talk:
            talk.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
            talk.sendall(b"GET /blob.tar HTTP/1.1\r\nHost: a\r\n\r\n" * 20)
            talk.recv(10)
    assert ask(server, "/blob.tar").body == DATA
    assert capfd.readouterr().err == ""
    assert not caplog.records


def test_what_was_sent_is_told_once_a_minute_and_only_if_there_was_some(folder: Path) -> None:
    told: list[str] = []
    with running(Server(folder, "127.0.0.1", 0, say=told.append)) as server:
        for _ in range(3):
            ask(server, "/blob.tar")
        for _ in range(2):
            server._next, until = 0.0, time.monotonic() + 60
            while not server._next:  # until it has looked
                assert time.monotonic() < until
                time.sleep(0.01)
    assert len(told) == 1
    assert told[0].endswith("  0.9 MB in the last minute")


# How it is started


def test_the_list_names_the_splits(server: Server, folder: Path) -> None:
    answer = ask(server, "/")
    assert (answer.status, answer.body) == (200, b"/ucf101/split1\n")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert ask(server, "/", "HEAD").body == b""
    assert listing(folder / "ucf101" / "split1") == "/\n"


def test_the_first_lines_say_what_is_served_where_and_to_whom() -> None:
    text = "\n".join(
        lines(Path("data"), "/ucf101/split1\n/ucf101/split2\n", ["http://host:8000", "http://10.0.0.7:8000"])
    )
    for expected in (
        "data: ",
        "/ucf101/split2",
        "http://10.0.0.7:8000/ucf101/split1",
        "everyone who reaches",
        "Ctrl-C",
    ):
        assert expected in text
    alone = "\n".join(lines(Path("data"), "", addresses("127.0.0.1", 80)))
    assert "this machine alone" in alone
    assert "none there yet" in alone
    assert all(url.endswith(":8000") for url in addresses("0.0.0.0", 8000))
    assert addresses("::1", 80) == ["http://[::1]:80"]


def test_what_cannot_be_served_is_told(server: Server, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere: cannot be served: No such file"):
        Server(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"127\.0\.0\.1, port \d+: cannot be served from: Address already in use"):
        Server(folder, "127.0.0.1", server.server_port)
    with pytest.raises(ShardError, match=r"no\.such\.host\.invalid, port 8000: cannot be served from"):
        Server(folder, "no.such.host.invalid")


def test_the_command_serves_the_split_on_disk_until_ctrl_c_and_ends_quietly(folder: Path) -> None:
    command = [
        sys.executable,
        "-u",
        "-m",
        "stmul",
        "shards",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(4)]
        url = next(line.split()[1] for line in first if line.startswith("address"))
        with open_split(url) as afar, open_split(folder / "ucf101" / "split1") as here:
            assert afar.manifest == here.manifest
            assert not list(problems(afar))
            for part in here.manifest.parts:
                for record in range(len(here.index(part))):
                    assert {name: bytes(blob) for name, blob in afar.read(part, record).items()} == {
                        name: bytes(blob) for name, blob in here.read(part, record).items()
                    }
    finally:
        process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert output.startswith("ended; ")
    assert output.endswith(" MB served\n")
