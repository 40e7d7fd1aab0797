"""Video files as RGB frames at the stored size: decoded packet by packet, counted, and refused when cut or damaged.

Frames are what a player shows: turned as the file says, without those that an edit list leaves out, each once whatever
the time between them. Fields stay woven, alpha is left out, the shape of pixels is passed over, as FFmpeg has it.

Layouts: T frames, H W positions, C = 3 (red, green, blue).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from preprocess.errors import VideoError
from preprocess.videos.container import shortfall
from preprocess.videos.upright import upright
from shards.format import MOST_PIXELS
from shards.record import Source

Picture = NDArray[np.uint8]

# Containers of videos only: a text file that FFmpeg reads as a playlist would have it open other files.
FORMATS = "avi,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg,gif,yuv4mpegpipe"
LARGEST = 1 << 26  # pixels of a decoded picture: 8192 x 8192. A damaged header may claim what no memory holds
LONGEST_JPEG = 65500  # pixels of a side, where libjpeg ends
# Exact rounding and no threads: the same RGB values on every processor.
CONVERSION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


@dataclass(kw_only=True, slots=True, eq=False)
class Film:
    """An open video: what its header says, and its frames as they are decoded. Lives inside `opened`."""

    path: Path
    width: int  # pixels, as the header says
    height: int
    fps: tuple[int, int]  # (0, 1) unknown
    header_frames: int  # 0 unknown
    stream: av.VideoStream = field(repr=False)
    container: av.container.InputContainer = field(repr=False)
    decoded: int = 0  # frames handed out so far

    def frames(self) -> Iterator[av.VideoFrame]:
        """Every frame in order of presentation. Raises VideoError where decoding fails, and if there is none."""
        try:
            for packet in self.container.demux(self.stream):
                for frame in packet.decode():
                    if frame.is_corrupt:  # the decoder has patched over it, and would go on without a word
                        raise VideoError(
                            f"{self.path}: frame {self.decoded} is damaged (bits of it are wrong or missing, the"
                            " decoder made them up); copy or download it again, or take it off the lists"
                        )
                    self.decoded += 1
                    yield frame
        except (av.FFmpegError, ValueError, OverflowError, MemoryError) as error:
            raise VideoError(
                f"{self.path}: decoding fails after frame {self.decoded} ({_reason(error)});"
                " the file is damaged: replace it, or take it off the lists"
            ) from error
        if not self.decoded:
            raise VideoError(f"{self.path}: has a video stream but not one frame; replace it, or take it off the lists")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Footage:
    """A whole video in memory, at its stored size."""

    frames_THWC: Picture  # (n, H, W, 3) RGB
    fps: tuple[int, int]
    header_frames: int


@contextmanager
def opened(path: Path) -> Iterator[Film]:
    """The video in `path`, open for reading. Raises VideoError: no file, empty, not a video, no stream, cut short."""
    _refuse_unusable(path)
    try:
        # An absolute path cannot be taken for a URL; only files are opened, whatever a container refers to.
        container = av.open(
            str(path.absolute()),
            metadata_errors="ignore",
            options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
        )
    except (av.FFmpegError, ValueError, OSError) as error:
        raise VideoError(
            f"{path}: not a video that can be read ({_reason(error)}); it begins with {_beginning(path)}."
            " Replace it, or take it off the lists"
        ) from error
    with container:
        pictures = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
            raise VideoError(f"{path}: no video stream in this {container.format.name} file (streams: {kinds})")
        stream = streams[0]
        if not stream.codec_context:  # PyAV's types do not say so
            raise VideoError(
                f"{path}: its video is of a kind that this FFmpeg ({av.ffmpeg_version_info}) cannot decode; convert it,"
                " or copy it again if it should not be"
            )
        _refuse_absurd(path, stream, container.format.name)
        stream.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(LARGEST)}  # for what the stream itself says later
        rate = stream.average_rate or stream.guessed_rate
        yield Film(
            path=path,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=(rate.numerator, rate.denominator) if rate and rate > 0 else (0, 1),
            header_frames=max(stream.frames, 0),
            stream=stream,
            container=container,
        )


def read_video(path: Path, short_side: int = 256) -> Footage:
    """All frames of the video in `path`, resized so that the shorter side is `short_side`. Raises VideoError."""
    with opened(path) as film:
        frames = np.stack(list(stored_frames(film, short_side)))
        return Footage(frames_THWC=frames, fps=film.fps, header_frames=film.header_frames)


def stored_frames(film: Film, short_side: int) -> Iterator[Picture]:
    """The frames of `film`, (H, W, 3) RGB each, at the stored size that the first of them gives."""
    size = None
    for frame in film.frames():
        try:
            rgb = frame.reformat(format="rgb24", threads=1, interpolation=CONVERSION).to_ndarray()
        except (av.FFmpegError, ValueError, MemoryError) as error:
            raise VideoError(f"{film.path}: frame {film.decoded - 1} has no RGB form ({_reason(error)})") from error
        picture = upright(np.asarray(rgb, dtype=np.uint8), frame)
        size = size or _storable(film.path, picture, short_side)
        yield resized(picture, size)


def stored_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height as stored: the shorter side is `short_side`, the other keeps the shape, floored to even.

    320x240 gives 340x256, the original's size; smaller videos are enlarged, as the original's were.
    """
    shorter, longer = min(width, height), max(width, height)
    other = max(longer * short_side // shorter // 2 * 2, 2)
    return (other, short_side) if width >= height else (short_side, other)


def resized(picture: Picture, size: tuple[int, int]) -> Picture:
    """`picture` at `size` (width, height): OpenCV's area means when shrinking, its exact linear form when growing.

    The exact form works in whole numbers, so every processor gives the same values.
    """
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    grows = min(size) > min(width, height)
    return np.asarray(
        cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR_EXACT if grows else cv2.INTER_AREA), dtype=np.uint8
    )


