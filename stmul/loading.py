"""From shards to batches on the device: training's endless stream, and the clips of an evaluation.

Everything drawn is a function of (seed, stage, position): which frames, which crop, mirrored or not. No state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from shards.draws import Draws
from shards.order import Order, State, evaluation
from shards.split import Split
from shards.stream import Clip, TrainingStream, cores, in_order, read_clips
from stmul import clips as instants_of
from stmul.augment import View, apply_view, crop_view, whole_view
from stmul.clips import NO_PAIR, Instants
from stmul.config import FLOW_MEAN, Config, Data, Recipe
from stmul.decode import Decoded, Placed, decode


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """A sub-batch of clips on the device, levels 0..255, as the network wants it."""

    rgb_BTCHW: Tensor | None  # C = 3
    flow_BTCHW: Tensor | None  # C = 2L, u and v in turn
    labels_B: Tensor
    positions: tuple[int, ...]
    groups: int = 1  # sub-batches in it, one after the other


def threads_of(data: Data) -> int:
    """How many threads read and decode."""
    return data.threads or cores()


def training_stream(
    split: Split, config: Config, stage: str, *, pinned: bool, start: State | None = None
) -> TrainingStream[Instants, Decoded]:
    """The endless training clips of `stage`, decoded, one sub-batch after the other.

    Both streams get T instants a drawn stride apart; a stream alone gets one instant (method of the released code).
    """
    data, seed = config.data, config.train.seed
    batch, sub_batch = config.train.batches(stage)
    index = split.index("train")
    order = Order(count=len(index), seed=seed, kind=data.order, window=data.window, shard_of=index.shard_of())

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
        then=lambda clips: decode(clips, pinned=pinned),
        threads=threads_of(data),
        start=start,
    )


def training_batch(decoded: Decoded, config: Config, recipe: Recipe, stage: str) -> Batch:
    """The sub-batch cropped, resized and mirrored as drawn for each clip's position, both streams alike."""
    data, seed = config.data, config.train.seed
    rgb, flow = [], []
    for clip in decoded.clips:
        height, width = clip.size
        draws = Draws.of(seed, stage, "view", clip.position)
        view = crop_view(
            recipe.crops, height, width, data.crop, draws, original_crop_corners=data.original_crop_corners
        )
        rgb_TCHW, flow_TCHW = clip_tensors(decoded, clip, view, size=data.crop)
        rgb.append(rgb_TCHW)
        flow.append(flow_TCHW)
    device = decoded.arena.device
    return Batch(
        rgb_BTCHW=torch.stack([one for one in rgb if one is not None]) if rgb[0] is not None else None,
        flow_BTCHW=torch.stack([one for one in flow if one is not None]) if flow[0] is not None else None,
        labels_B=torch.tensor([clip.label for clip in decoded.clips], device=device),
        positions=tuple(clip.position for clip in decoded.clips),
    )


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
                groups=len(some),
            )
        )


def clip_tensors(
    decoded: Decoded, clip: Placed, view: View, *, size: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """One clip through its view: RGB (T, 3, H, W) and flow (T, 2L, H, W), 0..255; None for a stream not read.

    Frames are resized once, then handed to every instant that uses them.
    """
    rgb_FCHW, flow_PHW = apply_view(decoded.rgb_FHWC(clip), decoded.flow_PHW(clip), view, size=size, frame=clip.size)
    device = decoded.arena.device
    rgb = rgb_FCHW[torch.from_numpy(clip.rgb_of).to(device)] if len(clip.rgb_of) else None
    if not len(clip.flow_of):
        return rgb, None
    instants, stack = clip.flow_of.shape
    if (clip.flow_of == NO_PAIR).any():  # a video of one frame: nothing moves
        height, width = (size, size) if size else clip.size
        return rgb, torch.full((instants, 2 * stack, height, width), FLOW_MEAN, device=device)
    pairs_PCHW = flow_PHW.view(-1, 2, *flow_PHW.shape[-2:])
    flow_TLCHW = pairs_PCHW[torch.from_numpy(clip.flow_of).to(device)]
    return rgb, flow_TLCHW.flatten(1, 2)


def evaluation_clips(split: Split, part: str, config: Config) -> Iterator[Decoded]:
    """Every video of `part` once, in the order of its records, with its test instants, decoded."""
    index = split.index(part)
    frames = index.frames()
    settings, data = config.evaluate, config.data

    def work(record: int) -> Decoded:
        instants = instants_of.testing(int(frames[record]), frames=settings.frames, stack=data.stack)
        clips: list[Clip[Instants]] = read_clips(split, part, [(record, record, instants)])
        return decode(clips)

    threads = threads_of(data)
    return in_order(evaluation(len(index)), work, threads=threads, ahead=threads)


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
