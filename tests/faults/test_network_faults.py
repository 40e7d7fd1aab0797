"""Whatever the network does to a training that streams: each clip comes once and byte by byte, or is refused in words.

The faults are made by a server of the tests' own and each test looks at its books: that they happened, and what was
sent again for them.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from shards.access import Access
from shards.errors import ChangedError, CorruptRecordError, UnreachableError
from shards.split import open_split
from shards.stores import connect
from shards.stream import read_clips
from tests.faults.delivery import (
    BATCH,
    SECRETS,
    SUB_BATCH,
    Delivered,
    choose,
    delivered,
    order_of,
    steps,
    stream,
    taken,
)
from tests.faults.fault_server import FaultPlan, FaultServer, serving

RECORDS, PER_SHARD = 300, 30
STEPS = RECORDS // BATCH  # one epoch
SHARDS = r".*\.tar"
ALONE = ("busy", "wait", "refused", "reset", "short", "drip", "stall", "wrong")
MIXED = dict.fromkeys(ALONE, 0.03)
SLOWNESS = {"stall_s": 1.5, "rate": 4000, "drip_s": 0.5}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a training asked a server for."""

    requests: int
    bytes: int  # of bodies


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., object]) -> Path:
    root = tmp_path_factory.mktemp("network-faults")
    make_split(root / "videos" / "split1", train=RECORDS, test=2, per_shard=PER_SHARD, frames=6, width=16, height=16)
    return root


@pytest.fixture(scope="module")
def local(root: Path) -> list[Delivered]:
    """The clips as they lie on the disk."""
    clips = taken(root / "videos" / "split1", STEPS)
    assert len({clip.name for clip in clips}) == RECORDS
    return clips


@pytest.fixture(scope="module")
def undisturbed(root: Path, local: list[Delivered]) -> Cost:
    """What an epoch costs where nothing goes wrong."""
    with serving(root) as server:
        assert epoch(server, Access(mode="ranges")) == local
        return cost(server)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What broke is tried again within fractions of a second; where a machine stands still for seconds, nothing has."""
    long, short = timedelta(seconds=60), timedelta(seconds=0.5)
    monkeypatch.setattr(connect, "TIMES", {**connect.TIMES, "connect_timeout": long, "read_timeout": long})
    backoff = {"init_backoff": timedelta(milliseconds=20), "base": 2, "max_backoff": short}
    monkeypatch.setattr(connect, "RETRY", {"max_retries": 3, "retry_timeout": long, "backoff": backoff})


@pytest.fixture
def impatient(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that stands still is given up, and tried again, within fractions of a second."""
    short = timedelta(seconds=0.5)
    monkeypatch.setattr(connect, "TIMES", {**connect.TIMES, "connect_timeout": short, "read_timeout": short})
    monkeypatch.setattr(connect, "RETRY", {**connect.RETRY, "retry_timeout": 2 * short})


def address(server: FaultServer) -> str:
    """The split, with secrets in its URL that no message may repeat."""
    return server.url.replace("//", "//reader:secret@") + "/videos/split1?signature=secret"


def cost(server: FaultServer) -> Cost:
    """What was asked for and sent of the shards."""
    requests, sent = server.requests(), server.sent()
    return Cost(
        requests=sum(count for path, count in requests.items() if path.endswith(".tar")),
        bytes=sum(size for path, size in sent.items() if path.endswith(".tar")),
    )


def epoch(server: FaultServer, access: Access) -> list[Delivered]:
    """The clips of the first epoch: the same reads as in a training, but none ahead, so that they can be counted."""
    with open_split(address(server), access=access) as split, ThreadPoolExecutor(16) as threads:
        frames = split.index("train").frames()
        wanted = [
            (position, record, choose(position, int(frames[record])))
            for position, record in enumerate(order_of(split).epoch(0).tolist())
        ]
        parts = [wanted[start : start + SUB_BATCH] for start in range(0, RECORDS, SUB_BATCH)]
        clips = threads.map(lambda part: delivered(read_clips(split, "train", part)), parts)
        return [clip for part in clips for clip in part]


def told(error: BaseException) -> str:
    """What an error says; neither it nor what hangs on to it holds a secret."""
    text = "".join(traceback.format_exception(error))
    assert [secret for secret in SECRETS if secret in text.replace(__file__, "")] == []
    return str(error)


@pytest.mark.parametrize("kind", ALONE)
def test_a_fault_costs_time_and_no_clip(root, local, impatient, kind):
    paths = SHARDS if kind == "wrong" else ".*"
    plan = FaultPlan(chances={kind: 0.03}, seed=3, most=2, **SLOWNESS, paths=paths)
    begun = time.monotonic()
    with serving(root, plan) as server:
        assert taken(address(server), STEPS, access=Access(mode="ranges")) == local
        assert server.faults()[kind] >= 8
    assert time.monotonic() - begun < 150


