"""What a build will do is said before, and is what it then does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preprocess.building.affected import Affected, affected, in_words
from preprocess.building.former import changed_files
from preprocess.building.plan import planned
from preprocess.building.standing import differences, made_of, manifests
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.datasets import find_dataset, reduced
from preprocess.record import how_made
from preprocess.sources.listing import Dataset, Video
from preprocess.video import source_of
from shards.format import encode, key_of
from shards.manifest import NAME
from shards.record import FlowMade, Frames, Record
from shards.writer import write_split

SETTINGS = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=2, workers=1)
JPEG = bytes.fromhex("ffd8") + b"not decoded here" + bytes.fromhex("ffd9")


def record_of(video: Video) -> Record:
    """A record of `video` as a build would note it; of its frames nothing but one JPEG."""
    return Record(
        name=video.name,
        label=video.label,
        class_name=video.class_name,
        fps=(25, 1),
        source=source_of(video.path),
        decoded_frames=1,
        header_frames=1,
        rgb=Frames.of([JPEG], width=2, height=2, components=3, encoder={}),
        flow=Frames.of([], width=2, height=2, components=1, encoder={}),
        flow_made=FlowMade(method="dis", parameters={}, library="none", scale=1.0),
    )


def build(dataset: Dataset, out: Path, settings: Preprocess = SETTINGS) -> None:
    """The shards of `dataset` in a place of a build, without its work."""
    records = {key_of(v.name): record_of(v) for videos in dataset.parts.values() for v in videos}
    shards = planned(dataset, settings.per_shard)
    write_split(
        out / f"split{dataset.split}",
        dataset=dataset.name,
        split=dataset.split,
        classes=dataset.classes,
        made=made_of(dataset, settings),
        parts={
            part: [[(key, encode(records[key])) for key in shard.keys] for shard in shards if shard.part == part]
            for part in dataset.parts
        },
    )


def asked(dataset: Dataset, out: Path, settings: Preprocess = SETTINGS, **more: object) -> Affected:
    made = made_of(dataset, settings)
    return affected(dataset, made, planned(dataset, settings.per_shard), manifests(out), **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, video_folders: Callable[..., Path]) -> Path:
    return video_folders(tmp_path_factory.mktemp("data") / "small", train=3, frames=1, width=40, height=30)


@pytest.fixture
def root(drawn: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(drawn, tmp_path / "small"))


def newer(path: Path) -> None:
    """Gives the file a time after everything that was made so far."""
    later = path.stat().st_mtime_ns + 60_000_000_000
    os.utime(path, ns=(later, later))


def test_before_the_first_build_all_are_made(root: Path, tmp_path: Path) -> None:
    what = asked(find_dataset(root), tmp_path)
    assert in_words(what) == "all 8 records are made: no record yet"
    assert what.share_made == 1


def test_another_split_takes_all_over_and_shares_every_shard(root: Path, tmp_path: Path) -> None:
    build(find_dataset(root), tmp_path)
    what = asked(find_dataset(root, split=2), tmp_path)
    assert (what.taken_over, what.share_made) == (8, 0)
    assert in_words(what) == "all 8 records are taken over"
    assert what.standing == what.shards


def test_a_file_of_another_size_is_named(root: Path, tmp_path: Path, write_video: Callable[..., Path]) -> None:
    build(find_dataset(root), tmp_path)
    write_video(root / "videos/a/v_a_g02_c01.avi", frames=9, width=40, height=30)
    what = asked(find_dataset(root), tmp_path)
    assert in_words(what) == "7 records are taken over, 1 is made: v_a_g02_c01 (another file)"
    assert what.standing == what.shards - 1


def test_a_file_of_equal_size_is_told_by_its_bytes_where_it_is_newer(root: Path, tmp_path: Path) -> None:
    build(find_dataset(root), tmp_path)
    path = root / "videos/a/v_a_g02_c01.avi"
    newer(root / "videos/b/v_b_g02_c01.avi")  # touched, not changed
    assert in_words(asked(find_dataset(root), tmp_path)) == "all 8 records are taken over"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    newer(path)
    assert in_words(asked(find_dataset(root), tmp_path)).endswith("1 is made: v_a_g02_c01 (another file)")
    videos = [video for part in find_dataset(root).parts.values() for video in part]
    assert changed_files(videos, str(tmp_path / "split1")) == ["v_a_g02_c01"]


def test_no_file_is_read_that_is_older_than_its_record(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    build(find_dataset(root), tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(hashlib, "file_digest", never)
    assert in_words(asked(find_dataset(root), tmp_path)) == "all 8 records are taken over"


def test_other_labels_are_told_apart(root: Path, tmp_path: Path) -> None:
    build(find_dataset(root), tmp_path)
    what = asked(reduced(find_dataset(root), classes=["b"]), tmp_path)
    assert in_words(what) == "all 4 records are taken over with another label"
    assert not what.standing


def test_another_way_of_making_is_the_reason_for_all(root: Path, tmp_path: Path) -> None:
    dataset = find_dataset(root)
    build(dataset, tmp_path)
    other = SETTINGS.model_copy(update={"flow": Flow(method="farneback")})
    words = in_words(asked(dataset, tmp_path, other))
    assert words == "all 8 records are made: record.flow_method: 'dis' then, 'farneback' now"
    smaller = SETTINGS.model_copy(update={"rgb": Rgb(short_side=16)})
    assert "record.rgb.short_side: 32 then, 16 now" in in_words(asked(dataset, tmp_path, smaller))


def test_another_size_of_the_shards_makes_no_record_anew(root: Path, tmp_path: Path) -> None:
    dataset = find_dataset(root)
    build(dataset, tmp_path)
    what = asked(dataset, tmp_path, SETTINGS.model_copy(update={"per_shard": 1}))
    assert in_words(what) == "all 8 records are taken over"
    assert (what.shards, what.standing) == (8, 0)


def test_the_shards_that_are_replaced_are_shared_with_no_one(root: Path, tmp_path: Path) -> None:
    dataset = find_dataset(root)
    build(dataset, tmp_path)
    assert asked(dataset, tmp_path, where=str(tmp_path / "split1")).standing == 0
    build(find_dataset(root, split=2), tmp_path)
    what = asked(dataset, tmp_path, where=str(tmp_path / "split1"))
    assert what.standing == what.shards


def test_of_a_longer_list_only_what_is_new_is_made(
    root: Path, tmp_path: Path, write_video: Callable[..., Path]
) -> None:
    build(find_dataset(root), tmp_path)
    for group in (7, 8):
        write_video(root / f"videos/a/v_a_g0{group}_c01.avi", frames=1, width=40, height=30)
    with (root / "ucfTrainTestlist/trainlist01.txt").open("a") as file:
        file.write("a/v_a_g07_c01.avi 1\na/v_a_g08_c01.avi 1\n")
    words = in_words(asked(find_dataset(root), tmp_path))
    assert words == "8 records are taken over, 2 are made: v_a_g07_c01, v_a_g08_c01 (no record yet)"


def test_what_waits_and_what_failed_is_told(root: Path, tmp_path: Path) -> None:
    dataset = find_dataset(root)
    what = asked(dataset, tmp_path, finished=lambda video: video.name in ("v_a_g01_c01", "v_a_g02_c01"))
    assert in_words(what) == "2 records are kept from an earlier run, 6 are made: no record yet"
    build(replace(dataset, parts={part: videos[1:] for part, videos in dataset.parts.items()}), tmp_path)
    what = asked(dataset, tmp_path, failed=[dataset.parts["test"][0].name])
    assert in_words(what) == (
        "6 records are taken over, 2 are made: v_a_g02_c01 (no record yet); v_a_g01_c01 (failed before)"
    )


def test_damaged_headers_count_as_made_anew_and_unreadable_splits_as_none(root: Path, tmp_path: Path) -> None:
    dataset = find_dataset(root)
    build(dataset, tmp_path)
    shard = tmp_path / "split1" / "train-000000.tar"
    data = shard.read_bytes()
    place = data.index(b"source")
    shard.write_bytes(data[:place] + b"S" + data[place + 1 :])
    assert len(asked(dataset, tmp_path).made) == 1
    manifest = tmp_path / "split1" / NAME
    manifest.write_bytes(b"{")
    assert len(asked(dataset, tmp_path).made) == 8


def test_other_strata_alone_are_no_difference(root: Path) -> None:
    dataset = find_dataset(root)
    plain = replace(dataset, strata={})
    assert made_of(dataset, SETTINGS) != made_of(plain, SETTINGS)
    assert not differences(made_of(plain, SETTINGS), made_of(dataset, SETTINGS))


def test_other_parameters_of_one_method_are_named_those_of_another_are_not() -> None:
    dis, other, farneback = (
        {"record": how_made(SETTINGS.model_copy(update={"flow": flow}))}
        for flow in (Flow(method="dis"), Flow(method="dis", parameters={"preset": 1}), Flow(method="farneback"))
    )
    assert differences(dis, other) == ["record.flow.preset: 2 then, 1 now"]
    assert differences(dis, farneback) == ["record.flow_method: 'dis' then, 'farneback' now"]


def test_counts_of_many_do_not_become_lists() -> None:
    rng = np.random.default_rng(0)
    names = [f"v{number}" for number in rng.permutation(40)]
    what = Affected(
        taken_over=2, made=dict.fromkeys(names[:30], "another file") | dict.fromkeys(names[30:], "failed before")
    )
    words = in_words(what)
    assert words.startswith("2 records are taken over, 40 are made: ")
    assert "and 25 more (another file)" in words
    assert words.endswith("and 5 more (failed before)")
    assert in_words(Affected(made={"v": "no record yet"})) == "1 record is made: v (no record yet)"
