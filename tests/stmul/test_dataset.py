"""Clips for other loops: the trainer's sequence, resumed anywhere, shared by workers and ranks, no thread left."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from configs import SettingsError
from shards.errors import CorruptRecordError, ShardError, StateMismatchError, UnreachableError
from shards.order import State
from shards.split import open_split
from stmul.bookmark import Counting
from stmul.dataset import EvaluationClips, Item, TrainingClips
from stmul.errors import TrainingError
from stmul.loading import evaluation_clips, training_batch, training_stream

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores

SHARE = 2  # sub-batches of a step of the small training
EACH = 6  # of an epoch: 10 clips make 3 steps of 4


@pytest.fixture(scope="module")
def shards(make_split, tmp_path_factory) -> Path:
    """Ten training and five test videos of 40 x 48 pixels, three classes."""
    folder = tmp_path_factory.mktemp("dataset") / "split1"
    make_split(folder, train=10, test=5, width=48, height=40, frames=14)
    return folder


def positions(items: Iterator[Item]) -> list[list[int]]:
    return [item["position"].tolist() for item in items]


def expected(count: int, first: int = 0) -> list[list[int]]:
    """The positions of `count` sub-batches of two clips."""
    return [[2 * number, 2 * number + 1] for number in range(first, first + count)]


def same(one: Item, other: Item) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def reading_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stmul-read")]


def loader(clips, workers: int, **options) -> DataLoader:
    return DataLoader(clips, batch_size=None, num_workers=workers, **options)


def raised(use: Callable[[], object]) -> Exception | None:
    """What `use` raises, without its frames: they would keep a DataLoader's workers, which then end seconds late."""
    try:
        use()
    except Exception as error:
        return error.with_traceback(None)
    return None


# The sequence


@pytest.mark.parametrize("stage", ["joint", "appearance", "motion"])
def test_the_clips_are_those_of_the_trainer(shards, small, stage):
    config = small()
    items = list(islice(TrainingClips(shards, config, stage, epochs=None), 5))
    with open_split(shards) as split, training_stream(split, config, stage, pinned=False) as stream:
        decoded = [one for _ in range(3) for one in stream.step()][:5]
        recipe = getattr(config.train, stage)
        batches = [training_batch(one.to(torch.device("cpu")), config, recipe, stage) for one in decoded]
    for item, batch in zip(items, batches, strict=True):
        streams = {"rgb": batch.rgb_BTCHW, "flow": batch.flow_BTCHW}
        assert item.keys() - {"label", "position", "valid"} == {name for name in streams if streams[name] is not None}
        assert all(torch.equal(item[name], streams[name]) for name in item.keys() & streams.keys())
        assert item["label"].tolist() == batch.labels_B.tolist()
        assert item["position"].tolist() == list(batch.positions)
        assert item["valid"].tolist() == [True, True]


def test_items_are_bytes_of_the_shapes_that_are_promised(shards, small):
    item = next(iter(TrainingClips(shards, small())))
    assert item["rgb"].shape == (2, 2, 3, 32, 32)
    assert item["flow"].shape == (2, 2, 8, 32, 32)
    assert {item["rgb"].dtype, item["flow"].dtype} == {torch.uint8}
    assert item["label"].dtype == item["position"].dtype == torch.int64
    assert item["valid"].dtype == torch.bool


def test_each_iteration_is_an_epoch_and_the_next_one_goes_on(shards, small):
    clips = TrainingClips(shards, small())
    assert len(clips) == EACH
    assert positions(clips) == expected(EACH)
    assert positions(clips) == expected(EACH, first=EACH)
    twice = TrainingClips(shards, small(), epochs=2)
    assert len(twice) == 10  # 20 clips make 5 steps of 4
    assert positions(twice) == expected(10)


def test_a_stream_without_end_has_no_length(shards, small):
    clips = TrainingClips(shards, small(), epochs=None)
    with pytest.raises(TypeError, match="no length"):
        len(clips)
    assert positions(islice(clips, 20)) == expected(20)


def test_leaving_early_leaves_no_thread_and_the_next_iteration_takes_the_rest_of_the_epoch(shards, small):
    clips = TrainingClips(shards, small())
    for number, _ in enumerate(clips):
        if number == 1:
            break
    assert not reading_threads()
    assert positions(clips) == expected(EACH - 2, first=2)
    iterator = iter(clips)
    next(iterator)
    assert reading_threads()
    del iterator
    assert not reading_threads()


def test_nothing_is_read_before_it_is_iterated(small, tmp_path):
    clips = TrainingClips(tmp_path / "none", small())
    with pytest.raises(UnreachableError, match="no such folder"):
        next(iter(clips))


