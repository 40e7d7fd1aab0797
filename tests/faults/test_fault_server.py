"""The server that breaks things on purpose serves well otherwise, and does what its plans say, no more often."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.fault_server import FaultPlan, FaultServer, serving

SIZE = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.tar").write_bytes(os.urandom(SIZE))
    (folder / "b.tar").write_bytes(os.urandom(SIZE))
    return folder


@contextmanager
def connected(server: FaultServer) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def answered(connection: http.client.HTTPConnection, name: str = "a.tar", method: str = "GET", **headers: str):
    """Status, body and headers; `range_=` and `if_match=` name headers."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, f"/{name}", headers=named)
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def struck(folder: Path, kind: str, name: str = "a.tar", **more):
    """What is answered to the first request where a plan strikes each range once, and what to the second."""
    with serving(folder, FaultPlan(chances={kind: 1.0}, **more)) as server:
        outcomes = []
        for _ in range(2):
            with connected(server) as connection:
                try:
                    outcomes.append(answered(connection, name, range="bytes=100-1099"))
                except (ConnectionError, http.client.HTTPException) as error:
                    outcomes.append(error)
        assert server.faults() == {kind: 1}
        return outcomes


def test_without_a_plan_it_serves_ranges_versions_and_heads_over_one_connection(folder):
    data = (folder / "a.tar").read_bytes()
    with serving(folder) as server, connected(server) as connection:
        status, body, headers = answered(connection)
        assert (status, body, headers["Accept-Ranges"]) == (200, data, "bytes")
        etag = headers["ETag"]
        status, body, headers = answered(connection, range="bytes=5-104", if_match=etag)
        assert (status, body, headers["Content-Range"]) == (206, data[5:105], f"bytes 5-104/{SIZE}")
        assert headers["ETag"] == etag
        assert "GMT" in headers["Last-Modified"]
        assert answered(connection, range=f"bytes={SIZE - 10}-")[1] == data[-10:]
        assert answered(connection, range=f"bytes={SIZE}-{SIZE + 5}")[0] == 416
        assert answered(connection, if_match='"another"')[:2] == (412, b"")
        status, body, headers = answered(connection, method="HEAD")
        assert (status, body, headers["Content-Length"]) == (200, b"", str(SIZE))
        assert answered(connection, "nothing.tar")[0] == 404
        assert answered(connection, "../b.tar")[0] == 404
        assert answered(connection, method="PUT")[0] == 405
        assert server.faults() == {"missing": 2}
        assert server.sent() == {"a.tar": SIZE + 110}
        assert server.asked()[1] == ("a.tar", 5, 105)
        assert server.requests()["nothing.tar"] == 1


@pytest.mark.parametrize(("kind", "header"), [("busy", None), ("wait", "7")])
def test_busy_and_told_to_wait(folder, kind, header):
    (status, _, headers), (after, _, _) = struck(folder, kind, retry_after_s=7)
    assert (status, headers["Retry-After"], after) == (503, header, 206)


def test_reset_before_and_in_the_middle_and_short(folder):
    assert isinstance(struck(folder, "refused")[0], ConnectionResetError)
    assert isinstance(struck(folder, "reset")[0], ConnectionResetError)
    short, (_, whole, _) = struck(folder, "short", at=0.9)
    assert isinstance(short, http.client.IncompleteRead)
    assert (len(short.partial), short.expected, short.partial) == (900, 100, whole[:900])


@pytest.mark.parametrize(("kind", "least"), [("drip", 0.4), ("stall", 0.5)])
def test_slow_answers_come_whole(folder, kind, least):
    begun = time.monotonic()
    (status, body, _), (_, after, _) = struck(folder, kind, rate=2000, stall_s=0.5)
    assert (status, body) == (206, after)
    assert time.monotonic() - begun > least


def test_one_wrong_bit(folder):
    (status, body, _), (_, right, _) = struck(folder, "wrong")
    assert status == 206
    assert sum((one ^ other).bit_count() for one, other in zip(body, right, strict=True)) == 1


def test_the_whole_file_for_a_part(folder):
    (status, body, headers), _ = struck(folder, "plain")
    assert (status, body, headers["Content-Range"]) == (200, (folder / "a.tar").read_bytes(), None)


def test_another_object_under_the_same_name(folder):
    (status, body, headers), (_, right, before) = struck(folder, "stale")
    assert (status, len(body)) == (206, len(right))
    assert body != right
    assert headers["ETag"] != before["ETag"]
    for kind, expected in (("stale", 412), ("swapped", 206)):
        plan = FaultPlan(chances={kind: 1.0}, most=0, first=1)
        with serving(folder, plan) as server, connected(server) as connection:
            etag = answered(connection)[2]["ETag"]
            status, _, headers = answered(connection, if_match=etag, range="bytes=0-9")
            assert status == expected
            assert headers["ETag"] != etag


def test_keys_are_good_for_so_many_requests(folder):
    with serving(folder, FaultPlan(key_requests=2)) as server, connected(server) as connection:
        assert answered(connection)[0] == 403
        for _ in range(2):
            key = json.loads(answered(connection, "keys")[1])
            signed = {"authorization": f"AWS4-HMAC-SHA256 Credential={key['AccessKeyId']}/20260101/us-east-1/s3/x"}
            assert [answered(connection, **signed)[0] for _ in range(3)] == [200, 200, 400]
            status, body, _ = answered(connection, **signed)
            assert (status, b"<Code>ExpiredToken</Code>" in body) == (400, True)
        assert server.faults() == {"unsigned": 1, "expired": 4}


def test_a_seed_strikes_the_same_requests_whatever_else_is_asked_for_and_another_seed_others(folder):
    def outcomes(seed: int, *, other: bool) -> list[int]:
        plan = FaultPlan(chances={"busy": 0.3, "stale": 0.1}, most=2, seed=seed)
        with serving(folder, plan) as server, connected(server) as connection:
            statuses = []
            for start in range(0, SIZE, 500):
                if other:
                    answered(connection, "b.tar", range=f"bytes={start}-{start + 99}")
                statuses += [
                    answered(connection, range=f"bytes={start}-{start + 99}", if_match="*")[0] for _ in range(4)
                ]
            return statuses

    found = outcomes(1, other=False)
    assert found == outcomes(1, other=True) != outcomes(2, other=False)
    struck = [found[i : i + 4].count(503) for i in range(0, len(found), 4)]
    assert (min(struck), max(struck)) == (0, 2)
    assert 0.15 < found.count(503) / len(found) < 0.45


def test_a_plan_is_about_some_paths_and_spares_the_first_requests(folder):
    with serving(folder, FaultPlan(chances={"busy": 1.0}, most=0, paths="b.*", first=1)) as server:
        with connected(server) as connection:
            assert [answered(connection, name)[0] for name in ("a.tar", "b.tar", "a.tar", "b.tar")] == [
                200,
                200,
                200,
                503,
            ]
        assert server.faults() == {"busy": 1}
