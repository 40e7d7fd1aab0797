"""Tests of several splits: whose networks they are, and the mean over them."""

from __future__ import annotations

import json
import os
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from configs import SettingsError, load
from stmul.__main__ import main
from stmul.config import Config
from stmul.errors import RunError
from stmul.options import run_name
from stmul.results import Results, ResultsError, measures
from stmul.runs import About, Run
from stmul.splits import OverSplits, as_json, for_split, lacking, numbers, runs_of, table

QUICK = [
    "network={appearance: {depth: 18, width: 8}, motion: {depth: 18, width: 8}}",
    "data={crop: 32, frames: 2, stack: 4, stride: [2, 4], threads: 1}",
    "train={stages: joint, batch: 4, sub_batch: 4, joint: {epochs: 1, rates: [0.01]}}",
    "evaluate={frames: 2}",
]


def hits(right, wrong, *, split=1, run="own-001", heads=("joint",), **changes):
    """Results of so many clips that were hit and missed."""
    scores_NK = np.array([[1, 0]] * right + [[0, 1]] * wrong, dtype=np.float32)
    fields = {
        "run": run,
        "epoch": 3,
        "dataset": "own",
        "split": split,
        "part": "test",
        "digest": "0" * 64,
        "protocol": "dense",
        "frames": 25,
        "mirror": True,
        "expected": right + wrong,
        "classes": ("a", "b"),
        "names": tuple(f"v{number}" for number in range(right + wrong)),
        "labels": np.zeros(right + wrong, dtype=np.int32),
        "heads": dict.fromkeys(heads, scores_NK),
    }
    return Results(**{**fields, **changes})


counts = st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(any)


@given(st.lists(counts, min_size=1, max_size=3))
def test_the_mean_is_that_of_accuracies_and_not_of_clips(splits):
    found = OverSplits(tests=tuple(hits(*some, split=number) for number, some in enumerate(splits, 1)))
    parts = [right / (right + wrong) for right, wrong in splits]
    assert found.mean("joint")["top1"] == pytest.approx(np.mean(parts))
    assert found.mean("joint")["top5"] == 1.0
    ((head, *shown),) = table(found)
    assert head == "joint"
    assert shown == [f"{100 * part:.1f} %" for part in (*parts, np.mean(parts), 1.0, np.mean(parts))]


def test_the_file_holds_each_splits_measures_and_their_mean():
    one, other = hits(3, 1), hits(1, 1, split=2, run="own-004", heads=("joint", "late fusion"))
    found = OverSplits(tests=(one, other))
    tree = json.loads(as_json(found, ["a.json", "b.json"]))
    assert [(part["split"], part["run"], part["scores"]) for part in tree["splits"]] == [
        (1, "own-001", "a.json"),
        (2, "own-004", "b.json"),
    ]
    assert tree["splits"][0]["measures"]["joint"]["top1"] == 0.75
    assert tree["mean"] == {"joint": {"top1": 0.625, "top5": 1.0, "mean_class": 0.625}}
    assert lacking(found) == ("late fusion",)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"protocol": "centre"}, "protocol dense and centre"),
        ({"frames": 5}, "frames 25 and 5"),
        ({"part": "train"}, "part test and train"),
        ({"classes": ("a", "c")}, "other classes, 2 and 2"),
        ({"split": 1}, "both of split 1"),
    ],
)
def test_a_mean_of_unlike_tests_is_refused(changes, complaint):
    with pytest.raises(ResultsError, match=f"own-001 and own-002: {complaint}"):
        OverSplits(tests=(hits(1, 1), hits(1, 1, **{"split": 2, "run": "own-002", **changes})))


def test_splits_are_numbers_and_each_is_named_once():
    assert numbers("1,2,3") == (1, 2, 3)
    assert numbers(" 3, 1 ") == (3, 1)
    for wrong in ("", "1,", "one", "0", "1;2", "1,-2"):
        with pytest.raises(SettingsError, match="such as 1,2,3"):
            numbers(wrong)
    with pytest.raises(SettingsError, match="each split once"):
        numbers("1,2,1")


def test_each_split_is_tested_on_its_own_shards():
    changes = ["data.shards=/d/split{split}", "evaluate.frames=5"]
    assert for_split(changes, 2) == ["data.shards=/d/split2", "evaluate.frames=5"]
    with pytest.raises(SettingsError, match=r"of its own split.*write \{split\}"):
        for_split(["data.shards=/d/split1"], 2)


@pytest.fixture
def made(tmp_path):
    """Makes runs: `made(split=2, done=False, changes=[...])`, each newer than the one before."""
    count = 0

    def make(split=1, *, done=True, changes=(), **about):
        nonlocal count
        count += 1
        run, config = Run(tmp_path / f"own-{count:03d}"), load(Config, None, changes)
        settings = about.pop("settings", config.model_dump(mode="json"))
        fields = {"shards": f"/nowhere/split{split}", "dataset": "own", "split": split, "classes": ("a", "b")}
        run.describe(About(**{**fields, "digest": "", "settings": settings, "done": done, **about}), config)
        os.utime(run.folder / "run.json", (count, count))
        return run

    return make


