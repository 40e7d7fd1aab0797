"""The commands as a user types them, in processes of their own where that matters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from shards.copy import copy_split
from stmul.__main__ import main

QUICK = [
    "network={appearance: {depth: 18, width: 8}, motion: {depth: 18, width: 8}}",
    "data={crop: 32, frames: 2, stack: 4, stride: [2, 4], threads: 1}",
    "train={stages: scratch, batch: 4, sub_batch: 4, joint: {epochs: 2, rates: [0.01]},"
    " appearance: {epochs: 1, rates: [0.01]}, motion: {epochs: 1, rates: [0.01]}}",
    "evaluate={frames: 2}",
]


def stmul(*words, code=0):
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == code, result.output
    return result.output


def quick():
    return [word for setting in QUICK for word in ("--set", setting)] + ["-u", "0"]


@pytest.fixture
def place(tmp_path, monkeypatch, make_split):
    """A folder with shards in which the commands are run."""
    make_split(tmp_path / "split1", train=8, test=4, width=48, height=40, frames=14)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def losses(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["stage"], row["epoch"], row["loss"]) for row in rows]


def test_train_then_test_then_report_leave_scores_and_a_page(place):
    out = stmul("train", *quick(), "--set", "data.shards=split1")
    assert "from scratch" in out
    assert "experiment/demo-001" in out
    out = stmul("test")
    assert "4 of 4 clips" in out
    run = place / "experiment" / "demo-001"
    scores = json.loads(next((run / "results").glob("*.json")).read_text())
    assert scores["expected"] == 4
    page = (run / "report.html").read_text()
    assert "demo-001" in page
    assert "Grad-CAM" in page  # its networks were loaded again to see what they looked at
    (run / "report.html").unlink()
    stmul("report", "-i", "demo-001")
    assert (run / "report.html").exists()


def test_the_same_shards_as_tar_as_lmdb_and_over_http_give_the_same_curve(place, serve):
    copy_split("split1", "split1.lmdb")
    for shards in ("split1", "split1.lmdb", serve(place).url + "/split1"):
        stmul("train", *quick(), "--set", f"data.shards={shards}")
    tar, lmdb, http = (losses(place / "experiment" / f"demo-00{number}") for number in (1, 2, 3))
    assert tar == lmdb == http


def test_options_of_the_earlier_implementation_are_understood(place):
    out = stmul("train", *quick(), "--set", "data.shards=split1", "-e", "elsewhere", "--use-gpu", "0", "--gpu-id", "0")
    assert "elsewhere/demo-001" in out
    out = stmul("test", "-e", "elsewhere", "-i", "demo-001", "-p", "1", "--part", "train")
    assert "epoch 1" in out
    assert "8 of 8 clips" in out


@pytest.mark.parametrize(
    ("words", "expected", "code"),
    [
        (["train"], "no shards have been built here", 1),
        (["train", "--set", "data.shards=nowhere"], "nowhere", 1),
        (["train", "--set", "train.sed=1"], "did you mean train.seed", 2),
        (["train", "-c", "dmeo"], "did you mean demo", 2),
        (["test"], "no runs here", 1),
        (["test", "-i", "x"], "no runs here", 1),
        (["trian"], "did you mean train", 2),
    ],
)
def test_mistakes_are_one_line_that_says_what_to_do(place, words, expected, code):
    out = stmul(*words, code=code)
    assert expected in out
    assert "Traceback" not in out


def test_a_part_that_is_not_there_is_refused(place):
    stmul("train", *quick(), "--set", "data.shards=split1")
    assert "expected one of" in stmul("test", "--part", "tset", code=2)


def test_configurations_and_summary_print(place):
    assert "demo" in stmul("configs")
    assert "width: 16" in stmul("configs", "demo")
    out = stmul("summary", "-c", "demo", "--classes", "8")
    assert "multiply" in out
    assert "5b" in out


def test_a_training_that_is_told_to_stop_writes_a_checkpoint_and_goes_on(place):
    words = [*quick(), "--set", "data.shards=split1", "--set", "train.joint={epochs: 400, rates: [0.001]}"]
    command = [sys.executable, "-m", "stmul", "train", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    run = place / "experiment" / "demo-001"
    deadline = time.monotonic() + 90
    while not list((run / "joint").glob("epoch-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "run the same command to go on" in out
    assert "goes on where it was stopped" in _begin(command)


def _begin(command):
    """What the command says until its first epoch; then it is stopped."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("run "):
            break
    process.kill()
    process.communicate()
    return "".join(lines)


def test_credentials_in_the_url_of_the_shards_are_written_nowhere(place, serve):
    url = serve(place).url.replace("http://", "http://user:secret-word@") + "/split1"
    out = stmul("train", *quick(), "--set", f"data.shards={url}")
    assert "secret-word" not in out
    for path in (place / "experiment").rglob("*"):
        assert not path.is_file() or b"secret-word" not in path.read_bytes(), path
