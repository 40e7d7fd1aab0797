"""The benchmark of packing runs on drawn frames, and refuses to time what packs other bytes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.build import build
from preprocess.building.engines import here
from preprocess.config import Preprocess
from tests.bench.packing import COMMANDS, OURS, TAR, WAYS, main, must_agree, unpacked


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., object]) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "split1"
    make_split(folder, train=3, test=1, frames=4, width=48, height=40)
    return folder


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("sha256sum")), reason="needs tar and sha256sum")
def test_every_way_packs_all_files_and_the_page_says_how_fast(shards: Path, tmp_path: Path) -> None:
    options = {"--per-shard": 2, "--processes": 1, "--repeats": 1, "--builds": 1, "--out": tmp_path / "packing"}
    found = main(["--shards", str(shards), *(str(part) for option in options.items() for part in option)])
    assert (found.shards, len(found.builds)) == (2, 1)
    assert found.times.keys() == WAYS.keys()
    assert all(math.isfinite(one.wall) and one.wall > 0 for times in found.times.values() for one in times)
    assert found.speed(OURS, TAR, "wall") > 0
    page = (tmp_path / "packing.md").read_text()
    assert f"{found.files:,} JPEGs" in page
    assert all(f"| {way} |" in page for way in (OURS, COMMANDS, TAR))


def test_other_bytes_are_not_timed(shards: Path, tmp_path: Path) -> None:
    dataset = unpacked(shards, tmp_path / "frames", 2)
    report = build(dataset, Preprocess(per_shard=2), tmp_path / "out", engine=here)
    must_agree(report.folder, dataset.parts["train"])
    spoiled = next(dataset.parts["train"][1].path.iterdir())
    spoiled.write_bytes(spoiled.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="what was packed are other bytes"):
        must_agree(report.folder, dataset.parts["train"])
    with pytest.raises(ValueError, match="besides"):
        must_agree(report.folder, dataset.parts["train"][:1])