@pytest.mark.parametrize(
    ("mode", "chance", "read_ahead"),
    [("ranges", 0.03, 0), ("ranges", 0.03, 1 << 18), ("auto", 0.03, 1 << 18), ("shards", 0.1, 1 << 18)],
)
def test_all_faults_at_once_cost_no_clip(root, local, impatient, tmp_path, mode, chance, read_ahead):
    plan = FaultPlan(chances=dict.fromkeys(ALONE, chance), seed=1, most=2, **SLOWNESS, paths=SHARDS)
    access = Access(mode=mode, cache=tmp_path / "cache")
    begun = time.monotonic()
    with serving(root, plan) as server:
        assert taken(address(server), STEPS, access=access, read_ahead=read_ahead) == local
        faults = server.faults()
    assert time.monotonic() - begun < 200
    assert set(faults) >= set(ALONE) if mode == "ranges" else sum(faults.values()) > 4, faults


@pytest.mark.parametrize("mode", ["ranges", "shards"])
@pytest.mark.parametrize("kind", ["short", "reset"])
def test_of_a_body_that_breaks_off_only_the_rest_is_sent_again(root, local, undisturbed, tmp_path, kind, mode):
    plan = FaultPlan(chances={kind: 1.0}, at=0.9, paths=SHARDS)
    with serving(root, plan) as server:
        assert epoch(server, Access(mode=mode, cache=tmp_path / "cache")) == local
        paid, struck = cost(server), server.faults()[kind]
    whole = sum(path.stat().st_size for path in (root / "videos" / "split1").glob("train-*.tar"))
    expected = undisturbed.bytes if mode == "ranges" else whole
    assert struck >= RECORDS // PER_SHARD
    # All of it anew would be 1.9; a reset throws away what had arrived and was not yet read.
    assert paid.bytes <= (1.4 if kind == "reset" else 1.1) * expected
    if mode == "ranges":
        assert paid.requests <= undisturbed.requests + 1.3 * struck  # twice for each would be 2


def test_a_busy_server_is_asked_no_more_often_than_it_is_busy(root, local, undisturbed):
    plan = FaultPlan(chances={"busy": 0.5}, seed=2, most=1, paths=SHARDS)
    with serving(root, plan) as server:
        assert epoch(server, Access(mode="ranges")) == local
        paid, struck = cost(server), server.faults()["busy"]
    assert struck >= 20
    # A few more where the machine is busy: a connection that was closed idle, a frame that others overtook.
    assert undisturbed.requests + struck <= paid.requests <= undisturbed.requests + 1.3 * struck
    assert undisturbed.bytes <= paid.bytes <= 1.1 * undisturbed.bytes


def test_wrong_bytes_are_healed_by_asking_once_more_for_that_frame_alone(root, local, undisturbed):
    plan = FaultPlan(chances={"wrong": 0.5}, seed=1, most=1, paths=SHARDS)
    with serving(root, plan) as server:
        assert epoch(server, Access(mode="ranges")) == local
        paid, struck = cost(server), server.faults()["wrong"]
    assert struck >= 20
    assert paid.requests <= undisturbed.requests + 1.3 * struck  # a wrong bit may lie in a gap
    assert undisturbed.bytes < paid.bytes < undisturbed.bytes + struck * 1500  # bytes: no frame is longer


@pytest.mark.parametrize("name", ["manifest.json", "train.index"])
def test_wrong_bytes_in_what_is_read_first_are_healed_as_well(root, local, name):
    plan = FaultPlan(chances={"wrong": 1.0}, most=1, paths=f".*/{name}")
    with serving(root, plan) as server:
        assert taken(address(server), 1, access=Access(mode="ranges")) == local[:BATCH]
        assert server.faults()["wrong"] >= 1


@pytest.mark.parametrize("mode", ["ranges", "shards"])
def test_bytes_that_are_wrong_every_time_are_damage(root, local, tmp_path, mode):
    plan = FaultPlan(chances={"wrong": 1.0}, most=0, paths=r".*/train-000004\.tar")
    access = Access(mode=mode, cache=tmp_path / "cache")
    with serving(root, plan) as server, open_split(address(server), access=access) as split:
        with stream(split) as reading, pytest.raises(CorruptRecordError) as caught:
            list(steps(reading, STEPS))
        assert "train-000004.tar" in told(caught.value)
        left_out: dict[str, str] = {}
        with stream(split, skip=lambda row, error: left_out.update({row.name: told(error)})) as reading:
            found = list(steps(reading, STEPS))
    assert [clip.name for clip in found] == [clip.name for clip in local]
    missing = [clip.name for clip in found if not clip.valid]
    assert [clip for clip in found if clip.valid] == [clip for clip in local if clip.name not in missing]
    assert 0 < len(missing) <= PER_SHARD
    assert set(missing) <= set(left_out)
    assert all("train-000004.tar" in message for message in left_out.values())


