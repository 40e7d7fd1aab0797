"""Which record stands at which position: without loss or repeat, whoever asks, and the same after a stop."""

from __future__ import annotations

import json
import time
from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import StateMismatchError
from shards.order import Order, State, evaluation, full, steps_for, sub_batches, windowed

seeds, epochs = st.integers(0, 2**63), st.integers(0, 1000)
shards_of = st.lists(st.integers(0, 12), min_size=1, max_size=150).map(lambda shards: np.array(shards, np.uint32))

STATE = State(digest="d" * 64, seed=1, order="full", batch=8, sub_batch=4, position=80)


@given(st.integers(1, 500), seeds, epochs)
def test_an_epoch_visits_every_record_once(count, seed, epoch):
    assert sorted(full(count, seed=seed, epoch=epoch).tolist()) == list(range(count))


@given(shards_of, st.integers(1, 5), seeds, epochs)
def test_a_windowed_epoch_visits_every_record_once_and_holds_only_a_window_of_shards(shard_of, window, seed, epoch):
    order = windowed(shard_of, window=window, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(len(shard_of)))
    visited = shard_of[order].tolist()
    first, last = {shard: visited.index(shard) for shard in visited}, {shard: i for i, shard in enumerate(visited)}
    for position in range(len(visited)):
        assert sum(first[shard] <= position <= last[shard] for shard in first) <= window


def test_a_windowed_order_mixes_the_shards_of_a_window_and_permutes_the_windows():
    shard_of = np.arange(400, dtype=np.uint32) // 50
    visited = [shard_of[windowed(shard_of, window=2, seed=1, epoch=epoch)] for epoch in range(6)]
    assert all(len(set(shards[start : start + 20].tolist())) == 2 for shards in visited for start in range(0, 400, 100))
    assert len({tuple(sorted(set(shards[:100].tolist()))) for shards in visited}) > 1


def test_orders_are_frozen():
    assert full(8, seed=1, epoch=0).tolist() == [2, 6, 4, 7, 5, 0, 3, 1]
    assert full(8, seed=1, epoch=1).tolist() == [4, 0, 5, 1, 6, 7, 2, 3]
    in_pairs = np.arange(12, dtype=np.uint32) // 2
    assert windowed(in_pairs, window=2, seed=1, epoch=0).tolist() == [6, 7, 0, 1, 2, 11, 3, 10, 4, 5, 8, 9]


def test_epochs_and_seeds_differ():
    orders = [full(50, seed=seed, epoch=epoch).tolist() for seed in range(4) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == len(orders)


@given(st.integers(1, 40), seeds, st.lists(st.integers(0, 400), max_size=30))
def test_the_record_at_a_position_does_not_depend_on_what_was_asked_before(count, seed, positions):
    order = Order(count=count, seed=seed)
    for position in positions:
        epoch, within = divmod(position, count)
        assert order.record(position) == full(count, seed=seed, epoch=epoch)[within]


def test_a_windowed_order_is_the_stream_of_its_epochs():
    shard_of = np.array([0, 0, 1, 1, 2, 2, 3], np.uint32)
    order = Order(count=7, seed=3, kind="windowed", shard_of=shard_of, window=2)
    stream = [order.record(position) for position in range(21)]
    assert stream == [*chain(*(windowed(shard_of, window=2, seed=3, epoch=epoch).tolist() for epoch in range(3)))]


def test_an_order_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one record"):
        Order(count=0, seed=1)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@given(step=st.integers(0, 1000), parts=st.integers(1, 12), sub_batch=st.integers(1, 6))
def test_ranks_share_a_step_without_loss_or_repeat(world, step, parts, sub_batch):
    batch = parts * sub_batch
    shares = [sub_batches(step, batch=batch, sub_batch=sub_batch, rank=rank, world=world) for rank in range(world)]
    taken = [position for share in shares for positions in share for position in positions]
    assert sorted(taken) == list(range(step * batch, (step + 1) * batch))
    assert all(
        positions.start % sub_batch == 0 and len(positions) == sub_batch for share in shares for positions in share
    )
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@given(count=st.integers(0, 60))
def test_ranks_score_every_record_once(world, count):
    shares = [list(evaluation(count, rank=rank, world=world)) for rank in range(world)]
    assert sorted(chain(*shares)) == list(range(count))


@given(st.integers(0, 30), st.integers(1, 500), st.integers(1, 64))
def test_steps_are_enough_for_the_epochs_and_no_step_more(passes, count, batch):
    steps = steps_for(passes, count=count, batch=batch)
    assert steps * batch >= passes * count > (steps - 1) * batch


@given(
    st.builds(
        State,
        digest=st.text(max_size=9),
        seed=st.integers(0, 2**64),
        order=st.sampled_from(["full", "windowed:8"]),
        batch=st.just(8),
        sub_batch=st.integers(1, 8),
        position=st.integers(0, 2**50).map(lambda step: 8 * step),
    )
)
def test_a_state_survives_being_written_down(state):
    text = state.to_json()
    assert State.from_json(text) == state
    assert "\n" not in text
    state.must_fit(state)


@pytest.mark.parametrize(
    ("name", "word", "other"),
    [
        ("digest", "data set", "e" * 64),
        ("seed", "seed", 2),
        ("order", "order", "windowed:8"),
        ("batch", "global batch", 16),
        ("sub_batch", "sub-batch", 2),
    ],
)
def test_a_state_that_does_not_fit_names_both_values(name, word, other):
    now = State(**{**json.loads(STATE.to_json()), name: other})
    with pytest.raises(StateMismatchError) as caught:
        STATE.must_fit(now)
    assert f"counted with {word} {getattr(STATE, name)}, this run has {word} {other}" in str(caught.value)


def test_the_position_alone_may_differ():
    STATE.must_fit(State(**{**json.loads(STATE.to_json()), "position": 0}))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"schema": None},
        {"position": "80"},
        {"position": 81},
        {"position": -8},
        {"position": True},
        {"batch": 0},
        {"seed": 1.0},
        {"digest": None},
        {"more": 1},
    ],
)
def test_a_state_of_another_shape_is_refused(change):
    with pytest.raises(StateMismatchError, match="not a saved position of this version"):
        State.from_json(json.dumps({**json.loads(STATE.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", "null", '{"schema": 1}', "{", '"' + "x" * 500 + '"'])
def test_text_that_is_no_state_is_refused_in_one_short_line(text):
    with pytest.raises(StateMismatchError, match="not a saved position of this version") as caught:
        State.from_json(text)
    assert len(str(caught.value)) < 300


def test_a_million_records_are_ordered_in_less_than_a_second():
    shard_of = np.arange(1_000_000, dtype=np.uint32) // 64
    for make in (
        lambda: full(1_000_000, seed=1, epoch=0),
        lambda: windowed(shard_of, window=8, seed=1, epoch=0),
        lambda: [*islice(evaluation(1_000_000), 1000)],
    ):
        spent = []
        for _ in range(3):
            begin = time.process_time()
            make()
            spent.append(time.process_time() - begin)
        assert min(spent) < 1  # others on the machine only add to it
