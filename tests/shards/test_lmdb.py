"""What the library has written is read without it: by threads, children and many at once; damage is an error."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.copy import copy_split
from shards.errors import CorruptRecordError, FormatError, ShardError, TruncatedShardError, UnreachableError
from shards.format import decode
from shards.manifest import Manifest
from shards.split import Split, open_split
from shards.stores import Range
from shards.stores.lmdb import LmdbStore, pages

RECORDS = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    folder = tmp_path_factory.mktemp("lmdb")
    make_split(folder / "split1", train=RECORDS, test=3, frames=3)
    copy_split(folder / "split1", folder / "split1.lmdb")
    return folder / "split1.lmdb"


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "x.lmdb")


def names(split: Split) -> list[str]:
    """The name of every record, read from the record itself."""
    return [decode(split.read("train", record)).name for record in range(RECORDS)]


def run(script: str, *arguments: object, seconds: float = 120) -> str:
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


# The library writes, we read


keys = st.text(min_size=1, max_size=60).map(lambda text: f"t/{text}")
changes = st.dictionaries(keys, st.none() | st.integers(0, 20_000), max_size=30)  # bytes; None: deleted


@settings(max_examples=40)
@given(history=st.lists(changes, max_size=4), seed=st.integers(0, 9))
def test_whatever_the_library_has_written_is_found(
    history: list[dict[str, int | None]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, expected, draws = tmp_path_factory.mktemp("any"), dict[str, bytes](), random.Random(seed)
    with lmdb.open(str(folder), map_size=1 << 26, lock=False, sync=False) as environment:
        for number, change in enumerate(history):
            with environment.begin(write=True) as transaction:
                for key, size in change.items():
                    if size is None:
                        transaction.delete(key.encode())
                        expected.pop(key, None)
                    else:
                        expected[key] = draws.randbytes(size)
                        transaction.put(key.encode(), expected[key])
            assert pages(folder / "data.mdb").entries == len(expected), number
    store = LmdbStore(folder)
    if history:
        found = store.fetch([Range(key, 0, len(value)) for key, value in expected.items()])
        assert [bytes(blob) for blob in found] == list(expected.values())
        assert [store.size(key) for key in expected] == [len(value) for value in expected.values()]
    for key in {key for change in history for key in change} - expected.keys() | {"t/", "t/\U0010ffff" * 2, "s/", "u/"}:
        with pytest.raises(FormatError, match="has no value"):
            store.size(key)
    store.close()


def test_a_tree_of_several_levels_is_searched_as_the_library_searches_it(tmp_path: Path) -> None:
    order = random.Random(0).sample(range(8000), 8000)
    with lmdb.open(str(tmp_path), map_size=1 << 26, lock=False, sync=False) as environment:
        for start in range(0, len(order), 2000):
            with environment.begin(write=True) as transaction:
                for number in order[start : start + 2000]:
                    transaction.put(f"t/{number:0400d}".encode(), b"%d" % number)
        assert environment.stat()["depth"] >= 4
    store = LmdbStore(tmp_path)
    for number in order:
        [found] = store.fetch([Range(f"t/{number:0400d}", 0, len(str(number)))])
        assert bytes(found) == b"%d" % number
    with pytest.raises(FormatError, match="has no value"):
        store.size(f"t/{8000:0400d}")


def test_the_library_reads_the_same_values(source: Path) -> None:
    with lmdb.open(str(source), readonly=True, lock=False) as environment, environment.begin() as transaction:
        values = {key.decode(): value for key, value in transaction.cursor()}
    assert len(values) == 4 * (RECORDS + 3)
    with open_split(source) as split:
        found = split.store.fetch([Range(key, 0, len(value)) for key, value in values.items()])
    assert [bytes(blob) for blob in found] == list(values.values())


def test_only_the_bytes_that_are_wanted_are_read(tmp_path: Path) -> None:
    with (
        lmdb.open(str(tmp_path), map_size=1 << 26, lock=False) as environment,
        environment.begin(write=True) as writing,
    ):
        for number in range(8):
            writing.put(b"t/%d" % number, bytes([number]) * (2 << 20))
    store = LmdbStore(tmp_path)
    store.size("t/0")

    def read_so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read_so_far()
    found = store.fetch([Range(f"t/{number}", 1 << 20, (1 << 20) + 50_000) for number in range(8)])
    assert read_so_far() - before <= 8 * (50_000 + 4096) + 4096  # a leaf for each, and the file that we count with
    assert [bytes(blob) for blob in found] == [bytes([number]) * 50_000 for number in range(8)]


# Threads, children, processes


def child(folder: Path, expected: list[str], ready: object, depth: int) -> None:
    """Reads all in four threads at once, and has a child of its own do the same."""
    context = multiprocessing.get_context()
    ready.wait(60)  # type: ignore[attr-defined]
    with open_split(folder) as split, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(names, [split] * 4)) == [expected] * 4
        if depth:
            grandchild = context.Process(target=child, args=(folder, expected, ready, depth - 1))
            grandchild.start()
            assert names(split) == expected
            grandchild.join()
            assert grandchild.exitcode == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_read_beside_their_parent_however_they_are_started(source: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    ready = context.Event()
    split = open_split(source)
    expected = names(split)
    children = [context.Process(target=child, args=(source, expected, ready, i == 0)) for i in range(3)]
    for one in children:
        one.start()
    ready.set()
    assert names(split) == expected
    split.close()
    for one in children:
        one.join(120)
    assert [one.exitcode for one in children] == [0] * 3


MANY = """
import os, sys
from shards.format import decode
from shards.split import open_split

