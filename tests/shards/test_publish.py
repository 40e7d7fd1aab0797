"""Publishing: a split sent to a bucket is the split, the manifest comes last, and what broke off goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner

from shards import publish as module
from shards.check import problems
from shards.cli import shards
from shards.copy import copy_split
from shards.errors import CorruptRecordError, ShardError, UnreachableError
from shards.manifest import Manifest, ShardFile
from shards.publish import publish
from shards.split import open_split
from shards.stores import bucket as bucket_module
from tests.seaweedfs import OWNER, READER, Keys, Weed

NOTES = "manifest.json.partial"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    folder = tmp_path_factory.mktemp("publish") / "split1"
    make_split(folder, frames=3)
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Path:
    """A split with a shard of more than one part."""
    folder = tmp_path_factory.mktemp("publish") / "large"
    make_split(folder, train=2, test=1, frames=60, width=400, height=300)
    assert (folder / "train-000000.tar").stat().st_size > 5 << 20
    return folder


@pytest.fixture
def bucket(s3_server: str, aws: Callable[..., None], request: pytest.FixtureRequest) -> Any:
    """A new, empty bucket, with settings that may write it."""
    aws(AWS_ENDPOINT_URL=s3_server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hushhush", AWS_REGION="us-east-1")
    name = "b" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    return boto3.resource("s3").create_bucket(Bucket=name)


def contents(bucket: Any) -> dict[str, bytes]:
    return {one.key: one.get()["Body"].read() for one in bucket.objects.all()}


def files(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{path.name}": path.read_bytes() for path in folder.iterdir()}


def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are sent from now on, manifest and notes included."""
    names: list[str] = []
    put, put_small = bucket_module.Bucket.put, bucket_module.Bucket.put_small

    def spied(self: Any, file: ShardFile, parts: Any) -> None:
        names.append(file.name)
        put(self, file, parts)

    def spied_small(self: Any, name: str, data: bytes) -> None:
        names.append(name)
        put_small(self, name, data)

    monkeypatch.setattr(bucket_module.Bucket, "put", spied)
    monkeypatch.setattr(bucket_module.Bucket, "put_small", spied_small)
    return names


def test_what_is_published_is_the_split_byte_for_byte_and_nothing_else(source: Path, bucket: Any) -> None:
    counts: list[tuple[int, int]] = []
    manifest = publish(source, f"s3://{bucket.name}/a/b", lambda done, total: counts.append((done, total)))
    assert contents(bucket) == files(source, "a/b/")
    with open_split(f"s3://{bucket.name}/a/b") as split:
        assert split.manifest == manifest
        assert not list(problems(split))
    total = 2 * sum(len(data) for name, data in files(source).items() if name != "manifest.json")
    assert [done for done, _ in counts] == sorted(done for done, _ in counts)
    assert counts[-1] == (total, total)
    assert (
        bucket.Object("a/b/train.index").metadata["sha256"]
        == hashlib.sha256((source / "train.index").read_bytes()).hexdigest()
    )


def test_large_files_go_in_parts_and_come_out_whole(large: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "PART", 5 << 20)  # the least that S3 takes
    publish(large, f"s3://{bucket.name}/x")
    assert contents(bucket) == files(large, "x/")
    size = (large / "train-000000.tar").stat().st_size
    assert bucket.Object("x/train-000000.tar").e_tag.strip('"').endswith(f"-{-(-size // (5 << 20))}")


