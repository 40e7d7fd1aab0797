"""The training step, and the loop around it.

One update sees a global batch, in sub-batches: each is normalised by its own statistics (as in the original, where a
GPU held 4 clips), gradients are summed over them, and the running moments move once (st-resnet `cnn_train_dag.m`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from configs import dump
from shards.draws import key_of
from shards.order import State, steps_for
from shards.split import Split
from stmul.arithmetic import autocast, averaged, compile_forward, compiling
from stmul.batchnorm import collected_moments, commit_moments, sub_batches
from stmul.checkpoint import Checkpoint, restore, resume_from, save
from stmul.config import Config
from stmul.damage import Damaged
from stmul.distributed import ALONE, Ranks, together, within
from stmul.errors import TrainingError
from stmul.loading import Batch, batch_stream, merged
from stmul.memory import groups_at_once
from stmul.network import TwoStream
from stmul.profiling import Section, unmeasured
from stmul.runs import Run
from stmul.schedule import parameter_groups, rate

T = TypeVar("T")


def scores(network: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    """Class scores (B, K) of each head: the two of a TwoStream, the one of a stream alone."""
    if isinstance(within(network), TwoStream):
        maps = network(batch.rgb_BTCHW, batch.flow_BTCHW)
    else:
        maps = (network(batch.rgb_BTCHW if batch.rgb_BTCHW is not None else batch.flow_BTCHW),)
    return tuple(averaged(map_BKTHW, (2, 3, 4)) for map_BKTHW in maps)


def step(
    network: nn.Module,
    batches: Iterable[Batch],
    optimizer: SGD,
    *,
    clips: int,
    seed: int,
    moments_rate: float,
    clip_norm: float,
    precision: str = "float32",
    ranks: Ranks = ALONE,
    section: Section = unmeasured,
) -> tuple[Tensor, Tensor, int]:
    """One update from the sub-batches of `clips` clips: the summed loss and right answers before it, of how many clips.

    The loss of a clip is the sum over heads of the cross-entropy. Dropout is a function of (seed, position). A clip
    that is not valid has weight 0: `clips` counts it, and nothing else does. Of several ranks each has sub-batches of
    its own; the update is that of all, what is returned is of this one's.
    """
    optimizer.zero_grad(set_to_none=True)
    losses, right, valid = [], [], 0
    for batch, last in _with_last(batches):
        torch.manual_seed(key_of(seed, "dropout", batch.positions[0]))
        with ranks.summing(network, last):
            with section("forward"):
                with sub_batches(network, batch.groups, batch.valid), autocast(batch.labels_B.device, precision):
                    heads = scores(network, batch)
                labels_B = batch.labels_B
                if not all(batch.valid):
                    kept = torch.tensor(batch.valid, device=labels_B.device).nonzero().squeeze(1)
                    heads, labels_B = tuple(head_BK[kept] for head_BK in heads), labels_B[kept]
                loss = torch.stack([cross_entropy(head_BK, labels_B, reduction="sum") for head_BK in heads]).sum()
            with section("backward"):
                (loss / clips * ranks.world).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        valid += len(labels_B)
        right.append((torch.stack(heads).mean(0).argmax(1) == labels_B).sum())
    with section("optimiser"):
        if clip_norm:
            nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        commit_moments(network, moments_rate, ranks.summed(collected_moments(network)))
    return torch.stack(losses).sum(), torch.stack(right).sum(), valid


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a display may show after each step."""

    stage: str
    step: int  # done
    steps: int
    epoch: float
    loss: float  # mean of the epoch so far
    accuracy: float  # top-1 of the training clips seen in the epoch
    clips_per_second: float
    data_wait: float  # part of the time spent waiting for clips


Watch = Callable[[Progress], None]


