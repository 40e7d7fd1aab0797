"""Fused scores, compared tests, and tables of other methods."""

from __future__ import annotations

from dataclasses import replace
from math import comb

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stmul import metrics
from stmul.__main__ import main
from stmul.fusing import Source, compare, fuse, mcnemar, read_table, source_of
from stmul.results import Results, ResultsError, groups_of, measures, read_results, write_results
from stmul.runs import Run

CLASSES = ("run", "jump", "sit")


def scored(scores_NK, labels_N=None, *, head="joint", run="a-001", names=None) -> Results:
    count = len(scores_NK)
    return Results(
        run=run,
        epoch=1,
        dataset="own",
        split=1,
        part="test",
        digest="0" * 64,
        protocol="dense",
        frames=25,
        mirror=True,
        expected=count,
        classes=CLASSES[: len(scores_NK[0])],
        names=tuple(names or (f"v_x_g{i // 2:02d}_c{i % 2:02d}" for i in range(count))),
        labels=np.array([0] * count if labels_N is None else labels_N, dtype=np.int32),
        heads={head: np.array(scores_NK, dtype=np.float32)},
    )


scores = arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(3)), elements=st.floats(-50, 50, width=16))


@given(scores, st.sampled_from(["deviation", "softmax", "none"]), st.floats(0.1, 10))
def test_a_test_fused_with_itself_ranks_as_before(values, scale, weight):
    one = scored(values)
    fused = fuse(one, [source_of(one), source_of(one)], [1.0, weight], scale)
    assert fused.main == "fused"
    distinct = [len(set(row)) == 3 and np.ptp(row) < 15 for row in values.tolist()]  # softmax runs out of digits beyond
    order, before = fused.heads["fused"].argsort(axis=1), values.argsort(axis=1)
    assert np.array_equal(order[distinct], before[distinct])


@given(scores, st.integers(-6, 6))
def test_by_deviation_it_does_not_matter_in_which_unit_a_method_scores(values, power):
    one = scored(values)
    other = source_of(scored(values[::-1].copy()))
    scaled = Source(words="x", classes=other.classes, scores={n: s * 2.0**power for n, s in other.scores.items()})
    both = [fuse(one, [source_of(one), source], [1, 1]).heads["fused"] for source in (other, scaled)]
    assert np.array_equal(*both)


def test_clips_and_classes_are_matched_by_name():
    one = scored([[3, 1, 2], [1, 5, 2]])
    scores_by_name = {name: row[[2, 0, 1]] for name, row in source_of(one).scores.items()}
    turned = Source(words="x", classes=("sit", "run", "jump"), scores=dict(reversed(scores_by_name.items())))
    assert np.array_equal(fuse(one, [turned], [1], "none").heads["fused"], one.heads["joint"])


def test_what_a_source_lacks_is_named():
    one = scored([[3, 1, 2], [1, 5, 2]])
    whole = source_of(one)
    lame = Source(words="idt.csv", classes=("run", "jmp", "sit"), scores=whole.scores)
    with pytest.raises(ResultsError, match=r"idt.csv: no scores of class 'jump'; did you mean jmp\?.*1 of 3"):
        fuse(one, [lame], [1])
    short = Source(words="idt.csv", classes=CLASSES, scores=dict(list(whole.scores.items())[:1]))
    with pytest.raises(ResultsError, match=r"no scores of clip .v_x_g00_c01.*1 of 2 clips are missing"):
        fuse(one, [short], [1])
    for weights in ([], [1, 1], [0], [-1], [float("nan")]):
        with pytest.raises(ResultsError, match="expected one for each of 1 sources"):
            fuse(one, [whole], weights)
    with pytest.raises(ResultsError, match="did you mean joint"):
        source_of(one, "jont")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: expected `name`"),
        ("clip,run\nx,1\n", "line 1: expected `name`"),
        ("name,run,jump\nx,1\n", "line 2: expected a name and 2 scores, found 2"),
        ("name,run\nx,1\nx,2\n", "line 3: a second line of clip 'x'"),
        ("name,run\nx,one\n", "line 2: expected numbers"),
        ("name,run\nx,nan\n", "line 2: scores of 'x' are not finite"),
    ],
)
def test_a_table_that_is_not_one_is_refused_by_its_line(tmp_path, text, complaint):
    path = tmp_path / "idt.csv"
    path.write_text(text)
    with pytest.raises(ResultsError, match=complaint):
        read_table(path)


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_is_the_sum_over_all_splits_that_are_as_uneven(one, other):
    count = one + other
    uneven = [hits for hits in range(count + 1) if abs(2 * hits - count) >= abs(one - other)]
    assert mcnemar(one, other) == pytest.approx(sum(comb(count, hits) for hits in uneven) / 2**count)


