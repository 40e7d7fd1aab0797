"""Clips held out: whole groups, some of each class where it can be, a function of the seed; never trained on."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.format import encode, key_of
from shards.groups import group_of
from shards.split import Split, open_split
from shards.writer import shard_slots, write_split
from stmul.errors import TrainingError
from stmul.hold_out import divided, held_out
from stmul.loading import training_stream

PARTS = st.floats(0.01, 0.99)
# Classes of several groups of one to four clips, as UCF101 names them.
UCF101 = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=8), min_size=1, max_size=6)


def clips_of(classes):
    rows = [
        (f"v_Class{label}_g{group:02d}_c{clip:02d}", label)
        for label, groups in enumerate(classes)
        for group, count in enumerate(groups)
        for clip in range(count)
    ]
    return [name for name, _ in rows], [label for _, label in rows]


@given(UCF101, PARTS, st.integers(0, 5))
def test_groups_stay_whole_and_every_class_keeps_some_on_both_sides_where_it_can(classes, part, seed):
    names, labels = clips_of(classes)
    held = set(held_out(names, labels, part=part, seed=seed).tolist())
    sides = defaultdict(set)
    for number, name in enumerate(names):
        sides[group_of(name)].add(number in held)
    assert all(len(side) == 1 for side in sides.values())
    for label, groups in enumerate(classes):
        taken = sum(sides[f"v_class{label}_g{group:02d}"] == {True} for group in range(len(groups)))
        assert taken == (0 if len(groups) == 1 else min(max(1, round(part * len(groups))), len(groups) - 1))


@given(UCF101, PARTS, st.integers(0, 5), st.randoms())
def test_neither_the_order_of_the_clips_nor_other_classes_have_a_say(classes, part, seed, shuffler):
    names, labels = clips_of(classes)
    held = {names[number] for number in held_out(names, labels, part=part, seed=seed)}
    order = list(range(len(names)))
    shuffler.shuffle(order)
    again = held_out([names[i] for i in order], [labels[i] for i in order], part=part, seed=seed)
    assert {names[order[number]] for number in again} == held
    first = [number for number, label in enumerate(labels) if label == 0]
    alone = held_out([names[i] for i in first], [0] * len(first), part=part, seed=seed)
    assert {names[first[number]] for number in alone} == {name for name in held if name.startswith("v_Class0_")}


def test_a_group_with_clips_of_several_classes_leaves_each_of_them_another():
    # Seconds of three videos, as Kinetics names them; b shows both classes, and is all that class 1 has but c.
    names = [f"{video}_000000_00001{i}" for video in ("aaaaaaaaaaa", "bbbbbbbbbbb", "ccccccccccc") for i in range(2)]
    labels = [0, 0, 0, 1, 1, 1]
    for seed in range(20):
        held = held_out(names, labels, part=0.9, seed=seed)
        left = set(range(6)) - set(held.tolist())
        assert {labels[number] for number in left} == {0, 1}
        assert len(held) in (2, 4)


def test_other_seeds_hold_out_other_groups_and_no_part_holds_out_none():
    names, labels = clips_of([[1] * 25] * 3)
    found = {tuple(held_out(names, labels, part=0.2, seed=seed)) for seed in range(5)}
    assert len(found) == 5
    assert all(len(held) == 15 for held in found)
    assert not len(held_out(names, labels, part=0.0, seed=1))


@pytest.fixture
def grouped(tmp_path, make_record) -> Split:
    """Two classes of three groups of two clips, and one of a single group."""
    names = [f"v_Class{label}_g{group:02d}_c{clip:02d}" for label in (0, 1) for group in range(3) for clip in (1, 2)]
    names += ["v_Class2_g01_c01", "v_Class2_g01_c02"]
    records = {
        key_of(name): encode(make_record(name, 14, 48, 40, label=int(name[7]), class_name=name[2:8])) for name in names
    }
    part = [[(key, records[key]) for key in keys] for keys in shard_slots(list(records), 3)]
    classes = ["Class0", "Class1", "Class2"]
    parts = {"train": part, "test": part[:1]}
    write_split(tmp_path / "s", dataset="drawn", split=1, classes=classes, made={}, parts=parts)
    with open_split(tmp_path / "s") as split:
        yield split


@pytest.mark.parametrize("order", ["full", "windowed"])
def test_what_is_held_out_is_never_drawn_and_everything_else_once_an_epoch(small, grouped, order):
    config = small("train.hold_out=0.3", f"data.order={order}", "data.window=2", "train.batch=2", "train.sub_batch=2")
    kept, held = divided(grouped, config.train)
    assert (len(kept), len(held)) == (10, 4)
    assert sorted([*kept, *held]) == list(range(14))
    with training_stream(grouped, config, "joint", pinned=False) as stream:
        epochs = [[stream.order.record(position) for position in range(10 * e, 10 * e + 10)] for e in range(3)]
        state = stream.state()
    assert all(sorted(epoch) == kept.tolist() for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert state.order.startswith(f"{order}{':2' if order == 'windowed' else ''} over 10 records (")


def test_without_holding_out_the_order_is_as_it_was(small, grouped):
    with training_stream(grouped, small(), "joint", pinned=False) as stream:
        assert stream.state().order == "full"
        assert stream.order.records is None
    assert divided(grouped, small().train)[0] is None


def test_a_part_whose_classes_have_one_group_each_is_refused(small, tmp_path, make_record):
    part = [[(key_of(f"v_{label}"), encode(make_record(f"v_{label}", label=label))) for label in range(3)]]
    classes = ["class0", "class1", "class2"]
    write_split(tmp_path / "s", dataset="drawn", split=1, classes=classes, made={}, parts={"train": part, "test": part})
    with (
        open_split(tmp_path / "s") as split,
        pytest.raises(TrainingError, match=r"train\.hold_out is 0\.1, but no class has two groups.*train\.hold_out=0$"),
    ):
        divided(split, small("train.hold_out=0.1").train)


def test_the_records_held_out_are_numbers_in_order():
    names, labels = clips_of([[2, 3, 1], [1, 1, 4]])
    held = held_out(names, labels, part=0.5, seed=3)
    assert held.dtype == np.int64
    assert (np.diff(held) > 0).all()