@dataclass(slots=True)
class Meter:
    """Sums over the epoch under way."""

    loss: float = 0.0
    right: int = 0
    clips: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    timed: int = 0  # clips since the stage was begun or continued

    def row(self, stage: str, epoch: int, step: int, learning_rate: float) -> dict[str, Any]:
        """A line of the log; `seconds` and what follows are of this session's part of the epoch."""
        return {
            "stage": stage,
            "epoch": epoch,
            "step": step,
            "loss": self.loss / max(1, self.clips),
            "accuracy": self.right / max(1, self.clips),
            "lr": learning_rate,
            "clips_per_second": self.timed / max(self.seconds, 1e-9),
            "data_wait": self.waited / max(self.seconds, 1e-9),
            "seconds": self.seconds,
        }


def train_stage(
    stage: str,
    network: nn.Module,
    config: Config,
    split: Split,
    run: Run,
    *,
    device: torch.device,
    watch: Watch,
    log: Callable[[dict[str, Any]], None],
    stop: Callable[[], bool],
    ranks: Ranks = ALONE,
    section: Section = unmeasured,
) -> bool:
    """Trains `network` in place to the end of `stage`, from the stage's newest checkpoint if there is one.

    Writes one after each epoch, and every `train.save_minutes` within it; of several ranks the first does. Returns
    False where `stop()` asked one of them to end early; a checkpoint of that step has then been written.
    """
    recipe, (batch, sub_batch) = getattr(config.train, stage), config.train.batches(stage)
    if batch // sub_batch < ranks.world:
        raise TrainingError(
            f"stage {stage}: a batch of {batch} clips is {batch // sub_batch} sub-batches of {sub_batch}, too few for"
            f" {ranks.world} processes. Start fewer, or take larger batches (--set train.batch=...)"
        )
    count = len(split.index("train"))
    steps = steps_for(recipe.epochs, count=count, batch=batch)
    optimizer = SGD(
        parameter_groups(network, config.train.weight_decay), lr=recipe.rates[0], momentum=config.train.momentum
    )
    with autocast(device, config.train.precision):
        groups = groups_at_once(network, config, stage, device)
    if config.train.compile:
        compile_forward(network)
    begun, state, meter = _resume(stage, network, optimizer, run, ranks)
    parallel = ranks.parallel(network.train())
    saved, minutes = time.monotonic(), config.train.save_minutes
    skip = Damaged(run.folder, config.data.damage_limit) if config.data.damage == "skip" else None
    with batch_stream(
        split, config, stage, device=device, start=state, skip=skip, rank=ranks.rank, world=ranks.world
    ) as stream:
        for number in range(begun, steps):
            learning_rate = rate(number, steps, recipe)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["scale"]
            begin = time.perf_counter()
            waits: list[float] = []
            batches = made(timed(stream.step(), waits, section), section)
            with compiling("train.compile"), together(ranks):
                loss, right, valid = step(
                    parallel,
                    merged(batches, groups),
                    optimizer,
                    clips=batch,
                    seed=key_of(config.train.seed, stage),
                    moments_rate=config.train.moments_rate,
                    clip_norm=config.train.clip_norm,
                    precision=config.train.precision,
                    ranks=ranks,
                    section=section,
                )
            mine = torch.tensor([float(loss), float(right), valid, stop()], dtype=torch.float64)
            summed, correct, counted, stops = ranks.summed(mine).tolist()
            meter = _counted(meter, summed, int(correct), int(counted), time.perf_counter() - begin, sum(waits))
            _must_be_finite(meter, stage, number, run)
            epoch = min(recipe.epochs, (number + 1) * batch // count)
            ended = epoch > min(recipe.epochs, number * batch // count) or number + 1 == steps
            stopping = bool(stops) and number + 1 < steps
            row = meter.row(stage, epoch, number + 1, learning_rate)
            watch(_progress(row, stage, number + 1, steps, (number + 1) * batch / count))
            if ended:
                log(row)
                meter = Meter()
            if ranks.first and (ended or stopping or (minutes and time.monotonic() - saved >= 60 * minutes)):
                path = run.epoch(stage, epoch) if ended else run.mid_epoch(stage)
                place = _Place(stage, epoch, number + 1, stream.state(), meter)
                save(path, _checkpoint(place, config, split, network, optimizer))
                if ended:
                    run.tidy(stage, config.train.keep)
                saved = time.monotonic()
            if stopping:
                return False
    return True


def timed(items: Iterator[T], waits: list[float], section: Section = unmeasured) -> Iterator[T]:
    """The same items; the seconds that each was waited for are added to `waits`, and belong to the section `data`."""
    while True:
        begin = time.perf_counter()
        with section("data"):
            item = next(items, None)
        if item is None:
            return
        waits.append(time.perf_counter() - begin)
        yield item


def made(makers: Iterator[Callable[[], Batch]], section: Section) -> Iterator[Batch]:
    """What each makes; on a GPU moving, cropping and resizing, which belong to the section `transfer`."""
    for make in makers:
        with section("transfer"):
            batch = make()
        yield batch


def _with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """The same items, each with whether it is the last."""
    rest = iter(items)
    for item in rest:
        for following in rest:
            yield item, False
            item = following
        yield item, True


def _resume(stage: str, network: nn.Module, optimizer: SGD, run: Run, ranks: Ranks) -> tuple[int, State | None, Meter]:
    """Where the stage's newest checkpoint was written; the first rank reads it, and the others get what it holds."""
    found = resume_from(run, stage) if ranks.first else None
    if found is not None:
        path, checkpoint = found
        restore(network, checkpoint.network, path)
        optimizer.load_state_dict(dict(checkpoint.optimizer))
    place = ranks.told([found[1].step, found[1].loader, *found[1].sums] if found else None)
    if place is None:
        return 0, None, Meter()
    ranks.same([*network.state_dict().values(), *momenta(optimizer)])
    step, loader, loss, right, clips = place
    return step, State.from_json(loader), Meter(loss=loss, right=right, clips=clips)


def momenta(optimizer: SGD) -> list[Tensor]:
    """The momentum of each weight, zeros where there has been none yet."""
    groups = [group for group in optimizer.param_groups if group["momentum"]]
    weights = [weight for group in groups for weight in group["params"]]
    return [optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight)) for weight in weights]


