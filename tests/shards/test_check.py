"""Checking a split: a clean one has no problems; whatever is done to one is found, with the name of the file."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shards.check import Problem, problems
from shards.copy import copy_split
from shards.errors import ShardError
from shards.format import encode, key_of
from shards.manifest import Manifest, parse_manifest, write_manifest
from shards.record import Record
from shards.split import open_split
from shards.writer import write_split

KINDS = ("split1", "split1.lmdb", "split1.files")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    root = tmp_path_factory.mktemp("check")
    make_split(root / "split1", train=4, test=2, frames=3)
    for kind in KINDS[1:]:
        copy_split(root / "split1", root / kind)
    return root


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str = "split1") -> Path:
        shutil.rmtree(tmp_path / kind, ignore_errors=True)
        return Path(shutil.copytree(root / kind, tmp_path / kind))

    return copy


def found(folder: Path) -> list[Problem]:
    """The problems of a split; what keeps it from being opened is one."""
    try:
        with open_split(folder) as split:
            return list(problems(split))
    except ShardError as error:
        return [Problem("opening", str(error))]


@pytest.mark.parametrize("kind", [*KINDS, "split1/train-000001.tar"])
def test_a_clean_split_has_no_problems(root: Path, kind: str) -> None:
    counted: list[tuple[int, int]] = []
    with open_split(root / kind) as split:
        assert list(problems(split, lambda done, total: counted.append((done, total)))) == []
        total = sum(part.records for part in split.manifest.parts.values())
    assert counted == [(done + 1, total) for done in range(total)]


@pytest.mark.parametrize("name", ["train-000001.tar", "test-000000.tar", "train.index", "manifest.json"])
def test_a_flipped_byte_anywhere_is_found_and_its_file_named(copied: Callable[..., Path], name: str) -> None:
    path = copied() / name
    whole = path.read_bytes()
    draws = random.Random(name)
    for position in sorted(draws.sample(range(len(whole)), 40)):
        damaged = bytearray(whole)
        damaged[position] ^= draws.randrange(1, 256)
        path.write_bytes(damaged)
        named = [problem for problem in found(path.parent) if name in str(problem)]
        assert named or whole.decode(errors="ignore").split() == damaged.decode(errors="ignore").split(), position


@pytest.mark.parametrize("name", ["train-000001.tar", "train.index", "manifest.json"])
def test_a_file_cut_or_gone_is_found_and_named(copied: Callable[..., Path], name: str) -> None:
    path = copied() / name
    whole = path.read_bytes()
    for length in (0, 1, 512, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        assert any(name in str(problem) for problem in found(path.parent)), length
    path.unlink()
    assert any(name in str(problem) for problem in found(path.parent))


def test_all_damage_is_named_in_one_pass(copied: Callable[..., Path]) -> None:
    folder = copied()
    with open_split(folder) as split:
        rows = list(split.index("train"))
    for row in rows[1:]:
        path = folder / f"train-{row.shard:06d}.tar"
        damaged = bytearray(path.read_bytes())
        damaged[row.rgb.offset + int(row.rgb.ends[0])] ^= 1  # the second frame
        path.write_bytes(damaged)
    named = [str(problem) for problem in found(folder) if "record" in str(problem)]
    assert len(named) == 3
    for row, text in zip(rows[1:], named, strict=True):
        assert f"train-{row.shard:06d}.tar" in text
        assert f"record {row.record} ({row.key})" in text
        assert f"video.rgb.mjpeg: frame 1 of {row.frames}: checksum" in text


def test_records_behind_a_cut_are_each_named(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "train-000000.tar"
    with open_split(folder) as split:
        second = next(row for row in split.index("train") if row.shard == 0 and row.record == 1)
    path.write_bytes(path.read_bytes()[: second.cls_offset])
    text = "\n".join(map(str, found(folder)))
    assert f"record 1 ({second.key}) should be bytes" in text
    assert "record 0" not in text


def test_a_shard_of_another_build_is_found(copied: Callable[..., Path]) -> None:
    folder = copied()
    shutil.copy(folder / "train-000000.tar", folder / "train-000001.tar")
    assert any("train-000001.tar" in str(problem) for problem in found(folder))


def test_a_shard_left_over_is_found(copied: Callable[..., Path]) -> None:
    folder = copied()
    shutil.copy(folder / "train-000000.tar", folder / "train-000007.tar")
    assert [problem.what for problem in found(folder)] == ["is not in the manifest: left from another build; delete it"]


def test_a_manifest_with_other_classes_is_found(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "manifest.json"
    manifest = parse_manifest(path.read_bytes(), "m")
    write_manifest(path, replace(manifest, classes=("class1", "class0", "class2")))
    assert sum("but not in the manifest" in str(problem) for problem in found(folder)) == 5
    write_manifest(path, replace(manifest, classes=("class0",)))
    assert any("labels from 0 to 2, but there are 1 classes" in str(problem) for problem in found(folder))


def test_a_manifest_replaced_meanwhile_is_found(copied: Callable[..., Path]) -> None:
    folder = copied()
    with open_split(folder) as split:
        write_manifest(folder / "manifest.json", replace(split.manifest, dataset="other"))
        assert any("replaced meanwhile" in str(problem) for problem in problems(split))


def test_an_index_of_other_records_is_found(copied: Callable[..., Path], make_record: Callable[..., Record]) -> None:
    folder = copied()
    with open_split(folder) as split:
        shards = [
            [(row.key, encode(make_record(row.name, frames=row.frames, label=row.label, seed=9))) for row in rows]
            for rows in ([row for row in split.index("train") if row.shard == number] for number in range(2))
        ]
        write_split(folder / "other", dataset="o", split=1, classes=["class0"], made={}, parts={"train": shards})
    shutil.copy(folder / "other" / "train.index", folder / "train.index")
    assert any("train.index" in str(problem) for problem in found(folder))


def test_a_damaged_lmdb_is_reported_and_not_opened(copied: Callable[..., Path]) -> None:
    path = copied("split1.lmdb") / "data.mdb"
    whole = path.read_bytes()
    for position in range(7, len(whole), len(whole) // 30):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        assert any("data.mdb" in str(problem) for problem in found(path.parent))
    for length in (0, 4096, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert any("data.mdb" in str(problem) for problem in found(path.parent))
    path.unlink()
    assert any("data.mdb" in str(problem) for problem in found(path.parent))


def test_damaged_loose_files_are_each_named(copied: Callable[..., Path]) -> None:
    folder = copied("split1.files")
    flow, rgb, cls = (
        folder / "train" / f"{key_of(name)}.{member}"
        for name, member in (("v_train_0", "video.flow.mjpeg"), ("v_train_1", "video.rgb.mjpeg"), ("v_train_2", "cls"))
    )
    damaged = bytearray(flow.read_bytes())
    damaged[9] ^= 1
    flow.write_bytes(damaged)
    rgb.write_bytes(rgb.read_bytes() + b"x")
    cls.unlink()
    text = sorted(str(problem) for problem in found(folder))
    assert len(text) == 3
    assert "v_train_0" in text[0]
    assert "flow" in text[0]
    assert "v_train_1.video.rgb.mjpeg" in text[1]
    assert "v_train_2.cls" in text[2]