def test_a_large_file_that_is_damaged_is_given_up_and_no_part_of_it_stays(
    large: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bucket_module, "PART", 5 << 20)
    for name, data in files(large).items():
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "train-000000.tar").open("r+b") as file:
        file.seek(-20_000, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(CorruptRecordError, match=r"train-000000\.tar: SHA-256"):
        publish(tmp_path, f"s3://{bucket.name}/x")
    assert not {"x/train-000000.tar", "x/manifest.json"} & contents(bucket).keys()
    assert not boto3.client("s3").list_multipart_uploads(Bucket=bucket.name).get("Uploads")


def test_the_manifest_comes_last(source: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = sent(monkeypatch)
    publish(source, f"s3://{bucket.name}/x")
    assert names[-1] == "manifest.json"
    assert names.count("manifest.json") == 1
    assert {name for name in names if name not in (NOTES, "manifest.json")} == files(source).keys() - {"manifest.json"}


def test_what_is_published_already_is_left_alone(source: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = publish(source, f"s3://{bucket.name}/x")
    names = sent(monkeypatch)
    assert publish(source, f"s3://{bucket.name}/x") == first
    assert names == []


def test_another_split_is_never_overwritten(
    source: Path, bucket: Any, tmp_path: Path, make_split: Callable[..., Manifest]
) -> None:
    make_split(tmp_path / "other", train=1, test=1, frames=1)
    publish(tmp_path / "other", f"s3://{bucket.name}/x")
    bucket.put_object(Key="y/manifest.json", Body=b"{}")
    before = contents(bucket)
    with pytest.raises(ShardError, match=r"/x: already holds another split \(drawn 1 as tar, digest .* Give another"):
        publish(source, f"s3://{bucket.name}/x")
    with pytest.raises(ShardError, match=r"y/manifest\.json: schema: .*or delete what is there"):
        publish(source, f"s3://{bucket.name}/y")
    assert contents(bucket) == before


@pytest.mark.parametrize("stop", [1, 4])
def test_a_publication_that_broke_off_goes_on_without_sending_twice(
    source: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    put, begun = bucket_module.Bucket.put, [0]

    def breaking(self: Any, file: ShardFile, parts: Any) -> None:
        begun[0] += 1
        if begun[0] > stop:
            raise UnreachableError("the line is cut")
        put(self, file, parts)

    monkeypatch.setattr(module, "NOTE_EVERY", 0.0)
    with monkeypatch.context() as broken:
        broken.setattr(bucket_module.Bucket, "put", breaking)
        with pytest.raises(UnreachableError, match="the line is cut") as caught:
            publish(source, f"s3://{bucket.name}/x")
    assert any("goes on from there" in note for note in caught.value.__notes__)
    there = contents(bucket).keys() - {f"x/{NOTES}"}
    assert "x/manifest.json" not in there
    assert len(there) == stop
    names = sent(monkeypatch)
    publish(source, f"s3://{bucket.name}/x")
    assert not {f"x/{name}" for name in names} & there
    assert contents(bucket) == files(source, "x/")


def test_files_that_were_read_back_are_not_read_again(
    source: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NOTE_EVERY", 0.0)
    with monkeypatch.context() as broken:
        broken.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(ShardError("stopped before the manifest")))
        with pytest.raises(ShardError, match="stopped before"):
            publish(source, f"s3://{bucket.name}/x")
    bucket.put_object(Key="x/train-000001.tar", Body=b"x" * len((source / "train-000001.tar").read_bytes()))
    read: list[str] = []
    before = bucket_module.Bucket.before
    monkeypatch.setattr(bucket_module.Bucket, "before", lambda self, name: read.append(name) or before(self, name))
    names = sent(monkeypatch)
    publish(source, f"s3://{bucket.name}/x")
    assert read == ["train-000001.tar"]  # it was replaced since: the others are as they were noted
    assert [name for name in names if name.endswith((".tar", ".index"))] == ["train-000001.tar"]
    assert contents(bucket) == files(source, "x/")


@pytest.mark.parametrize("notes", [None, b"{", b"[]", b'{"digest": 1, "files": []}', b'{"files": {"a": 1}}', b"\xff"])
def test_notes_that_are_not_ours_are_passed_over(source: Path, notes: bytes | None) -> None:
    class Read:
        def small(self, name: str) -> bytes | None:
            return notes

    with open_split(source) as split:
        assert module._Notes(Read(), split.manifest).etag("a") == ""  # type: ignore[arg-type]


def test_files_of_others_with_the_same_names_and_sizes_are_replaced(source: Path, bucket: Any) -> None:
    data = bytearray((source / "train-000001.tar").read_bytes())
    data[2000] ^= 1
    bucket.put_object(Key="x/train-000001.tar", Body=bytes(data))
    bucket.put_object(Key="x/train-000000.tar", Body=b"short")
    bucket.put_object(Key="x/diary.txt", Body=b"dear")
    publish(source, f"s3://{bucket.name}/x")
    assert contents(bucket) == files(source, "x/") | {"x/diary.txt": b"dear"}


def test_damage_in_the_source_is_found_before_it_is_published(source: Path, bucket: Any, tmp_path: Path) -> None:
    for name, damage in (("train-000001.tar", 0), ("test.index", 0), ("train-000000.tar", -1), ("test-000000.tar", 1)):
        folder = tmp_path / f"{name}{damage}"
        folder.mkdir()
        for file, data in files(source).items():
            (folder / file).write_bytes(data)
        data = bytearray(files(source)[name])
        data[700] ^= damage == 0
        (folder / name).write_bytes(data[:damage] if damage < 0 else data + b"\0" * damage)
        with pytest.raises(CorruptRecordError, match=f"{name}: .*but its manifest says .*stmul shards verify {folder}"):
            publish(folder, f"s3://{bucket.name}/{name}{damage}")
        there = contents(bucket)
        assert f"{name}{damage}/{name}" not in there
        assert f"{name}{damage}/manifest.json" not in there


def test_a_service_that_keeps_other_bytes_is_found_out(
    source: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = bucket_module.Bucket.put

    def forgetful(self: Any, file: ShardFile, parts: Any) -> None:
        data = bytearray(b"".join(parts))
        data[-1] ^= file.name == "train.index"
        put(self, file, iter([bytes(data)]))

    monkeypatch.setattr(bucket_module.Bucket, "put", forgetful)
    with pytest.raises(CorruptRecordError, match=r"train\.index: read back after it was sent, it is another file"):
        publish(source, f"s3://{bucket.name}/x")
    assert "x/manifest.json" not in contents(bucket)


def test_a_url_is_published_as_a_folder_is(source: Path, bucket: Any, serve: Callable[[Path], Any]) -> None:
    publish(serve(source).url, f"s3://{bucket.name}/x")
    publish(f"s3://{bucket.name}/x", f"s3://{bucket.name}/y")
    assert contents(bucket) == files(source, "x/") | files(source, "y/")


def test_what_is_no_folder_of_tar_shards_is_told_to_become_one(source: Path, bucket: Any, tmp_path: Path) -> None:
    copy_split(source, tmp_path / "x.lmdb")
    for location in (tmp_path / "x.lmdb", source / "train-000000.tar"):
        with pytest.raises(ShardError, match=r"Make one first: stmul shards copy .* FOLDER"):
            publish(location, f"s3://{bucket.name}/x")
    assert not contents(bucket)


def test_targets_that_cannot_be_written_say_what_to_do(source: Path, bucket: Any, aws: Callable[..., None]) -> None:
    for target, told in (
        ("https://name:secret@host/split1", r"https://host/split1: a web server takes no files\. Copy into a folder"),
        ("s3://bucket-that-is-not-there/x", r"no such bucket\. Make it first"),
        (f"s3://{bucket.name}/x/train-000000.tar", "expected a folder in a bucket"),
        ("ftp://host/x", "not a kind of location"),
    ):
        with pytest.raises(UnreachableError, match=told) as caught:
            publish(source, target)
        assert "secret" not in str(caught.value)
    assert not contents(bucket)


def test_the_command_copies_to_a_bucket_and_back(source: Path, bucket: Any, tmp_path: Path) -> None:
    for arguments in ([str(source), f"s3://{bucket.name}/x"], [f"s3://{bucket.name}/x", str(tmp_path / "back")]):
        result = CliRunner().invoke(shards, ["copy", *arguments])
        assert result.exit_code == 0, result.output
        assert result.output.startswith(f"{arguments[1]}: 9 records as tar, digest ")
    assert files(tmp_path / "back") == files(source)


def test_ctrl_c_ends_at_once_and_leaves_no_manifest(source: Path, bucket: Any) -> None:
    program = f"""
import time
from shards import transfer
from shards.stores import bucket
pieces = bucket.Bucket.put
def slow(self, file, parts):
    def dripping():
        for part in parts:
            yield part
        print("sending", flush=True)
        time.sleep(600 if file.name.startswith("train-000001") else 0)
    pieces(self, file, dripping())
bucket.Bucket.put = slow
from stmul.__main__ import main
main(["shards", "copy", {str(source)!r}, "s3://{bucket.name}/x"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors.split()) == (1, ["Aborted!"]), errors
    there = contents(bucket)
    assert "x/manifest.json" not in there
    publish(source, f"s3://{bucket.name}/x")
    assert json.loads(contents(bucket)["x/manifest.json"])["dataset"] == "drawn"


def test_ctrl_c_is_heard_while_a_server_does_not_answer(source: Path, aws: Callable[..., None]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        aws(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="word", AWS_REGION="us-east-1")
        command = [sys.executable, "-m", "stmul", "shards", "copy", str(source), "s3://bucket/x"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        connected, _ = silent.accept()
        with connected:
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        silent.close()  # so that nobody waits for it any more
        _, errors = process.communicate(timeout=40)
    assert (process.returncode, errors.split()) == (1, ["Aborted!"])


# A server that checks keys


@pytest.fixture
def signed(weed: Weed, aws: Callable[..., None]) -> Callable[[Keys], None]:
    """A function that signs in to the real server with some keys."""

    def sign_in(keys: Keys) -> None:
        aws(
            AWS_ENDPOINT_URL=weed.url,
            AWS_ACCESS_KEY_ID=keys.id,
            AWS_SECRET_ACCESS_KEY=keys.secret,
            AWS_REGION="us-east-1",
        )

    return sign_in


def kept(weed: Weed, prefix: str) -> dict[str, bytes]:
    client = weed.client()
    found = client.list_objects_v2(Bucket="videos", Prefix=prefix).get("Contents", [])
    return {one["Key"]: client.get_object(Bucket="videos", Key=one["Key"])["Body"].read() for one in found}


def test_a_real_server_keeps_what_is_published_in_parts_and_goes_on_after_damage(
    large: Path, weed: Weed, signed: Callable[[Keys], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed(OWNER)
    monkeypatch.setattr(bucket_module, "PART", 5 << 20)
    for name, data in files(large).items():
        (tmp_path / name).write_bytes(data)
    with (tmp_path / "train-000000.tar").open("r+b") as file:
        file.seek(-20_000, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(CorruptRecordError, match=r"train-000000\.tar: SHA-256"):
        publish(tmp_path, "s3://videos/published")
    assert not {"published/train-000000.tar", "published/manifest.json"} & kept(weed, "published/").keys()
    assert not weed.client().list_multipart_uploads(Bucket="videos").get("Uploads")
    publish(large, "s3://videos/published")
    assert kept(weed, "published/") == files(large, "published/")
    with open_split("s3://videos/published") as split:
        assert not list(problems(split))


@pytest.mark.parametrize(
    ("keys", "bucket", "told"),
    [
        (READER, "videos", r"no permission \(403\): the request was signed with what boto3 found \(env"),
        (Keys("AKIDOWNER", "wrong-secret-word"), "videos", r"no permission \(403\): the request was signed"),
        (OWNER, "nobucket", "no such bucket"),
    ],
)
def test_a_real_server_that_refuses_is_told_with_what_to_do(
    source: Path, weed: Weed, signed: Callable[[Keys], None], keys: Keys, bucket: str, told: str
) -> None:
    signed(keys)
    with pytest.raises(UnreachableError, match=told) as caught:
        publish(source, f"s3://{bucket}/refused")
    assert keys.secret not in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert not kept(weed, "refused/")
