"""The benchmark of streaming runs on drawn shards; its line is as late and narrow as it says, and changes no byte."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bench import remote
from tests.bench.line import Line, Shape, line
from tests.bench.passes import Passed, Site
from tests.bench.remote_tables import Report, Turn, as_markdown, goals, rate, tables

SMALL = ("data.frames=3", "data.stack=4", "data.crop=32", "data.stride=[2, 6]", "train.sub_batch=2")


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets, then ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def through(echo: int) -> Iterator[Line]:
    """A line to that server."""
    with line([echo]) as running:
        yield running


def sent_and_got(port: int, data: bytes) -> bytes:
    """What comes back of `data`, sent while what comes is read."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
        thread.join()
    return b"".join(parts)


@given(
    sizes=st.lists(st.integers(0, 300_000), min_size=1, max_size=5),
    rtt_ms=st.sampled_from([0.0, 3.0]),
    mbit=st.sampled_from([0.0, 800.0]),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_line_brings_every_byte_in_its_order_and_counts_it(through, sizes, rtt_ms, mbit):
    through.shape(Shape(rtt_ms=rtt_ms, mbit=mbit))
    blobs = [np.random.default_rng(size).bytes(size) for size in sizes]
    got: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda i=i, blob=blob: got.update({i: sent_and_got(through.ports[0], blob)}))
        for i, blob in enumerate(blobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(blobs))] == blobs
    carried = through.carried()
    assert (carried.down, carried.up, carried.connections) == (sum(sizes), sum(sizes), len(sizes))


@pytest.mark.parametrize("rtt_ms", [10.0, 50.0])
def test_a_connection_costs_a_round_trip_and_every_answer_another(through, rtt_ms):
    through.shape(Shape(rtt_ms=rtt_ms))
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", through.ports[0]), timeout=120) as connection:
        took: list[float] = []
        while len(took) < 3 or (min(took[1:]) >= 1.8 * rtt_ms and len(took) < 100):
            connection.sendall(b"?")
            assert connection.recv(1) == b"?"
            took.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
    assert took[0] >= 2 * rtt_ms
    assert rtt_ms <= min(took[1:]) < 1.8 * rtt_ms  # a busy machine makes some of them late, not all


def test_all_connections_share_the_bandwidth(through):
    size, mbit = 250_000, 40.0  # a twentieth of a second each, alone
    through.shape(Shape(mbit=mbit))
    began = time.perf_counter()
    threads = [threading.Thread(target=sent_and_got, args=(through.ports[0], bytes(size))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - began >= 8 * size * 8 / (mbit * 1e6) - 0.01
    assert through.carried().down == 8 * size


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., object]) -> tuple[Report, Path]:
    """A quick run on two lines, which has compared all pixels, and its page."""
    folder = tmp_path_factory.mktemp("remote")
    make_split(folder / "split1", train=8, test=1, frames=60, width=48, height=40)
    given = {"--shards": folder / "split1", "--videos": 8, "--clips": 16, "--out": folder / "page"}
    arguments = [str(part) for option in given.items() for part in option] + [
        "--quick",
        "--rtt",
        "0",
        "10",
        "--mbit",
        "100",
    ]
    return remote.main(arguments + [part for setting in SMALL for part in ("--set", setting)]), folder / "page"


def test_every_reader_delivers_pillows_pixels_and_every_table_holds_finite_numbers(report):
    found, page = report
    assert not found.failed
    names = {reader.name for reader in found.readers}
    assert {"ours, ranges", "ours, shards", "plain GETs, obstore, 8", "plain GETs, urllib3 threads, 8"} <= names
    assert len(found.found) == 2 * len(list(found.rows))  # two lines
    for some in found.found.values():
        for one in some.values():
            figures = (one.open_s, one.first_s, one.all_s, one.cpu_s, one.rate)
            assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
            assert one.open_s <= one.first_s <= one.all_s
    assert all(rows for _, _, rows in tables(found))
    assert page.with_suffix(".md").read_text() == as_markdown(found, "page.svg")
    assert str(page.parent) not in page.with_suffix(".md").read_text()
    assert "<svg" in page.with_suffix(".svg").read_text()


def test_plain_gets_fetch_the_bytes_of_the_frames_used_and_little_else(report):
    found, _ = report
    for shape in found.shapes:
        (one,) = found.passes(shape, "HTTP", "plain GETs, obstore, 8").values()
        ranges = one.down - sum(found.used[: one.clips])
        assert 0 < ranges < 16 * 30 * 400  # the heads of HTTP's answers: of clips so small no small part


def test_a_late_line_is_late_for_the_first_batch(report):
    found, _ = report
    near, far = (found.median(shape, "HTTP", "ours, ranges", lambda one: one.first_s) for shape in found.shapes)
    assert far > 0.04  # a connection, the manifest, the index, the frames
    assert near > 0


@pytest.mark.parametrize("fault", ["pixels", "missing"])
def test_a_reader_with_other_pixels_or_without_a_clip_is_refused(report, monkeypatch, fault):
    found, _ = report
    (reader,) = (one for one in found.readers if one.name == "ours, ranges")
    right = {position: f"pixels of {position}" for position in range(found.clips)}
    wrong = {**right, 1: "others"} if fault == "pixels" else {key: right[key] for key in right if key != 1}

    site = Site(
        url="",
        peers={},
        environ={},
        config=found.config,
        wanted=(None,) * found.clips,
        exact=(),
        epoch=found.videos,
        folder=Path(),
    )

    class There:
        digests = right
        sites = {"HTTP": site}  # noqa: RUF012
        through = type("Line", (), {"shape": staticmethod(lambda shape: None)})

    def gives(digests):
        monkeypatch.setattr(
            remote, "_passes", lambda *_, **__: [replace(a_pass(), positions=tuple(digests), digests=digests)]
        )
        remote.must_agree([reader], There, lambda text: None)

    gives(right)
    with pytest.raises(SystemExit, match="other pixels" if fault == "pixels" else "each once"):
        gives(wrong)


def a_pass(*, all_s: float = 2.0, clips: int = 10, down: int = 1000) -> Passed:
    """A pass that was not made."""
    return Passed(
        open_s=1.0, first_s=1.5, all_s=all_s, cpu_s=1.0, clips=clips, fetched=clips, positions=(), digests={}, down=down
    )


def test_ratios_are_taken_within_a_round_and_goals_say_no_where_they_fail(report):
    found, _ = report
    near, far = found.shapes
    slow, fast = {0: a_pass(all_s=3.0), 1: a_pass(all_s=21.0)}, {0: a_pass(all_s=2.0), 1: a_pass(all_s=11.0)}
    made = {(near, "ours, ranges"): slow, (near, "plain GETs, obstore, 8"): fast}
    made |= {(far, "ours, ranges"): fast, (far, "plain GETs, obstore, 8"): fast}
    passes = {Turn(shape=shape, reader=name, server="HTTP"): some for (shape, name), some in made.items()}
    changed = replace(found, found=passes)
    assert changed.over(near, "HTTP", "ours, ranges", "plain GETs, obstore, 8", rate) == 0.5
    first = next(goals(changed))
    assert first.row[2:] == ["0.50 no", "1.00"]
