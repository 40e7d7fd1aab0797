"""What a training step costs with clips out of shards, beside the same steps with batches that lie in memory.

    python -m tests.bench.steps --shards PATH [-c CONFIG] [--set KEY=VALUE] [--stage joint] [--rounds 7] [--steps 8]

Both ways make the trainer's own step, in turn, in one run. In memory the batches are ready: decoded, moved, cropped.
Their ratio is what the way from the shards to the network costs: as wall time, waiting on a GPU machine; as CPU time,
what reading and decoding take where one processor does all. Goal: 98 % of the rate in memory on one H100.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle, islice
from pathlib import Path

import torch
from torch.optim import SGD

from configs import load
from shards.split import Split, open_split
from stmul.arithmetic import autocast, compile_forward
from stmul.config import Config
from stmul.environment import environment
from stmul.loading import Batch, batch_stream, merged
from stmul.memory import groups_at_once
from stmul.schedule import parameter_groups
from stmul.stages import build
from stmul.train import step, timed


def main() -> None:
    given = arguments().parse_args()
    device = torch.device(given.device)
    config = load(Config, given.cfg, given.set)
    with open_split(given.shards) as split:
        lines = list(measured(split, config, given.stage, device, rounds=given.rounds, steps=given.steps))
    about = environment()
    heading = [
        f"{given.stage} of {given.cfg or 'defaults'} {' '.join(given.set)}, on {device}; load {os.getloadavg()[0]:.1f}",
        ", ".join(f"{name} {value}" for name, value in about.items()),
    ]
    text = "\n".join([*heading, "", *lines])
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n")


def measured(
    split: Split, config: Config, stage: str, device: torch.device, *, rounds: int, steps: int
) -> Iterator[str]:
    """The table's lines: rates of both ways, their ratio within each round, waiting, memory."""
    batch, _ = config.train.batches(stage)
    network = build(stage, config, len(split.manifest.classes)).to(device).train()
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    optimizer = SGD(parameter_groups(network, config.train.weight_decay), lr=1e-4, momentum=config.train.momentum)
    with autocast(device, config.train.precision):
        groups = groups_at_once(network, config, stage, device)
    if config.train.compile:
        compile_forward(network)

    def make_steps(batches: Callable[[], Iterator[Batch]]) -> tuple[float, float]:
        """Seconds of wall and CPU time of some steps."""
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            step(
                network,
                merged(batches(), groups),
                optimizer,
                clips=batch,
                seed=0,
                moments_rate=config.train.moments_rate,
                clip_norm=config.train.clip_norm,
                precision=config.train.precision,
            )
        return time.perf_counter() - begin, time.process_time() - cpu

    waits: list[float] = []
    with batch_stream(split, config, stage, device=device) as stream:

        def from_shards() -> Iterator[Batch]:
            return (make() for make in timed(stream.step(), waits))

        kept = cycle([list(from_shards()) for _ in range(2)])
        with closing(in_memory(kept)) as memory:
            make_steps(from_shards)  # caches, arenas, compiled code
            make_steps(lambda: next(memory))
            waits.clear()
            pairs = [(make_steps(from_shards), make_steps(lambda: next(memory))) for _ in range(rounds)]
    clips = steps * batch
    for name, clock in (("wall", 0), ("CPU", 1)):
        shards, ready = ([clips / one[way][clock] for one in pairs] for way in (0, 1))
        ratio = [one / other for one, other in zip(shards, ready, strict=True)]
        yield (
            f"{name:<5} {statistics.median(shards):8.2f} clips/s from shards  {statistics.median(ready):8.2f} in memory"
            f"  ratio {statistics.median(ratio):.3f} ({min(ratio):.3f} to {max(ratio):.3f})"
        )
    spent = sum(one[0][0] for one in pairs)
    yield f"data wait {100 * sum(waits) / spent:.2f} % of the steps from shards; {groups} sub-batches in a forward"
    if device.type == "cuda":
        yield f"GPU memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at most"


def in_memory(steps: Iterator[list[Batch]]) -> Iterator[Iterator[Batch]]:
    """Each step's batches, again and again."""
    for batches in steps:
        yield islice(batches, None)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Rate of training steps from shards, beside batches in memory.")
    parser.add_argument("--shards", required=True)
    parser.add_argument("-c", "--cfg")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stage", default="joint", choices=["appearance", "motion", "joint"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8, help="of each way in a round")
    parser.add_argument("--out", type=Path, help="also write it here")
    return parser


if __name__ == "__main__":
    main()
