"""The commands: which data set and why, what it takes, what came out; every known error is one line."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from preprocess import cli
from preprocess.build import Progress
from preprocess.building.estimate import bytes_in_words, estimate_build, in_words
from preprocess.building.plan import planned
from preprocess.config import Preprocess
from preprocess.datasets import find_dataset
from preprocess.display import _Pace, build_display
from preprocess.sources.choice import choose
from shards.split import open_split

TINY = ["--set", "preprocess.rgb.short_side=32", "--flow", "dis", "--workers", "1"]
DRAWN = [f"--set=preprocess.drawn.{key}={value}" for key, value in {"train": 32, "test": 16, "frames": 12}.items()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, video_folders: Callable[..., Path]) -> Path:
    return video_folders(tmp_path_factory.mktemp("data") / "small", width=40, height=30)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli.preprocess, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def line(result: Result, number: int) -> str:
    return result.output.splitlines()[number]


# Which data set


def test_a_named_folder_is_taken(root):
    result = run("shards", "--root", root, *TINY, "--dry-run")
    assert result.exit_code == 0
    assert line(result, 0).startswith("data set: small, split 1: 2 classes, 4 train and 2 test videos")
    assert line(result, 0).endswith("(named)")


@pytest.mark.parametrize("name", ["UCF101", "HMDB51", "ucf101"])
def test_the_usual_folder_is_taken_where_none_is_named(name, root, elsewhere):
    (elsewhere / "dataset").mkdir()
    (elsewhere / "dataset" / name).symlink_to(root)
    kind = ["--set", "preprocess.dataset=ucf101"] if name == "HMDB51" else []
    choice = choose(Preprocess())
    assert choice.root == Path("dataset") / name
    assert "no other was named" in choice.why
    if not kind:
        result = run("shards", *TINY, "--dry-run")
        assert f"in dataset/{name} (found there; no other was named)" in line(result, 0)


def test_the_drawn_set_is_taken_where_there_is_nothing_with_its_own_settings():
    result = run("shards", *DRAWN, "--classes", "WarmShiftMatched,CoolZoomCrossed", "--limit", "1", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert line(result, 0) == (
        "data set: the drawn demo set in dataset/drawn (no data set was named, and neither dataset/UCF101 nor"
        " dataset/HMDB51 is there); flow dis, short side 72"
    )
    with open_split("data/drawn/split1") as split:
        assert split.manifest.classes == ("CoolZoomCrossed", "WarmShiftMatched")
        assert split.manifest.made["record"]["rgb"]["short_side"] == 72


def test_named_options_win_over_set_which_wins_over_the_configuration(root, elsewhere):
    config = elsewhere / "mine.yaml"
    config.write_text(f"preprocess: {{root: {root}, split: 2, limit: 2, per_shard: 7, flow: {{method: farneback}}}}\n")
    result = run("shards", "-c", config, "-s", "preprocess.split=1", "-s", "preprocess.limit=1", "--split", 3, *TINY)
    assert result.exit_code == 0, result.output
    with open_split("data/small/split3") as split:
        assert split.manifest.made["record"]["flow_method"] == "dis"
        assert split.manifest.made["per_shard"] == 7
        assert {name: part.records for name, part in split.manifest.parts.items()} == {"train": 2, "test": 2}


def test_a_folder_whose_name_looks_like_a_number_is_a_folder(root, elsewhere):
    (elsewhere / "7").symlink_to(root)
    result = run("shards", "--root", "7", "--out", "8", *TINY, "--dry-run")
    assert result.exit_code == 0
    assert re.search(r"in \d+ shards? in 8/small/split1", result.output)


# What it takes, and what came out


def test_the_estimate_comes_before_anything_is_done(root, elsewhere):
    result = run("shards", "--root", root, *TINY, "--dry-run")
    lines = result.output.splitlines()
    estimate = next(one for one in lines if one.startswith("estimate: "))
    assert lines[lines.index(estimate) - 1] == "all 6 records are made: no record yet"
    assert re.search(r"6 videos, about 42 frames of 42x32; dis does [\d,.]+ pairs/s on one core here", estimate)
    assert re.search(r"about \d+ s with 1 process; about \d+ kB in 3 shards in data/small/split1", estimate)
    assert re.search(r"with \d+ kB of indexes; .*are free$", estimate)
    assert re.search(r"train\s*│\s*4\s*│\s*28\s*│\s*2\s*│ \d+ kB │\s*\d+ kB │", re.sub(r"  +", " ", result.output))
    assert line(result, -1) == "dry run: nothing was built"
    assert list(elsewhere.iterdir()) == []


def test_the_estimate_is_about_right(root):
    dataset = find_dataset(root)
    settings = Preprocess.model_validate({"rgb": {"short_side": 32}, "flow": {"method": "dis"}})
    estimate = estimate_build(dataset, settings, 2, planned(dataset, settings.per_shard))
    result = run("shards", "--root", root, *TINY)
    assert result.exit_code == 0, result.output
    with open_split("data/small/split1") as split:
        parts = split.manifest.parts.values()
        assert sum(part.frames for part in parts) == estimate.frames
        assert 0.7 < sum(shard.size for part in parts for shard in part.shards) / estimate.bytes < 1.5
        assert {name: len(part.shards) for name, part in split.manifest.parts.items()} == {"train": 2, "test": 1}
        assert {name: part.index.size for name, part in split.manifest.parts.items()} == {
            name: part.index_bytes for name, part in estimate.parts.items()
        }


def test_a_build_ends_in_a_table_and_a_second_one_has_nothing_to_do(root):
    first = run("shards", "--root", root, *TINY)
    assert first.exit_code == 0, first.output
    assert re.search(r"train\s*│\s*4\s*│\s*28\s*│\s*2\s*│", first.output)
    assert re.search(r"6 records \(6 made\) in \d+ s", first.output)
    assert json.loads(Path("data/latest.json").read_text()) == {"shards": "data/small/split1"}
    again = run("shards", "--root", root, *TINY)
    assert again.exit_code == 0
    assert "data/small/split1: complete, and made with these settings; nothing to do" in again.output
    assert "estimate" not in again.output


def test_another_split_is_announced_and_built_as_links(root):
    run("shards", "--root", root, *TINY)
    again = run("shards", "--root", root, *TINY, "--dry-run")
    assert line(again, -1) == "data/small/split1: complete, and made with these settings; nothing to do"
    result = run("shards", "--root", root, *TINY, "--split", 2)
    assert result.exit_code == 0, result.output
    assert "all 6 records are taken over" in result.output
    assert "3 of 3 shards stand in another split already" in result.output
    assert re.search(r"\d+ kB of the shards are files of other splits too, and on the disk once", result.output)
    files = [path for split in (1, 2) for path in Path(f"data/small/split{split}").glob("*.tar")]
    assert len(files) == 6
    assert len({path.stat().st_ino for path in files}) == 3


def test_shards_of_other_settings_are_refused_before_any_work(root):
    run("shards", "--root", root, *TINY)
    result = run("shards", "--root", root, *TINY, "--set", "preprocess.rgb.quality=80")
    assert result.exit_code == 1
    assert "record.rgb.quality: 90 then, 80 now" in line(result, -1)
    assert line(result, -1).endswith("with --rebuild: all 6 records are made")
    rebuilt = run("shards", "--root", root, *TINY, "--set", "preprocess.rgb.quality=80", "--rebuild")
    assert rebuilt.exit_code == 0
    assert "all 6 records are made: record.rgb.quality: 90 then, 80 now" in rebuilt.output


def test_a_changed_file_is_named_before_just_its_record_is_made_anew(elsewhere, video_folders):
    root = video_folders(elsewhere / "small", width=40, height=30)
    run("shards", "--root", root, *TINY)
    path = root / "videos/a/v_a_g02_c01.avi"
    data = bytearray(path.read_bytes())
    data[data.index(b"movi") - 30] ^= 1  # of equal size, in the padding
    path.write_bytes(data)
    later = path.stat().st_mtime_ns + 60_000_000_000
    os.utime(path, ns=(later, later))
    refused = run("shards", "--root", root, *TINY)
    assert refused.exit_code == 1
    assert "holds other shards (of other files than are there now: v_a_g02_c01)" in line(refused, -1)
    words = "5 records are taken over, 1 is made: v_a_g02_c01 (another file)"
    assert line(refused, -1).endswith(f"with --rebuild: {words}")
    rebuilt = run("shards", "--root", root, *TINY, "--rebuild")
    assert rebuilt.exit_code == 0, rebuilt.output
    assert words in rebuilt.output
    assert "6 records (1 made, 5 taken over)" in rebuilt.output


def test_what_an_earlier_run_finished_is_kept_and_said_so(root, monkeypatch):
    from preprocess.building import schedule

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(schedule.Schedule, "_pack", stopped)
        first = run("shards", "--root", root, *TINY)
    assert first.exit_code == 130
    result = run("shards", "--root", root, *TINY, "--dry-run")
    kept, made = re.search(
        r"(\d) records? (?:is|are) kept from an earlier run, (\d) (?:is|are) made", result.output
    ).groups()
    assert int(kept) >= 1
    assert int(kept) + int(made) == 6


def test_broken_videos_are_told_at_the_end(elsewhere, video_folders):
    root = video_folders(elsewhere / "small", width=40, height=30)
    (root / "videos/b/v_b_g01_c01.avi").write_bytes(b"")
    result = run("shards", "--root", root, *TINY)
    assert result.exit_code == 0, result.output
    assert "1 videos could not be used; data/small/split1/failures.jsonl says why" in result.output
    assert "v_b_g01_c01.avi: the file is empty" in result.output
    assert "warning: no video of class b is left in test" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--root", "nowhere"], 1, "nowhere: no such folder"),
        (["--flow", "tvl2"], 2, "--flow tvl2: preprocess.flow.method: expected 'tvl1'"),
        (["--flow", "tvl2"], 2, "'raft', found 'tvl2'; did you mean tvl1?"),
        (["--dataset", "drawm"], 2, "found 'drawm'; did you mean drawn?"),
        (["--engine", "rai"], 2, "did you mean ray?"),
        (["--backend", "gpu"], 2, "preprocess.flow.backend"),
        (["--flow", "dis", "--backend", "cuda"], 2, "expected one of auto, opencv for dis, found cuda"),
        (["--set", "preprocess.flow.metod=dis"], 2, "no such setting; did you mean preprocess.flow.method?"),
        (["--set", "preprocess.flow.parameters={lamda: 1}"], 2, "did you mean lambda?"),
        (["--set", "preprocess.rgb.short_side=8"], 2, "greater than or equal to 16, found 8"),
        (["--dataset", "folders"], 2, "name its folder with --root"),
        (["-c", "ucf102"], 2, "did you mean ucf101?"),
        (["--dataset", "ucf101"], 1, "dataset/UCF101"),
        (["--classes", "c"], 1, "'c'"),
    ],
)
def test_wrong_input_is_one_clear_line(root, arguments, code, message):
    named = [] if arguments[0] in ("--root", "--dataset", "-c") else ["--root", root]
    result = run("shards", *named, *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert line(result, -1).startswith("Error: ")


def test_an_unwritable_output_is_one_clear_line(root, elsewhere):
    (elsewhere / "file").write_text("")
    result = run("shards", "--root", root, *TINY, "--out", "file")
    assert result.exit_code == 1
    assert line(result, -1).startswith("Error: file: shards cannot be written there")
    result = run("annotate", "--root", root, "--out", "file")
    assert result.exit_code == 1
    assert line(result, -1).startswith("Error: file: cannot be written")


# Annotations, and the drawn set


def test_annotations_hold_labels_from_1_and_decoded_frame_counts(root, elsewhere):
    result = run("annotate", "--root", root, "--out", "notes", "--workers", "1")
    assert result.exit_code == 0, result.output
    content = json.loads((elsewhere / "notes/annot01.json").read_text())
    assert content["labels"] == {"a": 1, "b": 2}
    assert content["validation"]["v_b_g01_c01"] == {"set": "validation", "label": 2, "nframes": 7}
    assert {about["nframes"] for about in content["training"].values()} == {6, 8}


def test_annotations_leave_out_what_cannot_be_counted_and_say_so(elsewhere, video_folders):
    root = video_folders(elsewhere / "small", width=40, height=30)
    (root / "videos/a/v_a_g01_c01.avi").write_bytes(b"")
    result = run("annotate", "--root", root, "--split", 2, "--count", "header", "--workers", "1")
    assert result.exit_code == 0, result.output
    assert "without nframes: " in result.output
    content = json.loads((root / "annotations/annot02.json").read_text())
    assert "nframes" not in content["training"]["v_a_g01_c01"]
    assert content["training"]["v_b_g01_c01"]["nframes"] == 7
    run("annotate", "--root", root, "--split", 2, "--count", "none", "--out", "none")
    assert "nframes" not in (elsewhere / "none/annot02.json").read_text()


def test_annotations_go_where_a_folder_can_be(root, elsewhere):
    (elsewhere / "file").write_text("")
    result = run("annotate", "--root", root, "--count", "none", "--out", "file")
    assert result.exit_code == 1
    assert "expected a folder, found a file, file" in result.output


def test_the_drawn_set_is_drawn_where_one_likes(elsewhere):
    result = run("draw", "mine", *DRAWN)
    assert result.exit_code == 0, result.output
    assert result.output == "mine: 32 training and 16 test videos, seed 1\n"
    assert len(list((elsewhere / "mine/videos").rglob("*.avi"))) == 48


# Display


def test_time_left_is_reckoned_from_what_was_really_made(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = _Pace()
    assert pace.words(Progress(stage="videos", done=0, total=100)) == ""
    now = 1.0
    assert pace.words(Progress(stage="videos", done=50, total=100, kept=50)) == ""
    now = 100.0
    words = pace.words(Progress(stage="videos", done=60, total=100, kept=50, failed=2))
    assert words == "6.0/min  7 min left  2 failed"


def test_disk_to_come_is_reckoned_from_the_records_there_are():
    pace = _Pace()
    assert pace.words(Progress(stage="shards", done=0, total=4)) == ""
    pace.words(Progress(stage="videos", done=40, total=100, kept=40))  # in shards that were packed before
    pace.words(Progress(stage="videos", done=50, total=100, kept=40, bytes=20_000_000, shard="train-000000.tar"))
    assert pace.words(Progress(stage="shards", done=0, total=4)) == "200 MB to come"
    words = pace.words(Progress(stage="shards", done=1, total=4, bytes=60_000_000, shard="train-000000.tar"))
    assert words == "60 MB  140 MB to come  train-000000.tar"
    words = pace.words(Progress(stage="shards", done=4, total=4, bytes=220_000_000, shard="test-000000.tar"))
    assert words == "220 MB  test-000000.tar"


def test_of_extracted_frames_disk_to_come_is_reckoned_from_shards():
    words = _Pace().words(Progress(stage="shards", done=1, total=4, bytes=60_000_000, shard="train-000000.tar"))
    assert words == "60 MB  180 MB to come  train-000000.tar"


def test_a_terminal_gets_a_bar_for_each_stage():
    from rich.console import Console

    console = Console(force_terminal=True, width=80, record=True)  # the narrowest that there is
    with build_display(console) as watch:
        watch(Progress(stage="videos", done=1, total=13320))
        watch(Progress(stage="videos", done=13320, total=13320, failed=1))
        watch(Progress(stage="shards", done=105, total=210, bytes=5_000_000_000, shard="train-000000.tar"))
    shown = console.export_text()
    assert re.search(r"videos.*13320/13320.*1 failed", shown)
    assert re.search(r"shards.*105/210.*5.0 GB  5.0 GB to come  train-000000.tar", shown)


def test_where_there_is_no_terminal_a_line_comes_for_each_tenth_and_after_long_silence(monkeypatch):
    from io import StringIO

    from rich.console import Console

    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=StringIO(), width=120)
    with build_display(console) as watch:
        for done in range(101):
            now += 1.0
            watch(Progress(stage="videos", done=done, total=100))
        assert len(console.file.getvalue().splitlines()) == 10
        watch(Progress(stage="videos", done=100, total=1000))
        now += 700
        watch(Progress(stage="videos", done=101, total=1000))
    assert console.file.getvalue().splitlines()[-1].startswith("videos      101/1000")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (75, "75 s"), (600, "10 min"), (12000, "3 h 20 min"), (1_500_000, "17 days (416 h)")],
)
def test_durations_read_well(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(840_000, "840 kB"), (12.3e6, "12 MB"), (3.44e9, "3.4 GB"), (2e12, "2.0 TB")]
)
def test_sizes_read_well(count, words):
    assert bytes_in_words(count) == words
