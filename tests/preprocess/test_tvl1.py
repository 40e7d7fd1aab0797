"""Our TV-L1: agrees with OpenCV's, alike in any batch, on any processor and however its code was come by."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs import SettingsError
from preprocess.flow import compute, gray_of
from preprocess.tvl1 import eager, iterate, machine_code, tensors, tvl1
from preprocess.tvl1.iterate import FIELDS, LINES, MARGIN, pitch_of
from preprocess.tvl1.lanes import COUNT
from preprocess.tvl1.median import filter_rows
from preprocess.tvl1.parameters import Parameters
from preprocess.tvl1.warp import linearise, planes_of, resized
from preprocess.video import opened, stored_frames
from shards.record import quantise

ROOT = Path(__file__).parents[2]


def moved(seed: int, dx: float, dy: float, width: int = 72, height: int = 56, turn: float = 0.0) -> np.ndarray:
    """Two pictures (2, H, W) uint8 of a texture that moves by (dx, dy) pixels and turns by `turn` degrees."""
    noise = np.random.default_rng(seed).normal(size=(height + 40, width + 40)).astype(np.float32)
    ground = cv2.GaussianBlur(noise, (0, 0), 1.5) + cv2.GaussianBlur(noise, (0, 0), 6)
    ground = 128 + 40 * ground / ground.std()
    views = []
    for x, y, angle in ((0.0, 0.0, 0.0), (dx, dy, turn)):
        move = cv2.getRotationMatrix2D((width / 2 + 20, height / 2 + 20), angle, 1.0)
        move[:, 2] += (x - 20, y - 20)
        views.append(cv2.warpAffine(ground, move, (width, height), flags=cv2.INTER_CUBIC))
    return np.clip(np.rint(views), 0, 255).astype(np.uint8)


def by_opencv(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return next(compute("tvl1", [first, second], backend="opencv"))


def by_eager(first_NHW: np.ndarray, second_NHW: np.ndarray, **parameters: float) -> np.ndarray:
    pictures = (torch.from_numpy(p) for p in (first_NHW, second_NHW))
    return tensors.flow_of(*pictures, Parameters(**parameters), eager.solve).numpy()


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The mean distance of two fields, pixels."""
    return float(np.linalg.norm(one - other, axis=-1).mean())


# The parts, each against OpenCV's


