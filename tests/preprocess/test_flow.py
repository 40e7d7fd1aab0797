"""Flow: right for a known motion, whatever the method; alike on any machine; refused clearly where it cannot be had."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import SettingsError
from preprocess.errors import PreprocessError
from preprocess.flow import METHODS, compute, estimate, gray_of, library, resolved
from shards.record import dequantise, quantise


def textures(*shifts: tuple[float, float], width: int = 96, height: int = 72) -> list[np.ndarray]:
    """One gray texture, shifted."""
    noise = np.random.default_rng(3).normal(size=(height + 40, width + 40)).astype(np.float32)
    ground = cv2.GaussianBlur(noise, (0, 0), 2.0)
    ground = 128 + 45 * ground / ground.std()
    views = []
    for dx, dy in shifts:
        move = np.array([[1, 0, dx - 20], [0, 1, dy - 20]], np.float32)
        views.append(cv2.warpAffine(ground, move, (width, height), flags=cv2.INTER_CUBIC))
    return [np.clip(np.rint(view), 0, 255).astype(np.uint8) for view in views]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("motion", [(2.0, 0.0), (0.0, -3.0), (-1.5, 1.0), (0.4, -2.3)])
def test_the_flow_of_a_known_translation_is_right(method, motion):
    (flow,) = compute(method, textures((0, 0), motion))
    assert flow.shape == (72, 96, 2)
    assert flow.dtype == np.float32
    inside = flow[10:-10, 10:-10]
    assert np.linalg.norm(inside - motion, axis=-1).mean() < 0.2  # pixels


@pytest.mark.parametrize("method", METHODS)
def test_pair_k_is_from_frame_k_to_the_next_and_n_frames_have_one_pair_less(method):
    frames = textures((0, 0), (2, 0), (2, -2), (-1, -2))
    flows = list(compute(method, iter(frames)))
    assert [tuple(np.rint(np.median(flow, axis=(0, 1)))) for flow in flows] == [(2, 0), (0, -2), (-3, 0)]
    for pair, flow in zip(pairwise(frames), flows, strict=True):  # and no pair knows of those before it
        assert (flow == next(compute(method, pair))).all()
    assert list(compute(method, frames[:1])) == []
    assert list(compute(method, [])) == []


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_threads_does_not_change_a_value(method):
    frames, flows = textures((0, 0), (1.5, 1)), []
    before = cv2.getNumThreads()
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            flows.append(next(compute(method, frames)))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert (flows[0] == flows[1]).all()


@pytest.mark.parametrize("method", METHODS)
def test_small_and_narrow_pictures_have_flow_too(method):
    for width, height in [(16, 16), (17, 16), (16, 40)]:
        (flow,) = compute(method, textures((0, 0), (1, 0), width=width, height=height))
        assert flow.shape == (height, width, 2)
        assert np.isfinite(flow).all()


@pytest.mark.parametrize("preset", [0, 1, 2])
def test_dis_survives_low_and_wide_pictures(preset):
    # In a process of its own: without the rows added below, OpenCV reads outside of the picture.
    program = (
        "import numpy as np; from preprocess.flow import compute\n"
        "for size in [(27, 81), (16, 160), (31, 310), (16, 16)]:\n"
        "    frames = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)\n"
        f"    assert [f.shape for f in compute('dis', frames, {{'preset': {preset}}})] == [(*size, 2)] * 2\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_parameters_are_filled_in_and_keep_their_kind():
    assert resolved("dis", {}) == {"preset": 2}
    assert resolved("tvl1", {"warps": 3.0, "lambda": 1})["warps"] == 3
    assert resolved("tvl1", {"lambda": 1})["lambda"] == 1.0
    assert type(resolved("tvl1", {"warps": 3.0})["warps"]) is int


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("tvl2", {}, "expected one of tvl1, dis, farneback; did you mean tvl1"),
        ("tvl1", {"lamda": 1}, "tvl1 has no such parameter; did you mean lambda"),
        ("dis", {"lambda": 1}, r"dis has no such parameter.*it has preset"),
        ("dis", {"preset": 3}, "preset: expected 0 to 2, found 3"),
        ("tvl1", {"warps": 2.5}, "warps: expected a whole number, found 2.5"),
        ("tvl1", {"tau": float("nan")}, "tau: expected"),
    ],
)
def test_wrong_methods_and_parameters_are_refused_with_the_nearest(method, parameters, message):
    with pytest.raises(SettingsError, match=message):
        list(compute(method, [], parameters))


def test_parameters_matter():
    frames = textures((0, 0), (2, 1))
    fine, coarse = (next(compute("tvl1", frames, {"warps": warps})) for warps in (5, 1))
    assert (fine != coarse).any()


def test_what_opencv_itself_refuses_is_told_in_one_sentence():
    with pytest.raises(PreprocessError, match=r"flow method tvl1 fails on frames of 96x72 with .*'medianFiltering': 2"):
        list(compute("tvl1", textures((0, 0), (1, 0)), {"medianFiltering": 2}))


def test_an_opencv_without_optflow_is_told_how_to_repair_it(monkeypatch):
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(PreprocessError, match=r"lacks cv2.optflow.*pip install opencv-contrib.*--flow dis"):
        list(compute("tvl1", textures((0, 0), (1, 0))))
    assert len(list(compute("dis", textures((0, 0), (1, 0))))) == 1


def test_gray_is_the_weighted_sum_of_the_colours():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert gray_of(colours).tolist() == [[76, 150, 29, 255]]


def test_the_library_has_its_version():
    assert library() == f"opencv {cv2.__version__}"


def test_the_estimate_is_quick_and_grows_with_the_work():
    once = estimate("dis", 64, 48, 1)
    assert 0 < once < 1
    assert estimate("dis", 64, 48, 1000) > 100 * once
    assert estimate("dis", 6400, 4800, 1) > 100 * once  # reckoned, not tried


# Quantisation


@given(st.floats(-19.9, 19.9))
@settings(max_examples=50)
def test_levels_mirror_exactly_and_lose_half_a_level_at_most(pixels):
    value = np.array([pixels])
    assert abs(float(dequantise(quantise(value))[0]) - pixels) <= 0.5 / 6.375 + 1e-5
    if (value + 20) * 6.375 % 1 != 0.5:
        assert quantise(-value) == 255 - quantise(value)


def test_levels_are_clipped_and_zero_rounds_to_even():
    assert quantise(np.array([-50, -20, 0, 20, 50])).tolist() == [0, 0, 128, 255, 255]
