"""Killed while streaming: ranks go on as if nothing had been; a cache serves no wrong byte, and nothing is to clean."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path

import pytest

from tests.faults import cache_victim, streaming_victim
from tests.faults.conftest import Place, assert_same_training
from tests.faults.delivery import BATCH, taken
from tests.faults.fault_server import FaultPlan, FaultServer, serving
from tests.faults.streaming_victim import cut, steps_in

KILLED = -signal.SIGKILL
RECORDS, PER_SHARD = 120, 12
STEPS = RECORDS // BATCH
SHARDS = r".*\.tar"
PASSING = FaultPlan(chances=dict.fromkeys(("busy", "refused", "reset", "short", "wrong"), 0.03), paths=SHARDS)
SIZE, BLOCK = 1_000_003, 1 << 16

several = pytest.mark.parametrize(
    ("kills", "seed"),
    [(3, 1), pytest.param(20, 2, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., object]) -> Path:
    root = tmp_path_factory.mktemp("killed-streaming")
    make_split(root / "split1", train=RECORDS, test=2, per_shard=PER_SHARD, frames=6, width=64, height=48)
    return root


def told(clips: list) -> list[tuple]:
    """Clips as a book has them."""
    return [astuple(clip) for clip in clips]


# Ranks


@several
def test_ranks_killed_at_random_moments_go_on_with_the_clips_that_nobody_has_had(root, tmp_path, kills, seed):
    draws, world, steps = random.Random(seed), 2, max(2 * STEPS, 4 * kills)
    books = [tmp_path / f"rank{rank}" for rank in range(world)]
    killed = 0
    with serving(root, PASSING) as server:
        state, done = "", 0
        while done < steps:
            ranks = [
                streaming_victim.begun(
                    streaming_victim.Wish(
                        location=f"{server.url}/split1",
                        book=str(book),
                        steps=steps,
                        state=state,
                        rank=rank,
                        world=world,
                        pause_s=0.1,
                    )
                )
                for rank, book in enumerate(books)
            ]
            # A step or some after it has begun, one is killed at once; the others then are ended by whoever began them.
            if killed < kills:
                until = min(steps - 1, done + draws.randint(1, max(1, steps // (2 * kills))))
                wait_for(lambda until=until: min(len(steps_in(book)) for book in books) >= until, ranks)
                time.sleep(draws.uniform(0, 0.05))
                ranks[draws.randrange(world)].kill()
                killed += 1
                for rank in ranks:
                    rank.kill()
            for rank in ranks:
                _, err = rank.communicate(timeout=240)
                assert rank.returncode in (0, KILLED), err
            done = min(len(steps_in(book)) for book in books)  # a step counts when all ranks have made it
            for book in books:
                cut(book, done)
            state = steps_in(books[0])[-1].state
            assert state == steps_in(books[1])[-1].state
        assert sum(server.faults().values()) > 0
    assert killed == kills
    found = sorted(clip for book in books for step in steps_in(book) for clip in step.clips)
    assert found == told(taken(root / "split1", steps))


@pytest.mark.parametrize(
    ("kills", "seed"), [(2, 1), pytest.param(20, 2, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_a_training_that_streams_killed_and_run_again_is_the_training_that_nobody_killed(
    tmp_path, tiny_shards, victims, uninterrupted, kills, seed
):
    whole, ended = uninterrupted
    draws, struck = random.Random(seed), 0
    with serving(tiny_shards.parent, PASSING) as server:
        place = Place(tmp_path, f"{server.url}/{tiny_shards.name}", victims)  # type: ignore[arg-type]
        for _ in range(kills):
            number = draws.randint(1, max(2, ended.moments["backward"] // kills))
            code = place.train(kind="backward", number=number, how="kill", delay_s=draws.choice([0, 0.05])).code
            assert code in (KILLED, 0)
            struck += code == KILLED
        last = place.train()
        assert last.code == 0, last.output
        assert server.requests()[f"{tiny_shards.name}/train-000000.tar"] > 0
    assert struck > 0
    assert_same_training(place.run, whole)


# The cache


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("origin") / "shard.tar"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture(scope="module")
def moments(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many moments a download has."""
    folder = tmp_path_factory.mktemp("counted")
    done = cache_victim.ended(cache_victim.begun(wish(folder, origin)))
    assert (done.code, done.pulled, done.right) == (0, SIZE, True)
    assert_clean(folder, [origin])
    assert done.moments > 2 * SIZE // BLOCK
    return done.moments


def wish(folder: Path, origin: Path, **more) -> cache_victim.Wish:
    return cache_victim.Wish(folder=str(folder), origin=str(origin), block=BLOCK, **more)


@pytest.mark.parametrize(
    "drawn", [*range(3), *(pytest.param(i, marks=pytest.mark.slow) for i in range(3, 20))], ids=lambda i: f"draw {i}"
)
def test_a_writer_of_the_cache_killed_at_a_random_moment_leaves_nothing_to_do(origin, moments, tmp_path, drawn):
    strike = random.Random(f"strike {drawn}").randint(1, moments)
    print(f"killed at moment {strike} of {moments}")
    assert cache_victim.ended(cache_victim.begun(wish(tmp_path, origin, strike=strike))).code == KILLED
    assert not locked(tmp_path)
    there = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file() and len(path.name) >= 64)
    both = [cache_victim.begun(wish(tmp_path, origin)) for _ in range(2)]
    done = [cache_victim.ended(process) for process in both]
    assert [(one.code, one.right) for one in done] == [(0, True)] * 2
    assert sum(one.pulled for one in done) == SIZE - there, "what had come was not downloaded again"
    assert_clean(tmp_path, [origin])


