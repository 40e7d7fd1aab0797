"""One video -> one record: frames as RGB JPEGs, and the flow between them as gray JPEGs.

Equal files with equal settings and libraries give equal bytes: nothing here knows the time, the machine or its cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from preprocess.config import Preprocess
from preprocess.errors import VideoError
from preprocess.flow import compute, gray_of, library, one_thread, resolved
from preprocess.listing import Video
from preprocess.video import decoder, opened, source_of, stored_frames
from shards.errors import FormatError
from shards.record import FlowMade, Frames, Record, quantise

Picture = NDArray[np.uint8]


def make_record(video: Video, settings: Preprocess) -> Record:
    """The record of one video file: n frames and the n - 1 flow pairs between them, computed at the stored size.

    Frames are held as JPEGs and only two at a time as pixels, so that length costs little memory.
    Raises VideoError where the file is damaged, cut short or no video, with the reason.
    """
    source = source_of(video.path)
    rgb: list[bytes] = []
    shape = (0, 0)

    with opened(video.path) as film, one_thread():

        def grays() -> Iterator[Picture]:
            nonlocal shape
            for picture in stored_frames(film, settings.rgb.short_side):
                shape = picture.shape[:2]
                rgb.append(rgb_jpeg(picture, settings.rgb.quality))
                yield gray_of(picture)

        flow = [
            gray_jpeg(np.ascontiguousarray(levels[..., axis]), settings.flow.quality)
            for field in compute(settings.flow.method, grays(), settings.flow.parameters)
            for levels in [quantise(field)]
            for axis in (0, 1)
        ]
    made = how_made(settings)
    size = {"width": shape[1], "height": shape[0]}
    try:
        return Record(
            name=video.name,
            label=video.label,
            class_name=video.class_name,
            fps=film.fps,
            source=source,
            decoded_frames=film.decoded,
            header_frames=film.header_frames,
            rgb=Frames.of(rgb, components=3, encoder=made["rgb"], **size),
            flow=Frames.of(flow, components=1, encoder=made["flow_jpeg"], **size),
            flow_made=FlowMade(method=settings.flow.method, parameters=made["flow"], library=library()),
        )
    except FormatError as error:  # a stream of 4 GiB
        raise VideoError(f"{video.path}: {error}") from error


def how_made(settings: Preprocess) -> dict[str, Any]:
    """All that decides a record's bytes but its video: settings with every default spelled out, and versions."""
    jpeg = f"simplejpeg {simplejpeg.__version__}"
    return {
        "rgb": {
            "short_side": settings.rgb.short_side,
            "quality": settings.rgb.quality,
            "subsampling": "4:2:0",
            "library": jpeg,
            "decoder": decoder(),
            "resize": f"{library()}: area when shrinking, exact linear when growing",
        },
        "flow_jpeg": {"quality": settings.flow.quality, "subsampling": "gray", "library": jpeg},
        "flow": dict(resolved(settings.flow.method, settings.flow.parameters)),
        "flow_method": settings.flow.method,
        "flow_library": library(),
    }


def rgb_jpeg(picture: Picture, quality: int) -> bytes:
    """An RGB picture (H, W, 3) as a baseline JPEG, chroma at half resolution."""
    return bytes(simplejpeg.encode_jpeg(picture, quality=quality, colorspace="RGB", colorsubsampling="420"))


def gray_jpeg(levels: Picture, quality: int) -> bytes:
    """Levels (H, W) as a gray baseline JPEG."""
    shaped = levels.reshape(*levels.shape, 1)
    return bytes(simplejpeg.encode_jpeg(shaped, quality=quality, colorspace="GRAY", colorsubsampling="Gray"))
