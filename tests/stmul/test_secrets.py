"""A training from a place that asks for a password or a key leaves neither behind: in no file, no line, no message.

Whole trainings, tests and reports are run as a user types them; then every byte of what they left is searched.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import boto3
import pytest
from click.testing import CliRunner

from configs import SettingsError, load
from configs.text import without_secrets
from shards.errors import UnreachableError
from stmul.__main__ import main
from stmul.config import Config
from stmul.dataset import TrainingClips
from tests import http_server
from tests.conftest import drawn_split
from tests.stmul.test_cli import QUICK

PASSWORD, KEY_ID, KEY = "secret", "AKIDEXAMPLE000000000", "wJalrXUtnFEMIsKEY"
NEEDLES = (PASSWORD, "wrong-word", KEY_ID, KEY, "X-Amz-", "AWS4-HMAC", "reader:")


def needles() -> list[bytes]:
    """What must be found nowhere: the secrets as they are, for a URL, and in base64 wherever they may begin in it."""
    found = [text for needle in NEEDLES for text in (needle, quote(needle, safe=""))]
    for secret in ("reader:secret", PASSWORD, KEY):
        for before in range(3):
            # The first and last of the groups of four depend on what stands beside; those between do not.
            found.append(base64.b64encode(b"x" * before + secret.encode()).decode()[4:-4])
    return sorted({text.encode() for text in found if len(text) > 3})


def found_in(data: bytes) -> list[bytes]:
    return [needle for needle in needles() if needle in data]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below `folder`, and what is packed in those that are archives; and the names of all."""
    for path in sorted(folder.rglob("*")):
        yield f"the name of {path}", str(path.relative_to(folder)).encode()
        if path.is_symlink():
            yield str(path), str(path.readlink()).encode()
        elif path.is_file():
            yield str(path), path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    for name in archive.namelist():
                        yield f"{path}: {name}", archive.read(name)


