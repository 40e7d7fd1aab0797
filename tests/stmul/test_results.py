"""Results: what may be one, and that the file gives back what was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stmul.results import (
    HEADS,
    Results,
    ResultsError,
    measures,
    read_results,
    table,
    table_header,
    table_notes,
    write_results,
)

CLASSES = ("jump", "run", "Bücken & heben")


def made(clips=4, heads=("joint",), **changes):
    labels = np.arange(clips, dtype=np.int32) % len(CLASSES)
    scores = np.linspace(-1, 1, clips * len(CLASSES), dtype=np.float32).reshape(clips, len(CLASSES))
    fields = {
        "run": "drawn-001",
        "epoch": 90,
        "dataset": "drawn",
        "split": 1,
        "part": "test",
        "digest": "ab" * 32,
        "protocol": "dense",
        "frames": 25,
        "mirror": True,
        "expected": clips,
        "classes": CLASSES,
        "names": tuple(f"v_{i}" for i in range(clips)),
        "labels": labels,
        "heads": heads if isinstance(heads, dict) else {head: scores + len(head) for head in heads},
    }
    return Results(**{**fields, **changes})


def same(one: Results, other: Results) -> bool:
    for field in dataclasses.fields(Results):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "heads":
            if mine.keys() != theirs.keys() or any(mine[h].tobytes() != theirs[h].tobytes() for h in mine):
                return False
        elif field.name == "labels":
            if mine.dtype != theirs.dtype or mine.tolist() != theirs.tolist():
                return False
        elif mine != theirs:
            return False
    return True


def test_what_is_read_is_what_was_written_and_writes_the_same_file(tmp_path):
    results = made(heads=tuple(HEADS), expected=6)
    write_results(tmp_path / "one.json", results)
    again = read_results(tmp_path / "one.json")
    write_results(tmp_path / "two.json", again)
    assert same(again, results)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@given(arrays.arrays(np.float32, (4, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_every_score_comes_back_to_the_last_bit(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("scores") / "results.json"
    write_results(path, made(heads={"joint": scores}))
    assert read_results(path).heads["joint"].tobytes() == scores.tobytes()


def test_other_tools_find_the_measures_in_the_file(tmp_path):
    results = made(clips=2, heads=("joint", "late fusion"))
    write_results(tmp_path / "results.json", results)
    tree = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    found = tree["measures"]["joint"]
    assert (tree["scored"], tree["expected"]) == (2, 2)
    assert found["top1"] == measures(results, "joint")["top1"]
    assert found["confusion"] == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert found["class_accuracies"] == [0.0, 0.0, None]


def test_the_table_has_a_row_for_each_head_in_the_order_of_the_heads():
    results = made(clips=3, heads=("joint", "motion", "appearance alone"))
    assert table_header(results) == ("scores", "top-1", "95 % interval", "top-3", "mean class")
    assert [row[0] for row in table(results)] == ["appearance alone", "motion", "joint"]
    assert table(results)[-1] == ("joint", "33.3 %", "6.1 to 79.2", "100.0 %", "33.3 %")


def test_clips_cut_from_few_recordings_tell_less_than_as_many_of_their_own():
    names = tuple(f"v_{i // 5:02d}_g{i // 5:02d}_c{i % 5:02d}" for i in range(40))
    scores = np.zeros((40, 3), np.float32)
    labels = np.repeat(np.array([0, 1] * 4, np.int32), 5)  # whole recordings are hit, or missed
    shared = made(clips=40, heads={"joint": scores}, labels=labels, names=names)
    low, high = measures(shared, "joint")["groups_interval"]
    wilson_low, wilson_high = measures(shared, "joint")["interval"]
    assert low < wilson_low < 0.5 < wilson_high < high
    assert table_header(shared) == ("scores", "top-1", "by clips", "by groups", "top-3", "mean class")
    assert table(shared) == [("joint", "50.0 %", "35.2–64.8", f"{100 * low:.1f}–{100 * high:.1f}", "100.0 %", "50.0 %")]
    assert table_notes(shared).endswith("bootstrap by 8 groups (recordings)")
    own = made(clips=40, heads={"joint": scores}, labels=labels)
    assert (shared.groups, own.groups) == (8, 40)
    assert table_header(own)[2] == "95 % interval"
    assert table_notes(own) == "chance 33.3 %"


@pytest.mark.parametrize(
    ("heads", "main"),
    [
        (HEADS, "fused"),
        ([head for head in HEADS if head != "fused"], "joint"),
        (("appearance alone", "motion alone", "late fusion"), "late fusion"),
        (("appearance alone",), "appearance alone"),
        (("motion",), "motion"),
    ],
)
def test_a_run_is_about_its_joint_network_or_what_comes_closest(heads, main):
    assert made(heads=tuple(heads)).main == main


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": {"joint": np.zeros((4, 2), np.float32)}}, r"scores of joint: expected \[4, 3\] of float32, found"),
        ({"heads": {"joint": np.zeros((4, 3))}}, "found .* of float64"),
        ({"heads": {"joined": np.zeros((4, 3), np.float32)}}, "heads: expected some of .* found joined"),
        ({"heads": {}}, "found none"),
        ({"heads": {"joint": np.full((4, 3), np.nan, np.float32)}}, "not finite at clip 'v_0'; .* lower learning rate"),
        ({"labels": np.array([0, 1, 2, 3], np.int32)}, r"labels: expected 0 .. 2, found 0 .. 3"),
        ({"labels": np.array([0, 1, 2, 0])}, "labels: expected 4 of int32"),
        ({"names": ("a", "b", "c", "a")}, "a clip is there twice"),
        ({"classes": ("a", "b", "a")}, "a class is there twice"),
        ({"expected": 3}, "4 clips were scored of 3"),
        ({"clips": 0}, "at least one clip"),
    ],
)
def test_parts_that_do_not_fit_together_are_no_results(changes, complaint):
    with pytest.raises(ResultsError, match=f"results of drawn-001: .*{complaint}"):
        made(**changes)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 2}, "expected results of schema 1, found 2"),
        ({"speed": 3}, "speed: no such key"),
        ({"run": None}, "run: expected text, found NoneType"),
        ({"epoch": True}, "epoch: expected a whole number, found bool"),
        ({"classes": [1, 2, 3]}, "classes: expected a list of text"),
        ({"labels": [0, 1, 2, 0.0]}, "labels: expected whole numbers 0 .. 2"),
        ({"labels": [0, 1, 2, 2**40]}, "labels: expected whole numbers 0 .. 2"),
        ({"heads": {"joint": [[1, 2, 3]]}}, r"scores of joint: expected \[4, 3\]"),
        ({"heads": {"joint": [[1, 2], [1, 2, 3]]}}, "scores of joint: expected rows of 3 numbers"),
        ({"heads": {"joint": [["1", "2", "3"]] * 4}}, "scores of joint: expected rows of 3 numbers"),
        ({"heads": {"joint": [[1e39, 0, 0]] * 4}}, "scores of joint: not finite"),
    ],
)
def test_a_file_with_a_wrong_value_is_refused_by_its_key(tmp_path, change, complaint):
    path = tmp_path / "results.json"
    write_results(path, made())
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(ResultsError, match=f"results.json: .*{complaint}.*stmul test"):
        read_results(path)


def test_a_file_without_a_key_is_refused(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, made())
    tree = json.loads(path.read_text(encoding="utf-8"))
    del tree["digest"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(ResultsError, match="digest: missing, expected text"):
        read_results(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, made())
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ResultsError, match="not readable as results"):
            read_results(path)


def test_results_that_are_not_there_are_named_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(ResultsError, match="no such results; make them with: stmul test"):
        read_results(tmp_path / "results.json")
    with pytest.raises(ResultsError, match="not readable"):
        read_results(Path(tmp_path))


def test_a_list_is_no_results(tmp_path):
    (tmp_path / "results.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ResultsError, match="found 'list'"):
        read_results(tmp_path / "results.json")
