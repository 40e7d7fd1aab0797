"""Which record goes where, and what three splits have in common: every byte once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.building.plan import planned
from preprocess.datasets import find_dataset, reduced
from preprocess.errors import DatasetError
from preprocess.sources import hmdb51, ucf101
from preprocess.sources.annotations import annotation_name, write_annotations
from preprocess.sources.listing import Dataset, Entry, Lists, Video
from preprocess.sources.strata import strata_of
from shards.format import key_of
from shards.writer import shard_slots

PARTS = ("train", "test", "")
Signature = tuple[str, ...]  # the part of a video in splits 1, 2, 3
signatures = st.lists(st.tuples(*[st.sampled_from(PARTS)] * 3), max_size=60)


def lists_of(given: Sequence[Signature], split: int) -> Lists:
    entries = [
        Entry(name=f"v{number}", class_name="a", part=parts[split - 1], where=f"line {number}")
        for number, parts in enumerate(given)
    ]
    return Lists(place=Path("lists"), classes=("a",), entries=tuple(entries))


def dataset_of(given: Sequence[Signature], split: int, there: tuple[int, ...] = (1, 2, 3)) -> Dataset:
    lists = lists_of(given, split)
    strata = strata_of(lists, split, lambda other: lists_of(given, other) if other in there else None)
    parts = {
        part: tuple(
            Video(name=entry.name, path=Path(entry.name), label=0, class_name="a")
            for entry in lists.entries
            if entry.part == part
        )
        for part in ("train", "test")
    }
    return Dataset(name="set", kind="ucf101", split=split, classes=("a",), parts=parts, strata=strata.of)


@given(signatures, st.integers(1, 9), st.sampled_from([1, 2, 3]))
def test_every_video_has_one_place_in_its_part_and_no_shard_is_too_full(
    given: list[Signature], per_shard: int, split: int
) -> None:
    dataset = dataset_of(given, split)
    shards = planned(dataset, per_shard)
    for part, videos in dataset.parts.items():
        mine = [shard for shard in shards if shard.part == part]
        assert [shard.number for shard in mine] == list(range(len(mine)))
        assert sorted(key for shard in mine for key in shard.keys) == sorted(video.name for video in videos)
        assert all(1 <= len(shard.keys) <= per_shard for shard in mine)
        assert len(mine) <= -(-len(videos) // per_shard) + 8


@given(signatures, st.integers(1, 9))
def test_a_record_lies_in_the_same_shard_in_every_split_that_has_it(given: list[Signature], per_shard: int) -> None:
    distinct = {shard.keys for split in (1, 2, 3) for shard in planned(dataset_of(given, split), per_shard)}
    stored = [key for keys in distinct for key in keys]
    assert len(stored) == len(set(stored))


@given(signatures, st.integers(1, 9), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_lists_nor_of_the_videos_decides(
    given: list[Signature], per_shard: int, random: object
) -> None:
    dataset = dataset_of(given, 1)
    mixed = {part: list(videos) for part, videos in dataset.parts.items()}
    for videos in mixed.values():
        random.shuffle(videos)  # type: ignore[attr-defined]
    parts = {part: tuple(videos) for part, videos in mixed.items()}
    other = Dataset(name="set", kind="ucf101", split=1, classes=("a",), parts=parts, strata=dataset.strata)
    assert planned(other, per_shard) == planned(dataset, per_shard)


@given(signatures, st.integers(1, 9))
def test_with_the_lists_of_one_split_alone_shards_are_cut_as_ever(given: list[Signature], per_shard: int) -> None:
    dataset = dataset_of(given, 1, there=())
    assert not dataset.strata
    for part, videos in dataset.parts.items():
        slots = shard_slots([key_of(video.name) for video in videos], per_shard)
        assert [shard.keys for shard in planned(dataset, per_shard) if shard.part == part] == [*map(tuple, slots)]


def test_broken_lists_of_another_split_are_noted_and_leave_the_others_their_strata() -> None:
    given = [("train", "test", "train"), ("test", "train", "train")]

    def others(split: int) -> Lists:
        if split == 3:
            raise DatasetError("trainlist03.txt, line 7: mend the line")
        return lists_of(given, split)

    strata = strata_of(lists_of(given, 1), 1, others)
    assert strata.of == {"v0": "train/test", "v1": "test/train"}
    assert [note for note in strata.notes if "split 3" in note and "line 7" in note]


def test_a_video_listed_twice_in_another_split_is_that_splits_error_alone() -> None:
    given = [("train", "test", "train")]
    twice = Lists(place=Path("x"), classes=("a",), entries=lists_of(given, 2).entries + lists_of(given, 2).entries)
    strata = strata_of(lists_of(given, 1), 1, lambda split: twice if split == 2 else None)
    assert not strata.of
    assert any("a second video 'v0'" in note for note in strata.notes)


def test_the_stratum_is_the_same_whichever_split_is_built(video_folders: Callable[..., Path], tmp_path: Path) -> None:
    root = video_folders(tmp_path / "set", train=3, test=1, frames=1)
    sets = [find_dataset(root, split=split) for split in (1, 2, 3)]
    assert sets[0].strata == sets[1].strata == sets[2].strata
    assert sets[0].strata["v_a_g02_c01"] == "train/test/train"
    (root / "ucfTrainTestlist" / "trainlist02.txt").unlink()
    less = find_dataset(root, split=1)
    assert less.strata["v_a_g02_c01"] == "train/train"
    assert any("split 2" in note for note in less.notes)


def test_annotations_of_all_splits_say_the_strata_that_the_lists_said(
    video_folders: Callable[..., Path], tmp_path: Path
) -> None:
    root = video_folders(tmp_path / "set", train=3, test=1, frames=1)
    by_lists = find_dataset(root)
    (root / "annotations").mkdir()
    for split in (1, 2, 3):
        content = write_annotations(find_dataset(root, split=split))
        (root / "annotations" / annotation_name(split)).write_text(json.dumps(content))
    shutil.rmtree(root / "ucfTrainTestlist")
    assert find_dataset(root, kind="ucf101").strata == by_lists.strata
    (root / "annotations" / annotation_name(3)).write_text("[")
    two = find_dataset(root, kind="ucf101")
    assert set(two.strata.values()) == {"test/train", "train/test", "train/train"}
    assert any("lists of split 3 are broken" in note for note in two.notes)


def test_ones_own_videos_split_by_hash_or_numbered_lists_have_strata_too(
    write_video: Callable[..., Path], tmp_path: Path
) -> None:
    for number in range(8):
        write_video(tmp_path / "set" / "ab"[number % 2] / f"{number}.avi", frames=1, seed=number)
    root = tmp_path / "set"
    drawn = [find_dataset(root, kind="folders", split=split) for split in (1, 2, 3)]
    assert drawn[0].strata == drawn[1].strata == drawn[2].strata
    assert len(drawn[0].strata) == 8
    for split, tested in ((1, {0, 1}), (2, {2, 3})):
        for part in ("train", "test"):
            names = [f"{'ab'[n % 2]}/{n}.avi\n" for n in range(8) if (n in tested) == (part == "test")]
            (root / f"{part}{split:02}.txt").write_text("".join(names))
    assert find_dataset(root, kind="folders", split=1).strata["a__2"] == "train/test/" + drawn[2].strata["a__2"][
        -5:
    ].lstrip("/")
    (root / "train.txt").write_text("".join(f"{'ab'[n % 2]}/{n}.avi\n" for n in range(6)))
    (root / "test.txt").write_text("a/6.avi\nb/7.avi\n")
    numbered = find_dataset(root, kind="folders", split=1)
    assert numbered.strata["a__2"] == "train/test"  # a list without a number is no split 3


def test_a_limit_falls_on_each_split_by_itself_and_leaves_no_stratum(
    video_folders: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = find_dataset(video_folders(tmp_path / "set", train=3, test=1, frames=1))
    assert not reduced(dataset, limit=1).strata
    assert set(reduced(dataset, classes=["a"]).strata) == {name for name in dataset.strata if name.startswith("v_a_")}


@pytest.mark.parametrize(
    ("place", "read", "shards", "plain"),
    [
        pytest.param("ucf101-lists", ucf101, 210, 628, marks=pytest.mark.slow),
        ("hmdb51/testTrainMulti_7030_splits", hmdb51, 113, 240),
    ],
)
def test_the_official_lists_are_stored_once_in_a_third_of_the_files(
    real_data: Path, place: str, read: object, shards: int, plain: int
) -> None:
    def lists(split: int) -> Lists:
        return read.read_lists(real_data / place, split)  # type: ignore[attr-defined, no-any-return]

    distinct, files = set(), 0
    for split in (1, 2, 3):
        mine = lists(split)
        parts = {
            part: tuple(
                Video(name=entry.name, path=Path(entry.name), label=0, class_name=entry.class_name)
                for entry in mine.entries
                if entry.part == part
            )
            for part in ("train", "test")
        }
        strata = strata_of(mine, split, lists).of
        dataset = Dataset(name="set", kind="ucf101", split=split, classes=mine.classes, parts=parts, strata=strata)
        distinct |= {shard.keys for shard in planned(dataset, 64)}
        files += sum(-(-len(videos) // 64) for videos in parts.values())
    assert (len(distinct), files) == (shards, plain)
    names = [key for keys in distinct for key in keys]
    assert len(names) == len(set(names))
