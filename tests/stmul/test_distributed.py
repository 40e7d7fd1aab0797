"""Several ranks do what one does: per step, over restarts with other numbers of ranks, and in evaluation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs import SettingsError
from stmul.distributed import ALONE, Ranks, here
from stmul.errors import TrainingError
from stmul.evaluate import Scored, packed, unpacked
from stmul.runs import Run
from stmul.stages import build
from stmul.train import _with_last, train_stage
from tests.processes import free_ports
from tests.stmul.conftest import SMALL

SCRIPT = Path(__file__).with_name("rank.py")
JOINT = [
    *(change for change in SMALL if not change.startswith(("train.stages", "network.motion", "train.batch"))),
    "network.motion={depth: 18, width: 8, dropout: 0.5}",
    "train.stages=joint",
    "train.batch=8",  # four sub-batches: two for each of two ranks
    "train.joint={epochs: 4, rates: [0.0005]}",
]


def start(words: list[str], world: int, **more: str) -> list[subprocess.Popen[str]]:
    """The processes of `world` ranks that run `words`, connected by a port of their own."""
    (port,) = free_ports(1)
    common = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
    common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)} if world > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **common, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})},
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen[str]], code: int = 0) -> list[str]:
    outs = [process.communicate(timeout=240)[0] for process in processes]
    for process, out in zip(processes, outs, strict=True):
        assert process.returncode == code, out
    return outs


def trained(folder: Path, split: Path, sessions: list[tuple[int, int]]) -> Path:
    """Trains in sessions of (ranks, steps), each going on where the last stopped; what the ranks wrote."""
    folder.mkdir()
    for world, steps in sessions:
        held = "train.hold_out=0.2"
        words = [str(SCRIPT), str(split), str(folder / "experiment"), str(folder), str(steps), *JOINT, held]
        finish(start(words, world))
    return folder


def weights(folder: Path) -> list[np.ndarray]:
    return [np.load(folder / f"weights-{number}.npy") for number in range(len(list(folder.glob("weights-*.npy"))))]


def test_ranks_take_the_steps_of_one_process_and_restarts_with_other_numbers_of_them_repeat_and_lose_no_clip(
    tmp_path, make_split
):
    make_split(tmp_path / "split", train=13, test=3, width=48, height=40, frames=14)  # three of them held out
    alone = trained(tmp_path / "alone", tmp_path / "split", [(1, 100)])
    ranks = trained(tmp_path / "ranks", tmp_path / "split", [(2, 1), (1, 1), (2, 100)])
    one, several = weights(alone), weights(ranks)
    assert len(one) == len(several) == 5
    assert np.abs(one[2] - one[0]).max() > 1
    # Each of three steps is one session's. Later ones tell less: statistics of two clips double a difference ten times.
    for number in range(3):
        assert np.abs(one[number] - several[number]).max() < 1e-5, number
    positions = [json.loads(line) for path in ranks.glob("positions-*") for line in path.read_text().splitlines()]
    assert sorted(position for step in positions for position in step) == list(range(40))
    log = [json.loads(line) for line in next(ranks.glob("experiment/*/log.jsonl")).read_text().splitlines()]
    expected = [json.loads(line) for line in next(alone.glob("experiment/*/log.jsonl")).read_text().splitlines()]
    assert [row["epoch"] for row in log] == [row["epoch"] for row in expected] == [1, 2, 3, 4]
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in expected], abs=1e-2)
    assert [row["validation"]["clips"] for row in log] == [3, 3, 3, 3]
    assert log[0]["validation"] == pytest.approx(expected[0]["validation"], abs=1e-3)
    assert log[0]["losses"] == pytest.approx(expected[0]["losses"], abs=1e-3)
    assert len(list(ranks.glob("experiment/*/joint/best.pt"))) == 1


def test_training_and_testing_under_torchruns_variables_write_once_and_score_each_clip_once(tmp_path, make_split):
    make_split(tmp_path / "split", train=8, test=5, width=48, height=40, frames=14)
    changes = [f"data.shards={tmp_path / 'split'}", f"experiment.folder={tmp_path / 'experiment'}", *JOINT]
    options = [word for change in changes for word in ("--set", change)]
    first, other = finish(start(["-m", "stmul", "train", *options, "--set", "train.joint.epochs=1"], 2))
    assert "ranks     2, of which 2 on this machine" in first
    assert other == ""
    (run,) = (tmp_path / "experiment").iterdir()
    first, other = finish(start(["-m", "stmul", "test", *options[:4], "--use-gpu", "0"], 2))
    assert "5 of 5 clips" in first
    assert other == ""
    (path,) = (run / "results").glob("*.json")
    together = json.loads(path.read_text())
    finish(start(["-m", "stmul", "test", *options[:4], "--use-gpu", "0"], 1))
    assert json.loads(path.read_text()) == together


def test_the_death_of_a_rank_is_one_line_and_the_training_goes_on_from_its_checkpoint(tmp_path, make_split):
    make_split(tmp_path / "split", train=8, test=3, width=48, height=40, frames=14)
    changes = [f"data.shards={tmp_path / 'split'}", f"experiment.folder={tmp_path / 'experiment'}", *JOINT]
    long = [*changes, "train.joint={epochs: 4000, rates: [0.001]}"]
    words = ["-m", "stmul", "train", *(word for change in long for word in ("--set", change))]
    first, other = start(words, 2)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("experiment/*/joint/epoch-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    other.send_signal(signal.SIGKILL)
    out, _ = first.communicate(timeout=120)
    other.communicate()
    assert first.returncode == 1, out
    assert "another rank has ended" in out
    assert "The same command goes on from " in out
    assert "Traceback" not in out
    assert not list(tmp_path.glob("experiment/*/joint/*.partial"))
    again = start(words, 1)[0]
    deadline = time.monotonic() + 60
    assert again.stdout is not None
    assert any("goes on where it was stopped" in line for line in iter(again.stdout.readline, ""))
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert again.returncode in (130, -signal.SIGTERM)


def test_more_ranks_than_sub_batches_are_refused(tmp_path, split, small):
    config = small("train.batch=4", "train.sub_batch=2")
    with pytest.raises(TrainingError, match="a batch of 4 clips is 2 sub-batches of 2, too few for 3 processes"):
        train_stage(
            "joint",
            build("joint", config, 3),
            config,
            split,
            Run(tmp_path),
            device=torch.device("cpu"),
            watch=print,
            log=print,
            stop=lambda: False,
            ranks=Ranks(rank=2, world=3, local=2, local_world=3),
        )


def test_who_is_who_is_told_by_torchruns_variables_or_refused():
    assert here({}) == ALONE
    words = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert here(words) == Ranks(rank=3, world=4, local=1, local_world=2)
    for wrong in ({"RANK": "4"}, {"LOCAL_RANK": "2"}, {"RANK": "x"}, {"WORLD_SIZE": "0"}):
        with pytest.raises(SettingsError, match="expected what torchrun sets"):
            here({**words, **wrong})
    with pytest.raises(SettingsError, match="LOCAL_RANK=unset"):
        here({name: value for name, value in words.items() if name != "LOCAL_RANK"})


@given(st.lists(st.integers()))
def test_only_the_last_of_a_sequence_is_the_last(items):
    assert list(_with_last(items)) == [(item, number == len(items) - 1) for number, item in enumerate(items)]


@given(
    st.dictionaries(st.integers(0, 99), st.tuples(st.text(), st.integers(0, 9), st.lists(st.floats(width=32)))),
    st.lists(st.text(), max_size=3, unique=True),
)
def test_scores_travel_bit_by_bit(clips, heads):
    sent = [
        Scored(record=record, name=name, label=label, heads={head: np.array(row, dtype=np.float32) for head in heads})
        for record, (name, label, row) in clips.items()
    ]
    got = list(unpacked(packed(sent)))
    for one, other in zip(sent, got, strict=True):
        assert (one.record, one.name, one.label) == (other.record, other.name, other.label)
        assert [(k, v.tobytes()) for k, v in one.heads.items()] == [(k, v.tobytes()) for k, v in other.heads.items()]
