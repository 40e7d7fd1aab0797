"""A build killed anywhere, out of room, or robbed of its videos, and run again, is the build that nothing disturbed.

Most builds here are one process that is struck at a chosen moment (build_victims.py); some are the real command.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from preprocess.building.tally import Progress
from preprocess.errors import PreprocessError
from shards.errors import ShardError
from tests.faults.build_victims import BuildVictims, small_build
from tests.preprocess.conftest import drawn_folders

KILLED = -signal.SIGKILL
SETTINGS = ["--flow", "dis", "--set", "preprocess.rgb.short_side=32", "--set", "preprocess.per_shard=2"]
PARTS = ("1/3", "2/3", "3/3")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def victims() -> Iterator[BuildVictims]:
    with BuildVictims() as victims:
        yield victims


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos: seven shards of two records at the most, in two parts and their strata."""
    return drawn_folders(tmp_path_factory.mktemp("data") / "small", train=3, width=40, height=30)


@pytest.fixture(scope="module")
def undisturbed(victims: BuildVictims, root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a build that nothing disturbed, and how many moments it had."""
    out = tmp_path_factory.mktemp("undisturbed")
    ended = victims.run(root, out)
    assert ended.code == 0, ended.output
    return out, ended.moments


def tree(out: Path) -> dict[str, str]:
    """All that lies below `out`, by name: the digests of files; what differs from place to place is left out."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "settings.yaml")
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def split_of(out: Path) -> dict[str, str]:
    return tree(out / "small" / "split1")


def assert_same_build(out: Path, undisturbed: Path) -> None:
    """The same files with the same bytes, and nothing else: no record, note or half-written file is left."""
    assert split_of(out) == split_of(undisturbed)
    assert tree(out).keys() == tree(undisturbed).keys()
    assert not (out / ".work").exists()


# Killed, told to stop


SLOW = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("seed", "kills"), [(0, 3), *(pytest.param(seed, 20, marks=SLOW) for seed in range(1, 6))])
def test_a_build_killed_at_random_moments_and_run_again(victims, root, undisturbed, tmp_path, seed, kills):
    whole, moments = undisturbed
    draws, struck = np.random.default_rng(seed), 0
    for _ in range(kills):
        number = int(draws.integers(1, max(3, 2 * moments // kills)))
        delay_s = float(draws.choice([0, draws.uniform(0, 0.05)]))
        how = str(draws.choice(["kill", "kill", "term", "int"]))
        print(f"{how} at {number} of {moments}, {delay_s:.3f} s later")
        ended = victims.run(root, tmp_path, number=number, how=how, delay_s=delay_s)
        assert ended.code in (KILLED, 130, 0), ended.output
        struck += ended.code != 0
    assert struck >= min(kills / 2, 2)
    ended = victims.run(root, tmp_path)
    assert ended.code == 0, ended.output
    assert_same_build(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_build_killed_at_every_fifth_of_its_moments_and_at_all_of_the_last_and_run_again(
    victims, root, undisturbed, tmp_path
):
    whole, moments = undisturbed
    for number in [*range(1, moments - 30, 5), *range(moments - 30, moments + 1)]:
        out = tmp_path / str(number)
        out.mkdir()
        assert victims.run(root, out, number=number, how="kill").code == KILLED
        ended = victims.run(root, out)
        assert ended.code == 0, f"killed at {number}: {ended.output}"
        assert_same_build(out, whole)


@pytest.mark.parametrize(("seed", "kills"), [(0, 1), *(pytest.param(seed, 6, marks=SLOW) for seed in range(1, 6))])
def test_parts_killed_at_random_moments_run_again_and_merged(victims, root, undisturbed, tmp_path, seed, kills):
    whole, moments = undisturbed
    draws = np.random.default_rng(seed)
    for part in draws.permutation([*PARTS, *PARTS[:1]]):  # one of them once more, when it is done
        for _ in range(kills):
            number = int(draws.integers(1, max(3, moments // kills // len(PARTS))))
            print(f"part {part} killed at {number}")
            ended = victims.run(root, tmp_path, str(part), number=number, how="kill")
            assert ended.code in (KILLED, 0), ended.output
        ended = victims.run(root, tmp_path, "merge")
        ended = victims.run(root, tmp_path, str(part))
        assert ended.code == 0, ended.output
    for number in draws.integers(1, 30, kills):
        assert victims.run(root, tmp_path, "merge", number=int(number), how="kill").code in (KILLED, 0)
    ended = victims.run(root, tmp_path, "merge")
    assert ended.code == 0, ended.output
    assert_same_build(tmp_path, whole)


def test_what_parts_began_a_build_of_all_ends(victims, root, undisturbed, tmp_path):
    whole, moments = undisturbed
    assert victims.run(root, tmp_path, "2/3").code == 0
    assert victims.run(root, tmp_path, "3/3", number=moments // 6, how="kill").code == KILLED
    missing = victims.run(root, tmp_path, "merge")
    assert missing.code == 1
    assert "1/3" in missing.output
    assert "3/3" in missing.output
    assert "2/3" not in missing.output
    assert victims.run(root, tmp_path).code == 0
    assert_same_build(tmp_path, whole)


def command(root: Path, out: Path, *options: str, what: str = "shards") -> list[str]:
    words = ["preprocess", what, "--root", str(root), "--out", str(out), *SETTINGS, *options]
    return [sys.executable, "-m", "stmul", *words]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_and_its_processes_killed_at_20_random_times(root, undisturbed, tmp_path):
    draws = np.random.default_rng()
    taken_s = _run_until(command(root, tmp_path / "first", "--workers", "2"), None, signal.SIGKILL)
    again = tmp_path / "again"
    for kill in range(20):
        number = signal.Signals(int(draws.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])))
        after_s = float(draws.uniform(0.3, 1.0) * taken_s)
        print(f"{number.name} after {after_s:.2f} s of {taken_s:.2f}")
        _run_until(command(root, again, "--workers", str(kill % 3 + 1)), after_s, number)
        if split_of(again) == split_of(undisturbed[0]):
            again = tmp_path / f"again{kill}"  # it was done: begin anew
    _run_until(command(root, again, "--workers", "2"), None, signal.SIGKILL)
    for out in (tmp_path / "first", again):
        assert_same_build(out, undisturbed[0])


def _run_until(words: list[str], seconds: float | None, number: signal.Signals) -> float:
    """How long the command took, which is ended after `seconds`; None: it may end."""
    begin = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        _, said = process.communicate(timeout=240)
    too_early = said.endswith("Aborted!\n")  # Ctrl-C before there was anything to stop
    assert process.returncode in ((0,) if seconds is None else (0, -number, 130)) or too_early, said
    return time.monotonic() - begin


@pytest.mark.slow
def test_commands_for_parts_run_side_by_side_one_is_stopped_and_all_are_merged(root, undisturbed, tmp_path):
    """As a shell loop does it: two parts at a time on one folder, one of them is told to stop and called again."""
    one, other = (
        subprocess.Popen(command(root, tmp_path, "--part", part, "--workers", "1"), stderr=subprocess.PIPE, text=True)
        for part in ("1/2", "2/2")
    )
    end = time.monotonic() + 240
    while one.poll() is None and not any(tmp_path.rglob("*.record")) and time.monotonic() < end:
        time.sleep(0.01)
    one.terminate()
    _, said = one.communicate(timeout=240)
    assert one.returncode in (130, 0), said
    _, said = other.communicate(timeout=240)
    assert other.returncode == 0, said
    subprocess.run(command(root, tmp_path, "--part", "1/2", "--workers", "1"), check=True)
    subprocess.run(command(root, tmp_path, what="merge"), check=True)
    assert_same_build(tmp_path, undisturbed[0])


# Out of room


FULL = """
import os, subprocess, sys
from pathlib import Path
from preprocess.errors import PreprocessError
from shards.errors import ShardError
from tests.faults.build_victims import small_build

root, out, wholes, shares = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
for share in shares:
    disk = out / share
    disk.mkdir()
    size = max(int(float(share) * wholes) // 4096, 1) * 4096  # 0 would be no limit
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        small_build(root, disk, "build")
        print("done", share)
    except (ShardError, PreprocessError) as error:
        print("full", share, error)
        assert "No space left on device" in str(error), error
        assert not list(disk.rglob("*.partial")), list(disk.rglob("*"))
        assert not (disk / "small/split1/manifest.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    small_build(root, disk, "build")
    subprocess.run(["cp", "-r", str(disk), str(out / f"{share}-copy")], check=True)
"""


@pytest.fixture(scope="module")
def own_mounts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command before a command that may mount small disks, which nobody else sees."""
    folder = tmp_path_factory.mktemp("mount")
    try:
        subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount a small disk; test_build.py limits the size of files")
    return ["unshare", "-rm"]


@pytest.mark.parametrize(
    "shares", [("0.3", "0.9"), pytest.param(tuple(f"{n / 50:.2f}" for n in range(1, 75)), marks=SLOW)], ids=len
)
def test_a_full_disk_is_one_error_and_once_there_is_room_the_build_is_the_same(
    own_mounts, root, undisturbed, tmp_path, shares
):
    size = sum(path.stat().st_size for path in undisturbed[0].rglob("*") if path.is_file())
    words = [*own_mounts, sys.executable, "-c", FULL, str(root), str(tmp_path), str(size), *shares]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert f"full {shares[0]}" in said.stdout
    for share in shares:
        assert_same_build(tmp_path / f"{share}-copy", undisturbed[0])


# Robbed


@pytest.mark.parametrize("what", ["build", "1/1"])
def test_videos_that_vanish_stop_the_build_and_it_goes_on_when_they_are_back(root, undisturbed, tmp_path, what):
    home, out, away = tmp_path / "small", tmp_path / "out", tmp_path / "away"
    home.symlink_to(root)

    def unmount(progress: Progress) -> None:
        if progress.stage == "videos" and progress.done == 3:
            home.rename(away)

    with pytest.raises(PreprocessError, match=r"is gone; was a disk unmounted.*the same command"):
        small_build(home, out, what, unmount)
    assert not (out / "small/split1/manifest.json").exists()
    assert not list(out.rglob("failures*"))
    away.rename(home)
    small_build(home, out, what)
    if what != "build":
        small_build(home, out, "merge")
    assert_same_build(out, undisturbed[0])


def test_an_output_that_vanishes_stops_the_build_and_it_is_not_made_in_its_place(root, undisturbed, tmp_path):
    out, away = tmp_path / "out", tmp_path / "away"

    def unmount(progress: Progress) -> None:
        if progress.stage == "videos" and progress.done == 3 and out.exists():
            out.rename(away)

    with pytest.raises(ShardError, match=str(out)):
        small_build(root, out, "build", unmount)
    assert not out.exists()
    away.rename(out)
    small_build(root, out, "build")
    assert_same_build(out, undisturbed[0])


def test_failures_noted_by_a_build_that_was_killed_are_gone_when_the_video_is_repaired(victims, tmp_path, undisturbed):
    home = drawn_folders(tmp_path / "small", train=3, width=40, height=30)
    broken = home / "videos/a/v_a_g02_c01.avi"
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    out = tmp_path / "out"
    assert victims.run(home, out, number=undisturbed[1] * 2 // 3, how="kill").code == KILLED
    noted = [json.loads(line) for line in (out / "small/split1/failures.jsonl").read_text().splitlines()]
    assert [one["path"] for one in noted] == [str(broken)]
    broken.write_bytes(good)
    assert victims.run(home, out).code == 0
    assert split_of(out) == split_of(undisturbed[0])
