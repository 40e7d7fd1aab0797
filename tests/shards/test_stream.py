"""Clips read ahead in threads are the clips that anyone would read one after the other; what is damaged is named."""

from __future__ import annotations

import shutil
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.draws import Draws
from shards.errors import CorruptRecordError, ShardError, StateMismatchError, TruncatedShardError
from shards.format import MEMBERS, decode
from shards.manifest import ShardFile, parse_manifest, write_manifest
from shards.order import Order, full
from shards.split import Split, open_split
from shards.stores import Range
from shards.stores.lmdb import value_key
from shards.stream import Clip, TrainingStream, cores, in_order, pair_images, read_clips

RECORDS, BATCH, SUB_BATCH = 7, 6, 2


@dataclass(frozen=True, eq=False)
class Chosen:
    frames: np.ndarray
    pairs: np.ndarray


def choose(position: int, n: int) -> Chosen:
    """Some frames and some pairs, each once, ascending."""
    draws = Draws.of("chosen", position)
    frames, pairs = draws.permutation(n)[:3], draws.permutation(n - 1)[:4]
    return Chosen(np.sort(frames), np.sort(pairs))


@pytest.fixture(scope="module")
def folder(make_split, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stream") / "split1"
    make_split(folder, train=RECORDS, test=2)
    return folder


@pytest.fixture(scope="module")
def split(folder):
    with open_split(folder) as split:
        yield split


def stream(split: Split, *, threads: int = 2, then=lambda clips: clips, choose=choose, seed: int = 5, **more):
    order = Order(count=RECORDS, seed=seed)
    return TrainingStream(
        split,
        "train",
        order,
        choose=choose,
        then=then,
        threads=threads,
        **{"batch": BATCH, "sub_batch": SUB_BATCH, **more},
    )


def plain(clip: Clip) -> tuple:
    return clip.position, clip.row.record, [bytes(jpeg) for jpeg in clip.rgb], [bytes(jpeg) for jpeg in clip.flow]


def slowly(split: Split, position: int) -> tuple:
    """The clip at a position, the obvious way: the whole record, decoded, then its frames by number."""
    epoch, within = divmod(position, RECORDS)
    number = int(full(RECORDS, seed=5, epoch=epoch)[within])
    record = decode(split.read("train", number))
    chosen = choose(position, record.frames)
    flow = [bytes(record.flow[2 * pair + axis]) for pair in chosen.pairs.tolist() for axis in (0, 1)]
    return position, number, [bytes(record.rgb[frame]) for frame in chosen.frames.tolist()], flow


def taken(reading: TrainingStream, steps: int) -> list[tuple]:
    return [plain(clip) for _ in range(steps) for clips in reading.step() for clip in clips]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("stmul-read")]


def test_the_stream_gives_the_clips_that_the_obvious_way_gives(split):
    with stream(split) as reading:
        assert taken(reading, 5) == [slowly(split, position) for position in range(5 * BATCH)]


@pytest.mark.parametrize("threads", [0, 1, 3, 8])
def test_any_number_of_threads_gives_the_same_clips(split, threads):
    with stream(split, threads=threads) as reading, stream(split, threads=2) as other:
        assert taken(reading, 4) == taken(other, 4)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_ranks_read_the_clips_of_one_among_them(split, world):
    parts = []
    for rank in range(world):
        with stream(split, rank=rank, world=world) as reading:
            parts += taken(reading, 3)
            assert reading.state().position == 3 * BATCH
    with stream(split) as alone:
        assert sorted(parts) == taken(alone, 3)


@pytest.mark.parametrize("stop", range(5))
def test_a_stream_stopped_after_any_step_goes_on_with_the_next_clip(split, stop):
    with stream(split) as reading:
        before = taken(reading, stop)
        saved = reading.state()
        rest = taken(reading, 5 - stop)
    with stream(split, start=saved, threads=1) as again:
        assert again.state() == saved
        assert taken(again, 5 - stop) == rest
    assert len(before) == saved.position == stop * BATCH


