"""The methods of optical flow, each with its parameters and with what can compute it.

N pairs in a batch; pictures as the method sees them, uint8: gray (H, W) or RGB (H, W, 3). Flow is (H, W, 2) float32.
"""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocess import tvl1
from preprocess.errors import PreprocessError

Picture = NDArray[np.uint8]
Field = NDArray[np.float32]  # (H, W, 2)
Parameters = Mapping[str, int | float | bool]
Batch = Sequence[Picture]
Compute = Callable[[Batch, Batch], Sequence[Field]]  # the flow from each picture to its partner


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """One way to compute a method."""

    library: Callable[[str], str]  # (file of weights) -> name and version of what computes, and on what
    start: Callable[[Parameters, str], Compute]  # (parameters, file of weights)
    at_once: Callable[[int, int], int] = lambda height, width: 1  # pairs of this size in a batch
    lacking: Callable[[], str] = lambda: ""  # why it cannot be had here; empty: it can


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowMethod:
    """One way to compute flow: its parameters with their defaults, their least values, and its backends."""

    defaults: Parameters  # the type of a default is the type of the parameter
    ranges: Mapping[str, tuple[float, float]]
    backends: Mapping[str, Backend]  # `auto` is the first that can be had
    sees: Literal["gray", "rgb"] = "gray"


def opencv_version() -> str:
    """Versions differ by up to 1.5 px of flow on a pair."""
    return f"opencv {cv2.__version__}"


def one_by_one(flow: Callable[[Picture, Picture], Field]) -> Compute:
    """Batches for what takes one pair at a time."""
    return lambda firsts, seconds: [flow(one, other) for one, other in zip(firsts, seconds, strict=True)]


def _device() -> str:
    """The GPU of this process: workers of a build take turns."""
    slot = re.fullmatch(r"worker-(\d+)", multiprocessing.current_process().name)
    return f"cuda:{int(slot[1]) % max(tvl1.cuda_devices(), 1) if slot else 0}"


def _tvl1_parameters(parameters: Parameters) -> dict[str, float]:
    names = {
        "lambda": "lambda_",
        "innerIterations": "inner",
        "outerIterations": "outer",
        "scaleStep": "scale_step",
        "medianFiltering": "median",
    }
    return {names.get(name, name): value for name, value in parameters.items()}


def _tvl1_on(device: Callable[[], str]) -> Callable[[Parameters, str], Compute]:
    """Ours: preprocess/tvl1/__init__.py."""

    def start(parameters: Parameters, weights: str) -> Compute:
        settings, where = tvl1.settings_of(_tvl1_parameters(parameters)), device()
        return lambda firsts, seconds: list(tvl1.flow_of(np.stack(firsts), np.stack(seconds), settings, where))

    return start


def _tvl1_opencv(parameters: Parameters, weights: str) -> Compute:
    """Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow", 2007; OpenCV's form of it."""
    create: Any = getattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create", None)
    if create is None:
        raise PreprocessError(
            f"flow method tvl1: this OpenCV ({cv2.__version__}) lacks cv2.optflow; a plain opencv package was installed"
            " over the contrib one. Repair it with: pip uninstall -y opencv-python opencv-python-headless"
            " opencv-contrib-python opencv-contrib-python-headless && pip install opencv-contrib-python-headless;"
            " or take ours, preprocess.flow.backend: cpu, or another method: --flow dis"
        )
    names = {"lambda": "lambda_", "innerIterations": "innnerIterations"}  # as OpenCV's Python binding spells them
    method = create(**{names.get(k, k): v for k, v in parameters.items()})
    return one_by_one(lambda one, other: np.asarray(method.calc(one, other, None), dtype=np.float32))


def _dis(parameters: Parameters, weights: str) -> Compute:
    """Kroeger and others, "Fast Optical Flow using Dense Inverse Search", 2016."""
    method = cv2.DISOpticalFlow.create(int(parameters["preset"]))

    def flow(one: Picture, other: Picture) -> Field:
        height, width = one.shape
        if height < 64 and 2 * height < width:
            # OpenCV chooses its scales by the width alone, and reads outside of pictures lower than a patch there.
            rows = width // 2 + 1 - height
            one, other = (cv2.copyMakeBorder(g, 0, rows, 0, 0, cv2.BORDER_REPLICATE) for g in (one, other))
        return np.asarray(method.calc(one, other, None)[:height], dtype=np.float32)

    return one_by_one(flow)


