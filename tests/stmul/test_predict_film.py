"""Films and pictures of predictions: what a page shows, when, in what size; files that are whole or absent."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocess.errors import PreprocessError
from preprocess.looking import movie
from preprocess.looking.movie import shown_rate, write_movie
from shards.errors import CorruptRecordError
from shards.record import Frames
from stmul.predict import Prediction, Window, softmax
from stmul.predict_files import names_of
from stmul.predict_film import GAP, MARGIN, ROW, TRACK, class_colours, clock, layout_of, pages
from stmul.predict_timeline import borders, classes_shown, write_timeline

CLASSES = ("walk", "wave", "a class whose name is far longer than any page of a film has room for")


def found_of(frames: int, *scores: tuple[float, ...], rate: float = 25.0) -> Prediction:
    """A prediction with equal windows, half over each other, of these scores."""
    length = frames if len(scores) == 1 else 2 * frames // (len(scores) + 1)
    firsts = [frames - length if i == len(scores) - 1 else i * length // 2 for i in range(len(scores))]
    windows = tuple(
        Window(first=first, last=first + length, heads={"joint": np.array(one, dtype=np.float32)})
        for first, one in zip(firsts, scores, strict=True)
    )
    return Prediction(name="v", classes=CLASSES, frames=frames, rate=rate, windows=windows)


def length_of_bar(page: np.ndarray, number: int, found: Prediction, label: int) -> float:
    """The part of a bar that is filled, by the colours of its middle line."""
    line = page[layout_of(48, 32, bars=3).bars + number * ROW + ROW // 2].astype(int)
    full = (np.abs(line - class_colours(found)[label]).sum(axis=1) < 12).sum()
    empty = (np.abs(line - np.array(TRACK)).sum(axis=1) < 12).sum()
    return full / (full + empty)


def test_a_page_shows_its_frame_its_flow_and_how_likely_the_classes_of_its_window_are(make_record):
    record = make_record("v_one", frames=24, width=48, height=32)
    found = found_of(24, (3.0, 1.0, 0.0), (0.0, 2.0, 0.5), (0.0, 0.0, 0.0))
    shown = list(pages(record, found))
    assert len(shown) == 24
    assert {page.shape for page in shown} == {shown[0].shape}
    assert all(side % 2 == 0 for side in shown[0].shape[:2])
    for number, page in enumerate(shown):
        layout = layout_of(48, 32, bars=3)
        left, (width, height) = layout.left, layout.picture
        frame = Image.open(io.BytesIO(bytes(record.rgb[number]))).resize((width, height), Image.Resampling.BILINEAR)
        assert np.array_equal(page[MARGIN : MARGIN + height, left : left + width], np.asarray(frame))
        # The square of the tests' records moves to the right: red, on white.
        flow = page[MARGIN : MARGIN + height, left + width + GAP :][:, :width].astype(int)
        square = flow[flow.min(axis=2) < 200]
        assert len(square) > 100
        assert (square[:, 0] > square[:, 1:].max(axis=1) + 30).all()
        window = found.at(number)
        for place, guess in enumerate(found.top(3, window)):
            assert abs(length_of_bar(page, place, found, guess.label) - guess.probability) < 0.03


@given(st.integers(1, 400), st.lists(st.floats(-9, 9), min_size=1, max_size=8), st.data())
def test_the_window_of_a_frame_is_the_one_whose_middle_is_nearest(frames, scores, data):
    frames = max(frames, 2 * len(scores))
    found = found_of(frames, *[(score, 0.0, 0.0) for score in scores])
    frame = data.draw(st.integers(0, frames - 1))
    middles = [(window.first + window.last - 1) / 2 for window in found.windows]
    nearest = min(range(len(middles)), key=lambda i: abs(middles[i] - frame))
    assert found.at(frame) is found.windows[nearest]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5))
def test_everything_on_a_page_has_its_place_whatever_the_size_of_the_frames(width, height, bars):
    layout = layout_of(width, height, bars=bars)
    across, down = layout.page
    assert across % 2 == down % 2 == 0
    assert layout.left >= MARGIN
    assert layout.left + 2 * layout.picture[0] + GAP + MARGIN <= across
    assert MARGIN + layout.picture[1] <= layout.bars
    assert layout.bars + bars * ROW <= layout.strip < down - 8
    assert 0 < layout.edge < across


def test_a_video_of_one_frame_has_a_film_of_one_page_and_a_timeline(make_record):
    record = make_record("v_short", frames=1)
    found = found_of(1, (1.0, 0.0, 0.0))
    assert len(list(pages(record, found))) == 1
    file = io.BytesIO()
    write_timeline(file, record, found)
    assert Image.open(file).format == "PNG"


def test_a_timeline_has_a_column_for_each_window_and_a_row_for_each_class(make_record):
    found = found_of(100, (9.0, 0.0, 0.0), (0.0, 9.0, 0.0), (0.0, 9.0, 0.0))
    edges = borders(found)
    assert len(edges) == 4
    assert (edges[0], edges[-1]) == (0.0, 4.0)
    assert (np.diff(edges) > 0).all()
    likely = np.stack([softmax(window.heads["joint"]) for window in found.windows])
    assert classes_shown(likely) == [1, 0, 2]
    file = io.BytesIO()
    write_timeline(file, make_record("v_long", frames=100), found)
    picture = np.asarray(Image.open(file).convert("RGB")).astype(int)
    dark = (picture[..., 2] - picture[..., 0] > 50) & (picture.sum(axis=2) < 400)  # where a class is all but certain
    columns = np.flatnonzero(dark.sum(axis=0) > 8)
    rows = np.flatnonzero(dark.sum(axis=1) > 8)
    assert columns.max() - columns.min() > 0.7 * picture.shape[1]
    assert rows.max() - rows.min() < 0.5 * picture.shape[0]


@given(st.integers(1, 12), st.integers(2, 12))
def test_classes_that_lead_a_window_are_shown(windows, classes):
    draws = np.random.default_rng([windows, classes])
    likely = draws.dirichlet(np.full(classes, 0.1), windows)
    shown = classes_shown(likely, count=8)
    assert len(shown) == min(8, classes) == len(set(shown))
    assert int(likely.max(axis=0).argmax()) in shown
    assert list(likely.mean(axis=0)[shown]) == sorted(likely.mean(axis=0)[shown], reverse=True)


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00.0"), (59.96, "1:00.0"), (62.5, "1:02.5"), (3600, "60:00.0")])
def test_times_read_as_players_show_them(seconds, words):
    assert clock(seconds) == words


@given(st.lists(st.lists(st.sampled_from(["a", "b", "A"]), min_size=1, max_size=3), min_size=1, max_size=6))
def test_no_two_files_share_a_name_where_folders_tell_them_apart(paths):
    files = [Path("/", *parts, "x.avi") for parts in paths]
    names = names_of(files)
    apart = len({str(path).casefold() for path in files})
    assert len({name.casefold() for name in names}) == apart
    if apart == 1:
        assert all(name.endswith("x.avi") for name in names)


def test_a_film_plays_in_browsers(tmp_path, make_record):
    record, found = make_record("v_one", frames=12, width=48, height=32), found_of(12, (1.0, 0.0, 0.0))
    path = tmp_path / "v.mp4"
    write_movie(path, pages(record, found), (30000, 1001))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # shown while it loads
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(30000 / 1001)
        seen = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(seen) == 12
    for page, decoded in zip(pages(record, found), seen, strict=True):
        assert np.abs(page.astype(int) - decoded).mean() < 12
    assert [one.name for one in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize(("fps", "rate"), [((0, 1), 25), ((1000, 1), 120), ((1, 10), 1), ((24, 1), 24)])
def test_films_have_rates_that_players_show(fps, rate):
    assert shown_rate(fps) == rate


def test_a_film_that_cannot_be_finished_is_not_there(tmp_path, make_record):
    record, found = make_record("v_one", frames=12), found_of(12, (1.0, 0.0, 0.0))
    rgb = record.rgb
    jpegs = [b"broken" if image == 9 else bytes(rgb[image]) for image in range(12)]
    broken = Frames.of(jpegs, width=rgb.width, height=rgb.height, components=3, encoder=rgb.encoder)
    object.__setattr__(record, "rgb", broken)
    with pytest.raises(CorruptRecordError, match="v_one"):
        write_movie(tmp_path / "v.mp4", pages(record, found), (25, 1))
    assert not list(tmp_path.iterdir())


def test_without_an_encoder_for_browsers_no_film_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(movie, "CODECS", {"libnothing264": {}})
    with pytest.raises(PreprocessError, match=r"can write no H\.264"):
        write_movie(tmp_path / "v.mp4", iter(()), (25, 1))
    assert not list(tmp_path.iterdir())
