"""What is said before a build: of the whole and of its parts, on disks and in buckets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import boto3
import pytest
from click.testing import CliRunner

from preprocess import cli
from preprocess.build import build
from preprocess.building import estimate
from preprocess.building.announcement import affected_by, announcement
from preprocess.building.engines import here
from preprocess.building.estimate import estimate_build
from preprocess.building.plan import planned
from preprocess.building.schedule import Schedule
from preprocess.building.workplace import Share
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.datasets import find_dataset, reduced

SMALL = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=1, workers=2)


class Disk(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, video_folders: Callable[..., Path]) -> Path:
    return video_folders(tmp_path_factory.mktemp("data") / "small", train=3, width=40, height=30)


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(drawn, tmp_path / "small"))


@pytest.mark.parametrize("of", [1, 3, 11])
def test_parts_announce_together_what_the_whole_does(drawn: Path, tmp_path: Path, of: int) -> None:
    dataset = find_dataset(drawn)
    whole = announcement(dataset, SMALL, tmp_path)
    parts = [announcement(dataset, SMALL, tmp_path, Share(number=number, of=of)) for number in range(1, of + 1)]
    assert sum(part.what.shards for part in parts) == whole.what.shards
    assert sum(len(part.what.made) for part in parts) == len(whole.what.made) == 8
    assert whole.estimate is not None
    assert sum(part.estimate.videos for part in parts if part.estimate) == whole.estimate.videos
    assert abs(sum(part.estimate.frames for part in parts if part.estimate) - whole.estimate.frames) <= 8


def test_what_another_split_made_costs_nothing(root: Path, tmp_path: Path) -> None:
    build(find_dataset(root), SMALL, tmp_path, engine=here)
    told = announcement(find_dataset(root, split=2), SMALL, tmp_path)
    lines = list(told.lines())
    assert lines[0] == "all 8 records are taken over"
    assert lines[1].startswith("8 of 8 shards stand in another split already")
    assert "; nothing is computed; " in lines[2]
    assert told.estimate is not None
    assert told.room < told.estimate.bytes


def test_a_cluster_of_unknown_size_is_told_the_work_of_one_process(drawn: Path, tmp_path: Path) -> None:
    for workers, words in ((0, "with one process, which a cluster divides by its CPUs"), (5, "with 5 processes")):
        settings = SMALL.model_copy(update={"engine": "ray", "workers": workers})
        assert words in list(announcement(find_dataset(drawn), settings, tmp_path).lines())[-1]


def test_a_rebuild_says_that_it_needs_the_room_twice(root: Path, tmp_path: Path) -> None:
    build(find_dataset(root), SMALL, tmp_path, engine=here)
    assert ", twice that while building" in list(announcement(find_dataset(root), SMALL, tmp_path).lines())[-1]
    other = SMALL.model_copy(update={"flow": Flow(method="farneback")})
    assert "twice" not in "".join(announcement(find_dataset(root), other, tmp_path).lines())


def test_a_disk_that_is_too_small_is_told(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = find_dataset(drawn)
    room = int(announcement(dataset, SMALL, tmp_path).room)
    for free, warns in ((room // 2, True), (2 * room, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Disk(total=0, used=0, free=free))
        last = list(announcement(dataset, SMALL, tmp_path).lines())[-1]
        assert last.startswith("warning: ") == warns


def test_videos_that_none_can_read_are_no_estimate(root: Path, tmp_path: Path) -> None:
    for path in root.rglob("*.avi"):
        path.write_bytes(b"")
    told = announcement(find_dataset(root), SMALL, tmp_path)
    assert list(told.lines())[-1].startswith("estimate: not possible, none of the videos tried can be read; ")


def test_a_waiting_record_of_a_file_that_was_changed_since_is_not_kept(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "_pack", stop)
        with pytest.raises(KeyboardInterrupt):
            build(find_dataset(root), SMALL.model_copy(update={"per_shard": 8}), tmp_path, engine=here)
    dataset = find_dataset(root)
    before = affected_by(dataset, SMALL, tmp_path)
    assert before.kept >= 2
    kept = next(path for path in sorted(root.rglob("*.avi")) if path.stem not in before.made)
    later = kept.stat().st_mtime_ns + 60_000_000_000
    os.utime(kept, ns=(later, later))
    assert affected_by(dataset, SMALL, tmp_path).kept == before.kept, "touched, and of the same bytes"
    kept.write_bytes(kept.read_bytes() + b"\0")
    os.utime(kept, ns=(later, later))
    changed = affected_by(dataset, SMALL, tmp_path)
    assert changed.kept == before.kept - 1
    assert kept.stem in changed.made


def test_processes_share_a_gpu_and_cores_work_side_by_side(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = find_dataset(drawn)
    shards = planned(dataset, 2)
    monkeypatch.setattr(estimate, "_pair_seconds", lambda *_: 1.0)
    cores = estimate_build(dataset, SMALL, 4, shards)
    monkeypatch.setattr(estimate, "gpus", lambda _: 1)
    gpu = estimate_build(dataset, SMALL, 4, shards)
    assert cores is not None
    assert gpu is not None
    assert (cores.on_gpu, gpu.on_gpu) == (False, True)
    assert cores.seconds == pytest.approx(cores.core_seconds / 4)
    assert gpu.seconds == pytest.approx(gpu.frames, rel=0.1)


@pytest.mark.slow
def test_a_bucket_is_announced_without_writing_to_it(
    root: Path, s3_server: str, aws: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws(AWS_ENDPOINT_URL=s3_server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hush", AWS_REGION="us-east-1")
    boto3.resource("s3").create_bucket(Bucket="announced")
    monkeypatch.chdir(tmp_path)
    arguments = ["shards", "--root", str(root), "--out", "s3://announced/set", "--flow", "dis", "--workers", "1"]
    arguments += ["--set", "preprocess.rgb.short_side=32"]
    result = CliRunner().invoke(cli.preprocess, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "all 8 records are made: no record yet" in result.output
    assert "s3://announced/set/small/split1" in result.output
    assert "are free" not in result.output
    assert not list(boto3.resource("s3").Bucket("announced").objects.all())
    dataset, other = (reduced(find_dataset(root, split=split), limit=1) for split in (1, 2))
    build(dataset, SMALL, "s3://announced/set", engine=here)
    names = [{video.name for part in one.parts.values() for video in part} for one in (dataset, other)]
    what = affected_by(other, SMALL, "s3://announced/set")
    assert what.taken_over == len(names[0] & names[1]) > 0
    assert set(what.made) == names[1] - names[0]
