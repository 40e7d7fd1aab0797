"""A record of frames and flow that lie in folders as JPEGs: every byte is taken over as it is.

But for flow that is asked for at half its size: its JPEGs are decoded, halved and written anew.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import simplejpeg
from PIL import Image, UnidentifiedImageError

from preprocess.config import Flow, Preprocess
from preprocess.errors import DatasetError, VideoError
from preprocess.flows.half import LEAST, halved_levels
from preprocess.record import gray_jpeg, how_stored
from preprocess.sources import disk
from preprocess.sources.frame_folders import FRAME
from preprocess.sources.listing import Video
from preprocess.videos.jpeg import JpegHeader, jpeg_header
from shards.errors import FormatError
from shards.format import MOST_PIXELS
from shards.record import FlowMade, Frames, Plain, Record, Source

COMPONENTS = {"L": 1, "RGB": 3}  # of a JPEG, by Pillow's name of its mode
TAKEN_OVER: Mapping[str, Plain] = {"taken_over": True}
END_MARK, END_WITHIN = b"\xff\xd9", 64  # some writers pad behind a JPEG's end
PIECE = 1 << 16  # bytes of a file read at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFiles:
    """What lies in one folder of frames."""

    frames: tuple[Path, ...]  # in order
    strays: tuple[Path, ...]  # what is no frame


@dataclass(frozen=True, kw_only=True, slots=True)
class Jpegs:
    """JPEGs of one size."""

    names: tuple[str, ...]
    bytes: tuple[bytes, ...]
    width: int  # pixels
    height: int
    components: int
    encoder: Mapping[str, Plain] = field(default_factory=lambda: TAKEN_OVER)


def record_from_frames(video: Video, settings: Preprocess) -> Record:
    """The record of a video whose frames and flow were extracted before, their JPEGs byte for byte.

    Where there are as many flow images as frames the last pair is left out. Rate and header count are unknown. Of
    `settings` only the scale of the flow has a say, and its quality where that is a half: such flow is written anew,
    unless it is smaller than the frames already.
    Raises VideoError for missing numbers, counts or sizes that do not fit, and what is no JPEG.
    """
    if video.flow_path is None:
        raise VideoError(f"{video.name}: {video.path} has no folders of flow; expected flows/u and flows/v")
    rgb, u, v = (_jpegs(folder) for folder in (video.path, *video.flow_path))
    if rgb is None:
        raise VideoError(
            f"{video.name}: {video.path} holds no frames; expected frame000001.jpg, img_00001.jpg or 00000.jpg"
        )
    pairs = _pairs(video, rgb, u, v)
    flow = (
        _interleaved(u, v, pairs)
        if u and v
        else Jpegs(names=(), bytes=(), width=rgb.width, height=rgb.height, components=1)
    )
    scale = flow.width / rgb.width
    if settings.flow.scale != 1.0 and flow.width >= rgb.width and flow.height >= rgb.height:
        flow, scale = _halved(flow, video, settings.flow), scale * settings.flow.scale
    try:
        streams = _frames(rgb), _frames(flow)
    except FormatError as error:  # a stream of 4 GiB
        raise VideoError(f"{video.path}: {error}") from error
    return Record(
        name=video.name,
        label=video.label,
        class_name=video.class_name,
        fps=(0, 1),
        source=_source({"rgb": rgb, "u": u, "v": v}),
        decoded_frames=len(rgb.bytes),
        header_frames=0,
        rgb=streams[0],
        flow=streams[1],
        flow_made=FlowMade(
            method="extracted",
            parameters={},
            library="",
            scale=scale,
            dropped=2 * (len(u.bytes) - pairs) if u else 0,
        ),
    )


def how_taken(flow: Flow) -> dict[str, Any]:
    """All that decides the bytes of such a record but its frames and flow."""
    return {**TAKEN_OVER} if flow.scale == 1.0 else {**TAKEN_OVER, **how_stored(flow)}


def frame_files(folder: Path) -> FrameFiles:
    """The numbered JPEGs in `folder` in order, numbered from 0 or 1 without gaps, and whatever else lies there.

    Frames share what stands before the number; of several such prefixes the commonest is theirs. Raises VideoError.
    """
    frames, others = _listed(folder)
    return FrameFiles(frames=tuple(folder / name for name in frames), strays=tuple(folder / name for name in others))


def strays(videos: Iterable[Video]) -> Iterator[Path]:
    """What lies in the folders of `videos` and is no frame: it is ignored, but should be named."""
    for video in videos:
        for folder in (video.path, *(video.flow_path or ())):
            try:
                yield from frame_files(folder).strays
            except VideoError:
                continue  # told when its record is made


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the frames in `folder`, in order, and of whatever else lies there. Raises VideoError."""
    if not folder.is_dir():
        raise VideoError(f"{folder}: expected a folder of frames, found none; extract the video again")
    try:
        with os.scandir(folder) as scan:
            here = list(scan)
        names = sorted([entry.name for entry in here])
        if names and names == _in_a_row(names) and all(entry.is_file() for entry in here):  # as most folders are
            return names, []
        return _numbered(folder, disk.entries(folder))
    except OSError as error:
        raise VideoError(f"{folder}: expected a folder that can be read, found: {error.strerror}") from error
    except DatasetError as error:  # one video's folder is that video's trouble
        raise VideoError(str(error)) from error


