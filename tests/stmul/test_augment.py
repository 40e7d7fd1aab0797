"""A view is the same cut, size and mirror image in both streams; crops stay in the frame and are drawn as said."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.draws import Draws
from stmul.augment import CROPS, View, crop_view, see_flow, see_rgb, whole_view

UNTIMED = settings(deadline=None, max_examples=60)  # machines are busy
HEIGHT, WIDTH = 60, 80


def clip(scale: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """2 RGB frames and 3 pairs of flow planes, stored at 1 / scale of the frames' size."""
    draw = torch.Generator().manual_seed(1)
    rgb_FHWC = torch.randint(0, 256, (2, HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=draw)
    flow_PHW = torch.randint(0, 256, (6, HEIGHT // scale, WIDTH // scale), dtype=torch.uint8, generator=draw)
    return rgb_FHWC, flow_PHW


def apply_view(
    rgb_FHWC: torch.Tensor, flow_PHW: torch.Tensor, view: View, *, size: int | None, frame: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both streams through the view."""
    return see_rgb(rgb_FHWC, view, size=size, frame=frame), see_flow(flow_PHW, view, size=size, frame=frame)


def by_pillow(picture: torch.Tensor, view: View, size: tuple[int, int], scale: int = 1) -> np.ndarray:
    left, top, right, bottom = (side / scale for side in (view.left, view.top, view.right, view.bottom))
    whole = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    cut = Image.fromarray(picture.numpy()).crop(whole)
    box = (left - whole[0], top - whole[1], right - whole[0], bottom - whole[1])
    found = cut.resize(size, Image.Resampling.BILINEAR, box=box)
    return np.asarray(found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.mirror else found, dtype=np.float32)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("box", [(0, 0, 60, 80), (7, 13, 52, 60), (7, 13, 30, 33), (20, 30, 52, 62)])
def test_a_view_is_what_pillow_makes_of_each_frame(box, scale, mirror):
    view, size = View(*map(float, box), mirror=mirror), 32
    rgb_FHWC, flow_PHW = clip(scale)
    rgb, flow = apply_view(rgb_FHWC, flow_PHW, view, size=size, frame=(HEIGHT, WIDTH))
    assert rgb.shape == (2, 3, size, size)
    assert flow.shape == (6, size, size)
    for found, frame in zip(rgb, rgb_FHWC, strict=True):
        expected = by_pillow(frame, view, (size, size))
        assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() <= 1
    for number, (found, plane) in enumerate(zip(flow, flow_PHW, strict=True)):
        levels = by_pillow(plane, view, (size, size), scale)
        expected = 255 - levels if mirror and number % 2 == 0 else levels
        assert np.abs(found.numpy() - expected).max() <= 1


def test_a_whole_frame_at_its_own_size_is_unchanged():
    rgb_FHWC, flow_PHW = clip()
    rgb, flow = apply_view(rgb_FHWC, flow_PHW, whole_view(HEIGHT, WIDTH), size=None, frame=(HEIGHT, WIDTH))
    assert torch.equal(rgb, rgb_FHWC.permute(0, 3, 1, 2))
    assert torch.equal(flow, flow_PHW)


def test_a_mirrored_whole_frame_turns_motion_to_the_right_into_motion_to_the_left():
    rgb_FHWC, flow_PHW = clip()
    view = whole_view(HEIGHT, WIDTH).mirrored()
    rgb, flow = apply_view(rgb_FHWC, flow_PHW, view, size=None, frame=(HEIGHT, WIDTH))
    assert torch.equal(rgb, rgb_FHWC.permute(0, 3, 1, 2).flip(-1))
    assert torch.equal(flow[0::2], 255 - flow_PHW[0::2].flip(-1))
    assert torch.equal(flow[1::2], flow_PHW[1::2].flip(-1))
    assert view.mirrored() == whole_view(HEIGHT, WIDTH)


def test_flow_at_half_the_size_gets_the_frames_size_in_a_whole_view():
    rgb_FHWC, flow_PHW = clip(scale=2)
    rgb, flow = apply_view(rgb_FHWC, flow_PHW, whole_view(HEIGHT, WIDTH), size=None, frame=(HEIGHT, WIDTH))
    assert rgb.shape[-2:] == flow.shape[-2:] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_is_looked_at_stays_as_it_is(dtype):
    before = [one.to(dtype) for one in clip()]
    given_ = [one.clone() for one in before]
    for size in (None, 32):
        view = whole_view(HEIGHT, WIDTH).mirrored()
        apply_view(given_[0], given_[1], view, size=size, frame=(HEIGHT, WIDTH))
    assert all(torch.equal(one, other) for one, other in zip(given_, before, strict=True))


def test_a_stream_that_was_not_read_stays_empty():
    rgb_FHWC, flow_PHW = clip()
    view = View(0, 0, 30, 30)
    rgb, flow = apply_view(rgb_FHWC, flow_PHW[:0], view, size=32, frame=(HEIGHT, WIDTH))
    assert (len(rgb), flow.shape) == (2, (0, 32, 32))
    rgb, flow = apply_view(rgb_FHWC[:0], flow_PHW, view, size=32, frame=(HEIGHT, WIDTH))
    assert (rgb.shape, len(flow)) == ((0, 3, 32, 32), 6)


@UNTIMED
@given(
    method=st.sampled_from(sorted(CROPS)),
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    size=st.integers(1, 300),
    key=st.integers(0, 2**32),
    quirk=st.booleans(),
    even=st.booleans(),
)
def test_crops_stay_in_the_frame_and_depend_on_nothing_but_their_draws(method, height, width, size, key, quirk, even):
    view = crop_view(method, height, width, size, Draws(key), original_crop_corners=quirk, even=even)
    assert 0 <= view.top < view.bottom <= height
    assert 0 <= view.left < view.right <= width
    assert view == crop_view(method, height, width, size, Draws(key), original_crop_corners=quirk, even=even)
    if even:
        assert view.top % 2 == view.left % 2 == 0
        assert (view.bottom - view.top) % 2 == 0 or view.bottom - view.top in (1, height)
        assert (view.right - view.left) % 2 == 0 or view.right - view.left in (1, width)


def views(method: str, height: int = 256, width: int = 340, count: int = 2000, quirk: bool = False) -> list[View]:
    return [
        crop_view(method, height, width, 224, Draws.of("test", number), original_crop_corners=quirk)
        for number in range(count)
    ]


def test_independent_crops_draw_height_and_width_by_themselves():
    sides = np.array([(view.bottom - view.top, view.right - view.left) for view in views("independent", 400, 400)])
    assert sides.min() >= 168
    assert sides.max() <= 280
    assert sides.min() < 170
    assert sides.max() > 278
    assert abs(np.corrcoef(sides.T)[0, 1]) < 0.1


@pytest.mark.parametrize(("quirk", "quadrants"), [(False, 4), (True, 2)])
def test_corners_lie_within_a_quarter_of_the_room_from_the_border(quirk, quadrants):
    seen = set()
    for view in views("border", quirk=quirk):
        down, across = view.top / (256 - 224), view.left / (340 - 224)
        assert down <= 0.25 or down >= 0.71  # corners are whole pixels, rounded down
        assert across <= 0.25 or across >= 0.74
        seen.add((down > 0.5, across > 0.5))
    assert len(seen) == quadrants
    assert (False, False) in seen


def test_multiscale_crops_take_neighbouring_scales_in_corners_and_centre():
    scales = [168, 192, 224, 256]
    pairs, places = set(), set()
    for view in views("multiscale", 400, 500):
        tall, wide = int(view.bottom - view.top), int(view.right - view.left)
        pairs.add((scales.index(tall), scales.index(wide)))
        places.add((round(view.top / (400 - tall), 1), round(view.left / (500 - wide), 1)))
    assert pairs == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert places == {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)}


def test_random_crops_reach_every_place():
    found = views("random", 230, 230)
    assert {view.top for view in found} == {view.left for view in found} == set(range(7))


def test_half_of_the_crops_are_mirrored_but_none_of_the_centre():
    for method in CROPS:
        mirrored = sum(view.mirror for view in views(method))
        assert mirrored == 0 if method == "centre" else 900 < mirrored < 1100
    assert views("centre", count=1) == [View(16, 58, 240, 282)]