def names(split):
    return [decode(split.read("train", record)).name for record in range(3)]

split = open_split(sys.argv[1])
expected = names(split)
arrived, go = os.pipe(), os.pipe()
children = []
for number in range(160):
    child = os.fork()
    if not child:
        os.close(go[1])
        own = open_split(sys.argv[1]) if number % 2 else split
        right = names(own) == expected
        os.write(arrived[1], b"1")
        os.read(go[0], 1)  # until the parent has closed it: all 160 are readers at once
        os._exit(0 if right and names(own) == expected else 1)
    children.append(child)
os.close(arrived[1])
waiting = 160
while waiting:
    waiting -= len(os.read(arrived[0], waiting)) or sys.exit("a child is missing")
split.close()
os.close(go[1])
print(sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_more_readers_than_an_lmdb_has_slots_read_at_once_and_the_parent_may_close_first(source: Path) -> None:
    before = sorted(path.name for path in source.iterdir())
    assert run(MANY, source) == "0\n"
    assert sorted(path.name for path in source.iterdir()) == before  # no lock file


def test_more_splits_and_threads_than_slots_in_one_process(source: Path) -> None:
    splits = [open_split(source) for _ in range(140)]
    barrier = threading.Barrier(140)

    def together(split: Split) -> str:
        barrier.wait(60)
        return decode(split.read("train", 7)).name

    with ThreadPoolExecutor(140) as pool:
        assert len(set(pool.map(together, splits))) == 1
    for split in splits:
        split.close()


LOCKED = """
import os, sys, threading
from shards.format import decode
from shards.split import open_split

with open_split(sys.argv[1]) as split:
    expected = decode(split.read("train", 0)).name
    held, done = threading.Event(), threading.Event()

    def hold():
        with split.store._files._lock:
            held.set()
            done.wait()

    threading.Thread(target=hold).start()
    held.wait()
    child = os.fork()
    if not child:
        os._exit(decode(split.read("train", 0)).name != expected)
    done.set()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_forked_while_a_thread_was_opening_a_file_reads_too(source: Path) -> None:
    run(LOCKED, source, seconds=20)


def test_two_splits_are_read_in_turn(source: Path, tmp_path: Path, make_split: Callable[..., Manifest]) -> None:
    make_split(tmp_path / "other", train=RECORDS, test=1, frames=2, seed=3)
    copy_split(tmp_path / "other", tmp_path / "other.lmdb")
    with open_split(source) as one, open_split(tmp_path / "other.lmdb") as two:
        for record in range(RECORDS):
            assert len({decode(split.read("train", record)).frames for split in (one, two)}) == 2


READ_ONLY = """
import sys
from pathlib import Path
from shards.check import problems
from shards.split import open_split
try:
    Path(sys.argv[1], "x").touch()
    sys.exit("this folder can be written")
except OSError:
    pass
with open_split(sys.argv[1]) as split:
    assert not list(problems(split))
"""


def test_a_read_only_file_system_is_enough(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    mounting = f"mount --bind {source} {tmp_path}/mounted && mount -o remount,bind,ro {tmp_path}/mounted"
    alone = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, mounting], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    reading = [f'{mounting} && exec "$@"', "sh", sys.executable, "-c", READ_ONLY, str(tmp_path / "mounted")]
    done = subprocess.run([*alone, *reading], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# Memory


FLAT = """
import resource, sys
from pathlib import Path
from shards.stores import Range
from shards.stores.lmdb import LmdbStore

def memory():
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0]: int(line[1]) << 10 for line in lines if line[0] in ("VmSize:", "RssAnon:", "RssFile:")}

