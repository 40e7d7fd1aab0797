"""Reading ahead: in order, never more bytes than allowed, one task at a time where one alone is more; nothing hangs."""

from __future__ import annotations

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.ahead import LONGEST, Ahead, Budget, at_once
from shards.errors import ShardError

sizes = st.lists(st.integers(0, 300), min_size=1, max_size=60)


@given(sizes, st.integers(1, 500), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_results_come_in_order_and_what_is_held_stays_within_the_budget(sizes, limit, seed):
    most, held, lock, wait = 0, 0, threading.Lock(), random.Random(seed)

    def read(task, room):
        nonlocal most, held
        room(sizes[task])
        with lock:
            held += sizes[task]
            most = max(most, held)
        time.sleep(wait.random() / 2000)
        return task * 2

    ahead = Ahead(limit)
    results = []
    for reading in ahead.of(range(len(sizes)), read):
        results.append(reading.result())
        with lock:
            held -= sizes[reading.task]
        reading.done()
    ahead.close()
    assert results == [2 * task for task in range(len(sizes))]
    assert most <= max(limit, *sizes)


@given(sizes)
def test_where_the_bytes_are_near_whoever_asks_reads(sizes):
    asked = []
    for reading in at_once(sizes, lambda size, room: room(size) or asked.append(size) or size):
        assert len(asked) < len(sizes)
        assert reading.result() == asked[-1] == reading.task
        reading.done()
    assert asked == sizes


def test_a_task_that_fails_before_it_knows_its_size_keeps_nobody_from_their_turn():
    def read(task, room):
        if task % 3 == 0:
            raise ShardError(f"no {task}")
        room(10)
        return task

    ahead, found = Ahead(20), []
    for reading in ahead.of(range(30), read):
        try:
            found.append(reading.result())
        except ShardError as error:
            found.append(str(error))
        reading.done()
    ahead.close()
    assert found == [f"no {task}" if task % 3 == 0 else task for task in range(30)]


def test_an_endless_plan_is_begun_only_so_far():
    begun = []
    ahead = Ahead(1 << 30)

    def endless():
        task = 0
        while True:
            begun.append(task)
            yield task
            task += 1

    readings = ahead.of(endless(), lambda task, room: room(1) or task)
    assert [next(readings).result() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(begun) <= LONGEST + 6
    ahead.close()


def test_who_waits_for_room_is_let_go_when_all_is_ended():
    budget = Budget(10)
    budget.take(0, 10)
    caught = []

    def wait():
        try:
            budget.take(1, 10)
        except ShardError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    budget.close()
    thread.join(60)
    assert len(caught) == 1


def test_one_task_larger_than_the_budget_is_read_alone():
    budget = Budget(10)
    budget.take(0, 1000)
    assert budget.held == 1000
    budget.give(0)
    budget.take(1, 5)
    budget.take(2, 5)
    assert budget.held == 10
    threading.Timer(0.05, budget.close).start()
    with pytest.raises(ShardError):
        budget.take(3, 1)
