"""The commands filter, merge and append: what they say before, do, and say after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from shards.cli import shards
from shards.split import open_split
from tests.shards.test_combine import CLASSES, contents, made, some


def run(*words: object, code: int = 0, stdin: str = "") -> str:
    result = CliRunner().invoke(shards, [*map(str, words)], input=stdin)
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    videos = [("train", f"v_{name}", CLASSES[i % 3]) for i, name in enumerate("abcdef")]
    return made(tmp_path / "ours", [*videos, *some("test", "tu")])


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return made(tmp_path / "theirs", [*some("train", "xyz"), *some("test", "w", "wave")], classes=("wave", "climb"))


def names(folder: Path, part: str = "train") -> list[str]:
    with open_split(folder) as split:
        return [row.name for row in split.index(part)]


def words(line: str) -> Sequence[str]:
    return line.split()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(ours: Path, theirs: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    for command in (
        ("filter", ours, tmp_path / "out", "--classes", "climb,Archery"),
        ("merge", ours, theirs, tmp_path / "out"),
        ("append", ours, theirs),
    ):
        said = run(*command, "--dry-run")
        assert "nothing was written (--dry-run)" in said
        assert "MiB to be written" in said
    assert contents(tmp_path) == before


def test_it_says_what_is_taken_of_each_split(ours: Path, theirs: Path, tmp_path: Path) -> None:
    said = run("merge", ours, theirs, tmp_path / "out").splitlines()
    assert run("merge", ours, theirs, tmp_path / "out").startswith(f"{tmp_path / 'out'}: is there already: 3 test")
    assert said[0] == f"from 1    {ours}: drawn, split 1, tar"
    assert said[2] == "classes   5: Archery, climb, climb_stairs, kick, wave"
    rows = [words(line)[:7] for line in said]
    assert ["train", "1", "6", "6", "3", "3", "0"] in rows  # part, from, records, of, shards, as they are, packed
    assert ["train", "2", "3", "3", "2", "1", "1"] in rows or ["train", "2", "3", "3", "2", "2", "0"] in rows
    assert ["test", "2", "1", "1", "1", "0", "1"] in rows
    assert said[-1].startswith(f"{tmp_path / 'out'}: 3 test + 9 train records, 5 classes, digest ")


def test_classes_videos_and_parts_are_kept(ours: Path, tmp_path: Path) -> None:
    run("filter", ours, tmp_path / "a", "--classes", "climb, Archery", "--part", "train")
    assert names(tmp_path / "a") == ["v_a", "v_b", "v_d", "v_e"]
    (tmp_path / "names.txt").write_text("v_a\n\n  v_f \n")
    run("filter", ours, tmp_path / "b", "--names", tmp_path / "names.txt")
    assert names(tmp_path / "b") == ["v_a", "v_f"]
    run("filter", ours, tmp_path / "c", "--without", "-", "--part", "train,test", stdin="v_a\nv_t\n")
    assert names(tmp_path / "c") == ["v_c", "v_d", "v_e", "v_f", "v_b"]
    assert names(tmp_path / "c", "test") == ["v_u"]


def test_a_class_may_hold_commas(tmp_path: Path) -> None:
    made(tmp_path / "odd", some("train", "ab", "eat, drink"), classes=("eat, drink", "eat"))
    said = run("filter", tmp_path / "odd", tmp_path / "out", "--classes", "eat, drink", "--dry-run")
    assert "classes   1: eat, drink\n" in said


def test_append_says_what_it_adds_and_that_trainings_begin_anew(ours: Path, theirs: Path) -> None:
    said = run("append", ours, theirs)
    assert "note      1 new class: wave" in said
    assert f"{ours}: 4 records more; 3 test + 9 train records, 5 classes, digest " in said
    assert said.splitlines()[-1].startswith("training  one begun before does not go on")
    assert run("append", ours, theirs) == f"{ours}: holds all records of {theirs} already; nothing was appended\n"
    assert run("verify", ours) == f"{ours}: all 12 records are whole\n"


def test_show_tells_where_a_combined_split_came_from(ours: Path, theirs: Path, tmp_path: Path) -> None:
    run("filter", ours, tmp_path / "some", "--classes", "climb", "--keep-labels")
    run("append", tmp_path / "some", theirs)
    said = run("show", tmp_path / "some")
    with open_split(ours) as split:
        digest = split.manifest.digest[:12]
    assert f"made      from drawn, split 1: 2 test + 6 train records, digest {digest}\n" in said
    assert f"made      filter {digest}: classes climb, keep_labels\n" in said
    assert "made      append " in said


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["filter", "OURS", "OUT"], 2, "nothing is left out: give --classes, --names, --without or --part"),
        (["filter", "OURS", "OUT", "--classes", "climbs"], 1, "no class 'climbs' among 4; did you mean climb?"),
        (["filter", "OURS", "OUT.lmdb", "--classes", "climb"], 1, "expected a folder for tar shards"),
        (["filter", "OURS", "s3://me:secret@b/x", "--classes", "climb"], 1, "expected"),
        (["filter", "nowhere", "OUT", "--classes", "climb"], 1, "Error: nowhere: no such folder"),
        (["filter", "OURS", "OUT", "--names", "OURS/train.index"], 1, "expected names, one a line, in UTF-8"),
        (["merge", "OURS", "OUT"], 2, "expected two splits at least"),
        (["merge", "OURS", "OURS", "OUT"], 1, "8 records (v_t, v_u, v_a, ...) are in OURS, too"),
        (["merge", "OURS", "THEIRS", "OUT", "--rename", "wave"], 2, "expected OLD=NEW"),
        (["merge", "OURS", "THEIRS", "OUT", "--rename", "wafe=x"], 1, "no class 'wafe'; did you mean wave?"),
        (["merge", "OURS", "THEIRS", "THEIRS"], 1, "already holds another split"),
        (["append", "https://me:secret@host/x", "OURS"], 1, "https://host/x: shards are appended in a folder"),
        (["append", "OURS/train-000000.tar", "THEIRS"], 1, "not a split in a folder"),
        (["append", "OURS", "nowhere"], 1, "Error: nowhere: no such folder"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    command: list[str], code: int, told: str, ours: Path, theirs: Path, tmp_path: Path
) -> None:
    before = contents(tmp_path)
    places = {"OURS": ours, "THEIRS": theirs, "OUT": tmp_path / "out"}
    given = []
    for word in command:
        for name, place in places.items():
            word, told = word.replace(name, str(place)), told.replace(name, str(place))
        given.append(word)
    said = run(*given, code=code)
    assert told in said
    assert said.count("Error") == 1
    assert "secret" not in said
    assert contents(tmp_path) == before
