import errno
import fcntl
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shards.cache import Cache, Held, Wanted
from shards.errors import CorruptRecordError, ShardError, TruncatedShardError, UnreachableError

LIMIT = 1000


def data_of(number: int, size: int = 400) -> bytes:
    return np.random.default_rng(number).bytes(size)


def wanted_of(data: bytes, *, known: bool = True) -> Wanted:
    sha256 = hashlib.sha256(data).hexdigest()
    return Wanted(name=sha256, size=len(data), sha256=sha256 if known else "", where="https://host/split1/one.tar")


class Source:
    """Gives `data` in parts, notes where it was begun, fails after `ends` bytes in all."""

    def __init__(
        self,
        data: bytes,
        *,
        part: int = 64,
        ends: int | None = None,
        pause: float = 0.0,
        half: Callable[[], object] = lambda: None,  # is called in the middle
    ) -> None:
        self.data, self.part, self.ends, self.pause, self.half = data, part, ends, pause, half
        self.starts: list[int] = []

    def __call__(self, start: int) -> Iterator[bytes]:
        self.starts.append(start)
        for at in range(start, len(self.data), self.part):
            if self.ends is not None and at + self.part > self.ends:
                yield self.data[at : self.ends]
                raise UnreachableError("https://host/split1/one.tar: the connection failed")
            time.sleep(self.pause)
            if at <= len(self.data) // 2 < at + self.part:
                self.half()
            yield self.data[at : at + self.part]


def never() -> bool:
    return False


def content(held: Held) -> bytes:
    return os.pread(held.handle, 1 << 20, 0)


def get(cache: Cache, data: bytes, source: Source | None = None) -> bytes:
    with cache.get(wanted_of(data), source or Source(data), never) as held:
        return content(held)


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {"CACHEDIR.TAG"}


@contextmanager
def running(program: str, *arguments: object, wait_for: str = "ready") -> Iterator[subprocess.Popen[str]]:
    """Another process with a cache, once it has printed what is waited for."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if wait_for:
                assert process.stdout.readline().strip() == wait_for
            yield process
        finally:
            process.kill()


# What holds whatever is done


class AnyUse(RuleBasedStateMachine):
    """Two views of one folder, as two processes have, used in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.root = Path(self.stack.enter_context(temporary_folder()))
        self.caches = [Cache(self.root, LIMIT, patience=0.0) for _ in range(2)]
        self.files = [data_of(number, size) for number, size in enumerate((100, 250, 300, 350, 400, 999))]
        self.held: list[tuple[Held, bytes]] = []
        self.foreign = self.root / "shards" / "notes"
        self.foreign.parent.mkdir()
        self.foreign.write_bytes(bytes(5000))

    @rule(number=st.integers(0, 5), view=st.integers(0, 1), known=st.booleans())
    def take(self, number: int, view: int, known: bool) -> None:
        data = self.files[number]
        in_use = sum(len(one) for one in {one for _, one in self.held} - {data})
        wanted = wanted_of(data, known=known)
        if data not in [one for _, one in self.held] and in_use + len(data) > LIMIT:
            with pytest.raises(ShardError, match=f"{len(data)} bytes are needed"):
                self.caches[view].get(wanted, Source(data), never)
        else:
            held = self.caches[view].get(wanted, Source(data), never)
            assert content(held) == data
            self.held.append((held, data))

    @rule(number=st.integers(0, 5), view=st.integers(0, 1), ends=st.integers(0, 250))
    def begin_and_fail(self, number: int, view: int, ends: int) -> None:
        source = Source(self.files[number], ends=ends)
        with suppress(ShardError):
            self.caches[view].get(wanted_of(self.files[number]), source, never).close()

    @rule(number=st.integers(0, 5), view=st.integers(0, 1))
    def look(self, number: int, view: int) -> None:
        held = self.caches[view].find(wanted_of(self.files[number]))
        assert held is not None or self.files[number] not in [data for _, data in self.held]
        if held is not None:
            self.held.append((held, self.files[number]))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 100))
    def let_go(self, which: int) -> None:
        self.held.pop(which % len(self.held))[0].close()

    @invariant()
    def there_are_never_more_bytes_than_allowed(self) -> None:
        there = [path.stat() for path in self.foreign.parent.iterdir() if len(path.name) >= 64]
        assert sum(said.st_size for said in there) <= LIMIT

    @invariant()
    def what_is_in_use_stays_as_it_is(self) -> None:
        for held, data in self.held:
            assert held.still_named()
            assert content(held) == data

    @invariant()
    def what_was_not_downloaded_stays(self) -> None:
        assert self.foreign.stat().st_size == 5000

    def teardown(self) -> None:
        for held, _ in self.held:
            held.close()
        self.stack.close()


