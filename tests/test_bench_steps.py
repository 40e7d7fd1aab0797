"""The benchmark of training steps makes the trainer's steps, as many each way."""

from __future__ import annotations

import re

import torch

from configs import load
from shards.split import open_split
from stmul.config import Config
from tests.bench import steps

TINY = (
    *(f"network.{stream}={{depth: 18, width: 4}}" for stream in ("appearance", "motion")),
    *("data.frames=2", "data.crop=32", "data.stride=[1, 3]", "data.threads=1"),
    *("train.batch=4", "train.sub_batch=2"),
)


def test_both_ways_make_the_same_number_of_whole_steps(make_split, tmp_path, monkeypatch):
    make_split(tmp_path / "split1", train=8, width=48, height=40, frames=14)
    seen = []
    real = steps.step

    def counted(network, batches, optimizer, **settings):
        batches = list(batches)
        seen.append([position for batch in batches for position in batch.positions])
        return real(network, iter(batches), optimizer, **settings)

    monkeypatch.setattr(steps, "step", counted)
    with open_split(tmp_path / "split1") as split:
        config = load(Config, None, TINY)
        lines = list(steps.measured(split, config, "joint", torch.device("cpu"), rounds=2, steps=3))
    assert all(len(positions) == 4 for positions in seen)
    from_shards = [p for round_ in range(3) for step in seen[6 * round_ : 6 * round_ + 3] for p in step]
    assert from_shards == list(range(8, 8 + 36))  # after the two steps that are kept in memory; none twice
    kept = [tuple(step) for round_ in range(3) for step in seen[6 * round_ + 3 : 6 * round_ + 6]]
    assert set(kept) == {(0, 1, 2, 3), (4, 5, 6, 7)}
    assert [line.split()[0] for line in lines] == ["wall", "CPU", "data"]
    rates = [float(number) for number in re.findall(r"([\d.]+) clips/s", lines[0])]
    assert len(rates) == 1
    assert rates[0] > 0
