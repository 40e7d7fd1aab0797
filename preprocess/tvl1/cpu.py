"""TV-L1 of one pair on the CPU, on one thread: compiled when it is first called, and kept for later processes.

The same bytes on every processor: every operation is float32, one by one, in one order. Against OpenCV's own, which it
follows: tests/bench/flow.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from preprocess.tvl1.iterate import FIELDS, LINES, MARGIN, pitch_of, solve
from preprocess.tvl1.lanes import COUNT
from preprocess.tvl1.parameters import Parameters
from preprocess.tvl1.warp import linearise, planes_of, resized

Floats = NDArray[np.float32]


def flow_of(first: Floats, second: Floats, parameters: Parameters) -> Floats:
    """The flow from one gray picture (H, W), levels 0..255, to another: (H, W, 2), pixels."""
    firsts, seconds = (_scales(picture, parameters) for picture in (first, second))
    flow = np.zeros((2, *firsts[-1].shape), np.float32)
    for one, other in zip(reversed(firsts), reversed(seconds), strict=True):
        if flow.shape[1:] != one.shape:
            flow = _enlarged(flow, one.shape, parameters.scale_step)
        flow = _of_one_scale(one, other, flow, parameters)
    return np.ascontiguousarray(flow.transpose(1, 2, 0))


def _scales(picture: Floats, parameters: Parameters) -> list[Floats]:
    scales = [np.ascontiguousarray(picture, dtype=np.float32)]
    for height, width in parameters.sizes(*picture.shape)[1:]:
        scales.append(resized(scales[-1], height, width, 1 / parameters.scale_step, 1 / parameters.scale_step))
    return scales


def _enlarged(flow: Floats, shape: tuple[int, ...], scale_step: float) -> Floats:
    """The flow of one scale as the first guess of the next finer one."""
    height, width = shape
    ratios = flow.shape[1] / height, flow.shape[2] / width
    grown = [resized(part, height, width, *ratios) for part in flow]
    return np.stack(grown) * np.float32(1 / scale_step)


def _of_one_scale(first: Floats, second: Floats, flow: Floats, parameters: Parameters) -> Floats:
    """The dual variables begin at 0 with each scale, and go on from warp to warp."""
    height, width = first.shape
    pitch, unit = pitch_of(width), parameters.theta / parameters.tau  # pixels: see preprocess/tvl1/iterate.py
    state, other = np.zeros((2, (height + 2) * FIELDS * pitch), np.float32)
    line = np.zeros(height * LINES * pitch, np.float32)
    _picture(state, height, width)[:] = flow / np.float32(unit)
    planes, padded = planes_of(second), np.append(first.ravel(), np.zeros(COUNT, np.float32))
    for _ in range(parameters.warps):
        linearise(padded, planes, state, line, np.arange(COUNT, dtype=np.float32), height, width, unit)
        swapped = solve(
            state,
            other,
            line,
            height,
            width,
            parameters.tau,
            parameters.lambda_ * parameters.theta,
            (parameters.epsilon / unit) ** 2 * height * width,
            parameters.inner,
            parameters.outer,
            parameters.median,
        )
        if swapped:
            state, other = other, state
    return np.ascontiguousarray(_picture(state, height, width) * np.float32(unit))


def _picture(state: Floats, height: int, width: int) -> Floats:
    """The flow in a state, (2, H, W): a view."""
    rows = state.reshape(height + 2, FIELDS, -1)
    return rows[2:, :2, MARGIN : MARGIN + width].transpose(1, 0, 2)
