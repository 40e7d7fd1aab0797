"""Repair: what is broken is fetched, all of it and nothing else, from the same split; then every byte is right."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.check import problems
from shards.copy import copy_split
from shards.errors import CorruptRecordError, ShardError, UnreachableError
from shards.manifest import Manifest, parse_manifest, write_manifest
from shards.repair import repair
from shards.split import open_split


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    folder = tmp_path_factory.mktemp("repair") / "split1"
    make_split(folder, frames=3)
    return folder


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)


NAMES = ["manifest.json", "test-000000.tar", "test-000001.tar", "test.index", "train-000000.tar", "train-000002.tar"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(damage=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["gone", "cut", "flip", "more", "empty"])))
def test_whatever_is_broken_is_mended_and_nothing_else_is_touched(
    whole: Path, tmp_path: Path, damage: dict[str, str]
) -> None:
    folder = tmp_path / "broken"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    for name, kind in damage.items():
        path, data = folder / name, (folder / name).read_bytes()
        if kind == "gone":
            path.unlink()
        elif kind == "flip":
            flip(path, random.Random(name).randrange(len(data)))
        else:
            path.write_bytes({"cut": data[:-1], "more": data + b"\0", "empty": b""}[kind])
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    mended = repair(folder, whole)
    assert contents(folder) == contents(whole)
    assert {name for name, _ in mended.files} == damage.keys()
    assert all(path.stat().st_ino == before[path.name] for path in folder.iterdir() if path.name not in damage)
    assert mended.bytes == sum(len((whole / name).read_bytes()) for name in damage if name != "manifest.json")
    with open_split(folder) as split:
        assert not list(problems(split))


def test_only_what_is_broken_is_asked_for_from_afar(whole: Path, broken: Path, serve: Callable[[Path], Any]) -> None:
    server = serve(whole)
    flip(broken / "train-000001.tar", 5000)
    (broken / "test.index").unlink()
    repair(broken, server.url)
    assert contents(broken) == contents(whole)
    assert server.requests().keys() == {"manifest.json", "train-000001.tar", "test.index"}


def test_bytes_looked_at_and_fetched_are_counted(whole: Path, broken: Path) -> None:
    (broken / "train-000001.tar").write_bytes(b"")
    looked: list[tuple[int, int]] = []
    fetched: list[tuple[int, int]] = []
    repair(broken, whole, lambda *count: looked.append(count), lambda *count: fetched.append(count))
    total = sum(len(data) for name, data in contents(whole).items() if name != "manifest.json")
    size = (whole / "train-000001.tar").stat().st_size
    assert looked[-1] == (total, total)
    assert fetched[-1] == (size, size)


def test_strays_are_named_and_kept(whole: Path, broken: Path) -> None:
    (broken / "train-000007.tar").write_bytes(b"left")
    (broken / "notes.txt").write_text("mine")
    mended = repair(broken, whole)
    assert mended.strays == ("train-000007.tar",)
    assert mended.files == ()
    assert contents(broken) == contents(whole) | {"train-000007.tar": b"left", "notes.txt": b"mine"}


def test_another_split_mends_nothing(broken: Path, tmp_path: Path, make_split: Callable[..., Manifest]) -> None:
    make_split(tmp_path / "other", train=2, test=1, frames=2, seed=3)
    flip(broken / "train-000001.tar", 5000)
    before = contents(broken)
    with pytest.raises(ShardError, match=r"broken: drawn, split 1, digest .*, but .*/other: drawn, split 1, digest"):
        repair(broken, tmp_path / "other")
    (broken / "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"no readable manifest\.json, and no file in it is one of .*/other"):
        repair(broken, tmp_path / "other")
    before.pop("manifest.json")
    assert contents(broken) == before


def test_the_same_records_in_other_files_mend_nothing(
    broken: Path, tmp_path: Path, make_split: Callable[..., Manifest]
) -> None:
    make_split(tmp_path / "other", frames=3, per_shard=3)
    copied = tmp_path / "renamed"
    shutil.copytree(broken, copied)
    manifest = parse_manifest((copied / "manifest.json").read_bytes(), "m")
    write_manifest(copied / "manifest.json", replace(manifest, classes=("a", "b", "c")))
    with pytest.raises(ShardError, match=r"holds the same records as .*but other files\. Copy anew"):
        repair(broken, tmp_path / "other")
    with pytest.raises(ShardError, match="but classes of other names"):
        repair(broken, copied)


def test_a_damaged_source_is_noticed_and_takes_nothing_away(whole: Path, broken: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(whole, tmp_path / "source"))
    flip(source / "train-000001.tar", 6000)
    flip(broken / "train-000001.tar", 5000)
    before = contents(broken)
    with pytest.raises(CorruptRecordError, match=r"source/train-000001\.tar: SHA-256 .*, but its manifest says"):
        repair(broken, source)
    assert contents(broken) == before


def test_databases_and_loose_files_are_copied_anew(whole: Path, broken: Path, tmp_path: Path) -> None:
    for name in ("x.lmdb", "x.files"):
        copy_split(whole, tmp_path / name)
        with pytest.raises(ShardError, match=r"of which no part can be fetched\. Copy anew: stmul shards copy SOURCE"):
            repair(tmp_path / name, whole)
        with pytest.raises(
            ShardError, match=r"without the files that a repair fetches\. Give a folder or a URL of tar"
        ):
            repair(broken, tmp_path / name)
    with pytest.raises(ShardError, match="without the files that a repair fetches"):
        repair(broken, whole / "train-000000.tar")


def test_what_is_no_folder_is_told_what_to_do(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ShardError, match=r"nowhere: no such folder; get the whole split with: stmul shards copy SOURCE"
    ):
        repair(tmp_path / "nowhere", whole)
    with pytest.raises(ShardError, match=r"^s3://bucket/x: only a folder is repaired"):
        repair("s3://bucket/x", whole)
    with pytest.raises(ShardError, match=r"^https://host/x: only a folder is repaired"):
        repair("https://name:secret@host/x?signed=secret", whole)
    with pytest.raises(UnreachableError, match="nowhere"):
        repair(whole, tmp_path / "nowhere")