def _in_a_row(names: Sequence[str]) -> list[str]:
    """The names that as many frames have that are numbered from the first of `names`, from 0 or 1."""
    match = FRAME.fullmatch(names[0])
    if match is None or int(match["number"]) > 1:
        return []
    width, ending, first = len(match["number"]), names[0][match.end("number") :], int(match["number"])
    return [f"{match['prefix']}{number:0{width}}{ending}" for number in range(first, first + len(names))]


def _numbered(folder: Path, here: Sequence[os.DirEntry[str]]) -> tuple[list[str], list[str]]:
    """As `_listed`, of a folder that holds other things, or numbers of several lengths."""
    numbered = {entry.name: match for entry in here if (match := FRAME.fullmatch(entry.name)) and entry.is_file()}
    prefixes = Counter(match["prefix"] for match in numbered.values()).most_common(2)
    if len(prefixes) == 2 and prefixes[0][1] == prefixes[1][1]:
        raise VideoError(
            f"{folder}: as many files are named {prefixes[0][0]!r} and a number as {prefixes[1][0]!r} and a number;"
            " expected one kind of frames; move the others away"
        )
    by_number: dict[int, str] = {}
    for name, match in numbered.items():
        if match["prefix"] != prefixes[0][0]:
            continue
        other = by_number.setdefault(int(match["number"]), name)
        if other != name:
            raise VideoError(f"{folder}: {other} and {name} have one number; expected one frame for each; remove one")
    _without_gaps(folder, by_number.keys())
    frames = [name for _, name in sorted(by_number.items())]
    taken = set(frames)
    return frames, [entry.name for entry in here if entry.name not in taken]


def _without_gaps(folder: Path, numbers: Iterable[int]) -> None:
    there = set(numbers)
    if not there:
        return
    first, last = min(1, *there), max(there)
    missing = last + 1 - first - len(there)
    if missing:  # the range may be as long as a date that someone took for a number: look no further than is told
        named = list(islice((number for number in range(first, last + 1) if number not in there), 10))
        more = f" and {missing - len(named):,} more" if missing > len(named) else ""
        raise VideoError(
            f"{folder}: {missing:,} of the frames {first} to {last} are missing: {disk.some(named, 10)}{more};"
            " expected numbers from 0 or 1 without gaps; extract the video again"
        )


def _jpegs(folder: Path) -> Jpegs | None:
    """The folder's frames, read; None if it has none."""
    names, _ = _listed(folder)
    if not names:
        return None
    blobs: list[bytes] = []
    kind: tuple[int, int, int] | None = None
    header = b"\0"  # no JPEG begins so
    for name, blob in zip(names, _read(folder, names), strict=True):
        # Most frames of a video have the same header to the byte, and need not be looked at again.
        if not blob.startswith(header):
            known = jpeg_header(blob)
            header = known.bytes if known else b"\0"
            found = _kind(blob, folder / name, known)
            if found[0] * found[1] > MOST_PIXELS:  # no record holds it
                raise VideoError(
                    f"{folder / name}: {_words(found)}, expected at most {MOST_PIXELS} pixels; extract it again"
                )
            if found != (kind := kind or found):
                raise VideoError(
                    f"{folder / name}: {_words(found)}, but {names[0]} is {_words(kind)};"
                    " expected all frames of a video alike; extract the video again"
                )
        if END_MARK not in blob[-END_WITHIN:]:
            raise VideoError(
                f"{folder / name}: {len(blob)} bytes without the end mark of a JPEG: it is cut off; extract it again"
            )
        blobs.append(blob)
    assert kind
    width, height, components = kind
    return Jpegs(names=tuple(names), bytes=tuple(blobs), width=width, height=height, components=components)


