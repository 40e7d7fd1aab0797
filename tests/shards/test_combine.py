"""Splits made of splits: every record once, byte for byte; old shards untouched; whole, as before, or gone on with."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import combine as combining
from shards.check import problems
from shards.combine import WAITING, append, combine
from shards.copy import copy_split
from shards.errors import CorruptRecordError, ShardError, StateMismatchError
from shards.format import Members, decode, encode, key_of
from shards.manifest import Manifest, dump_manifest, parse_manifest
from shards.order import Order
from shards.partial import held
from shards.publish import publish
from shards.recipe import Recipe, filtered
from shards.record import FlowMade, Record
from shards.repair import repair
from shards.split import Split, open_split
from shards.stream import TrainingStream
from shards.union import appended, merged
from shards.writer import write_split
from tests.conftest import drawn_record
from tests.shards.test_frame_members import joined, write_tar

CLASSES = ("Archery", "climb", "climb_stairs", "kick")
WAY = {"flow_method": "drawn", "rgb": {"short_side": 16}}

Videos = Sequence[tuple[str, str, str]]  # part, name, class


@cache
def base(name: str) -> Record:
    return drawn_record(name, frames=1 + ord(name[-1]) % 3, width=20, height=16)


def made(folder: Path, videos: Videos, per_shard: int = 2, classes: Sequence[str] = CLASSES, **more: Any) -> Path:
    """A split of drawn videos in `folder`."""
    parts: dict[str, list[list[tuple[str, Members]]]] = {}
    for part, name, class_name in videos:
        record = replace(base(name), label=list(classes).index(class_name), class_name=class_name)
        shards = parts.setdefault(part, [[]])
        if len(shards[-1]) == per_shard:
            shards.append([])
        shards[-1].append((key_of(name), encode(record)))
    about = {"dataset": "drawn", "split": 1, "made": {"record": WAY}} | more
    write_split(folder, classes=classes, parts=parts, **about)
    return folder


def some(part: str, names: str, class_name: str = "climb") -> Videos:
    return [(part, f"v_{name}", class_name) for name in names]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """Six training videos in three shards, two test videos in one."""
    videos = [("train", f"v_{name}", CLASSES[i % 3]) for i, name in enumerate("abcdef")]
    return made(tmp_path / "ours", [*videos, *some("test", "tu")])


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """Three training videos and a test video; its table has `kick` first."""
    videos = [*some("train", "xyz", "climb"), *some("test", "w", "kick")]
    return made(tmp_path / "theirs", videos, classes=("kick", "climb"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def records(split: Split) -> dict[tuple[str, str], dict[str, bytes]]:
    """The members of every record, by part and name."""
    return {
        (part, row.name): {member: bytes(blob) for member, blob in split.members(part, row).items()}
        for part in split.manifest.parts
        for row in split.index(part)
    }


def without_label(members: Members) -> tuple[str, bytes]:
    """A record's class, and its members if its label were 0 and its class had no name."""
    record = decode(members)
    plain = encode(replace(record, label=0, class_name=""))
    return record.class_name, b"".join(plain.values())


def filter_to(source: Path | str, out: Path, **what: Any) -> Manifest:
    with open_split(source, thorough=True) as split:
        return combine(filtered(split, **what), out)


def merge_to(sources: Sequence[Path | str], out: Path, **what: Any) -> Manifest:
    with ExitStack() as stack:
        splits = [stack.enter_context(open_split(source, thorough=True)) for source in sources]
        return combine(merged(splits, **what), out)


def append_to(folder: Path, more: Path | str, **what: Any) -> Manifest:
    with open_split(folder) as split, open_split(more, thorough=True) as other:
        return append(appended(split, other, **what))


def assert_whole(folder: Path) -> None:
    with open_split(folder) as split:
        assert not list(map(str, problems(split)))


