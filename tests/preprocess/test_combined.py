"""Shards that were filtered, merged or appended to are not those that a build asks for, which it says shortly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.build import build
from preprocess.building.engines import here
from preprocess.building.standing import differences
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.datasets import find_dataset
from preprocess.errors import PreprocessError
from shards.combine import append, combine
from shards.manifest import Manifest
from shards.recipe import filtered
from shards.split import open_split
from shards.union import appended


def test_a_build_says_that_shards_were_made_of_others(make_split: Callable[..., Manifest], tmp_path: Path) -> None:
    built = make_split(tmp_path / "split1", train=3, test=1, frames=2)
    with open_split(tmp_path / "split1") as split:
        manifest = combine(filtered(split, classes=["class1"]), tmp_path / "out")
    assert differences(manifest.made, built.made) == ["they were made of other shards: filter"]
    assert not differences(manifest.made, manifest.made)


def test_a_split_that_was_appended_to_is_rebuilt_only_when_told_and_leaves_nothing(
    video_folders: Callable[..., Path], tmp_path: Path
) -> None:
    settings = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), workers=1)
    dataset = find_dataset(video_folders(tmp_path / "videos", width=40, height=30))
    folder = build(dataset, settings, tmp_path, engine=here).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with open_split(folder) as split:
        combine(filtered(split, names=["v_a_g01_c01"]), tmp_path / "one")
        combine(filtered(split, without=["v_a_g01_c01"]), tmp_path / "rest")
    rest = folder.with_name("rest")
    (tmp_path / "rest").rename(rest)
    with open_split(rest) as split, open_split(tmp_path / "one") as more:
        append(appended(split, more))
    assert list(rest.glob("test-????????????????.index"))
    folder.rename(tmp_path / "gone")
    rest.rename(folder)
    with pytest.raises(PreprocessError, match=r"they were made of other shards: filter, append"):
        build(dataset, settings, tmp_path, engine=here)
    build(dataset, settings, tmp_path, engine=here, rebuild=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