@pytest.mark.parametrize("mode", ["ranges", "shards"])
def test_what_is_not_there_is_said_at_once_and_asked_for_once(root, tmp_path, make_split, mode):
    make_split(tmp_path / "split1", train=6, test=1)
    (tmp_path / "split1" / "train-000001.tar").unlink()
    access = Access(mode=mode, cache=tmp_path / "cache")
    with serving(tmp_path) as server:
        url = f"{server.url}/split1"
        with open_split(url, access=access) as split:
            record = int(split.index("train").shard_of().tolist().index(1))
            with pytest.raises(UnreachableError) as caught:
                read_clips(split, "train", [(0, record, choose(0, 12))])
            assert f"{url}/train-000001.tar: not there (404)" in told(caught.value)
            assert server.requests()["split1/train-000001.tar"] <= 7  # each range for itself, and none twice
            missed = [one for one in server.asked() if one[0] == "split1/train-000001.tar"]
            assert len(set(missed)) == len(missed)
        with pytest.raises(UnreachableError, match=r"not there \(404\)"):
            open_split(f"{server.url}/split2", access=access)
        assert server.requests()["split2/manifest.json"] <= 2


@pytest.mark.parametrize("mode", ["ranges", "shards"])
@pytest.mark.parametrize("kind", ["stale", "swapped"])
def test_an_object_that_changed_is_refused_with_both_versions(root, tmp_path, kind, mode):
    spared = 40 if mode == "ranges" else 1  # more than threads ask for at the same time: the old one is seen first
    plan = FaultPlan(chances={kind: 1.0}, most=0, paths=r".*/train-000004\.tar", first=spared)
    broken = FaultPlan(
        chances={"short": 1.0}, at=0.5, paths=SHARDS
    )  # whole shards are asked for once, unless it breaks
    access = Access(mode=mode, cache=tmp_path / "cache")
    with serving(root, plan, broken) as server, open_split(address(server), access=access) as split:
        with stream(split) as reading, pytest.raises(ChangedError) as caught:
            list(steps(reading, STEPS))
        assert server.faults()[kind] >= 1
        assert server.faults()[kind] <= 2 * access.connections, "another version is no passing fault"
    size = (root / "videos" / "split1" / "train-000004.tar").stat()
    message = told(caught.value)
    assert "train-000004.tar" in message
    for version in ("first", "other"):
        assert f"{version}-{size.st_size:x}-{size.st_mtime_ns:x}" in message


def test_a_changed_object_that_comes_back_is_gone_on_with(root, local):
    """Mirrors that differ: each refusal ends a stream, which goes on where it stood."""
    plan = FaultPlan(chances={"stale": 0.02}, seed=4, paths=SHARDS)
    found: list[Delivered] = []
    state, refusals = None, list[str]()
    with serving(root, plan) as server:
        while len(found) < RECORDS:
            access = Access(mode="ranges")
            with open_split(address(server), access=access) as split, stream(split, start=state) as reading:
                try:
                    while len(found) < RECORDS:
                        found += list(steps(reading, 1))
                except ChangedError as error:
                    refusals.append(told(error))
                state = reading.state()
            assert len(refusals) < 50
        assert server.faults()["stale"] >= len(refusals) > 0
    assert all("first-" in refusal and "other-" in refusal for refusal in refusals)
    assert found == local


def test_a_server_that_stands_still_for_ever_is_given_up_and_the_message_says_what_was_waited_for(root, impatient):
    plan = FaultPlan(chances={"stall": 1.0}, most=0, stall_s=600, paths=r".*/train-000004\.tar")
    with (
        serving(root, plan) as server,
        open_split(address(server), access=Access(mode="ranges", deadline=3)) as split,
        stream(split) as reading,
    ):
        begun = time.monotonic()
        with pytest.raises(UnreachableError) as caught:
            list(steps(reading, STEPS))
        assert 2 < time.monotonic() - begun < 100
        assert "train-000004.tar: no answer in time" in told(caught.value)