@pytest.mark.gpu
def test_on_a_gpu_the_clips_lie_there_and_are_the_same_to_a_level(shards, small):
    for one, other in zip(TrainingClips(shards, small(), device="cuda"), TrainingClips(shards, small()), strict=True):
        assert {one[name].device.type for name in ("rgb", "flow", "label", "valid")} == {"cuda"}
        assert (one["rgb"].cpu().int() - other["rgb"].int()).abs().max() <= 1
        assert (one["flow"].cpu().int() - other["flow"].int()).abs().max() <= 1


# Its place


@pytest.mark.parametrize("stop", range(9))
def test_resumed_at_any_sub_batch_the_rest_is_the_same(shards, small, stop):
    whole = list(islice(TrainingClips(shards, small(), epochs=None), 9))
    first = TrainingClips(shards, small(), epochs=None)
    taken = list(islice(first, stop))
    state = json.loads(json.dumps(first.state_dict()))
    if taken:
        assert first.state_after(taken[-1]) == state
    second = TrainingClips(shards, small(), epochs=None, start=state)
    rest = list(islice(second, 9 - stop))
    assert all(same(one, other) for one, other in zip(taken + rest, whole, strict=True))


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7])
def test_a_resumed_epoch_ends_where_it_would_have_ended(shards, small, stop):
    first = TrainingClips(shards, small())
    iterator = (item for _ in range(2) for item in first)
    list(islice(iterator, stop))
    second = TrainingClips(shards, small())
    second.load_state_dict(first.state_dict())
    assert positions(second) == expected(EACH - stop % EACH, first=stop)


def test_the_state_of_the_trainers_stream_is_the_same_place(shards, small):
    config = small()
    clips = TrainingClips(shards, config)
    list(islice(clips, 4))
    state = clips.state_dict()
    with open_split(shards) as split, training_stream(split, config, "joint", pinned=False) as stream:
        for _ in range(2):
            list(stream.step())
        saved = json.loads(stream.state().to_json())
    assert {name: state[name] for name in saved} == saved
    assert (state["taken"], state["stage"], state["world"]) == (0, "joint", 1)


def test_a_state_that_does_not_fit_is_refused_with_both_values(shards, small):
    clips = TrainingClips(shards, small())
    list(islice(clips, 3))
    state = clips.state_dict()

    def resumed(changes=(), stage="joint", state=state, **ranks) -> None:
        other = TrainingClips(shards, small(*changes), stage, **ranks)
        other.load_state_dict(state)
        next(iter(other))

    resumed()
    with pytest.raises(StateMismatchError, match="seed 1, this run has seed 2"):
        resumed(["train.seed=2"])
    with pytest.raises(StateMismatchError, match="global batch 4, this run has global batch 8"):
        resumed(["train.batch=8"])
    with pytest.raises(StateMismatchError, match="stage joint, this run has stage motion"):
        resumed(stage="motion")
    with pytest.raises(StateMismatchError, match=r"in the middle of a batch 1, this run has .* 2"):
        resumed(rank=0, world=2)
    with pytest.raises(StateMismatchError, match="not a saved position"):
        resumed(state={**state, "taken": "1"})
    with pytest.raises(StateMismatchError, match="not a saved position"):
        resumed(state={})
    with pytest.raises(StateMismatchError, match="is that of DataLoader worker"):
        resumed(state={**state, "worker": [0, 2], "until": 6})


@given(share=st.integers(1, 9), world=st.integers(1, 4), number=st.integers(0, 10**6), rank=st.data())
def test_a_place_survives_being_written_down(share, world, number, rank):
    begin = State(digest="d", seed=1, order="full", batch=3 * share * world, sub_batch=3, position=0)
    counting = Counting(begin=begin, stage="joint", world=world)
    saved = json.loads(json.dumps(counting.saved(number)))
    assert counting.restored(saved) == number
    step, taken = divmod(number, share)
    mine = rank.draw(st.integers(0, world - 1))
    position = step * begin.batch + (taken * world + mine) * 3 + 1  # in this rank's sub-batch
    assert counting.number(position) == number
    if not taken:
        assert Counting(begin=begin, stage="joint", world=1).restored(saved) == step * share * world


# Workers


@pytest.mark.parametrize(
    ("workers", "method"), [(0, "fork"), (1, "fork"), (2, "fork"), (3, "fork"), (1, "spawn"), (2, "spawn")]
)
def test_workers_give_the_same_sequence(shards, small, workers, method):
    whole = list(islice(TrainingClips(shards, small(), epochs=2), 10))
    options = {"multiprocessing_context": method} if workers else {}
    clips = TrainingClips(shards, small(), epochs=2)
    some = loader(clips, workers, **options)
    assert len(some) == 10
    assert all(same(one, other) for one, other in zip(some, whole, strict=True))