@given(st.integers(0, 2**32 - 1), st.integers(5, 40), st.integers(5, 40), st.sampled_from((3, 5)), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
@example(0, 16, 16, 5, 1)
@example(0, 5, 8, 5, 3)
def test_medians_are_exact(seed, height, width, side, levels):
    picture = np.random.default_rng(seed).integers(0, levels, (height, width)).astype(np.float32) / 7
    expected = cv2.medianBlur(picture, side)
    assert (eager.median(torch.from_numpy(picture[None]), side)[0].numpy() == expected).all()
    pitch = pitch_of(width)
    rows = np.full((height, 2, pitch), 9.0, np.float32)
    rows[:, 0, MARGIN : MARGIN + width] = picture
    filter_rows(rows.ravel(), MARGIN, 2 * pitch, height, width, side)
    assert (rows[:, 0, MARGIN : MARGIN + width] == expected).all()
    assert (rows[:, 1] == 9).all()
    assert (rows[:, 0, :MARGIN] == 9).all()


@given(st.integers(16, 90), st.integers(16, 90), st.sampled_from((0.5, 0.7, 0.8, 0.95)))
@settings(max_examples=20, deadline=None)
@example(18, 22, 0.8)
@example(85, 85, 0.7)
def test_scales_are_opencvs(height, width, step):
    picture = np.random.default_rng(height).uniform(0, 255, (height, width)).astype(np.float32)
    sizes = Parameters(nscales=2, scale_step=step).sizes(height, width)
    expected = cv2.resize(picture, None, fx=step, fy=step)
    if len(sizes) == 1:
        assert min(expected.shape) < 16
        return
    assert sizes[1] == expected.shape
    # A place near 90 is rounded to 4e-6 in float32, some roundings each way of two; levels next to it differ by 255.
    near = 4 * 4e-6 * 255
    assert np.abs(resized(picture, *expected.shape, 1 / step, 1 / step) - expected).max() < near
    back = resized(expected, height, width, expected.shape[0] / height, expected.shape[1] / width)
    assert np.abs(back - cv2.resize(expected, (width, height))).max() < near
    found = tensors._resized(torch.from_numpy(picture[None]), *expected.shape, 1 / step, 1 / step)
    assert np.abs(found[0].numpy() - expected).max() < near


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.integers(3, 40), st.sampled_from((0.4, 3.0, 50.0, 1e7)))
@settings(max_examples=20, deadline=None)
def test_warps_are_opencvs_outside_of_the_picture_too(seed, height, width, spread):
    draws = np.random.default_rng(seed)
    first, second = draws.uniform(0, 255, (2, height, width)).astype(np.float32)
    flow = (draws.normal(size=(2, height, width)) * spread).astype(np.float32)
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    gx, gy = (g.numpy()[0] for g in tensors._gradient(torch.from_numpy(second[None])))
    planes = [cv2.remap(p, xs + flow[0], ys + flow[1], cv2.INTER_CUBIC) for p in (second, gx, gy)]
    rho = planes[0] - planes[1] * flow[0] - planes[2] * flow[1] - first
    expected = np.stack([planes[1], planes[2], planes[1] ** 2 + planes[2] ** 2, rho])

    pitch, unit = pitch_of(width), 1.0
    state = np.zeros((height + 2, FIELDS, pitch), np.float32)
    state[2:, :2, MARGIN : MARGIN + width] = flow.transpose(1, 0, 2)
    line, padded = np.zeros((height, LINES, pitch), np.float32), np.append(first.ravel(), np.zeros(COUNT, np.float32))
    steps = np.arange(COUNT, dtype=np.float32)
    linearise(padded, planes_of(second), state.ravel(), line.ravel(), steps, height, width, unit)
    found = line[:, :, MARGIN : MARGIN + width].transpose(1, 0, 2).copy()
    flat = found[2] >= 1 / np.finfo(np.float32).eps
    found[2] = np.where(flat, 0, 1 / found[2])
    near = 0.02 * max(1.0, min(spread, 50.0))  # far away rho is the difference of great numbers
    assert np.abs(found[[0, 1, 3]] - expected[[0, 1, 3]]).max() < near
    assert np.abs(np.sqrt(found[2]) - np.sqrt(expected[2])).max() < near


# The whole


@given(st.integers(0, 99), st.floats(-4, 4), st.floats(-4, 4), st.integers(33, 60), st.integers(20, 50))
@settings(max_examples=10, deadline=None)
def test_flow_is_opencvs_but_for_what_rounding_does_to_it(seed, dx, dy, width, height):
    first, second = moved(seed, dx, dy, width, height)
    expected = by_opencv(first, second)
    noise = np.random.default_rng(seed).normal(size=(2, height, width)) * 1e-5  # levels; OpenCV takes floats as 0..1
    shaken = by_opencv(*((np.stack([first, second]) + noise) / 255).astype(np.float32))
    limit = 0.03 + 2 * apart(shaken, expected)
    assert apart(tvl1(first[None], second[None], device="cpu")[0], expected) < limit


@pytest.mark.parametrize("motion", [(0, 0), (1.3, -0.4), (-3, 2)])
def test_plain_pytorch_agrees_too(motion):
    first, second = moved(73, *motion, width=45, height=33)
    assert apart(by_eager(first[None], second[None])[0], by_opencv(first, second)) < 0.03


@pytest.mark.parametrize(
    "parameters",
    [
        {"tau": 0.125, "theta": 0.5, "lambda_": 0.05},
        {"median": 1, "warps": 2},
        {"median": 3, "inner": 7, "outer": 3},
        {"nscales": 1},
        {"scale_step": 0.5, "epsilon": 0.05},
        {"epsilon": 0.0, "inner": 5, "outer": 2},
    ],
)
def test_every_parameter_means_what_it_means_to_opencv(parameters):
    pair = moved(3, 1.5, -1.0)
    names = {
        "lambda_": "lambda",
        "median": "medianFiltering",
        "inner": "innerIterations",
        "outer": "outerIterations",
        "scale_step": "scaleStep",
    }
    asked = {names.get(name, name): value for name, value in parameters.items()}
    (expected,) = compute("tvl1", pair, asked, backend="opencv")
    (usual,) = compute("tvl1", pair, backend="opencv")
    found = tvl1(*pair[:, None], device="cpu", **parameters)[0]
    assert apart(found, expected) < 0.02
    assert apart(found, usual) > apart(found, expected)
    assert apart(by_eager(*pair[:, None], **parameters)[0], expected) < 0.02


