import os
import socket
import subprocess
import sys
import textwrap
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import boto3
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.errors import TruncatedShardError, UnreachableError
from shards.split import open_split
from shards.stores import Range, connect
from shards.stores.answers import explained
from shards.stores.blocks import BLOCK
from shards.stores.connect import is_url, place_of
from shards.stores.remote import RemoteStore
from shards.stream import read_clips

SIZE = 1_000_003
KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrSECRET", "AWS_REGION": "us-east-1"}
SECRETS = ("secret", "wJalrSECRET", "AKIDEXAMPLE", "reader")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    (folder / "train-000000.tar").write_bytes(os.urandom(SIZE))
    (folder / "train-000001.tar").write_bytes(os.urandom(SIZE))
    (folder / "small.json").write_bytes(b'{"a": 1}')
    (folder / "odd name %20+.tar").write_bytes(b"odd")
    return folder


@pytest.fixture(scope="module")
def server(serve, folder):
    return serve(folder)


@pytest.fixture
def quick(monkeypatch):
    """Two retries, soon after one another; answers may take as long as a busy machine needs for them."""
    long = timedelta(seconds=60)
    backoff = {"init_backoff": timedelta(milliseconds=10), "max_backoff": timedelta(milliseconds=50), "base": 2}
    monkeypatch.setattr(connect, "TIMES", dict.fromkeys(("connect_timeout", "read_timeout", "timeout"), long))
    monkeypatch.setattr(connect, "RETRY", {"max_retries": 2, "retry_timeout": long, "backoff": backoff})


@pytest.fixture
def impatient(quick, monkeypatch):
    """And answers are waited for only a fraction of a second."""
    monkeypatch.setattr(connect, "TIMES", dict.fromkeys(connect.TIMES, timedelta(milliseconds=300)))


def refusal(store: RemoteStore, name: str = "small.json") -> str:
    """What the error says; it and its traceback hold no secret."""
    with pytest.raises(UnreachableError) as caught:
        store.small(name)
    told = "".join(traceback.format_exception(caught.value)) + repr(store) + store.location
    assert caught.value.__context__ is None
    assert [secret for secret in SECRETS if secret in told] == []
    return str(caught.value)


@given(pairs=st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, 5000)), max_size=12))
@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
def test_ranges_of_any_blobs_in_any_order_are_the_bytes_of_the_files(server, folder, pairs):
    store = RemoteStore(server.url)
    names = [f"train-{int(second):06d}.tar" for second, _, _ in pairs]
    ranges = [Range(name, start, min(SIZE, start + size)) for name, (_, start, size) in zip(names, pairs, strict=True)]
    expected = [(folder / wanted.blob).read_bytes()[wanted.start : wanted.stop] for wanted in ranges]
    assert [bytes(blob) for blob in store.fetch(ranges)] == expected


@given(reads=st.lists(st.tuples(st.integers(0, SIZE), st.sampled_from([0, 1, 512, 70_000, 400_000])), max_size=12))
@settings(max_examples=30, deadline=None)
def test_scanning_in_any_order_gives_the_bytes_of_the_file(server, folder, reads):
    read, data = RemoteStore(server.url).reader("train-000000.tar"), (folder / "train-000000.tar").read_bytes()
    for start, size in reads:
        stop = min(SIZE, start + size)
        assert bytes(read(start, stop)) == data[start:stop]


def test_short_reads_that_jump_cost_one_request_for_each_jump(server):
    read = RemoteStore(server.url).reader("train-000000.tar")
    server.requests()
    for start in range(0, 6 * 3 * BLOCK, 3 * BLOCK):
        read(start, start + 512)
        read(start + 512, start + 1024)
    assert server.requests()["train-000000.tar"] <= 6


def test_reading_straight_on_asks_for_more_each_time(server):
    read = RemoteStore(server.url).reader("train-000000.tar")
    server.requests()
    for start in range(0, SIZE - 10_000, 10_000):
        read(start, start + 10_000)
    assert server.requests()["train-000000.tar"] <= 5


def test_small_files_and_sizes_come_from_the_folder_or_beside_the_tar(server):
    of_folder, of_tar = RemoteStore(f"{server.url}/"), RemoteStore(f"{server.url}/train-000000.tar")
    assert of_folder.small("small.json") == of_tar.small("small.json") == b'{"a": 1}'
    assert of_folder.size("train-000001.tar") == of_tar.size(of_tar.file) == SIZE
    assert (of_folder.file, of_tar.file) == ("", "train-000000.tar")


def test_the_address_of_a_manifest_stands_for_its_folder():
    assert RemoteStore("https://host/a/split1/manifest.json").location == "https://host/a/split1"


