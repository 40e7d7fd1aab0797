"""Opening a split: whatever kind of place it is; and what is said where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.copy import copy_split
from shards.errors import CorruptRecordError, FormatError, TruncatedShardError, UnreachableError
from shards.format import decode, encode, key_of
from shards.manifest import Manifest, dump_manifest
from shards.record import Record
from shards.split import open_split
from shards.stores.files import FileStore
from shards.stores.lmdb import LmdbStore
from shards.stores.tar import TarStore
from shards.writer import write_shard


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    root = tmp_path_factory.mktemp("splits")
    make_split(root / "split1", train=4, test=2, frames=3)
    copy_split(root / "split1", root / "split1.lmdb")
    copy_split(root / "split1", root / "split1.files")
    return root


def test_the_manifest_says_which_store_it_is(root: Path) -> None:
    kinds = {"split1": TarStore, "split1.lmdb": LmdbStore, "split1.files": FileStore}
    digests = set()
    for name, kind in kinds.items():
        with open_split(str(root / name)) as split:
            assert isinstance(split.store, kind)
            assert split.location == str(root / name)
            assert len(split.index("train")) == 4
            assert split.index("train") is split.index("train")
            digests.add(split.manifest.digest)
    assert len(digests) == 1


def test_the_path_of_the_manifest_will_do(root: Path) -> None:
    with open_split(root / "split1" / "manifest.json") as split:
        assert split.location == str(root / "split1")


def test_one_tar_is_a_split_of_one_part(root: Path) -> None:
    with open_split(root / "split1" / "test-000000.tar", thorough=True) as split, open_split(root / "split1") as whole:
        assert list(split.manifest.parts) == ["test"]
        assert split.location.endswith("/test-000000.tar")
        rows, known = split.index("test"), whole.index("test")
        assert [row.sha256 for row in rows] == [row.sha256 for row in known if row.shard == 0]
        for row in rows:
            record = decode(split.read("test", row.record))
            assert split.manifest.classes[record.label] == record.class_name


def test_the_classes_of_one_tar_are_those_in_it(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    records = [make_record("a", frames=2, label=2), make_record("b", frames=1, label=0)]
    write_shard(tmp_path / "mine.tar", [(key_of(record.name), encode(record)) for record in records])
    with open_split(tmp_path / "mine.tar") as split:
        assert list(split.manifest.parts) == ["train"]
        assert split.manifest.classes == ("class0", "unknown-1", "class2")
    records.append(make_record("c", frames=1, label=0, class_name="other"))
    write_shard(tmp_path / "mine.tar", [(key_of(record.name), encode(record)) for record in records])
    with pytest.raises(FormatError, match=r"mine\.tar: label 0 is 'class0' and 'other'"):
        open_split(tmp_path / "mine.tar")
    write_shard(tmp_path / "mine.tar", [])
    with pytest.raises(FormatError, match=r"mine\.tar: no records in it"):
        open_split(tmp_path / "mine.tar")


def test_one_tar_that_was_cut_or_damaged_is_refused(root: Path, tmp_path: Path) -> None:
    data = (root / "split1" / "train-000000.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(TruncatedShardError, match=r"x\.tar: "):
        open_split(tmp_path / "x.tar")
    damaged = bytearray(data)
    damaged[len(data) // 4] ^= 1
    (tmp_path / "x.tar").write_bytes(damaged)
    with pytest.raises(CorruptRecordError, match=r"x\.tar: "):
        open_split(tmp_path / "x.tar", thorough=True)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("splt1", r"splt1: no such folder; did you mean .*/split1\? Build shards with: make shards"),
        ("nothing/at/all", r"nothing/at/all: no such folder\. Build shards with"),
        ("", r"no manifest\.json in it, but in split1, split1\.files, split1\.lmdb; give .*/split1"),
        ("split1/train.index", r"train\.index: a file, but neither a \.tar nor the folder of a split"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_near(root: Path, location: str, message: str) -> None:
    with pytest.raises((UnreachableError, FormatError), match=message):
        open_split(root / location)


@pytest.mark.parametrize("name", ["split1", "split1.lmdb"])
def test_a_split_that_was_not_finished_says_so(root: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(root / name, tmp_path / name)
    (tmp_path / name / "manifest.json").unlink()
    with pytest.raises(UnreachableError, match=r"no manifest\.json: its build or its copy did not end\. Run it again"):
        open_split(tmp_path / name)


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    with pytest.raises(
        UnreachableError, match=r"no manifest\.json and no shards in it\. Build shards with: make shards"
    ):
        open_split(tmp_path)


@pytest.mark.parametrize(
    "location",
    ["pipe:cat /etc/passwd", "file:///etc", "ftp://host/x", "sftp://host/x", "pipe://x.tar", "http:///x", "PIPE:ls"],
)
def test_places_that_are_not_read_are_refused_without_trying(location: str) -> None:
    with pytest.raises(UnreachableError, match="not a kind of location that is read"):
        open_split(location)


def test_a_part_that_is_not_there_is_named_with_those_that_are(root: Path) -> None:
    with (
        open_split(root / "split1") as split,
        pytest.raises(UnreachableError, match="no part 'valid'; it has test, train"),
    ):
        split.index("valid")


def test_an_index_of_another_build_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "split1", tmp_path / "split1")
    shutil.copy(root / "split1" / "test.index", tmp_path / "split1" / "train.index")
    with open_split(tmp_path / "split1") as split, pytest.raises(FormatError, match="of another build"):
        split.index("train")


def test_an_lmdb_is_not_read_over_the_network(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.stores.remote import RemoteStore

    with open_split(root / "split1.lmdb") as split:
        data = dump_manifest(split.manifest)
    monkeypatch.setattr(RemoteStore, "small", lambda self, name: data)
    with pytest.raises(
        FormatError, match=r"stored as lmdb, which is read from a disk only\. Serve it as tar: stmul shards copy"
    ):
        open_split("http://127.0.0.1:1/split1.lmdb")