def _counted(meter: Meter, loss: float, right: int, clips: int, seconds: float, waited: float) -> Meter:
    return Meter(
        loss=meter.loss + loss,
        right=meter.right + right,
        clips=meter.clips + clips,
        seconds=meter.seconds + seconds,
        waited=meter.waited + waited,
        timed=meter.timed + clips,
    )


def _must_be_finite(meter: Meter, stage: str, number: int, run: Run) -> None:
    if meter.loss != meter.loss or meter.loss in (float("inf"), float("-inf")):
        raise TrainingError(
            f"{run.folder}: the loss of stage {stage} is {meter.loss} at step {number + 1}."
            f" Lower the rate (--set train.{stage}.rates=[...]) or bound the gradient (--set train.clip_norm=10);"
            f" the checkpoints before it are whole"
        )


def _progress(row: dict[str, Any], stage: str, done: int, steps: int, epoch: float) -> Progress:
    kept = {name: row[name] for name in ("loss", "accuracy", "clips_per_second", "data_wait")}
    return Progress(stage=stage, step=done, steps=steps, epoch=epoch, **kept)


class _Place(NamedTuple):
    stage: str
    epoch: int
    step: int
    state: State
    meter: Meter


def _checkpoint(place: _Place, config: Config, split: Split, network: nn.Module, optimizer: SGD) -> Checkpoint:
    return Checkpoint(
        stage=place.stage,
        epoch=place.epoch,
        step=place.step,
        config=dump(config),
        dataset=split.manifest.dataset,
        split=split.manifest.split,
        classes=list(split.manifest.classes),
        loader=place.state.to_json(),
        sums=(place.meter.loss, place.meter.right, place.meter.clips),
        network=network.state_dict(),
        optimizer=optimizer.state_dict(),
    )
