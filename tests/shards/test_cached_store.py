import fcntl
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.access import Access
from shards.errors import CorruptRecordError, ShardError, TruncatedShardError, UnreachableError
from shards.manifest import ShardFile
from shards.split import open_split
from shards.stores import Range, later, remote
from shards.stores.cached import CachedStore
from shards.stores.remote import RemoteStore
from tests.faults.fault_server import FaultPlan, FaultServer, serving

SIZES = (70_000, 50_001, 90_000, 60_000, 512, 80_000)
TOTAL = sum(SIZES)
LONG_AGO = 1_000_000_000  # seconds since 1970
PATIENCE_S = 120  # for what takes fractions of a second


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder, draws = tmp_path_factory.mktemp("served"), random.Random(5)
    for number, size in enumerate(SIZES):
        (folder / f"train-{number:06d}.tar").write_bytes(draws.randbytes(size))
    (folder / "train.index").write_bytes(draws.randbytes(3000))
    return folder


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    with serving(folder) as server:
        yield server.url


@pytest.fixture(scope="module")
def plain_url(folder) -> Iterator[str]:
    with serving(folder, FaultPlan(chances={"plain": 1.0}, most=0)) as server:
        yield server.url


@pytest.fixture
def server(folder) -> Iterator[FaultServer]:
    """A server with counts of its own."""
    with serving(folder) as server:
        yield server


def name(number: int) -> str:
    return f"train-{number:06d}.tar"


def files_of(folder: Path, *, known: bool = True) -> dict[str, ShardFile]:
    return {
        path.name: ShardFile(
            name=path.name,
            size=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest() if known else "",
            records=1,
        )
        for path in folder.glob("*.tar")
    }


@contextmanager
def opened(url: str, folder: Path, *, known: bool = True, **access) -> Iterator[CachedStore]:
    settings = Access(**access)
    store = CachedStore(RemoteStore(url, settings), settings, files_of(folder, known=known))
    try:
        yield store
    finally:
        store.close()


def whole(folder: Path, number: int) -> Range:
    return Range(name(number), 0, SIZES[number])


def right(store: CachedStore, folder: Path, *ranges: Range) -> bool:
    expected = [(folder / one.blob).read_bytes()[one.start : one.stop] for one in ranges]
    return [bytes(blob) for blob in store.fetch(ranges)] == expected


def downloads(server: FaultServer) -> Counter[str]:
    """How often each file was asked for from its start, by more than a look at its size."""
    return Counter(path for path, start, stop in server.asked() if start == 0 and stop > 1 and path.endswith(".tar"))


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "shards").glob("*") if len(path.name) == 64)


def await_kept(cache: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while len(kept(cache)) < count:
        assert time.monotonic() < until, f"{len(kept(cache))} of {count} shards were fetched"
        time.sleep(0.01)


# The same bytes, whatever the way


WAYS = {
    "ranges": {"mode": "ranges"},
    "shards": {"mode": "shards", "cache_limit": TOTAL},
    "shards in little room": {"mode": "shards", "cache_limit": 200_000},
    "both": {"mode": "auto", "cache_limit": TOTAL},
    "auto, too little room": {"mode": "auto", "cache_limit": TOTAL - 1},
}


@pytest.fixture(scope="module")
def all_ways(folder, url, plain_url, tmp_path_factory) -> Iterator[list[CachedStore]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(opened(address, folder, cache=tmp_path_factory.mktemp("cache"), **way))
            for address in (url, plain_url)
            for way in WAYS.values()
        ]


@given(
    which=st.integers(0, 2 * len(WAYS) - 1),
    wanted=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 90_000), st.integers(0, 5000)), max_size=8),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_way_gives_the_bytes_of_the_files(all_ways, folder, which, wanted):
    ranges = [
        Range(name(number), min(start, SIZES[number]), min(start + size, SIZES[number]))
        for number, start, size in wanted
    ]
    assert right(all_ways[which], folder, *ranges)


