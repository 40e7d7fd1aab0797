"""A split as one JSON file: {"labels": {class: number}, "training" | "validation": {video: {set, label, nframes}}}.

Numbers count from 1 in the file and from 0 everywhere else: here, and nowhere else, is one made the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs import nearest
from preprocess.errors import DatasetError
from preprocess.sources import disk
from preprocess.sources.disk import folded
from preprocess.sources.listing import Dataset, Entry, Lists

SETS = {"training": "train", "validation": "test"}


def annotation_name(split: int) -> str:
    """The name of a split's file: annot01.json."""
    return f"annot{split:02}.json"


def write_annotations(dataset: Dataset, frames: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The file's content for `dataset`; `frames` counts each video's frames, where it knows the video."""
    counts = frames or {}
    content: dict[str, Any] = {"labels": {name: number for number, name in enumerate(dataset.classes, 1)}}
    for heading, part in SETS.items():
        content[heading] = {
            video.name: {"set": heading, "label": video.label + 1}
            | ({"nframes": counts[video.name]} if video.name in counts else {})
            for video in dataset.parts[part]
        }
    return content


def read_annotations(path: Path) -> Lists:
    """Classes by label, counted from 0, and the entries of both parts. Raises DatasetError, with file and place."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: expected an annotation file, found: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: expected JSON in UTF-8, found other bytes; write it anew") from None
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: expected JSON, found something else ({error}); write it anew") from None
    if not isinstance(content, dict) or not {"labels", *SETS} <= content.keys():
        found = disk.some(sorted(content)) if isinstance(content, dict) else type(content).__name__
        raise DatasetError(
            f"{path}: expected labels, training and validation, found {found or 'nothing'};"
            " write it anew with: stmul preprocess annotate"
        )
    classes = _classes(content["labels"], f"{path}: labels")
    entries = []
    for heading, part in SETS.items():
        videos = content[heading]
        if not isinstance(videos, dict):
            raise DatasetError(f"{path}: {heading}: expected videos by name, found {type(videos).__name__}")
        entries += [_entry(name, about, heading, part, classes, path) for name, about in videos.items()]
    return Lists(place=path, classes=tuple(classes), entries=tuple(entries))


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DatasetError(f"{path}: {twice!r} stands there twice in one section; take one of the two out")
    return content


def _classes(labels: Any, where: str) -> list[str]:
    """Class names by label from a list, {name: number} or {number: name}."""
    if isinstance(labels, list):
        labels = {str(number): name for number, name in enumerate(labels, 1)}
    if not isinstance(labels, dict) or not labels:
        raise DatasetError(f"{where}: expected a number for each class, found {labels!r}")
    if all(isinstance(name, str) for name in labels.values()) and all(map(_is_number, labels)):
        pairs = [(name, int(number)) for number, name in labels.items()]
    elif all(map(_is_number, labels.values())):
        pairs = [(name, int(number)) for name, number in labels.items()]
    else:
        raise DatasetError(
            f"{where}: expected {{class: number}}, {{number: class}} or a list of classes, found neither"
        )
    numbers = sorted(number for _, number in pairs)
    if numbers != list(range(1, len(pairs) + 1)) or len({folded(name) for name, _ in pairs}) < len(pairs):
        raise DatasetError(f"{where}: expected different classes numbered from 1 without gaps, found {pairs}")
    return [name for name, _ in sorted(pairs, key=lambda pair: pair[1])]


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10
    )


def _entry(name: str, about: Any, heading: str, part: str, classes: list[str], path: Path) -> Entry:
    where = f"{path}: {heading}: {name}"
    if not isinstance(about, dict) or "label" not in about:
        raise DatasetError(f"{where}: expected set, label and nframes, found {about!r}; write it anew")
    label, frames = about["label"], about.get("nframes", 0)
    if isinstance(label, str) and not _is_number(label):
        if label not in classes:
            raise DatasetError(
                f"{where}: class {label!r} is not in labels{nearest(label, classes)}; correct one of the two"
            )
        label = classes.index(label) + 1
    if not _is_number(label) or not 1 <= int(label) <= len(classes):
        raise DatasetError(f"{where}: label {label!r}; expected 1 to {len(classes)}: labels count from 1 in this file")
    if not _is_number(frames) or int(frames) < 0:
        raise DatasetError(f"{where}: nframes {frames!r}; expected a count of frames, or none")
    if about.get("set", heading) != heading:
        raise DatasetError(f"{where}: set {about['set']!r}; expected {heading!r}, as the section it stands in")
    return Entry(name=name, class_name=classes[int(label) - 1], part=part, where=where, frames=int(frames))