def test_of_each_split_the_newest_finished_run_alike_is_taken(made, tmp_path):
    first, newer = made(), made()
    made(2)
    second = made(2, changes=["evaluate.frames=5", "experiment.gpu_id=1", "train.base=/elsewhere"])
    for unlike in ({"done": False}, {"changes": ["train.seed=2"]}, {"dataset": "other"}, {"classes": ("a", "c")}):
        made(2, **unlike)
    assert runs_of((1, 2), first, tmp_path, named=True) == [first, second]
    assert runs_of((2, 1), first, tmp_path, named=False) == [second, newer]
    assert runs_of((1,), second, tmp_path, named=True) == [newer]


def test_runs_of_an_earlier_version_are_alike_where_they_said_less(made, tmp_path):
    run = made()
    settings = load(Config).model_dump(mode="json")
    del settings["train"]["clip_norm"]
    earlier = made(2, settings=settings)
    assert runs_of((2,), run, tmp_path, named=True) == [earlier]
    made(3, settings={**settings, "of_long_ago": True})
    with pytest.raises(RunError, match="of_long_ago"):
        runs_of((3,), run, tmp_path, named=True)


def test_a_split_without_a_run_is_named_with_the_command_that_trains_it(made, tmp_path):
    run = made(shards="s3://bucket/own/split1")
    with pytest.raises(RunError) as told:
        runs_of((1, 2), run, tmp_path, named=True)
    command = f"stmul train -c {run.folder}/config.yaml --set data.shards=s3://bucket/own/split2"
    assert str(told.value).endswith(f"own split 2 with the data set and settings of own-001; train it with: {command}")
    made(2, done=False)
    with pytest.raises(RunError, match=r"\(own-002 is not finished\)"):
        runs_of((1, 2), run, tmp_path, named=True)
    made(3, changes=["train.seed=2"])
    with pytest.raises(RunError, match=r"\(own-003 and own-001: train.seed 2 and 1\)"):
        runs_of((3,), run, tmp_path, named=True)
    shards = tmp_path / "data/split1"
    shards.mkdir(parents=True)
    (shards / "settings.yaml").write_text("")
    with pytest.raises(RunError, match=f"stmul preprocess shards -c {shards}/settings.yaml --split 2 && stmul train"):
        runs_of((1, 2), made(shards=str(shards), changes=["train.seed=7"]), tmp_path, named=True)


def test_a_network_of_one_file_has_no_other_splits(made, tmp_path):
    with pytest.raises(RunError, match=r"official\.safetensors: a network .* is of one split"):
        runs_of((1, 2), made(network="official.safetensors"), tmp_path, named=True)


def test_a_run_with_the_settings_of_another_is_called_like_it(made):
    run = made()
    assert run_name(str(run.folder / "config.yaml"), "ucf101") == "own"
    assert run_name("here/mine.yaml", "ucf101") == "mine"
    assert run_name(None, "ucf101") == "ucf101"


def stmul(*words, code=0):
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, result.output
    return result.output


def test_two_splits_are_trained_by_the_commands_named_and_tested_together(tmp_path, monkeypatch, make_split):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        sizes = {"train": 4, "test": 3 * number, "width": 48, "height": 40, "frames": 14}
        make_split(tmp_path / f"split{number}", **sizes, split=number, seed=number)
    stmul("train", *(word for one in QUICK for word in ("--set", one)), "-u", "0", "--set", "data.shards=split1")
    told = stmul("test", "--splits", "1,2", code=1)
    assert not (tmp_path / "experiment/demo-001/results").exists()
    command = told.rpartition("train it with: stmul ")[2]
    assert "experiment/demo-002" in stmul(*shlex.split(command))
    out = stmul("test", "--splits", "2,1", "--set", "evaluate.mirror=false")
    assert "split 2   experiment/demo-002" in out
    assert "6 of 6 clips" in out
    tree = json.loads((tmp_path / "experiment/demo-002/splits/drawn-splits2-1-test.json").read_text())
    parts = [json.loads((tmp_path / one["scores"]).read_text()) for one in tree["splits"]]
    assert [part["split"] for part in parts] == [2, 1]
    assert not any(part["mirror"] for part in parts)
    for head, mean in tree["mean"].items():
        assert mean["top1"] == pytest.approx(np.mean([part["measures"][head]["top1"] for part in parts]))
    assert "such as 1,2,3" in stmul("test", "--splits", "1-3", code=2)
    assert "of its own split" in stmul("test", "--splits", "1,2", "--set", "data.shards=split1", code=2)


def test_measures_are_those_of_the_tests():
    test = hits(2, 2)
    assert OverSplits(tests=(test,)).of("joint") == (measures(test, "joint"),)