store = LmdbStore(Path(sys.argv[1]))
store.fetch([Range("t/0", 0, 1 << 20)])
before = memory()
resource.setrlimit(resource.RLIMIT_AS, (before["VmSize:"] + (16 << 20),) * 2)  # the file has 64 MiB
for _ in range(3):
    for number in range(8):
        for start in range(0, 8 << 20, 1 << 20):
            [found] = store.fetch([Range(f"t/{number}", start, start + (1 << 20))])
            assert found[0] == found[-1] == number
after = memory()
for name in ("RssAnon:", "RssFile:"):
    assert after[name] - before[name] < 4 << 20, (name, before, after)
"""


def test_reading_takes_no_memory_and_no_address_space_however_large_the_file(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path), map_size=1 << 27, lock=False, sync=False) as environment:
        for number in range(8):
            with environment.begin(write=True) as transaction:
                transaction.put(b"t/%d" % number, bytes([number]) * (8 << 20))
    run(FLAT, tmp_path)


# What is not as it should be


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def other_version(data: bytes) -> bytes:
    return data[:20] + struct.pack("<I", 2) + data[24 : 4096 + 20] + struct.pack("<I", 2) + data[4096 + 24 :]


def other_order(data: bytes) -> bytes:
    return data[:16] + data[16:24][3::-1] + data[20:24][::-1] + data[24:]


def no_pages(data: bytes) -> bytes:
    return data[:8192] + bytes(len(data) - 8192)


def other_sizes(data: bytes) -> bytes:
    return data[:40] + struct.pack("<I", 8192) + data[44:]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda data: b"", TruncatedShardError, r"0 bytes, expected \d+: its copy was cut"),
        (lambda data: data[:-1], TruncatedShardError, r"its copy was cut"),
        (zeroed, FormatError, r"not an LMDB: its first two pages do not say so"),
        (lambda data: b"hello" * len(data), FormatError, r"not an LMDB"),
        (other_version, FormatError, r"an LMDB of version 2, expected 1"),
        (other_order, FormatError, r"an LMDB of a machine with the other byte order"),
        (other_sizes, FormatError, r"not an LMDB"),
        (no_pages, CorruptRecordError, r"damaged: page \d+ says that it is page 0 of kind 0"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_was_found(
    copied: Path, spoil: Callable[[bytes], bytes], error: type[ShardError], message: str
) -> None:
    path = copied / "data.mdb"
    path.write_bytes(spoil(path.read_bytes()))
    with open_split(copied) as split, pytest.raises(error, match=rf"data\.mdb: .*{message}.*stmul shards copy SOURCE"):
        split.read("train", 0)


def test_a_folder_or_a_pipe_in_the_place_of_the_file_is_refused(copied: Path) -> None:
    path = copied / "data.mdb"
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere")):
        path.rmdir() if path.is_dir() else path.unlink()
        make()
        with open_split(copied) as split, pytest.raises(UnreachableError, match=r"data\.mdb: cannot be read"):
            split.read("train", 0)


def test_a_file_that_is_cut_while_it_is_read_is_an_error_in_every_thread(copied: Path) -> None:
    path, caught = copied / "data.mdb", list[ShardError]()
    with open_split(copied) as split:
        names(split)
        begun = threading.Barrier(5)

        def reading() -> None:
            begun.wait(60)
            try:
                while True:
                    names(split)
            except ShardError as error:
                caught.append(error)

        threads = [threading.Thread(target=reading) for _ in range(4)]
        for thread in threads:
            thread.start()
        begun.wait(60)
        for size in range(path.stat().st_size, 0, -(1 << 16)):
            os.truncate(path, size)
        os.truncate(path, 0)
        for thread in threads:
            thread.join(60)
    assert len(caught) == 4
    assert all(isinstance(error, TruncatedShardError) for error in caught)
    assert all("the file was cut" in str(error) for error in caught)


def test_a_file_that_is_replaced_while_it_is_read_goes_on_to_be_the_old_one(
    copied: Path, tmp_path: Path, make_split: Callable[..., Manifest]
) -> None:
    make_split(tmp_path / "new", train=2, test=1, frames=2, seed=8)
    copy_split(tmp_path / "new", tmp_path / "new.lmdb")
    with open_split(copied) as split:
        before = names(split)
        (tmp_path / "new.lmdb" / "data.mdb").replace(copied / "data.mdb")
        assert names(split) == before
    with open_split(copied) as split, pytest.raises(ShardError, match=r"data\.mdb: .*stmul shards copy"):
        split.read("train", 0)


def test_a_disk_that_fails_is_an_error(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with open_split(source) as split:
        names(split)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pread", failing)
            with pytest.raises(UnreachableError, match=r"data\.mdb: cannot be read: Input/output error"):
                split.read("train", 0)
        names(split)


FLIPPED = """
import random, struct, sys
from pathlib import Path
from shards.errors import ShardError
from shards.format import decode, record_sha256
from shards.split import open_split

