"""Folders of frames and flow that were extracted before: images/<video>/, flows/u/<video>/, flows/v/<video>/.

Each may have class folders between, as images/<class>/<video>/.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocess.errors import DatasetError
from preprocess.sources import disk, hmdb51, ucf101
from preprocess.sources.annotations import annotation_name, read_annotations
from preprocess.sources.disk import Found
from preprocess.sources.listing import Lists, Placed, matched

IMAGES = ("images", "jpegs_256")
FLOWS = ("flows", "tvl1_flow")
FRAME = re.compile(r"(?P<prefix>|.*[^0-9])(?P<number>[0-9]+)\.jpe?g", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFolders:
    """The folders of every video: of its frames, its horizontal and its vertical flow."""

    images: Found
    u: Found
    v: Found


def is_extracted(root: Path) -> bool:
    """Whether `root` holds frames and flow in folders."""
    images, flows = disk.child(root, IMAGES), disk.child(root, FLOWS)
    return bool(images and flows and disk.child(flows, ["u"]) and disk.child(flows, ["v"]))


def frame_folders(root: Path) -> FrameFolders:
    """All folders of frames and flow below `root`. Raises DatasetError where one of the three kinds is missing."""
    images, flows = disk.child(root, IMAGES), disk.child(root, FLOWS)
    u, v = (disk.child(flows, [name]) if flows else None for name in ("u", "v"))
    if not (images and u and v):
        raise DatasetError(
            f"{root}: expected images, flows/u and flows/v, found"
            f" {disk.some([entry.name for entry in disk.entries(root)]) or 'nothing'};"
            " unpack the frames and the flow there, or build from the videos"
        )
    return FrameFolders(images=_folders(images), u=_folders(u), v=_folders(v))


def annotation_file(base: Path, split: int) -> Path | None:
    """The annotation file of `split` in `base` or in a usual folder of lists below it; None if there is none."""
    places = disk.descendants(base, dict.fromkeys((*ucf101.LISTS, *hmdb51.LISTS)))
    return next((path for place in places if (path := disk.child(place, [annotation_name(split)]))), None)


def read_lists(root: Path, split: int, lists: Path | None = None) -> Lists:
    """The lists of `split`: UCF101's or HMDB51's, else annotations in JSON. Raises DatasetError for none."""
    base = lists or root
    for place in disk.descendants(base, ucf101.LISTS):
        if ucf101.is_lists(place):
            return ucf101.read_lists(place, split)
    for place in disk.descendants(base, hmdb51.LISTS):
        if hmdb51.is_lists(place):
            return hmdb51.read_lists(place, split)
    if path := annotation_file(base, split):  # last: it was written from lists, perhaps from a part of them
        return read_annotations(path)
    raise DatasetError(
        f"{base}: no lists of split {split} found; expected annotations/{annotation_name(split)},"
        " ucfTrainTestlist or testTrainMulti_7030_splits in it; put one there, or name its folder"
    )


def placed(lists: Lists, folders: FrameFolders, *, classes: Sequence[str] = (), partial: bool = False) -> list[Placed]:
    """The listed videos with their folders of frames and flow. Raises DatasetError for those that are not there."""
    videos = matched(lists, folders.images, classes=classes, partial=partial)
    if partial:  # a video is there if all of it is
        both = folders.u.paths.keys() & folders.v.paths.keys()
        videos = [video for video in videos if disk.folded(video.entry.name) in both]
    there = replace(lists, entries=tuple(video.entry for video in videos))
    flows = [{one.entry.name: one.path for one in matched(there, found)} for found in (folders.u, folders.v)]
    return [replace(one, flow_path=(flows[0][one.entry.name], flows[1][one.entry.name])) for one in videos]


def _folders(place: Path) -> Found:
    """The video folders in `place`: those with numbered JPEGs, or with nothing, directly or in class folders."""
    found = Found(place=place)
    for entry in disk.entries(place):
        path = Path(entry.path)
        if not entry.is_dir():
            found.strays.append(path)
            continue
        if _holds_frames(path):
            found.add(path.name, path)
            continue
        for below in disk.entries(path):
            if below.is_dir():
                found.add(below.name, Path(below.path))
            else:
                found.strays.append(Path(below.path))
    return found


def _holds_frames(folder: Path) -> bool:
    """Whether a numbered JPEG lies in `folder`, or no folder does; looks no further than the first JPEG."""
    folders = False
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                if FRAME.fullmatch(entry.name):
                    return True
                folders = folders or (not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise DatasetError(f"{folder}: expected a folder that can be read, found: {error.strerror}") from error
    return not folders
