"""From shards to batches on the device: training's endless stream, and the clips of an evaluation.

Everything drawn is a function of (seed, stage, position): which frames, which crop, mirrored or not. No state. Batches
are bytes, as the frames were stored: a quarter of the memory and of the transfer of floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.ahead import Room
from shards.draws import Draws
from shards.order import Order, State, evaluation
from shards.split import Split
from shards.stores.connect import is_url
from shards.stream import Clip, Skip, TrainingStream, cores, read_clips, staged
from stmul import clips as instants_of
from stmul.arenas import Arenas
from stmul.augment import View, crop_view, see_flow, see_rgb, whole_view
from stmul.clips import Instants
from stmul.config import FLOW_MEAN, Config, Data, Recipe
from stmul.decode import Decoded, Encoded, Loaded, Placed, decode
from stmul.hold_out import divided

Out = TypeVar("Out")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """A sub-batch of clips on the device, uint8 levels 0..255, as the network wants it."""

    rgb_BTCHW: Tensor | None  # C = 3
    flow_BTCHW: Tensor | None  # C = 2L, u and v in turn
    labels_B: Tensor
    positions: tuple[int, ...]
    valid: tuple[bool, ...]  # False: a damaged clip, whose place holds constants; it is to count for nothing
    groups: int = 1  # sub-batches in it, one after the other


@dataclass(frozen=True, slots=True)
class Reading:
    """How many threads read and decode, and how many sub-batches they may be ahead."""

    threads: int
    ahead: int


def reading_of(split: Split, part: str, data: Data, *, clips: int, instants: int) -> Reading:
    """What `data` asks for, or as many threads as cores; never more ahead than its memory holds.

    Sub-batches hold `clips` clips of `instants` instants. Frame sizes differ little in a data set: some are looked at.
    """
    index = split.index(part)
    rows = [index.row(int(record)) for record in np.linspace(0, len(index) - 1, num=min(8, len(index)))]
    pixels = max(3 * row.rgb.width * row.rgb.height + 2 * data.stack * row.flow.width * row.flow.height for row in rows)
    held = data.memory * 2**20 // max(1, clips * instants * pixels)
    threads = max(1, min(data.threads or cores(), held))
    return Reading(threads, max(1, min(2 * threads, held - threads)))


def bytes_ahead(split: Split, data: Data) -> int:
    """How many bytes of clips are read before they are decoded: none of what lies near."""
    return data.read_ahead * 2**20 if is_url(split.location) else 0


def training_stream(
    split: Split,
    config: Config,
    stage: str,
    *,
    pinned: bool,
    start: State | None = None,
    rank: int = 0,
    world: int = 1,
    skip: Skip | None = None,
) -> TrainingStream[Instants, Loaded]:
    """The endless training clips of `stage`, one sub-batch after the other, decoded unless a GPU is to do that.

    Both streams get T instants a drawn stride apart; a stream alone gets one instant (method of the released code).
    Clips that `train.hold_out` holds out are none of them.
    With `skip` damaged clips are told to it and left out; otherwise they raise CorruptRecordError.
    """
    then = loader(config.data, pinned=pinned)
    return _stream(split, config, stage, then, start=start, rank=rank, world=world, skip=skip)


def batch_stream(
    split: Split,
    config: Config,
    stage: str,
    *,
    device: torch.device,
    start: State | None = None,
    rank: int = 0,
    world: int = 1,
    skip: Skip | None = None,
) -> TrainingStream[Instants, Callable[[], Batch]]:
    """The clips of `training_stream` as what makes batches on `device`, to be called in turn by whoever uses them.

    On a GPU the call moves, crops and resizes. On the CPU the reading threads have done that, all at the same time.
    """
    recipe, cpu, arenas = getattr(config.train, stage), device.type == "cpu", Arenas()
    load = loader(config.data, pinned=not cpu)

    def then(clips: Sequence[Clip[Instants]]) -> Callable[[], Batch]:
        loaded = load(clips)
        if not cpu:
            return lambda: training_batch(loaded.to(device), config, recipe, stage)
        batch = training_batch(loaded.to(device), config, recipe, stage, arenas=arenas)
        return lambda: batch

    return _stream(split, config, stage, then, start=start, rank=rank, world=world, skip=skip)


def _stream(
    split: Split,
    config: Config,
    stage: str,
    then: Callable[[list[Clip[Instants]]], Out],
    *,
    start: State | None,
    rank: int,
    world: int,
    skip: Skip | None,
) -> TrainingStream[Instants, Out]:
    data, seed = config.data, config.train.seed
    batch, sub_batch = config.train.batches(stage)
    index, (records, _) = split.index("train"), divided(split, config.train)
    count, shard_of = len(index), index.shard_of()
    if records is not None:
        count, shard_of = len(records), shard_of[records]
    order = Order(count=count, seed=seed, kind=data.order, window=data.window, shard_of=shard_of, records=records)
    reading = reading_of(split, "train", data, clips=sub_batch, instants=data.frames if stage == "joint" else 1)

    def choose(position: int, n: int) -> Instants:
        draws = Draws.of(seed, stage, "window", position)
        if stage != "joint":
            return instants_of.only(instants_of.single(n, stack=data.stack, draws=draws), stage)
        stride = Draws.of(seed, stage, "stride", position // sub_batch).integer(*data.stride)
        return instants_of.training(
            n,
            frames=data.frames,
            stack=data.stack,
            stride=stride,
            draws=draws,
            original_window_start=data.original_window_start,
        )

    return TrainingStream(
        split,
        "train",
        order,
        batch=batch,
        sub_batch=sub_batch,
        choose=choose,
        then=then,
        threads=reading.threads,
        ahead=reading.ahead,
        read_ahead=bytes_ahead(split, data),
        start=start,
        rank=rank,
        world=world,
        skip=skip,
    )


def loader(data: Data, *, pinned: bool) -> Callable[[Sequence[Clip[Instants]]], Loaded]:
    """What a reading thread makes of a sub-batch's clips."""
    if data.decode == "gpu":
        return lambda clips: Encoded(tuple(clips))
    arenas = Arenas()
    return lambda clips: decode(clips, arenas=arenas, pinned=pinned)


