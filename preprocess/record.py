"""One video -> one record: frames as RGB JPEGs, and the flow between them as gray JPEGs.

Equal files with equal settings and libraries give equal bytes: nothing here knows the time, the machine or its cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from preprocess.config import Flow, Preprocess
from preprocess.errors import VideoError
from preprocess.flow import Field, compute, library, one_thread, opencv_version, resolved, seen
from preprocess.flows.half import halved
from preprocess.sources.listing import Video
from preprocess.video import decoder, opened, source_of, stored_frames
from shards.errors import FormatError
from shards.record import FlowMade, Frames, Plain, Record, quantise

Picture = NDArray[np.uint8]


def make_record(video: Video, settings: Preprocess) -> Record:
    """The record of one video file: n frames and the n - 1 flow pairs between them.

    Flow is computed at the frames' stored size, and halved after that where the settings say so. Frames are held as
    JPEGs and only two at a time as pixels, so that length costs little memory.
    Raises VideoError where the file is damaged, cut short or no video, with the reason.
    """
    source = source_of(video.path)
    rgb: list[bytes] = []
    shape = (0, 0)

    with opened(video.path) as film, one_thread():

        def pictures() -> Iterator[Picture]:
            nonlocal shape
            for picture in stored_frames(film, settings.rgb.short_side):
                shape = picture.shape[:2]
                rgb.append(rgb_jpeg(picture, settings.rgb.quality))
                yield seen(settings.flow.method, picture)

        flow = [
            jpeg
            for field in compute(
                settings.flow.method,
                pictures(),
                settings.flow.parameters,
                backend=settings.flow.backend,
                weights=settings.flow.weights,
            )
            for jpeg in flow_jpegs(field, settings.flow)
        ]
    made = how_made(settings)
    (height, width), scale = shape, settings.flow.scale
    try:
        return Record(
            name=video.name,
            label=video.label,
            class_name=video.class_name,
            fps=film.fps,
            source=source,
            decoded_frames=film.decoded,
            header_frames=film.header_frames,
            rgb=Frames.of(rgb, width=width, height=height, components=3, encoder=made["rgb"]),
            flow=Frames.of(
                flow, width=int(width * scale), height=int(height * scale), components=1, encoder=made["flow_jpeg"]
            ),
            flow_made=FlowMade(
                method=settings.flow.method, parameters=made["flow"], library=made["flow_library"], scale=scale
            ),
        )
    except FormatError as error:  # a stream of 4 GiB
        raise VideoError(f"{video.path}: {error}") from error


def how_made(settings: Preprocess) -> dict[str, Any]:
    """All that decides a record's bytes but its video: settings with every default spelled out, and versions."""
    return {
        "rgb": {
            "short_side": settings.rgb.short_side,
            "quality": settings.rgb.quality,
            "subsampling": "4:2:0",
            "library": jpeg_library(),
            "decoder": decoder(),
            "resize": f"{opencv_version()}: area when shrinking, exact linear when growing",
        },
        **how_stored(settings.flow),
        "flow": dict(resolved(settings.flow.method, settings.flow.parameters)),
        "flow_method": settings.flow.method,
        "flow_library": library(settings.flow),
    }


def how_stored(flow: Flow) -> dict[str, Any]:
    """The part of it that is about storing flow, whoever computed it."""
    encoder: dict[str, Plain] = {"quality": flow.quality, "subsampling": "gray", "library": jpeg_library()}
    # Shards made before there was another scale stay what is asked for.
    return {"flow_jpeg": encoder} | ({} if flow.scale == 1.0 else {"flow_scale": flow.scale})


def jpeg_library() -> str:
    """Name and version of what writes JPEGs."""
    return f"simplejpeg {simplejpeg.__version__}"


def flow_jpegs(field: Field, settings: Flow) -> tuple[bytes, bytes]:
    """A field of flow (H, W, 2), in pixels, as it is stored: its horizontal and its vertical part."""
    levels = quantise(field if settings.scale == 1.0 else halved(field))
    horizontal, vertical = (gray_jpeg(np.ascontiguousarray(levels[..., axis]), settings.quality) for axis in (0, 1))
    return horizontal, vertical


def rgb_jpeg(picture: Picture, quality: int) -> bytes:
    """An RGB picture (H, W, 3) as a baseline JPEG, chroma at half resolution."""
    return bytes(simplejpeg.encode_jpeg(picture, quality=quality, colorspace="RGB", colorsubsampling="420"))


def gray_jpeg(levels: Picture, quality: int) -> bytes:
    """Levels (H, W) as a gray baseline JPEG."""
    shaped = levels.reshape(*levels.shape, 1)
    return bytes(simplejpeg.encode_jpeg(shaped, quality=quality, colorspace="GRAY", colorsubsampling="Gray"))