def test_a_turning_picture_agrees_too():
    first, second = moved(5, 0.5, 0.5, width=100, height=80, turn=4)
    assert apart(tvl1(first[None], second[None], device="cpu")[0], by_opencv(first, second)) < 0.03


def test_what_stands_still_has_no_flow():
    first, _ = moved(1, 0, 0)
    assert (tvl1(first[None], first[None], device="cpu") == 0).all()
    assert (by_eager(first[None], first[None]) == 0).all()


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_pair_has_the_same_flow_in_any_batch(backend):
    def flow(*pictures: np.ndarray) -> np.ndarray:
        return by_eager(*pictures) if backend == "eager" else tvl1(*pictures, device="cpu")

    motions = [(4, 3, 0), (0, 0, 0), (0.3, 0, 0), (0, 0, 5)]  # they stop after very different numbers of iterations
    pairs = [moved(seed, dx, dy, 40, 32, turn) for seed, (dx, dy, turn) in enumerate(motions)]
    together = flow(*(np.stack([pair[k] for pair in pairs]) for k in (0, 1)))
    for one, pair in zip(together, pairs, strict=True):
        assert (one == flow(*(picture[None] for picture in pair))[0]).all()


def test_looking_ahead_of_the_stop_changes_nothing():
    draws, height, width = np.random.default_rng(0), 21, 19
    pitch = pitch_of(width)
    state = np.zeros((height + 2, FIELDS, pitch), np.float32)
    line = np.zeros((height, LINES, pitch), np.float32)
    state[2:, :2, MARGIN : MARGIN + width] = draws.normal(size=(height, 2, width))
    line[:, :, MARGIN : MARGIN + width] = np.abs(draws.normal(size=(height, LINES, width)))
    tail, errors, states = np.ones(COUNT, np.float32), np.zeros(iterate.AHEAD), []
    numbers = (np.float32(0.25), np.float32(0.045), errors)
    for counts in ((4,), (1, 1, 1, 1), (3, 1), (2, 2)):
        old, new, seen = state.copy(), np.zeros_like(state), []
        for count in counts:
            iterate._iterate(old.ravel(), new.ravel(), line.ravel(), tail, height, width, count, *numbers)
            seen += errors[:count].tolist()
            old, new = new, old
        states.append((old[2:, :, MARGIN : MARGIN + width], seen))
    for other, seen in states[1:]:
        assert (other == states[0][0]).all()
        assert seen == states[0][1]


def test_tensors_and_floats_give_the_same():
    pair = moved(4, 1, 0)[:, None]
    expected = tvl1(*pair, device="cpu")
    assert expected.dtype == np.float32
    assert (tvl1(*pair.astype(np.float64), device="cpu") == expected).all()
    found = tvl1(*map(torch.from_numpy, pair))
    assert isinstance(found, torch.Tensor)
    assert (found.numpy() == expected).all()
    assert tvl1(pair[0][:0], pair[1][:0], device="cpu").shape == (0, 56, 72, 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"warp": 3}, SettingsError, "no parameter warp; did you mean warps"),
        ({"median": 4}, SettingsError, "median filter of 4"),
        ({"gamma": 1.0}, SettingsError, "gamma 1: expected 0"),
        ({"inner": 0}, SettingsError, "inner 0: expected 1 or more"),
        ({"tau": -1.0}, SettingsError, "tau -1: expected more than 0"),
        ({"scale_step": 1.0}, SettingsError, "scale_step between 0 and 1"),
    ],
)
def test_wrong_parameters_are_refused(change, error, message):
    pair = moved(0, 1, 0)[:, None]
    with pytest.raises(error, match=message):
        tvl1(*pair, device="cpu", **change)


