"""How good a network is on the clips held out: after each epoch, cheaply, and without a say in what is learnt."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shards.ahead import Reading, Room
from shards.split import Split
from shards.stream import DAMAGE, Clip, Skip, read_clips, staged
from stmul import clips as instants_of
from stmul.arithmetic import autocast, averaged
from stmul.clips import Instants
from stmul.config import Config
from stmul.decode import Loaded
from stmul.distributed import ALONE, Ranks
from stmul.loading import bytes_ahead, clip_tensors, loader, reading_of, test_views
from stmul.meter import Validation
from stmul.network import TwoStream

Row = tuple[int, float, bool]  # a clip's record, its loss, and whether it was got right


def validated(
    network: nn.Module,
    split: Split,
    config: Config,
    stage: str,
    records: NDArray[np.int64],
    *,
    device: torch.device,
    skip: Skip | None = None,
    ranks: Ranks = ALONE,
) -> Validation:
    """Loss and top-1 of `network` on some records of the training part; it is left as it was.

    The loss is that of the stage's training: summed over heads, mean over clips. What is looked at is cheap: the centre
    crop of as many instants as a training clip has, spread evenly over the video, without its mirror image. Ranks take
    sub-batches in turn, so that which clips go through the network together does not depend on their number. Damaged
    clips are told to `skip` and left out, or raise.
    """
    size = config.train.batches(stage)[1]
    mine = [records[first : first + size] for first in range(0, len(records), size)][ranks.rank :: ranks.world]
    rows: list[Row] = []
    training = network.training
    network.eval()
    try:
        order = [int(record) for some in mine for record in some]
        with closing(_loaded(split, config, stage, order, skip)) as clips:  # type: ignore[type-var]  # a generator
            for some in mine:
                pairs = zip(some.tolist(), islice(clips, len(some)), strict=True)
                whole = [(record, loaded) for record, loaded in pairs if loaded is not None]
                rows += _rows(network, whole, config, device) if whole else []
    finally:
        network.train(training)
    found = sorted(tuple(row) for data in ranks.gathered(json.dumps(rows).encode()) for row in json.loads(data))
    count = max(1, len(found))
    loss = math.fsum(loss for _, loss, _ in found) / count
    return Validation(loss=loss, accuracy=sum(right for *_, right in found) / count, clips=len(found))


def _loaded(
    split: Split, config: Config, stage: str, records: Sequence[int], skip: Skip | None
) -> Iterator[Loaded | None]:
    """Each record's clip, in order, read and decoded ahead; None for a damaged one that is left out."""
    index, data = split.index("train"), config.data
    frames, then = index.frames(), loader(data, pinned=False)
    reading = reading_of(split, "train", data, clips=1, instants=data.frames)

    def read(record: int, room: Room) -> list[Clip[Instants]]:
        instants = instants_of.testing(int(frames[record]), frames=data.frames, stack=data.stack)
        return read_clips(split, "train", [(record, record, instants_of.only(instants, stage))], room)

    def decoded(one: Reading[int, list[Clip[Instants]]]) -> Loaded | None:
        try:
            return then(one.result())
        except DAMAGE as error:
            if skip is None:
                raise
            skip(index.row(one.task), error)
            return None

    threads, ahead, far = reading.threads, reading.ahead, bytes_ahead(split, data)
    return staged(records, read, decoded, threads=threads, ahead=ahead, read_ahead=far, what=split.location)


@torch.no_grad()
def _rows(network: nn.Module, clips: Sequence[tuple[int, Loaded]], config: Config, device: torch.device) -> list[Row]:
    views: list[tuple[Tensor | None, Tensor | None]] = []
    labels = []
    centre = config.evaluate.model_copy(update={"protocol": "centre", "mirror": False})
    for _, loaded in clips:
        decoded = loaded.to(device)
        (clip,) = decoded.clips
        ((view, side),) = test_views(config.model_copy(update={"evaluate": centre}), clip.size)
        views.append(clip_tensors(decoded, clip, view, size=side))
        labels.append(clip.label)
    rgb, flow = ([pixels for pixels in of_stream if pixels is not None] for of_stream in zip(*views, strict=True))
    inputs = [torch.stack(pixels) for pixels in (rgb, flow) if pixels]
    # The plain forward: where training is compiled, another one for this would take minutes.
    with autocast(device, config.train.precision):
        maps = network.forward(*inputs)
    heads = [averaged(map_BKTHW, (2, 3, 4)) for map_BKTHW in (maps if isinstance(network, TwoStream) else (maps,))]
    labels_B = torch.tensor(labels, device=device)
    losses_B = torch.stack([cross_entropy(head_BK, labels_B, reduction="none") for head_BK in heads]).sum(0)
    right_B = torch.stack(heads).mean(0).argmax(1) == labels_B
    return [(record, *row) for (record, _), *row in zip(clips, losses_B.tolist(), right_B.tolist(), strict=True)]