@pytest.mark.parametrize("way", WAYS)
def test_a_range_past_the_end_is_refused_in_every_way(folder, url, plain_url, tmp_path, way):
    for address in (url, plain_url):
        with opened(address, folder, cache=tmp_path, **WAYS[way]) as store:
            store.fetch([whole(folder, 4)])
            with pytest.raises(TruncatedShardError, match=r"train-000004\.tar.* ends before byte 513"):
                store.fetch([Range(name(4), 500, 513)])


@pytest.mark.parametrize("way", WAYS)
def test_a_split_is_the_same_in_every_way(make_split, serve, tmp_path, way):
    make_split(tmp_path / "split1", train=5, test=2, frames=4)
    with open_split(tmp_path / "split1") as local:
        expected = [local.read("train", record) for record in range(5)]
    for address in (served := serve(tmp_path).url, f"{served}/plain"):
        access = Access(**WAYS[way] | {"cache": tmp_path / "cache", "cache_limit": 10_000_000})
        for name in ("split1", "split1/train-000000.tar"):
            with open_split(f"{address}/{name}", access=access) as split:
                count = len(split.index("train"))
                for _ in range(2):
                    found = [split.read("train", record) for record in range(count)]
                    assert [{member: bytes(one[member]) for member in one} for one in found] == expected[:count]


# Whole shards


def test_a_shard_is_fetched_once_for_all_who_read_it(folder, server, tmp_path):
    with opened(server.url, folder, mode="shards", cache=tmp_path) as store:
        assert right(store, folder, Range(name(0), 5, 10), Range(name(2), 0, 100), Range(name(0), 60_000, 70_000))
        assert right(store, folder, Range(name(0), 100, 69_000))
    assert downloads(server) == {name(0): 1, name(2): 1}
    assert sorted(path.name for path in kept(tmp_path)) == sorted(
        hashlib.sha256((folder / name(number)).read_bytes()).hexdigest() for number in (0, 2)
    )
    asked = len(server.asked())
    with opened(server.url, folder, mode="shards", cache=tmp_path) as store:
        assert right(store, folder, whole(folder, 0))
    assert len(server.asked()) == asked


def test_what_is_no_shard_is_read_by_ranges(folder, server, tmp_path):
    with opened(server.url, folder, mode="shards", cache=tmp_path) as store:
        assert right(store, folder, Range("train.index", 100, 200))
    assert ("train.index", 100, 200) in server.asked()
    assert kept(tmp_path) == []


def test_a_shard_larger_than_the_cache_says_so_or_is_read_by_ranges(folder, url, plain_url, tmp_path):
    for address, mode in ((url, "shards"), (plain_url, "auto")):
        with (
            opened(address, folder, mode=mode, cache=tmp_path, cache_limit=69_999) as store,
            pytest.raises(ShardError, match=r"train-000000\.tar: 70000 bytes are needed in .*which may hold 69999"),
        ):
            store.fetch([Range(name(0), 0, 5)])
    with opened(url, folder, mode="auto", cache=tmp_path, cache_limit=69_999) as store:
        assert right(store, folder, whole(folder, 0))


def test_a_shard_that_is_another_one_is_refused(folder, url, tmp_path):
    access = Access(mode="shards", cache=tmp_path)
    wrong = files_of(folder) | {name(0): ShardFile(name=name(0), size=SIZES[0], sha256="0" * 64, records=1)}
    store = CachedStore(RemoteStore(url, access), access, wrong)
    with pytest.raises(CorruptRecordError, match=rf"{url}/train-000000\.tar: came with SHA-256 .*expected {'0' * 64}"):
        store.fetch([Range(name(0), 0, 5)])
    store.close()


def test_a_folder_with_a_split_is_refused_when_the_store_is_made(folder, url, tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"{}")
    for mode in ("shards", "auto"):
        with pytest.raises(ShardError, match="no place for a cache"):
            CachedStore(RemoteStore(url), Access(mode=mode, cache=tmp_path), files_of(folder))


# Both