def test_the_name_of_a_tar_may_hold_odd_characters(server):
    store = RemoteStore(f"{server.url}/odd%20name%20%2520+.tar")
    assert bytes(store.fetch([Range(store.file, 0, 3)])[0]) == b"odd"


def test_a_closed_store_has_let_go_and_may_be_read_again(server):
    store = RemoteStore(server.url)
    ranges = [Range("train-000000.tar", 0, 10), Range("train-000001.tar", 0, 10)]
    before = [bytes(blob) for blob in store.fetch(ranges)]
    store.close()
    store.close()
    assert [bytes(blob) for blob in store.fetch(ranges)] == before


def test_a_range_past_the_end_says_that_the_shard_was_cut(server):
    store = RemoteStore(server.url)
    for start in (SIZE - 10, SIZE + 10):
        with pytest.raises(TruncatedShardError, match=r"train-000000\.tar ends before .*copy was cut"):
            store.fetch([Range("train-000000.tar", start, start + 100)])


def test_an_answer_that_ends_early_says_so(server):
    with pytest.raises(TruncatedShardError, match="copy was cut"):
        RemoteStore(f"{server.url}/cut").fetch([Range("train-000000.tar", 0, 100)])


def test_a_404_names_the_address_at_once(server):
    server.requests()
    told = refusal(RemoteStore(f"{server.url}/nowhere"), "manifest.json")
    assert f"{server.url}/nowhere/manifest.json: not there (404)" in told
    assert "manifest.json" in told.split("Check")[1]
    assert server.requests() == {"nowhere/manifest.json": 2}  # one of them to see where the server leads


def test_a_403_says_that_nothing_was_sent_to_sign_in_with(server):
    told = refusal(RemoteStore(f"{server.url}/forbidden"))
    assert "no permission (403): no user name and password stand in the URL" in told


def test_user_and_password_of_a_url_are_sent_and_never_shown(server):
    with_keys = server.url.replace("//", "//reader:secret@") + "/private"
    assert RemoteStore(with_keys).small("small.json") == b'{"a": 1}'
    wrong = RemoteStore(with_keys.replace("secret", "secret2"))
    assert "no permission (401): the user name and password in the URL were sent" in refusal(wrong)
    assert "secret" not in repr(place_of(with_keys))


def test_the_query_of_a_url_is_sent_and_never_shown(server):
    assert RemoteStore(f"{server.url}/token?token=secret").small("small.json") == b'{"a": 1}'
    tar = RemoteStore(f"{server.url}/token/train-000000.tar?token=secret")
    assert (tar.size(tar.file), tar.location) == (SIZE, f"{server.url}/token/train-000000.tar")
    expired = RemoteStore(f"{server.url}/token?token=secret2")
    assert "no permission (403): the query in the URL was sent; if it is a signature" in refusal(expired)


def test_a_server_without_ranges_is_named_as_such(server):
    store = RemoteStore(f"{server.url}/plain")
    with pytest.raises(UnreachableError, match=r"whole file where a part is asked for \(python -m http\.server"):
        store.fetch([Range("train-000000.tar", 0, 100)])


def test_a_busy_server_is_asked_again_before_it_is_given_up(server, quick):
    server.requests()
    told = refusal(RemoteStore(f"{server.url}/busy"))
    assert f"{server.url}/busy/small.json: the server answered with status 503. Try again later" in told
    assert server.requests() == {"busy/small.json": 1 + 3}  # the first to see where it leads


def test_a_bucket_that_answers_from_elsewhere_may_be_in_another_region():
    told = explained(RuntimeError("status code: 301 Moved Permanently"), credentials="", s3=True)
    assert told.endswith("status 301. The bucket may be in another region: set AWS_REGION")


def test_a_dead_port_is_given_up_soon(quick):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/split1"
        assert f"{url}/small.json: the host refuses the connection" in refusal(RemoteStore(url))