def _read(folder: Path, names: Iterable[str]) -> Iterator[bytes]:
    """The bytes of each file. Raises VideoError, with the file that cannot be read."""
    name = ""
    try:
        here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in names:  # it is told where reading fails
                file = os.open(name, os.O_RDONLY, dir_fd=here)
                try:
                    blob = piece = os.read(file, PIECE)
                    while piece and (len(piece) == PIECE or END_MARK not in blob[-END_WITHIN:]):
                        blob += (piece := os.read(file, PIECE))
                finally:
                    os.close(file)
                yield blob
        finally:
            os.close(here)
    except OSError as error:
        raise VideoError(f"{folder / name}: expected a frame that can be read, found: {error.strerror}") from error


def _kind(blob: bytes, path: Path, header: JpegHeader | None) -> tuple[int, int, int]:
    """Width, height and components from a JPEG's header; the picture itself is not decoded."""
    if header is not None:
        return header.width, header.height, header.components
    try:
        with Image.open(io.BytesIO(blob), formats=["JPEG"]) as image:
            (width, height), mode = image.size, image.mode
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise VideoError(f"{path}: expected a JPEG, found {len(blob)} bytes that are none; extract it again") from error
    if mode not in COMPONENTS:
        raise VideoError(f"{path}: expected a JPEG in gray or RGB, found {mode}; extract it again")
    return width, height, COMPONENTS[mode]


def _words(kind: tuple[int, int, int]) -> str:
    return f"{kind[0]}x{kind[1]} with {kind[2]} component{'s' if kind[2] > 1 else ''}"


def _pairs(video: Video, rgb: Jpegs, u: Jpegs | None, v: Jpegs | None) -> int:
    """How many flow pairs the record has: one fewer than frames."""
    frames = len(rgb.bytes)
    counts = [len(flow.bytes) if flow else 0 for flow in (u, v)]
    if counts[0] != counts[1] or counts[0] not in (frames - 1, frames):
        raise VideoError(
            f"{video.name}: {frames} frames with {counts[0]} u and {counts[1]} v flow images; expected {frames - 1} or"
            f" {frames} of each; extract the flow of {video.path} again"
        )
    if u and v and (u.width, u.height, u.components) != (v.width, v.height, v.components):
        raise VideoError(
            f"{video.name}: u flow is {_words((u.width, u.height, u.components))}, v flow"
            f" {_words((v.width, v.height, v.components))}; expected both alike; extract the flow again"
        )
    return frames - 1


def _interleaved(u: Jpegs, v: Jpegs, pairs: int) -> Jpegs:
    names = tuple(name for pair in zip(u.names[:pairs], v.names[:pairs], strict=True) for name in pair)
    both = tuple(blob for pair in zip(u.bytes[:pairs], v.bytes[:pairs], strict=True) for blob in pair)
    return replace(u, names=names, bytes=both)


def _halved(flow: Jpegs, video: Video, settings: Flow) -> Jpegs:
    """Interleaved flow at half its size, each image decoded to gray levels, averaged exactly and written anew."""
    if min(flow.width, flow.height) < LEAST and flow.bytes:
        raise VideoError(
            f"{video.name}: flow of {flow.width}x{flow.height} is too small to be halved; expected at least {LEAST}"
            " pixels on each side. Build with the whole of it: --flow-scale 1"
        )
    assert video.flow_path
    halves = []
    for image, (name, blob) in enumerate(zip(flow.names, flow.bytes, strict=True)):
        try:
            levels = simplejpeg.decode_jpeg(blob, colorspace="GRAY")[..., 0]
        except ValueError as error:
            raise VideoError(f"{video.flow_path[image % 2] / name}: {error}; extract the flow again") from error
        halves.append(gray_jpeg(halved_levels(levels), settings.quality))
    return Jpegs(
        names=flow.names,
        bytes=tuple(halves),
        width=flow.width // 2,
        height=flow.height // 2,
        components=1,
        encoder=how_stored(settings)["flow_jpeg"],
    )


def _frames(jpegs: Jpegs) -> Frames:
    return Frames.of(
        jpegs.bytes, width=jpegs.width, height=jpegs.height, components=jpegs.components, encoder=jpegs.encoder
    )


def _source(streams: dict[str, Jpegs | None]) -> Source:
    """SHA-256 over every file's stream, name, length and bytes in order, those left out included."""
    digest, size = hashlib.sha256(), 0
    for stream, jpegs in streams.items():
        for name, blob in zip(jpegs.names, jpegs.bytes, strict=True) if jpegs else ():
            digest.update(f"{stream}/{name}\0{len(blob)}\0".encode("utf-8", "surrogateescape"))
            digest.update(blob)
            size += len(blob)
    return Source(sha256=digest.hexdigest(), bytes=size)
