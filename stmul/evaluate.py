"""From videos to class scores: views of each video -> score maps -> their mean, every clip exactly once.

The dense protocol is the released code's (st-resnet `STMuNet_test.m`): 25 instants spread evenly, whole frames and
their mirror images, all instants in one forward pass, raw scores averaged over space, time and mirror images; the two
streams are then averaged with equal weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgpack
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shards.split import Split
from stmul.arithmetic import autocast, averaged, compile_forward, compiling
from stmul.augment import see_flow, see_rgb, whole_view
from stmul.config import Config
from stmul.decode import Decoded
from stmul.distributed import ALONE, Ranks
from stmul.errors import EvaluationError
from stmul.loading import clip_tensors, evaluation_clips, test_views
from stmul.network import TwoStream
from stmul.results import Results


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """What is scored together: the joint network, and the streams trained alone where there are any."""

    joint: TwoStream | None = None
    appearance: nn.Module | None = None
    motion: nn.Module | None = None

    def all(self) -> list[nn.Module]:
        return [network for network in (self.joint, self.appearance, self.motion) if network is not None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scored:
    """A clip and its class scores."""

    record: int  # its place in the part
    name: str
    label: int
    heads: Mapping[str, NDArray[np.float32]]  # (K,) each


def packed(clips: Sequence[Scored]) -> bytes:
    """Scored clips as bytes, for another rank."""
    rows = [(one.record, one.name, one.label, {k: v.tobytes() for k, v in one.heads.items()}) for one in clips]
    return bytes(msgpack.packb(rows))


def unpacked(data: bytes) -> Iterator[Scored]:
    """The clips that `packed` made bytes of, bit by bit the same."""
    for record, name, label, heads in msgpack.unpackb(data):
        scores_K = {head: np.frombuffer(values, dtype=np.float32) for head, values in heads.items()}
        yield Scored(record=record, name=name, label=label, heads=scores_K)


@torch.inference_mode()
def clip_scores(
    network: TwoStream,
    rgb_THWC: NDArray[np.generic] | Tensor,
    flow_THWC: NDArray[np.generic] | Tensor,
    mirror: bool = True,
) -> tuple[Tensor, Tensor]:
    """Raw class scores (K,) of the appearance and the motion head for one clip; their mean is the fused score.

    `rgb_THWC` has 3 channels, `flow_THWC` 2L, u and v in turn; both 0..255, uint8 or float, of T instants and of one
    height and width. Averaged over space, time and, with `mirror`, the mirror image.
    """
    device = next(network.parameters()).device
    rgb = torch.as_tensor(rgb_THWC).to(device)
    flow = torch.as_tensor(flow_THWC).to(device)
    frames, height, width, channels = flow.shape
    if rgb.shape[:3] != flow.shape[:3] or rgb.shape[3] != 3:
        raise EvaluationError(
            f"clip of RGB {tuple(rgb.shape)} and flow {tuple(flow.shape)}: expected (T, H, W, 3) and (T, H, W, 2L)"
        )
    planes_PHW = flow.permute(0, 3, 1, 2).flatten(0, 1)
    network.eval()
    sums: list[Tensor] = []
    whole = whole_view(height, width)
    for view in (whole, whole.mirrored()) if mirror else (whole,):
        rgb_TCHW = see_rgb(rgb, view, size=None, frame=(height, width))
        flow_PHW = see_flow(planes_PHW, view, size=None, frame=(height, width))
        maps = network(rgb_TCHW[None], flow_PHW.view(1, frames, channels, height, width))
        sums.append(torch.stack([averaged(map_BKTHW, (0, 2, 3, 4)) for map_BKTHW in maps]))
    appearance, motion = torch.stack(sums).mean(0)
    return appearance, motion


@torch.inference_mode()
def video_scores(networks: Networks, decoded: Decoded, config: Config) -> dict[str, NDArray[np.float32]]:
    """Scores (K,) of each head for the one video in `decoded`, averaged over its views."""
    (clip,) = decoded.clips
    sums: dict[str, list[Tensor]] = {}
    for view, size in test_views(config, clip.size):
        rgb, flow = clip_tensors(decoded, clip, view, size=size)
        assert rgb is not None
        assert flow is not None
        with autocast(rgb.device, config.evaluate.precision), compiling("evaluate.compile"):
            maps = _maps(networks, rgb[None], flow[None])
        for head, map_BKTHW in maps.items():
            sums.setdefault(head, []).append(averaged(map_BKTHW, (0, 2, 3, 4)))
    return {head: torch.stack(views).mean(0).float().cpu().numpy() for head, views in sums.items()}


def _maps(networks: Networks, rgb_BTCHW: Tensor, flow_BTCHW: Tensor) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    if networks.joint is not None:
        maps["appearance"], maps["motion"] = networks.joint(rgb_BTCHW, flow_BTCHW)
    if networks.appearance is not None:
        maps["appearance alone"] = networks.appearance(rgb_BTCHW)
    if networks.motion is not None:
        maps["motion alone"] = networks.motion(flow_BTCHW)
    return maps


def evaluate(
    networks: Networks,
    split: Split,
    config: Config,
    *,
    part: str = "test",
    device: torch.device,
    run: str = "",
    epoch: int = 0,
    watch: Callable[[int, int], None] = lambda done, total: None,
    ranks: Ranks = ALONE,
) -> Results:
    """Scores of every clip of `part`, once each, in the order of the records; several ranks share them out.

    Raises EvaluationError if any clip was missed or met twice, ResultsError if a score is not finite.
    """
    for network in networks.all():
        network.eval()
        if config.evaluate.compile:
            compile_forward(network, sizes_vary=True)
    count = len(split.index(part))
    scored: list[Scored] = []
    for loaded in evaluation_clips(split, part, config, rank=ranks.rank, world=ranks.world):
        decoded = loaded.to(device)
        (clip,) = decoded.clips
        heads_K = video_scores(networks, decoded, config)
        scored.append(Scored(record=clip.record, name=clip.name, label=clip.label, heads=heads_K))
        watch(min(count, len(scored) * ranks.world), count)
    found: dict[int, dict[str, NDArray[np.float32]]] = {}
    names: dict[int, tuple[str, int]] = {}
    for one in (one for data in ranks.gathered(packed(scored)) for one in unpacked(data)):
        if one.record in found:
            raise EvaluationError(f"{split.location}: {part} clip {one.name} was scored twice")
        found[one.record], names[one.record] = dict(one.heads), (one.name, one.label)
    if sorted(found) != list(range(count)):
        raise EvaluationError(f"{split.location}: {len(found)} of {count} {part} clips were scored")
    heads = {head: np.stack([found[record][head] for record in range(count)]) for head in found[0]}
    manifest, settings = split.manifest, config.evaluate
    return Results(
        run=run,
        epoch=epoch,
        dataset=manifest.dataset,
        split=manifest.split,
        part=part,
        digest=manifest.parts[part].digest,
        protocol=settings.protocol,
        frames=settings.frames,
        mirror=settings.mirror,
        expected=count,
        classes=manifest.classes,
        names=tuple(names[record][0] for record in range(count)),
        labels=np.array([names[record][1] for record in range(count)], dtype=np.int32),
        heads=fused(heads),
    )


def fused(heads: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The heads and what their means add: `joint` of the joint network, `late fusion` of the streams trained alone."""
    both = dict(heads)
    if {"appearance alone", "motion alone"} <= heads.keys():
        both["late fusion"] = np.float32(0.5) * (heads["appearance alone"] + heads["motion alone"])
    if {"appearance", "motion"} <= heads.keys():
        both["joint"] = np.float32(0.5) * (heads["appearance"] + heads["motion"])
    return both