def _farneback(parameters: Parameters, weights: str) -> Compute:
    """Farneback, "Two-frame motion estimation based on polynomial expansion", 2003."""
    farneback: Any = cv2.calcOpticalFlowFarneback
    return one_by_one(
        lambda one, other: np.asarray(farneback(one, other, None, **parameters, flags=0), dtype=np.float32)
    )


def _raft_on(device: Callable[[], str]) -> Callable[[Parameters, str], Compute]:
    """Teed and Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", 2020; torchvision's."""

    def start(parameters: Parameters, weights: str) -> Compute:
        from preprocess.flows.raft import open_raft, raft_flow  # loads PyTorch

        raft, updates = open_raft(weights, device()), int(parameters["updates"])
        return lambda firsts, seconds: list(raft_flow(raft, np.stack(firsts), np.stack(seconds), updates=updates))

    return start


def _raft_library(device: str) -> Callable[[str], str]:
    def library(weights: str) -> str:
        from preprocess.flows.raft import library as library_on

        return library_on(weights, device)

    return library


def _raft_batch(height: int, width: int) -> int:
    import torch

    from preprocess.flows.raft import batch_size

    return batch_size(torch.device("cuda"), height, width)


def _opencv(start: Callable[[Parameters, str], Compute]) -> Backend:
    return Backend(library=lambda weights: opencv_version(), start=start)


METHODS: Mapping[str, FlowMethod] = {
    "tvl1": FlowMethod(
        defaults={
            "tau": 0.25,
            "lambda": 0.15,
            "theta": 0.3,
            "nscales": 5,
            "warps": 5,
            "epsilon": 0.01,
            "innerIterations": 30,
            "outerIterations": 10,
            "scaleStep": 0.8,
            "gamma": 0.0,
            "medianFiltering": 5,
        },
        ranges={
            "tau": (1e-6, 10),
            "lambda": (1e-6, 1e6),
            "theta": (1e-6, 1e6),
            "nscales": (1, 32),
            "warps": (1, 1000),
            "epsilon": (0, 1e6),
            "innerIterations": (1, 10000),
            "outerIterations": (1, 10000),
            "scaleStep": (0.1, 0.99),
            "gamma": (0, 1e6),
            "medianFiltering": (1, 5),
        },
        backends={
            "cuda": Backend(
                library=lambda weights: f"stmul tvl1 {tvl1.cuda_library()}",
                start=_tvl1_on(_device),
                at_once=tvl1.cuda_pairs,
                lacking=tvl1.why_no_cuda,
            ),
            "cpu": Backend(
                library=lambda weights: f"stmul tvl1 {tvl1.VERSION} on cpu, {opencv_version()}",
                start=_tvl1_on(lambda: "cpu"),
            ),
            "opencv": _opencv(_tvl1_opencv),
        },
    ),
    "dis": FlowMethod(defaults={"preset": 2}, ranges={"preset": (0, 2)}, backends={"opencv": _opencv(_dis)}),
    "farneback": FlowMethod(
        defaults={"pyr_scale": 0.5, "levels": 5, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.1},
        ranges={
            "pyr_scale": (0.1, 0.95),
            "levels": (1, 32),
            "winsize": (3, 1001),
            "iterations": (1, 1000),
            "poly_n": (3, 15),
            "poly_sigma": (0.1, 10),
        },
        backends={"opencv": _opencv(_farneback)},
    ),
    "raft": FlowMethod(
        defaults={"updates": 12},
        ranges={"updates": (1, 1000)},
        backends={
            "cuda": Backend(
                library=_raft_library("cuda"),
                start=_raft_on(_device),
                at_once=_raft_batch,
                lacking=tvl1.why_no_cuda,
            ),
            "cpu": Backend(library=_raft_library("cpu"), start=_raft_on(lambda: "cpu")),
        },
        sees="rgb",
    ),
}
