"""Grad-CAM: what of each instant spoke for a class, by stream (Selvaraju et al., ICCV 2017).

With A the activations f(x) of the last unit, x its sums, and y the score of a class, averaged over space and time,

    weight_k = mean over t, i, j of dy / dA_ktij        map_tij = f(sum over k of weight_k A_ktij)

One weight for each channel over the whole clip, so that the maps of its instants can be compared. Each stream is asked
for the score of its own head; the mean of two heads has the same maps, since the last unit of one stream reaches no
other head.

Shapes: B clips, T instants, C channels, H W positions (h w of the last unit), K classes, M classes asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stmul.arithmetic import averaged
from stmul.errors import NetworkError
from stmul.network import TwoStream
from stmul.resnet import Stream

STRIDE = 32  # pixels from one place of a last unit's map to the next: conv1, the maximum, and units 3a, 4a and 5a


def centres(count: int, pooling: str) -> NDArray[np.float64]:
    """The pixels about which the `count` places of a map lie, along one side: 0, 32, 64, ...

    The first place looks at the picture's edge, half of it beyond, and not at the middle of the first 32 pixels: odd
    filters that step by two stay about even positions. Caffe's maximum has no padding, and lies 2 pixels further.
    """
    return STRIDE * np.arange(count, dtype=np.float64) + (2.0 if pooling == "caffe" else 0.0)


def class_maps(network: TwoStream | Stream, clip: Mapping[str, Tensor], classes: Sequence[int]) -> dict[str, Tensor]:
    """The maps (M, T, h, w) of one clip for each of `classes`, float32, by stream; none is below 0.

    `clip` has "appearance" (T, 3, H, W) and "motion" (T, 2L, H, W), levels 0..255, as a test gives them; of a stream
    alone its own is taken. Raises NetworkError for a class that the network does not have.
    """
    streams = _streams(network, clip)
    count = next(iter(streams.values())).classes
    if wrong := [label for label in classes if not 0 <= label < count]:
        raise NetworkError(f"maps of class {wrong[0]}: the network has classes 0 .. {count - 1}")
    was_training = network.training
    network.eval()
    try:
        sums = _last_sums(network, streams, clip)
        return {
            name: torch.stack([_map(stream, sums[name], label) for label in classes])
            for name, stream in streams.items()
        }
    finally:
        network.train(was_training)


def _streams(network: TwoStream | Stream, clip: Mapping[str, Tensor]) -> dict[str, Stream]:
    """The streams of a network, by what they are shown."""
    if isinstance(network, TwoStream):
        return {"appearance": network.appearance, "motion": network.motion}
    found = {name: network for name, frames in clip.items() if frames.shape[1] == network.channels}
    if len(found) != 1:
        shapes = ", ".join(f"{name} {tuple(frames.shape)}" for name, frames in clip.items())
        raise NetworkError(f"a clip of {shapes or 'nothing'}: the network takes {network.channels} channels")
    return found


def _last_sums(
    network: TwoStream | Stream, streams: Mapping[str, Stream], clip: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the last unit of each stream hands on for the clip, (T, C, h, w)."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> None:
        last = list(streams[name].units.values())[-1]

        def hook(module: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
            kept[name] = output

        handles.append(last.register_forward_hook(hook))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    try:
        for name in streams:
            keep(name)
        with torch.no_grad():
            network(*(clip[name][None] for name in streams))
    finally:
        for handle in handles:
            handle.remove()
    return kept


def _map(stream: Stream, sums_TChw: Tensor, label: int) -> Tensor:
    """The map (T, h, w) of one class."""
    instants = len(sums_TChw)
    with torch.enable_grad():
        active_TChw = sums_TChw.detach().float().relu().requires_grad_()
        score_K = averaged(stream.classified(active_TChw, instants), (0, 2, 3, 4))
        (slope_TChw,) = torch.autograd.grad(score_K[label], active_TChw)
    weight_C = slope_TChw.mean((0, 2, 3))
    return torch.einsum("c,tchw->thw", weight_C, active_TChw.detach()).relu()
