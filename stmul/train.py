"""The training step, and the loop around it.

One update sees a global batch, in sub-batches: each is normalised by its own statistics (as in the original, where a
GPU held 4 clips), gradients are summed over them, and the running moments move once (st-resnet `cnn_train_dag.m`).

What ranks tell each other they tell before a step's update, and the update is each one's own: so whatever ends a step
from outside ends it before anything has changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from shards.draws import key_of
from shards.order import steps_for
from shards.split import Split
from stmul.arithmetic import LossScale, autocast, averaged, compile_forward, compiling
from stmul.bases import STREAMS
from stmul.batchnorm import collected_moments, commit_moments, discard_moments, sub_batches
from stmul.config import Config
from stmul.damage import Damaged
from stmul.distributed import ALONE, Ranks, together, within
from stmul.errors import DivergedError, HalfUpdatedError, TrainingError
from stmul.hold_out import divided
from stmul.loading import Batch, batch_stream, merged
from stmul.memory import groups_at_once, peak_gib, watch_peak
from stmul.meter import Meter, Seen, Watch
from stmul.network import TwoStream
from stmul.place import Keeper, resumed
from stmul.profiling import Section, unmeasured
from stmul.runs import Run
from stmul.schedule import parameter_groups, rate
from stmul.validation import validated

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
    scale: LossScale | None = None,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
    section: Section = unmeasured,
) -> Seen:
    """One update from the sub-batches of `clips` clips; what it saw of them before it, on all ranks together.

    The loss of a clip is the sum over heads of the cross-entropy. Dropout is a function of (seed, position). A clip
    that is not valid has weight 0: `clips` counts it, and nothing else does. Of several ranks each has sub-batches of
    its own; the update is that of all. With `scale` a step whose gradients are not finite changes nothing. Raises
    DivergedError where that is so without it, or the loss is not finite; HalfUpdatedError from what ends the update.
    """
    optimizer.zero_grad(set_to_none=True)
    losses, right, losses_H, right_H, valid = [], [], [], [], 0
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
                loss_H = torch.stack([cross_entropy(head_BK, labels_B, reduction="sum") for head_BK in heads])
                loss = loss_H.sum()
            with section("backward"):
                share = loss / clips * ranks.world
                (share if scale is None else share * scale.scale).backward()  # type: ignore[no-untyped-call]
        heads_HBK = torch.stack(heads).detach()
        losses.append(loss.detach())
        losses_H.append(loss_H.detach())
        right.append((heads_HBK.mean(0).argmax(1) == labels_B).sum())
        right_H.append((heads_HBK.argmax(2) == labels_B).sum(1))
        valid += len(labels_B)
    with section("optimiser"):
        whole = _gradients_are_finite(network, scale)
        moments = ranks.summed(collected_moments(network))
        sums = (torch.stack(losses).sum(), torch.stack(right).sum(), whole, sum(losses_H), sum(right_H))
        mine = [*torch.cat([torch.as_tensor(one).double().flatten() for one in sums]).tolist(), valid, stop()]
        seen = _seen(ranks.summed(torch.tensor(mine, dtype=torch.float64)).tolist(), ranks.world)
        if not math.isfinite(seen.loss):
            raise DivergedError(f"the loss is {seen.loss}")
        if not seen.updated and (scale is None or scale.scale < 1):
            raise DivergedError("a gradient is not finite")
        if not seen.updated:
            discard_moments(network)
            return seen
        try:
            if clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
            commit_moments(network, moments_rate, moments)
        except Exception as error:
            raise HalfUpdatedError("ended in the midst of an update") from error
    return seen


def _gradients_are_finite(network: nn.Module, scale: LossScale | None) -> Tensor:
    """Whether all gradients are finite, on their device; what the loss was multiplied by is taken off them."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    if scale is not None:
        torch._foreach_mul_(gradients, 1.0 / scale.scale)
    return nn.utils.get_total_norm(gradients, math.inf).isfinite()  # the largest: a sum could exceed float32