def test_the_first_bytes_come_by_ranges_and_later_ones_from_what_was_fetched_meanwhile(folder, server, tmp_path):
    with opened(server.url, folder, cache=tmp_path, cache_limit=TOTAL) as store:
        for number in (3, 0, 5):
            assert right(store, folder, Range(name(number), 10, 20))
        await_kept(tmp_path, 3)
        asked = server.asked()
        assert right(store, folder, whole(folder, 3), whole(folder, 0), whole(folder, 5))
        assert server.asked() == asked
    assert asked[0][1:] != (0, SIZES[3])
    assert [path for path, start, stop in asked if (start, stop - start) == (0, SIZES[int(path[6:12])])] == [
        name(number) for number in (3, 0, 5)
    ]


@pytest.mark.parametrize("access", [{"cache_limit": TOTAL - 1}, {"mode": "ranges"}])
def test_where_not_all_would_fit_or_ranges_are_wanted_nothing_is_kept(folder, server, tmp_path, access):
    with opened(server.url, folder, cache=tmp_path, **access) as store:
        assert right(store, folder, Range(name(0), 10, 20))
        assert right(store, folder, Range(name(0), 10, 20))
    assert downloads(server) == {}
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept(folder, server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with opened(server.url, folder) as store:
        assert right(store, folder, Range(name(0), 10, 20))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_behind_the_back_is_said_once_and_reading_goes_on(folder, url, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(later, "FIRST_PAUSE", 0.01)
    (tmp_path / "file").write_bytes(b"")
    with caplog.at_level(logging.WARNING), opened(url, folder, cache=tmp_path / "file") as store:
        for number in range(6):
            assert right(store, folder, whole(folder, number))
        until = time.monotonic() + PATIENCE_S
        while not caplog.records:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.3)
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{tmp_path}/file/shards: cannot be written: Not a directory.")
    assert told.endswith(". Reading goes on by ranges")
    assert {record.name for record in caplog.records} == {"shards"}


def test_a_failure_that_passes_is_tried_again(folder, url, tmp_path, monkeypatch):
    monkeypatch.setattr(later, "FIRST_PAUSE", 0.05)
    (tmp_path / "file").write_bytes(b"")
    with opened(url, folder, cache=tmp_path / "file") as store:
        assert right(store, folder, whole(folder, 0))
        (tmp_path / "file").unlink()
        until = time.monotonic() + PATIENCE_S
        while not kept(tmp_path / "file"):
            assert time.monotonic() < until
            assert right(store, folder, Range(name(0), 0, 5))


def test_a_damaged_shard_is_left_alone_and_the_others_are_fetched(folder, url, tmp_path, caplog):
    access = Access(cache=tmp_path)
    wrong = files_of(folder) | {name(0): ShardFile(name=name(0), size=SIZES[0], sha256="0" * 64, records=1)}
    store = CachedStore(RemoteStore(url, access), access, wrong)
    for number in range(3):
        assert right(store, folder, whole(folder, number))
    await_kept(tmp_path, 2)
    store.close()
    assert [path.name for path in kept(tmp_path)] == sorted(wrong[name(number)].sha256 for number in (1, 2))
    assert len(caplog.records) == 1


# Servers without ranges


def test_a_server_without_ranges_is_read_by_whole_shards_and_that_is_said_once(
    folder, plain_url, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with opened(plain_url, folder) as store:
        threads = [threading.Thread(target=store.fetch, args=([whole(folder, i)],)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert right(store, folder, *(whole(folder, i) for i in range(6)))
        assert right(store, folder, Range("train.index", 100, 200))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == f"{plain_url}: sends whole files only: whole shards are fetched into {tmp_path}/stmul"
    assert len(kept(tmp_path / "stmul")) == 7


def test_a_scan_goes_through_the_whole_file_where_there_are_no_ranges(folder, plain_url, url, tmp_path):
    for address in (plain_url, url):
        with opened(address, folder, cache=tmp_path, mode="ranges") as store:
            read, data = store.reader(name(0)), (folder / name(0)).read_bytes()
            assert [bytes(read(at, at + 512)) for at in range(0, 5120, 512)] == [
                data[at : at + 512] for at in range(0, 5120, 512)
            ]


# Damage in what is kept


def flip(cache: Path, number: int, byte: int, folder: Path) -> None:
    data = bytearray((folder / name(number)).read_bytes())
    (path,) = [path for path in kept(cache) if path.stat().st_size == len(data)]
    data[byte] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("known", [True, False], ids=["digest known", "digest unknown"])
@pytest.mark.parametrize("kind", ["shards", "both", "without ranges"])
def test_a_flipped_byte_is_read_past_and_the_next_download_heals_it(folder, url, plain_url, tmp_path, kind, known):
    address = plain_url if kind == "without ranges" else url
    mode = "shards" if kind == "shards" else "auto"
    with opened(address, folder, mode=mode, cache=tmp_path, known=known) as store:
        store.fetch([whole(folder, 0)])
        await_kept(tmp_path, 1)
        flip(tmp_path, 0, 500, folder)
        wanted, data = Range(name(0), 490, 510), (folder / name(0)).read_bytes()
        assert not right(store, folder, wanted)
        assert bytes(store.again(wanted)) == data[490:510]
        assert right(store, folder, whole(folder, 0))
        await_kept(tmp_path, 1)
        assert kept(tmp_path)[0].read_bytes() == data


def test_what_is_kept_and_right_is_not_dropped(folder, server, tmp_path):
    with opened(server.url, folder, mode="shards", cache=tmp_path) as store:
        store.fetch([whole(folder, 0)])
        before = kept(tmp_path)[0].stat().st_ino
        assert bytes(store.again(Range(name(0), 5, 9))) == (folder / name(0)).read_bytes()[5:9]
        assert kept(tmp_path)[0].stat().st_ino == before


def test_a_kept_file_that_was_cut_is_fetched_anew(folder, server, tmp_path):
    with opened(server.url, folder, mode="shards", cache=tmp_path) as store:
        store.fetch([whole(folder, 0)])
        os.truncate(kept(tmp_path)[0], 100)
        assert right(store, folder, whole(folder, 0))
    assert downloads(server) == {name(0): 2}


# Versions


def test_without_a_digest_a_file_is_known_by_its_place_and_version(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    (served / name(0)).write_bytes(b"1" * 1000)

    def read() -> bytes:
        with opened(server.url, served, known=False, mode="shards", cache=tmp_path / "cache") as store:
            return bytes(store.fetch([Range(name(0), 0, 3)])[0])

    with serving(served) as server:
        assert (read(), read()) == (b"111", b"111")
        assert downloads(server) == {name(0): 1}
        (served / name(0)).write_bytes(b"2" * 1000)
        os.utime(served / name(0), (LONG_AGO, LONG_AGO))
        assert read() == b"222"
        assert downloads(server) == {name(0): 2}


def test_nothing_secret_stands_in_the_cache(folder, serve, tmp_path, caplog):
    url = f"{serve(folder).url}/token?token=secret"
    for known in (True, False):
        with opened(url, folder, known=known, mode="shards", cache=tmp_path) as store:
            assert right(store, folder, whole(folder, 0))
    assert len(kept(tmp_path)) == 2
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert not [one for one in names if "secret" in one or "token" in one]
    assert "secret" not in caplog.text


# Ends


@pytest.fixture
def slow(folder, monkeypatch) -> Iterator[FaultServer]:
    """A server that after five small parts needs minutes for each."""
    monkeypatch.setattr(remote, "PART", 4000)
    monkeypatch.setattr(remote, "PARTS_AHEAD", 0)
    with serving(folder, FaultPlan(chances={"drip": 1.0}, first=5, rate=20, drip_s=600)) as server:
        yield server


@pytest.mark.parametrize("mode", ["auto", "shards"])
def test_a_close_ends_downloads_at_once_and_the_next_store_goes_on(folder, slow, url, tmp_path, mode):
    with opened(slow.url, folder, mode=mode, cache=tmp_path) as store:
        told: list[BaseException] = []
        waiting = threading.Thread(target=lambda: told.append(raised(lambda: store.fetch([whole(folder, 2)]))))
        waiting.start()
        until = time.monotonic() + PATIENCE_S
        while not [path for path in tmp_path.glob("shards/*.partial") if path.stat().st_size]:
            assert time.monotonic() < until
            time.sleep(0.01)
        begun = time.monotonic()
        store.close()
        if mode == "shards":
            waiting.join()
            assert [type(error) for error in told] == [ShardError]
        assert time.monotonic() - begun < 60  # the server would need minutes
    waiting.join()
    (partial,) = tmp_path.glob("shards/*.partial")
    await_free(partial)
    left = partial.stat().st_size
    assert 0 < left < SIZES[2]
    with serving(folder) as server, opened(server.url, folder, mode="shards", cache=tmp_path) as store:
        assert right(store, folder, whole(folder, 2))
        assert min(start for _, start, stop in server.asked() if stop > 1) == left


def raised(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except Exception as error:
        return error
    return AssertionError("nothing was raised")


def await_free(partial: Path) -> None:
    """Returns when nobody is downloading."""
    until = time.monotonic() + PATIENCE_S
    with partial.open("rb+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                assert time.monotonic() < until
                time.sleep(0.01)
            else:
                return


def test_a_closed_store_says_so(folder, url, tmp_path):
    with opened(url, folder, mode="shards", cache=tmp_path) as store:
        store.close()
        store.close()
        with pytest.raises(ShardError, match="closed while it was being read"):
            store.fetch([whole(folder, 0)])


# Processes


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(OPEN + program), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


OPEN = """
import hashlib, os, random, sys, time
from pathlib import Path
from shards.access import Access
from shards.manifest import ShardFile
from shards.stores import Range
from shards.stores.cached import CachedStore
from shards.stores.remote import RemoteStore

url, folder, cache, limit = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
data = {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}
files = {
    name: ShardFile(name=name, size=len(d), sha256=hashlib.sha256(d).hexdigest(), records=1) for name, d in data.items()
}
access = Access(mode="shards", cache=cache, cache_limit=limit)
store = CachedStore(RemoteStore(url, access), access, files)
"""

RANDOMLY = """
draws = random.Random(sys.argv[5])
for _ in range(40):
    ranges = []
    for name in draws.choices(list(data), k=3):
        start = draws.randrange(len(data[name]))
        ranges.append(Range(name, start, draws.randint(start, len(data[name]))))
    for wanted, found in zip(ranges, store.fetch(ranges)):
        assert found == data[wanted.blob][wanted.start : wanted.stop]
print("right", flush=True)
store.close()
"""


def test_four_processes_fetch_each_shard_once_in_all(folder, server, tmp_path):
    processes = [run(RANDOMLY, server.url, folder, tmp_path, TOTAL, number) for number in range(4)]
    assert [process.communicate(timeout=PATIENCE_S)[0] for process in processes] == ["right\n"] * 4
    assert downloads(server) == {name(number): 1 for number in range(6)}
    assert sum(server.sent().values()) <= TOTAL + 100  # and looks at their sizes


WINDOWED = """
import numpy as np
from shards.order import Order, sub_batches

rank, steps, shard_of = int(sys.argv[5]), int(sys.argv[6]), np.repeat(np.arange(8, dtype=np.uint32), 6)
order = Order(count=len(shard_of), seed=3, kind="windowed", shard_of=shard_of, window=2)
names = list(data)
for step in range(steps):
    sys.stdin.readline()
    for positions in sub_batches(step, batch=4, sub_batch=2, rank=rank, world=2):
        ranges = []
        for record in map(order.record, positions):
            name = names[shard_of[record]]
            ranges.append(Range(name, 10 * (record % 6), 10 * (record % 6) + 10))
        for wanted, found in zip(ranges, store.fetch(ranges)):
            assert found == data[wanted.blob][wanted.start : wanted.stop]
    print(step, flush=True)
store.close()
"""


def test_in_windowed_order_the_ranks_of_a_machine_fetch_each_shard_once_an_epoch(tmp_path):
    served, draws, size = tmp_path / "served", random.Random(0), 10_000
    served.mkdir()
    for number in range(8):
        (served / name(number)).write_bytes(draws.randbytes(size))
    with serving(served) as server:
        arguments = (server.url, served, tmp_path / "cache", 4 * size)  # two windows
        ranks = [run(WINDOWED, *arguments, rank, 24) for rank in range(2)]
        for epoch in (1, 2):
            for _ in range(12):
                for rank in ranks:
                    print("", file=rank.stdin, flush=True)
                for rank in ranks:
                    assert rank.stdout is not None
                    assert rank.stdout.readline() != ""
                time.sleep(0.02)
            counts = downloads(server)
            assert set(counts) == {name(number) for number in range(8)}
            # At an epoch's edge two windows of the last one are still there, and may be wanted again.
            assert max(counts.values()) <= epoch
        assert [rank.wait(PATIENCE_S) for rank in ranks] == [0, 0]
        for rank in ranks:
            rank.communicate()


ONE = """
from shards.stores import remote
remote.PART = 4000
print("ready", flush=True)
(found,) = store.fetch([Range(sys.argv[5], 0, len(data[sys.argv[5]]))])
assert found == data[sys.argv[5]]
print("right", flush=True)
store.close()
"""


def kill_and_go_on(folder: Path, tmp_path: Path, after: float) -> None:
    with serving(folder, FaultPlan(chances={"drip": 1.0}, rate=40_000, drip_s=0.1)) as dripping:
        process = run(ONE, dripping.url, folder, tmp_path, TOTAL, name(2))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = sum(path.stat().st_size for path in tmp_path.glob("shards/*") if len(path.name) >= 64)
    with serving(folder) as server:
        process = run(ONE, server.url, folder, tmp_path, TOTAL, name(2))
        assert process.communicate(timeout=PATIENCE_S)[0] == "ready\nright\n"
        assert sum(server.sent().values()) <= SIZES[2] - left + 10  # looks at its size
    (one,) = kept(tmp_path)
    assert one.read_bytes() == (folder / name(2)).read_bytes()
    assert {path.name for path in one.parent.iterdir()} == {one.name, "CACHEDIR.TAG"}


@pytest.mark.parametrize("after", [0.0, 0.4, 0.8])
def test_after_a_kill_the_next_process_goes_on_by_itself(folder, tmp_path, after):
    kill_and_go_on(folder, tmp_path, after)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_after_a_kill_at_any_moment_the_next_process_goes_on_by_itself(folder, tmp_path, number):
    kill_and_go_on(folder, tmp_path, random.Random(number).uniform(0, 1.5))


FORKED = """
from shards.errors import UnreachableError

first, second = list(data)[:2]
store.fetch([Range(first, 0, 5)])
for _ in range(3):
    child = os.fork()
    if not child:
        try:
            right = store.fetch([Range(first, 5, 5000)]) == [data[first][5:5000]]
            store.fetch([Range(second, 0, 5)])
        except UnreachableError as error:
            right = right and "Start workers with spawn or forkserver" in str(error)
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert store.fetch([Range(second, 0, 5)]) == [data[second][:5]]
print("right", flush=True)
store.close()
"""


def test_a_fork_reads_what_is_kept(folder, url, tmp_path):
    process = run(FORKED, url, folder, tmp_path, TOTAL)
    assert process.communicate(timeout=PATIENCE_S)[0] == "right\n"


def test_a_process_ends_in_the_middle_of_a_download(folder, slow, tmp_path):
    program = """
import threading
threading.Thread(target=store.fetch, args=([Range(sys.argv[5], 0, 9)],), daemon=True).start()
while not list(cache.glob("shards/*.partial")):
    time.sleep(0.01)
print("ready", flush=True)
"""
    process = run(program, slow.url, folder, tmp_path, TOTAL, name(2))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert process.wait(PATIENCE_S) == 0  # the server would need longer
    process.communicate()


def test_what_is_not_there_is_said_as_ever(folder, url, tmp_path):
    with (
        opened(f"{url}/nowhere", folder, mode="shards", cache=tmp_path) as store,
        pytest.raises(UnreachableError, match=r"nowhere/train-000000\.tar: not there \(404\)"),
    ):
        store.fetch([whole(folder, 0)])
