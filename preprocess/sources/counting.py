"""How many frames each video of a data set gives, for its annotation file."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

from preprocess.build import worker_count
from preprocess.building.engines import Died, processes
from preprocess.config import Preprocess
from preprocess.errors import PreprocessError, VideoError
from preprocess.extracted import frame_files
from preprocess.sources.annotations import write_annotations
from preprocess.sources.listing import Dataset, Video
from preprocess.video import count_frames, opened
from shards.whole import whole


def annotate_split(
    dataset: Dataset,
    path: Path,
    *,
    count: str = "decoded",
    settings: Preprocess | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Writes the annotation file of `dataset`, whole or absent; the reasons why videos stand in it without a count.

    `count` is decoded (every video is decoded), header (its header is believed) or none.
    """
    videos = [video for part in dataset.parts.values() for video in part] if count != "none" else []
    counts, failures = {}, []
    results = processes(partial(counter, count), videos, worker_count(settings or Preprocess()))
    with closing(results):
        for done, (position, result) in enumerate(results, 1):
            if isinstance(result, int):
                counts[videos[position].name] = result
            else:
                failures.append(f"{videos[position].path}: {result.reason}" if isinstance(result, Died) else result)
            if progress is not None:
                progress(done, len(videos))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreprocessError(f"{path}: cannot be written: {error.strerror}; name a folder with --out") from error
    content = json.dumps(write_annotations(dataset, counts), indent=1, ensure_ascii=False)
    with whole(path) as file:
        file.write(content.encode() + b"\n")
    return sorted(failures)


def counter(count: str) -> Callable[[Video], int | str]:
    """The function that counts a video's frames, or says why it cannot."""

    def counted(video: Video) -> int | str:
        try:
            if video.flow_path is not None:
                return len(frame_files(video.path).frames)
            if count == "decoded":
                return count_frames(video.path)
            with opened(video.path) as film:
                return film.header_frames
        except VideoError as error:
            return str(error)

    return counted