@contextmanager
def temporary_folder() -> Iterator[str]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        yield name


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@given(
    size=st.integers(0, 300),
    there=st.binary(max_size=300),
    right=st.integers(0, 300),
    flipped=st.none() | st.integers(0, 299),
    times=st.integers(1, 2),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_only_the_bytes_of_the_digest_are_ever_published(tmp_path, size, there, right, flipped, times):
    data = data_of(1, size)
    cache, wanted = Cache(tmp_path, LIMIT), wanted_of(data)
    left = (data[:right] + there)[:size]  # what a download left: right, wrong, or right and then wrong
    cache.folder.mkdir(exist_ok=True)
    (cache.folder / f"{wanted.name}.{size}.partial").write_bytes(left)
    sources, refusal = Sources(data, flipped, times), ""
    try:
        with cache.get(wanted, sources, never) as held:
            assert content(held) == data
    except CorruptRecordError as error:
        refusal = str(error)
    there_now = names(cache)
    for name in there_now:
        (cache.folder / name).unlink()
    if refusal:
        assert wanted.sha256 in refusal
        assert sources.wrong == 2 or (sources.wrong == 1 and left != data[: len(left)])
    assert there_now == (set() if refusal else {wanted.name})


class Sources(Source):
    """As `Source`, with one bit flipped the first `times` times."""

    def __init__(self, data: bytes, flipped: int | None, times: int) -> None:
        super().__init__(data)
        self.flipped, self.times, self.wrong = flipped, times, 0

    def __call__(self, start: int) -> Iterator[bytes]:
        data = bytearray(self.data[start:])
        if self.flipped is not None and start <= self.flipped < len(self.data) and self.wrong < self.times:
            self.wrong += 1
            data[self.flipped - start] ^= 1
        return iter([bytes(data)])


# Going on


@pytest.mark.parametrize("cut", [1, 64, 399])
def test_a_download_goes_on_where_it_was_cut(tmp_path, cut):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    with pytest.raises(UnreachableError):
        get(cache, data, Source(data, ends=cut))
    rest = Source(data)
    assert get(cache, data, rest) == data
    assert rest.starts == [cut]
    assert names(cache) == {wanted_of(data).name}


def test_a_download_that_was_only_not_yet_published_costs_no_request(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    cache.folder.mkdir()
    (cache.folder / f"{wanted_of(data).name}.400.partial").write_bytes(data)
    source = Source(data)
    assert (get(cache, data, source), source.starts) == (data, [])


def test_what_was_left_and_is_wrong_is_fetched_once_more_from_its_start(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    cache.folder.mkdir()
    (cache.folder / f"{wanted_of(data).name}.400.partial").write_bytes(bytes(100))
    source = Source(data)
    assert (get(cache, data, source), source.starts) == (data, [100, 0])


def test_a_file_that_is_another_one_is_refused_with_both_digests(tmp_path):
    cache, data, other = Cache(tmp_path, LIMIT), data_of(1), data_of(2)
    source = Source(other)
    with pytest.raises(CorruptRecordError) as caught:
        get(cache, data, source)
    assert all(hashlib.sha256(one).hexdigest() in str(caught.value) for one in (data, other))
    assert source.starts == [0, 0]
    assert names(cache) == set()


@pytest.mark.parametrize(("size", "error"), [(399, TruncatedShardError), (401, CorruptRecordError)])
def test_a_file_of_another_size_is_refused(tmp_path, size, error):
    cache = Cache(tmp_path, LIMIT)
    with pytest.raises(error, match="400 bytes"):
        get(cache, data_of(1), Source(data_of(1, size)))
    assert wanted_of(data_of(1)).name not in names(cache)


def test_a_file_without_a_known_digest_is_taken_as_it_comes(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    wanted = Wanted(name="ab" * 32, size=400, sha256="", where="here")
    with pytest.raises(UnreachableError):
        cache.get(wanted, Source(data, ends=100), never)
    with cache.get(wanted, rest := Source(data), never) as held:
        assert (content(held), rest.starts) == (data, [100])


def test_a_file_that_was_cut_behind_our_back_is_fetched_again(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    get(cache, data)
    os.truncate(cache.folder / wanted_of(data).name, 399)
    assert cache.find(wanted_of(data)) is None
    assert get(cache, data) == data


# Room


def test_a_file_larger_than_the_cache_says_how_much_is_needed(tmp_path):
    source = Source(data_of(1, LIMIT + 1))
    with pytest.raises(ShardError, match=r"one\.tar: 1001 bytes are needed in .*which may hold 1000\. Allow more"):
        get(Cache(tmp_path, LIMIT), source.data, source)
    assert source.starts == []


def test_where_all_is_in_use_one_waits_and_is_then_told_how_much_is_needed(tmp_path):
    cache, begun = Cache(tmp_path, LIMIT, patience=0.3), time.monotonic()
    with (
        cache.get(wanted_of(data_of(1)), Source(data_of(1)), never),
        cache.get(wanted_of(data_of(2)), Source(data_of(2)), never),
        pytest.raises(ShardError, match=r"400 bytes are needed in .*, all of it in use.*nothing has moved for"),
    ):
        get(cache, data_of(3))
    assert time.monotonic() - begun >= 0.3


def test_room_is_made_as_soon_as_something_is_let_go(tmp_path):
    cache = Cache(tmp_path, LIMIT)
    held = [cache.get(wanted_of(data_of(number)), Source(data_of(number)), never) for number in (1, 2)]
    threading.Timer(0.2, held[0].close).start()
    assert get(cache, data_of(3)) == data_of(3)
    assert cache.find(wanted_of(data_of(1))) is None
    held[1].close()


def test_nothing_is_removed_in_vain(tmp_path):
    cache = Cache(tmp_path, LIMIT, patience=0.05)
    get(cache, data_of(1, 100))
    with (
        cache.get(wanted_of(data_of(2, 500)), Source(data_of(2, 500)), never),
        pytest.raises(ShardError, match="900 bytes are needed"),
    ):
        get(cache, data_of(3, 900))
    assert get(cache, data_of(1, 100), failing := Source(b"", ends=0)) == data_of(1, 100)
    assert failing.starts == []


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    cache = Cache(tmp_path, LIMIT)
    for number in (1, 2):
        get(cache, data_of(number))
        os.utime(cache.folder / wanted_of(data_of(number)).name, (number, number))
    held = cache.find(wanted_of(data_of(1)))
    assert held is not None
    held.close()
    get(cache, data_of(3))
    assert names(cache) == {wanted_of(data_of(number)).name for number in (1, 3)}


def test_a_download_given_up_counts_in_full_and_makes_room_for_others(tmp_path):
    cache = Cache(tmp_path, LIMIT)
    for number in (1, 2):
        with pytest.raises(UnreachableError):
            get(cache, data_of(number), Source(data_of(number), ends=10))
    assert get(cache, data_of(3)) == data_of(3)  # 2 x 10 bytes are there, 2 x 400 have their place
    assert names(cache) == {f"{wanted_of(data_of(2)).name}.400.partial", wanted_of(data_of(3)).name}


def test_a_cache_opened_with_less_room_shrinks(tmp_path):
    for number in (1, 2):
        get(Cache(tmp_path, LIMIT), data_of(number))
    get(small := Cache(tmp_path, 500), data_of(3))
    assert names(small) == {wanted_of(data_of(3)).name}


def test_a_folder_that_holds_a_split_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ShardError, match="holds a split, so it is no place for a cache; name another folder"):
        Cache(tmp_path, LIMIT)


def test_what_was_not_downloaded_is_neither_counted_nor_removed(tmp_path):
    cache = Cache(tmp_path / "data", LIMIT)
    foreign = [cache.folder / name for name in ("train-000000.tar", "a" * 63, f"{'a' * 64}.tar", f"{'A' * 64}")]
    foreign += [tmp_path / "data" / name for name in ("train-000000.tar", "c" * 64)]
    cache.folder.mkdir(parents=True)
    for path in foreign:
        path.write_bytes(bytes(900))
    (cache.folder / ("d" * 64)).mkdir()
    (cache.folder / ("e" * 64)).symlink_to(foreign[0])
    for number in range(5):
        get(cache, data_of(number))
    assert [path.stat().st_size for path in foreign] == [900] * 6
    assert (cache.folder / ("e" * 64)).is_symlink()
    assert (cache.folder / ("d" * 64)).is_dir()


def test_looking_makes_no_folder(tmp_path):
    assert Cache(tmp_path / "none", LIMIT).find(wanted_of(b"1")) is None
    assert not (tmp_path / "none").exists()


def test_backups_pass_the_cache_over(tmp_path):
    get(cache := Cache(tmp_path, LIMIT), b"1")
    assert (cache.folder / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55")


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_says_so_and_gets_its_space_back(tmp_path, monkeypatch, call):
    cache = Cache(tmp_path, LIMIT)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(ShardError, match=r"No space left on device\. Check the disk's free space"):
            get(cache, data_of(1))
    assert names(cache) == set()
    assert get(cache, data_of(1)) == data_of(1)


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ShardError, match=r"file/shards: cannot be written: Not a directory"):
        get(Cache(tmp_path / "file", LIMIT), b"1")


# Damage


def test_a_dropped_file_is_fetched_again_and_who_reads_it_may_read_on(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    with cache.get(wanted_of(data), Source(data), never) as held:
        cache.drop(held)
        assert cache.find(wanted_of(data)) is None
        assert get(cache, data, source := Source(data)) == data
        assert source.starts == [0]
        cache.drop(held)  # what took its place is another file
        assert content(held) == data
    assert names(cache) == {wanted_of(data).name}


def test_a_cleared_folder_costs_a_download_and_nothing_else(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    source = Source(data, part=40, pause=0.03)
    threading.Timer(0.1, shutil.rmtree, [cache.folder]).start()
    assert get(cache, data, source) == data
    assert source.starts == [0, 0]
    assert names(cache) == {wanted_of(data).name}


def test_what_another_put_in_the_place_of_a_cleared_partial_is_not_published(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    source = Source(data)

    def cleared(start: int) -> Iterator[bytes]:
        yield from source(start)
        if len(source.starts) == 1:
            (partial,) = cache.folder.glob("*.partial")
            partial.unlink()
            partial.write_bytes(bytes(400))

    with cache.get(wanted_of(data), cleared, never) as held:
        assert content(held) == data
    assert source.starts == [0, 0]


def test_a_file_that_goes_while_it_is_being_locked_is_not_there(tmp_path, monkeypatch):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    get(cache, data)
    flock = fcntl.flock

    def late(handle: int, kind: int) -> None:
        (cache.folder / wanted_of(data).name).unlink(missing_ok=True)
        flock(handle, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    assert cache.find(wanted_of(data)) is None


# Threads and processes


def test_threads_that_want_the_same_file_download_it_once(tmp_path):
    cache, data = Cache(tmp_path, LIMIT), data_of(1)
    source, found = Source(data, pause=0.02), list[bytes]()
    threads = [threading.Thread(target=lambda: found.append(get(cache, data, source))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data] * 8
    assert source.starts == [0]


def test_who_waits_for_another_may_be_stopped(tmp_path):
    cache, data, stop, go_on = Cache(tmp_path, LIMIT), data_of(1), threading.Event(), threading.Event()
    slow = threading.Thread(target=get, args=(cache, data, Source(data, half=go_on.wait)))
    slow.start()
    while not cache.folder.exists() or not names(cache):
        time.sleep(0.01)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(ShardError, match="closed while it was being fetched"):
        cache.get(wanted_of(data), Source(data), stop.is_set)
    go_on.set()
    slow.join()


def test_who_downloads_may_be_stopped_and_gone_on_from(tmp_path):
    cache, data, stop = Cache(tmp_path, LIMIT), data_of(1), threading.Event()
    source = Source(data, part=10, half=stop.set)
    with pytest.raises(ShardError, match="closed while it was being fetched"):
        cache.get(wanted_of(data), source, stop.is_set)
    assert get(cache, data, rest := Source(data)) == data
    assert 0 < rest.starts[0] < 400


DOWNLOADER = """
import hashlib, sys, time
from pathlib import Path
from shards.cache import Cache, Wanted

data, folder, log = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), Path(sys.argv[3])
sha256 = hashlib.sha256(data).hexdigest()

def source(start):
    with log.open("a") as file:
        file.write(f"{start}\\n")
    for at in range(start, len(data), 1000):
        time.sleep(0.001)
        while at == len(data) // 2 and len(sys.argv) > 5 and not Path(sys.argv[5]).exists():
            time.sleep(0.01)
        yield data[at : at + 1000]

cache = Cache(folder, 10 * len(data))
print("ready", flush=True)
with cache.get(Wanted(name=sha256, size=len(data), sha256=sha256, where="here"), source, lambda: False):
    print("done", flush=True)
    time.sleep(float(sys.argv[4]))
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(data_of(1, 200_000))
    return path


def kill_and_go_on(file: Path, folder: Path, log: Path, after: float) -> None:
    data = file.read_bytes()
    with running(DOWNLOADER, file, folder, log, 5) as process:
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait()
    cache, rest = Cache(folder, 10 * len(data)), Source(data, part=50_000)
    left = [path.stat().st_size for path in folder.glob("shards/*.partial")]
    with cache.get(wanted_of(data), rest, never) as held:  # no lock is left to be waited for
        assert content(held) == data
    published_or_not_begun = [[], [0]]
    assert rest.starts in ([[left[0]] if left[0] < len(data) else []] if left else published_or_not_begun)
    assert names(cache) == {wanted_of(data).name}
    assert sum(path.stat().st_size for path in cache.folder.iterdir() if path.name in names(cache)) == len(data)


@pytest.mark.parametrize("after", [0.0, 0.1, 0.2])
def test_a_download_that_was_killed_leaves_nothing_to_clean(file, tmp_path, after):
    kill_and_go_on(file, tmp_path / "cache", tmp_path / "log", after)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_download_that_was_killed_at_any_moment_leaves_nothing_to_clean(file, tmp_path, number):
    kill_and_go_on(file, tmp_path / "cache", tmp_path / "log", random.Random(number).uniform(0, 0.4))


def test_who_waits_takes_over_when_the_downloader_dies(file, tmp_path):
    data, log = file.read_bytes(), tmp_path / "log"
    cache, rest = Cache(tmp_path / "cache", 10 * len(data)), Source(data, part=50_000)
    with running(DOWNLOADER, file, tmp_path / "cache", log, 0, tmp_path / "go on") as process:
        while not any(path.stat().st_size for path in tmp_path.glob("cache/shards/*.partial")):
            time.sleep(0.005)
        threading.Timer(0.1, process.kill).start()
        with cache.get(wanted_of(data), rest, never) as held:
            assert content(held) == data
    assert len(rest.starts) == 1
    assert rest.starts[0] > 0


def test_a_downloader_that_stands_still_is_not_waited_for_for_ever(file, tmp_path):
    data, log = file.read_bytes(), tmp_path / "log"
    impatient, patient = (Cache(tmp_path / "cache", 10 * len(data), patience=patience) for patience in (0.3, 120))
    with running(DOWNLOADER, file, tmp_path / "cache", log, 0, tmp_path / "go on"):
        while not log.exists():
            time.sleep(0.005)
        with pytest.raises(ShardError, match=r"another process is downloading it to .*\.partial; nothing has moved"):
            impatient.get(wanted_of(data), Source(data), never)
        (tmp_path / "go on").touch()
        with patient.get(wanted_of(data), Source(b""), never) as held:
            assert content(held) == data


def test_a_file_that_another_process_reads_is_not_removed(file, tmp_path):
    data, log = file.read_bytes(), tmp_path / "log"
    cache = Cache(tmp_path / "cache", 300_000, patience=0.1)
    with running(DOWNLOADER, file, tmp_path / "cache", log, 60) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        with pytest.raises(ShardError, match="all of it in use"):
            get(cache, data_of(2, 200_000))
        process.kill()
        process.wait()
        assert get(cache, data_of(2, 200_000)) == data_of(2, 200_000)
    assert cache.find(wanted_of(data)) is None


FORKED = """
import hashlib, os, sys, threading, time
from pathlib import Path
from shards.cache import Cache, Wanted

def wanted(data):
    sha256 = hashlib.sha256(data).hexdigest()
    return Wanted(name=sha256, size=len(data), sha256=sha256, where="here")

def slow(start):
    for at in range(start, 400, 10):
        time.sleep(0.01)
        yield bytes(10)

never = lambda: False
cache = Cache(Path(sys.argv[1]), 1000, patience=0.2)
mine = cache.get(wanted(b"1" * 400), lambda start: iter([b"1" * 400]), never)
downloading = threading.Thread(target=lambda: cache.get(wanted(bytes(400)), slow, never), daemon=True)
downloading.start()
time.sleep(0.1)
child = os.fork()
if not child:
    assert os.pread(mine.handle, 9, 0) == b"1" * 9
    print("ready", flush=True)
    sys.stdin.readline()
    mine.close()
    print("closed", flush=True)
    sys.stdin.readline()
    os._exit(0)
mine.close()
if sys.argv[2] == "kill":
    os.kill(os.getpid(), 9)
downloading.join()
print("downloaded", flush=True)
os.waitpid(child, 0)
"""


def test_a_child_keeps_what_it_reads_and_not_what_its_parent_was_downloading(tmp_path):
    cache = Cache(tmp_path, LIMIT, patience=0.2)
    with running(FORKED, tmp_path, "kill") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with pytest.raises(ShardError, match="900 bytes are needed"):
            get(cache, data_of(2, 900))
        assert get(cache, bytes(400)) == bytes(400)  # its parent was killed: nobody is downloading it any more
        print("", file=process.stdin, flush=True)
        assert process.stdout.readline() == "closed\n"
        assert get(cache, data_of(2, 900)) == data_of(2, 900)
        print("", file=process.stdin, flush=True)


MANY = """
import hashlib, os, random, sys, threading
from pathlib import Path
from shards.cache import Cache, Wanted

files = sorted(Path(sys.argv[1]).iterdir())
cache, log, draws = Cache(Path(sys.argv[2]), int(sys.argv[4])), Path(sys.argv[3]), random.Random(sys.argv[5])

def read(number):
    data = files[number].read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()

    def source(start):
        handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, f"{number} {start}\\n".encode())
        os.close(handle)
        yield from (data[at : at + 7000] for at in range(start, len(data), 7000))

    wanted = Wanted(name=sha256, size=len(data), sha256=sha256, where=str(number))
    with cache.get(wanted, source, lambda: False) as held:
        assert os.pread(held.handle, len(data) + 1, 0) == data

def some(numbers):
    for number in numbers:
        read(number)

threads = [threading.Thread(target=some, args=(draws.choices(range(len(files)), k=15),)) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("done", flush=True)
"""


def bytes_in(folder: Path) -> int:
    """What is in a cache at one moment: nothing is removed while its folder is locked."""
    if not folder.exists():
        return 0
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return sum(path.stat().st_size for path in folder.iterdir() if len(path.name) >= 64)
    finally:
        os.close(handle)


@pytest.mark.parametrize(("limit", "downloads"), [(12 * 20_000, 12), (5 * 20_000, None)])
def test_many_processes_read_every_byte_right_and_download_a_file_once_where_all_fit(tmp_path, limit, downloads):
    (tmp_path / "files").mkdir()
    for number in range(12):
        (tmp_path / "files" / f"{number:02d}").write_bytes(data_of(number, 20_000))
    folder, log, most = tmp_path / "cache", tmp_path / "log", 0
    with ExitStack() as stack:
        arguments = (tmp_path / "files", folder, log, limit)
        processes = [stack.enter_context(running(MANY, *arguments, number, wait_for="")) for number in range(4)]
        while any(process.poll() is None for process in processes):
            most = max(most, bytes_in(folder / "shards"))
            time.sleep(0.01)
        assert [process.stdout and process.stdout.read() for process in processes] == ["done\n"] * 4
    lines = log.read_text().splitlines()
    assert 0 < most <= limit
    assert len(lines) >= 12
    if downloads is not None:
        assert sorted(lines) == sorted(f"{number} 0" for number in range(downloads))
