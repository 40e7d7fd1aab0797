"""The stream keeps its place: stopped anywhere and gone on with by any ranks and threads, it is the same stream."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.draws import Draws
from shards.errors import StateMismatchError
from shards.order import Order, State
from shards.split import Split, open_split
from shards.stream import Clip, TrainingStream

RECORDS, PER_SHARD = 11, 2
SEED = 5
STEPS = 10  # of 6 clips: five epochs and a half, and hardly a batch that ends with one
KINDS = ("full", "windowed")
WINDOW = 2


@dataclass(frozen=True, eq=False)
class Chosen:
    frames: np.ndarray
    pairs: np.ndarray


@dataclass(frozen=True)
class Segment:
    """A part of a training between two stops."""

    world: int
    threads: tuple[int, ...]  # of each rank
    steps: int


segments = st.integers(0, 2).flatmap(
    lambda power: st.builds(
        Segment,
        world=st.just(2**power),
        threads=st.tuples(*[st.integers(1, 4)] * 2**power),
        steps=st.integers(0, 4),
    )
)
trainings = st.lists(segments, min_size=1, max_size=5).filter(lambda parts: sum(one.steps for one in parts) <= STEPS)
shapes = st.sampled_from(
    [(6, 1), (6, 2), (6, 3), (6, 6), (4, 2), (12, 3)]
)  # batch, sub-batch; some too few for 4 ranks


@pytest.fixture(scope="module")
def split(make_split, tmp_path_factory) -> Split:
    folder = tmp_path_factory.mktemp("elastic") / "split1"
    make_split(folder, train=RECORDS, test=2, per_shard=PER_SHARD)
    with open_split(folder) as split:
        yield split


def choose(position: int, n: int) -> Chosen:
    """Some frames and some pairs, ascending: other ones at every position."""
    draws = Draws.of("elastic", position)
    return Chosen(np.sort(draws.permutation(n)[:2]), np.sort(draws.permutation(n - 1)[:3]))


def stream(
    split: Split,
    kind: str = "full",
    *,
    batch: int = 6,
    sub_batch: int = 2,
    threads: int = 2,
    seed: int = SEED,
    window: int = WINDOW,
    then=lambda clips: clips,
    **more,
):
    order = Order(count=RECORDS, seed=seed, kind=kind, shard_of=split.index("train").shard_of(), window=window)
    return TrainingStream(
        split, "train", order, batch=batch, sub_batch=sub_batch, choose=choose, then=then, threads=threads, **more
    )


def plain(clip: Clip) -> tuple:
    return clip.row.record, [bytes(jpeg) for jpeg in clip.rgb], [bytes(jpeg) for jpeg in clip.flow]


@pytest.fixture(scope="module")
def uninterrupted(split):
    """The clips of an order and a shape by position, read by one rank and one thread without a stop."""

    @cache
    def read(kind: str, batch: int, sub_batch: int) -> dict[int, tuple]:
        with stream(split, kind, batch=batch, sub_batch=sub_batch, threads=1) as reading:
            return {clip.position: plain(clip) for _ in range(STEPS) for clips in reading.step() for clip in clips}

    return read


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(parts=trainings, shape=shapes)
def test_any_ranks_threads_and_stops_give_the_clips_of_one_rank_that_never_stopped(
    split, uninterrupted, kind, parts, shape
):
    batch, sub_batch = shape
    found: dict[int, tuple] = {}
    saved: str | None = None
    for part in parts:
        start = None if saved is None else State.from_json(saved)
        states = []
        for rank, threads in enumerate(part.threads):
            here = {"rank": rank, "world": part.world, "start": start, "threads": threads}
            with stream(split, kind, batch=batch, sub_batch=sub_batch, **here) as reading:
                for _ in range(part.steps):
                    for clip in (clip for clips in reading.step() for clip in clips):
                        assert clip.position not in found
                        found[clip.position] = plain(clip)
                states.append(reading.state().to_json())
        assert len(set(states)) == 1, "any rank's state is the state"
        saved = states[0]
    whole = uninterrupted(kind, batch, sub_batch)
    assert found == {position: whole[position] for position in range(batch * sum(part.steps for part in parts))}


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_has_every_record_once_though_batches_straddle_it(uninterrupted, kind):
    records = [record for _, (record, *_) in sorted(uninterrupted(kind, 6, 2).items())]
    epochs = [records[first : first + RECORDS] for first in range(0, len(records) - RECORDS + 1, RECORDS)]
    assert len(epochs) == 5
    assert RECORDS % 6
    assert all(sorted(epoch) == list(range(RECORDS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_windowed_stream_needs_a_window_of_shards_at_a_time(split, window):
    shard_of = split.index("train").shard_of()
    with stream(split, "windowed", batch=RECORDS, sub_batch=RECORDS, window=window) as reading:
        epochs = [[clip.row.record for clips in reading.step() for clip in clips] for _ in range(6)]
    needed = []
    for epoch in epochs:
        shards = [int(shard_of[record]) for record in epoch]
        spans = [(shards.index(shard), len(shards) - shards[::-1].index(shard)) for shard in set(shards)]
        needed.append(max(sum(first <= i < last for first, last in spans) for i in range(len(shards))))
    assert max(needed) == window


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_ranks_without_a_sub_batch_make_the_same_steps_empty_handed(split, uninterrupted, kind, world):
    taken: Counter[int] = Counter()
    for rank in range(world):
        with stream(split, kind, batch=6, sub_batch=3, rank=rank, world=world) as reading:
            for number in range(4):
                positions = [clip.position for clips in reading.step() for clip in clips]
                assert len(positions) == (3 if rank < 2 else 0)
                assert reading.state().position == 6 * (number + 1)
                taken.update(positions)
    assert taken == Counter(range(24))


def test_a_rank_without_a_sub_batch_reads_nothing(split):
    asked = []
    with stream(split, batch=6, sub_batch=6, rank=1, world=2, then=asked.append) as reading:
        assert [list(reading.step()) for _ in range(50)] == [[]] * 50
    assert asked == []


def test_a_state_saved_in_the_middle_of_a_step_counts_whole_steps(split, uninterrupted):
    with stream(split) as reading:
        list(reading.step())
        step = reading.step()
        next(step)
        saved = State.from_json(reading.state().to_json())
    with stream(split, start=saved, world=2, rank=0) as again:
        positions = [clip.position for clips in again.step() for clip in clips]
    assert positions == [6, 7, 10, 11]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 6}, "seed 5, this run has seed 6"),
        ({"batch": 12}, "global batch 6, this run has global batch 12"),
        ({"sub_batch": 3}, "sub-batch 2, this run has sub-batch 3"),
        ({"kind": "windowed"}, "order full, this run has order windowed:2"),
    ],
)
def test_a_state_that_was_counted_otherwise_is_refused_with_both_values(split, changed, named):
    with stream(split) as reading:
        saved = State.from_json(reading.state().to_json())
    with pytest.raises(StateMismatchError, match=named):
        stream(split, **changed, start=saved)


def test_another_window_or_other_data_are_refused_with_both_values(split, make_split, tmp_path: Path):
    with stream(split, "windowed") as reading:
        saved = State.from_json(reading.state().to_json())
    with pytest.raises(StateMismatchError, match="order windowed:2, this run has order windowed:3"):
        stream(split, "windowed", window=3, start=saved)
    make_split(tmp_path / "split1", train=RECORDS, test=2, per_shard=PER_SHARD, seed=1)
    with open_split(tmp_path / "split1") as other:
        now = other.manifest.parts["train"].digest
        with pytest.raises(StateMismatchError, match=f"data set {saved.digest}, this run has data set {now}"):
            stream(other, "windowed", start=saved)