def test_pictures_that_do_not_match_are_refused():
    one = np.zeros((1, 20, 20), np.uint8)
    for other in (one[0], one[:, :, :19], np.zeros((2, 20, 20), np.uint8)):
        with pytest.raises(ValueError, match=r"expected twice the same \(pairs, height, width\)"):
            tvl1(one, other, device="cpu")


@pytest.mark.slow
def test_real_clips_agree_with_opencv(real_data):
    clips = sorted(real_data.glob("ucf101-6/videos/*/*.avi"))[::12] + sorted(real_data.glob("hmdb51/videos/**/*.avi"))
    distances, off = [], []
    for clip in clips:
        with opened(clip) as film:
            pair = [gray_of(picture) for picture in islice(stored_frames(film, 256), 7, 9)]
        expected, found = by_opencv(*pair), tvl1(*(picture[None] for picture in pair), device="cpu")[0]
        distances.append(apart(found, expected))
        off.append((np.abs(quantise(found).astype(int) - quantise(expected)) > 1).mean())
    assert len(distances) >= 15
    assert np.mean(distances) <= 0.03
    assert np.median(distances) <= 0.015
    assert np.quantile(distances, 0.9) <= 0.05
    assert np.mean(off) <= 0.006


# Machine code


PROGRAM = """
import hashlib, sys
import numpy as np
from preprocess.tvl1 import tvl1
ys, xs = np.mgrid[:37, :45]
pair = [128 + 60 * np.sin(xs / 3 - t / 4) * np.cos(ys / 4 + xs / 9 + t / 3) for t in (0, 1)]
flow = tvl1(*(np.rint(p).astype(np.uint8)[None] for p in pair), device="cpu", median=5)
assert "torch" not in sys.modules
print(hashlib.sha256(flow.tobytes()).hexdigest())
"""


def started(cache: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache), **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def digest_of(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=280)
    assert process.returncode == 0
    return out.strip()


@pytest.mark.slow
def test_another_processor_computes_the_same_bytes_from_code_of_its_own(tmp_path):
    native = digest_of(started(tmp_path))
    plain = digest_of(started(tmp_path, NUMBA_CPU_NAME="x86-64", NUMBA_CPU_FEATURES="+sse2"))
    assert plain == native
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_processes_that_start_together_and_later_ones_agree_whatever_lies_in_the_folder(tmp_path):
    together = {digest_of(process) for process in [started(tmp_path) for _ in range(4)]}
    assert len(together) == 1
    (folder,) = tmp_path.iterdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        if number % 3 == 0:
            file.write_bytes(b"")  # as a power cut leaves it
        elif number % 3 == 1:
            file.write_bytes(file.read_bytes()[:-20])
    assert {digest_of(started(tmp_path))} == together


def test_code_that_cannot_be_kept_is_compiled_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    nowhere = machine_code.folder.__wrapped__()
    assert nowhere is None
    monkeypatch.setattr(machine_code, "folder", lambda: nowhere)
    assert machine_code.compiled(lambda x: x + 1)(2) == 3


def test_a_full_disk_leaves_the_code_unkept(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_code, "folder", lambda: tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine_code.FunctionCache, "save_overload", full)
    assert machine_code.compiled(lambda x: x + 2)(2) == 4


def test_kept_code_is_named_by_all_compiled_sources(tmp_path, monkeypatch):
    imports = re.compile(r"^from preprocess\.tvl1\.(machine_code|lanes) import", re.MULTILINE)
    compiled = {p.name for p in (ROOT / "preprocess" / "tvl1").glob("*.py") if imports.search(p.read_text())}
    assert compiled - {"cpu.py"} <= {*machine_code.SOURCES}
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    before = machine_code.folder.__wrapped__()
    changed = tmp_path / "preprocess"
    changed.mkdir()
    for name in machine_code.SOURCES:
        (changed / name).write_bytes((ROOT / "preprocess" / "tvl1" / name).read_bytes())
    monkeypatch.setattr(machine_code, "__file__", str(changed / "machine_code.py"))
    assert machine_code.folder.__wrapped__() == before
    (changed / machine_code.SOURCES[-1]).write_text("other")
    assert machine_code.folder.__wrapped__() != before
