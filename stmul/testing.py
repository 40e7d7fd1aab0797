"""A run's networks tested on one part of a split: the scores of every clip, written into the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from configs import SettingsError, dump, nearest
from shards.split import Split
from shards.whole import make_folder
from stmul.arithmetic import as_possible
from stmul.config import Config
from stmul.distributed import ALONE, Ranks
from stmul.evaluate import evaluate
from stmul.results import Results, write_results
from stmul.runs import Run, write_text
from stmul.stages import load_networks, must_be_unseen


def score(
    run: Run,
    config: Config,
    split: Split,
    *,
    part: str,
    device: torch.device,
    say: Callable[[str], None],
    watch: Callable[[int, int], None],
    ranks: Ranks = ALONE,
) -> Results:
    """The scores of every clip of `part` by the run's networks, at the epoch that the settings name.

    What can be known to be wrong is so before the first clip: a part that the split lacks (SettingsError), a network
    of other clips, settings or classes (StmulError), a folder that cannot be written (ShardError).
    """
    parts = split.manifest.parts
    if part not in parts:
        raise SettingsError(f"--part {part}: expected one of {', '.join(parts)}{nearest(part, list(parts))}")
    if ranks.first:
        make_folder(run.folder / "results")
    must_be_unseen(run.about(), split, other_split=config.experiment.other_split)
    config = as_possible(config, "evaluate", device, say)
    networks, epoch = load_networks(
        run, config, split.manifest.classes, epoch=config.experiment.pre_trained_epoch, device=device
    )
    say(f"run       {run.folder}, {run.about().network or f'epoch {epoch}'}, on {device}")
    say(f"shards    {split.location}, {part}: {parts[part].records} clips")
    return evaluate(
        networks, split, config, part=part, device=device, run=run.id, epoch=epoch, watch=watch, ranks=ranks
    )


def write_scores(run: Run, results: Results, config: Config) -> Path:
    """Writes the scores, and beside them the settings they were made with; gives the path of the scores.

    Its name tells split, part, epoch and protocol: a cheap test does not replace the dense one.
    """
    protocol = f"{results.protocol}{results.frames}{'' if results.mirror else '-unmirrored'}"
    name = f"{results.dataset}-split{results.split}-{results.part}-epoch{results.epoch:04d}-{protocol}.json"
    path = run.folder / "results" / name
    write_text(path.with_suffix(".yaml"), dump(config))
    write_results(path, results)
    return path
