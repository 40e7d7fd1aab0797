"""Shards that were filtered, merged or appended to are not those that a build asks for, which it says shortly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from preprocess.standing import differences
from shards.combine import combine
from shards.manifest import Manifest
from shards.recipe import filtered
from shards.split import open_split


def test_a_build_says_that_shards_were_made_of_others(make_split: Callable[..., Manifest], tmp_path: Path) -> None:
    built = make_split(tmp_path / "split1", train=3, test=1, frames=2)
    with open_split(tmp_path / "split1") as split:
        manifest = combine(filtered(split, classes=["class1"]), tmp_path / "out")
    assert differences(manifest.made, built.made) == ["they were made of other shards: filter"]
    assert not differences(manifest.made, manifest.made)