def assert_clean(folder: Path, *told: str) -> None:
    for place, data in [*contents(folder), *((text, text.encode()) for text in told)]:
        assert not found_in(data), f"{found_in(data)} in {place}"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, http_server.Server]]:
    folder = tmp_path_factory.mktemp("served")
    drawn_split(folder / "split1", train=4, test=2, width=48, height=40, frames=14)
    with http_server.serving(folder) as server:
        yield folder, server


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which commands are run, with the cache and the home in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def stmul(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command; all that it, its libraries and its logs wrote to the terminal."""

    def run(*words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, list(words))
        out, err = capfd.readouterr()
        assert result.exit_code == code, result.output
        return result.output + out + err

    return run


def quick(*changes: str) -> list[str]:
    return [*(word for setting in (*QUICK, *changes) for word in ("--set", setting)), "-u", "0"]


BRIEF = ("train.stages=joint", "train.joint={epochs: 1, rates: [0.01]}")


def trained_tested_reported(stmul: Callable[..., str], url: str, *changes: str) -> list[str]:
    shards = f"data.shards={url}"
    return [
        stmul("train", *quick(shards, *changes)),
        stmul("test", "--set", shards),
        stmul("report", "--set", shards),
    ]


def test_what_searches_for_secrets_finds_them(tmp_path: Path) -> None:
    for number, secret in enumerate(
        [b"a secret word", KEY.encode(), *(base64.b64encode(b"y" * n + b"reader:secret!") for n in range(3))]
    ):
        with zipfile.ZipFile(tmp_path / f"{number}.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data", b"x" * 100 + secret)
        with pytest.raises(AssertionError):
            assert_clean(tmp_path)
        (tmp_path / f"{number}.pt").unlink()
    assert_clean(tmp_path, "nothing to be seen")


def test_the_password_of_a_url_is_left_nowhere(served, place, stmul):
    url = served[1].url.replace("http://", "http://reader:secret@") + "/private/split1"
    told = trained_tested_reported(stmul, url, "data.access=shards")
    assert_clean(place, *told)
    run = place / "experiment" / "demo-001"
    assert (run / "joint" / "epoch-0002.pt").is_file()
    assert (run / "report.html").is_file()
    assert json.loads((run / "run.json").read_text())["shards"] == f"{served[1].url}/private/split1"
    assert sorted((place / "home" / "cache").rglob("*")), "the cache was to be looked at, too"
    assert "401" in stmul("test", code=1)  # the run does not know the password any more


def test_the_signature_of_a_url_is_left_nowhere(served, place, stmul):
    url = f"{served[1].url}/token/split1?token=secret"
    told = stmul("train", *quick(f"data.shards={url}", f"data.cache={place / 'cache'}", *BRIEF))
    assert_clean(place, told)
    assert sorted((place / "cache").rglob("*")), "the cache was to be looked at, too"


def test_the_signature_of_a_list_of_tars_is_left_nowhere(served, place, stmul):
    url = f"{served[1].url}/token/split1/train-{{000000..000001}}.tar?token=secret"
    told = [stmul("train", *quick(f"data.shards={url}", f"data.cache={place / 'cache'}", *BRIEF))]
    told.append(stmul("shards", "show", url))
    assert_clean(place, *told)


def test_the_keys_of_s3_are_left_nowhere(served, s3_server, aws, place, stmul):
    aws(AWS_ACCESS_KEY_ID=KEY_ID, AWS_SECRET_ACCESS_KEY=KEY, AWS_REGION="us-east-1", AWS_ENDPOINT_URL=s3_server)
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="kept")
    for path in (served[0] / "split1").iterdir():
        client.upload_file(str(path), "kept", f"split1/{path.name}")
    told = trained_tested_reported(stmul, "s3://kept/split1", f"data.cache={place / 'cache'}", *BRIEF)
    told.append(stmul("train", *quick("data.shards=s3://kept/nothing"), code=1))
    told.append(stmul("train", *quick("data.shards=s3://nothing/split1"), code=1))
    assert_clean(place, *told)


@pytest.mark.parametrize("shape", ["http://reader:{}@", "http://{}@", "http://reader:x%2F{}@"])
@pytest.mark.parametrize("rest", ["/private/split1", "/nothing/split1", "/busy-not/x.tar", "/split1/manifest.jso"])
def test_a_place_that_cannot_be_read_is_named_without_its_password(served, place, stmul, shape, rest):
    url = served[1].url.replace("http://", shape.format("wrong-word")) + rest
    told = [stmul("train", *quick(f"data.shards={url}"), code=1)]
    told += [stmul("shards", word, url, code=1) for word in ("show", "verify")]
    assert_clean(place, *told)


@pytest.mark.parametrize(
    "location",
    [
        *(" http:/reader:secret@host/split1", "http:\\\\reader:secret@host", "htp://reader:secret@host/split1"),
        *("http://reader:pa/secret@host/split1", "http://reader:secret@[host/split1", "ftp://reader:secret@host/x"),
        *("http://reader:secret@host:port/split1", "s3://AKIDEXAMPLE000000000:secret@bucket/split1"),
        *("s3://bucket/split1?X-Amz-Signature=secret", "http://reader:secret@host/train-{0..1.tar"),
        "http://reader:secret@host/train-{000000..999999}.tar",
    ],
)
def test_a_location_that_is_mistyped_is_named_without_its_password(place, stmul, location):
    told = [stmul("train", *quick(f"data.shards={location}"), code=1), stmul("shards", "show", location, code=1)]
    assert_clean(place, *told)


@pytest.mark.parametrize(
    "changes",
    [
        ["data.shards={}", "data.stride=[9, 3]"],
        ["data.shard={}"],
        ["data.shards {}"],
        ["{}"],
        ["data.shards.x={}"],
        ["data.frames={}"],
        ["dta.shards={}"],
        ["data={{shards: '{}', stride: [9, 3]}}"],
        ["data={{shard: '{}'}}"],
        ["data={{shards: '{}', frames: '{}'}}"],
    ],
)
@pytest.mark.parametrize("url", ["https://reader:secret@host/split1", "https://host/a?X-Amz-Signature=secret&b=c"])
def test_a_setting_that_is_wrong_is_named_without_the_password_beside_it(place, stmul, changes, url):
    words = [change.format(url, url) for change in changes]
    with pytest.raises(SettingsError) as caught:
        load(Config, None, words)
    assert_clean(place, str(caught.value), stmul("train", *quick(*words), code=2))


def test_a_file_of_settings_may_hold_the_password_and_its_mistakes_do_not_repeat_it(place, stmul):
    (place / "own").mkdir()
    path = place / "own" / "lab.yaml"
    path.write_text("data:\n  shards: https://reader:secret@host/split1\n  stride: [9, 3]\n  crops: 3\n")
    told = stmul("train", "-c", str(path), code=2)
    path.unlink()
    assert_clean(place, told)


def test_other_words_stay_as_they_are():
    for text in ("a: b?", "mail me@host", "what? nothing", "--set train.lr=3: expected", "s3://bucket/a: no", "x:/a/b"):
        assert without_secrets(text) == text


def test_shards_are_shown_checked_and_copied_without_their_password(served, place, stmul):
    url = served[1].url.replace("http://", "http://reader:secret@") + "/private/split1"
    told = [stmul("shards", "show", url), stmul("shards", "verify", url), stmul("shards", "copy", url, "copied")]
    assert_clean(place, *told)
    assert (place / "copied" / "manifest.json").is_file()


def test_where_other_loops_stand_is_said_without_the_password(served, place):
    url = served[1].url.replace("http://", "http://reader:secret@") + "/private/split1"
    clips = TrainingClips(url, load(Config, None, QUICK), "joint")
    item = next(iter(clips))
    assert_clean(place, json.dumps(clips.state_dict()), json.dumps(clips.state_after(item)), repr(clips))
    lost = TrainingClips(url.replace("secret", "wrong-word"), load(Config, None, QUICK), "joint")
    with pytest.raises(UnreachableError) as caught:
        next(iter(lost))
    assert_clean(place, "".join(traceback.format_exception(caught.value)).replace(__file__, ""))


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_training_that_was_ended_leaves_no_password_and_goes_on_when_it_is_given_again(served, place, ending):
    url = served[1].url.replace("http://", "http://reader:secret@") + "/private/split1"
    longer = ["train.joint={epochs: 400, rates: [0.001]}", "train.save_minutes=0.01"]
    command = [sys.executable, "-m", "stmul", "train", *quick(f"data.shards={url}", "data.access=shards", *longer)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    told = [_ended(command, environment, ending, place / "experiment" / "demo-001")]
    told.append(_ended(command, environment, ending, place / "experiment" / "demo-001", epochs=2))
    assert "goes on where it was stopped" in told[-1]
    assert_clean(place, *told)


def _ended(command: Sequence[str], environment: dict[str, str], ending: int, run: Path, epochs: int = 1) -> str:
    """What a training says until it is ended, some epochs of its last stage later than it began with."""
    before = len((run / "log.jsonl").read_text().splitlines()) if (run / "log.jsonl").is_file() else 2
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (run / "log.jsonl").is_file() and len((run / "log.jsonl").read_text().splitlines()) >= before + epochs:
                break
            time.sleep(0.2)
        process.send_signal(ending)
        out, _ = process.communicate(timeout=60)
    return out
