"""Videos as telephones, cameras and converters write them: each is read as a player shows it."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from preprocess.config import Preprocess
from preprocess.errors import VideoError
from preprocess.record import make_record
from preprocess.sources.listing import Video
from preprocess.video import count_frames, opened, read_video, stored_frames
from preprocess.videos.upright import upright

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 40), (40, 50, 210), (240, 240, 240)
CORNERS = np.array([[RED, GREEN], [BLUE, WHITE]], np.uint8)  # of the picture that the tests write
ONE = 1 << 16
PLAIN = (ONE, 0, 0, ONE)


def picture(width: int = 64, height: int = 48) -> np.ndarray:
    """Four fields of colour, (H, W, 3)."""
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
    return CORNERS[rows[:, None], columns]


def write(
    path: Path,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    frames: int = 3,
    size: tuple[int, int] = (64, 48),
    matrix: tuple[int, int, int, int] | None = None,
    times: list[int] | None = None,
    before: Callable[[av.container.OutputContainer], object] | None = None,
    options: dict[str, str] | None = None,
    **reformat: int,
) -> Path:
    """A video of `picture`; `matrix` is a b c d of its display matrix, `times` are in hundredths of a second."""
    with av.open(str(path), "w") as container:
        if before is not None:
            before(container)
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if "dst_colorspace" in reformat:
            stream.codec_context.colorspace = {Colorspace.ITU601: 6, Colorspace.ITU709: 1}[reformat["dst_colorspace"]]
            stream.codec_context.color_range = reformat["dst_color_range"]
        if matrix is not None:
            a, b, c, d = matrix
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(*size), format="rgb24").reformat(format=pixels, **reformat)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def corners(frame: np.ndarray) -> np.ndarray:
    """The mean colours in the middle of the four fields of a frame, (2, 2, 3)."""
    height, width = frame.shape[:2]
    rows, columns = (slice(side // 8, side // 8 + side // 4) for side in (height, width))
    fields = [[frame, frame[:, width // 2 :]], [frame[height // 2 :], frame[height // 2 :, width // 2 :]]]
    return np.array([[field[rows, columns].mean(axis=(0, 1)) for field in row] for row in fields])


def looks_like(frame: np.ndarray, expected: np.ndarray, off: int = 8) -> bool:
    return int(np.abs(corners(frame) - expected).max()) <= off


# Turned and mirrored

TURNS = {  # matrix: what becomes of the four corners
    "as it is": (PLAIN, [[RED, GREEN], [BLUE, WHITE]]),
    "a quarter to the right": ((0, ONE, -ONE, 0), [[BLUE, RED], [WHITE, GREEN]]),
    "half a turn": ((-ONE, 0, 0, -ONE), [[WHITE, BLUE], [GREEN, RED]]),
    "a quarter to the left": ((0, -ONE, ONE, 0), [[GREEN, WHITE], [RED, BLUE]]),
    "left for right": ((-ONE, 0, 0, ONE), [[GREEN, RED], [WHITE, BLUE]]),
    "upside down": ((ONE, 0, 0, -ONE), [[BLUE, WHITE], [RED, GREEN]]),
    "over one diagonal": ((0, ONE, ONE, 0), [[RED, BLUE], [GREEN, WHITE]]),
    "over the other": ((0, -ONE, -ONE, 0), [[WHITE, GREEN], [BLUE, RED]]),
}


@pytest.mark.parametrize("ending", ["mp4", "mov"])
@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_video_is_read_upright(tmp_path: Path, turn: str, ending: str) -> None:
    matrix, expected = TURNS[turn]
    frames = read_video(write(tmp_path / f"v.{ending}", matrix=matrix), 96).frames_THWC
    upended = matrix[0] == 0
    assert frames.shape == ((3, 128, 96, 3) if upended else (3, 96, 128, 3))
    assert all(looks_like(frame, np.array(expected)) for frame in frames)


@pytest.mark.parametrize("turn", ["a quarter to the right", "half a turn", "left for right"])
def test_matroska_says_it_too(tmp_path: Path, turn: str) -> None:
    matrix, expected = TURNS[turn]
    path = write(tmp_path / "v.mkv", matrix=matrix)
    with opened(path) as film:
        frame = next(stored_frames(film, 96))
    assert looks_like(frame, np.array(expected))


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 1), (6, 2), (8, 3)])
@pytest.mark.parametrize("ending", ["avi", "mov"])
def test_frames_that_say_it_in_exif_stand_upright(tmp_path: Path, ending: str, orientation: int, turn: int) -> None:
    says, file = Image.Exif(), io.BytesIO()
    says[0x0112] = orientation
    Image.fromarray(picture()).save(file, "JPEG", exif=says, quality=95)
    path = write(tmp_path / "plain.mkv", codec="mjpeg", pixels="yuvj420p").with_name(f"v.{ending}")
    with av.open(str(tmp_path / "plain.mkv")) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number in range(3):
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            packet.is_keyframe = True
            out.mux(packet)
    quarters = ["as it is", "half a turn", "a quarter to the right", "a quarter to the left"]
    frames = read_video(path, 48).frames_THWC
    assert all(looks_like(frame, np.array(TURNS[quarters[turn]][1])) for frame in frames)


class Turned:
    """A frame with a display matrix, and nothing else."""

    def __init__(self, *matrix: int) -> None:
        self.side_data = {"DISPLAYMATRIX": self}
        self.values = matrix

    def __bytes__(self) -> bytes:
        a, b, c, d = self.values
        return struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)


@given(st.sampled_from(list(TURNS)), st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 10), st.integers(-50, 50))
def test_only_signs_count_and_nothing_is_lost(turn: str, width: int, height: int, scale: float, skew: int) -> None:
    matrix, _ = TURNS[turn]
    stored = np.arange(height * width, dtype=np.uint8).reshape(height, width, 1)
    frame = Turned(*(round(value * scale) or skew for value in matrix))
    turned = upright(stored, frame)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    a, b, c, d = (int(np.sign(value)) for value in matrix)
    x, y = a * x + c * y, b * x + d * y  # where the matrix puts each stored point
    expected = np.empty((np.ptp(y) + 1, np.ptp(x) + 1, 1), np.uint8)
    expected[y - y.min(), x - x.min()] = stored
    assert (turned == expected).all()
    assert turned.flags.c_contiguous


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (46341, 46341, -46341, 46341), (ONE, ONE, 0, ONE), (ONE, 0, ONE, 0)])
def test_other_matrices_are_passed_over(matrix: tuple[int, int, int, int]) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert (upright(stored, Turned(*matrix)) == stored).all()


def test_a_record_of_a_turned_video_stands_upright(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", size=(96, 64), matrix=TURNS["a quarter to the right"][0])
    video = Video(name="v", path=path, label=0, class_name="a")
    settings = Preprocess.model_validate({"flow": {"method": "dis"}, "rgb": {"short_side": 64}})
    record = make_record(video, settings)
    assert (record.rgb.width, record.rgb.height) == (64, 96)
    assert (record.flow.width, record.flow.height, len(record.flow)) == (64, 96, 4)


def test_a_vertical_video_stays_vertical(tmp_path: Path) -> None:
    frames = read_video(write(tmp_path / "v.mp4", size=(48, 64)), 96).frames_THWC
    assert frames.shape == (3, 128, 96, 3)
    assert looks_like(frames[0], CORNERS)


# Colours


@pytest.mark.parametrize("space", ["ITU601", "ITU709"])
@pytest.mark.parametrize("reach", ["MPEG", "JPEG"])
def test_colours_are_read_by_the_range_and_the_matrix_that_the_file_names(
    tmp_path: Path, space: str, reach: str
) -> None:
    path = write(
        tmp_path / "v.mp4", dst_colorspace=Colorspace[space], dst_color_range=ColorRange[reach], options={"qp": "0"}
    )
    assert looks_like(read_video(path, 96).frames_THWC[0], CORNERS, 5)


@pytest.mark.parametrize(
    ("ending", "codec", "pixels", "off"),
    [
        ("mkv", "ffv1", "yuv420p10le", 4),
        ("mkv", "ffv1", "yuv422p12le", 4),
        ("mkv", "ffv1", "yuv444p16le", 4),
        ("mp4", "libx265", "yuv420p10le", 5),
        ("mov", "prores_ks", "yuva444p10le", 4),
        ("mkv", "ffv1", "gbrp16le", 0),
        ("mkv", "ffv1", "bgra", 0),
        ("mov", "qtrle", "argb", 0),
        ("mov", "png", "rgba", 0),
        ("avi", "rawvideo", "bgr24", 0),
        ("avi", "mjpeg", "yuvj420p", 6),
        ("gif", "gif", "rgb8", 20),  # 256 colours, dithered
    ],
)
def test_every_depth_and_layout_of_pixels_has_its_colours(
    tmp_path: Path, ending: str, codec: str, pixels: str, off: int
) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    frames = read_video(write(tmp_path / f"v.{ending}", codec=codec, pixels=pixels, options=options), 48).frames_THWC
    assert frames.shape == (3, 48, 64, 3)
    assert all(looks_like(frame, CORNERS, off) for frame in frames)


@pytest.mark.parametrize("pixels", ["gray", "gray10le", "gray16le"])
def test_gray_video_has_three_equal_channels(tmp_path: Path, pixels: str) -> None:
    frames = read_video(write(tmp_path / "v.mkv", codec="ffv1", pixels=pixels), 48).frames_THWC
    assert (frames == frames[..., :1]).all()
    light = corners(frames[0])[..., 0]
    assert abs(light[1, 1] - 240) <= 1
    assert light[1, 0] < light[0, 0] < light[0, 1]


def test_alpha_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgra"
        glass = np.dstack([picture()[..., ::-1], np.zeros((48, 64), np.uint8)])  # nothing of it would be seen
        container.mux(stream.encode(av.VideoFrame.from_ndarray(glass, format="bgra")))
        container.mux(stream.encode(None))
    assert looks_like(read_video(path, 48).frames_THWC[0], CORNERS, 0)


# Sizes and lengths


@pytest.mark.parametrize(
    ("size", "stored"), [((321, 241), (62, 48)), ((3, 500), (48, 8000)), ((500, 3), (8000, 48)), ((1, 1), (48, 48))]
)
def test_odd_sizes_are_stored_at_even_ones(tmp_path: Path, size: tuple[int, int], stored: tuple[int, int]) -> None:
    path = write(tmp_path / "v.mkv", codec="ffv1", pixels="yuv444p", size=size, frames=2)
    width, height = stored
    frames = read_video(path, 48).frames_THWC
    assert frames.shape[1:] == (height, width, 3)
    if min(size) > 9:
        assert looks_like(frames[1], CORNERS, 2)


def test_frames_too_long_for_a_jpeg_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mov", codec="png", pixels="rgb24", size=(1, 500), frames=1)
    with pytest.raises(VideoError, match=r"v\.mov: frames of 1x500 would be stored as 256x128000, expected at most"):
        read_video(path, 256)
    assert read_video(path, 16).frames_THWC.shape == (1, 8000, 16, 3)


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("mkv", "ffv1"), ("gif", "gif"), ("avi", "mpeg4")])
def test_one_frame_is_a_video(tmp_path: Path, ending: str, codec: str) -> None:
    path = write(tmp_path / f"v.{ending}", codec=codec, pixels="rgb8" if codec == "gif" else "yuv420p", frames=1)
    settings = Preprocess.model_validate({"flow": {"method": "dis"}, "rgb": {"short_side": 48}})
    record = make_record(Video(name="v", path=path, label=0, class_name="a"), settings)
    assert (record.frames, len(record.flow), record.decoded_frames) == (1, 0, 1)


def test_a_size_that_changes_on_the_way_is_brought_to_the_first(tmp_path: Path) -> None:
    path, sizes = tmp_path / "v.h264", [(64, 48), (96, 96)]
    pieces = [write(tmp_path / f"{n}.h264", size=size) for n, size in enumerate(sizes)]
    path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    frames = read_video(path, 96).frames_THWC
    assert frames.shape == (6, 96, 128, 3)
    assert all(looks_like(frame, CORNERS, 12) for frame in frames)


# Time


def test_frames_of_a_variable_rate_are_each_taken_once(tmp_path: Path) -> None:
    times = [0, 1, 2, 50, 51, 300, 301, 302]
    for ending in ("mp4", "mkv"):
        path = write(tmp_path / f"v.{ending}", frames=8, times=times, options={"bf": "0"})
        with opened(path) as film:
            shown = [round(100 * frame.time) for frame in film.frames() if frame.time is not None]
            assert shown == times
            assert film.fps != (0, 1)


def test_frames_come_as_they_are_shown_though_stored_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "3", "b_strategy": "0", "qp": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(0, 240, 20):
            gray = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        stored = [packet.dts for packet in container.demux(video=0) if packet.dts is not None]
    assert min(stored) < 0  # what is stored first is shown later
    frames = read_video(path, 48).frames_THWC
    assert np.abs(frames[:, 0, 0, 0].astype(int) - np.arange(0, 240, 20)).max() <= 4


def test_what_an_edit_list_leaves_out_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", frames=12, options={"bf": "0", "g": "4"})
    assert count_frames(path) == 12
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # its duration, its start in the stream
    with av.open(str(path)) as container:
        tick = container.streams.video[0].time_base
    start = int(5 / 25 / tick)
    data[entry + 4 : entry + 8] = struct.pack(">i", start)
    data[entry : entry + 4] = struct.pack(">I", 7 * 1000 // 25)
    path.write_bytes(data)
    assert count_frames(path) == 7  # as players show it: from the sixth on


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_a_video_cut_out_of_another_begins_at_its_first_key_frame(tmp_path: Path, ending: str) -> None:
    whole, path = write(tmp_path / f"whole.{ending}", frames=30, options={"g": "12"}), tmp_path / f"v.{ending}"
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.dts is not None]
        for packet in packets[5:]:
            packet.stream = stream
            out.mux(packet)
    frames = read_video(path, 48).frames_THWC
    assert len(frames) == 18  # the others were made of what is not there
    assert all(looks_like(frame, CORNERS) for frame in frames)


def test_interlaced_frames_stay_woven(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mpg", codec="mpeg2video", frames=4, options={"flags": "+ildct+ilme", "top": "1"})
    with opened(path) as film:
        assert all(frame.interlaced_frame for frame in film.frames())
    assert read_video(path, 48).frames_THWC.shape == (4, 48, 64, 3)


# Beside the frames


def test_sound_does_not_matter(tmp_path: Path) -> None:
    silent = write(tmp_path / "silent.mp4", frames=5)

    def sound(container: av.container.OutputContainer) -> None:
        stream = container.add_stream("aac", rate=8000)
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        wave.rate = 8000
        container.mux(stream.encode(wave))
        container.mux(stream.encode(None))

    loud = tmp_path / "loud.mp4"
    with av.open(str(loud), "w") as out, av.open(str(silent)) as source:
        audio = out.add_stream("aac", rate=8000)
        video = out.add_stream_from_template(source.streams.video[0])
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        wave.rate = 8000
        out.mux(audio.encode(wave))
        out.mux(audio.encode(None))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
    with av.open(str(loud)) as container:
        assert [stream.type for stream in container.streams] == ["audio", "video"]
    assert (read_video(loud, 48).frames_THWC == read_video(silent, 48).frames_THWC).all()


def test_a_cover_before_the_video_is_not_the_video(tmp_path: Path) -> None:
    plain, path = write(tmp_path / "plain.mp4", frames=5), tmp_path / "v.mp4"
    with av.open(str(path), "w") as out, av.open(str(plain)) as source:
        cover = out.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        video = out.add_stream_from_template(source.streams.video[0])
        blue = np.full((32, 32, 3), BLUE, np.uint8)
        out.mux(cover.encode(av.VideoFrame.from_ndarray(blue, format="rgb24")))
        out.mux(cover.encode(None))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                out.mux(packet)
    assert (read_video(path, 48).frames_THWC == read_video(plain, 48).frames_THWC).all()


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv"])
def test_metadata_need_not_be_utf_8(tmp_path: Path, ending: str) -> None:
    def titled(container: av.container.OutputContainer) -> None:
        container.metadata["title"] = "Plage d'ete 42"

    path = write(tmp_path / f"v.{ending}", before=titled)
    data = path.read_bytes()
    assert data.count(b"Plage d'ete 42") == 1
    path.write_bytes(data.replace(b"Plage d'ete 42", b"Plage d'\xe9t\xe9 \xff2"))
    assert count_frames(path) == 3


@pytest.mark.parametrize("promised", [0, 1, 11, 13, 4_000_000_000])
def test_the_count_in_a_header_may_lie_either_way(
    tmp_path: Path, write_video: Callable[..., Path], promised: int
) -> None:
    path = write_video(tmp_path / "v.avi")
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 8 + 16, data.index(b"strh") + 8 + 32):
        data[place : place + 4] = struct.pack("<I", promised)
    path.write_bytes(data)
    with opened(path) as film:
        assert film.header_frames == (promised if promised < 1 << 31 else film.header_frames)
        assert len(list(film.frames())) == 12


# What no memory should be set aside for


def claims(path: Path, width: int, height: int) -> Iterator[Path]:
    """`path` with another size in its header."""
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 8 + 32, data.index(b"strf") + 8 + 4):
        data[place : place + 8] = struct.pack("<ii", width, height)
    path.write_bytes(data)
    yield path


def test_a_size_that_no_memory_holds_is_refused(tmp_path: Path, write_video: Callable[..., Path]) -> None:
    (path,) = claims(write_video(tmp_path / "v.avi", codec="rawvideo", frames=2), 12000, 12000)
    with pytest.raises(VideoError, match=r"v\.avi: claims pictures of 12000x12000, expected at most 67108864 pixels"):
        count_frames(path)