def _seen(total: list[float], world: int) -> Seen:
    loss, right, whole, *of_heads, valid, stops = total
    half = len(of_heads) // 2
    return Seen(
        loss=loss,
        right=int(right),
        valid=int(valid),
        losses=tuple(of_heads[:half]),
        rights=tuple(map(int, of_heads[half:])),
        stops=bool(stops),
        updated=whole == world,
    )


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

    Writes one after each epoch, every `train.save_minutes` within it, and before what ends it in the midst of a step;
    of several ranks the first does. Returns False where `stop()` asked one of them to end early; a checkpoint of that
    step has then been written.
    """
    settings, recipe, (batch, sub_batch) = config.train, getattr(config.train, stage), config.train.batches(stage)
    if batch // sub_batch < ranks.world:
        raise TrainingError(
            f"stage {stage}: a batch of {batch} clips is {batch // sub_batch} sub-batches of {sub_batch}, too few for"
            f" {ranks.world} processes. Start fewer, or take larger batches (--set train.batch=...)"
        )
    held = divided(split, settings)[1]
    count = len(split.index("train")) - len(held)
    steps = steps_for(recipe.epochs, count=count, batch=batch)
    optimizer = SGD(parameter_groups(network, settings.weight_decay), lr=recipe.rates[0], momentum=settings.momentum)
    keeper = Keeper(stage, run, config, split, network, optimizer, ranks=ranks, steps=steps)
    with keeper.telling("before the first step"), autocast(device, settings.precision):
        keeper.groups = groups_at_once(network, config, stage, device)
    if settings.compile:
        compile_forward(network)
    heads = STREAMS if isinstance(network, TwoStream) else (stage,)
    place, start = resumed(keeper, heads)
    parallel = ranks.parallel(network.train())
    skip = Damaged(run.folder, config.data.damage_limit) if config.data.damage == "skip" else None

    def epoch_of(done: int) -> int:
        return min(int(recipe.epochs), done * batch // count)

    def ends(done: int) -> bool:
        return epoch_of(done) > epoch_of(done - 1) or done == steps

    pending = place.meter.clips > 0 and ends(place.step)  # an epoch that failed when it was to be validated
    keeper.at = time.monotonic()
    watch_peak(device)
    with batch_stream(
        split, config, stage, device=device, start=start, skip=skip, rank=ranks.rank, world=ranks.world
    ) as stream:
        while pending or place.step < steps:
            stopping = False
            if not pending:
                for group in optimizer.param_groups:
                    group["lr"] = rate(place.step, steps, recipe) * group["scale"]
                begin, waits = time.perf_counter(), list[float]()
                batches = made(timed(stream.step(), waits, section), section)
                with (
                    keeper.rescuing(place, stream.state(), epoch_of(place.step)),
                    compiling("train.compile"),
                    together(ranks),
                ):
                    seen = step(
                        parallel,
                        merged(batches, keeper.groups),
                        optimizer,
                        clips=batch,
                        seed=key_of(settings.seed, stage),
                        moments_rate=settings.moments_rate,
                        clip_norm=settings.clip_norm,
                        precision=settings.precision,
                        scale=place.scale,
                        stop=stop,
                        ranks=ranks,
                        section=section,
                    )
                place = place.after(seen, time.perf_counter() - begin, sum(waits))
                stopping = seen.stops and place.step < steps
            pending, epoch, ended, validation = False, epoch_of(place.step), ends(place.step), None
            if ended and len(held) and (epoch % settings.validate_every == 0 or place.step == steps):
                with keeper.rescuing(place, stream.state(), epoch, f"validating after epoch {epoch}"), together(ranks):
                    validation = validated(network, split, config, stage, held, device=device, skip=skip, ranks=ranks)
            row = place.row(stage, epoch, rate(place.step - 1, steps, recipe), peak_gib(device), validation)
            watch(place.meter.progress(row, steps=steps, epoch=place.step * batch / count))
            if ended:
                log(row)
                place = replace(place, meter=Meter(heads=heads))
                if validation is not None and (place.best is None or validation["accuracy"] > place.best[1]):
                    place = replace(place, best=(epoch, validation["accuracy"]))
                    keeper.keep(place, stream.state(), epoch, run.best(stage))
            if ended or stopping or keeper.due:
                keeper.keep(place, stream.state(), epoch, run.epoch(stage, epoch) if ended else run.mid_epoch(stage))
                if ended and ranks.first:
                    run.tidy(stage, settings.keep)
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