def test_a_step_counts_when_its_last_sub_batch_is_taken(split):
    with stream(split) as reading:
        step = reading.step()
        positions = []
        for _ in range(BATCH // SUB_BATCH):
            next(step)
            positions.append(reading.state().position)
    assert positions == [0, 0, BATCH]


@pytest.mark.parametrize("other", [{"seed": 6}, {"batch": 4}, {"sub_batch": 3}])
def test_a_state_of_another_stream_is_refused(split, other):
    with stream(split) as reading:
        saved = reading.state()
    with pytest.raises(StateMismatchError, match="cannot resume"):
        stream(split, start=saved, **other)


def test_the_state_names_the_part_and_the_order(split):
    with stream(split) as reading:
        state = reading.state()
    assert state.digest == split.manifest.parts["train"].digest
    assert state.order == "full"
    shard_of = split.index("train").shard_of()
    order = Order(count=RECORDS, seed=5, kind="windowed", shard_of=shard_of, window=2)
    windowed = TrainingStream(
        split, "train", order, batch=BATCH, sub_batch=2, choose=choose, then=lambda clips: clips, threads=1
    )
    with windowed:
        assert windowed.state().order == "windowed:2"


def test_closing_leaves_no_thread(split):
    reading = stream(split, threads=3)
    next(reading.step())
    assert readers()
    reading.close()
    assert not readers()
    reading.close()
    with pytest.raises(ShardError, match="has ended"):
        next(reading.step())


def test_an_error_where_clips_are_used_leaves_no_thread(split):
    def broken() -> None:
        with stream(split) as reading:
            next(reading.step())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert not readers()


def test_a_stream_that_failed_says_so_when_it_is_asked_again(split):
    def then(clips: list[Clip]) -> list[Clip]:
        if clips[0].position == SUB_BATCH:
            raise CorruptRecordError("broken here")
        return clips

    with stream(split, then=then) as reading:
        step = reading.step()
        assert [clip.position for clip in next(step)] == [0, 1]
        with pytest.raises(CorruptRecordError, match="broken here"):
            next(step)
        with pytest.raises(ShardError, match="has ended"):
            next(reading.step())
        assert reading.state().position == 0
    assert not readers()


# Stores


class Watched:
    """A store that notes what is fetched, and may spoil it."""

    def __init__(self, store, spoil=lambda blobs, calls: blobs):
        self.store, self.spoil, self.calls = store, spoil, []

    def __getattr__(self, name):
        return getattr(self.store, name)

    def fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        self.calls.append(list(ranges))
        return self.spoil([bytes(blob) for blob in self.store.fetch(ranges)], len(self.calls))

    def again(self, wanted: Range) -> bytes:
        return self.fetch([wanted])[0]


def watched(split: Split, **more) -> Split:
    return Split(Watched(split.store, **more), split.manifest, folder=Path(split.location))


def test_a_sub_batch_is_one_fetch_that_reads_no_more_than_the_frames_and_small_gaps(split):
    quiet = watched(split)
    clips = read_clips(quiet, "train", [(0, 3, choose(0, 12)), (1, 3, choose(1, 12)), (2, 5, choose(2, 12))])
    [reads] = quiet.store.calls
    assert len(reads) <= 2  # two records, each smaller than the gap
    used = sum(len(jpeg) for clip in clips for jpeg in clip.rgb + clip.flow)
    assert sum(read.stop - read.start for read in reads) <= used + 3 * 7 * split.store.gap


def test_a_clip_without_frames_or_pairs_reads_none(split):
    nothing = np.array([], dtype=np.int64)
    quiet = watched(split)
    [clip] = read_clips(quiet, "train", [(0, 1, Chosen(nothing, nothing))])
    assert (clip.rgb, clip.flow) == ((), ())
    assert not any(quiet.store.calls)


def test_a_transfer_that_went_wrong_once_is_tried_again_for_that_frame_alone(split):
    def spoil(blobs: list[bytes], calls: int) -> list[bytes]:
        return [blob[:-1] + bytes([blob[-1] ^ 1]) for blob in blobs] if calls == 1 else blobs

    shaky = watched(split, spoil=spoil)
    wanted = [(0, 3, choose(0, 12))]
    assert [plain(clip) for clip in read_clips(shaky, "train", wanted)] == [
        plain(clip) for clip in read_clips(split, "train", wanted)
    ]
    assert [len(ranges) for ranges in shaky.store.calls][1:] == [1] * len(shaky.store.calls[0])


def as_loose_files(folder: Path, target: Path) -> Path:
    """What `tar xf` makes of a split."""
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard) as tar:
            tar.extractall(target / shard.name.partition("-")[0], filter="data")
    for index in folder.glob("*.index"):
        shutil.copy(index, target)
    manifest = parse_manifest((folder / "manifest.json").read_bytes(), "")
    parts = {name: replace(part, shards=()) for name, part in manifest.parts.items()}
    write_manifest(target / "manifest.json", replace(manifest, store="files", parts=parts))
    return target


