"""Pictures -> an MP4 that browsers play: H.264, whole or absent. One picture in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from preprocess.errors import PreprocessError
from shards.whole import whole

Picture = NDArray[np.uint8]  # (H, W, 3), sides even

RATES = (Fraction(1), Fraction(120))  # frames a second that players are sure to show
USUAL_RATE = Fraction(25)  # where the container tells none
CODECS = {  # the first there is writes it, with these options; all are H.264
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libopenh264": {},
    "h264_videotoolbox": {},
}


def write_movie(path: Path, pictures: Iterable[Picture], fps: tuple[int, int]) -> None:
    """Writes `path`: all pictures, of one size, `fps` (numerator, denominator; (0, 1) unknown) a second.

    Raises PreprocessError where this PyAV has no encoder for H.264, ShardError where the file cannot be written.
    """
    codec = h264()
    with whole(path) as file:
        _encode(file.name, pictures, codec, shown_rate(fps))


def shown_rate(fps: tuple[int, int]) -> Fraction:
    """Frames a second of a film of a video that has `fps`."""
    rate = Fraction(*fps) if fps[0] and fps[1] else USUAL_RATE
    return min(max(rate, RATES[0]), RATES[1]).limit_denominator(60000)


def h264() -> str:
    """The name of what encodes H.264 here. Raises PreprocessError where nothing does."""
    for name in CODECS:
        with suppress(av.codec.codec.UnknownCodecError):
            return str(av.codec.Codec(name, "w").name)
    raise PreprocessError(
        f"this PyAV ({av.__version__}, FFmpeg {av.ffmpeg_version_info}) can write no H.264 (it has none of"
        f" {', '.join(CODECS)}): install PyAV's own wheels, pip install --force-reinstall --only-binary av av,"
        " or leave the film out"
    )


def _encode(file: str, pictures: Iterable[Picture], codec: str, rate: Fraction) -> None:
    # The table in front of the frames, so that a browser shows the film while it loads. That takes a second pass, which
    # FFmpeg makes only of files that it opened itself: hence the name.
    options = {"movflags": "faststart"}
    with av.open(file, "w", format="mp4", options=options) as container:
        stream: Any = container.add_stream(codec, options=CODECS[codec], rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on any machine
        for picture in pictures:
            if not stream.codec_context.is_open:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
