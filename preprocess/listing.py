"""A data set as its lists name it and as the disk holds it: entries of lists matched to files, every doubt an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PARTS = ("train", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Video:
    """One video: a file, or folders of extracted frames and flow."""

    name: str  # "v_Archery_g01_c01", unique in its data set; own class folders: "class__stem"
    path: Path  # the video file; extracted: the folder of frames
    label: int  # 0 .. K-1
    class_name: str
    flow_path: tuple[Path, Path] | None = None  # extracted: the folders of horizontal and vertical flow


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One split of a data set: its classes in label order and the videos of its parts."""

    name: str  # "ucf101", "hmdb51", "drawn"; a subset or one's own: the folder's name
    kind: str  # what its folder was read as: "ucf101", "hmdb51", "folders", "extracted"
    split: int
    classes: tuple[str, ...]  # by label
    parts: Mapping[str, tuple[Video, ...]]  # "train" and "test"
    notes: tuple[str, ...] = ()  # what was ignored or decided, for the user to read