videos_drawn = st.lists(
    st.tuples(st.sampled_from(["train", "train", "test"]), st.sampled_from(CLASSES)), min_size=1, max_size=12
).map(lambda drawn: [(part, f"v_{i}{'x' * (i % 3)}", name) for i, (part, name) in enumerate(drawn)])
several = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@several
@given(
    videos=videos_drawn,
    group_of=st.tuples(*[st.integers(0, 2)] * len(CLASSES)),
    per_shard=st.integers(1, 4),
    keep_labels=st.booleans(),
)
def test_merging_the_filters_of_a_partition_of_the_classes_gives_each_record_once(
    videos: Videos, group_of: Sequence[int], per_shard: int, keep_labels: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("partition")
    source, there = made(tmp_path / "source", videos, per_shard), {name for _, _, name in videos}
    groups = [[name for name, group in zip(CLASSES, group_of, strict=True) if group == i] for i in range(3)]
    taken = [(f"part{i}", group) for i, group in enumerate(groups) if there & {*group}]
    for name, group in taken:
        manifest = filter_to(source, tmp_path / name, classes=group, keep_labels=keep_labels)
        assert manifest.classes == (CLASSES if keep_labels else tuple(name for name in CLASSES if name in group))
        assert_whole(tmp_path / name)
    merge_to([tmp_path / name for name, _ in taken], tmp_path / "all")
    assert_whole(tmp_path / "all")
    with open_split(source) as first, open_split(tmp_path / "all") as last:
        before, after = records(first), records(last)
        assert sum(part.records for part in last.manifest.parts.values()) == len(videos)
        if keep_labels:
            assert after == before
        assert {key: without_label(one) for key, one in after.items()} == {
            key: without_label(one) for key, one in before.items()
        }
    shutil.rmtree(tmp_path)


@several
@given(old=videos_drawn, new=videos_drawn, per_shard=st.integers(1, 3), shift=st.integers(0, 3))
def test_a_split_that_was_appended_to_is_the_old_one_and_then_the_new_one(
    old: Videos, new: Videos, per_shard: int, shift: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("append")
    folder = made(tmp_path / "old", old, per_shard)
    more = made(
        tmp_path / "new",
        [(part, f"w{name}", class_name) for part, name, class_name in new],
        classes=CLASSES[shift:] + CLASSES[:shift],
    )
    with open_split(folder) as split, open_split(more) as other:
        before, added, manifest = records(split), records(other), split.manifest
        rows = {part: list(split.index(part)) for part in manifest.parts}
        shards = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.glob("*.tar")}
        names = {part: [row.name for row in other.index(part)] for part in other.manifest.parts}
    now = append_to(folder, more)
    assert_whole(folder)
    assert now.digest != manifest.digest
    with open_split(folder) as split:
        assert split.manifest == now
        after = records(split)
        for part, of_part in rows.items():
            for row in of_part:  # each old record where it was
                found = split.index(part).row(row.record)
                assert (found.key, found.shard, found.sha256, found.rgb.offset) == (
                    (row.key, row.shard, row.sha256, row.rgb.offset)
                )
        for part, of_part in names.items():
            assert [row.name for row in split.index(part)][len(rows.get(part, [])) :] == of_part
    assert {key: after[key] for key in before} == before
    assert {key: without_label(after[key]) for key in added} == {key: without_label(one) for key, one in added.items()}
    assert len(after) == len(before) + len(added)
    assert {name: (folder / name).read_bytes() for name in shards} == {name: data for name, (_, data) in shards.items()}
    assert {name: (folder / name).stat().st_ino for name in shards} == {name: ino for name, (ino, _) in shards.items()}
    shutil.rmtree(tmp_path)


@several
@given(videos=videos_drawn, data=st.data(), per_shard=st.integers(1, 4))
def test_names_are_kept_or_left_out_and_nothing_else_changes(
    videos: Videos, data: st.DataObject, per_shard: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("names")
    source, names = made(tmp_path / "source", videos, per_shard), [name for _, name, _ in videos]
    kept = data.draw(st.sets(st.sampled_from(names), min_size=1))
    filter_to(source, tmp_path / "kept", names=kept)
    with open_split(source) as split, open_split(tmp_path / "kept") as out:
        expected = {place: one for place, one in records(split).items() if place[1] in kept}
        assert records(out) == expected
        assert out.manifest.classes == split.manifest.classes
    assert_whole(tmp_path / "kept")
    if len(kept) < len(names):
        filter_to(source, tmp_path / "same", without=set(names) - kept)
        with open_split(tmp_path / "kept") as one, open_split(tmp_path / "same") as other:
            assert one.manifest.digest == other.manifest.digest
    shutil.rmtree(tmp_path)


def test_shards_of_which_all_stays_are_linked_and_the_others_packed(ours: Path, tmp_path: Path) -> None:
    with open_split(ours) as split:
        recipe = filtered(split, without=["v_c"])
        assert [piece.file is not None for piece in recipe.pieces if piece.part == "train"] == [True, True, False]
        combine(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "train-000000.tar").samefile(ours / "train-000000.tar")
    assert (tmp_path / "out" / "train-000001.tar").samefile(ours / "train-000002.tar")
    assert (tmp_path / "out" / "test-000000.tar").samefile(ours / "test-000000.tar")


def test_a_filter_that_keeps_all_has_the_same_digest_and_files(ours: Path, tmp_path: Path) -> None:
    manifest = filter_to(ours, tmp_path / "out", parts=["train", "test"])
    with open_split(ours) as split:
        assert manifest.digest == split.manifest.digest
        assert manifest.parts == split.manifest.parts
    assert contents(tmp_path / "out").keys() == contents(ours).keys()


def test_where_nothing_can_be_linked_it_is_copied(ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    filter_to(ours, tmp_path / "out", parts=["train"])
    for path in ours.glob("train-*.tar"):
        copied = tmp_path / "out" / path.name
        assert copied.read_bytes() == path.read_bytes()
        assert not copied.samefile(path)
    assert_whole(tmp_path / "out")


def test_little_that_is_left_of_many_shards_is_gathered(tmp_path: Path) -> None:
    videos = [("train", f"v_{i}", CLASSES[i % 4]) for i in range(16)]
    filter_to(made(tmp_path / "in", videos, per_shard=4), tmp_path / "out", classes=["kick"])
    with open_split(tmp_path / "out") as split:
        assert [shard.records for shard in split.manifest.parts["train"].shards] == [4]
        assert [row.name for row in split.index("train")] == ["v_3", "v_7", "v_11", "v_15"]


def test_a_part_of_which_nothing_is_kept_is_left_out_and_said(ours: Path, tmp_path: Path) -> None:
    with open_split(ours) as split:
        recipe = filtered(split, names=["v_a", "v_b"])
        assert recipe.notes == ("part test is left out: none of its records is kept",)
        assert list(combine(recipe, tmp_path / "out").parts) == ["train"]


def test_a_merge_of_one_split_with_another_begins_with_its_shards_as_they_are(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    manifest = merge_to([ours, theirs], tmp_path / "out")
    assert manifest.classes == CLASSES
    assert {name: part.records for name, part in manifest.parts.items()} == {"test": 3, "train": 9}
    for path in ours.glob("*.tar"):
        assert (tmp_path / "out" / path.name).samefile(path)
    assert_whole(tmp_path / "out")
    append_to(ours, theirs)
    with open_split(ours) as split:
        assert split.manifest.digest == manifest.digest


def test_a_name_that_two_splits_have_is_an_error_that_names_both(ours: Path, tmp_path: Path) -> None:
    same = made(tmp_path / "same", [*some("train", "b"), *some("train", "xyz")])
    with pytest.raises(ShardError, match=r"same: 1 record \(v_b\) is in .*ours, too, frame by frame the same"):
        merge_to([ours, same], tmp_path / "out")
    manifest = merge_to([ours, same], tmp_path / "out", skip_duplicates=True)
    assert manifest.parts["train"].records == 9
    assert_whole(tmp_path / "out")
    other_class = made(tmp_path / "class", some("train", "b", "kick"))
    with pytest.raises(ShardError, match=r"class: train has a record 'v_b', and so has .*ours: train, but with"):
        merge_to([ours, other_class], tmp_path / "none", skip_duplicates=True)
    other_part = made(tmp_path / "part", some("test", "b"))
    with pytest.raises(ShardError, match=r"part: test has a record 'v_b', and so has .*ours: train: what is"):
        append_to(ours, other_part, skip_duplicates=True)


def test_other_frames_under_the_same_name_are_never_taken_for_the_same(
    ours: Path, tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    for number, (more, told) in enumerate(
        [({"seed": 5}, "other rgb frames"), ({"frames": 9}, "9 frames, not"), ({"width": 24}, "rgb of 24x16 pixels")]
    ):
        record = make_record("v_b", **{"frames": base("v_b").frames, "width": 20, "height": 16, **more})
        members = encode(replace(record, label=1, class_name="climb"))
        parts = {"train": [[("v_b", members)]]}
        folder = tmp_path / f"{number}"
        write_split(folder, dataset="d", split=1, classes=CLASSES, made={"record": WAY}, parts=parts)
        with pytest.raises(ShardError, match=told):
            append_to(ours, folder, skip_duplicates=True)


@pytest.mark.parametrize("what", ["setting", "flow", "size"])
def test_splits_made_in_different_ways_are_mixed_only_when_told(what: str, ours: Path, tmp_path: Path) -> None:
    if what == "setting":
        other = made(tmp_path / "other", some("train", "xyz"), made={"record": {**WAY, "flow_method": "tvl1"}})
        told = r"flow_method: 'tvl1', not 'drawn'"
    else:
        record = drawn_record("v_x", frames=2, width=28, height=16 if what == "flow" else 20)
        if what == "flow":
            flow_made = FlowMade(method="dis", parameters={"preset": 2}, library="opencv 5.0.0")
            record = replace(record, flow_made=flow_made)
        record = replace(record, label=1, class_name="climb")
        other, way = tmp_path / "other", {} if what == "flow" else {"record": WAY}
        parts = {"train": [[("v_x", encode(record))]]}
        write_split(other, dataset="d", split=1, classes=CLASSES, made=way, parts=parts)
        told = r"flow_method: 'dis', not 'drawn'" if what == "flow" else "short side of the frames: 20, not 16"
    with pytest.raises(ShardError, match=rf"other: made in another way than .*ours: .*{told}.*--mixed"):
        merge_to([ours, other], tmp_path / "out")
    before = contents(ours)
    with pytest.raises(ShardError, match=told):
        append_to(ours, other)
    assert contents(ours) == before
    manifest = merge_to([ours, other], tmp_path / "out", mixed=True)
    assert ("record" in manifest.made) is (what == "size")
    assert_whole(tmp_path / "out")


def test_one_class_under_two_spellings_is_refused_and_renamed(ours: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", some("train", "xyz", "Climb-Stairs"), classes=("Climb-Stairs", "wave"))
    with pytest.raises(ShardError, match=r"'Climb-Stairs', and .*ours one 'climb_stairs'.*--rename Climb-Stairs=climb"):
        merge_to([ours, other], tmp_path / "out")
    with pytest.raises(ShardError, match=r"no class 'Climb-Stair'; did you mean Climb-Stairs\?"):
        merge_to([ours, other], tmp_path / "out", rename={"Climb-Stair": "climb_stairs"})
    manifest = merge_to([ours, other], tmp_path / "out", rename={"Climb-Stairs": "climb_stairs"})
    assert manifest.classes == (*CLASSES, "wave")
    assert_whole(tmp_path / "out")
    with open_split(ours) as split, open_split(other) as more:
        recipe = appended(split, more, rename={"Climb-Stairs": "climb_stairs"})
        assert recipe.notes == ("1 new class: wave",)
        append(recipe)
    assert_whole(ours)


def test_two_classes_may_become_one(ours: Path, tmp_path: Path) -> None:
    manifest = merge_to([ours], tmp_path / "out", rename={"climb_stairs": "climb"})
    assert manifest.classes == ("Archery", "climb", "kick")
    assert_whole(tmp_path / "out")


@pytest.mark.parametrize("kind", ["lmdb", "files", "url", "s3", "tar", "frames"])
def test_sources_may_lie_anywhere(
    kind: str, ours: Path, theirs: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path | str = tmp_path / f"source.{kind}"
    if kind in ("lmdb", "files"):
        copy_split(theirs, source)
    elif kind == "url":
        source = request.getfixturevalue("serve")(theirs).url
    elif kind == "s3":
        source = f"s3://{tmp_path.name.replace('_', '-')}/theirs"
        aws, server = map(request.getfixturevalue, ("aws", "s3_server"))
        aws(AWS_ENDPOINT_URL=server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="word", AWS_REGION="us-east-1")
        boto3.client("s3").create_bucket(Bucket=source.split("/")[2])
        publish(theirs, source)
    else:
        source = theirs / "train-000000.tar"
    way = {}
    if kind == "frames":
        way, source = {"mixed": True}, tmp_path / "train-0.tar"
        with open_split(theirs) as split:
            write_tar(source, joined([decode(split.read("train", record)) for record in range(3)]))
    expected = merge_to([ours, theirs], tmp_path / "expected")
    manifest = merge_to([ours, source], tmp_path / "out", **way)
    assert manifest.classes == CLASSES
    assert manifest.parts["train"].records == (8 if kind == "tar" else 9)
    if kind not in ("tar", "frames"):
        assert manifest.digest == expected.digest
        for path in (tmp_path / "expected").glob("*.tar"):
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    append_to(ours, source, **way)
    assert_whole(tmp_path / "out")
    assert_whole(ours)


def test_where_it_came_from_is_kept_once_however_often_it_is_combined(ours: Path, theirs: Path, tmp_path: Path) -> None:
    with open_split(ours) as one, open_split(theirs) as other:
        digests = [one.manifest.digest, other.manifest.digest]
    filter_to(ours, tmp_path / "a", classes=["climb"])
    filter_to(ours, tmp_path / "b", classes=["Archery"])
    merge_to([tmp_path / "a", tmp_path / "b"], tmp_path / "both")
    manifest = append_to(tmp_path / "both", theirs)
    assert [source["digest"] for source in manifest.made["sources"]] == digests
    assert [step["did"] for step in manifest.made["steps"]] == ["filter", "filter", "merge", "append"]
    assert manifest.made["steps"][-1]["of"][1] == digests[1]
    assert manifest.made["record"] == WAY
    assert manifest.made["sources"][0]["made"] == {"record": WAY}


def test_what_a_stranger_wrote_as_history_does_no_harm(ours: Path, tmp_path: Path) -> None:
    odd = made(tmp_path / "odd", some("train", "x"), made={"sources": "none", "steps": [1, {"did": None}], "record": 3})
    manifest = merge_to([odd, ours], tmp_path / "out", mixed=True)
    assert len(manifest.made["sources"]) == 2


@pytest.mark.parametrize("target", ["url", "lmdb", "diary", "other"])
def test_nothing_is_overwritten(target: str, ours: Path, theirs: Path, tmp_path: Path) -> None:
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "diary.txt").write_text("dear")
    out, told = {
        "url": ("s3://bucket/out", "expected a folder"),
        "lmdb": (str(tmp_path / "out.lmdb"), "expected a folder for tar shards"),
        "diary": (str(tmp_path / "diary"), "exists and is no split"),
        "other": (str(theirs), "already holds another split"),
    }[target]
    before = contents(tmp_path)
    with open_split(ours) as split, pytest.raises(ShardError, match=told):
        combine(filtered(split, parts=["train"]), out)
    assert contents(tmp_path) == before


def test_what_is_there_is_left_alone(ours: Path, theirs: Path, tmp_path: Path) -> None:
    first = merge_to([ours, theirs], tmp_path / "out")
    before = {path: path.stat() for path in (tmp_path / "out").iterdir()}
    assert merge_to([ours, theirs], tmp_path / "out") == first
    append_to(ours, theirs)
    after = contents(ours)
    append_to(ours, theirs)  # all of it is there already
    assert contents(ours) == after
    assert {path: path.stat().st_ino for path in (tmp_path / "out").iterdir()} == {
        path: status.st_ino for path, status in before.items()
    }


@pytest.mark.parametrize("name", ["train-000001.tar", "test-000000.tar"])
def test_a_damaged_source_is_named_and_never_taken_over(name: str, ours: Path, theirs: Path, tmp_path: Path) -> None:
    for source in (ours, theirs):
        path = source / name
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 3] ^= 1
        path.write_bytes(damaged)
    with pytest.raises(CorruptRecordError, match="ours"):
        filter_to(ours, tmp_path / "out", parts=["train", "test"])
    assert not (tmp_path / "out").exists()
    before = contents(ours)
    with pytest.raises(CorruptRecordError, match="theirs"):
        append_to(ours, theirs)
    assert {path: data for path, data in contents(ours).items() if not path.startswith(WAITING)} == before


def test_a_full_disk_is_told_before_anything_is_written(
    ours: Path, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(ShardError, match="MiB needed"):
        append_to(ours, theirs)
    with pytest.raises(ShardError, match="MiB needed"):
        merge_to([ours, theirs], tmp_path / "out")
    filter_to(ours, tmp_path / "linked", parts=["train"])  # needs no room


def test_a_disk_that_is_full_at_the_end_leaves_the_old_split_and_what_is_whole(
    ours: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(ours)
    with monkeypatch.context() as broken:
        broken.setattr(combining, "finish_part", full)
        with pytest.raises(ShardError, match=r"ours: cannot be written: No space left on device"):
            append_to(ours, theirs)
    waiting = {path.name: path.stat().st_ino for path in (ours / WAITING).glob("*.tar")}
    assert {name: data for name, data in contents(ours).items() if not name.startswith(WAITING)} == before
    append_to(ours, theirs)
    assert waiting
    assert {name: (ours / name).stat().st_ino for name in waiting} == waiting  # used, not made again
    assert_whole(ours)


def test_one_command_at_a_time_writes_to_a_split(ours: Path, theirs: Path, tmp_path: Path) -> None:
    for folder in (ours / WAITING, tmp_path / "out.partial"):
        folder.mkdir()
    with held(ours / WAITING), pytest.raises(ShardError, match="another process is writing there"):
        append_to(ours, theirs)
    with held(tmp_path / "out.partial"), pytest.raises(ShardError, match="another process is writing there"):
        merge_to([ours, theirs], tmp_path / "out")


def test_a_split_that_changed_meanwhile_is_not_appended_to(ours: Path, theirs: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", some("train", "q"))
    with open_split(ours) as split, open_split(theirs) as more:
        recipe = appended(split, more)
        append_to(ours, other)
        after = contents(ours)
        with pytest.raises(ShardError, match="was changed while this command read it"):
            append(recipe)
    assert contents(ours) == after


def test_shards_that_are_in_the_way_are_named_and_kept(ours: Path, theirs: Path) -> None:
    (ours / "train-000003.tar").write_bytes(b"mine")
    with pytest.raises(ShardError, match=r"train-000003\.tar: is not in the manifest"):
        append_to(ours, theirs)
    assert (ours / "train-000003.tar").read_bytes() == b"mine"


def test_only_a_folder_of_tar_shards_is_appended_to(ours: Path, theirs: Path, tmp_path: Path) -> None:
    copy_split(ours, tmp_path / "ours.lmdb")
    for place, told in ((tmp_path / "ours.lmdb", "stored as lmdb"), (ours / "train-000000.tar", "not a split in a")):
        with open_split(place, thorough=True) as split, pytest.raises(ShardError, match=told):
            combining.appendable(split)


def test_who_has_the_split_open_reads_on_and_a_training_does_not_go_on_with_the_new_one(
    ours: Path, theirs: Path
) -> None:
    with open_split(ours) as split:
        with stream(split) as reading:
            saved = reading.state()
            append_to(ours, theirs)
            assert len(list(reading.step())) == 4
        assert {name for _, name in records(split)} == {f"v_{name}" for name in "abcdeftu"}
    with (
        open_split(ours) as split,
        pytest.raises(StateMismatchError, match=r"cannot resume: .* data set .*appended to"),
    ):
        stream(split, start=saved)


def stream(split: Split, **more: Any) -> TrainingStream[Any, Any]:
    def choose(position: int, frames: int) -> Any:
        return SimpleNamespace(frames=np.arange(1), pairs=np.arange(0))

    order = Order(count=split.manifest.parts["train"].records, seed=1)
    return TrainingStream(
        split, "train", order, choose=choose, then=lambda clips: clips, threads=1, batch=4, sub_batch=1, **more
    )


def test_a_split_that_was_appended_to_is_copied_and_repaired_like_any_other(
    ours: Path, theirs: Path, tmp_path: Path, serve: Callable[[Path], Any]
) -> None:
    once = append_to(ours, theirs)
    copied = copy_split(serve(ours).url, tmp_path / "copy")
    named = {*contents(ours)} - {"train.index", "test.index"}  # of the split before
    assert contents(tmp_path / "copy") == {name: contents(ours)[name] for name in named}
    assert copied == once
    (tmp_path / "copy" / once.parts["train"].index.name).unlink()
    assert len(repair(tmp_path / "copy", ours).files) == 1
    assert contents(tmp_path / "copy").keys() == named
    assert_whole(tmp_path / "copy")
    copy_split(ours, tmp_path / "x.lmdb")
    assert copy_split(tmp_path / "x.lmdb", tmp_path / "back").digest == once.digest
    append_to(ours, made(tmp_path / "third", some("train", "q")))
    assert_whole(ours)
    assert len(list(ours.glob("train*.index"))) == 2  # this one, and that of those who opened the split before
    assert len(list(ours.glob("test*.index"))) == 1


def test_an_index_goes_by_no_other_name(ours: Path, theirs: Path) -> None:
    append_to(ours, theirs)
    data = (ours / "manifest.json").read_bytes()
    manifest = parse_manifest(data, "m")
    part = manifest.parts["train"]
    for name in ("train-0123456789abcdef.index", "../train.index"):
        spoiled = replace(part, index=replace(part.index, name=name))
        with pytest.raises(ShardError, match=r"index\.name: expected"):
            dump_manifest(replace(manifest, parts={**manifest.parts, "train": spoiled}))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({"classes": ["Archerie"]}, r"no class 'Archerie' among 4; did you mean Archery\?"),
        ({"parts": ["tset"]}, r"no part 'tset' among 2; did you mean test\?"),
        ({"names": ["v_a", "v_aa", "v_bb"]}, r"no record 'v_aa' among 8; did you mean v_a\? \(and 1 more"),
        ({"without": ["a"]}, r"no record 'a' among 8; did you mean v_a\?"),
        ({"classes": ["kick"]}, "nothing to keep"),
    ],
)
def test_what_is_not_there_is_told_with_the_nearest_word(what: Mapping[str, Any], told: str, ours: Path) -> None:
    with open_split(ours) as split, pytest.raises(ShardError, match=told):
        filtered(split, **what)


def test_progress_counts_bytes_up_to_all_of_them(ours: Path, theirs: Path, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    with open_split(ours) as one, open_split(theirs) as other:
        combine(merged([one, other]), tmp_path / "out", lambda done, total: counts.append((done, total)))
    assert counts[-1][0] == counts[-1][1] > 0
    assert counts == sorted(counts)


def test_a_recipe_knows_itself_again(ours: Path) -> None:
    def recipe(**what: Any) -> Recipe:
        return filtered(split, **what)

    with open_split(ours) as split:
        assert recipe(names=["v_a", "v_b"]).fingerprint() == recipe(names=["v_b", "v_a"]).fingerprint()
        assert recipe(names=["v_a"]).fingerprint() != recipe(names=["v_b"]).fingerprint()
        assert recipe(classes=["climb"]).fingerprint() != recipe(classes=["climb"], keep_labels=True).fingerprint()
