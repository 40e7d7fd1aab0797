"""Videos as they come: whole ones are read to their last frame, others refused with the reason."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import VideoError
from preprocess.video import count_frames, opened, read_video, resized, source_of, stored_size
from preprocess.videos.container import shortfall

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, write_video: Write) -> bytes:
    """The bytes of a whole AVI of 12 frames."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.avi").read_bytes()


# Size


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        ((320, 240), (340, 256)),
        ((240, 320), (256, 340)),
        ((560, 240), (596, 256)),
        ((256, 256), (256, 256)),
        ((1920, 1080), (454, 256)),
    ],
)
def test_the_short_side_is_256_and_the_other_floored_to_even(source, stored):
    assert stored_size(*source, 256) == stored


@given(st.integers(2, 5000), st.integers(2, 5000), st.integers(16, 512))
def test_stored_sizes_keep_the_shape_and_turn_with_the_picture(width, height, short):
    stored = stored_size(width, height, short)
    shorter, longer = (stored[1], stored[0]) if width >= height else stored
    assert shorter == short
    assert longer % 2 == 0
    assert 0 <= max(width, height) * short / min(width, height) - longer < 2
    assert stored_size(height, width, short) == (stored[::-1] if width != height else stored)


def test_shrinking_takes_area_means_and_growing_is_linear():
    board = np.zeros((4, 4, 3), np.uint8)
    board[:, ::2] = 200
    assert (resized(board, (2, 2)) == 100).all()
    ramp = np.repeat(np.array([[0, 100]], np.uint8), 2, axis=0)[..., None].repeat(3, axis=2)
    assert resized(ramp, (4, 4))[0, :, 0].tolist() == [0, 25, 75, 100]
    assert resized(board, (4, 4)) is board


# Whole videos


@pytest.mark.parametrize("frames", range(1, 13))
def test_every_frame_of_a_short_video_is_read(tmp_path, write_video, frames):
    footage = read_video(write_video(tmp_path / "v.avi", frames=frames), short_side=96)
    assert footage.frames_THWC.shape == (frames, 96, 128, 3)
    assert footage.frames_THWC.dtype == np.uint8
    assert footage.fps == (25, 1)
    assert footage.header_frames == frames


@pytest.mark.parametrize("ending", ["avi", "mp4", "mov", "mkv", "mpg"])
def test_other_containers_are_read_too(tmp_path, write_video, ending):
    path = write_video(tmp_path / f"v.{ending}", codec="mpeg1video" if ending == "mpg" else "mpeg4")
    assert count_frames(path) == 12


def test_the_rate_is_kept_as_a_fraction(tmp_path, write_video):
    with opened(write_video(tmp_path / "v.avi", fps=Fraction(30000, 1001))) as film:
        assert film.fps == (30000, 1001)


def test_frames_are_what_was_drawn(tmp_path, write_video):
    path = write_video(tmp_path / "v.avi", width=128, height=96, dx=0)
    frames = read_video(path, short_side=96).frames_THWC.astype(int)
    assert np.abs(np.diff(frames, axis=0)).mean() < 2
    assert frames.std() > 30


def test_names_that_look_like_anything_else_are_names(tmp_path, write_video):
    for name in ["-y.avi", "http:x.avi", "concat:a|b.avi", "#1 [x] (50%) é!.avi"]:
        assert count_frames(write_video(tmp_path / name, frames=2)) == 2


def test_a_header_that_promises_another_number_of_frames_is_only_noted(tmp_path, clip):
    path = tmp_path / "v.avi"
    header = clip.index(b"avih") + 8 + 16
    stream = clip.index(b"strh") + 8 + 32
    changed = bytearray(clip)
    changed[header : header + 4] = changed[stream : stream + 4] = struct.pack("<I", 13)
    path.write_bytes(changed)
    footage = read_video(path, 48)
    assert (len(footage.frames_THWC), footage.header_frames) == (12, 13)


@pytest.mark.parametrize("padding", [b"\0", b"\0" * 1000, b"00dc\x30\0\0\0" * 3, b"LIST\xff\xff\xff\x7fmovi"])
def test_padding_behind_the_end_does_not_matter(tmp_path, clip, padding):
    path = tmp_path / "v.avi"
    path.write_bytes(clip + padding)  # HMDB51's files end in what was left in the sector
    assert count_frames(path) == 12


def test_the_hash_is_that_of_the_file(tmp_path):
    (tmp_path / "v").write_bytes(b"abc")
    source = source_of(tmp_path / "v")
    assert source.bytes == 3
    assert source.sha256.startswith("ba7816bf")
    with pytest.raises(VideoError, match="no such file"):
        source_of(tmp_path / "w")


# Videos that cannot be used


