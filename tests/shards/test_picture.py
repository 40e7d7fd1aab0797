import io
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from shards.picture import Row, contact_sheet, flow_colour, legend, record_sheet
from shards.record import Blob, FlowMade, Frames, Plain, Record, Source, quantise

RIGHT, DOWN, LEFT, UP = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0)
ENCODER: Mapping[str, Plain] = {"quality": 95}


def flow_of(*vectors: tuple[float, float]) -> np.ndarray:
    return np.array([vectors], dtype=np.float64)


def jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return file.getvalue()


def record(frames: int, *, name: str = "v_Wave_g01_c01", px: tuple[float, float] = (2.9, 0.0)) -> Record:
    """A record of `frames` gray frames, each a little lighter, whose flow is `px` everywhere."""
    rgb: list[Blob] = [jpeg(np.full((48, 64, 3), 40 + 5 * i, np.uint8)) for i in range(frames)]
    flow: list[Blob] = [jpeg(np.full((48, 64), quantise(np.array(v)), np.uint8)) for v in px] * (frames - 1)
    return Record(
        name=name,
        label=2,
        class_name="Wave",
        fps=(25, 1),
        source=Source(sha256="0" * 64, bytes=1),
        decoded_frames=frames,
        header_frames=frames,
        rgb=Frames.of(rgb, width=64, height=48, components=3, encoder=ENCODER),
        flow=Frames.of(flow, width=64, height=48, components=1, encoder=ENCODER),
        flow_made=FlowMade(method="dis", parameters={}, library="opencv 5.0.0"),
    )


@given(st.floats(0, 2 * np.pi), st.floats(0.01, 1.0), st.floats(0.5, 40.0))
@example(2.0, 1.0, 1.875)  # whose length is rounded to just above the limit
def test_flow_keeps_its_colour_when_flow_and_limit_grow_together(angle, part, limit):
    unit = np.array([[[np.cos(angle), np.sin(angle)]]]) * part
    apart = flow_colour(unit * limit, limit).astype(int) - flow_colour(unit, 1.0)
    assert np.abs(apart).max() <= 1


@given(st.floats(0, 2 * np.pi))
def test_longer_flow_has_a_more_saturated_colour_up_to_the_limit(angle):
    lengths = np.linspace(0, 1, 9)[:, None]
    colours = flow_colour((lengths * [np.cos(angle), np.sin(angle)])[None], 1.0)[0].astype(int)
    saturation = colours.max(axis=1) - colours.min(axis=1)
    assert (np.diff(saturation) > 0).all()
    assert colours[0].tolist() == [255, 255, 255]
    assert colours[-1].max() == 255


def test_directions_have_the_hues_of_the_middlebury_wheel():
    right, down, left, up = flow_colour(flow_of(RIGHT, DOWN, LEFT, UP))[0].tolist()
    assert right == [255, 0, 0]
    assert (min(down[:2]) > 200, down[2]) == (True, 0)  # yellow
    assert (left[0], min(left[1:]) > 150) == (0, True)  # cyan
    assert (0 < up[0] < 200, up[1:]) == (True, [0, 255])  # violet


def test_opposite_directions_differ_and_close_directions_do_not():
    turn = np.linspace(0, 2 * np.pi, 721)
    colours = flow_colour(np.stack([np.cos(turn), np.sin(turn)], axis=1)[None])[0].astype(int)
    assert np.abs(np.diff(colours, axis=0)).max() <= 10
    assert (np.abs(colours[:360] - colours[360:720]).max(axis=1) > 100).all()


def test_flow_beyond_the_limit_is_darker_and_unknown_flow_is_black():
    within, beyond, unknown = flow_colour(flow_of(RIGHT, (9.0, 0.0), (np.nan, 1.0)), 1.0)[0].tolist()
    assert within == [255, 0, 0]
    assert beyond == [191, 0, 0]
    assert unknown == [0, 0, 0]


@pytest.mark.parametrize("limit", [None, 0.0, 3.0])
def test_no_motion_is_white_under_every_limit(limit):
    assert (flow_colour(np.zeros((4, 6, 2)), limit) == 255).all()


def test_the_legend_shows_each_direction_where_it_points():
    wheel = legend(5.0, size=80)
    centre, edge = 40, 37
    assert wheel[centre, centre].min() > 230
    right, left = wheel[centre, centre + edge].astype(int), wheel[centre, centre - edge].astype(int)
    assert right[0] - right[1] > 180
    assert left[2] - left[0] > 140
    assert (wheel[0, 0] == 255).all()


def test_tiles_of_a_sheet_have_one_height_and_do_not_overlap():
    wide, tall = np.full((10, 40, 3), 30, np.uint8), np.full((40, 10, 3), 90, np.uint8)
    sheet = np.asarray(contact_sheet([Row(pictures=[wide, tall], labels=["wide", "tall"])], height=60))
    of_wide, of_tall = (np.argwhere((sheet == shade).all(axis=2)) for shade in (30, 90))
    assert np.ptp(of_wide[:, 0]) == np.ptp(of_tall[:, 0])
    assert of_wide[:, 1].max() < of_tall[:, 1].min() - 2
    assert np.ptp(of_wide[:, 1]) > 200


def test_a_sheet_leaves_a_margin_all_round():
    sheet = np.asarray(contact_sheet([Row(pictures=[np.zeros((9, 9, 3), np.uint8)] * 3)], title="A title", height=50))
    for edge in (sheet[:8], sheet[-8:], sheet[:, :8], sheet[:, -8:]):
        assert (edge == 255).all()


def test_a_long_or_foreign_title_stays_on_the_page():
    title = "Übung_" + "z" * 300 + " 日本 and more words that need another line"
    sheet = np.asarray(contact_sheet([Row(pictures=[np.zeros((9, 9, 3), np.uint8)])], title=title, height=40))
    assert (sheet[:, -8:] == 255).all()
    assert (sheet[24:60] < 128).any()


def test_a_record_sheet_shows_the_flow_in_its_colour_below_the_frames():
    sheet = np.asarray(record_sheet(record(9), columns=4)).astype(int)
    red = np.argwhere((sheet[..., 0] > 240) & (sheet[..., 1] < 30) & (sheet[..., 2] < 30))
    below = red[red[:, 0] > sheet.shape[0] // 2]
    assert len(below) > 4 * 150 * 150  # nearly 3 px to the right, and the scale ends at 3 px
    gray = (np.ptp(sheet, axis=2) <= 2) & (sheet[..., 0] > 35) & (sheet[..., 0] < 90)
    assert np.argwhere(gray)[:, 0].max() < below[:, 0].min()


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_every_clip_length_has_a_sheet(frames):
    assert record_sheet(record(frames)).width > 100


def test_still_pictures_are_white_though_zero_lies_between_two_levels():
    sheet = np.asarray(record_sheet(record(3, px=(0.0, 0.0)), columns=2))
    tiles = sheet[-130:-60, 40:200]
    assert (tiles == 255).all()
