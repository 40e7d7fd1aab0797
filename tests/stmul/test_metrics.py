"""Accuracies, intervals and confusions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stmul import metrics


@st.composite
def scored(draw, most_classes=8):
    """Scores (N, K) full of ties, and labels."""
    clips, classes = draw(st.integers(1, 12)), draw(st.integers(1, most_classes))
    values = draw(st.lists(st.integers(-2, 2), min_size=clips * classes, max_size=clips * classes))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=clips, max_size=clips))
    return np.array(values, np.float32).reshape(clips, classes), np.array(labels, np.int32)


@given(scored())
def test_the_rank_is_the_place_in_a_stable_sort(pair):
    scores, labels = pair
    orders = np.argsort(-scores, axis=1, kind="stable")
    places = np.argsort(orders, axis=1)[np.arange(len(labels)), labels]
    assert metrics.ranks(scores, labels).tolist() == places.tolist()


@given(scored())
def test_top_1_agrees_with_argmax_and_with_the_confusion_matrix(pair):
    scores, labels = pair
    hits = int(np.sum(scores.argmax(axis=1) == labels))
    assert metrics.top(scores, labels) == pytest.approx(hits / len(labels))
    assert metrics.confusion_matrix(scores, labels).trace() == hits


@given(scored())
def test_more_guesses_are_never_worse_and_k_guesses_always_hit(pair):
    scores, labels = pair
    tops = [metrics.top(scores, labels, places) for places in range(1, scores.shape[1] + 1)]
    assert tops == sorted(tops)
    assert tops[-1] == 1.0


@given(scored())
def test_every_clip_is_in_the_row_of_its_class_once(pair):
    scores, labels = pair
    matrix = metrics.confusion_matrix(scores, labels)
    assert matrix.sum(axis=1).tolist() == np.bincount(labels, minlength=scores.shape[1]).tolist()


@given(scored())
def test_a_margin_above_zero_is_a_hit_and_below_zero_a_miss(pair):
    scores, labels = pair
    margins, hits = metrics.margins(scores, labels), metrics.ranks(scores, labels) == 0
    assert np.all(hits[margins > 0])
    assert not np.any(hits[margins < 0])


def test_the_mean_over_classes_weighs_every_class_that_has_clips_the_same():
    labels = np.array([0, 0, 0, 2], np.int32)
    scores = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    assert metrics.class_accuracies(scores, labels) == pytest.approx([2 / 3, np.nan, 1.0], nan_ok=True)
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx(5 / 6)
    assert metrics.top(scores, labels) == 0.75


def test_equal_scores_for_all_classes_earn_no_more_than_chance():
    labels = np.repeat(np.arange(4, dtype=np.int32), 5)
    assert metrics.top(np.zeros((20, 4), np.float32), labels) == 0.25
    assert metrics.top(np.zeros((20, 4), np.float32), labels, 2) == 0.5


@pytest.mark.parametrize(
    ("hits", "clips", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)  # R. G. Newcombe, "Two-sided confidence intervals ...", Statist. Med. 17, 1998, table I, method 3
def test_the_interval_is_wilsons(hits, clips, low, high):
    assert metrics.wilson_interval(hits, clips) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 4000).flatmap(lambda clips: st.tuples(st.integers(0, clips), st.just(clips))))
def test_the_interval_holds_the_accuracy_and_mirrors_with_it(pair):
    hits, clips = pair
    low, high = metrics.wilson_interval(hits, clips)
    assert 0.0 <= low <= (hits / clips if clips else 0.0) <= high <= 1.0
    assert metrics.wilson_interval(clips - hits, clips) == pytest.approx((1.0 - high, 1.0 - low))


def test_of_no_clips_nothing_is_known():
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
