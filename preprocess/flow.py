"""Optical flow between neighbouring frames, by methods in a table.

Layouts: H W positions, 2 = horizontal then vertical. Values are pixels per frame, of the frames as they are given.
Gray is OpenCV's RGB2GRAY: 0.299 R + 0.587 G + 0.114 B, rounded to uint8.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from configs import SettingsError, nearest
from preprocess.errors import PreprocessError

Gray = NDArray[np.uint8]  # (H, W)
Field = NDArray[np.float32]  # (H, W, 2)
Parameters = Mapping[str, int | float | bool]

MEASURED_S = 2.0  # how long `estimate` may take
MEASURED_PIXELS = 340 * 256  # and the largest frame that it tries; larger ones are reckoned from it


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowMethod:
    """One way to compute flow: its parameters with their defaults, their least values, and what it does with them."""

    defaults: Parameters  # the type of a default is the type of the parameter
    ranges: Mapping[str, tuple[float, float]]
    flow: Callable[[Parameters], Callable[[Gray, Gray], Field]]


def compute(method: str, grays: Iterable[Gray], parameters: Mapping[str, float] | None = None) -> Iterator[Field]:
    """The flow from each frame to the next, (H, W, 2) float32 pixels; n frames give n - 1, none or one give nothing.

    OpenCV runs on one thread meanwhile: DIS gives other values with other numbers of threads.
    Raises SettingsError for an unknown method or parameter, PreprocessError where OpenCV lacks the method.
    """
    settings = resolved(method, parameters or {})
    flow = METHODS[method].flow(settings)
    with one_thread():
        for one, other in pairwise(grays):
            try:
                yield flow(one, other)
            except cv2.error as error:
                raise PreprocessError(
                    f"flow method {method} fails on frames of {one.shape[1]}x{one.shape[0]} with {dict(settings)}:"
                    f" {' '.join(str(error).split())}."
                    " Take other parameters (preprocess.flow.parameters) or another method"
                ) from error


def resolved(method: str, parameters: Mapping[str, float]) -> Parameters:
    """`parameters` with the defaults of `method` filled in. Raises SettingsError, with the nearest name."""
    if method not in METHODS:
        raise SettingsError(
            f"flow method {method!r}: expected one of {', '.join(METHODS)}{nearest(method, [*METHODS])}"
        )
    defaults, ranges = METHODS[method].defaults, METHODS[method].ranges
    full = dict(defaults)
    for name, value in parameters.items():
        place = f"preprocess.flow.parameters.{name}"
        if name not in defaults:
            hint = nearest(name, [*defaults])
            raise SettingsError(f"{place}: {method} has no such parameter{hint} (it has {', '.join(defaults)})")
        low, high = ranges[name]
        if not low <= value <= high:
            raise SettingsError(f"{place}: expected {low:g} to {high:g}, found {value:g}")
        if isinstance(defaults[name], int) and value != int(value):
            raise SettingsError(f"{place}: expected a whole number, found {value:g}")
        full[name] = type(defaults[name])(value)
    return full


def gray_of(picture: NDArray[np.uint8]) -> Gray:
    """An RGB frame (H, W, 3) as the gray picture (H, W) that flow is computed from."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def library() -> str:
    """Name and version of what computes the flow; versions differ by up to 1.5 px on a pair."""
    return f"opencv {cv2.__version__}"


def estimate(method: str, width: int, height: int, pairs: int, parameters: Mapping[str, float] | None = None) -> float:
    """Seconds that `pairs` pairs of this size take on one core here, from trying it for about two seconds."""
    settings = resolved(method, parameters or {})
    flow = METHODS[method].flow(settings)
    shrink = min(1.0, (MEASURED_PIXELS / (width * height)) ** 0.5)
    one = _texture(max(int(width * shrink), 16), max(int(height * shrink), 16))
    other = np.roll(one, (1, 2), axis=(0, 1))
    taken: list[float] = []
    with one_thread():
        while not taken or (len(taken) < 5 and sum(taken) + taken[-1] < MEASURED_S):
            start = time.perf_counter()
            flow(one, other)
            taken.append(time.perf_counter() - start)
    return pairs * min(taken) * width * height / one.size


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV on one thread while inside: processes are what runs side by side, and results depend on no core count."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _texture(width: int, height: int) -> Gray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2.0, borderType=cv2.BORDER_WRAP) * 3 % 251, dtype=np.uint8)


def _tvl1(parameters: Parameters) -> Callable[[Gray, Gray], Field]:
    """Zach, Pock, Bischof, "A duality based approach for realtime TV-L1 optical flow", 2007; OpenCV's form of it."""
    create: Any = getattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create", None)
    if create is None:
        raise PreprocessError(
            f"flow method tvl1: this OpenCV ({cv2.__version__}) lacks cv2.optflow; a plain opencv package was installed"
            " over the contrib one. Repair it with: pip uninstall -y opencv-python opencv-python-headless"
            " opencv-contrib-python opencv-contrib-python-headless && pip install opencv-contrib-python-headless;"
            " or take another method: --flow dis"
        )
    names = {"lambda": "lambda_", "innerIterations": "innnerIterations"}  # as OpenCV's Python binding spells them
    method = create(**{names.get(k, k): v for k, v in parameters.items()})
    return lambda one, other: np.asarray(method.calc(one, other, None), dtype=np.float32)


def _dis(parameters: Parameters) -> Callable[[Gray, Gray], Field]:
    """Kroeger and others, "Fast Optical Flow using Dense Inverse Search", 2016."""
    method = cv2.DISOpticalFlow.create(int(parameters["preset"]))

    def flow(one: Gray, other: Gray) -> Field:
        height, width = one.shape
        if height < 64 and 2 * height < width:
            # OpenCV chooses its scales by the width alone, and reads outside of pictures lower than a patch there.
            rows = width // 2 + 1 - height
            one, other = (cv2.copyMakeBorder(g, 0, rows, 0, 0, cv2.BORDER_REPLICATE) for g in (one, other))
        return np.asarray(method.calc(one, other, None)[:height], dtype=np.float32)

    return flow


def _farneback(parameters: Parameters) -> Callable[[Gray, Gray], Field]:
    """Farneback, "Two-frame motion estimation based on polynomial expansion", 2003."""
    farneback: Any = cv2.calcOpticalFlowFarneback
    return lambda one, other: np.asarray(farneback(one, other, None, **parameters, flags=0), dtype=np.float32)


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
        flow=_tvl1,
    ),
    "dis": FlowMethod(defaults={"preset": 2}, ranges={"preset": (0, 2)}, flow=_dis),
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
        flow=_farneback,
    ),
}
