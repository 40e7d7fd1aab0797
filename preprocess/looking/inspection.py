"""A look at one video as a build takes it: its times, its frames and its flow, as they would be stored.

Layouts: H W positions, P pairs of neighbouring frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from preprocess.config import Preprocess
from preprocess.errors import VideoError
from preprocess.flow import compute, library, seen
from preprocess.record import flow_jpegs, rgb_jpeg
from preprocess.video import Film, Picture, opened, stored_frames
from preprocess.videos.timing import Timing, timing
from shards.picture import decoded, no_bombs, shown_flow

BOUND = 20.0  # pixels that flow is stored up to, in each direction
BIN = 0.5  # pixels of a bin of the histogram
BINS = 80  # of them: up to 40 px, and one for all beyond
AHEAD = 32  # frames behind the last, whose times may belong before it: no codec reorders more
ALIKE = 0.2  # of the usual change from frame to frame, under which a frame all but repeats the one before
MUCH = 0.01  # share of a pair's values beyond the bound that is worth naming


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Inspection:
    """What was seen of a video; the lists are of its frames and pairs in their order."""

    path: Path
    container: str  # "avi"
    codec: str  # "mpeg4, yuv420p"
    width: int  # pixels, as the header says
    height: int
    fps: tuple[int, int]  # (0, 1) unknown
    header_frames: int  # 0 unknown
    ended: bool  # False: there are more frames than were asked for
    damage: str  # why decoding ended early; "" not
    timing: Timing
    frames: tuple[bytes, ...]  # JPEGs as they would be stored
    flows: tuple[tuple[bytes, bytes], ...]  # horizontal and vertical, as they would be stored
    size: tuple[int, int]  # width and height as stored
    flow_size: tuple[int, int]
    method: str  # of the flow
    library: str
    histogram: NDArray[np.int64]  # (BINS + 1,) flow values by their absolute size, in bins of BIN px
    length_P: NDArray[np.float64]  # mean length of the flow, px
    beyond_P: NDArray[np.float64]  # share of values beyond the bound
    change_P: NDArray[np.float64]  # mean change of the frames' levels
    equal: tuple[int, ...]  # frames that are the one before, level for level

    @property
    def alike(self) -> tuple[int, ...]:
        """Frames that all but repeat the one before, though not level for level: repeated, then compressed."""
        if not len(self.change_P):
            return ()
        usual = float(np.median(self.change_P[self.change_P > 0])) if self.change_P.any() else 0.0
        frames = np.flatnonzero((self.change_P < ALIKE * usual) & (self.change_P > 0)) + 1
        return tuple(frames.tolist())

    @property
    def beyond(self) -> float:
        """Share of all flow values beyond the bound."""
        return float(self.beyond_P.mean()) if len(self.beyond_P) else 0.0

    def frame(self, number: int) -> Picture:
        """A frame, (H, W, 3)."""
        return _picture(self.frames[number], self.size, "RGB")

    def flow_levels(self, pair: int) -> Picture:
        """The stored flow of a pair, (H, W, 2): levels."""
        return np.stack([_picture(jpeg, self.flow_size, "L") for jpeg in self.flows[pair]], axis=2)

    def flow_px(self, pair: int) -> NDArray[np.float32]:
        """The stored flow of a pair in pixels, (H, W, 2), as pictures show it."""
        return shown_flow(self.flow_levels(pair))


def inspected(
    path: Path, settings: Preprocess, *, most: int = 0, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """A look at the first `most` (0: all) frames of the video in `path`, stored and with flow as `settings` say.

    `progress(done, total)` counts frames; their number is what the header says, if anything. Where a video is damaged
    in the middle, what comes before is shown. Raises VideoError where no frame can be had.
    """
    with opened(path) as film:
        times = list(_times(film, most + AHEAD if most else None))
        container, codec = film.container.format.name, film.stream.codec_context
    seen_frames = _Frames(settings)
    flow, flows = settings.flow, list[tuple[bytes, bytes]]()
    histogram, lengths, beyond = np.zeros(BINS + 1, np.int64), list[float](), list[float]()
    with opened(path) as film:
        expected = min(filter(None, (most, film.header_frames)), default=0)
        for field in compute(
            flow.method,
            seen_frames.going_through(film, most or None),
            flow.parameters,
            backend=flow.backend,
            weights=flow.weights,
        ):
            flows.append(flow_jpegs(field, flow))
            size = np.abs(field)
            histogram += np.bincount(np.minimum(size / BIN, BINS).astype(np.int64).ravel(), minlength=BINS + 1)
            lengths.append(float(np.hypot(field[..., 0], field[..., 1]).mean()))
            beyond.append(float((size > BOUND).mean()))
            if progress is not None:
                progress(len(flows) + 1, max(expected, len(flows) + 1))
    width, height = seen_frames.size
    return Inspection(
        path=path,
        container=container,
        codec=f"{codec.name}, {codec.pix_fmt}",
        width=film.width,
        height=film.height,
        fps=film.fps,
        header_frames=film.header_frames,
        ended=not most or len(seen_frames.jpegs) < most,
        damage=seen_frames.damage,
        timing=timing(times, len(seen_frames.jpegs)),
        frames=tuple(seen_frames.jpegs),
        flows=tuple(flows),
        size=(width, height),
        flow_size=(int(width * flow.scale), int(height * flow.scale)),
        method=flow.method,
        library=library(flow),
        histogram=histogram,
        length_P=np.array(lengths),
        beyond_P=np.array(beyond),
        change_P=np.array(seen_frames.changes),
        equal=tuple(seen_frames.equal),
    )


class _Frames:
    """The frames of a film on their way to the flow: stored, compared with the one before, counted."""

    def __init__(self, settings: Preprocess) -> None:
        self.jpegs, self.changes, self.equal = list[bytes](), list[float](), list[int]()
        self.size, self.damage = (0, 0), ""
        self._settings = settings

    def going_through(self, film: Film, most: int | None) -> Iterator[Picture]:
        """The frames as the flow sees them; they end where the film is damaged, unless that is its first."""
        before: Picture | None = None
        for picture in self._whole(islice(stored_frames(film, self._settings.rgb.short_side), most)):
            if before is not None:
                self.changes.append(float(np.abs(picture.astype(np.int16) - before).mean()))
                if not self.changes[-1]:
                    self.equal.append(len(self.jpegs))
            self.size = (picture.shape[1], picture.shape[0])
            self.jpegs.append(rgb_jpeg(picture, self._settings.rgb.quality))
            before = picture
            yield seen(self._settings.flow.method, picture)

    def _whole(self, pictures: Iterator[Picture]) -> Iterator[Picture]:
        try:
            yield from pictures
        except VideoError as error:
            if not self.jpegs:
                raise
            self.damage = str(error)


def _times(film: Film, most: int | None) -> Iterator[Fraction | None]:
    """When each frame is shown, in seconds; those before damage."""
    with suppress(VideoError):  # the second look says what it is
        for frame in islice(film.frames(), most):
            pts, base = frame.pts, frame.time_base
            yield None if pts is None or base is None else pts * base


def _picture(jpeg: bytes, size: tuple[int, int], mode: str) -> Picture:
    with no_bombs():
        return decoded(jpeg, size, mode, "a frame")
