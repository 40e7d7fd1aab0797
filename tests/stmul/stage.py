"""A stage of a small training, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from shards.split import Split
from stmul.config import Config
from stmul.meter import Progress
from stmul.runs import Run
from stmul.stages import build
from stmul.train import train_stage

CPU = torch.device("cpu")
TIMES = {"seconds", "clips_per_second", "data_wait"}


class Trained(NamedTuple):
    """What a session of a stage leaves behind."""

    done: bool
    network: nn.Module
    rows: list[dict[str, Any]]
    seen: list[Progress]

    @property
    def learnt(self) -> list[dict[str, Any]]:
        """The rows of the log without what depends on the machine's pace."""
        return [{name: value for name, value in row.items() if name not in TIMES} for row in self.rows]


def trained(
    config: Config,
    split: Split,
    folder: Path,
    *,
    stage: str = "joint",
    stop_after: int | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Trained:
    """Trains in `folder`, from what is there, to the end or for so many steps."""
    folder.mkdir(exist_ok=True)
    network = build(stage, config, 3)
    rows: list[dict[str, Any]] = []
    seen: list[Progress] = []
    done = train_stage(
        stage,
        network,
        config,
        split,
        Run(folder),
        device=CPU,
        watch=seen.append,
        log=lambda row: (rows.append(row), log(row)),
        stop=lambda: stop_after is not None and len(seen) + 1 >= stop_after,
    )
    return Trained(done, network, rows, seen)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Equal to the last bit."""
    state = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, state[name]), name
