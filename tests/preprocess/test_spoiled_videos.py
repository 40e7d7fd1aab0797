"""Whatever bytes a file holds, reading it gives frames or a VideoError: nothing else ends a build."""

from __future__ import annotations

from contextlib import suppress

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import VideoError
from preprocess.video import read_video
from tests.preprocess.test_odd_videos import write

KINDS = {
    "avi": ("mpeg4", "yuv420p"),
    "mp4": ("libx264", "yuv420p"),
    "mov": ("png", "rgba"),
    "mkv": ("ffv1", "yuv420p"),
    "webm": ("libvpx-vp9", "yuv420p"),
    "mpg": ("mpeg1video", "yuv420p"),
    "gif": ("gif", "rgb8"),
}
EDITS = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    turned = (0, 65536, -65536, 0)
    return {
        ending: write(
            folder / f"v.{ending}", codec=codec, pixels=pixels, matrix=turned if ending in {"mp4", "mov"} else None
        ).read_bytes()
        for ending, (codec, pixels) in KINDS.items()
    }


@pytest.mark.parametrize("ending", KINDS)
def test_spoiled_bytes_give_frames_or_a_video_error(
    ending: str, whole: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("spoiled") / f"v.{ending}"

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(EDITS, st.integers(0, 4) | st.just(1 << 20))
    def spoiled(edits: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(whole[ending])
        for place, value in edits:
            data[place % len(data)] = value
        path.write_bytes(data[: max(len(data) - cut, len(data) // 2)])
        with suppress(VideoError):
            assert len(read_video(path, 16).frames_THWC)

    before = av.logging.get_level()
    av.logging.set_level(None)  # FFmpeg would say all it finds
    try:
        spoiled()
    finally:
        av.logging.set_level(before)
