"""Checkpoints: everything a stage needs to go on, in one file that is whole or absent and holds no code."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shards.writer import whole
from stmul.errors import CheckpointError
from stmul.runs import Run

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Checkpoint:
    """A stage of a training after a whole number of steps."""

    stage: str  # "appearance", "motion" or "joint"
    epoch: int  # passes over the data completed
    step: int  # updates made
    config: str  # the full resolved settings, YAML
    dataset: str
    split: int
    classes: list[str]
    loader: str  # shards.order.State as JSON
    sums: tuple[float, int, int]  # of the epoch under way: loss x clips, right answers, clips
    network: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    # Not in those of earlier versions:
    heads: Mapping[str, tuple[float, int]] = field(default_factory=dict)  # sums of each head: loss x clips, right
    scale: tuple[float, int, int] | None = None  # of the loss in float16, good steps since it changed, steps skipped
    best: tuple[int, float] | None = None  # the stage's best epoch so far on the clips held out, and its top-1
    schema: int = SCHEMA


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes `path`, whole or absent. Raises ShardError where the disk is full or the folder cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: getattr(checkpoint, name) for name in checkpoint.__dataclass_fields__}
    fields |= {name: dict(getattr(checkpoint, name)) for name in ("network", "optimizer", "heads")}
    with whole(path) as file:
        try:
            torch.save(fields, file)
        except RuntimeError as error:
            # Where a write fails, or Ctrl-C comes in its midst, torch ends the file all the same and complains of that.
            raise error.__context__ or error from None


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path`, on the CPU. Raises CheckpointError where the file is missing, damaged or foreign."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, but does not look at them
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} does not match its checksum")
        fields = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file leads it to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a checkpoint ({reason})") from error
    if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
        found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
        raise CheckpointError(f"{path}: expected a checkpoint of schema {SCHEMA}, found {found!r}")
    fields.pop("torch_rng", None)  # written by earlier versions; everything drawn is a function of its key
    try:
        return Checkpoint(**{**fields, "sums": tuple(fields["sums"])})
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this version: {error}") from error


def resume_from(run: Run, stage: str) -> tuple[Path, Checkpoint] | None:
    """The checkpoint that a stage of `run` goes on from, and its path; None where the stage has none yet.

    Raises CheckpointError where it is damaged. Written whole or not at all, it was spoiled by something else since:
    that is for a person to know, so the one before is named and not taken.
    """
    path = run.newest(stage)
    if path is None:
        return None
    try:
        return path, load(path)
    except CheckpointError as error:
        before = run.resumable(stage)[:-1]
        other = f"go on from {before[-1]}" if before else f"begin stage {stage} again"
        raise CheckpointError(
            f"{error}. It was whole when it was written: see what else that disk has damaged."
            f" To {other}, delete it and run the same command"
        ) from error


def restore(network: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Loads `state` into `network`. Raises CheckpointError naming the first differences, loading nothing."""
    if wrong := differences(state, network.state_dict()):
        raise CheckpointError(
            f"{where}: made by another network: {first(wrong)}."
            f" Use the settings beside it (config.yaml in its run folder)"
        )
    network.load_state_dict(dict(state))


def differences(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """How `state` differs from what a network expects, a line for each name: missing, unknown, of another shape."""
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is not in this network" for name in state if name not in expected]
    wrong += [
        f"{name} has shape {list(state[name].shape)}, expected {list(own.shape)}"
        for name, own in expected.items()
        if name in state and state[name].shape != own.shape
    ]
    return wrong


def first(wrong: Sequence[str], count: int = 3) -> str:
    """The first of many differences in one line, and how many more there are."""
    more = f" and {len(wrong) - count} more differences" if len(wrong) > count else ""
    return "; ".join(wrong[:count]) + more
