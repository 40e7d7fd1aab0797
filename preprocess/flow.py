"""Optical flow between neighbouring frames, by a method (preprocess/flows/methods.py has them) and a backend of it.

Layouts: H W positions, 2 = horizontal then vertical. Values are pixels per frame, of the frames as they are given.
Gray is OpenCV's RGB2GRAY: 0.299 R + 0.587 G + 0.114 B, rounded to uint8.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from configs import SettingsError, nearest
from preprocess import tvl1
from preprocess.config import Flow
from preprocess.errors import PreprocessError
from preprocess.flows.methods import METHODS, Backend, Compute, Field, Parameters, Picture, opencv_version

__all__ = [
    "METHODS",
    "Field",
    "compute",
    "decided",
    "estimate",
    "gpus",
    "gray_of",
    "library",
    "one_thread",
    "opencv_version",
    "resolved",
    "seen",
]

Gray = NDArray[np.uint8]  # (H, W)

MEASURED_S = 2.0  # how long `estimate` may take
MEASURED_PIXELS = 340 * 256  # and the largest frame that it tries; larger ones are reckoned from it


def compute(
    method: str,
    pictures: Iterable[Picture],
    parameters: Mapping[str, float] | None = None,
    *,
    backend: str = "auto",
    weights: str = "",
) -> Iterator[Field]:
    """The flow from each picture to the next, (H, W, 2) float32 pixels; n of them give n - 1, none or one give nothing.

    Pictures are as `seen` gives them to the method. A GPU takes many pairs at once, whose flow is that of each alone.
    OpenCV runs on one thread meanwhile: DIS gives other values with other numbers of threads.
    Raises SettingsError for an unknown method or parameter, PreprocessError where the backend cannot be had.
    """
    settings = resolved(method, parameters or {})
    chosen = _backend(method, backend)
    flow = chosen.start(settings, weights)
    at_once = 0
    with one_thread():
        batch: list[Picture] = []
        for picture in pictures:
            at_once = at_once or chosen.at_once(*picture.shape[:2])
            batch.append(picture)
            if len(batch) > at_once:
                yield from _told(flow, method, settings, batch)
                batch = [picture]
        if len(batch) > 1:
            yield from _told(flow, method, settings, batch)


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
            has = f"it has {', '.join(defaults)}" if defaults else "it has none"
            raise SettingsError(f"{place}: {method} has no such parameter{nearest(name, [*defaults])} ({has})")
        low, high = ranges[name]
        if not low <= value <= high:
            raise SettingsError(f"{place}: expected {low:g} to {high:g}, found {value:g}")
        if isinstance(defaults[name], int) and value != int(value):
            raise SettingsError(f"{place}: expected a whole number, found {value:g}")
        full[name] = type(defaults[name])(value)
    return full


def gray_of(picture: Picture) -> Gray:
    """An RGB frame (H, W, 3) as the gray picture (H, W) that most methods see."""
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), dtype=np.uint8)


def seen(method: str, picture: Picture) -> Picture:
    """An RGB frame (H, W, 3) as `method` sees it."""
    return picture if METHODS[method].sees == "rgb" else gray_of(picture)


def decided(flow: Flow) -> Flow:
    """The same settings with what computes the flow pinned: a build asks once, before it starts its workers.

    Raises PreprocessError where the backend cannot be had here, SettingsError for settings that cannot be used.
    """
    resolved(flow.method, flow.parameters)
    backend = _name_of_backend(flow.method, flow.backend)
    return flow.model_copy(update={"backend": backend, "library": library(flow)})


def library(flow: Flow) -> str:
    """Name and version of what computes the flow, and on what.

    Raises PreprocessError where it cannot be had here, or is another than what these settings are pinned to.
    """
    here = _backend(flow.method, flow.backend).library(flow.weights)
    if flow.library not in ("", here):
        raise PreprocessError(
            f"flow method {flow.method}: expected {flow.library}, as this build began, found {here} here: results"
            " differ. Install the same versions everywhere and use GPUs of one kind, or set preprocess.flow.backend:"
            f" {'cpu' if 'cpu' in METHODS[flow.method].backends else 'opencv'}, which any machine has"
        )
    return here


def gpus(flow: Flow) -> int:
    """How many GPUs compute this flow on this machine; 0: it is computed on the CPU."""
    return tvl1.cuda_devices() if _name_of_backend(flow.method, flow.backend) == "cuda" else 0


def estimate(
    method: str,
    width: int,
    height: int,
    pairs: int,
    parameters: Mapping[str, float] | None = None,
    *,
    backend: str = "auto",
    weights: str = "",
) -> float:
    """Seconds that `pairs` pairs of this size take in one process here, from trying it for about two seconds."""
    settings, chosen = resolved(method, parameters or {}), _backend(method, backend)
    flow = chosen.start(settings, weights)
    shrink = min(1.0, (MEASURED_PIXELS / (width * height)) ** 0.5)
    one = _texture(max(int(width * shrink), 16), max(int(height * shrink), 16))
    count = chosen.at_once(*one.shape)
    firsts, seconds = [one] * count, [np.roll(one, (1, 2), axis=(0, 1))] * count
    if METHODS[method].sees == "rgb":
        firsts, seconds = ([np.repeat(p[..., None], 3, axis=2) for p in batch] for batch in (firsts, seconds))
    taken: list[float] = []
    with one_thread():
        if backend != "opencv":
            flow(firsts, seconds)  # the first call compiles, or loads
        while not taken or (len(taken) < 5 and sum(taken) + taken[-1] < MEASURED_S):
            start = time.perf_counter()
            flow(firsts, seconds)
            taken.append(time.perf_counter() - start)
    return pairs * min(taken) / count * width * height / one.size


@contextmanager
def one_thread() -> Iterator[None]:
    """OpenCV on one thread while inside: processes are what runs side by side, and results depend on no core count."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _name_of_backend(method: str, backend: str) -> str:
    """What `backend` is here: `auto` becomes the first that can be had. Raises where it cannot be had."""
    backends = METHODS[method].backends
    if backend == "auto":
        return next((name for name, one in backends.items() if not one.lacking()), [*backends][-1])
    if backend not in backends:
        expected = ", ".join(["auto", *backends])
        raise SettingsError(f"preprocess.flow.backend: expected one of {expected} for {method}, found {backend}")
    if why := backends[backend].lacking():
        others = [name for name, one in backends.items() if not one.lacking()]
        raise PreprocessError(
            f"flow method {method}: there is no backend {backend} here: {why}. Take preprocess.flow.backend:"
            f" {' or '.join(others)}"
        )
    return backend


def _backend(method: str, backend: str) -> Backend:
    return METHODS[method].backends[_name_of_backend(method, backend)]


def _told(flow: Compute, method: str, settings: Parameters, pictures: Sequence[Picture]) -> Sequence[Field]:
    """The flow between the pictures of a batch; what OpenCV says against it becomes one sentence."""
    try:
        return flow(pictures[:-1], pictures[1:])
    except cv2.error as error:
        height, width = pictures[0].shape[:2]
        raise PreprocessError(
            f"flow method {method} fails on frames of {width}x{height} with {dict(settings)}:"
            f" {' '.join(str(error).split())}."
            " Take other parameters (preprocess.flow.parameters) or another method"
        ) from error


def _texture(width: int, height: int) -> Gray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 2.0, borderType=cv2.BORDER_WRAP) * 3 % 251, dtype=np.uint8)