def as_lmdb(folder: Path, target: Path) -> Path:
    """Every member a value."""
    target.mkdir()
    with open_split(folder) as split, lmdb.open(str(target), map_size=1 << 24, lock=False) as environment:
        with environment.begin(write=True) as transaction:
            for part in split.manifest.parts:
                for row in split.index(part):
                    for member, blob in split.members(part, row).items():
                        transaction.put(value_key(part, row.key, member).encode(), bytes(blob))
        manifest = split.manifest
    for index in folder.glob("*.index"):
        shutil.copy(index, target)
    size = (target / "data.mdb").stat().st_size
    parts = {
        name: replace(part, shards=(ShardFile(name="data.mdb", size=size, sha256="0" * 64, records=part.records),))
        for name, part in manifest.parts.items()
    }
    write_manifest(target / "manifest.json", replace(manifest, store="lmdb", parts=parts))
    return target


@pytest.mark.parametrize("make", [as_loose_files, as_lmdb])
def test_tar_lmdb_and_loose_files_give_the_same_clips_in_the_same_states(folder, split, make, tmp_path):
    with open_split(make(folder, tmp_path / "other")) as other:
        assert other.manifest.store != split.manifest.store
        with stream(split) as one, stream(other) as another:
            assert taken(one, 4) == taken(another, 4)
            saved = another.state()
        with stream(split, start=saved) as goes_on:
            assert taken(goes_on, 1) == [slowly(split, position) for position in range(4 * BATCH, 5 * BATCH)]
        for part in ("train", "test"):
            for record in range(len(split.index(part))):
                members = split.read(part, record), other.read(part, record)
                assert [[bytes(one[name]) for name in MEMBERS] for one in members] == [
                    [bytes(members[0][name]) for name in MEMBERS]
                ] * 2


# Damage


@pytest.fixture(scope="module")
def fragile(folder, tmp_path_factory) -> Path:
    return shutil.copytree(folder, tmp_path_factory.mktemp("fragile") / "split1")


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
def test_a_flipped_byte_in_a_frame_that_is_used_names_record_stream_and_frame(fragile, data):
    record = data.draw(st.integers(0, RECORDS - 1))
    with open_split(fragile) as split:
        row = split.index("train").row(record)
        name = data.draw(st.sampled_from(["rgb", "flow"]))
        place = row.rgb if name == "rgb" else row.flow
        image = data.draw(st.integers(0, len(place.ends) - 1))
        start = int(place.ends[image - 1]) if image else 0
        byte = place.offset + data.draw(st.integers(start, int(place.ends[image]) - 1))
        blob, _ = split.store.place("train", row, name)
        everything = Chosen(np.arange(row.frames), np.arange(row.frames - 1))
        flip(fragile / blob, byte, mask := data.draw(st.integers(1, 255)))
        try:
            with pytest.raises(CorruptRecordError) as caught:
                read_clips(split, "train", [(0, record, everything)])
        finally:
            flip(fragile / blob, byte, mask)
        frame = f"frame {image}" if name == "rgb" else f"pair {image // 2} {'xy'[image % 2]}"
        message = str(caught.value)
        assert f"{blob}: record {record} ({row.name}), {name} {frame}, bytes " in message
        assert f"expected {int(place.crcs[image]):08x}" in message
        assert f"stmul shards verify {fragile}" in message
        read_clips(split, "train", [(0, record, everything)])


