"""One video -> a record that is not stored, made as a network's training was; and pictures -> a film.

All that predicting asks of this package, which hands it to a `stmul` that never imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import Named, SettingsError, load
from preprocess.config import Flow, Preprocess, PreprocessConfig, Rgb
from preprocess.errors import PreprocessError, VideoError
from preprocess.looking.movie import write_movie
from preprocess.record import make_record
from preprocess.sources.listing import Video
from shards.record import Record

__all__ = ["PreprocessError", "VideoError", "record_of", "settings_as", "videos_in", "write_movie"]

ENDINGS = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ogv", ".ts")


def settings_as(made: Mapping[str, Any], *, flow: str = "", weights: str = "") -> Preprocess:
    """The settings that records were made with, as a manifest says it (`made`); `flow` takes another method.

    Raises PreprocessError where it does not say how flow was computed, as of frames that were extracted elsewhere,
    SettingsError where there is no such method.
    """
    record = made.get("record") or {}
    rgb, jpeg = record.get("rgb") or {}, record.get("flow_jpeg") or {}
    if flow:
        load(PreprocessConfig, None, [Named("--flow", "preprocess.flow.method", flow)])
    method = flow or record.get("flow_method", "")
    if not method:
        raise PreprocessError(
            "the network was trained on flow that was extracted elsewhere, and nobody noted how: name a method with"
            " --flow (tvl1 is what most such flow was made with); scores may differ from those of its test"
        )
    try:
        return Preprocess(
            rgb=Rgb(**{name: rgb[name] for name in ("short_side", "quality") if name in rgb}),
            flow=Flow(
                method=method,  # type: ignore[arg-type]
                parameters={} if flow else record.get("flow", {}),
                quality=jpeg.get("quality", Flow().quality),
                scale=record.get("flow_scale", 1.0),
                weights=weights,
            ),
        )
    except ValueError as error:
        raise SettingsError(f"how the training's records were made cannot be followed here: {error}") from error


def videos_in(paths: tuple[Path, ...]) -> list[Path]:
    """The videos that are named, and those in the folders that are, in order of their names. Raises PreprocessError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            here = sorted(below for below in path.rglob("*") if below.suffix.lower() in ENDINGS and below.is_file())
            if not here:
                raise PreprocessError(f"{path}: no video in this folder; expected files ending in {', '.join(ENDINGS)}")
            found += here
        elif path.exists():
            found.append(path)
        else:
            raise PreprocessError(f"{path}: no such file or folder; expected a video, or a folder of videos")
    return found


def record_of(path: Path, settings: Preprocess) -> Record:
    """The record of the video in `path`, without a class. Raises VideoError where it cannot be read."""
    return make_record(Video(name=path.stem, path=path, label=0, class_name=""), settings)