folder, seed, flips = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
path, page = folder / "data.mdb", 4096
data, draws, refused = path.read_bytes(), random.Random(seed), 0
heads = {start: struct.unpack_from("<QHHHH", data, start) for start in range(0, len(data), page)}
tree = [start for start, (number, _, kind, _, _) in heads.items() if kind in (1, 2) and number * page == start]
used = [start + byte for start in tree for byte in (*range(heads[start][3]), *range(heads[start][4], page))]
used += [start + byte for start in (0, page) for byte in range(16, 152)]
with path.open("r+b", buffering=0) as file:
    for _ in range(flips):
        places = draws.sample(used, draws.choice((1, 1, 1, 4)))
        for place in places:
            file.seek(place)
            file.write(bytes([data[place] ^ draws.randrange(1, 256)]))
        with open_split(folder) as split:
            for row in draws.sample(list(split.index("train")), 10) if flips < 1000 else split.index("train"):
                try:
                    members = split.members("train", row)
                    decode(members)
                    assert record_sha256(members) == row.sha256, (places, row.key)
                except ShardError as error:
                    refused += 1
                    assert str(folder) in str(error) or "checksum" in str(error) or "record" in str(error), error
        for place in places:
            file.seek(place)
            file.write(data[place : place + 1])
assert path.read_bytes() == data
print(refused)
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_bytes_in_its_pages_never_end_the_process(copied: Path, seed: int) -> None:
    assert int(run(FLIPPED, copied, seed, 150)) > 20


@pytest.mark.slow
def test_thousands_of_wrong_bytes_in_its_pages_never_end_the_process(copied: Path) -> None:
    assert int(run(FLIPPED, copied, 2, 5000, seconds=1800)) > 5000
