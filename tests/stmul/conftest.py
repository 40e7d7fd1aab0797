"""A training small enough for tests: one-second stages on drawn records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs import load
from shards.split import Split, open_split
from stmul.config import Config

torch.set_num_threads(1)  # tests run side by side; threads that spin for a busy core cost minutes

SMALL = (
    "network.appearance={depth: 18, width: 8}",
    "network.motion={depth: 18, width: 8, dropout: 0.5}",
    "data.crop=32",
    "data.frames=2",
    "data.stack=4",
    "data.stride=[2, 4]",
    "data.threads=2",
    "train.stages=scratch",
    "train.batch=4",
    "train.sub_batch=2",
    "train.appearance={epochs: 1, rates: [0.02]}",
    "train.motion={epochs: 1, rates: [0.02]}",
    "train.joint={epochs: 2, rates: [0.02]}",
    "evaluate.frames=3",
    "experiment.use_gpu='no'",
)


@pytest.fixture(scope="module", autouse=True)
def drawn_alike_in_a_module() -> None:
    """What fixtures draw does not depend on which tests came before: workers share them out as they have time."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """Nor does what a test draws."""
    torch.manual_seed(0)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Config]:
    """Settings of a small training, with more changes on top."""

    def make(*changes: str) -> Config:
        return load(Config, None, [*SMALL, f"experiment.folder={tmp_path / 'experiment'}", *changes])

    return make


@pytest.fixture
def split(tmp_path: Path, make_split: Callable[..., object]) -> Split:
    """Ten training and five test videos of 40 x 48 pixels, three classes."""
    make_split(tmp_path / "split1", train=10, test=5, width=48, height=40, frames=14)
    opened = open_split(tmp_path / "split1")
    yield opened
    opened.close()
