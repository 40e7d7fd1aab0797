"""Places: the same behaviour of a folder and of a bucket, whole files or none, writers side by side."""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from preprocess.building.places import BucketPlace, FolderPlace, Place, place_at
from shards.errors import ShardError, UnreachableError
from shards.manifest import ShardFile

KINDS = ("folder", "bucket")


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A new, empty place of the kind that the test names."""
    if request.param == "folder":
        (tmp_path / "place").mkdir()
        return place_at(tmp_path / "place")
    address = request.getfixturevalue("s3_server")
    request.getfixturevalue("aws")(
        AWS_ENDPOINT_URL=address, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hush", AWS_REGION="us-east-1"
    )
    name = "p" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    boto3.resource("s3").create_bucket(Bucket=name)
    return place_at(f"s3://{name}/some/where")


def shard_file(data: bytes, name: str = "train-000000.tar") -> ShardFile:
    return ShardFile(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest(), records=1)


def taken(place: Place, data: bytes, name: str = "train-000000.tar") -> ShardFile:
    with place.desk() as desk:
        (desk / name).write_bytes(data)
        place.take(desk / name, shard_file(data, name))
    return shard_file(data, name)


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_what_is_written_is_read_named_and_removed(place):
    assert place.names() == []
    assert place.read("ab/one.record") is None
    assert place.stamp("ab/one.record") is None
    place.write("ab/one.record", b"1" * 1000)
    place.write("ab/one.record", b"one")
    place.write("split1/two.packed", b"")
    assert place.names() == ["ab/one.record", "split1/two.packed"]
    assert place.sizes() == {"ab/one.record": 3, "split1/two.packed": 0}
    assert place.names("split1") == ["split1/two.packed"]
    assert place.names("spl") == []
    assert place.read("ab/one.record") == b"one"
    assert place.read("split1/two.packed") == b""
    assert place.stamp("ab/one.record").size == 3
    assert place.below("ab").read("one.record") == b"one"
    assert place.below("ab").names() == ["one.record"]
    other = pickle.loads(pickle.dumps(place))
    assert other.location == place.location
    assert other.names() == place.names()
    other.remove(["ab/one.record", "not there"])
    assert place.names() == ["split1/two.packed"]


@pytest.mark.parametrize("place", KINDS, indirect=True)
@pytest.mark.parametrize("size", [5, (8 << 20) + 3])
def test_a_large_file_is_taken_from_the_desk_and_every_byte_can_be_checked(place, size):
    data = bytes(range(256)) * (size // 256 + 1)
    file = taken(place, data[:size])
    assert place.names() == ["train-000000.tar"]
    assert place.stamp(file.name).size == size
    assert place.differs(file) == ""
    place.write(file.name, data[1 : size + 1])
    assert "SHA-256" in place.differs(file)
    place.write(file.name, b"")
    assert "expected" in place.differs(file)
    place.remove([file.name])
    assert place.differs(file) == "is missing"


@pytest.mark.parametrize("place", KINDS, indirect=True)
def test_a_stamp_tells_a_file_from_one_written_later(place):
    before = taken(place, b"12345") and place.stamp("train-000000.tar")
    assert place.stamp("train-000000.tar") == before
    taken(place, b"54321")
    assert place.stamp("train-000000.tar") != before


def test_writers_of_the_same_file_side_by_side_do_each_other_no_harm(tmp_path):
    data = b"x" * 200_000
    place = place_at(tmp_path, "a")
    problems: list[str] = []

    def write(mark: str) -> None:
        try:
            for _ in range(20):
                place_at(tmp_path, mark).write("ab/one.record", data)
                if place.read("ab/one.record") != data:
                    problems.append("half written")
        except ShardError as error:
            problems.append(str(error))

    threads = [threading.Thread(target=write, args=(mark,)) for mark in "aab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert place.names() == ["ab/one.record"]


def test_what_killed_writers_left_goes_with_their_mark_and_nothing_else(tmp_path):
    for mark in ("part1", "part2"):
        (tmp_path / "ab").mkdir(exist_ok=True)
        (tmp_path / f"ab/one.record.{mark}-12.partial").write_bytes(b"half")
        (tmp_path / f".packing-{mark}-34").mkdir()
        (tmp_path / f".packing-{mark}-34/train-000000.tar.partial").write_bytes(b"half")
    assert place_at(tmp_path).names() == []
    place_at(tmp_path, "part1").tidy()
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        ".packing-part2-34",
        "ab",
        "one.record.part2-12.partial",
        "train-000000.tar.partial",
    ]
    place_at(tmp_path).write("split1/kept", b"")
    place_at(tmp_path).tidy()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["ab", "kept", "split1"]


def test_a_folder_that_has_vanished_is_said_and_not_made_anew(tmp_path):
    place = place_at(tmp_path / "gone")
    for write in (lambda: place.write("ab/one.record", b""), lambda: place.desk().__enter__()):
        with pytest.raises(ShardError, match=r"gone: the folder is gone; .*unmounted"):
            write()
    with pytest.raises(ShardError, match="No such file or directory"):
        place.write("one.record", b"")
    assert not (tmp_path / "gone").exists()
    assert place.names() == []


def test_the_kind_of_a_place_follows_from_its_address(tmp_path):
    assert isinstance(place_at(tmp_path), FolderPlace)
    assert isinstance(place_at(str(tmp_path)), FolderPlace)
    assert isinstance(place_at("s3://bucket/folder/"), BucketPlace)
    assert place_at("s3://bucket/folder/").location == "s3://bucket/folder"
    with pytest.raises(UnreachableError, match="a web server takes no files"):
        place_at("https://example.org/folder")


def test_a_bucket_that_is_not_there_is_an_error_and_no_empty_place(s3_server: str, aws: Callable[..., Any]) -> None:
    aws(AWS_ENDPOINT_URL=s3_server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hush", AWS_REGION="us-east-1")
    place = place_at("s3://no-such-bucket/x")
    for ask in (lambda: place.write("one", b"1"), place.names):
        with pytest.raises(UnreachableError, match="no such bucket"):
            ask()
