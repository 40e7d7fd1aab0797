"""Tars without manifest and index: one or a list, here or behind a URL, the same records and the same digest."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import kept
from shards.access import Access
from shards.bare import UNKNOWN, Peeks
from shards.errors import CorruptRecordError, FormatError, ShardError, TruncatedShardError, UnreachableError
from shards.format import decode, encode, key_of
from shards.index import index_bytes
from shards.manifest import Manifest
from shards.record import Record
from shards.split import Split, open_split
from shards.stream import read_clips
from shards.tar_lists import tar_list
from shards.writer import write_shard
from tests.shards.test_index import plain


class Chosen:
    """Frames and pairs of a clip."""

    frames = np.array([1, 2, 4], np.int64)
    pairs = np.array([0, 2, 3], np.int64)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    root = tmp_path_factory.mktemp("bare")
    make_split(root / "split1", train=9, test=3, per_shard=3, frames=8)
    return root


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """A cache of this test alone, in the folder `kept`, which is used for whole shards no more than by default."""
    return Access(mode="ranges", cache=tmp_path / "kept")


def facts(split: Split, part: str) -> dict[str, dict[str, Any]]:
    """All that the rows of a part say but their numbers, shards and SHA-256, by key."""
    left_out = {"record", "shard", "sha256"}
    return {row.key: {k: v for k, v in plain(row).items() if k not in left_out} for row in split.index(part)}


def clips(split: Split, part: str) -> dict[str, tuple[list[bytes], list[bytes]]]:
    found = read_clips(split, part, [(n, n, Chosen()) for n in range(len(split.index(part)))])
    return {clip.row.key: ([bytes(jpeg) for jpeg in clip.rgb], [bytes(jpeg) for jpeg in clip.flow]) for clip in found}


LISTS = ["train-{000000..000002}.tar", "{train-000000,train-000001,train-000002}.tar", "train-00000{0,1,2}.tar"]


@pytest.mark.parametrize("pattern", LISTS)
def test_a_list_of_all_tars_has_the_records_and_clips_of_the_split(root: Path, pattern: str, access: Access) -> None:
    with open_split(f"{root}/split1/{pattern}", access=access) as listed, open_split(root / "split1") as whole:
        assert list(listed.manifest.parts) == ["train"]
        assert facts(listed, "train") == facts(whole, "train")
        assert clips(listed, "train") == clips(whole, "train")
        assert [row.shard for row in listed.index("train")] == [row.shard for row in whole.index("train")]
        assert listed.manifest.classes == whole.manifest.classes
        for row in listed.index("train"):
            assert decode(listed.members("train", row)).label == row.label


def test_names_say_which_part_a_tar_is_of_and_the_list_the_order(root: Path, tmp_path: Path, access: Access) -> None:
    with open_split(f"{root}/split1/{{train-000001,test-000000,train-000000}}.tar", access=access) as split:
        assert {name: part.records for name, part in split.manifest.parts.items()} == {"train": 6, "test": 3}
        shards = split.manifest.parts["train"].shards
        assert [shard.name for shard in shards] == ["train-000001.tar", "train-000000.tar"]
        assert split.store.place("train", split.index("train").row(0), "rgb")[0] == "train-000001.tar"
        clips(split, "train"), clips(split, "test")
    for number in (0, 1):
        shutil.copy(root / "split1" / f"train-00000{number}.tar", tmp_path / f"My Videos {number}.tar")
    with open_split(f"{tmp_path}/My Videos {{1..0}}.tar", access=access) as split:
        assert list(split.manifest.parts) == ["train"]
        assert split.index("train").shards == 2
        clips(split, "train")


def test_the_digest_is_the_same_wherever_the_tars_lie(
    root: Path, serve: Callable[[Path], Any], tmp_path: Path, access: Access
) -> None:
    shutil.copytree(root / "split1", tmp_path / "elsewhere")
    url = serve(root).url
    for name in ("train-000001.tar", "{train-{000000..000002},test-000000}.tar"):
        digests, found = set(), []
        for above in (f"{root}/split1", f"{tmp_path}/elsewhere", f"{url}/split1"):
            for _ in range(2):  # made, and kept
                with open_split(f"{above}/{name}", access=access) as split:
                    digests.add(split.manifest.digest)
                    found.append((facts(split, "train"), clips(split, "train")))
                    assert {row.sha256 for row in split.index("train")} == {UNKNOWN}
        assert len(digests) == 1
        assert all(one == found[0] for one in found)


def test_whoever_is_thorough_gets_the_digest_of_the_split_and_every_byte_checked(root: Path, tmp_path: Path) -> None:
    pattern = "{train-{000000..000002},test-000000}.tar"
    with open_split(f"{root}/split1/{pattern}", thorough=True) as listed, open_split(root / "split1") as whole:
        assert listed.manifest.digest == whole.manifest.digest
        assert listed.index("train").row(1).sha256 == whole.index("train").row(1).sha256
        offset = whole.index("train").row(0).rgb.offset
    shutil.copytree(root / "split1", tmp_path / "split1")
    path = tmp_path / "split1" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[offset + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptRecordError, match=r"train-000000\.tar: record .*video\.rgb\.mjpeg: frame 0"):
        open_split(path, thorough=True)
    with open_split(path) as split, pytest.raises(CorruptRecordError, match="rgb frame 0"):
        read_clips(split, "train", [(0, 0, type("First", (), {"frames": np.array([0]), "pairs": np.array([0])})())])


def test_an_index_is_made_of_two_small_reads_a_record_and_then_of_none(
    root: Path, serve: Callable[[Path], Any], tmp_path: Path, make_split: Callable[..., Manifest], access: Access
) -> None:
    make_split(tmp_path / "big", train=6, test=1, per_shard=6, frames=24, width=160, height=120)
    server = serve(tmp_path)
    server.requests()
    with open_split(f"{server.url}/big/train-000000.tar", access=access) as split:
        assert len(split.index("train")) == 6
    assert sum(server.requests().values()) <= 2 * 6 + 3
    with open_split(f"{server.url}/big/train-000000.tar", access=access) as split:
        assert len(split.index("train")) == 6
    assert sum(server.requests().values()) <= 2  # is it still that one?


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 300)), min_size=1), st.integers(1, 4000))
def test_small_reads_give_the_bytes_that_are_there(places: list[tuple[int, int]], seed: int) -> None:
    data = np.random.default_rng(seed).bytes(5300)
    asked = []

    def fetch(spans: Any) -> list[bytes]:
        asked.extend(spans)
        return [data[start:stop] for start, stop in spans]

    peeks = Peeks(fetch, len(data))
    for number, (start, size) in enumerate(places):
        if number % 3 == 0:
            peeks.ahead([(start, start + 100), (start + 4000, start + 9000)])
        assert bytes(peeks.read(start, start + size)) == data[start : start + size]
    assert all(start < stop <= len(data) or start == stop for start, stop in asked)


def test_what_is_kept_is_of_this_very_file(root: Path, tmp_path: Path, access: Access) -> None:
    path = tmp_path / "train-000000.tar"
    shutil.copy(root / "split1" / "train-000000.tar", path)
    with open_split(path, access=access) as split:
        before = split.index("train").row(0).key
    shutil.copy(root / "split1" / "train-000001.tar", path)
    with open_split(path, access=access) as split:
        assert split.index("train").row(0).key != before
        clips(split, "train")
    assert len(list((tmp_path / "kept" / "indexes").iterdir())) == 2


def test_a_kept_index_that_is_damaged_cut_or_foreign_is_made_again(root: Path, tmp_path: Path, access: Access) -> None:
    path = root / "split1" / "train-000000.tar"
    with open_split(path, access=access) as split:
        digest, rows = split.manifest.digest, facts(split, "train")
    (file,) = (tmp_path / "kept" / "indexes").iterdir()
    whole = file.read_bytes()
    other = b"x" + whole[1:]
    for data in (b"", whole[:-1], whole[:100], whole + b"x", other, *_flipped(whole)):
        file.write_bytes(data)
        with open_split(path, access=access) as split:
            assert split.manifest.digest == digest
            assert facts(split, "train") == rows
        assert file.read_bytes() == whole
    # Whole in itself, but of another tar.
    with open_split(root / "split1" / "train-000001.tar", access=access):
        pass
    (another,) = set((tmp_path / "kept" / "indexes").iterdir()) - {file}
    shutil.copy(another, file)
    with open_split(path, access=access) as split:
        assert split.manifest.digest == digest


def _flipped(data: bytes) -> Iterator[bytes]:
    for byte in range(0, len(data), max(1, len(data) // 40)):
        damaged = bytearray(data)
        damaged[byte] ^= 0x10
        yield bytes(damaged)


def test_where_nothing_can_be_kept_it_is_said_and_the_tar_is_read(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    access = Access(cache=tmp_path / "file")
    path = root / "split1" / "train-000000.tar"
    with caplog.at_level(logging.WARNING, "shards"), open_split(path, access=access) as split:
        assert len(split.index("train")) == 3
    assert "cannot keep the index of a tar there" in caplog.text


def test_what_is_kept_stays_within_its_bound(
    root: Path, tmp_path: Path, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_split(root / "split1") as split:
        data = b"".join(index_bytes(list(split.index("test"))))
    monkeypatch.setattr(kept, "LIMIT", 3 * len(data))
    folder = tmp_path / "kept" / "indexes"
    for number in range(6):
        identity = {"location": str(number), "version": "1", "size": number}
        kept.keep(folder, identity, data, {0: "a"})
        os.utime(max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns), (number, number))
        assert kept.find(folder, identity) is not None
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 3 * len(data)
    assert kept.find(folder, {"location": "0", "version": "1", "size": 0}) is None


def test_a_tar_cut_anywhere_is_refused_or_whole(root: Path, tmp_path: Path) -> None:
    data, path = (root / "split1" / "test-000000.tar").read_bytes(), tmp_path / "test-000000.tar"
    for length in range(0, len(data), 2560):
        path.write_bytes(data[:length])
        with pytest.raises((TruncatedShardError, FormatError, CorruptRecordError), match=r"test-000000\.tar"):
            open_split(path)


def test_a_flipped_byte_gives_no_wrong_label_frame_or_name(root: Path, tmp_path: Path) -> None:
    source = root / "split1" / "test-000000.tar"
    data, path = source.read_bytes(), tmp_path / "test-000000.tar"
    with open_split(source) as split:
        expected, rows = clips(split, "test"), facts(split, "test")
    draws = np.random.default_rng(3)
    for byte in draws.integers(0, len(data), 150).tolist():
        damaged = bytearray(data)
        damaged[byte] ^= 1 << int(draws.integers(8))
        path.write_bytes(damaged)
        try:
            with open_split(path) as split:
                found = facts(split, "test")
                assert found == rows
                assert clips(split, "test") == expected
        except ShardError:
            continue


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train-{0..200000}.tar", "lists more than 100000 tars"),
        ("train-{0..99999}-{0..9}.tar", "lists more than 100000 tars"),
        ("train-{0..99999999999999999999}.tar", "lists more than 100000 tars"),
        ("train-{000000..000001.tar", "its braces do not match"),
        ("{a/train-0,b/train-1}.tar", "a list of tars in several folders"),
        ("train-{0,1}.{tar,idx}", r"lists 'train-0\.idx'; expected names that end in \.tar"),
        ("train-{0,0}.tar", r"lists 'train-0\.tar' twice"),
        ("{" * 3000 + "a,b" + "}" * 3000 + ".tar", "lists more than 100000 tars"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(name: str, message: str) -> None:
    for above in ("folder/", "https://reader:secret@host/split1/", "s3://bucket/"):
        with pytest.raises(FormatError, match=message) as failure:
            open_split(above + name)
        assert "secret" not in str(failure.value)


def test_a_list_says_what_it_lists() -> None:
    listed = tar_list("https://reader:secret@host/split1/{train-{000000..000001},test-000000,my}.tar?token=x")
    assert listed is not None
    assert listed.folder == "https://reader:secret@host/split1?token=x"
    assert listed.names == {"train": ("train-000000.tar", "train-000001.tar", "my.tar"), "test": ("test-000000.tar",)}
    assert tar_list("data/ucf101/split1") is None
    local = tar_list("train-{0..1}.tar")
    assert local is not None
    assert local.folder == "."
    for refused in ("file:///etc/{a,b}.tar", "pipe:cat {a,b}.tar", "ftp://host/{a,b}.tar"):
        with pytest.raises(UnreachableError, match="not a kind of location that is read"):
            tar_list(refused)


def test_a_file_whose_own_name_has_braces_is_no_list(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "split1" / "train-000000.tar", tmp_path / "{a,b}.tar")
    with open_split(tmp_path / "{a,b}.tar") as split:
        assert len(split.index("train")) == 3


def test_tars_that_do_not_fit_together_are_refused(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    def write(name: str, *records: Record) -> None:
        write_shard(tmp_path / name, [(key_of(record.name), encode(record)) for record in records])

    write("train-0.tar", make_record("a", frames=2), make_record("b", frames=2, label=1))
    write("train-1.tar", make_record("a", frames=3))
    with pytest.raises(FormatError, match=r"train-1\.tar has a record 'a', and so has train-0\.tar"):
        open_split(f"{tmp_path}/train-{{0,1}}.tar")
    write("train-1.tar", make_record("c", frames=3, label=1, class_name="other"))
    with pytest.raises(FormatError, match=r"label 1 is 'class1' in train-0\.tar and 'other' in train-1\.tar"):
        open_split(f"{tmp_path}/train-{{0,1}}.tar")
    write("train-1.tar", make_record("c", frames=3, label=2, class_name="class1"))
    with pytest.raises(FormatError, match="the class 'class1' has two labels"):
        open_split(f"{tmp_path}/train-{{0,1}}.tar")
    with pytest.raises(UnreachableError, match=r"train-7\.tar: cannot be read: No such file"):
        open_split(f"{tmp_path}/train-{{0,7}}.tar")


def test_a_list_behind_a_url_keeps_its_secrets(
    root: Path, serve: Callable[[Path], Any], tmp_path: Path, access: Access
) -> None:
    url = serve(root).url
    for location in (
        f"{url.replace('//', '//reader:secret@')}/private/split1/train-{{000000..000001}}.tar",
        f"{url}/token/split1/train-{{000000..000001}}.tar?token=secret",
        f"{url}/token/split1/train-000000.tar?token=secret",
    ):
        with open_split(location, access=access) as split:
            assert len(clips(split, "train")) in (3, 6)
            assert "secret" not in split.location + repr(split.manifest) + split.index("train").where
    for file in (tmp_path / "kept" / "indexes").iterdir():
        assert b"secret" not in file.read_bytes()
        assert json.loads(file.read_bytes().partition(b"\n")[0])["of"]["location"].startswith(url)


def test_a_server_without_ranges_sends_such_tars_whole(
    root: Path, serve: Callable[[Path], Any], access: Access
) -> None:
    url = f"{serve(root).url}/plain/split1/train-{{000000..000001}}.tar"
    with open_split(url, access=access) as split, open_split(root / "split1") as whole:
        known = clips(whole, "train")
        assert all(known[key] == clip for key, clip in clips(split, "train").items())


def test_a_list_at_the_root_of_a_bucket_is_read(
    root: Path, s3_server: str, aws: Callable[..., None], access: Access
) -> None:
    import boto3  # type: ignore[import-untyped]

    aws(
        AWS_ENDPOINT_URL=s3_server,
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_REGION="us-east-1",
        AWS_DEFAULT_REGION="us-east-1",
    )
    client = boto3.client("s3")
    client.create_bucket(Bucket="tars")
    for path in (root / "split1").glob("*.tar"):
        client.upload_file(str(path), "tars", path.name)
    name = "{train-000001,test-000000}.tar"
    with open_split(f"s3://tars/{name}", access=access) as split, open_split(f"{root}/split1/{name}") as local:
        assert split.manifest.digest == local.manifest.digest
        assert clips(split, "train") == clips(local, "train")
        assert clips(split, "test") == clips(local, "test")
