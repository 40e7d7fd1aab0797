"""Builds: every clip length, the same bytes however they come about, nothing done twice, nothing broken let through."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.build import BuildReport, Progress, build, read_failures
from preprocess.building.engines import Died, here, processes
from preprocess.building.work import Task
from preprocess.building.workplace import workplace
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.datasets import Dataset, find_dataset, reduced
from preprocess.errors import PreprocessError, VideoError
from preprocess.flow import compute, gray_of
from preprocess.record import how_made, make_record
from preprocess.sources.listing import Video
from preprocess.video import read_video
from shards.errors import ShardError
from shards.format import decode, encode, key_of
from shards.latest import latest
from shards.record import quantise
from shards.split import open_split

SMALL = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=2, workers=1)
SIZE = {"width": 40, "height": 30}
build_here = partial(build, engine=here)  # the same functions in this process: what a build does, without its processes

Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, video_folders: Folders) -> Path:
    """Two classes, four groups: split n tests on group n."""
    return video_folders(tmp_path_factory.mktemp("data") / "small", train=3, **SIZE)


@pytest.fixture
def own_root(tmp_path: Path, video_folders: Folders) -> Path:
    """The same, to break."""
    return video_folders(tmp_path / "small", train=3, **SIZE)


@pytest.fixture(scope="module")
def reference(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of split 1, from a build that nothing disturbed."""
    return files(build_here(find_dataset(root), SMALL, tmp_path_factory.mktemp("out")).folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def keys(report: BuildReport, part: str) -> list[str]:
    with open_split(report.folder) as split:
        return [split.index(part).row(record).key for record in range(len(split.index(part)))]


def video_of(path: Path, label: int = 0) -> Video:
    return Video(name=path.stem, path=path, label=label, class_name="a")


# One record


@pytest.mark.parametrize("frames", range(1, 13))
def test_a_video_of_any_length_makes_a_record(tmp_path, write_video, frames):
    path = write_video(tmp_path / "v.avi", frames=frames, **SIZE)
    record = decode(encode(make_record(video_of(path), SMALL)))
    assert record.frames == record.decoded_frames == record.header_frames == frames
    assert len(record.flow) == 2 * (frames - 1)
    assert (record.rgb.width, record.rgb.height, record.flow.width, record.flow.height) == (42, 32, 42, 32)
    assert record.source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_record_says_how_it_was_made(tmp_path, write_video):
    record = make_record(video_of(write_video(tmp_path / "v.avi", frames=2)), SMALL)
    assert record.rgb.encoder["quality"] == 90
    assert record.rgb.encoder["subsampling"] == "4:2:0"
    assert str(record.rgb.encoder["library"]).startswith("simplejpeg ")
    assert record.flow.encoder["quality"] == 95
    assert record.flow_made.method == "dis"
    assert record.flow_made.parameters == {"preset": 2}
    assert record.flow_made.library.startswith("opencv ")


def test_its_jpegs_are_baseline_and_hold_the_frames_and_the_quantised_flow(tmp_path, write_video):
    path = write_video(tmp_path / "v.avi", frames=3, width=64, height=48, dx=2, dy=-1)
    settings = SMALL.model_copy(update={"rgb": Rgb(short_side=48)})
    record = make_record(video_of(path), settings)
    frames = read_video(path, 48).frames_THWC
    for image, frame in enumerate(frames):
        with Image.open(io.BytesIO(record.rgb[image])) as picture:
            assert (picture.mode, picture.size) == ("RGB", (64, 48))
            assert "progressive" not in picture.info
            assert picture.layer[0][1:3] == (2, 2)  # 4:2:0
            assert np.abs(np.asarray(picture).astype(int) - frame).mean() < 8  # chroma has half the resolution
    flows = list(compute("dis", [gray_of(frame) for frame in frames]))
    for image in range(4):
        with Image.open(io.BytesIO(record.flow[image])) as picture:
            assert picture.mode == "L"
            levels = quantise(flows[image // 2][..., image % 2])
            assert np.abs(np.asarray(picture).astype(int) - levels).max() <= 6
    horizontal, vertical = (np.asarray(Image.open(io.BytesIO(record.flow[image]))) for image in (0, 1))
    assert np.median(horizontal) == quantise(np.array(2.0))
    assert np.median(vertical) == quantise(np.array(-1.0))


def test_the_same_file_makes_the_same_bytes_and_other_settings_others(tmp_path, write_video):
    video = video_of(write_video(tmp_path / "v.avi", **SIZE))
    once = encode(make_record(video, SMALL))
    assert encode(make_record(video, SMALL)) == once
    for change in ({"rgb": Rgb(short_side=34)}, {"flow": Flow(method="dis", parameters={"preset": 0})}):
        other = SMALL.model_copy(update=change)
        assert encode(make_record(video, other)) != once
        assert how_made(other) != how_made(SMALL)


@pytest.mark.parametrize(
    "name", ["hmdb51/videos", "ucf101-clips/videos/ApplyEyeMakeup", "ucf101-clips/videos/Kayaking"]
)
def test_real_clips_make_records(real_data, name):
    small = SMALL.model_copy(update={"rgb": Rgb(short_side=16), "flow": Flow(method="dis", parameters={"preset": 0})})
    for path in sorted((real_data / name).rglob("*.avi")):
        record = decode(encode(make_record(video_of(path), small)))
        assert record.frames == record.decoded_frames >= 40
        assert record.fps[0] / record.fps[1] > 20


# Whole builds


def test_a_build_makes_a_split_that_reads_back(root, tmp_path):
    told: list[Progress] = []
    report = build(find_dataset(root), SMALL, tmp_path, told.append)
    assert report.new
    assert report.how == {"made": 8}
    assert report.folder == tmp_path / "small" / "split1"
    assert {name: part.records for name, part in report.manifest.parts.items()} == {"train": 6, "test": 2}
    assert [len(part.shards) for part in report.manifest.parts.values()] == [3, 1]
    with open_split(latest(tmp_path)) as split:
        assert split.manifest.classes == ("a", "b")
        for part in ("train", "test"):
            for record in range(len(split.index(part))):
                content = decode(split.read(part, record))
                assert split.manifest.classes[content.label] == content.class_name == content.name[2]
    assert told[:2] == [Progress(stage="videos", done=0, total=8), Progress(stage="shards", done=0, total=4)]
    assert (told[-1].stage, told[-1].done, told[-1].total, told[-1].bytes) == ("shards", 4, 4, report.bytes)
    assert {one.shard for one in told} == {"", *(path.name for path in report.folder.glob("*.tar"))}
    for stage in ("videos", "shards"):
        counts = [one.done for one in told if one.stage == stage]
        assert counts == [*range(len(counts))]
    assert not (tmp_path / ".work").exists()


def test_the_number_of_workers_does_not_change_a_byte(root, tmp_path, reference):
    report = build(find_dataset(root), SMALL.model_copy(update={"workers": 2}), tmp_path)
    assert files(report.folder) == reference


def test_the_manifest_says_how_it_was_made_but_not_when_or_where(root, reference):
    manifest = reference["manifest.json"].decode()
    made = json.loads(manifest)["made"]
    assert made["record"]["flow_method"] == "dis"
    assert made["record"]["rgb"]["short_side"] == 32
    assert made["per_shard"] == 2
    assert str(root) not in manifest
    assert os.uname().nodename not in manifest


def test_records_of_a_class_do_not_lie_together(root, tmp_path):
    report = build_here(find_dataset(root), SMALL, tmp_path)
    with open_split(report.folder) as split:
        assert split.index("train").labels().tolist() != sorted(split.index("train").labels().tolist())


# Stopped and run again


@pytest.mark.parametrize("stop", range(1, 14, 2))
def test_a_build_stopped_anywhere_goes_on_and_makes_the_same_bytes(root, tmp_path, reference, stop):
    told: list[Progress] = []

    def watch(progress: Progress) -> None:
        told.append(progress)
        if len(told) > stop:
            raise KeyboardInterrupt

    dataset = find_dataset(root)
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, SMALL, tmp_path, watch)
    assert not (tmp_path / "latest.json").exists()
    report = build_here(dataset, SMALL, tmp_path)
    done = max(one.done for one in told if one.stage == "videos")
    assert report.how.get("kept", 0) == done
    assert report.how.get("made", 0) == 8 - done
    assert files(report.folder) == reference


def test_finished_records_go_when_their_shard_is_safe(root, tmp_path):
    most: list[int] = []

    def watch(progress: Progress) -> None:
        most.append(len(list((tmp_path / ".work").rglob("*.record"))))

    build_here(find_dataset(root), SMALL, tmp_path, watch)
    assert max(most) == SMALL.per_shard
    assert most[-1] == 0


def test_a_finished_record_that_was_damaged_meanwhile_is_made_again(root, tmp_path):
    settings = SMALL.model_copy(update={"per_shard": 6})
    dataset = replace(find_dataset(root), strata={})  # one shard for each part

    def watch(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    reference = files(build_here(dataset, settings, tmp_path / "other").folder)
    with pytest.raises(KeyboardInterrupt):
        build_here(dataset, settings, tmp_path, watch)
    kept = sorted((tmp_path / ".work").rglob("*.record"))
    kept[0].write_bytes(kept[0].read_bytes()[:-100])
    changed = bytearray(kept[1].read_bytes())
    changed[len(changed) // 2] ^= 1
    kept[1].write_bytes(changed)
    (kept[2].parent / "x.record.partial").write_bytes(b"what a killed build leaves")
    report = build_here(dataset, settings, tmp_path)
    assert report.how == {"kept": 1, "made": 7}
    assert files(report.folder) == reference
    assert not (tmp_path / ".work").exists()


def start(root: Path, out: Path, *options: str, **popen: object) -> subprocess.Popen[str]:
    command = ["preprocess", "shards", "--root", str(root), "--out", str(out), "--flow", "dis", "--workers", "2"]
    sets = ["--set", "preprocess.rgb.short_side=32", "--set", "preprocess.per_shard=2"]
    return subprocess.Popen(
        [sys.executable, "-m", "stmul", *command, *sets, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **popen,  # type: ignore[arg-type]
    )


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def until(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def _packed_or_ended(running: subprocess.Popen[str], out: Path) -> bool:
    return running.poll() is not None or any((out / ".work").rglob("*.packed"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_ended_by_a_signal_leaves_no_process_and_nothing_to_do_twice(root, tmp_path, reference, number):
    for attempt in range(5):
        out = tmp_path / str(attempt)
        running = start(root, out)
        until(partial(_packed_or_ended, running, out))
        workers = [] if running.poll() is not None else children(running.pid)
        running.send_signal(number)
        _, said = running.communicate(timeout=240)
        if running.returncode:  # else it had come to its end before
            break
    if number == signal.SIGKILL:
        assert running.returncode == -signal.SIGKILL
    else:
        assert running.returncode == 130
        assert said.count("\n") == 1
        assert "the same command goes on" in said
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    report = build_here(find_dataset(root), SMALL, out)
    assert report.how["kept"] >= 2
    assert files(report.folder) == reference


# Taken over


def test_another_split_takes_over_the_records_they_share(root, tmp_path):
    build_here(find_dataset(root, split=1), SMALL, tmp_path / "both")
    second = build_here(find_dataset(root, split=2), SMALL, tmp_path / "both")
    assert second.how == {"taken over": 8}
    alone = build_here(find_dataset(root, split=2), SMALL, tmp_path / "alone")
    assert alone.how == {"made": 8}
    assert files(second.folder) == files(alone.folder)
    assert Path(latest(tmp_path / "both")) == second.folder


def test_records_are_taken_over_with_the_label_they_have_now(root, tmp_path):
    build_here(find_dataset(root, split=1), SMALL, tmp_path)
    only = reduced(find_dataset(root, split=2), classes=("b",))
    report = build_here(only, SMALL, tmp_path)
    assert report.how == {"taken over": 4}
    with open_split(report.folder) as split:
        assert set(split.index("train").labels().tolist()) == {0}


def test_what_was_made_otherwise_or_of_another_file_or_is_damaged_is_made_anew(own_root, tmp_path, write_video):
    first = build_here(find_dataset(own_root, split=1), SMALL, tmp_path)
    other = SMALL.model_copy(update={"flow": Flow(method="farneback")})
    assert build_here(find_dataset(own_root, split=3), other, tmp_path).how == {"made": 8}
    write_video(own_root / "videos/a/v_a_g02_c01.avi", frames=5, seed=99, **SIZE)
    shard = first.folder / "test-000000.tar"
    changed = bytearray(shard.read_bytes())
    changed[1536 + 600] ^= 1
    shard.write_bytes(changed)
    assert build_here(find_dataset(own_root, split=2), SMALL, tmp_path).how == {"taken over": 6, "made": 2}


# Complete, or made otherwise


def test_a_complete_build_is_left_alone(root, tmp_path):
    dataset = find_dataset(root)
    first = build_here(dataset, SMALL, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    build_here(find_dataset(root, split=2), SMALL, tmp_path)
    again = build_here(dataset, SMALL.model_copy(update={"workers": 2, "failures": 3}), tmp_path)
    assert not again.new
    assert again.manifest.digest == first.manifest.digest
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    assert Path(latest(tmp_path)) == first.folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flow": Flow(method="dis", parameters={"preset": 1})}, r"record.flow.preset: 2 then, 1 now"),
        ({"rgb": Rgb(short_side=36)}, r"record.rgb.short_side: 32 then, 36 now"),
        ({"per_shard": 3}, r"per_shard: 2 then, 3 now"),
    ],
)
def test_shards_of_other_settings_are_not_replaced_unasked(root, tmp_path, change, message):
    dataset, other = find_dataset(root), SMALL.model_copy(update=change)
    first = build_here(dataset, SMALL, tmp_path)
    before = files(first.folder)
    with pytest.raises(PreprocessError, match=message) as caught:
        build_here(dataset, other, tmp_path)
    assert "--rebuild" in str(caught.value)
    assert files(first.folder) == before
    rebuilt = build_here(dataset, other, tmp_path, rebuild=True)
    assert files(rebuilt.folder) == files(build_here(dataset, other, tmp_path / "fresh").folder)


def test_other_videos_are_named_as_the_difference(own_root, tmp_path, write_video):
    build_here(find_dataset(own_root), SMALL, tmp_path)
    with pytest.raises(PreprocessError, match=r"plan.train: 6 then, 2 now"):
        build_here(reduced(find_dataset(own_root), limit=1), SMALL, tmp_path)
    write_video(own_root / "videos/a/v_a_g02_c01.avi", frames=9, **SIZE)
    with pytest.raises(PreprocessError, match=r"plan: other names, labels or file sizes"):
        build_here(find_dataset(own_root), SMALL, tmp_path)
    assert build_here(find_dataset(own_root), SMALL, tmp_path, rebuild=True).how == {"made": 1, "taken over": 7}


def test_a_missing_shard_is_put_back_without_being_asked(root, tmp_path, reference):
    dataset = find_dataset(root)
    folder = build_here(dataset, SMALL, tmp_path).folder
    (folder / "train-000001.tar").unlink()
    assert build_here(dataset, SMALL, tmp_path).how == {"made": 2, "taken over": 6}
    assert files(folder) == reference


def test_a_damaged_manifest_is_not_overwritten_unasked(root, tmp_path, reference):
    dataset = find_dataset(root)
    folder = build_here(dataset, SMALL, tmp_path).folder
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace("dis", "div"))
    with pytest.raises(PreprocessError, match="edited or damaged"):
        build_here(dataset, SMALL, tmp_path)
    build_here(dataset, SMALL, tmp_path, rebuild=True)
    assert files(folder) == reference


# Broken videos


def broken(root: Path) -> Dataset:
    """The data set, three of its videos broken."""
    (root / "videos/a/v_a_g02_c01.avi").write_bytes(b"")
    (root / "videos/b/v_b_g03_c01.avi").write_bytes(b"this is a text\n" * 9)
    path = root / "videos/b/v_b_g01_c01.avi"
    path.write_bytes(path.read_bytes()[:3000])
    return find_dataset(root)


def test_broken_videos_are_noted_and_leave_a_hole(own_root, tmp_path, reference):
    report = build_here(broken(own_root), SMALL, tmp_path)
    lines = [json.loads(line) for line in (report.folder / "failures.jsonl").read_text().splitlines()]
    assert [(line["part"], line["name"]) for line in lines] == [
        ("test", "v_b_g01_c01"),
        ("train", "v_a_g02_c01"),
        ("train", "v_b_g03_c01"),
    ]
    assert [set(line) for line in lines] == [{"name", "path", "part", "reason"}] * 3
    for line, reason in zip(lines, ("cut short", "is empty", "not a video"), strict=True):
        assert reason in line["reason"]
        assert line["path"] in line["reason"]
    assert report.failures == read_failures(report.folder)
    assert report.manifest.parts["train"].records == 4
    shards = {name: data for name, data in files(report.folder).items() if name.endswith(".tar")}
    whole = {name for name in shards if shards[name] == reference[name]}
    touched = {name for name in reference if name.endswith(".tar")} - whole
    assert len(touched) <= 3  # a shard each; the others are as if nothing had happened


def test_a_repaired_video_fills_its_hole(own_root, root, tmp_path, reference):
    build_here(broken(own_root), SMALL, tmp_path)
    for path in root.rglob("*.avi"):
        (own_root / path.relative_to(root)).write_bytes(path.read_bytes())
    report = build_here(find_dataset(own_root), SMALL, tmp_path, rebuild=True)
    assert report.how == {"made": 3, "taken over": 5}
    assert files(report.folder) == reference


def test_more_broken_videos_than_put_up_with_stop_the_build(own_root, tmp_path):
    settings = SMALL.model_copy(update={"failures": 2})
    with pytest.raises(PreprocessError, match=r"3 broken videos, at most 2 .*failures.jsonl") as caught:
        build_here(broken(own_root), settings, tmp_path)
    assert not isinstance(caught.value, VideoError)
    folder = tmp_path / "small" / "split1"
    assert len(read_failures(folder)) == 3
    assert not (folder / "manifest.json").exists()
    assert build_here(find_dataset(own_root), SMALL, tmp_path).how["kept"] >= 1


def test_a_class_left_without_a_video_is_reported(own_root, tmp_path):
    (own_root / "videos/b/v_b_g01_c01.avi").write_bytes(b"")
    report = build_here(find_dataset(own_root), SMALL, tmp_path)
    assert report.without_records == (("test", "b"),)


def test_a_video_that_kills_its_process_is_one_of_the_broken_ones(root, tmp_path):
    def engine(start, tasks, workers):
        for position, result in here(start, tasks, workers):
            yield position, Died("killed by SIGSEGV") if isinstance(tasks[position], Task) and not position else result

    report = build(find_dataset(root), SMALL, tmp_path, engine=engine)
    assert [one.reason.split(": ", 1)[1] for one in report.failures] == [
        "the process decoding it was killed by SIGSEGV, twice: it crashes the decoder, or memory is short"
    ]
    assert report.how == {"made": 7}


def test_nothing_but_broken_videos_is_an_error(own_root, tmp_path):
    for path in own_root.rglob("*.avi"):
        path.write_bytes(b"")
    with pytest.raises(PreprocessError, match=r"not one video could be used.*is empty"):
        build_here(find_dataset(own_root), SMALL, tmp_path)
    assert not (tmp_path / "small/split1/manifest.json").exists()


# Where it cannot be written


def test_an_output_that_is_a_file_is_refused_before_any_work(root, tmp_path):
    (tmp_path / "out").write_text("")
    told: list[Progress] = []
    with pytest.raises(PreprocessError, match=r"out: shards cannot be written there.*--out"):
        build_here(find_dataset(root), SMALL, tmp_path / "out", told.append)
    assert told == []


def test_two_builds_of_a_data_set_do_not_run_into_each_other(root, tmp_path):
    with (
        workplace(tmp_path, "small", 1, how_made(SMALL)),
        pytest.raises(PreprocessError, match="another build of this data set is at work"),
    ):
        build_here(find_dataset(root), SMALL, tmp_path)


def test_a_full_disk_ends_the_build_in_one_line_and_it_goes_on_later(root, tmp_path, reference):
    limit = max(len(data) for name, data in reference.items() if name.endswith(".tar")) // 3
    running = start(
        root, tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    )
    _, said = running.communicate(timeout=240)
    assert running.returncode == 1
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert "cannot be written" in said
    assert not list(tmp_path.rglob("*.partial"))
    report = build_here(find_dataset(root), SMALL, tmp_path)
    assert files(report.folder) == reference


def test_an_unwritable_shard_is_named(root, tmp_path):
    (tmp_path / "small" / "split1" / "train-000000.tar").mkdir(parents=True)
    with pytest.raises(ShardError, match=r"train-000000.tar: cannot be written"):
        build_here(find_dataset(root), SMALL, tmp_path)


# Frames and flow extracted before


@pytest.fixture
def extracted(tmp_path: Path) -> Dataset:
    """Eight videos of frames and flow, as JPEGs in folders."""
    draws = np.random.default_rng(0)
    parts: dict[str, list[Video]] = {"train": [], "test": []}
    for number in range(8):
        name, label = f"v_{number}", number % 2
        folders = [tmp_path / "frames" / kind / name for kind in ("images", "u", "v")]
        for folder, count in zip(folders, (4, 3, 3), strict=True):
            folder.mkdir(parents=True)
            for frame in range(count):
                shape = (24, 32, 3) if folder == folders[0] else (24, 32)
                Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"frame{frame + 1:06}.jpg")
        video = Video(
            name=name, path=folders[0], label=label, class_name="ab"[label], flow_path=(folders[1], folders[2])
        )
        parts["train" if number < 6 else "test"].append(video)
    frozen = {part: tuple(videos) for part, videos in parts.items()}
    return Dataset(name="frames", kind="extracted", split=1, classes=("a", "b"), parts=frozen)


def test_extracted_frames_are_packed_as_they_are(extracted, tmp_path):
    report = build_here(extracted, SMALL, tmp_path / "out")
    assert report.how == {"made": 8}
    assert report.manifest.made["record"] == {"taken_over": True}
    with open_split(report.folder) as split:
        row = split.index("test").row(0)
        record = decode(split.read("test", 0))
        video = next(video for video in extracted.parts["test"] if key_of(video.name) == row.key)
        assert bytes(record.rgb[2]) == (video.path / "frame000003.jpg").read_bytes()
        assert bytes(record.flow[5]) == (video.flow_path[1] / "frame000003.jpg").read_bytes()
    assert files(report.folder) == files(build(extracted, SMALL, tmp_path / "processes").folder)


@pytest.mark.parametrize("stop", [2, 3])
def test_shards_of_extracted_frames_packed_before_a_stop_are_found(extracted, tmp_path, stop):
    def watch(progress: Progress) -> None:
        if progress.stage == "shards" and progress.done == stop:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build_here(extracted, SMALL, out, watch)
    packed = {path: path.stat().st_mtime_ns for path in (out / "frames/split1").glob("*.tar")}
    assert len(packed) == stop
    damaged = min(packed)
    content = bytearray(damaged.read_bytes())
    content[3000] ^= 1
    damaged.write_bytes(content)
    report = build_here(extracted, SMALL, out)
    assert [path.stat().st_mtime_ns == before for path, before in sorted(packed.items())] == [False] + [True] * (
        stop - 1
    )
    assert files(report.folder) == files(build_here(extracted, SMALL, tmp_path / "fresh").folder)
    assert not (out / ".work").exists()


def test_broken_folders_of_frames_leave_a_hole_too(extracted, tmp_path):
    (extracted.parts["train"][0].path / "frame000002.jpg").write_bytes(b"no JPEG")
    report = build_here(extracted, SMALL, tmp_path / "out")
    assert [(one.part, one.name) for one in report.failures] == [("train", "v_0")]
    assert report.manifest.parts["train"].records == 5
    assert report.how == {"made": 7}
    settings = SMALL.model_copy(update={"failures": 0})
    with pytest.raises(PreprocessError, match="1 broken videos, at most 0"):
        build_here(extracted, settings, tmp_path / "strict")


# Engines


def test_processes_give_every_result_with_its_position():
    results = dict(processes(partial(eval, "eval"), ["1 + 1", "'x' * 3", "[]"], 2))
    assert results == {0: 2, 1: "xxx", 2: []}
    assert list(processes(partial(eval, "eval"), [], 2)) == []


def test_a_task_that_kills_its_process_is_tried_twice_and_the_others_go_on():
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    results = dict(processes(partial(eval, "eval"), ["1", kill, "2", "__import__('os')._exit(3)", "3"], 2))
    assert results == {0: 1, 1: Died("killed by SIGKILL"), 2: 2, 3: Died("exit code 3"), 4: 3}


def test_an_error_of_the_function_stops_everything_and_says_where_it_was():
    with pytest.raises(ZeroDivisionError) as caught:
        list(processes(partial(eval, "eval"), ["1 / 0", "1"], 1))
    assert "Traceback" in caught.value.__notes__[0]


def test_a_process_that_cannot_start_says_so():
    with pytest.raises(PreprocessError, match="could not start"):
        list(processes(partial(os._exit, 4), ["1"], 1))