def test_an_avi_cut_anywhere_is_refused(tmp_path, clip):
    path = tmp_path / "v.avi"
    step = max(len(clip) // 200, 1)
    for cut in sorted({*range(0, len(clip), step), *range(len(clip) - 40, len(clip))}):
        path.write_bytes(clip[:cut])
        with pytest.raises(VideoError, match=r"empty|cut short|not a video"):
            read_video(path)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_other_containers_cut_in_half_are_refused_too(tmp_path, write_video, ending):
    path = write_video(tmp_path / f"v.{ending}")
    whole = path.read_bytes()
    for cut in (len(whole) // 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(VideoError, match="cut short"):
            count_frames(path)


def test_the_message_says_where_a_cut_file_should_have_ended(tmp_path, clip):
    path = tmp_path / "v.avi"
    path.write_bytes(clip[:5000])
    with pytest.raises(VideoError, match=rf"v.avi: cut short: its 'RIFF' reaches to byte {len(clip)}.* byte 5000"):
        count_frames(path)


def test_an_index_that_points_past_the_end_shows_a_cut(tmp_path, clip):
    path = tmp_path / "v.avi"
    changed = bytearray(clip)
    entry = clip.index(b"idx1") + 8 + 16 * 11
    changed[entry + 8 : entry + 12] = struct.pack("<I", len(clip))
    path.write_bytes(changed)
    assert shortfall(path) == f"1 of the 12 entries of its index point past the end of the file at byte {len(clip)}"


def test_an_avi_whose_writer_was_stopped_is_refused_only_if_its_last_frame_is_cut(tmp_path, clip):
    movie = clip.index(b"movi")
    unfinished = bytearray(clip[: clip.index(b"idx1")])
    unfinished[4:8] = unfinished[movie - 4 : movie] = b"\0\0\0\0"  # sizes are filled in at the end
    path = tmp_path / "v.avi"
    path.write_bytes(unfinished)
    assert shortfall(path) is None
    path.write_bytes(unfinished[:-100])
    assert "00dc" in str(shortfall(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not a video at all\n" * 50, "not a video that can be read.*begins with b'not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n", "not a video"),
        (b"ffconcat version 1.0\nfile /etc/hostname\n", "not a video"),
        (b"RIFF", "not a video"),
    ],
)
def test_what_is_no_video_is_refused_with_what_it_is(tmp_path, content, reason):
    path = tmp_path / "v.avi"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=reason):
        read_video(path)


def test_what_is_no_file_is_refused_with_what_it_is(tmp_path):
    link = tmp_path / "link.avi"
    link.symlink_to(tmp_path / "away.avi")
    found = {tmp_path: "a folder", tmp_path / "v.avi": "no such file", link: "a link to .*away.avi, where nothing is"}
    for path, what in found.items():
        with pytest.raises(VideoError, match=rf"{path}: {what}; expected a video"):
            read_video(path)


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "v.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"no video stream in this avi file \(streams: audio\)"):
        read_video(path)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1000))
    with pytest.raises(VideoError, match="not a video"):
        read_video(path)


def test_a_video_without_one_frame_is_refused(tmp_path, clip):
    # The list of frames is emptied, and every size on the way to it put right.
    movie = clip.index(b"LIST", clip.index(b"movi") - 8)
    empty = bytearray(clip[:movie] + b"LIST" + struct.pack("<I", 4) + b"movi")
    empty[4:8] = struct.pack("<I", len(empty) - 8)
    path = tmp_path / "v.avi"
    path.write_bytes(empty)
    with pytest.raises(VideoError, match="not one frame"):
        read_video(path)


def test_a_video_that_fails_part_way_is_refused_and_not_shortened(tmp_path, write_video):
    path = write_video(tmp_path / "v.avi", codec="mjpeg")
    damaged = bytearray(path.read_bytes())
    start = damaged.index(b"movi")
    for _ in range(8):
        start = damaged.index(b"00dc", start + 4)
    size = struct.unpack("<I", damaged[start + 4 : start + 8])[0]
    damaged[start + 8 : start + 8 + size] = bytes(size)
    path.write_bytes(damaged)
    with pytest.raises(VideoError, match=r"decoding fails after frame 7 \(Invalid data"):
        read_video(path)


# Real ones


def test_real_clips_of_hmdb51_pass(real_data):
    clips = sorted((real_data / "hmdb51").rglob("*.avi"))
    counts = {}
    for path in clips:
        with opened(path) as film:
            counts[path.name[:20]] = (sum(1 for _ in film.frames()), film.header_frames)
    assert len(counts) == 5
    assert all(decoded != header for decoded, header in counts.values())


def test_real_clips_of_ucf101_pass_with_one_frame_less_than_promised(real_data):
    path = real_data / "ucf101-clips/videos/Kayaking/v_Kayaking_g12_c03.avi"
    with opened(path) as film:
        assert (sum(1 for _ in film.frames()), film.header_frames, film.fps) == (371, 372, (25, 1))
    footage = read_video(real_data / "ucf101-clips/videos/BaseballPitch/v_BaseballPitch_g01_c01.avi")
    assert footage.frames_THWC.shape == (107, 256, 340, 3)
    assert footage.fps == (30000, 1001)


def test_a_real_clip_cut_in_the_middle_is_refused(real_data, tmp_path):
    whole = next((real_data / "ucf101-clips").rglob("v_ApplyEyeMakeup*.avi")).read_bytes()
    path = tmp_path / "v.avi"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(VideoError, match="cut short"):
        count_frames(path)
