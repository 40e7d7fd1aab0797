"""What a build will take, told before it starts: tried on a few of its videos and on one pair of pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import av

from preprocess.building.plan import PlannedShard
from preprocess.config import Flow, Preprocess
from preprocess.errors import VideoError
from preprocess.extracted import record_from_frames
from preprocess.flow import compute, estimate, gpus, gray_of, one_thread, seen
from preprocess.flows.methods import Picture
from preprocess.record import flow_jpegs, rgb_jpeg
from preprocess.sources.listing import Dataset, Video
from preprocess.video import opened, stored_frames
from shards.format import key_of
from shards.index import head_size

TRIED = 12  # videos, spread evenly over the list
FRAMES = 4  # of each
MEASURED_S = 4.0  # how long pairs of them may take
COUNTED = 100  # videos whose frames are counted, undecoded
COUNTED_S = 4.0  # how long that may take
RECORD_BYTES = 4 * (512 + 256) + 600  # of a record in a shard without frames: tar headers, padding, how it was made
FRAME_BYTES = 24  # of each frame's places and checksums, once in the record and once in the index


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEstimate:
    """About how much there is in one part."""

    videos: int
    frames: int
    shards: int
    bytes: int  # of the shards
    index_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """About how much there is, and what it takes."""

    parts: Mapping[str, PartEstimate]
    width: int  # pixels, of a typical frame as stored
    height: int
    pairs_per_s: float  # of one process; 0: no flow is computed
    on_gpu: bool  # whether that is a GPU's work
    core_seconds: float  # of one process for all of it
    seconds: float  # with all processes

    @property
    def videos(self) -> int:
        """How many there are."""
        return sum(part.videos for part in self.parts.values())

    @property
    def frames(self) -> int:
        """About how many frames they have."""
        return sum(part.frames for part in self.parts.values())

    @property
    def bytes(self) -> int:
        """Of the shards."""
        return sum(part.bytes for part in self.parts.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one video showed."""

    frames: int
    size: tuple[int, int]
    frame_s: float  # decoding, resizing and compressing, without flow
    frame_bytes: float  # RGB and flow
    pair: tuple[Picture, Picture] | None = None  # two frames, one behind the other


