"""Who does the work of a build: how many, where, and with which library; decided once, before it starts."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from preprocess.building.engines import Engine, processes
from preprocess.config import Preprocess
from preprocess.flow import decided, gpus
from preprocess.sources.listing import Dataset
from shards.stores.connect import is_url

PER_GPU = 4  # at a time: while some decode and compress, the others keep it busy


def pinned(settings: Preprocess, dataset: Dataset) -> Preprocess:
    """The settings with what computes flow here written down, so that no worker, part or node computes it otherwise.

    Raises PreprocessError where it cannot be computed here.
    """
    return settings if is_extracted(dataset) else settings.model_copy(update={"flow": decided(settings.flow)})


def worker_count(settings: Preprocess, *, flow: bool = True) -> int:
    """How many work at a time here: as set, or one a core, but at most four for each GPU that computes flow."""
    cores = len(os.sched_getaffinity(0))
    there = gpus(settings.flow) if flow and not settings.workers else 0
    return settings.workers or (min(cores, PER_GPU * there) if there else cores)


def engine_of(settings: Preprocess, dataset: Dataset, out: str | Path) -> tuple[Engine, int]:
    """The engine that the settings name, and how many work at a time (Ray: 0 for all there are).

    Nodes must see the folder `out`.
    """
    flow = not is_extracted(dataset)
    if settings.engine == "processes":
        return processes, worker_count(settings, flow=flow)
    from preprocess.building.ray_engine import ray_tasks

    shared = [] if is_url(str(out)) else [Path(out)]
    ray: Engine = partial(ray_tasks, gpus=1 / PER_GPU if flow and gpus(settings.flow) else 0.0, shared=shared)
    return ray, settings.workers


def is_extracted(dataset: Dataset) -> bool:
    """Whether frames and flow were extracted before, so that none is computed."""
    return any(video.flow_path for videos in dataset.parts.values() for video in videos)
