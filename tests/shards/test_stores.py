"""Stores: the same bytes from tar, LMDB and loose files, from many threads; what is cut or gone is an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.copy import copy_split
from shards.errors import CorruptRecordError, FormatError, ShardError, TruncatedShardError, UnreachableError
from shards.format import MEMBERS, decode
from shards.manifest import Manifest
from shards.split import Split, open_split
from shards.stores import Range, files
from shards.stores.lmdb import LmdbStore, pages
from shards.stores.tar import TarStore

KINDS = ("split1", "split1.lmdb", "split1.files")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    root = tmp_path_factory.mktemp("stores")
    make_split(root / "split1", train=7, test=3, frames=4)
    for kind in KINDS[1:]:
        copy_split(root / "split1", root / kind)
    return root


def everything(split: Split) -> dict[tuple[str, int], dict[str, bytes]]:
    return {
        (part, record): {member: bytes(blob) for member, blob in split.read(part, record).items()}
        for part in split.manifest.parts
        for record in range(len(split.index(part)))
    }


def test_every_store_has_the_same_bytes(root: Path) -> None:
    found = []
    for kind in KINDS:
        with open_split(root / kind) as split:
            found.append(everything(split))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_those_of_the_members(root: Path, kind: str) -> None:
    with open_split(root / kind) as split:
        for row in split.index("test"):
            for member in MEMBERS:
                blob, start, stop = split.store.member("test", row, member)
                assert bytes(split.store.fetch([Range(blob, start, stop)])[0]) == split.members("test", row)[member]
                assert bytes(split.store.reader(blob)(start, stop)) == split.members("test", row)[member]
                if kind != "split1":
                    assert split.store.size(blob) == stop
            for stream, place in (("rgb", row.rgb), ("flow", row.flow)):
                blob, offset = split.store.place("test", row, stream)  # type: ignore[arg-type]
                first = split.store.fetch([Range(blob, offset, offset + int(place.ends[0]))])[0]
                assert bytes(first).startswith(b"\xff\xd8")


@pytest.mark.parametrize("kind", KINDS)
def test_threads_may_share_a_store(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_OPEN", 2)  # files are closed and opened again all the time
    with open_split(root / kind) as split, ThreadPoolExecutor(8) as pool:
        names = [row.name for row in split.index("train")]
        records = [i % 7 for i in range(200)]
        found = list(pool.map(lambda record: decode(split.read("train", record)).name, records))
    assert found == [names[record] for record in records]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_handed_out_outlives_the_store(root: Path, kind: str) -> None:
    split = open_split(root / kind)
    members = split.read("train", 0)
    split.close()
    assert decode(members).name.startswith("v_train_")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_not_there_is_unreachable(root: Path, kind: str) -> None:
    with (
        open_split(root / kind) as split,
        pytest.raises(UnreachableError, match=r"nothing\.json: cannot be read: No such"),
    ):
        split.store.small("nothing.json")


def test_a_short_read_names_shard_offset_expected_and_found(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "split1", tmp_path / "split1")
    path = tmp_path / "split1" / "train-000001.tar"
    with open_split(tmp_path / "split1") as split:
        row = next(row for row in split.index("train") if row.shard == 1)
        start, stop = row.span("video.rgb.mjpeg")
        os.truncate(path, start + 100)
        message = rf"train-000001\.tar: expected {stop - start} bytes at {start}, found 100"
        with pytest.raises(TruncatedShardError, match=message):
            split.store.fetch([Range(path.name, start, stop)])
        path.unlink()
    with (
        open_split(tmp_path / "split1") as split,
        pytest.raises(UnreachableError, match=r"train-000001\.tar: cannot be"),
    ):
        split.read("train", row.record)


def test_a_short_loose_file_is_named(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "split1.files", tmp_path / "split1.files")
    path = next((tmp_path / "split1.files" / "train").glob("*.video.rgb.mjpeg"))
    os.truncate(path, 50)
    with open_split(tmp_path / "split1.files") as split, pytest.raises(TruncatedShardError, match=path.name):
        everything(split)


def test_files_held_open_are_few_and_closed_at_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_OPEN", 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = TarStore(root / "split1")
    for number in range(4):
        store.fetch([Range(f"train-{number:06d}.tar", 0, 512)])
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    store.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# LMDB


def test_an_lmdb_cut_anywhere_is_refused_before_it_is_searched(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "split1.lmdb", tmp_path / "x.lmdb")
    path = tmp_path / "x.lmdb" / "data.mdb"
    whole = path.read_bytes()
    for length in [0, 100, *range(4096, len(whole), 4096), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with open_split(tmp_path / "x.lmdb") as split, pytest.raises(TruncatedShardError, match="cut"):
            split.read("train", 0)
        with pytest.raises((TruncatedShardError, FormatError), match="opy"):  # without the manifest: its own pages tell
            LmdbStore(tmp_path / "x.lmdb").fetch([Range("train/x", 0, 1)])


def test_its_own_pages_say_how_large_an_lmdb_is(root: Path) -> None:
    path = root / "split1.lmdb" / "data.mdb"
    assert pages(path).size <= path.stat().st_size
    assert pages(path).entries == 4 * 10


def test_what_is_no_lmdb_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "split1.lmdb", tmp_path / "x.lmdb")
    (tmp_path / "x.lmdb" / "data.mdb").write_bytes(b"hello" * 100_000)
    with open_split(tmp_path / "x.lmdb") as split, pytest.raises(FormatError, match="not an LMDB"):
        split.read("train", 0)
    (tmp_path / "x.lmdb" / "data.mdb").unlink()
    with open_split(tmp_path / "x.lmdb") as split, pytest.raises(UnreachableError, match=r"data\.mdb: cannot be read"):
        split.read("train", 0)


def test_a_value_that_is_not_there_or_too_short_is_named(root: Path) -> None:
    with open_split(root / "split1.lmdb") as split:
        with pytest.raises(FormatError, match=r"has no value 'train/nobody\.cls'"):
            split.store.fetch([Range("train/nobody.cls", 0, 1)])
        with pytest.raises(
            TruncatedShardError, match=r"train/v_train_0\.cls: expected 8 bytes at 0, but the value has 1"
        ):
            split.store.fetch([Range("train/v_train_0.cls", 0, 8)])


def test_one_lmdb_may_be_opened_more_than_once(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link.lmdb").symlink_to(root / "split1.lmdb")
    one, two = open_split(root / "split1.lmdb"), open_split(tmp_path / "link.lmdb")
    first = everything(one)
    assert everything(two) == first
    one.close()
    assert everything(two) == first
    two.close()
    two.close()
    with open_split(root / "split1.lmdb") as again:
        assert everything(again) == first


BUSY = """
import os, sys, threading
from shards.split import open_split
from shards.stores import Range