def test_groups_are_the_videos_that_clips_were_cut_from():
    names = ["v_A_g01_c01", "v_A_g01_c02", "v_A_g02_c01", "v_B_g01_c01", "own", "april_wave_u_nm_np1_ba_goo_0"]
    names += ["april_wave_f_cm_np1_ba_med_3", "own2"]
    assert groups_of(names).tolist() == [0, 0, 1, 2, 3, 4, 4, 5]


@given(st.lists(st.booleans(), min_size=2, max_size=40))
def test_the_same_test_twice_differs_by_nothing(hits):
    one = scored([[1.0, 0.0] if hit else [0.0, 1.0] for hit in hits])
    found = compare(one, one)
    assert (found.difference, found.interval, found.only, found.p) == (0.0, (0.0, 0.0), (0, 0), 1.0)
    assert not found.resolved
    low, high = found.intervals[0]
    assert 0 <= low <= high <= 1


def test_a_difference_is_resolved_by_enough_clips_and_by_groups_not_by_clips():
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    few = compare(scored([right] * 3 + [wrong]), scored([right] * 4))
    assert not few.resolved
    many = compare(scored([right] * 60 + [wrong] * 40), scored([right] * 100))
    assert many.resolved
    assert many.difference == pytest.approx(0.4)
    # The same clips, but all that differ come from one video: nothing is known of others.
    names = [f"v_x_g{i:02d}_c00" for i in range(60)] + [f"v_x_g99_c{i:02d}" for i in range(40)]
    grouped = compare(scored([right] * 60 + [wrong] * 40, names=names), scored([right] * 100, names=names))
    assert grouped.groups == 61
    assert not grouped.resolved


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(40):
        hits_N = (rng.random(200) < 0.7).astype(float)
        low, high = metrics.bootstrap(hits_N, np.arange(200))
        covered += low <= 0.7 <= high
    assert covered >= 34


def test_tests_on_other_clips_are_not_compared():
    with pytest.raises(ResultsError, match="2 and 3 clips, 2 of them the same"):
        compare(scored([[1, 0]] * 2), scored([[1, 0]] * 3))


def test_tests_of_other_splits_or_of_clips_of_the_same_names_are_told_apart():
    one = scored([[1, 0]] * 2)
    for changes, words in (
        ({"split": 2}, "own split 2, test"),
        ({"part": "train"}, "own split 1, train"),
        ({"dataset": "a"}, "a"),
    ):
        other = replace(one, run="b-001", **changes)
        with pytest.raises(ResultsError, match=f"a-001 was tested on own split 1, test, b-001 on {words}"):
            compare(one, other)
        with pytest.raises(ResultsError, match=f"b-001, joint: scores of {words}.* fused clip by clip"):
            fuse(one, [source_of(one), source_of(other)], [1, 1])
    with pytest.raises(ResultsError, match=r"clip .v_x_g00_c00. is .run. in a-001, and .jump. in b-001"):
        compare(one, replace(one, run="b-001", labels=np.array([1, 1], dtype=np.int32)))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two runs with results, and a table."""
    monkeypatch.chdir(tmp_path)
    for number, values in ((1, [[2, 1, 0], [0, 1, 2], [2, 1, 0]]), (2, [[1, 2, 0], [0, 3, 1], [2, 1, 0]])):
        folder = tmp_path / "experiment" / f"a-00{number}"
        (folder / "results").mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        write_results(folder / "results" / "x.json", scored(values, [0, 1, 0], run=folder.name))
    lines = ["name,sit,run,jump", "v_x_g00_c00,0,9,0", "v_x_g00_c01,0,0,9", "v_x_g01_c00,0,9,0"]
    (tmp_path / "idt.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def stmul(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done.output


def test_runs_and_tables_are_fused_at_the_command_line(place):
    out = stmul("fuse", "a-001", "a-002:joint", "idt.csv", "-w", "1", "-w", "1", "-w", "4", "-o", "both.json")
    assert " 66.7 %  a-001, joint" in out
    assert "100.0 %  idt.csv" in out
    fused = read_results(place / "both.json")
    assert measures(fused, "fused")["top1"] == 1.0
    assert "100.0 %" in stmul("fuse", "both.json", "a-001")
    assert "a table holds no labels" in stmul("fuse", "idt.csv", "a-001", code=2)
    assert "no run 'a-003'; did you mean" in stmul("fuse", "a-003", code=1)


def test_runs_are_compared_at_the_command_line(place):
    out = stmul("compare", "a-001", "experiment/a-002/results/x.json")
    assert "no difference resolvable with 3 clips in 2 groups" in out
    assert "1 clips only the first gets right, 1 only the second" in out
    (place / "experiment" / "a-002" / "results" / "x.json").unlink()
    assert "stmul test -i a-002" in stmul("compare", "a-001", "a-002", code=1)
    assert Run(place / "experiment" / "a-002").results() is None