def training_batch(
    decoded: Decoded, config: Config, recipe: Recipe, stage: str, *, arenas: Arenas | None = None
) -> Batch:
    """The sub-batch cropped, resized and mirrored as drawn for each clip's position, both streams alike.

    On the CPU its memory comes out of `arenas`, if given.
    """
    data, device = config.data, decoded.arena.device

    def memory(*shape: int) -> Tensor:
        if arenas is not None and device.type == "cpu":
            return arenas.take(shape)
        return torch.empty(shape, dtype=torch.uint8, device=device)

    count, side = len(decoded.clips), data.crop
    instants = data.frames if stage == "joint" else 1
    rgb = memory(count, instants, 3, side, side) if stage != "motion" else None
    flow = memory(count, instants, 2 * data.stack, side, side) if stage != "appearance" else None
    for number, clip in enumerate(decoded.clips):
        view = training_view(config, recipe, stage, clip.position, clip.size, flow=clip.flow[2:])
        targets = (rgb[number] if rgb is not None else None, flow[number] if flow is not None else None)
        fill_clip(decoded, clip, view, targets, size=side)
    return Batch(
        rgb_BTCHW=rgb,
        flow_BTCHW=flow,
        labels_B=_moved(torch.tensor([clip.label for clip in decoded.clips]), device),
        positions=tuple(clip.position for clip in decoded.clips),
        valid=tuple(clip.valid for clip in decoded.clips),
    )


def training_view(
    config: Config, recipe: Recipe, stage: str, position: int, frame: tuple[int, int], *, flow: tuple[int, int]
) -> View:
    """The view drawn for a position; `frame` and `flow` are the heights and widths at which its video is stored."""
    draws = Draws.of(config.train.seed, stage, "view", position)
    quirk = config.data.original_crop_corners
    return crop_view(recipe.crops, *frame, config.data.crop, draws, original_crop_corners=quirk, even=flow != frame)


def merged(batches: Iterator[Batch], groups: int) -> Iterator[Batch]:
    """The sub-batches, `groups` of them at a time in one batch."""
    while some := list(islice(batches, groups)):
        rgb = [one.rgb_BTCHW for one in some if one.rgb_BTCHW is not None]
        flow = [one.flow_BTCHW for one in some if one.flow_BTCHW is not None]
        yield (
            some[0]
            if len(some) == 1
            else Batch(
                rgb_BTCHW=torch.cat(rgb) if rgb else None,
                flow_BTCHW=torch.cat(flow) if flow else None,
                labels_B=torch.cat([one.labels_B for one in some]),
                positions=tuple(position for one in some for position in one.positions),
                valid=tuple(valid for one in some for valid in one.valid),
                groups=len(some),
            )
        )