with open_split(sys.argv[1]) as split:
    stop, wanted = threading.Event(), [Range("train/v_train_0.video.rgb.mjpeg", 0, 1000)] * 1000
    reader = threading.Thread(target=lambda: [split.store.fetch(wanted) for _ in iter(stop.is_set, True)])
    reader.start()
    for _ in range(5):
        child = os.fork()
        if not child:
            split.store.fetch(wanted)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stop.set()
    reader.join()
"""


def test_a_child_forked_in_the_middle_of_a_read_reads_too(root: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", BUSY, str(root / "split1.lmdb")]
    subprocess.run(command, check=True, timeout=60)


def test_an_lmdb_put_in_the_place_of_another_is_read(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "x.lmdb"
    shutil.copytree(root / "split1.lmdb", old)
    before = open_split(old)
    first = everything(before)
    shutil.rmtree(old)
    shutil.copytree(root / "split1.lmdb", old)
    with open_split(old) as after:
        assert everything(after) == everything(before) == first
    before.close()


FORKED = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from shards.format import decode
from shards.split import open_split

def names(split):
    return [decode(split.read("train", record)).name for record in range(len(split.index("train")))]

with open_split(sys.argv[1]) as split:
    with ThreadPoolExecutor(4) as pool:
        expected = list(pool.map(names, [split] * 4))[0]
    for _ in range(5):
        child = os.fork()
        if not child:
            with open_split(sys.argv[1]) as another:
                right = names(split) == names(another) == expected
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert names(split) == expected
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_reads_too(root: Path, kind: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED, str(root / kind)], check=True, timeout=60)


def test_all_errors_are_shard_errors() -> None:
    for error in (CorruptRecordError, FormatError, TruncatedShardError, UnreachableError):
        assert issubclass(error, ShardError)
