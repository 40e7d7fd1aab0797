"""Resizing is what its matrices say, which is what Pillow does with a picture that was cut out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stmul.resize import Axis, by_matrices, resize_matrix, resized

UNTIMED = settings(deadline=None, max_examples=60)  # machines are busy
LEVEL = 1.01  # 1 grey level, and what weights in 16 bits may add


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@st.composite
def axes(draw: st.DrawFn, whole: bool = False) -> Axis:
    size, unit = draw(st.integers(1, 70)), 1 if whole else 8  # boxes of whole pixels, or eighths
    start = draw(st.integers(0, size * unit - 1))
    stop = draw(st.integers(start + 1, size * unit))
    return Axis(size, start / unit, stop / unit, draw(st.integers(1, 70)))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).abs().max())


@UNTIMED
@given(rows=axes(), columns=axes(), seed=st.integers(0, 99))
def test_the_matrices_do_what_pillow_does_with_what_the_box_touches(rows, columns, seed):
    picture = pictures(rows.size, columns.size, seed=seed)
    left, top = math.floor(columns.start), math.floor(rows.start)
    cut = Image.fromarray(picture.numpy()).crop((left, top, math.ceil(columns.stop), math.ceil(rows.stop)))
    box = (columns.start - left, rows.start - top, columns.stop - left, rows.stop - top)
    expected = cut.resize((columns.out, rows.out), Image.Resampling.BILINEAR, box=box)
    found = by_matrices(picture[None], rows, columns)[0].round().numpy()
    assert np.abs(found - np.asarray(expected, dtype=np.float32)).max() <= 1


@UNTIMED
@given(rows=axes(), columns=axes())
def test_blocks_give_what_the_whole_matrices_give(rows, columns):
    picture = pictures(rows.size, columns.size).float()
    down = resize_matrix(rows.size, rows.start, rows.stop, rows.out)
    across = resize_matrix(columns.size, columns.start, columns.stop, columns.out)
    assert torch.allclose(by_matrices(picture[None], rows, columns)[0], down @ picture @ across.T, atol=1e-3)


@UNTIMED
@given(rows=axes(whole=True), columns=axes(whole=True), count=st.integers(1, 9), mirror=st.booleans())
def test_bytes_agree_with_the_matrices_to_a_grey_level(rows, columns, count, mirror):
    planes = pictures(count, rows.size, columns.size, seed=count)
    found, expected = resized(planes, rows, columns, mirror=mirror), by_matrices(planes, rows, columns)
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape == (count, rows.out, columns.out)
    assert difference(found, expected.flip(-1) if mirror else expected) <= LEVEL


@UNTIMED
@given(rows=axes(whole=True), columns=axes(whole=True), count=st.integers(1, 3), mirror=st.booleans())
def test_colour_frames_agree_with_the_matrices_to_a_grey_level(rows, columns, count, mirror):
    frames_FCHW = pictures(count, rows.size, columns.size, 3).permute(0, 3, 1, 2)
    found, expected = resized(frames_FCHW, rows, columns, mirror=mirror), by_matrices(frames_FCHW, rows, columns)
    assert difference(found, expected.flip(-1) if mirror else expected) <= LEVEL


@UNTIMED
@given(rows=axes(), columns=axes(), mirror=st.booleans(), dtype=st.sampled_from([torch.uint8, torch.float32]))
def test_whatever_way_is_chosen_agrees_with_the_matrices_to_a_grey_level(rows, columns, mirror, dtype):
    planes = pictures(5, rows.size, columns.size).to(dtype)
    expected = by_matrices(planes, rows, columns)
    found = resized(planes, rows, columns, mirror=mirror)
    assert found.dtype == dtype
    assert difference(found, expected.flip(-1) if mirror else expected) <= LEVEL


@UNTIMED
@given(rows=axes(), columns=axes(), colour=st.booleans())
def test_what_is_written_into_given_memory_is_the_same(rows, columns, colour):
    planes = pictures(3, 3, rows.size, columns.size)
    given_ = planes if colour else planes[0]
    expected = resized(given_, rows, columns)
    memory = torch.full((2, *expected.shape), 7, dtype=torch.uint8)
    assert resized(given_, rows, columns, out=memory[1]).data_ptr() == memory[1].data_ptr()
    assert torch.equal(memory[1], expected)
    assert (memory[0] == 7).all()


@UNTIMED
@given(axis=axes())
def test_every_output_is_a_mean_of_inputs_that_the_box_touches(axis):
    matrix = resize_matrix(axis.size, axis.start, axis.stop, axis.out)
    assert matrix.shape == (axis.out, axis.size)
    assert (matrix >= 0).all()
    assert torch.allclose(matrix.sum(1), torch.ones(axis.out), atol=1e-6)
    assert not matrix[:, : math.floor(axis.start)].any()
    assert not matrix[:, math.ceil(axis.stop) :].any()


def test_growing_twofold_interpolates():
    expected = [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    assert torch.equal(resize_matrix(2, 0, 2, 4), torch.tensor(expected))


def test_shrinking_to_half_averages_under_a_triangle():
    assert torch.allclose(resize_matrix(6, 0, 6, 3)[1], torch.tensor([0, 1, 3, 3, 1, 0]) / 8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_keeps_its_size_is_copied(dtype):
    planes = pictures(3, 9, 11).to(dtype)
    found = resized(planes, Axis(9, 2, 7, 5), Axis(11, 0, 11, 11))
    assert torch.equal(found, planes[:, 2:7])
    found += 1
    assert torch.equal(planes, pictures(3, 9, 11).to(dtype))


def test_no_pictures_give_no_pictures():
    assert resized(pictures(0, 8, 8), Axis(8, 0, 4, 16), Axis(8, 0, 4, 16)).shape == (0, 16, 16)
    assert resized(pictures(0, 0, 0), Axis(0, 0, 0, 16), Axis(0, 0, 0, 16), mirror=True).shape == (0, 16, 16)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_gpu_agrees_with_the_matrices_to_a_grey_level(dtype):
    planes = pictures(20, 128, 170).to(dtype)
    for rows, columns in (
        (Axis(128, 10, 120, 112), Axis(170, 5.5, 160, 112)),
        (Axis(128, 3, 90, 224), Axis(170, 0, 170, 224)),
    ):
        found = resized(planes.cuda(), rows, columns, mirror=True).cpu()
        assert difference(found, by_matrices(planes, rows, columns).flip(-1)) <= LEVEL