def clip_tensors(
    decoded: Decoded, clip: Placed, view: View, *, size: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """One clip through its view, uint8: RGB (T, 3, H, W) and flow (T, 2L, H, W); None for a stream not read."""
    height, width = (size, size) if size else (round(view.bottom - view.top), round(view.right - view.left))
    empty = decoded.arena.new_empty
    rgb = empty((len(clip.rgb_of), 3, height, width)) if len(clip.rgb_of) else None
    instants, stack = clip.flow_of.shape
    flow = empty((instants, 2 * stack, height, width)) if instants else None
    fill_clip(decoded, clip, view, (rgb, flow), size=size)
    return rgb, flow


def fill_clip(
    decoded: Decoded, clip: Placed, view: View, targets: tuple[Tensor | None, Tensor | None], *, size: int | None
) -> None:
    """Puts one clip through its view into RGB (T, 3, H, W) and flow (T, 2L, H, W), uint8; None where not read."""
    rgb_TCHW, flow_TCHW = targets
    if rgb_TCHW is not None:
        frames_FHWC = decoded.rgb_FHWC(clip)
        see = partial(see_rgb, frames_FHWC, view, size=size, frame=clip.size)
        _hand_out(len(frames_FHWC), clip.rgb_of, rgb_TCHW, lambda out: see(out=out))
    if flow_TCHW is not None:
        planes_PHW = decoded.flow_PHW(clip)
        seen = partial(see_flow, planes_PHW, view, size=size, frame=clip.size)
        pairs = flow_TCHW.view(-1, 2, *flow_TCHW.shape[-2:])
        _hand_out(len(planes_PHW) // 2, clip.flow_of.reshape(-1), pairs, lambda out: seen(out=out.flatten(0, 1)))


def _hand_out(count: int, used: NDArray[np.int64], target: Tensor, make: Callable[[Tensor], object]) -> None:
    """Makes `count` pictures once and puts those `used` into `target`, one for each entry.

    Where there are none (a video of one frame has no motion, a damaged clip nothing), it is filled with no motion.
    """
    if len(used) == count:  # ascending, so each once: nothing is shared, they lie in their places at once
        make(target)
        return
    made = target.new_empty((count, *target.shape[1:]))
    make(made)
    if target.device.type == "cpu":  # by numpy, in a reading thread: see `resize`
        target.numpy()[:] = made.numpy()[used] if count else FLOW_MEAN
    elif count:
        torch.index_select(made, 0, _moved(torch.from_numpy(used), target.device), out=target)
    else:
        target.fill_(FLOW_MEAN)


def _moved(numbers: Tensor, device: torch.device) -> Tensor:
    """A few numbers on the device; a GPU is not waited for, so that the next batch is made while it computes."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def evaluation_clips(split: Split, part: str, config: Config, *, rank: int = 0, world: int = 1) -> Iterator[Loaded]:
    """Every video of `part` once, in the order of its records, with its test instants; ranks take them in turn.

    Raises CorruptRecordError where one is damaged, whatever is done about that in training: a score over fewer clips
    would be another score.
    """
    index = split.index(part)
    frames = index.frames()
    settings, data = config.evaluate, config.data
    reading = reading_of(split, part, data, clips=1, instants=settings.frames)
    then = loader(data, pinned=False)

    def read(record: int, room: Room) -> list[Clip[Instants]]:
        instants = instants_of.testing(int(frames[record]), frames=settings.frames, stack=data.stack)
        return read_clips(split, part, [(record, record, instants)], room)

    mine, far = evaluation(len(index), rank=rank, world=world), bytes_ahead(split, data)
    threads, ahead = reading.threads, reading.ahead
    return staged(mine, read, lambda one: then(one.result()), threads=threads, ahead=ahead, read_ahead=far)


def test_views(config: Config, size: tuple[int, int]) -> list[tuple[View, int | None]]:
    """The views a video is scored in, with the size each is resized to: whole frames, or one crop; and mirrored."""
    height, width = size
    if config.evaluate.protocol == "dense":
        views: list[tuple[View, int | None]] = [(whole_view(height, width), None)]
    else:
        centre = crop_view("centre", height, width, config.data.crop, Draws(0))
        views = [(centre, config.data.crop)]
    mirrored = [(view.mirrored(), side) for view, side in views] if config.evaluate.mirror else []
    return views + mirrored
