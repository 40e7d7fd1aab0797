"""Memory is lent to one at a time, and lent again when nobody looks at it."""

from __future__ import annotations

import gc
import threading

import torch
from hypothesis import given
from hypothesis import strategies as st

from stmul.arenas import SPARE, STEP, Arenas


def test_a_tensor_has_the_shape_asked_for_and_is_bytes():
    taken = Arenas().take([2, 3, 5])
    assert (taken.shape, taken.dtype) == ((2, 3, 5), torch.uint8)
    assert Arenas().take([0, 4]).shape == (0, 4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3 * STEP)), min_size=1, max_size=30))
def test_nobody_writes_into_what_another_looks_at(wishes):
    arenas, held = Arenas(), {}
    for number, (slot, size) in enumerate(wishes):
        held.pop(slot, None)
        taken = arenas.take([size])
        taken[:1], taken[-1:] = number, number
        held[slot] = (number, taken.view(-1)[-1:], taken[:1])
        for expected, *looked_at in held.values():
            assert all(int(one[0]) == expected for one in looked_at)


def test_memory_is_used_again_once_the_last_view_is_gone():
    arenas = Arenas()
    taken = arenas.take([5000])
    view, place = taken[10:20], taken.data_ptr()
    del taken
    other = arenas.take([5000])
    assert other.data_ptr() != place
    del view
    gc.collect()
    again = arenas.take([4000])
    assert again.data_ptr() == place


def test_an_array_of_a_tensor_keeps_its_memory():
    arenas = Arenas()
    array = arenas.take([5000]).numpy()
    place = array.ctypes.data
    assert arenas.take([5000]).data_ptr() != place


def test_sizes_that_fit_badly_are_not_kept_for_ever():
    arenas = Arenas()
    for size in range(1, 40):
        arenas.take([size * 3 * STEP])
    assert len(arenas._free) <= SPARE + 1


def test_threads_never_get_the_same_memory():
    arenas, wrong = Arenas(), []

    def work(mark: int) -> None:
        for _ in range(200):
            taken = arenas.take([1000])
            taken.fill_(mark)
            if not bool((taken == mark).all()):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_was_lent_outlives_those_who_lent_it():
    taken = Arenas().take([100])
    taken.fill_(3)
    gc.collect()
    assert int(taken.sum()) == 300
