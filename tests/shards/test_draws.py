"""Drawn numbers are a function of their key: these very numbers, on every machine, for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.draws import MASK, Draws, key_of, mix, mixed, words

keys = st.integers(0, MASK)
parts = st.lists(st.integers(-(2**63), MASK) | st.text(max_size=8), max_size=4).map(tuple)

# Splitmix64 with seed 1234567, as published with its reference implementation and in many test suites.
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_the_words_are_the_published_ones():
    assert words(1234567, 5).tolist() == PUBLISHED
    draws = Draws(1234567)
    assert [draws.word() for _ in range(5)] == PUBLISHED


def test_the_numbers_of_a_key_are_frozen():
    """A change here changes every order and every crop there ever was: never change these numbers."""
    assert key_of() == 0
    assert key_of(1, "stride", 7) == 0x920CDEAF7D98713B
    assert key_of("order", -1) == 0x5D7D77145DFB82F1
    draws = Draws.of(1, "joint", "view", 12345)
    assert [draws.integer(0, 9) for _ in range(8)] == [4, 0, 2, 7, 0, 3, 7, 7]
    assert [draws.uniform() for _ in range(2)] == [0.9531881086196066, 0.9994751792213459]
    assert [draws.flag() for _ in range(8)] == [False, False, False, True, False, False, False, False]
    assert draws.permutation(8).tolist() == [0, 7, 3, 5, 1, 4, 2, 6]


@given(keys, st.integers(0, 50))
def test_words_all_at_once_are_words_one_by_one(key, count):
    draws = Draws(key)
    assert words(key, count).tolist() == [draws.word() for _ in range(count)]


@given(st.lists(keys))
def test_mixing_an_array_is_mixing_each_word(values):
    assert mixed(np.array(values, np.uint64)).tolist() == [mix(value) for value in values]


@given(st.lists(keys, unique=True))
def test_mixing_keeps_different_words_different(values):
    assert len({mix(value) for value in values}) == len(values)


@given(parts)
def test_equal_keys_give_equal_numbers(key):
    one, other = Draws.of(*key), Draws.of(*key)
    for draws in (one, other):
        draws.flag()
    assert one.word() == other.word()
    assert one.permutation(9).tolist() == other.permutation(9).tolist()


@given(parts, parts)
def test_different_keys_give_different_numbers(one, other):
    same = [part & MASK if isinstance(part, int) else part for part in one] == [
        part & MASK if isinstance(part, int) else part for part in other
    ]
    assert (key_of(*one) == key_of(*other)) is same
    assert (Draws.of(*one).word() == Draws.of(*other).word()) is same


def test_neighbouring_seeds_epochs_and_positions_share_no_numbers():
    seen = np.concatenate([words(key_of(seed, "order", epoch), 1000) for seed in range(5) for epoch in range(5)])
    assert len(np.unique(seen)) == len(seen)


def test_a_key_takes_numpy_s_whole_numbers_too():
    assert key_of(np.int64(3), np.int64(-1), np.uint32(7)) == key_of(3, -1, 7)


@given(keys, st.integers(0, 300))
def test_a_permutation_holds_every_number_once(key, count):
    assert sorted(Draws(key).permutation(count).tolist()) == list(range(count))


@given(keys, st.integers(-100, 100), st.integers(0, 1000))
def test_a_whole_number_lies_between_its_ends(key, low, span):
    assert low <= Draws(key).integer(low, low + span) <= low + span


@given(keys, st.integers(-(2**20), 2**20), st.integers(1, 2**20))
def test_a_number_lies_between_its_ends(key, low, span):
    assert low <= Draws(key).uniform(low, low + span) < low + span


def chi_square(counts: np.ndarray) -> float:
    """Distance from uniform in standard deviations, for many bins about normal."""
    expected = counts.sum() / counts.size
    return float((((counts - expected) ** 2 / expected).sum() - (counts.size - 1)) / np.sqrt(2 * (counts.size - 1)))


@pytest.mark.parametrize("name", ["whole", "number", "flag", "first of a permutation", "over positions"])
def test_the_numbers_are_uniform(name):
    draws, bins, count = Draws.of("uniform?", name), 50, 20_000
    drawn = {
        "whole": lambda _: draws.integer(0, 49),
        "number": lambda _: int(draws.uniform(0, 50)),
        "flag": lambda _: 49 * draws.flag(),
        "first of a permutation": lambda _: draws.permutation(50)[0],
        "over positions": lambda position: Draws.of(1, "view", position).integer(0, 49),
    }[name]
    counts = np.bincount([drawn(i) for i in range(count)], minlength=bins)
    assert abs(chi_square(counts[[0, 49]] if name == "flag" else counts)) < 5


def test_neighbouring_numbers_do_not_hang_together():
    drawn = words(key_of("pairs"), 100_001).astype(np.float64) / 2**64
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.015