def estimate_build(
    dataset: Dataset, settings: Preprocess, workers: int, shards: Sequence[PlannedShard]
) -> Estimate | None:
    """What these shards of `dataset` take with `workers` processes here; None if none of those tried can be read."""
    planned = {part: [shard for shard in shards if shard.part == part] for part in dataset.parts}
    keys = {part: {key for shard in of_part for key in shard.keys} for part, of_part in planned.items()}
    videos = [video for part in dataset.parts for video in dataset.parts[part] if key_of(video.name) in keys[part]]
    trials = []
    for video in _spread(videos, TRIED):
        with suppress(VideoError):
            trials.append(_trial(video, settings) if video.flow_path is None else _extracted_trial(video, settings))
    if not trials:
        return None
    width, height = sorted((trial.size for trial in trials), key=lambda size: size[0] * size[1])[len(trials) // 2]
    extracted = any(video.flow_path for video in videos)
    on_gpus = 0 if extracted else gpus(settings.flow)
    pair_s = 0.0 if extracted else _pair_seconds(trials, settings.flow, width, height)
    frame_s, frame_bytes = _mean(trial.frame_s for trial in trials), _mean(trial.frame_bytes for trial in trials)
    per_video = _mean(trial.frames for trial in trials) if extracted else _frames_per_video(videos, trials)
    frames, busy = per_video * len(videos), max(min(workers, len(videos)), 1)
    return Estimate(
        parts={part: _of_part(planned[part], keys[part], per_video, frame_bytes) for part in dataset.parts},
        width=width,
        height=height,
        pairs_per_s=1 / pair_s if pair_s else 0.0,
        on_gpu=on_gpus > 0,
        core_seconds=frames * (pair_s + frame_s),
        seconds=frames * (pair_s / (min(on_gpus, busy) or busy) + frame_s / busy),  # one process keeps a GPU busy
    )


def index_bytes(keys: Iterable[str], frames: float) -> int:
    """The size of an index of records with these keys, which have so many frames in all."""
    names = [len(key.encode()) for key in keys]
    return head_size(len(names), sum(names)) + round(FRAME_BYTES * frames) - 16 * len(names)


def _pair_seconds(trials: Sequence[Trial], flow: Flow, width: int, height: int) -> float:
    """Seconds that one process takes for a pair of this size, on frames of the videos: some methods stop early.

    On a GPU, which takes many pairs at once, drawn frames do.
    """
    pairs = [trial.pair for trial in trials if trial.pair is not None]
    method, backend = flow.method, flow.backend
    if gpus(flow) or not pairs:
        return estimate(method, width, height, 1, flow.parameters, backend=backend, weights=flow.weights)
    taken, pixels, spent = 0.0, 0, 0.0
    for number, pair in enumerate([pairs[0], *pairs]):  # the first is for what is compiled or loaded then
        start = time.perf_counter()
        list(
            compute(method, (seen(method, one) for one in pair), flow.parameters, backend=backend, weights=flow.weights)
        )
        last = time.perf_counter() - start
        if number:
            taken, pixels = taken + last, pixels + pair[0].shape[0] * pair[0].shape[1]
            if (spent := spent + last) + last > MEASURED_S:
                break
    return taken / pixels * width * height


def _of_part(shards: Sequence[PlannedShard], keys: set[str], per_video: float, frame_bytes: float) -> PartEstimate:
    frames = round(per_video * len(keys))
    return PartEstimate(
        videos=len(keys),
        frames=frames,
        shards=len(shards),
        bytes=round(frames * (frame_bytes + FRAME_BYTES)) + len(keys) * RECORD_BYTES,
        index_bytes=index_bytes(keys, frames),
    )


def _spread(videos: Sequence[Video], most: int) -> Sequence[Video]:
    count = min(len(videos), most)
    return [videos[i * len(videos) // count] for i in range(count)]


def _frames_per_video(videos: Sequence[Video], trials: Sequence[Trial]) -> float:
    """By the packets in many videos: their lengths differ more than anything else, and headers are often wrong."""
    counts, end = list[int](), time.perf_counter() + COUNTED_S
    for video in _spread(videos, COUNTED):
        with suppress(VideoError, av.FFmpegError), opened(video.path) as film:
            counts.append(sum(packet.size > 0 for packet in film.container.demux(film.stream)))
        if time.perf_counter() > end:
            break
    return _mean(filter(None, counts)) or _mean(trial.frames for trial in trials)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / max(len(listed), 1)


def _trial(video: Video, settings: Preprocess) -> Trial:
    with opened(video.path) as film, one_thread():
        start = time.perf_counter()
        pictures = list(islice(stored_frames(film, settings.rgb.short_side), FRAMES))
        rgb = [len(rgb_jpeg(picture, settings.rgb.quality)) for picture in pictures]
        taken = time.perf_counter() - start
        fields = compute("dis", map(gray_of, pictures))  # much like the others for the size of its JPEGs, and fast
        flow = [len(jpeg) for field in fields for jpeg in flow_jpegs(field, settings.flow)]
        height, width = pictures[0].shape[:2]
        return Trial(
            frames=film.header_frames or len(pictures),
            size=(width, height),
            frame_s=taken / len(pictures),
            frame_bytes=sum(rgb) / len(rgb) + (2 * sum(flow) / len(flow) if flow else 0),
            pair=(pictures[-2], pictures[-1]) if len(pictures) > 1 else None,
        )


def _extracted_trial(video: Video, settings: Preprocess) -> Trial:
    start = time.perf_counter()
    record = record_from_frames(video, settings)
    return Trial(
        frames=record.frames,
        size=(record.rgb.width, record.rgb.height),
        frame_s=(time.perf_counter() - start) / record.frames,
        frame_bytes=(len(record.rgb.blob) + len(record.flow.blob)) / record.frames,
    )


def in_words(seconds: float) -> str:
    """A duration as one reads it: `40 s`, `12 min`, `3 h 20 min`, `17 days`."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{round(hours / 24)} days ({hours:,} h)"


def bytes_in_words(count: float) -> str:
    """A size as one reads it: `840 kB`, `12 MB`, `3.4 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}" if count < 10 * size else f"{count / size:,.0f} {unit}"
    return f"{count / 1e3:,.0f} kB"
