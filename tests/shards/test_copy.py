"""Copies: from every store to every store, the same records, digest and, back again, bytes; whole or absent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shards import copy
from shards.check import problems
from shards.copy import copy_split, kind_of
from shards.errors import CorruptRecordError, ShardError
from shards.format import Members, encode, key_of
from shards.manifest import Manifest, ShardFile
from shards.partial import held
from shards.record import Record
from shards.split import open_split
from shards.writer import write_split


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, make_record: Callable[..., Record]) -> Path:
    """A split with an empty shard in the middle and at the end, long names, and a video of one frame."""
    folder = tmp_path_factory.mktemp("copy") / "split1"
    names = ["#1_(a)", "b.c", "x" * 190, "still"]
    records: list[tuple[str, Members]] = [
        (key_of(name), encode(make_record(name, frames=4 - i, label=i % 2))) for i, name in enumerate(names)
    ]
    parts = {"train": [records[:2], [], records[2:3], []], "test": [records[3:]]}
    write_split(folder, dataset="d", split=2, classes=["class0", "class1"], made={"a": 1}, parts=parts)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("way", [["lmdb"], ["files"], ["lmdb", "files"], ["files", "lmdb"], ["tar"]])
def test_there_and_back_again_gives_the_same_bytes(source: Path, tmp_path: Path, way: list[str]) -> None:
    last = source
    for i, kind in enumerate(way):
        target = tmp_path / f"{i}.{kind}"
        manifest = copy_split(last, target)
        with open_split(target) as split, open_split(source) as original:
            assert not list(problems(split))
            assert split.manifest == manifest
            assert manifest.digest == original.manifest.digest
            assert manifest.store == kind
            for part in ("train", "test"):
                assert manifest.parts[part].digest == original.manifest.parts[part].digest
                assert (target / f"{part}.index").read_bytes() == (source / f"{part}.index").read_bytes()
        last = target
    copy_split(last, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    assert not list(tmp_path.glob("*.partial"))


def test_loose_files_are_what_the_tar_holds(source: Path, tmp_path: Path) -> None:
    import tarfile

    copy_split(source, tmp_path / "x.files")
    with tarfile.open(source / "train-000000.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            assert (tmp_path / "x.files" / "train" / member.name).read_bytes() == file.read()


def test_a_tar_alone_can_be_copied(source: Path, tmp_path: Path) -> None:
    manifest = copy_split(source / "train-000000.tar", tmp_path / "one.lmdb")
    assert manifest.parts["train"].records == 2
    with open_split(tmp_path / "one.lmdb") as split:
        assert not list(problems(split))
    back = copy_split(tmp_path / "one.lmdb", tmp_path / "one")
    assert back.digest == manifest.digest
    assert (tmp_path / "one" / "train-000000.tar").read_bytes() == (source / "train-000000.tar").read_bytes()


def test_progress_counts_records(source: Path, tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []
    copy_split(source, tmp_path / "x.lmdb", lambda done, total: counted.append((done, total)))
    assert counted == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_suffix_says_what_a_copy_becomes() -> None:
    assert [kind_of(Path(name)) for name in ("a.lmdb", "a.files", "a", "a.b")] == ["lmdb", "files", "tar", "tar"]


def test_a_copy_that_is_there_is_left_alone(source: Path, tmp_path: Path) -> None:
    first = copy_split(source, tmp_path / "x.lmdb")
    before = (tmp_path / "x.lmdb" / "data.mdb").stat()
    assert copy_split(source, tmp_path / "x.lmdb") == first
    assert (tmp_path / "x.lmdb" / "data.mdb").stat() == before


def test_another_split_or_anything_else_is_never_overwritten(
    source: Path, tmp_path: Path, make_split: Callable[..., Manifest]
) -> None:
    make_split(tmp_path / "other", train=1, test=1, frames=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    (tmp_path / "file").write_text("in the way")
    before = contents(tmp_path)
    for target, message in (
        ("other", r"other: already holds another split \(drawn 1 as tar, digest"),
        ("mine", r"mine: exists and is no split\. Give another target"),
        ("file", r"file: exists and is no split"),
    ):
        with pytest.raises(ShardError, match=message):
            copy_split(source, tmp_path / target)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_filled_and_a_broken_copy_begun_anew(source: Path, tmp_path: Path) -> None:
    (tmp_path / "x.lmdb").mkdir()
    (tmp_path / "x.lmdb.partial").mkdir()
    (tmp_path / "x.lmdb.partial" / "data.mdb").write_bytes(b"half")
    manifest = copy_split(source, tmp_path / "x.lmdb")
    assert manifest.store == "lmdb"
    assert not (tmp_path / "x.lmdb.partial").exists()


@pytest.mark.parametrize("target", ["x.lmdb", "x.files"])
def test_a_damaged_source_leaves_nothing(source: Path, tmp_path: Path, target: str) -> None:
    shutil.copytree(source, tmp_path / "source")
    path = tmp_path / "source" / "train-000002.tar"
    with open_split(tmp_path / "source") as split:
        row = split.index("train").row(2)
    damaged = bytearray(path.read_bytes())
    damaged[row.flow.offset] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptRecordError, match=r"/source: train record 2 \(x+\): video\.flow\.mjpeg: image 0 of 2"):
        copy_split(tmp_path / "source", tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_stopped_copy_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for target in ("x.lmdb", "x.files"):
        with pytest.raises(KeyboardInterrupt):
            copy_split(source, tmp_path / target, stop)
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_seen_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(copy.shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(ShardError, match=r"x: cannot be written: \d+ MiB needed, 0 MiB free in"):
        copy_split(source, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_url_is_no_target(source: Path) -> None:
    with pytest.raises(ShardError, match="s3://bucket/split1: expected a folder"):
        copy_split(source, "s3://bucket/split1")


# Shards to shards: file by file


def test_shards_are_copied_as_they_are_and_their_bytes_counted(source: Path, tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []
    copy_split(source, tmp_path / "x", moved=lambda done, total: counted.append((done, total)))
    assert contents(tmp_path / "x") == contents(source)
    total = sum(len(data) for name, data in contents(source).items() if name != "manifest.json")
    assert counted[-1] == (total, total)
    assert [done for done, _ in counted] == sorted(done for done, _ in counted)


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize("kind", [KeyboardInterrupt, ShardError])
def test_an_interrupted_copy_of_shards_goes_on_with_the_files_it_has(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, kind: type[BaseException]
) -> None:
    fetch, fetched = copy.fetch_file, list[str]()

    def breaking(store: Any, file: ShardFile, folder: Path, passed: Any = None) -> None:
        if len(fetched) == stop:
            (folder / f"{file.name}.partial").write_bytes(b"half")  # as a kill leaves it
            raise kind("stop")
        fetch(store, file, folder, passed)
        fetched.append(file.name)

    with monkeypatch.context() as broken:
        broken.setattr(copy, "fetch_file", breaking)
        with pytest.raises(kind) as caught:
            copy_split(source, tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.partial"]
    if kind is ShardError:
        assert caught.value.__notes__ == [
            f"What is whole waits in {tmp_path / 'x'}.partial: the same command goes on from there"
        ]
    again = list[str]()
    monkeypatch.setattr(copy, "fetch_file", lambda *all: again.append(all[1].name) or fetch(*all))
    copy_split(source, tmp_path / "x")
    assert set(fetched) & set(again) == set()
    assert contents(tmp_path / "x") == contents(source)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_waits_is_used_only_where_it_is_whole(source: Path, tmp_path: Path) -> None:
    partial = tmp_path / "x.partial"
    shutil.copytree(source, partial)
    data = bytearray((partial / "train-000000.tar").read_bytes())
    data[3000] ^= 1
    (partial / "train-000000.tar").write_bytes(data)
    (partial / "train-000002.tar").write_bytes(b"short")
    (partial / "train-000077.tar").write_bytes(b"of another split")
    (partial / "folder").mkdir()
    (partial / "test.index").unlink()
    (partial / "test.index").symlink_to(source / "test.index")
    copy_split(source, tmp_path / "x")
    assert contents(tmp_path / "x") == contents(source)
    assert not (tmp_path / "x" / "test.index").is_symlink()


def test_a_damaged_shard_is_never_copied_and_named(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    path = tmp_path / "source" / "train-000002.tar"
    data = bytearray(path.read_bytes())
    for damaged in (data[:-1], data + b"x", data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptRecordError, match=r"/source/train-000002\.tar: .*, but its manifest says \d+ bytes"):
            copy_split(tmp_path / "source", tmp_path / "x")
        assert not (tmp_path / "x").exists()
        assert not (tmp_path / "x.partial" / "train-000002.tar").exists()


def test_two_copies_to_one_place_do_not_meet(source: Path, tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "theirs").write_bytes(b"of the other")
    with held(tmp_path / "x.partial"), pytest.raises(ShardError, match="another process is writing there"):
        copy_split(source, tmp_path / "x")
    assert contents(tmp_path / "x.partial") == {"theirs": b"of the other"}
    copy_split(source, tmp_path / "x")


def test_only_what_is_missing_needs_room(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))
    shutil.copytree(source, tmp_path / "x.partial")
    monkeypatch.setattr(copy.shutil, "disk_usage", lambda path: usage(100, 99, 1))
    copy_split(source, tmp_path / "x")
    assert contents(tmp_path / "x") == contents(source)


def test_a_copy_from_afar_that_was_interrupted_asks_for_the_rest_alone(
    source: Path, tmp_path: Path, serve: Callable[[Path], Any]
) -> None:
    server = serve(source)
    (tmp_path / "x.partial").mkdir()
    for name in ("train-000000.tar", "train-000001.tar", "test.index"):
        shutil.copy(source / name, tmp_path / "x.partial")
    server.requests()
    copy_split(server.url, tmp_path / "x")
    assert contents(tmp_path / "x") == contents(source)
    assert server.requests().keys() == {"manifest.json", *contents(source)} - {
        "train-000000.tar",
        "train-000001.tar",
        "test.index",
    }


def test_a_copy_from_a_server_without_ranges_keeps_nothing_elsewhere(
    source: Path, tmp_path: Path, serve: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy_split(f"{serve(source).url}/plain", tmp_path / "x")
    assert contents(tmp_path / "x") == contents(source)
    assert not (tmp_path / "cache").exists()