@pytest.mark.parametrize("persistent", [False, True])
def test_with_workers_too_the_next_iteration_is_the_next_epoch(shards, small, persistent):
    some = loader(TrainingClips(shards, small()), 2, persistent_workers=persistent)
    for epoch in range(3):
        assert positions(some) == expected(EACH, first=epoch * EACH)


@pytest.mark.parametrize(("stop", "workers"), [(1, 2), (3, 2), (4, 3), (6, 2)])
def test_what_workers_handed_out_is_resumed_after_the_item_used_last(shards, small, stop, workers):
    clips = TrainingClips(shards, small(), epochs=2)
    some = loader(clips, workers)
    (*_, last) = islice(some, stop)
    clips.load_state_dict(clips.state_after(last))
    assert positions(some) == expected(10 - stop, first=stop)
    fresh = TrainingClips(shards, small(), epochs=2, start=clips.state_after(last))
    assert positions(fresh) == expected(10 - stop, first=stop)


@pytest.mark.parametrize("persistent", [False, True])
def test_where_workers_stood_is_refused_rather_than_guessed(shards, small, persistent):
    clips = TrainingClips(shards, small(), epochs=None)
    some = loader(clips, 2, persistent_workers=persistent)
    first = list(islice(some, 3))
    for use in (clips.state_dict, lambda: next(iter(clips)), lambda: next(iter(some))):
        error = raised(use)
        assert isinstance(error, TrainingError)
        assert "clips.load_state_dict(clips.state_after(batch))" in str(error)
    assert clips.state_after(first[-1])["position"] == 4


@pytest.mark.slow  # PyTorch looks after its workers every five seconds
def test_a_worker_that_dies_is_an_error_and_not_an_endless_wait(shards, small):
    some = iter(loader(TrainingClips(shards, small(), epochs=None), 1))
    next(some)
    os.kill(some._workers[0].pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, ConnectionError)):  # it is gone, or so are the items that it still held
        for _ in some:
            pass


def test_workers_cannot_hand_on_what_lies_on_a_gpu(shards, small):
    error = raised(lambda: next(iter(loader(TrainingClips(shards, small(), device="cuda"), 1))))
    assert isinstance(error, SettingsError)
    assert "num_workers=0" in str(error)


def test_a_copy_by_way_of_a_file_is_the_same_clips(shards, small):
    clips = TrainingClips(shards, small())
    list(islice(clips, 2))
    copied = pickle.loads(pickle.dumps(clips))
    assert positions(loader(copied, 2)) == expected(EACH - 2, first=2)
    assert positions(clips) == expected(EACH - 2, first=2)  # the other knows nothing of that


