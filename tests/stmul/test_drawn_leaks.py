"""Leak probes of the drawn set: a stream that is told the other stream's labels must not learn them.

Slow: draws the whole set with flow, then trains two streams for longer than the demo does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from configs import load
from preprocess.drawing.cells import CELLS, Cell, class_of
from shards.format import decode, encode, key_of
from shards.record import Record
from shards.split import open_split
from shards.writer import write_split
from stmul.__main__ import main
from stmul.config import Config
from stmul.evaluate import Networks, evaluate
from stmul.results import measures
from stmul.runs import Run
from stmul.stages import build
from stmul.train import train_stage

CHANCE, LIMIT = 0.25, 0.35


def cell_of(record: Record) -> Cell:
    """The cell a clip was drawn from: its class, and c01 or c02 for discs or rectangles."""
    texture = int(record.name.endswith("c02"))
    (cell,) = [cell for cell in CELLS if class_of(cell) == record.class_name and cell.texture == texture]
    return cell


def relabelled(source: Path, target: Path, label) -> None:
    """The split with `label(cell)`, 0 .. 3, in place of the class."""

    def shards_of(part):
        records = (decode(split.read(part, number)) for number in range(len(split.index(part))))
        changed = (replace(one, label=label(cell_of(one)), class_name=f"class{label(cell_of(one))}") for one in records)
        yield [(key_of(one.name), encode(one)) for one in changed]

    with open_split(source) as split:
        write_split(
            target,
            dataset="drawn",
            split=1,
            classes=tuple(f"class{number}" for number in range(4)),
            made={"relabelled": True},
            parts={part: shards_of(part) for part in ("train", "test")},
        )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_neither_stream_learns_what_belongs_to_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built = CliRunner().invoke(main, ["preprocess", "shards", "-c", "demo", "--set", "preprocess.drawn.seed=11"])
    assert built.exit_code == 0, built.output
    labels = {
        "appearance": lambda cell: 2 * cell.motion + cell.sign,
        "motion": lambda cell: 2 * cell.hue + cell.texture,
    }
    config = load(Config, "demo", ["train.appearance.epochs=20", "train.motion.epochs=20", "experiment.use_gpu=no"])
    found = {}
    for stage, label in labels.items():
        relabelled(tmp_path / "data/drawn/split1", tmp_path / stage, label)
        network = build(stage, config, 4)
        with open_split(tmp_path / stage) as split:
            train_stage(
                stage,
                network,
                config,
                split,
                Run(tmp_path / "run"),
                device=torch.device("cpu"),
                watch=lambda progress: None,
                log=lambda row: None,
                stop=lambda: False,
            )
            results = evaluate(Networks(**{stage: network}), split, config, device=torch.device("cpu"))
        found[stage] = measures(results, f"{stage} alone")["top1"]
    print(f"leaks, chance {CHANCE:.0%}:", ", ".join(f"{stage} {part:.1%}" for stage, part in found.items()))
    assert max(found.values()) <= LIMIT, found
