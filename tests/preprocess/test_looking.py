"""A look at a video tells what is dropped, repeated and beyond the bound, and shows it as a picture and a film."""

import hashlib
import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocess.cli import preprocess
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.errors import VideoError
from preprocess.looking.charts import FLOW, MISSING, OVER, REPEATED, histogram, timeline
from preprocess.looking.inspection import BIN, BINS, BOUND, Inspection, inspected
from preprocess.looking.sheet import film, lines_of, sheet
from preprocess.record import make_record
from preprocess.sources.listing import Video
from preprocess.videos.timing import in_words, timing
from tests.preprocess.conftest import moving_texture

SMALL = Preprocess(rgb=Rgb(short_side=48), flow=Flow(method="farneback"))
STEP = Fraction(1, 25)


def video_of(path: Path, pictures: list[np.ndarray], times: list[int] | None = None) -> Path:
    """A lossless video of `pictures`, each at its time in units of 1/25 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "bgr0"
        stream.codec_context.time_base = STEP
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times or range(len(pictures)))[number], STEP
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def texture(frames: int, dx: float = 2.0) -> list[np.ndarray]:
    return list(moving_texture(frames, 64, 48, dx, 0, 0))


def words(look: Inspection) -> dict[str, str]:
    return dict(lines_of(look))


# Times


@settings(max_examples=40)
@given(
    st.integers(2, 60),
    st.fractions(Fraction(1, 240), Fraction(1, 5), max_denominator=100_000),
    st.fractions(-5, 5, max_denominator=1000),
    st.data(),
)
def test_steady_times_are_steady_in_any_order_and_from_any_start(count, step, start, data):
    times = [start + i * step for i in range(count)]
    found = timing(data.draw(st.permutations(times)))
    assert (found.step, found.variable, found.gaps, found.together) == (step, False, (), ())
    assert timing(times).sorted


@given(st.integers(10, 80), st.sets(st.integers(1, 78), min_size=1, max_size=4), st.integers(1, 5))
def test_frames_left_out_are_counted_where_they_are_missing(count, after, missing):
    after = {frame for frame in after if frame < count - 1}
    times, time = [], 0
    for frame in range(count):
        times.append(time * STEP)
        time += 1 + missing * (frame in after)
    found = timing(times)
    if 2 * len(after) < count - 1:
        assert [(gap.after, gap.missing) for gap in found.gaps] == [(frame, missing) for frame in sorted(after)]
        assert found.missing == missing * len(after)


def test_milliseconds_are_steady_enough_and_times_anyhow_are_variable():
    thirtieths = [Fraction(round(1000 * i / 30), 1000) for i in range(90)]
    assert not timing(thirtieths).variable
    assert timing(thirtieths).gaps == ()
    draws = np.random.default_rng(3).integers(10, 90, 60)
    found = timing([Fraction(int(time), 1000) for time in np.cumsum(draws)])
    assert found.variable
    assert found.gaps == ()
    assert "variable" in in_words(found)


@pytest.mark.parametrize("most", range(2, 12))
def test_times_out_of_order_make_no_gap_where_a_look_ends(most):
    jumbled = [STEP * t for t in (1, 2, 4, 3, 5, 7, 6, 8, 10, 9, 11, 13, 12)]
    found = timing(jumbled, most)
    assert (found.gaps, found.longest, found.sorted) == ((), STEP, False)


def test_frames_at_one_time_and_videos_without_times_are_told():
    assert timing([STEP * t for t in (0, 1, 2, 2, 3)]).together == (3,)
    assert timing([None, STEP]).step is None
    assert "unknown" in in_words(timing([None]))


# The look


def test_frames_and_flow_are_those_that_a_build_stores(tmp_path):
    path = video_of(tmp_path / "a.mkv", texture(7))
    look, record = inspected(path, SMALL), make_record(Video(name="a", path=path, label=0, class_name="a"), SMALL)
    assert [*look.frames] == [bytes(record.rgb[i]) for i in range(7)]
    assert [jpeg for pair in look.flows for jpeg in pair] == [bytes(record.flow[i]) for i in range(12)]
    assert look.size == (record.rgb.width, record.rgb.height)


def test_repeated_frames_are_named_and_so_is_their_rhythm(tmp_path):
    frames = texture(24)
    twice = [frames[t - t // 5] for t in range(24)]  # 5, 10, 15, 20 repeat the one before
    look = inspected(video_of(tmp_path / "a.mkv", twice), SMALL)
    assert look.equal == (5, 10, 15, 20)
    assert look.alike == ()
    assert "4 of 24 frames repeat the one before (5, 10, 15, 20); mostly every 5th" in words(look)["repeated"]
    noise = np.random.default_rng(1).integers(0, 2, twice[0].shape, dtype=np.uint8)
    twice[10] = np.minimum(twice[10], 254) + noise  # compressed anew: not quite the same
    look = inspected(video_of(tmp_path / "b.mkv", twice), SMALL)
    assert look.equal == (5, 15, 20)
    assert look.alike == (10,)


def test_dropped_frames_are_named(tmp_path):
    times = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    look = inspected(video_of(tmp_path / "a.mkv", texture(11), times), SMALL)
    assert [(gap.after, gap.missing) for gap in look.timing.gaps] == [(3, 2)]
    assert "2 dropped: after frame 3 (2)" in words(look)["times"]


def test_flow_beyond_the_bound_is_counted_by_pair(tmp_path, monkeypatch):
    calm = inspected(video_of(tmp_path / "a.mkv", texture(4)), SMALL)
    assert calm.beyond == 0
    assert calm.length_P == pytest.approx(2, abs=0.8)
    assert words(calm)["bound"] == "no flow beyond 20 px"

    def known(method, pictures, parameters, **backend):
        for number, _ in enumerate(list(pictures)[1:]):
            field = np.zeros((48, 64, 2), np.float32)
            field[:, :32, 0] = -25 * (number == 1)
            yield field

    monkeypatch.setattr("preprocess.looking.inspection.compute", known)
    wild = inspected(tmp_path / "a.mkv", SMALL)
    assert wild.beyond_P.tolist() == [0, 0.25, 0]
    assert wild.length_P.tolist() == [0, 12.5, 0]
    assert {int(size): int(count) for size, count in enumerate(wild.histogram) if count} == {
        0: 3 * 48 * 64 * 2 - 48 * 32,
        int(25 / BIN): 48 * 32,
    }
    assert "8.33% of the values lie beyond 20 px" in words(wild)["bound"]
    assert "1 of 3 pairs have 1% or more, the worst is 1 to 2 with 25.0%" in words(wild)["bound"]


def test_only_so_many_frames_are_looked_at(tmp_path):
    path = video_of(tmp_path / "a.mkv", texture(9))
    look = inspected(path, SMALL, most=4)
    assert (len(look.frames), len(look.flows), look.ended) == (4, 3, False)
    assert words(look)["frames"].startswith("the first 4, ")
    assert inspected(path, SMALL, most=20).ended


def test_a_video_damaged_in_the_middle_is_shown_up_to_there(tmp_path, monkeypatch):
    from preprocess.video import Film

    path, whole = video_of(tmp_path / "a.mkv", texture(9)), Film.frames

    def frames(self):
        for number, frame in enumerate(whole(self)):
            if number == 5:
                raise VideoError("decoding fails after frame 5")
            yield frame

    monkeypatch.setattr(Film, "frames", frames)
    look = inspected(path, SMALL)
    assert len(look.frames) == 5
    assert words(look)["damage"] == "decoding fails after frame 5"
    assert len(list(film_frames(look))) == 5


def test_no_video_is_refused_with_its_reason(tmp_path):
    path = tmp_path / "a.avi"
    path.write_text("not a video")
    with pytest.raises(VideoError, match="not a video"):
        inspected(path, SMALL)


# Pictures


def film_frames(look: Inspection) -> list[np.ndarray]:
    with av.open(io.BytesIO(film(look))) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize(("frames", "size"), [(1, (48, 64)), (2, (48, 64)), (8, (90, 49)), (5, (49, 161))])
def test_any_video_has_a_sheet_and_a_film_of_all_its_frames(tmp_path, frames, size):
    draws = np.random.default_rng(0)
    pictures = [draws.integers(0, 255, (*size, 3), dtype=np.uint8) for _ in range(frames)]
    look = inspected(video_of(tmp_path / "a.mkv", pictures), SMALL)
    page = sheet(look)
    assert page.width >= 360
    assert page.height > 200
    shown = film_frames(look)
    assert len(shown) == frames
    assert shown[0].shape[1] >= 2 * (look.size[0] - 1)
    left = np.asarray(Image.open(io.BytesIO(look.frames[0])), dtype=float)[:, : look.size[0] // 2 * 2]
    height, width = (side // 2 * 2 for side in left.shape[:2])
    assert np.abs(shown[0][:height, :width].mean() - left[:height].mean()) < 12


def test_film_has_the_video_s_rate(tmp_path):
    look = inspected(video_of(tmp_path / "a.mkv", texture(3)), SMALL)
    with av.open(io.BytesIO(film(look))) as container:
        assert container.streams.video[0].average_rate == 25


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in picture.reshape(-1, 3)[:].tolist()}


def test_a_histogram_has_red_only_beyond_the_bound():
    counts = np.zeros(BINS + 1, np.int64)
    counts[:3] = 1000, 10, 1
    assert OVER not in colours(histogram(counts, BIN, BOUND, (400, 160)))
    counts[round(BOUND / BIN)] = 5
    assert {OVER, FLOW} <= colours(histogram(counts, BIN, BOUND, (400, 160)))


def test_a_timeline_marks_what_is_repeated_missing_and_beyond():
    lengths = np.array([1.0, 2.0, 0.0, 3.0])
    plain = colours(timeline(lengths, np.zeros(4), [], [], (400, 160)))
    assert not {OVER, REPEATED, MISSING} & plain
    assert {OVER, REPEATED, MISSING} <= colours(timeline(lengths, np.array([0, 0.5, 0, 0]), [3], [1], (400, 160)))


@settings(max_examples=30)
@given(st.integers(1, 5000), st.floats(0, 1e4))
def test_a_timeline_is_drawn_for_any_number_of_pairs_and_any_length(pairs, length):
    assert timeline(np.full(pairs, length), np.zeros(pairs), [], [], (300, 120)).shape == (120, 300, 3)


# The command


def test_the_command_writes_picture_and_film_and_says_what_it_saw(tmp_path):
    path = video_of(tmp_path / "a.mkv", texture(6))
    out = tmp_path / "out"
    out.mkdir()
    small = ["--set", "preprocess.rgb.short_side=48"]
    result = CliRunner().invoke(preprocess, ["inspect", str(path), "--out", str(out), *small])
    assert result.exit_code == 0, result.output
    assert "6 decoded" in result.output
    assert "dis (opencv" in result.output
    assert {one.name for one in out.iterdir()} == {"a-inspect.png", "a-inspect.mp4"}
    with Image.open(out / "a-inspect.png") as page:
        assert page.width > 360
    result = CliRunner().invoke(
        preprocess, ["inspect", str(path), "--out", str(out), *small, "--flow", "farneback", "--no-film"]
    )
    assert "farneback (opencv" in result.output


def test_the_command_refuses_what_is_no_video_in_one_line(tmp_path):
    result = CliRunner().invoke(preprocess, ["inspect", str(tmp_path / "none.avi")])
    assert result.exit_code == 1
    assert "no such file" in result.output
    assert "Traceback" not in result.output


def test_equal_videos_give_equal_bytes_in_any_process(tmp_path):
    path = video_of(tmp_path / "a.mkv", texture(4))
    script = """
import hashlib, sys
from pathlib import Path
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.looking.inspection import inspected
from preprocess.looking.sheet import film, sheet
look = inspected(Path(sys.argv[1]), Preprocess(rgb=Rgb(short_side=48), flow=Flow(method="farneback")))
print(hashlib.sha256(sheet(look).tobytes() + film(look)).hexdigest())
"""
    look, command = inspected(path, SMALL), [sys.executable, "-c", script, str(path)]
    here = hashlib.sha256(sheet(look).tobytes() + film(look)).hexdigest()
    assert subprocess.check_output(command, cwd=Path(__file__).parents[2], text=True).strip() == here
