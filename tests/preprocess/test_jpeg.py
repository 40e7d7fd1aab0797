"""Headers of JPEGs: what is read without Pillow, Pillow reads too, and as the same."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocess.videos.jpeg import jpeg_header

LEVELS = np.random.default_rng(0).integers(0, 256, (17, 33, 3), dtype=np.uint8)
MODES = {1: "L", 3: "RGB"}


def by_pillow(mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(LEVELS).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def by_ffmpeg() -> bytes:
    context = av.CodecContext.create("mjpeg", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 33, 17, "yuvj420p", Fraction(1, 25)
    (packet, *_) = context.encode(av.VideoFrame.from_ndarray(LEVELS, format="rgb24").reformat(format="yuvj420p"))
    return bytes(packet)


EXIF = Image.Exif()
EXIF[0x0112] = 6
JPEGS = {
    "plain": by_pillow(),
    "gray": by_pillow("L"),
    "progressive": by_pillow(progressive=True),
    "with tables of its own": by_pillow(optimize=True),
    "with notes": by_pillow(
        exif=EXIF, comment=b"\xff\xd8\xff\xda of a camera", dpi=(300, 300), icc_profile=b"p" * 70000
    ),
    "with restarts": by_pillow(restart_marker_rows=1),
    "simplejpeg": simplejpeg.encode_jpeg(LEVELS, quality=90, colorsubsampling="420"),
    "simplejpeg, gray": simplejpeg.encode_jpeg(LEVELS[..., :1].copy(), colorspace="GRAY", colorsubsampling="Gray"),
    "ffmpeg": by_ffmpeg(),
}
MORE = [by_pillow("CMYK"), b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n" + bytes(40)]


@pytest.mark.parametrize("name", JPEGS)
def test_what_encoders_write_is_read_as_pillow_reads_it(name: str) -> None:
    header = jpeg_header(JPEGS[name])
    assert header is not None
    assert (header.width, header.height, MODES[header.components]) == (33, 17, "L" if "gray" in name else "RGB")
    assert JPEGS[name].startswith(header.bytes)
    assert jpeg_header(header.bytes) == header  # all of it stands before the scan


@pytest.mark.parametrize("blob", MORE)
def test_all_else_is_left_to_pillow(blob: bytes) -> None:
    assert jpeg_header(blob) is None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*JPEGS.values(), *MORE[:1]]),
    st.lists(
        st.tuples(st.integers(0, 700), st.integers(0, 255), st.sampled_from(["set", "insert", "cut"])), max_size=3
    ),
    st.integers(0, 2000),
)
@example(JPEGS["plain"], [(3, 0xDA, "set")], 0)
def test_nothing_is_accepted_that_pillow_refuses(blob: bytes, edits: list[tuple[int, int, str]], cut: int) -> None:
    spoiled = bytearray(blob[: len(blob) - cut])
    for place, value, how in edits:
        if place < len(spoiled):
            if how == "set":
                spoiled[place] = value
            elif how == "insert":
                spoiled.insert(place, value)
            else:
                del spoiled[place]
    header = jpeg_header(bytes(spoiled))
    if header is not None:
        with Image.open(io.BytesIO(spoiled), formats=["JPEG"]) as image:
            assert (image.size, image.mode) == ((header.width, header.height), MODES[header.components])