@several
def test_while_others_wait_for_a_file_one_of_them_goes_on_for_a_writer_that_was_killed(origin, tmp_path, kills, seed):
    draws, killed = random.Random(seed), 0
    for attempt in range(5 * kills):
        folder = tmp_path / str(attempt)
        processes = [cache_victim.begun(wish(folder, origin, pause_s=0.05)) for _ in range(3)]
        while not (writers := writing(folder)) and any(process.poll() is None for process in processes):
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.5))
        for writer in (writing(folder) or writers)[:1]:
            os.kill(writer, signal.SIGKILL)
        done = [cache_victim.ended(process) for process in processes]
        assert [one.right for one in done if one.code == 0] == [True] * sum(one.code == 0 for one in done)
        assert_clean(folder, [origin])
        if any(one.code for one in done):  # else all was done before anyone could be killed
            assert sorted(one.code for one in done) == [KILLED, 0, 0]
            killed += 1
        if killed == kills:
            break
    assert killed == kills


@pytest.mark.parametrize(
    ("kills", "seed"), [(2, 1), pytest.param(20, 2, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_readers_of_one_cache_killed_while_they_fetch_it_never_get_a_wrong_byte(root, tmp_path, kills, seed):
    draws, world, steps = random.Random(seed), 3, 2 * STEPS
    cache = tmp_path / "cache"
    shards = sorted((root / "split1").glob("train-*.tar"))
    slow = FaultPlan(chances={"drip": 0.9}, most=3, paths=SHARDS, rate=1_000_000, drip_s=1)
    expected = told(taken(root / "split1", steps, kind="windowed"))
    killed = 0
    with serving(root, PASSING, slow) as server:
        for turn in range(100):
            if killed >= kills:
                break
            for path in (cache / "shards").glob("*") if turn % 3 == 2 else []:  # begin again with an empty one
                path.unlink()
            books = [tmp_path / f"{turn}-{number}" for number in range(world)]
            readers = [streaming_victim.begun(reader(server, book, cache, steps)) for book in books]
            while killed < kills and not all(one.poll() is not None for one in readers):
                writers = [one for one in readers if one.pid in writing(cache)]
                if writers:
                    time.sleep(draws.uniform(0, 0.1))
                    draws.choice(writers).kill()
                    killed += 1
                    break
                time.sleep(0.002)
            for process, book in zip(readers, books, strict=True):
                _, err = process.communicate(timeout=240)
                assert process.returncode in (0, KILLED), err
                clips = [clip for step in steps_in(book) for clip in step.clips]
                assert clips == expected[: len(clips)]
                assert len(clips) == len(expected) or process.returncode == KILLED
            assert not locked(cache)
            assert sum(process.returncode == KILLED for process in readers) <= 1
        assert killed == kills
        last = tmp_path / "last"
        process = streaming_victim.begun(reader(server, last, cache, steps))
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    assert [clip for step in steps_in(last) for clip in step.clips] == expected
    assert_clean(cache, shards)


def reader(server: FaultServer, book: Path, cache: Path, steps: int) -> streaming_victim.Wish:
    return streaming_victim.Wish(
        location=f"{server.url}/split1", book=str(book), steps=steps, mode="shards", cache=str(cache), kind="windowed"
    )


# What is left


def assert_clean(cache: Path, origins: list[Path]) -> None:
    """The cache holds these files, byte by byte, and nothing else; nobody has locked anything."""
    expected = sorted(path.read_bytes() for path in origins)
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG"]
    assert sorted(path.read_bytes() for path in files) == expected, [path.name for path in files]
    assert not locked(cache)


def locked(folder: Path) -> list[int]:
    """The processes that hold a lock on anything below `folder`."""
    inodes = {path.stat().st_ino for path in [folder, *folder.rglob("*")]} if folder.exists() else set()
    return [pid for pid, inode in _locks() if inode in inodes]


def writing(folder: Path) -> list[int]:
    """The processes that hold a partial file."""
    inodes = set()
    for path in folder.rglob("*.partial") if folder.exists() else []:
        try:
            inodes.add(path.stat().st_ino)
        except FileNotFoundError:  # it has just been published
            continue
    return [pid for pid, inode in _locks() if inode in inodes]


def _locks() -> Iterator[tuple[int, int]]:
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.replace("->", "").split()
        if fields[1] == "FLOCK":
            yield int(fields[4]), int(fields[5].split(":")[2])


def wait_for(happened: Callable[[], bool], processes: list[subprocess.Popen[str]], seconds: float = 240) -> None:
    """Returns when it has happened, or a process has ended."""
    until = time.monotonic() + seconds
    while not happened() and all(process.poll() is None for process in processes):
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)