def count_frames(path: Path) -> int:
    """How many frames the video in `path` gives when decoded. Raises VideoError."""
    with opened(path) as film:
        return sum(1 for _ in film.frames())


def source_of(path: Path) -> Source:
    """SHA-256 and size of the file. Raises VideoError if it cannot be read."""
    try:
        _refuse_no_file(path)  # a pipe would keep us waiting
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            return Source(sha256=digest.hexdigest(), bytes=file.tell())
    except OSError as error:
        raise VideoError(f"{path}: {_reason(error)}") from error


def decoder() -> str:
    """Name and version of what decodes, as it stands in records; `upright`: frames are turned as the file says."""
    return f"av {av.__version__} ffmpeg {av.ffmpeg_version_info} upright"


def _refuse_unusable(path: Path) -> None:
    try:
        _refuse_no_file(path)
        if path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes); expected a video. Copy it again")
        what = shortfall(path)
    except OSError as error:
        raise VideoError(f"{path}: {_reason(error)}") from error
    if what is not None:
        raise VideoError(f"{path}: cut short: {what}. Copy or download it again")


def _refuse_no_file(path: Path) -> None:
    if path.is_file():
        return
    what = "no such file"
    if path.is_symlink() and not path.exists():
        what = f"a link to {path.readlink()}, where nothing is"
    elif path.exists():
        what = "a folder" if path.is_dir() else "neither a file nor a folder"
    raise VideoError(f"{path}: {what}; expected a video. Put one there, or take it off the lists")


def _refuse_absurd(path: Path, stream: av.VideoStream, container: str) -> None:
    """Refuses what the tables of an open file show: pictures that no memory should be set aside for, a cut."""
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > LARGEST:
        raise VideoError(
            f"{path}: claims pictures of {width}x{height}, expected at most {LARGEST} pixels. Its header is damaged:"
            " copy it again, or make the video smaller"
        )
    size = path.stat().st_size
    if container.startswith("mov"):  # its samples' places stand in a table of their own, read by now
        beyond = sum(entry.pos + entry.size > size for entry in stream.index_entries)
        if beyond:
            raise VideoError(
                f"{path}: cut short: {beyond} of the {len(stream.index_entries)} frames in its table lie past the end"
                f" of the file at byte {size}. Copy or download it again"
            )


def _storable(path: Path, picture: Picture, short_side: int) -> tuple[int, int]:
    """The stored size of frames like `picture`. Raises VideoError where it is more than a record's JPEGs may have."""
    height, width = picture.shape[:2]
    stored = stored_size(width, height, short_side)
    if max(stored) > LONGEST_JPEG or stored[0] * stored[1] > MOST_PIXELS:
        raise VideoError(
            f"{path}: frames of {width}x{height} would be stored as {stored[0]}x{stored[1]}, expected at most"
            f" {LONGEST_JPEG} pixels a side and {MOST_PIXELS} in all; cut the picture, take it off the lists, or set"
            " a smaller preprocess.rgb.short_side"
        )
    return stored


def _beginning(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        return repr(file.read(16))
    return "nothing readable"


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
