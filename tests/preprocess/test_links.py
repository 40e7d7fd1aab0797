"""One file for what two splits hold: linked only where every byte is equal, and never half."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.build import build
from preprocess.building.links import share, shared_bytes, siblings_of
from preprocess.building.plan import planned
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.datasets import find_dataset
from shards.manifest import Manifest, ShardFile


@pytest.fixture
def two(tmp_path: Path, make_split: Callable[..., Manifest]) -> tuple[Path, Path]:
    """Two splits of the same records, as files of their own."""
    for number in (1, 2):
        make_split(tmp_path / f"split{number}")
    return tmp_path / "split1", tmp_path / "split2"


def file_of(path: Path) -> ShardFile:
    data = path.read_bytes()
    return ShardFile(name=path.name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), records=2)


def test_equal_shards_become_one_file_under_two_names(two: tuple[Path, Path]) -> None:
    one, other = (folder / "train-000001.tar" for folder in two)
    before = one.read_bytes()
    assert not one.samefile(other)
    assert share(other, file_of(other), siblings_of(two[1]))
    assert one.samefile(other)
    assert other.read_bytes() == before
    assert shared_bytes([other]) == len(before)
    assert share(other, file_of(other), siblings_of(two[1])), "and again, with nothing to do"
    assert not list(two[1].glob("*.partial"))


def test_a_test_shard_is_linked_to_a_training_shard(two: tuple[Path, Path]) -> None:
    path = two[1] / "test-000009.tar"
    path.write_bytes((two[0] / "train-000000.tar").read_bytes())
    assert share(path, file_of(path), siblings_of(two[1]))
    assert path.samefile(two[0] / "train-000000.tar")


def test_a_sibling_that_was_changed_since_its_manifest_is_no_sibling(two: tuple[Path, Path]) -> None:
    one, other = (folder / "train-000001.tar" for folder in two)
    data = bytearray(one.read_bytes())
    data[700] ^= 1
    one.write_bytes(data)
    before = other.read_bytes()
    assert not share(other, file_of(other), siblings_of(two[1]))
    assert other.read_bytes() == before
    one.write_bytes(data[:-1])
    assert not share(other, file_of(other), siblings_of(two[1]))
    one.unlink()
    assert not share(other, file_of(other), siblings_of(two[1]))


@pytest.mark.parametrize("reason", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_a_file_system_that_refuses_links_leaves_a_copy(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "link", refused)
    other = two[1] / "train-000001.tar"
    before = other.read_bytes()
    assert not share(other, file_of(other), siblings_of(two[1]))
    assert other.read_bytes() == before
    assert not list(two[1].glob("*.partial"))


def test_what_was_left_by_a_kill_is_no_hindrance(two: tuple[Path, Path]) -> None:
    other = two[1] / "train-000001.tar"
    (two[1] / "train-000001.tar.partial").write_bytes(b"half")
    assert share(other, file_of(other), siblings_of(two[1]))
    assert other.samefile(two[0] / "train-000001.tar")


def test_a_rebuilt_split_leaves_its_siblings_bytes_alone(two: tuple[Path, Path]) -> None:
    from shards.whole import whole

    one, other = (folder / "train-000001.tar" for folder in two)
    before = one.read_bytes()
    assert share(other, file_of(other), siblings_of(two[1]))
    with whole(other) as file:
        file.write(b"new")
    assert one.read_bytes() == before


def test_a_sibling_without_a_readable_manifest_counts_for_nothing(two: tuple[Path, Path]) -> None:
    assert siblings_of(two[1])
    (two[0] / "manifest.json").write_bytes(b"{")
    assert not siblings_of(two[1])


@pytest.mark.slow
def test_three_real_splits_are_stored_once_and_each_is_as_if_built_alone(real_data: Path, tmp_path: Path) -> None:
    classes = ["brush_hair", "climb_stairs"]
    sets = [find_dataset(real_data / "jhmdb-8", split=split, classes=classes) for split in (1, 2, 3)]
    settings = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=8, workers=2)
    reports = [build(dataset, settings, tmp_path / "all") for dataset in sets]
    assert [set(report.how) for report in reports][1:] == [{"taken over"}, {"taken over"}]
    planned_shards = {shard.keys for dataset in sets for shard in planned(dataset, 8)}
    tars = [path for report in reports for path in report.folder.glob("*.tar")]
    assert len({path.stat().st_ino for path in tars}) == len(planned_shards) < len(tars)
    alone = build(sets[2], settings, tmp_path / "alone").folder
    names = sorted(path.name for path in alone.iterdir())
    assert names == sorted(path.name for path in reports[2].folder.iterdir())
    for name in names:
        assert (alone / name).read_bytes() == (reports[2].folder / name).read_bytes(), name
