"""Run folders: found by id, newest first, described in full, and gone on with only where nothing has changed."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import load
from shards.errors import ShardError
from stmul.config import Config
from stmul.errors import RunError
from stmul.runs import About, Run, find_run, new_run, run_of_network, runs, same_settings, unfinished

ABOUT = About(
    shards="data/drawn/split1",
    dataset="drawn",
    split=1,
    classes=("a", "b"),
    digest="d" * 64,
    settings={"train": {"seed": 1, "rates": [0.1, 0.01]}},
    start="from scratch",
)


def begun(folder: Path, name: str, about: About = ABOUT, age: int = 0) -> Run:
    """A described run; `age` in seconds."""
    run = Run(folder / name)
    run.describe(about, Config())
    written = (folder / name / "run.json").stat().st_mtime_ns - age * 10**9
    os.utime(folder / name / "run.json", ns=(written, written))
    return run


def test_what_a_run_is_about_is_read_back(tmp_path):
    run = begun(tmp_path, "demo-001")
    assert run.id == "demo-001"
    assert run.about() == ABOUT
    assert load(Config, run.folder / "config.yaml") == Config()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"classes": ["a"]}', '{"classes": 5}', "\udcff"])
def test_a_damaged_description_is_refused_by_name(tmp_path, text):
    run = begun(tmp_path, "demo-001")
    (run.folder / "run.json").write_text(text, errors="surrogateescape")
    with pytest.raises(RunError, match=r"demo-001/run\.json: not the description of a run"):
        run.about()


def test_a_folder_without_a_description_is_refused_by_name(tmp_path):
    with pytest.raises(RunError, match=r"run\.json: not the description of a run .*start a new run"):
        Run(tmp_path).about()


def test_runs_are_listed_oldest_first_and_other_folders_left_out(tmp_path):
    for name, age in (("b-001", 5), ("a-001", 20), ("c-001", 10)):
        begun(tmp_path, name, age=age)
    (tmp_path / "notes").mkdir()
    (tmp_path / "file").touch()
    assert [run.id for run in runs(tmp_path)] == ["a-001", "c-001", "b-001"]
    assert runs(tmp_path / "nowhere") == []


def test_a_run_is_found_by_its_id_or_as_the_newest(tmp_path):
    for name, age in (("demo-001", 0), ("demo-002", 9), ("ucf101-001", 5)):
        begun(tmp_path, name, age=age)
    assert find_run(tmp_path, "demo-002").id == "demo-002"
    assert find_run(tmp_path, "").id == "demo-001"
    with pytest.raises(RunError) as caught:
        find_run(tmp_path, "ucf11-001")
    assert str(caught.value) == (
        f"{tmp_path}: no run 'ucf11-001'; did you mean ucf101-001? (runs: demo-002, ucf101-001, demo-001)"
    )


def test_without_any_run_the_message_says_how_to_get_one(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError, match="no runs here; train one first: make train"):
            find_run(folder, "demo-001")


@pytest.mark.parametrize("name", ["demo", "my[set]", "a*b", "?"])
def test_a_new_run_takes_the_first_free_number(tmp_path, name):
    for number in (1, 2, 3):
        run = new_run(tmp_path / "experiment", name)
        assert run.id == f"{name}-{number:03d}"
        assert list(run.folder.iterdir()) == []
        run.describe(ABOUT, Config())
    (tmp_path / "experiment" / f"{name}-004").mkdir()  # begun by hand
    assert new_run(tmp_path / "experiment", name).id == f"{name}-005"
    assert new_run(tmp_path / "experiment", "other").id == "other-001"


def test_runs_begun_at_the_same_time_never_share_a_folder(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        begun_at_once = [pool.submit(new_run, tmp_path / "experiment", "demo") for _ in range(24)]
    assert len({future.result().id for future in begun_at_once}) == 24


def test_a_run_that_is_being_trained_is_refused_and_left_alone(tmp_path):
    run = begun(tmp_path, "demo-001")
    with run.held():
        (tmp_path / "demo-001" / "run.json.partial").touch()
        with pytest.raises(RunError, match=r"demo-001: another process is training this run\..* --fresh"), run.held():
            pass
        assert (tmp_path / "demo-001" / "run.json.partial").exists()
        with begun(tmp_path, "demo-002").held():
            pass
    with run.held():
        pass
    assert run.history() == []


def test_what_a_kill_left_half_written_is_removed_and_nothing_else(tmp_path):
    run = begun(tmp_path, "demo-001")
    for name in ("joint/epoch-0001.pt", "results/a.json.partial", "report.html.partial", "tensorboard/a.partial"):
        (run.folder / name).parent.mkdir(exist_ok=True)
        (run.folder / name).touch()
    before = set(run.folder.rglob("*"))
    for name in ("joint/epoch-0002.pt.partial", "joint/mid-epoch.pt.partial", "run.json.partial"):
        (run.folder / name).touch()
    with run.held():
        assert set(run.folder.rglob("*")) == before | {run.folder / "log.jsonl"}


def test_a_full_disk_is_said_in_one_line(tmp_path):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with pytest.raises(ShardError, match=r"log\.jsonl: cannot be written: No space left on device\. Check the disk"):
        Run(tmp_path).log({"stage": "joint", "epoch": 1})


def test_a_row_is_on_disk_before_the_log_goes_on(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((tmp_path / "log.jsonl").read_text()))
    Run(tmp_path).log({"epoch": 1})
    assert synced == ['{"epoch": 1}\n']


def test_a_stopped_run_goes_on_only_with_the_same_data_and_settings(tmp_path):
    begun(tmp_path, "demo-001", age=9)
    assert unfinished(tmp_path, ABOUT) == Run(tmp_path / "demo-001")
    assert unfinished(tmp_path, replace(ABOUT, shards="s3://elsewhere", start="other words")) is not None
    assert unfinished(tmp_path, replace(ABOUT, digest="e" * 64)) is None
    assert unfinished(tmp_path, replace(ABOUT, settings={"train": {"seed": 2}})) is None
    begun(tmp_path, "demo-002", age=5)
    assert unfinished(tmp_path, ABOUT) == Run(tmp_path / "demo-002")
    begun(tmp_path, "demo-002", replace(ABOUT, done=True))
    assert unfinished(tmp_path, ABOUT) == Run(tmp_path / "demo-001")


def test_a_damaged_run_does_not_stand_in_the_way_of_others(tmp_path):
    begun(tmp_path, "demo-001", age=9)
    (begun(tmp_path, "demo-002").folder / "run.json").write_text("{}")
    assert unfinished(tmp_path, ABOUT) == Run(tmp_path / "demo-001")


rows = st.lists(
    st.fixed_dictionaries(
        {
            "stage": st.sampled_from(["appearance", "motion", "joint"]),
            "epoch": st.integers(1, 4),
            "loss": st.floats(0, 10),
        }
    ),
    max_size=12,
)


@given(rows)
def test_the_history_has_one_row_for_each_epoch_the_last_one_logged(tmp_path_factory, logged):
    run = Run(tmp_path_factory.mktemp("run"))
    for row in logged:
        run.log(row)
    last = {(row["stage"], row["epoch"]): row for row in logged}
    order = ["appearance", "motion", "joint"]
    assert run.history() == sorted(last.values(), key=lambda row: (order.index(row["stage"]), row["epoch"]))


@pytest.mark.parametrize("torn", [b"{", b'{"stage": "joint", "ep', b'{"stage": "\xc3'])
def test_half_a_line_in_the_log_costs_that_line_alone(tmp_path, torn):
    run, row = Run(tmp_path), {"stage": "joint", "epoch": 1, "loss": 1.0}
    run.log(row)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(torn)
    assert run.history() == [row]
    run.log({**row, "epoch": 2})
    assert run.history() == [row, {**row, "epoch": 2}]


def test_each_row_of_the_log_is_a_line_of_json(tmp_path):
    run = Run(tmp_path)
    for epoch in (1, 2):
        run.log({"stage": "joint", "epoch": epoch})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_checkpoints_are_found_in_the_order_of_their_epochs(tmp_path):
    run = Run(tmp_path)
    assert run.checkpoints("joint") == {}
    assert run.newest("joint") is None
    (tmp_path / "joint").mkdir()
    for epoch in (2, 10000, 9, 9999):
        (tmp_path / "joint" / f"epoch-{epoch:04d}.pt").touch()
    for stray in ("epoch-0011.pt.partial", "epoch-best.pt", "epoch-.pt", "notes.txt"):
        (tmp_path / "joint" / stray).touch()
    assert list(run.checkpoints("joint")) == [2, 9, 9999, 10000]
    assert run.checkpoints("joint")[9] == tmp_path / "joint" / "epoch-0009.pt"
    assert run.newest("joint") == tmp_path / "joint" / "epoch-10000.pt"
    run.mid_epoch("joint").touch()
    assert run.newest("joint") == run.mid_epoch("joint") == tmp_path / "joint" / "mid-epoch.pt"
    assert run.resumable("joint")[-2] == run.epoch("joint", 10000)
    assert run.newest("motion") is None


def test_a_newer_epoch_removes_what_it_makes_superfluous(tmp_path):
    run = Run(tmp_path)
    (tmp_path / "joint").mkdir()
    paths = [run.epoch("joint", epoch) for epoch in (1, 2, 3, 10)]
    for path in (*paths, run.mid_epoch("joint")):
        path.touch()
    run.tidy("joint", 2)
    assert run.resumable("joint") == paths[-2:]
    run.tidy("joint", 9)
    assert run.resumable("joint") == paths[-2:]


def test_a_network_from_elsewhere_gets_a_folder_that_is_nobody_elses(tmp_path):
    path = Path("nets/official.safetensors")
    about = About(shards="", dataset="", split=0, classes=(), digest="", settings={}, network=str(path))
    first = run_of_network(tmp_path, path)
    assert first.id == "official"
    first.describe(about, Config())
    assert run_of_network(tmp_path, path) == first
    assert run_of_network(tmp_path, Path("other/official.safetensors")).id == "official-2"
    (tmp_path / "official-2").mkdir()  # somebody's notes
    assert run_of_network(tmp_path, Path("other/official.safetensors")).id == "official-3"


def test_where_a_run_was_trained_is_noted_once_for_each_place_and_half_a_line_does_not_count(tmp_path):
    run = begun(tmp_path, "demo-001")
    assert run.environment() == {}
    for place in ({"machine": "one"}, {"machine": "one"}, {"machine": "two", "code": "commit 1234"}):
        run.note_environment(place)
    with (run.folder / "environment.jsonl").open("a") as file:
        file.write('{"machine": "th')
    assert run.environment() == {"machine": "two", "code": "commit 1234"}
    assert len((run.folder / "environment.jsonl").read_text().splitlines()) == 3


def test_settings_that_came_later_count_as_their_defaults_in_runs_that_lack_them():
    now = Config().model_dump(mode="json", exclude={"train": {"keep"}, "experiment": {"folder"}})
    then = {**now, "train": {name: value for name, value in now["train"].items() if name != "hold_out"}}
    then["train"]["keep"] = 7  # left out by now, for it changes nothing of what is learnt
    assert same_settings(then, now)
    assert same_settings({name: value for name, value in then.items() if name != "evaluate"}, now)
    held = {**now, "train": {**now["train"], "hold_out": 0.1}}
    assert not same_settings(then, held)
    assert same_settings(held, held)
    assert not same_settings({**now, "gone": 1}, now)
    assert not same_settings({**now, "train": {**now["train"], "gone": 1}}, now)
