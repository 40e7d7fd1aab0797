"""Rates of every step, and who learns faster."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stmul.config import Network, Recipe, StreamNetwork
from stmul.network import TwoStream
from stmul.schedule import parameter_groups, rate

RATES = (1e-3, 1e-3, 1e-4, 1e-5, 1e-6)


@settings(deadline=None)
@given(steps=st.integers(1, 400), count=st.integers(1, 6))
def test_each_rate_holds_for_an_equal_share_of_the_steps(steps, count):
    recipe = Recipe(epochs=1, rates=tuple(10.0**-i for i in range(count)))
    found = [rate(step, steps, recipe) for step in range(steps)]
    assert found == sorted(found, reverse=True)
    if steps >= count:
        shares = [found.count(one) for one in recipe.rates]
        assert sum(shares) == steps
        assert max(shares) - min(shares) <= 1


def test_the_released_rates_fall_where_they_should():
    recipe = Recipe(epochs=25, rates=RATES)
    assert [rate(step, 10, recipe) for step in range(10)] == [1e-3] * 4 + [1e-4] * 2 + [1e-5] * 2 + [1e-6] * 2


def test_a_cosine_falls_from_its_peak_to_almost_nothing():
    recipe = Recipe(epochs=1, rates=(0.1,), schedule="cosine")
    found = [rate(step, 100, recipe) for step in range(100)]
    assert found[0] == 0.1
    assert found[50] == pytest.approx(0.05)
    assert found[99] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.99)))
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("schedule", ["steps", "cosine"])
def test_warming_up_rises_to_the_schedule_in_equal_parts(schedule):
    recipe = Recipe(epochs=1, rates=(0.1,), schedule=schedule, warm_up=0.2)
    found = [rate(step, 50, recipe) for step in range(50)]
    assert found[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert found[10] == 0.1
    assert max(found) == 0.1


@settings(deadline=None)
@given(
    steps=st.integers(1, 300),
    schedule=st.sampled_from(["steps", "cosine"]),
    warm_up=st.floats(0, 0.99),
    rates=st.lists(st.floats(1e-6, 1), min_size=1, max_size=5),
)
def test_rates_are_positive_and_never_above_the_largest(steps, schedule, warm_up, rates):
    recipe = Recipe(epochs=1, rates=tuple(rates), schedule=schedule, warm_up=warm_up)
    assert all(0 < rate(step, steps, recipe) <= max(rates) for step in range(steps))


def network() -> TwoStream:
    small = StreamNetwork(depth=18, width=4)
    return TwoStream(Network(appearance=small, motion=small), stack=2, classes=3, pool=1)


def test_every_trained_parameter_is_in_exactly_one_group():
    made = network()
    grouped = [id(one) for group in parameter_groups(made, 5e-4) for one in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(one) for one in made.parameters() if one.requires_grad}


def test_only_convolution_weights_are_decayed_and_biases_and_scales_learn_twice_as_fast():
    made = network()
    names = {id(one): name for name, one in made.named_parameters()}
    found = {
        names[id(one)]: (group["weight_decay"], group["scale"])
        for group in parameter_groups(made, 5e-4)
        for one in group["params"]
    }
    assert found["motion.units.3a.conv1.weight"] == (5e-4, 1.0)
    assert found["motion.units.3b.temporal.weight"] == (5e-4, 1.0)
    assert found["appearance.classifier.weight"] == (5e-4, 1.0)
    assert found["appearance.classifier.bias"] == (0.0, 2.0)
    assert found["motion.units.3b.temporal.bias"] == (5e-4, 1.0)
    assert found["appearance.units.3a.project_norm.weight"] == (0.0, 2.0)
    assert found["appearance.norm1.bias"] == (0.0, 1.0)
    assert "appearance.conv1.bias" not in found  # before a normalisation: not trained


def test_a_group_without_parameters_is_left_out():
    assert [group["name"] for group in parameter_groups(nn.Conv2d(1, 1, 1, bias=False), 0.1)] == ["weights"]
