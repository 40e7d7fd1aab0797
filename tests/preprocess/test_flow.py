"""Flow: right for a known motion, whatever the method; alike on any machine; refused clearly where it cannot be had."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import SettingsError
from preprocess import tvl1
from preprocess.config import Flow
from preprocess.errors import PreprocessError
from preprocess.flow import METHODS, compute, decided, estimate, gpus, gray_of, library, resolved, seen
from preprocess.flows import methods
from shards.record import dequantise, quantise

WITHOUT_WEIGHTS = ("tvl1", "dis", "farneback")  # raft's tests are test_raft.py
ALL = [(method, backend) for method in WITHOUT_WEIGHTS for backend in METHODS[method].backends if backend != "cuda"]


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


@pytest.mark.parametrize(("method", "backend"), ALL)
@pytest.mark.parametrize("motion", [(2.0, 0.0), (0.0, -3.0), (-1.5, 1.0), (0.4, -2.3)])
def test_the_flow_of_a_known_translation_is_right(method, backend, motion):
    (flow,) = compute(method, textures((0, 0), motion), backend=backend)
    assert flow.shape == (72, 96, 2)
    assert flow.dtype == np.float32
    inside = flow[10:-10, 10:-10]
    assert np.linalg.norm(inside - motion, axis=-1).mean() < 0.2  # pixels


@pytest.mark.parametrize(("method", "backend"), ALL)
def test_pair_k_is_from_frame_k_to_the_next_and_n_frames_have_one_pair_less(method, backend):
    frames = textures((0, 0), (2, 0), (2, -2), (-1, -2))
    flows = list(compute(method, iter(frames), backend=backend))
    assert [tuple(np.rint(np.median(flow, axis=(0, 1)))) for flow in flows] == [(2, 0), (0, -2), (-3, 0)]
    for pair, flow in zip(pairwise(frames), flows, strict=True):  # and no pair knows of those before it
        assert (flow == next(compute(method, pair, backend=backend))).all()
    assert list(compute(method, frames[:1], backend=backend)) == []
    assert list(compute(method, [], backend=backend)) == []


@pytest.mark.parametrize(("method", "backend"), ALL)
def test_the_number_of_threads_does_not_change_a_value(method, backend):
    frames, flows = textures((0, 0), (1.5, 1)), []
    before = cv2.getNumThreads()
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            flows.append(next(compute(method, frames, backend=backend)))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert (flows[0] == flows[1]).all()


@pytest.mark.parametrize(("method", "backend"), ALL)
def test_small_and_narrow_pictures_have_flow_too(method, backend):
    for width, height in [(16, 16), (17, 16), (16, 40)]:
        (flow,) = compute(method, textures((0, 0), (1, 0), width=width, height=height), backend=backend)
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
        ("tvl2", {}, "expected one of tvl1, dis, farneback, raft; did you mean tvl1"),
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
        list(compute("tvl1", textures((0, 0), (1, 0)), {"medianFiltering": 2}, backend="opencv"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"medianFiltering": 2}, r"median filter of 2: expected 1 \(none\), 3 or 5"),
        ({"gamma": 0.5}, "gamma 0.5: expected 0.*backend: opencv"),
    ],
)
def test_what_our_tvl1_lacks_is_said(parameters, message):
    with pytest.raises(SettingsError, match=message):
        list(compute("tvl1", textures((0, 0), (1, 0)), parameters, backend="cpu"))


def test_an_opencv_without_optflow_is_told_how_to_repair_it(monkeypatch):
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(PreprocessError, match=r"lacks cv2.optflow.*pip install opencv-contrib.*--flow dis"):
        list(compute("tvl1", textures((0, 0), (1, 0)), backend="opencv"))
    assert len(list(compute("tvl1", textures((0, 0), (1, 0)), backend="cpu"))) == 1
    assert len(list(compute("dis", textures((0, 0), (1, 0))))) == 1


def test_gray_is_the_weighted_sum_of_the_colours():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert gray_of(colours).tolist() == [[76, 150, 29, 255]]


# Backends


def test_the_library_says_what_computes_it():
    assert library(Flow(method="dis")) == f"opencv {cv2.__version__}"
    assert library(Flow(backend="opencv")) == f"opencv {cv2.__version__}"
    assert library(Flow(backend="cpu")) == f"stmul tvl1 {tvl1.VERSION} on cpu, opencv {cv2.__version__}"


def test_auto_is_a_gpu_if_there_is_one_and_decided_once(monkeypatch):
    asked = Flow()
    monkeypatch.setattr(tvl1, "why_no_cuda", lambda: "none")
    monkeypatch.setitem(METHODS, "tvl1", without_cuda("none"))
    assert decided(asked) == Flow(backend="cpu", library=library(Flow(backend="cpu")))
    assert gpus(asked) == 0
    assert decided(Flow(method="dis")).backend == "opencv"
    with pytest.raises(PreprocessError, match=r"no backend cuda here: none. Take preprocess.flow.backend: cpu or open"):
        decided(Flow(backend="cuda"))
    monkeypatch.setitem(METHODS, "tvl1", without_cuda(""))
    monkeypatch.setattr(tvl1, "cuda_library", lambda: "7 on cuda sm_90, torch 2, triton 3")
    assert decided(asked) == Flow(backend="cuda", library="stmul tvl1 7 on cuda sm_90, torch 2, triton 3")


def without_cuda(why: str):
    """TV-L1 whose CUDA backend is lacking for the reason `why`; empty: it is there."""
    method = METHODS["tvl1"]
    cuda = dataclasses.replace(method.backends["cuda"], lacking=lambda: why)
    return dataclasses.replace(method, backends={**method.backends, "cuda": cuda})


def test_a_process_that_has_another_library_than_the_build_is_refused():
    pinned = decided(Flow(backend="cpu"))
    assert library(pinned) == pinned.library
    other = pinned.model_copy(update={"library": "stmul tvl1 7 on cuda sm_90, torch 2, triton 3"})
    with pytest.raises(PreprocessError, match=r"expected stmul tvl1 7 on cuda.*found stmul tvl1 \d+ on cpu"):
        library(other)


@pytest.mark.parametrize(("process", "device"), [("worker-0", 0), ("worker-5", 1), ("worker-3", 3), ("main", 0)])
def test_workers_take_turns_on_the_gpus(monkeypatch, process, device):
    monkeypatch.setattr(tvl1, "cuda_devices", lambda: 4)
    monkeypatch.setattr(methods.multiprocessing, "current_process", lambda: SimpleNamespace(name=process))
    assert methods._device() == f"cuda:{device}"


@pytest.mark.parametrize(("method", "backend"), [("dis", "cuda"), ("farneback", "cpu"), ("raft", "opencv")])
def test_a_backend_that_a_method_never_has_is_refused(method, backend):
    with pytest.raises(SettingsError, match=rf"backend: expected one of auto.* for {method}, found {backend}"):
        list(compute(method, [], backend=backend))


def test_raft_wants_a_file_of_weights(tmp_path):
    with pytest.raises(SettingsError, match=r"preprocess.flow.weights: .*RAFT needs"):
        library(Flow(method="raft", backend="cpu"))
    with pytest.raises(SettingsError, match=r"there is no file .*none.pth"):
        library(Flow(method="raft", backend="cpu", weights=str(tmp_path / "none.pth")))
    (tmp_path / "some.pth").write_bytes(b"some")
    found = library(Flow(method="raft", backend="cpu", weights=str(tmp_path / "some.pth")))
    assert re.fullmatch(r"raft a6b46dd0d1ae5e86\w+ on cpu, torch \S+, torchvision \S+", found)


def test_pictures_are_seen_in_gray_but_by_raft():
    picture = np.zeros((4, 6, 3), np.uint8)
    assert {method: seen(method, picture).ndim for method in METHODS} == {
        "tvl1": 2,
        "dis": 2,
        "farneback": 2,
        "raft": 3,
    }


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_batches_change_nothing(monkeypatch, at_once):
    frames, sizes = textures((0, 0), (2, 0), (2, -2), (-1, -2), (0, 0), (1, 1)), []
    expected = list(compute("dis", frames))

    def start(parameters, weights):
        flow = METHODS["dis"].backends["opencv"].start(parameters, weights)

        def counted(firsts, seconds):
            sizes.append(len(firsts))
            return flow(firsts, seconds)

        return counted

    batched = dataclasses.replace(METHODS["dis"].backends["opencv"], start=start, at_once=lambda h, w: at_once)
    monkeypatch.setitem(METHODS, "batched", dataclasses.replace(METHODS["dis"], backends={"opencv": batched}))
    found = list(compute("batched", iter(frames)))
    assert len(found) == len(expected)
    assert all((one == other).all() for one, other in zip(found, expected, strict=True))
    assert sizes == [min(at_once, 5 - done) for done in range(0, 5, at_once)]


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
