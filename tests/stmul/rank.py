"""One process of a training, for tests of several: `python rank.py SHARDS EXPERIMENT OUT STEPS KEY=VALUE...`.

Stops after STEPS steps, as if asked to. Each rank adds the positions of its clips to OUT/positions-<rank>, by step, and
the first writes the weights after every step to OUT/weights-<step>.npy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

import stmul.train
from configs import load
from shards.split import open_split
from stmul.config import Config
from stmul.distributed import here, joined
from stmul.logs import run_log
from stmul.stages import begin, train_stages


def main(shards: str, experiment: str, out: Path, steps: int, changes: list[str]) -> None:
    torch.set_num_threads(1)
    config = load(Config, None, [*changes, f"experiment.folder={experiment}", "experiment.use_gpu='no'"])
    seen: list[list[int]] = []
    merged, step = stmul.train.merged, stmul.train.step
    done = 0

    def noted(batches, groups):
        seen.append([])
        for batch in merged(batches, groups):
            seen[-1] += batch.positions
            yield batch

    def watched(network, *args, **named):
        nonlocal done
        result = step(network, *args, **named)
        done += 1
        if here().first:
            number = len(list(out.glob("weights-*.npy")))
            flat = torch.cat([value.double().flatten() for value in network.state_dict().values()])
            np.save(out / f"weights-{number}.npy", flat.numpy())
        return result

    stmul.train.merged, stmul.train.step = noted, watched
    with open_split(shards) as split, joined(torch.device("cpu")) as ranks:
        begun = begin(config, split, name="run", fresh=False, ranks=ranks)
        rows: list[object] = []
        with run_log(begun.run) if ranks.first else _quiet() as log:
            train_stages(
                begun.config,
                split,
                begun.run,
                begun.start,
                device=torch.device("cpu"),
                watch=rows.append,
                log=log,
                stop=lambda: ranks.rank == ranks.world - 1 and done + 1 >= steps,  # only one of them is asked
                say=lambda text: None,
                ranks=ranks,
            )
        with (out / f"positions-{ranks.rank}").open("a") as file:
            file.writelines(json.dumps(positions) + "\n" for positions in seen)


class _quiet:  # noqa: N801
    def __enter__(self):
        return lambda row: None

    def __exit__(self, *error):
        return None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