def test_a_server_that_never_answers_is_given_up(impatient):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        told = refusal(RemoteStore(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert "no answer in time" in told


def test_all_waiting_together_is_bounded():
    longest = max(wait.total_seconds() for wait in (connect.TIMES["connect_timeout"], connect.TIMES["read_timeout"]))
    assert longest + connect.RETRY["retry_timeout"].total_seconds() < 60


def test_a_host_that_does_not_exist_is_named(quick):
    told = refusal(RemoteStore("http://no-such-host.invalid/split1"))
    assert told.startswith("http://no-such-host.invalid/split1/small.json: ")


@pytest.mark.parametrize("location", ["pipe:cat /etc/passwd", "ftp://host/split1", "file:///split1", "http:///split1"])
def test_other_kinds_of_url_are_refused(location):
    assert is_url(location)
    with pytest.raises(UnreachableError, match=r"not a kind of location that is read; expected a folder"):
        RemoteStore(location)


def test_what_cannot_be_taken_apart_is_not_repeated():
    with pytest.raises(
        UnreachableError, match=r"^a URL that cannot be read .*; expected https://HOST/FOLDER"
    ) as caught:
        RemoteStore("http://reader:secret@[host/split1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("location", ["s3://AKIDEXAMPLE:secret@bucket/split1", "s3://bucket/split1?key=secret"])
def test_keys_in_an_s3_url_are_refused_and_not_repeated(location):
    with pytest.raises(UnreachableError, match=r"^s3://bucket/split1: expected a bucket and a path") as caught:
        RemoteStore(location)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("location", ["data/ucf101/split1", "/data/a.tar", "C:/data", "split1.lmdb", "a:b"])
def test_paths_are_no_urls(location):
    assert not is_url(location)


@pytest.fixture(scope="module")
def bucket(s3_server, folder):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        client = boto3.client("s3", endpoint_url=s3_server)
        client.create_bucket(Bucket="videos")
        for path in folder.iterdir():
            client.upload_file(str(path), "videos", f"ucf101/split1/{path.name}")
    return s3_server


def test_s3_reads_the_bytes_of_the_files(bucket, folder, aws):
    aws(AWS_ENDPOINT_URL=bucket, **KEYS)
    store = RemoteStore("s3://videos/ucf101/split1/")
    data = (folder / "train-000001.tar").read_bytes()
    wanted = [Range("train-000001.tar", 5, 900_000), Range("train-000000.tar", 0, 1)]
    assert bytes(store.fetch(wanted)[0]) == data[5:900_000]
    assert (store.size("train-000001.tar"), store.location) == (SIZE, "s3://videos/ucf101/split1")


def test_s3_takes_endpoint_region_and_keys_from_a_profile(bucket, aws, tmp_path):
    (tmp_path / "aws-config").write_text(f"[profile lab]\nregion = eu-west-1\nendpoint_url = {bucket}\n")
    keys = f"aws_access_key_id = {KEYS['AWS_ACCESS_KEY_ID']}\naws_secret_access_key = {KEYS['AWS_SECRET_ACCESS_KEY']}\n"
    (tmp_path / "aws-credentials").write_text(f"[lab]\n{keys}")
    aws(AWS_PROFILE="lab")
    assert RemoteStore("s3://videos/ucf101/split1").small("small.json") == b'{"a": 1}'


def test_s3_without_keys_asks_anonymously(server, aws):
    aws(AWS_ENDPOINT_URL=f"{server.url}/forbidden")
    told = refusal(RemoteStore("s3://videos/split1"))
    assert "no permission (403): no credentials were found, so the request was anonymous" in told
    assert "looked, in turn, in the environment (AWS_ACCESS_KEY_ID), a profile of ~/.aws" in told
    server.requests()
    aws(AWS_ENDPOINT_URL=server.url)
    assert "not there (404)" in refusal(RemoteStore("s3://videos/split1"))
    assert server.requests() == {"videos/split1/small.json": 1}  # and once only: a 404 is not tried again


def test_a_403_of_s3_says_where_the_keys_came_from_and_not_what_they_are(server, aws):
    aws(AWS_ENDPOINT_URL=f"{server.url}/forbidden", **KEYS)
    told = refusal(RemoteStore("s3://videos/split1"))
    asked = "s3://videos/split1/small.json: no permission (403): the request was signed with what boto3 found (env; it"
    assert asked in told
    assert "not there, to those who may not list the bucket" in told


def test_s3_names_what_is_not_there(bucket, aws):
    aws(AWS_ENDPOINT_URL=bucket, **KEYS)
    told = refusal(RemoteStore("s3://videos/ucf101/split2"), "manifest.json")
    assert "s3://videos/ucf101/split2/manifest.json: not there (404)" in told
    assert "s3://films/small.json: no such bucket" in refusal(RemoteStore("s3://films"))


def test_a_profile_that_does_not_exist_is_named(aws):
    aws(AWS_PROFILE="nobody")
    told = refusal(RemoteStore("s3://videos/split1"))
    assert "the AWS settings cannot be used: The config profile (nobody) could not be found" in told


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_a_fork_after_the_first_read_is_told_so_instead_of_waiting_for_ever(server):
    told = run(
        """
        import os, sys
        from shards.errors import UnreachableError
        from shards.stores import Range
        from shards.stores.remote import RemoteStore

        store = RemoteStore(sys.argv[1])
        store.small("small.json")
        if os.fork() == 0:
            try:
                store.fetch([Range("train-000000.tar", 0, 5), Range("train-000001.tar", 0, 5)])
            except UnreachableError as error:
                print(error, flush=True)
            os._exit(0)
        os.wait()
        print(store.small("small.json"))
        """,
        server.url,
    )
    assert "Start workers with spawn or forkserver" in told
    assert told.endswith("""b'{"a": 1}'\n""")


def test_a_fork_before_the_first_read_reads(server):
    told = run(
        """
        import os, sys
        from shards.stores.remote import RemoteStore

        store = RemoteStore(sys.argv[1])
        if os.fork() == 0:
            print(store.small("small.json"), flush=True)
            os._exit(0)
        os.wait()
        print(store.size("train-000000.tar"))
        """,
        server.url,
    )
    assert told == f"""b'{{"a": 1}}'\n{SIZE}\n"""


def test_importing_and_making_a_store_loads_neither_obstore_nor_boto3():
    told = run(
        """
        import sys
        from shards.stores.remote import RemoteStore
        RemoteStore("s3://videos/split1"), RemoteStore("https://host/split1")
        print([name for name in ("obstore", "boto3", "botocore") if name in sys.modules])
        """
    )
    assert told == "[]\n"


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory, make_split):
    folder = tmp_path_factory.mktemp("split")
    make_split(folder / "split1")
    return folder


def all_bytes(split):
    """Every member of every record, and every image of one of its streams read as training does."""
    members = {}
    for part in split.manifest.parts:
        for row in split.index(part):
            members[part, row.key] = {name: bytes(blob) for name, blob in split.members(part, row).items()}
            blob, offset = split.store.place(part, row, "rgb")
            first = split.store.fetch([Range(blob, offset, offset + int(row.rgb.ends[0]))])[0]
            assert bytes(first) == members[part, row.key]["video.rgb.mjpeg"][: row.rgb.ends[0]]
    return members


def test_a_split_over_http_is_the_split_on_the_disk(serve, split_folder):
    url = serve(split_folder).url
    with open_split(f"{url}/split1/") as remote, open_split(split_folder / "split1") as local:
        assert all_bytes(remote) == all_bytes(local)
        assert (remote.manifest, remote.location) == (local.manifest, f"{url}/split1")


def test_a_split_in_s3_is_the_split_on_the_disk(s3_server, split_folder, aws):
    aws(AWS_ENDPOINT_URL=s3_server, **KEYS)
    client = boto3.client("s3")
    client.create_bucket(Bucket="drawn")
    for path in (split_folder / "split1").iterdir():
        client.upload_file(str(path), "drawn", f"data/split1/{path.name}")
    with open_split("s3://drawn/data/split1") as remote, open_split(split_folder / "split1") as local:
        assert all_bytes(remote) == all_bytes(local)
    with open_split("s3://drawn/data/split1/test-000000.tar") as remote:
        tar = split_folder / "split1" / "test-000000.tar"
        with open_split(tar) as local:
            assert all_bytes(remote) == all_bytes(local)


def test_a_single_tar_over_http_is_the_tar_on_the_disk(serve, split_folder):
    server, tar = serve(split_folder / "split1"), "train-000001.tar"
    with open_split(f"{server.url}/{tar}") as remote:
        records = len(remote.index("train"))
        assert sum(server.requests().values()) <= 3 + 2 * records  # each one's headers and tables
        with open_split(split_folder / "split1" / tar) as local:
            assert all_bytes(remote) == all_bytes(local)
            assert remote.manifest == local.manifest


@dataclass(frozen=True)
class Chosen:
    frames: np.ndarray
    pairs: np.ndarray


def test_clips_over_http_are_those_of_the_disk_in_one_request_for_each_run_of_frames(serve, split_folder):
    server = serve(split_folder)
    wanted = [(i, i, Chosen(np.array([1, 5, 9]), np.array([2, 3]))) for i in range(3)]
    with open_split(f"{server.url}/split1") as remote, open_split(split_folder / "split1") as local:
        remote.index("train")
        server.requests()
        over_http, on_disk = (read_clips(split, "train", wanted) for split in (remote, local))
        assert [(clip.rgb, clip.flow) for clip in over_http] == [(clip.rgb, clip.flow) for clip in on_disk]
        assert len(wanted) <= sum(server.requests().values()) <= 4 * len(wanted)


def test_a_url_that_is_no_split_says_what_a_split_is(serve, split_folder):
    url = serve(split_folder).url
    with pytest.raises(
        UnreachableError, match=r"/manifest\.json: not there \(404\)\. Check the address: a split is the"
    ):
        open_split(url)


def test_a_first_clip_costs_three_requests_once_the_split_is_open(serve, split_folder):
    server = serve(split_folder)
    with open_split(f"{server.url}/split1") as split:
        split.read("train", 0)
        requests = server.requests()
        assert requests.pop("split1/manifest.json") == 2  # one of them to see where the server leads
        assert list(requests.values()) == [1, 1]  # index, one range for the record