# Ranks


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_every_step(shards, small, workers):
    parts = [positions(loader(TrainingClips(shards, small(), rank=rank, world=2), workers)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == EACH // 2
    assert [one for pair in zip(*parts, strict=True) for one in pair] == expected(EACH)


def test_another_number_of_ranks_goes_on_between_two_batches(shards, small):
    alone = TrainingClips(shards, small(), epochs=None)
    list(islice(alone, 2 * SHARE))
    state = alone.state_dict()
    pair = [TrainingClips(shards, small(), epochs=None, start=state, rank=rank, world=2) for rank in (0, 1)]
    parts = [positions(islice(clips, 2)) for clips in pair]
    assert [one for both in zip(*parts, strict=True) for one in both] == expected(4, first=4)
    states = [clips.state_dict() for clips in pair]
    assert states[0] == states[1]
    assert positions(islice(TrainingClips(shards, small(), start=states[0]), 1)) == expected(1, first=8)


def test_ranks_that_cannot_share_equally_are_refused(shards, small):
    with pytest.raises(SettingsError, match="3 ranks cannot share the 2 sub-batches"):
        next(iter(TrainingClips(shards, small(), rank=0, world=3)))


def test_ranks_are_those_of_the_process_group(shards, small, tmp_path):
    group = {"backend": "gloo", "init_method": f"file://{tmp_path / 'group'}", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group(**group)
    try:
        clips = TrainingClips(shards, small())
        assert pickle.loads(pickle.dumps(clips))._ranks == clips.ranks() == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_processes_that_were_started_together_must_say_which_they_are(shards, small, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(SettingsError, match="init_process_group"):
        next(iter(TrainingClips(shards, small())))
    assert len(TrainingClips(shards, small(), rank=0, world=2)) == EACH // 2


# Settings and damage


def test_settings_that_cannot_be_used_are_refused_at_once(shards, small):
    with pytest.raises(SettingsError, match="stage 'moton'; did you mean motion"):
        TrainingClips(shards, small(), "moton")
    with pytest.raises(SettingsError, match="epochs 0"):
        TrainingClips(shards, small(), epochs=0)
    with pytest.raises(SettingsError, match="no configuration named 'dema'"):
        TrainingClips(shards, "dema")
    with pytest.raises(SettingsError, match=r"data\.crops"):
        TrainingClips(shards, "demo", changes=["data.crops=3"])
    with pytest.raises(SettingsError, match="rank 2 of world 2"):
        TrainingClips(shards, small(), rank=2, world=2)
    with pytest.raises(SettingsError, match="rank 1 of world None"):
        EvaluationClips(shards, small(), rank=1)


@pytest.fixture
def damaged(shards, tmp_path) -> Path:
    """The same with a wrong byte in every frame of the first test video and of one training video."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in shards.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with open_split(folder) as split:
        for part in ("train", "test"):
            row = split.index(part).row(0)
            blob, start, stop = split.store.member(part, row, "video.rgb.mjpeg")
            data = bytearray((folder / blob).read_bytes())
            data[start:stop] = bytes(255 - byte for byte in data[start:stop])
            (folder / blob).write_bytes(data)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_raises_where_it_is_asked_for(damaged, small, workers):
    for clips in (TrainingClips(damaged, small()), EvaluationClips(damaged, small())):
        error = raised(lambda clips=clips: list(loader(clips, workers)))
        assert isinstance(error, CorruptRecordError)
        assert "checksum" in str(error)
    assert not reading_threads()


def test_a_damaged_clip_can_be_left_out_and_keeps_its_place(damaged, small):
    with open_split(damaged) as split:
        name = split.index("train").row(0).name
    clips = TrainingClips(damaged, small("data.damage=skip"))
    items = list(clips)
    assert positions(items) == expected(EACH)
    assert sum(not valid for item in items for valid in item["valid"].tolist()) >= 1
    assert clips.damaged.keys() == {name}
    assert "checksum" in clips.damaged[name]


# Evaluation


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (0, 2), (3, 2), (0, 8)])
def test_every_test_clip_comes_exactly_once_over_ranks_and_workers(shards, small, workers, world):
    found = []
    for rank in range(world):
        clips = EvaluationClips(shards, small(), rank=rank, world=world)
        mine = [item["position"][0].item() for item in loader(clips, workers)]
        assert len(mine) == len(clips)
        assert mine == sorted(mine)
        found += mine
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert not reading_threads()


def test_a_test_clip_is_shown_in_all_its_views(shards, small):
    config = small()
    item = next(iter(EvaluationClips(shards, config)))
    assert item["rgb"].shape == (2, 3, 3, 40, 48)
    assert item["flow"].shape == (2, 3, 8, 40, 48)
    assert torch.equal(item["rgb"][1], item["rgb"][0].flip(-1))
    assert torch.equal(item["flow"][1, :, 0], 255 - item["flow"][0, :, 0].flip(-1))
    assert item["label"].tolist() == 2 * [_evaluated(shards, config, "test")[0].clips[0].label]
    centre = next(iter(EvaluationClips(shards, small("evaluate.protocol=centre", "evaluate.mirror=no"))))
    assert centre["rgb"].shape == (1, 3, 3, 32, 32)
    assert [item["label"][0].item() for item in EvaluationClips(shards, config, "train")] == [
        clip.label for one in _evaluated(shards, config, "train") for clip in one.clips
    ]


def _evaluated(shards: Path, config, part: str):
    with open_split(shards) as split:
        return [one.to(torch.device("cpu")) for one in evaluation_clips(split, part, config)]


def test_an_unknown_part_is_said_as_such(shards, small):
    with pytest.raises(ShardError, match="no part 'valid'"):
        next(iter(EvaluationClips(shards, small(), "valid")))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize(("workers", "stop"), [(0, 4), (1, 7), (2, 5), (3, 2)])
def test_torchdatas_loader_saves_and_goes_on(shards, small, workers, stop):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make():
        return stateful(TrainingClips(shards, small()), batch_size=None, num_workers=workers)

    first = make()
    iterator = (item for _ in range(2) for item in first)
    assert positions(islice(iterator, stop)) == expected(stop)
    state = json.loads(json.dumps(first.state_dict()))
    second = make()
    second.load_state_dict(state)
    rest = EACH - stop % EACH
    assert positions(second) == expected(rest, first=stop)
    assert positions(second) == expected(EACH, first=stop + rest)
