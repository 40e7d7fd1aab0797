"""A training of three stages that takes a second, and what it comes to when nobody interrupts it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch

from stmul.checkpoint import Checkpoint, load
from stmul.runs import STAGES, Run, runs
from tests.faults.fault_server import FaultServer
from tests.faults.victims import Ended, Victims

TINY = """\
network: {{appearance: {{depth: 18, width: 4}}, motion: {{depth: 18, width: 4, dropout: 0.5}}}}
data: {{shards: {shards}, crop: 32, frames: 2, stack: 4, stride: [2, 4], threads: 2}}
train:
  stages: scratch
  batch: 4  # of ten clips: batches straddle epochs
  sub_batch: 2
  save_minutes: {save_minutes}
  appearance: {{epochs: 1, rates: [0.02]}}
  motion: {{epochs: 1, rates: [0.02]}}
  joint: {{epochs: 2, rates: [0.02]}}
experiment: {{use_gpu: 'no'}}
"""
AFTER_EVERY_STEP = 1e-9


@dataclass(frozen=True)
class Place:
    """A folder in which the tiny training is run, again and again."""

    folder: Path
    shards: Path
    victims: Victims

    def words(self, save_minutes: float = AFTER_EVERY_STEP) -> list[str]:
        """The command; its settings are written first."""
        (self.folder / "tiny.yaml").write_text(TINY.format(shards=self.shards, save_minutes=save_minutes))
        return ["train", "-c", "tiny.yaml"]

    def train(self, *, save_minutes: float = AFTER_EVERY_STEP, **strike: Any) -> Ended:
        """Runs the command until it ends, or is struck."""
        return self.victims.run(self.folder, self.words(save_minutes), strike or None)

    @property
    def run(self) -> Run:
        """The only run there is."""
        (run,) = runs(self.folder / "experiment")
        return run


@pytest.fixture(scope="session")
def victims() -> Iterator[Victims]:
    with Victims() as victims:
        yield victims


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., object]) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "split1"
    make_split(folder, train=10, test=2, width=48, height=40, frames=14)
    return folder


@pytest.fixture
def place(tmp_path: Path, tiny_shards: Path, victims: Victims) -> Place:
    return Place(tmp_path, tiny_shards, victims)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, victims: Victims) -> tuple[Run, Ended]:
    """A run that nobody interrupted, and how it ended."""
    place = Place(tmp_path_factory.mktemp("uninterrupted"), tiny_shards, victims)
    ended = place.train()
    assert ended.code == 0, ended.output
    return place.run, ended


def learnt(run: Run) -> list[tuple[Any, ...]]:
    """The log without what depends on the clock."""
    return [tuple(row[name] for name in ("stage", "epoch", "step", "loss", "accuracy", "lr")) for row in run.history()]


def assert_same_training(run: Run, other: Run) -> None:
    """Log, checkpoints and files are the same, numbers bit by bit; nothing else is left."""
    assert learnt(run) == learnt(other)
    assert run.about().done
    assert left(run) == left(other)
    for stage in STAGES:
        for epoch, path in other.checkpoints(stage).items():
            one, another = load(run.epoch(stage, epoch)), load(path)
            for name in (field.name for field in fields(Checkpoint) if field.name != "config"):
                assert_same(getattr(one, name), getattr(another, name))


def left(run: Run) -> set[str]:
    """The files of a run but for TensorBoard's."""
    files = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith("tensorboard/")}


def assert_same(one: Any, other: Any) -> None:
    """Equal all the way down."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        for part, same in zip(one, other, strict=True):
            assert_same(part, same)
    else:
        assert one == other


@pytest.fixture
def signed(aws: Callable[..., None], tmp_path: Path) -> Callable[[FaultServer], str]:
    """A function that sets a machine up whose keys come from the server, by `credential_process`; the address."""

    def configured(server: FaultServer) -> str:
        script = tmp_path / "keys.py"
        script.write_text(f"import urllib.request as r; print(r.urlopen({server.url + '/keys'!r}).read().decode())")
        process = f"{sys.executable} -S {script}"
        (tmp_path / "aws-config").write_text(
            f"[profile lab]\nregion = eu-west-1\nendpoint_url = {server.url}\ncredential_process = {process}\n"
        )
        aws(AWS_PROFILE="lab")
        return "s3://videos/split1"

    return configured