def test_damage_in_frames_that_are_not_used_stops_nothing(fragile):
    with open_split(fragile) as split:
        row = split.index("train").row(0)
        blob, offset = split.store.place("train", row, "rgb")
        flip(fragile / blob, offset, 1)
        try:
            read_clips(split, "train", [(0, 0, Chosen(np.arange(1, 5), np.arange(3)))])
        finally:
            flip(fragile / blob, offset, 1)


def test_a_cut_shard_is_refused_where_it_is_used(fragile, tmp_path):
    folder = shutil.copytree(fragile, tmp_path / "split1")
    with open_split(folder) as split:
        row = split.index("train").row(0)
        blob, offset = split.store.place("train", row, "rgb")
        with (folder / blob).open("r+b") as file:
            file.truncate(offset + 1)
        with pytest.raises(TruncatedShardError, match="the file was cut"):
            read_clips(split, "train", [(0, 0, choose(0, row.frames))])


def flip(path: Path, byte: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        [found] = file.read(1)
        file.seek(byte)
        file.write(bytes([found ^ mask]))


# Work in order


@settings(deadline=None)
@given(tasks=st.lists(st.integers(0, 3), max_size=20), threads=st.integers(0, 5), ahead=st.integers(0, 6))
def test_work_comes_back_in_order_however_long_each_takes(tasks, threads, ahead):
    def work(task: tuple[int, int]) -> int:
        time.sleep(task[1] / 2000)
        return task[0]

    assert list(in_order(enumerate(tasks), work, threads=threads, ahead=ahead)) == list(range(len(tasks)))
    assert not readers()


@given(failing=st.integers(0, 12), threads=st.integers(1, 4), ahead=st.integers(1, 6))
@settings(deadline=None)
def test_an_error_comes_in_its_turn_after_all_before_it(failing, threads, ahead):
    def work(task: int) -> int:
        if task == failing:
            raise ValueError(f"task {task}")
        return task

    results = in_order(count(), work, threads=threads, ahead=ahead)
    assert list(islice(results, failing)) == list(range(failing))
    with pytest.raises(ValueError, match=f"task {failing}"):
        next(results)
    assert not readers()
    assert next(results, None) is None


@pytest.mark.parametrize("ahead", [1, 4])
def test_work_never_runs_further_ahead_than_it_may(ahead):
    begun = []
    results = in_order(count(), lambda task: begun.append(task) or task, threads=2, ahead=ahead)
    for taken_so_far in range(1, 20):
        next(results)
        assert len(begun) <= taken_so_far + ahead
    results.close()


def test_closing_early_cancels_what_has_not_begun_and_waits_for_what_has():
    begun, ended = [], []
    gate = threading.Event()

    def work(task: int) -> int:
        begun.append(task)
        if task:
            gate.wait(60)
        ended.append(task)
        return task

    results = in_order(range(100), work, threads=2, ahead=50)
    assert next(results) == 0
    threading.Timer(0.05, gate.set).start()
    results.close()
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 100
    assert not readers()


def test_an_error_in_the_tasks_themselves_leaves_no_thread():
    def tasks():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(in_order(tasks(), lambda task: task, threads=2, ahead=3))
    assert not readers()


def test_the_images_of_pairs_are_x_then_y():
    assert pair_images(np.array([0, 3, 4])).tolist() == [0, 1, 6, 7, 8, 9]
    assert pair_images(np.array([], dtype=np.int64)).tolist() == []


def test_there_is_at_least_one_core():
    assert cores() >= 1
