"""Which instants a clip is made of: the blueprint's section on clips, to the letter, for every length of video."""

from __future__ import annotations

from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.draws import Draws
from stmul import clips
from stmul.clips import NO_PAIR, Instants, centres, evenly, only, single, stacks, training

lengths = st.integers(1, 60)
counts = st.integers(1, 30)
stack_sizes = st.sampled_from([2, 4, 10])
draws_of = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize("n", range(1, 61))
def test_centres_are_5_to_n_minus_6_or_the_middle(n):
    assert list(centres(n, 10)) == (list(range(5, n - 6 + 1)) if n >= 11 else [(n - 1) // 2])


@given(lengths, stack_sizes)
def test_the_stack_at_a_centre_of_a_long_video_needs_no_edge_rule(n, stack):
    inside = np.array(centres(n, stack))
    pairs = stacks(inside, n, stack)
    if n > stack:
        wanted = [[t + offset for offset in range(-stack // 2, stack // 2)] for t in inside.tolist()]
        assert pairs.tolist() == wanted
        assert (pairs.min(), pairs.max()) == (0, n - 2)


@given(st.integers(2, 60), stack_sizes, st.data())
def test_the_stack_at_any_frame_repeats_the_first_and_the_last_pair(n, stack, data):
    t = data.draw(st.integers(0, n - 1))
    pairs = stacks(np.array([t]), n, stack)[0].tolist()
    assert pairs == [min(max(t + offset, 0), n - 2) for offset in range(-stack // 2, stack // 2)]


@pytest.mark.parametrize("n", range(1, 12))
def test_a_short_video_is_seen_in_its_middle(n):
    instants = training(n, frames=5, stack=10, stride=7, draws=Draws(1))
    assert instants.rgb.tolist() == [(n - 1) // 2 if n < 11 else 5] * 5
    if n == 1:
        assert (instants.flow == NO_PAIR).all()
        assert instants.pairs.tolist() == []
    else:
        middle = instants.rgb[0]
        assert instants.flow[0].tolist() == [min(max(middle + offset, 0), n - 2) for offset in range(-5, 5)]
    assert instants.flow.shape == (5, 10)


@given(st.integers(0, 50), st.integers(1, 200), counts)
def test_evenly_is_the_exact_spread_rounded_half_up(first, length, count):
    chosen = evenly(range(first, first + length), count).tolist()
    if count == 1:
        assert chosen == [first + (length - 1) // 2]
    else:
        exact = [(2 * i * (length - 1) + (count - 1), 2 * (count - 1)) for i in range(count)]
        assert chosen == [first + numerator // denominator for numerator, denominator in exact]
        assert (chosen[0], chosen[-1]) == (first, first + length - 1)
    assert chosen == sorted(chosen)


@pytest.mark.parametrize("length", [1, 2, 3, 24, 25, 26, 150])
def test_evenly_is_floor_of_x_plus_a_half(length):
    chosen = evenly(range(5, 5 + length), 25).tolist()
    assert chosen == [5 + floor(i * (length - 1) / 24 + 0.5) for i in range(25)]


@given(st.integers(1, 60), st.integers(1, 60))
def test_evenly_repeats_only_where_there_are_too_few(length, count):
    chosen = evenly(range(length), count).tolist()
    assert len(set(chosen)) == min(length, count)


@given(lengths, counts, stack_sizes)
def test_test_instants_are_spread_over_all_centres(n, frames, stack):
    instants = clips.testing(n, frames=frames, stack=stack)
    assert instants.rgb.tolist() == evenly(centres(n, stack), frames).tolist()
    assert instants.flow.tolist() == stacks(instants.rgb, n, stack).tolist()


@given(lengths, st.integers(1, 6), stack_sizes, st.integers(1, 12), draws_of, st.booleans())
def test_a_training_clip_lies_inside_ascends_and_keeps_its_stride_where_it_fits(n, frames, stack, stride, key, quirk):
    instants = training(n, frames=frames, stack=stack, stride=stride, draws=Draws(key), original_window_start=quirk)
    inside = centres(n, stack)
    chosen = instants.rgb.tolist()
    assert len(chosen) == frames
    assert set(chosen) <= set(inside)
    assert chosen == sorted(chosen)
    if len(inside[::stride]) >= frames:
        assert set(np.diff(chosen).tolist()) <= {stride}
    else:
        assert chosen == evenly(inside, frames).tolist()
    assert instants.flow.tolist() == stacks(instants.rgb, n, stack).tolist()
    assert instants.flow.shape == (frames, stack)


@given(st.integers(1, 5), st.integers(1, 10), st.integers(0, 5))
def test_every_window_is_drawn_and_with_the_quirk_every_one_but_the_first(frames, stride, spare):
    n = 10 + (frames + spare - 1) * stride + 1  # so that exactly frames + spare centres lie on the stride
    starts = {quirk: set() for quirk in (False, True)}
    for quirk, seen in starts.items():
        for seed in range(60):
            instants = training(
                n, frames=frames, stack=10, stride=stride, draws=Draws.of(seed), original_window_start=quirk
            )
            seen.add((int(instants.rgb[0]) - 5) // stride)
    assert starts[False] == set(range(spare + 1))
    assert starts[True] == (set(range(1, spare + 1)) or {0})


@given(lengths, stack_sizes, draws_of)
def test_a_stream_alone_sees_one_instant(n, stack, key):
    instants = single(n, stack=stack, draws=Draws(key))
    assert instants.rgb.shape == (1,)
    assert instants.flow.shape == (1, stack)
    assert int(instants.rgb[0]) in centres(n, stack)


def test_a_stream_alone_sees_every_instant_in_time():
    assert {int(single(20, stack=10, draws=Draws.of(seed)).rgb[0]) for seed in range(200)} == set(centres(20, 10))


@given(st.integers(2, 60), st.integers(1, 6), draws_of)
def test_what_is_read_is_what_is_used_each_once_ascending(n, frames, key):
    instants = training(n, frames=frames, stack=4, stride=2, draws=Draws(key))
    assert instants.frames.tolist() == sorted(set(instants.rgb.tolist()))
    assert instants.pairs.tolist() == sorted(set(instants.flow.reshape(-1).tolist()))


def test_only_one_stream_is_read_where_one_is_wanted():
    both = training(40, frames=3, stack=10, stride=4, draws=Draws(5))
    appearance, motion = only(both, "appearance"), only(both, "motion")
    assert (appearance.rgb.tolist(), appearance.flow.shape, len(appearance.pairs)) == (both.rgb.tolist(), (0, 10), 0)
    assert (motion.flow.tolist(), motion.rgb.shape, len(motion.frames)) == (both.flow.tolist(), (0,), 0)
    assert only(both, "joint") is both


@given(lengths, draws_of)
def test_equal_draws_give_equal_instants(n, key):
    def instants(draws: Draws) -> Instants:
        return training(n, frames=3, stack=4, stride=3, draws=draws)

    one, other = instants(Draws(key)), instants(Draws(key))
    assert (one.rgb.tolist(), one.flow.tolist()) == (other.rgb.tolist(), other.flow.tolist())
