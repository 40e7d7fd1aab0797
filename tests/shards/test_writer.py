"""The writer: whole files or none, equal bytes for equal records, and clear words when it cannot write."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import CorruptRecordError, FormatError, ShardError
from shards.format import RGB, Members, encode, key_of
from shards.manifest import Manifest
from shards.record import Record
from shards.split import open_split
from shards.writer import PartWriter, pack_shard, shard_name, shard_slots, whole, write_shard, write_split

Make = Callable[..., Record]


def encoded(make_record: Make, *names: str, frames: int = 2) -> list[tuple[str, Members]]:
    return [(key_of(name), encode(make_record(name, frames=frames, width=16, height=16))) for name in names]


def test_a_file_is_whole_or_absent(tmp_path: Path) -> None:
    with whole(tmp_path / "a") as file:
        file.write(b"new")
        assert [path.name for path in tmp_path.iterdir()] == ["a.partial"]
    assert (tmp_path / "a").read_bytes() == b"new"

    def stopped() -> None:
        with whole(tmp_path / "a") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_equal_records_give_equal_shards(tmp_path: Path, make_record: Make) -> None:
    records = encoded(make_record, "a", "#1_(b)", "x" * 150)
    for name in ("one-000003.tar", "two-000003.tar"):
        write_shard(tmp_path / name, records)
    assert (tmp_path / "one-000003.tar").read_bytes() == (tmp_path / "two-000003.tar").read_bytes()


def test_the_rows_are_those_of_the_shard(tmp_path: Path, make_record: Make) -> None:
    packed = pack_shard(tmp_path / "train-000003.tar", encoded(make_record, "b", "a"))
    assert [(row.record, row.key, row.shard) for row in packed.rows] == [(0, "b", 3), (1, "a", 3)]
    assert packed.file.size == (tmp_path / "train-000003.tar").stat().st_size
    assert packed.file.records == 2


def test_an_empty_shard_keeps_its_number(tmp_path: Path, make_record: Make) -> None:
    shards = [encoded(make_record, "a"), [], encoded(make_record, "b")]
    write_split(tmp_path, dataset="d", split=1, classes=["class0"], made={}, parts={"train": shards})
    with open_split(tmp_path) as split:
        assert [row.shard for row in split.index("train")] == [0, 2]
        assert [shard.records for shard in split.manifest.parts["train"].shards] == [1, 0, 1]


def test_a_record_that_is_not_whole_is_not_written(tmp_path: Path, make_record: Make) -> None:
    (key, members), *_ = encoded(make_record, "a")
    lacking = {member: members[member] for member in members if member != RGB}
    damaged = {**members, RGB: bytes(members[RGB])[:-1] + b"\0"}
    path = tmp_path / "train-000000.tar"
    for wrong, error in ((lacking, FormatError), (damaged, CorruptRecordError)):
        with pytest.raises(error, match=r"train-000000\.tar: record 'a'"):
            write_shard(path, [(key, wrong)])
    with pytest.raises(FormatError, match="record 'b' holds 'a', whose key is 'a'"):
        write_shard(path, [("b", members)])
    with pytest.raises(FormatError, match="a second record with the key 'a'"):
        write_shard(path, [(key, members), (key, members)])
    assert not list(tmp_path.iterdir())


def test_two_shards_with_one_key_are_refused(tmp_path: Path, make_record: Make) -> None:
    shards = [encoded(make_record, "a"), encoded(make_record, "a")]
    with pytest.raises(FormatError, match="train has two records with the key 'a'; the names of videos must differ"):
        write_split(tmp_path, dataset="d", split=1, classes=["class0"], made={}, parts={"train": shards})
    assert not (tmp_path / "manifest.json").exists()


def test_shards_packed_elsewhere_join_in_their_order(tmp_path: Path, make_record: Make) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    shards = [encoded(make_record, "a", "b"), encoded(make_record, "c")]
    writer = PartWriter(one, "train")
    for shard in shards:
        writer.write(shard)
    packed = [pack_shard(two / shard_name("train", number), shards[number]) for number in (1, 0)]
    other = PartWriter(two, "train")
    with pytest.raises(FormatError, match=r"train-000001\.tar cannot follow 0 shards"):
        other.add(packed[0])
    other.add(packed[1])
    other.add(packed[0])
    assert writer.finish() == other.finish()
    assert (one / "train.index").read_bytes() == (two / "train.index").read_bytes()


@given(st.lists(st.text(min_size=1, max_size=5), unique=True), st.integers(1, 5), st.randoms())
def test_who_goes_where_depends_on_the_names_alone(keys: list[str], per_shard: int, random: object) -> None:
    slots = shard_slots(keys, per_shard)
    assert sorted(key for slot in slots for key in slot) == sorted(keys)
    assert all(len(slot) == per_shard for slot in slots[:-1])
    assert shard_slots(sorted(keys), per_shard) == slots


def test_a_split_half_written_does_not_pass_for_whole(tmp_path: Path, make_record: Make, make_split: object) -> None:
    assert callable(make_split)
    make_split(tmp_path, train=2, test=1, frames=1)

    def stopped() -> Iterator[list[tuple[str, Members]]]:
        yield encoded(make_record, "a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_split(tmp_path, dataset="d", split=1, classes=["class0"], made={}, parts={"train": stopped()})
    assert not (tmp_path / "manifest.json").exists()


def test_one_record_at_a_time_is_in_memory(tmp_path: Path, make_record: Make) -> None:
    record = encode(make_record("big", frames=60, width=128, height=128))
    size = sum(len(blob) for blob in record.values())
    write_shard(tmp_path / "warm.tar", [])  # imports are not counted

    def records() -> Iterator[tuple[str, Members]]:
        for i in range(12):
            yield key_of(f"v{i}"), encode(make_record(f"v{i}", frames=60, width=128, height=128))

    tracemalloc.start()
    manifest = write_split(
        tmp_path / "split", dataset="d", split=1, classes=["class0"], made={}, parts={"train": [records()]}
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(manifest, Manifest)
    assert peak < 6 * size < manifest.parts["train"].shards[0].size


@pytest.mark.parametrize("place", ["file", "missing", "taken"])
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(
    tmp_path: Path, make_record: Make, place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken" / "train-000000.tar").mkdir(parents=True)
    path = tmp_path / place / "train-000000.tar"
    reason = {"file": "Not a directory", "missing": "No such file or directory", "taken": "Is a directory"}[place]
    with pytest.raises(ShardError, match=rf"{place}/train-000000\.tar: cannot be written: {reason}"):
        write_shard(path, encoded(make_record, "a"))


def test_a_split_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ShardError, match=r"split1: cannot be written: Not a directory"):
        write_split(tmp_path / "file" / "split1", dataset="d", split=1, classes=["a"], made={}, parts={})


FULL = """
import resource, sys
from pathlib import Path
from shards.copy import copy_split
from shards.errors import ShardError
from shards.split import open_split
from shards.writer import write_shard

source, out = Path(sys.argv[1]), Path(sys.argv[2])
with open_split(source) as split:
    records = [(row.key, {m: bytes(b) for m, b in split.members("train", row).items()}) for row in split.index("train")]
write_shard(out / "warm.tar", [])
(out / "warm.tar").unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
tasks = {
    "shard": lambda: write_shard(out / "train-000000.tar", records),
    "tar": lambda: copy_split(source, out / "tar"),
    "lmdb": lambda: copy_split(source, out / "x.lmdb"),
    "files": lambda: copy_split(source, out / "x.files"),
}
for name, task in tasks.items():
    try:
        task()
    except ShardError as error:
        print(name, error)
print("left", [path.name for path in out.iterdir()])
"""


def test_a_disk_without_room_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, make_split: Callable[..., Manifest]
) -> None:
    make_split(tmp_path / "split1", train=2, test=1, frames=24)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", FULL, str(tmp_path / "split1"), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["shard", "tar", "lmdb", "files", "left"]
    for line in lines[:-1]:
        assert "/out/" in line
        assert "cannot be written: " in line
        assert ("File too large" in line) or (line.startswith("lmdb") and "Input/output error" in line)
    assert lines[-1] == "left []"
