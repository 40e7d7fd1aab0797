"""The ways to compute flow that are measured: ours through the functions that builds call, and others beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from preprocess.tvl1 import tvl1
from tests.bench.flow_pairs import Pair

Field = NDArray[np.float32]
OPENCV, OURS, SKIMAGE = "TV-L1, OpenCV", "TV-L1, ours", "TV-L1, scikit-image"
DIS, FARNEBACK, RAFT = "DIS, OpenCV", "Farneback, OpenCV", "RAFT large, torchvision"
EAGER = "TV-L1, plain PyTorch"
GPU = "TV-L1, ours on the GPU"
FRAMES = ("first", "second")
NOISE = 1e-5  # grey levels


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Way:
    """One way to compute flow, on the CPU in one thread, or on a GPU."""

    name: str
    flow: Callable[[Pair], Field]
    settings: str
    together: Callable[[Sequence[Pair], str], Field] | None = None  # the same for many pairs of equal size


def opencv_tvl1(one: NDArray[Any], other: NDArray[Any]) -> Field:
    """OpenCV's, with its defaults. Pictures are uint8, or float32 of 0..1."""
    return np.asarray(cv2.optflow.DualTVL1OpticalFlow_create().calc(one, other, None))  # type: ignore[attr-defined]


def opencv_again(pair: Pair, seed: int) -> Field:
    """OpenCV's with noise of 1e-5 grey levels on the first picture: what no other implementation can be nearer than."""
    one, other = (gray.astype(np.float32) for gray in pair.gray)
    noise = np.random.default_rng(seed).normal(0, NOISE, one.shape).astype(np.float32)
    return opencv_tvl1((one + noise) / np.float32(255), other / np.float32(255))


def ours(pair: Pair, device: str = "cpu") -> Field:
    """Ours, one pair."""
    one, other = pair.gray
    return np.asarray(tvl1(one[None], other[None], device=device)[0])


def ours_together(pairs: Sequence[Pair], device: str) -> Field:
    """Ours, all pairs of equal size in one call, (N, H, W, 2)."""
    one, other = (np.stack([pair.gray[i] for pair in pairs]) for i in (0, 1))
    return np.asarray(tvl1(one, other, device=device))


def eager(pair: Pair) -> Field:
    """Ours without kernels or compiler: plain operations of PyTorch on the CPU."""
    from preprocess.tvl1 import eager, tensors
    from preprocess.tvl1.parameters import Parameters

    one, other = (torch.from_numpy(gray)[None] for gray in pair.gray)
    return np.asarray(tensors.flow_of(one, other, Parameters(), eager.solve)[0].numpy())


def dis(pair: Pair) -> Field:
    """Dense inverse search, medium preset, as `FLOW=dis` has it."""
    return np.asarray(cv2.DISOpticalFlow.create(2).calc(*pair.gray, None))


def farneback(pair: Pair) -> Field:
    """Farneback's, as `FLOW=farneback` has it."""
    return np.asarray(cv2.calcOpticalFlowFarneback(*pair.gray, None, 0.5, 5, 15, 3, 5, 1.1, 0))  # type: ignore[call-overload]


def skimage(pair: Pair) -> Field:
    """scikit-image's TV-L1 with its defaults: ten iterations a warp, no median; other parameters than OpenCV's."""
    from skimage.registration import optical_flow_tvl1

    one, other = (gray.astype(np.float32) / 255 for gray in pair.gray)
    rows, columns = optical_flow_tvl1(one, other)
    return np.stack([columns, rows], axis=-1).astype(np.float32)


def raft_way(weights: Path | None, device: str) -> Way:
    """RAFT; without a file of weights with weights as drawn, which take as long and see nothing."""
    from preprocess.flows import raft

    if weights is None:
        from torchvision.models.optical_flow import raft_large

        torch.manual_seed(0)
        network = raft_large().eval().requires_grad_(False).to(device)
        opened = raft.Raft(network=network, name="raft_large", device=torch.device(device))
    else:
        opened = raft.open_raft(weights, device)

    def together(pairs: Sequence[Pair], _: str) -> Field:
        return raft.raft_flow(opened, *(np.stack([getattr(pair, name) for pair in pairs]) for name in FRAMES))

    return Way(
        name=RAFT,
        flow=lambda pair: together([pair], device)[0],
        together=together,
        settings=f"12 updates, float32, {'weights as drawn: for its time only' if weights is None else opened.name}",
    )


def ways(chosen: Sequence[str], weights: Path | None) -> list[Way]:
    """Those that run on the CPU here, the reference first; peers that are not installed are left out."""
    everything = [
        Way(name=OPENCV, flow=lambda pair: opencv_tvl1(*pair.gray), settings="its defaults"),
        Way(name=OURS, flow=ours, settings="OpenCV's defaults, as a build calls it"),
        Way(name=EAGER, flow=eager, settings="the same, without kernels or compiler"),
        Way(name=DIS, flow=dis, settings="medium preset"),
        Way(name=FARNEBACK, flow=farneback, settings="as FLOW=farneback"),
    ]
    if find_spec("skimage"):
        name = version("scikit-image")
        everything.append(Way(name=SKIMAGE, flow=skimage, settings=f"{name}, its defaults: ten iterations, no median"))
    if not chosen or RAFT in chosen:
        everything.append(raft_way(weights, "cpu"))
    return [way for way in everything if not chosen or way.name in chosen or way.name in (OPENCV, OURS)]