def test_a_server_that_is_busy_for_ever_is_given_up_at_the_deadline(root):
    plan = FaultPlan(chances={"busy": 1.0}, most=0, paths=r".*/train-000004\.tar")
    with (
        serving(root, plan) as server,
        open_split(address(server), access=Access(mode="ranges", deadline=3)) as split,
    ):
        record = int(split.index("train").shard_of().tolist().index(4))
        begun = time.monotonic()
        with pytest.raises(UnreachableError, match=r"train-000004\.tar: .*503"):
            read_clips(split, "train", [(0, record, choose(0, 6))])
        assert 2 < time.monotonic() - begun < 100
        assert server.faults()["busy"] <= 30 * len({one[2] for one in server.asked()})  # each range asks for itself


def test_slow_bytes_are_waited_for_though_all_of_them_take_longer_than_the_deadline(root):
    """The deadline is for seconds without a single byte."""
    plan = FaultPlan(chances={"drip": 1.0}, rate=100, drip_s=2.5, paths=SHARDS)  # then the rest comes at once
    with (
        serving(root, plan) as server,
        open_split(address(server), access=Access(mode="ranges", deadline=1.5)) as split,
        open_split(root / "videos" / "split1") as here,
    ):
        wanted = [(0, 0, choose(0, int(split.index("train").frames()[0])))]
        begun = time.monotonic()
        (clip,), (expected,) = read_clips(split, "train", wanted), read_clips(here, "train", wanted)
        assert time.monotonic() - begun > 1.5
        assert set(server.faults()) == {"drip"}
    assert (clip.rgb, clip.flow) == (expected.rgb, expected.flow)


# Buckets


@pytest.mark.parametrize("first", [0, 100], ids=["never", "no more"])
@pytest.mark.parametrize(("mode", "scheme"), [("auto", "http"), ("ranges", "http"), ("ranges", "s3")])
def test_a_server_without_ranges_gives_whole_shards_and_that_is_said_once(
    root, local, signed, tmp_path, caplog, mode, scheme, first
):
    plan = FaultPlan(chances={"plain": 1.0}, most=0, first=first)
    caplog.set_level(logging.WARNING, "shards")
    with serving(root, plan) as server:
        location = address(server) if scheme == "http" else signed(server)
        assert taken(location, STEPS, access=Access(mode=mode, cache=tmp_path / "cache")) == local
        asked = Counter(path for path, _, _ in server.asked() if path.endswith(".tar"))
    said = [record.getMessage() for record in caplog.records if record.name == "shards"]
    assert len(said) == 1
    assert not [secret for secret in SECRETS if secret in said[0]]
    assert sum(asked.values()) <= RECORDS // PER_SHARD + first + 16 * SUB_BATCH * 7  # what 16 threads ask for at first


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        ("busy", 3),
        ("refused", 3),
        ("short", 1),
        ("reset", 1),
        ("short", 3),
        ("reset", 3),
    ],
)
def test_a_whole_file_that_breaks_off_is_asked_for_again_where_there_are_no_ranges(root, local, tmp_path, kind, times):
    breaks = FaultPlan(chances={kind: 1.0}, whole=True, most=times, paths=SHARDS)
    plain = FaultPlan(chances={"plain": 1.0}, most=0, paths=SHARDS)
    with serving(root, breaks, plain) as server:
        assert taken(address(server), STEPS, access=Access(cache=tmp_path / "cache")) == local
        assert server.faults()[kind] == times * RECORDS // PER_SHARD


@pytest.mark.parametrize(("status", "seconds"), [(400, 3600), (403, 60)])
def test_keys_that_expire_are_fetched_anew(root, local, signed, status, seconds):
    plan = FaultPlan(key_requests=500, key_seconds=seconds, expired_status=status)
    begun = time.monotonic()
    with serving(root, plan) as server:
        assert taken(signed(server), STEPS, access=Access(mode="ranges")) == local
        faults = server.faults()
    assert 1 <= faults["expired"] <= 300, faults
    assert "unsigned" not in faults
    assert time.monotonic() - begun < 150


def test_keys_that_expire_and_all_faults_at_once(root, local, impatient, signed):
    plan = FaultPlan(chances=MIXED, seed=2, most=2, **SLOWNESS, paths=SHARDS, key_requests=500)
    with serving(root, plan) as server:
        assert taken(signed(server), STEPS, access=Access(mode="ranges")) == local
        assert server.faults()["expired"] >= 1


def test_keys_that_no_refresh_makes_good_are_refused_without_showing_them(root, signed):
    with serving(root, FaultPlan(key_requests=0)) as server, serving(root, FaultPlan(key_requests=5)) as other:
        location = signed(server)  # hands out keys that the other server does not know
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", other.url)
            with pytest.raises(UnreachableError, match=r"no permission \(403\)") as caught:
                open_split(location, access=Access(mode="ranges"))
        assert "credential_process" in told(caught.value) or "custom-process" in told(caught.value)
        assert other.faults()["unsigned"] <= 4
