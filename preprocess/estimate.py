"""What a build will take, told before it starts: tried on a few of its videos and on one pair of pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from preprocess.config import Preprocess
from preprocess.errors import VideoError
from preprocess.extracted import record_from_frames
from preprocess.flow import compute, estimate, gray_of, one_thread
from preprocess.listing import Video
from preprocess.record import flow_jpegs, rgb_jpeg
from preprocess.video import opened, stored_frames

TRIED = 12  # videos, spread evenly over the list
FRAMES = 4  # of each


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """About how much there is, and what it takes."""

    videos: int
    frames: int
    width: int  # pixels, of a typical frame as stored
    height: int
    pairs_per_s: float  # of one process; 0: no flow is computed
    seconds: float  # with all processes
    bytes: int  # of the shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What one video showed."""

    frames: int
    size: tuple[int, int]
    frame_s: float  # decoding, resizing and compressing, without flow
    frame_bytes: float  # RGB and flow


def estimate_build(videos: Sequence[Video], settings: Preprocess, workers: int) -> Estimate | None:
    """What records of `videos` take with `workers` processes here; None if not one of those tried can be read."""
    step = max(len(videos) // TRIED, 1)
    trials = []
    for video in videos[::step][:TRIED]:
        with suppress(VideoError):
            trials.append(_trial(video, settings) if video.flow_path is None else _extracted_trial(video, settings))
    if not trials:
        return None
    count = len(trials)
    frames = round(sum(trial.frames for trial in trials) / count * len(videos))
    width, height = sorted((trial.size for trial in trials), key=lambda size: size[0] * size[1])[count // 2]
    extracted = any(video.flow_path for video in videos)
    pair_s = 0.0 if extracted else estimate(settings.flow.method, width, height, 1, settings.flow.parameters)
    frame_s = sum(trial.frame_s for trial in trials) / count
    return Estimate(
        videos=len(videos),
        frames=frames,
        width=width,
        height=height,
        pairs_per_s=1 / pair_s if pair_s else 0.0,
        seconds=frames * (pair_s + frame_s) / max(min(workers, len(videos)), 1),
        bytes=round(frames * sum(trial.frame_bytes for trial in trials) / count),
    )


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
