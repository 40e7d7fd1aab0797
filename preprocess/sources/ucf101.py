"""UCF101's lists (Soomro, Zamir, Shah 2012): classInd.txt, trainlist01.txt ... testlist03.txt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from configs import nearest
from preprocess.errors import DatasetError
from preprocess.sources import disk
from preprocess.sources.disk import folded
from preprocess.sources.listing import Entry, Lists

NAME = "ucf101"
CLASSES = 101
LISTS = (
    "ucfTrainTestlist",
    "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist",
    "ucf101_splits",
    "annotations/ucf101_splits",
    "annotations/ucfTrainTestlist",
    "annotations",
    "lists",
    "splits",
    "",
)
LAYOUTS = ("UCF-101", "UCF101", "videos", "")
CLASS = re.compile(r"(?P<number>[0-9]{1,9})\s+(?P<name>.+)")
NUMBERED = re.compile(r"(?P<text>.*\S)\s+(?P<number>[0-9]{1,9})")
CLIP = re.compile(r"v_(?P<class>.+)_g\d+_c\d+", re.IGNORECASE)


def is_lists(folder: Path) -> bool:
    """Whether `folder` holds UCF101's lists."""
    return _list(folder, "classInd") is not None


def has_split(folder: Path, split: int) -> bool:
    """Whether a list of `split` lies in `folder`."""
    return any(_list(folder, name) for part in ("train", "test") for name in _names(part, split))


def read_lists(folder: Path, split: int) -> Lists:
    """Classes and entries of `split`, named as the lists spell them. Raises DatasetError, with file and line."""
    classes = _classes(_needed(folder, ["classInd"]))
    by_folded = {folded(class_name): class_name for class_name in classes}
    entries = []
    for part in ("train", "test"):
        path = _needed(folder, _names(part, split))
        named = disk.lines(path)
        if not named:
            raise DatasetError(f"{path}: expected a video on each line, found an empty list; fetch it again")
        entries += [_entry(line, part, f"{path}, line {number}", classes, by_folded) for number, line in named]
    return Lists(place=folder, classes=tuple(classes), entries=tuple(entries))


def _names(part: str, split: int) -> list[str]:
    return [f"{part}list{split:02}", f"{part}list{split}"]


def _list(folder: Path, name: str) -> Path | None:
    return disk.child(folder, [f"{name}.txt", name])


def _needed(folder: Path, names: list[str]) -> Path:
    for name in names:
        if path := _list(folder, name):
            return path
    here = [entry.name for entry in disk.entries(folder)]
    raise DatasetError(
        f"{folder}: expected the list {names[0]}.txt, found {disk.some(here) or 'nothing'};"
        " fetch UCF101's lists (UCF101TrainTestSplits-RecognitionTask.zip), or choose a split that is there"
    )


def _classes(path: Path) -> list[str]:
    numbered: dict[int, str] = {}
    for number, line in disk.lines(path):
        if not (match := CLASS.fullmatch(line)):
            raise DatasetError(f"{path}, line {number}: expected a number and a class, found {line!r}; mend the line")
        label, name = int(match["number"]), match["name"]
        if label in numbered or folded(name) in map(folded, numbered.values()):
            raise DatasetError(
                f"{path}, line {number}: number or class of {line!r} is there a second time; take one out"
            )
        numbered[label] = name
    expected = range(1, len(numbered) + 1)
    if not numbered or sorted(numbered) != list(expected):
        raise DatasetError(
            f"{path}: expected classes numbered from 1 without gaps, found {sorted(numbered)}; number anew"
        )
    return [numbered[label] for label in expected]  # classInd.txt counts from 1, a Video from 0


def _entry(line: str, part: str, where: str, classes: list[str], by_folded: Mapping[str, str]) -> Entry:
    numbered = NUMBERED.fullmatch(line)
    text, number = (numbered["text"], int(numbered["number"])) if numbered else (line, None)
    folder, _, file = text.replace("\\", "/").rpartition("/")
    name = disk.stem(file)
    claims = []  # what says the class: the folder, the name, the number
    if folder := folder.rpartition("/")[2]:
        if folded(folder) not in by_folded:
            hint = nearest(folder, classes)
            raise DatasetError(f"{where}: class {folder!r} is not in classInd.txt{hint}; correct one of the two")
        claims.append(("folder", by_folded[folded(folder)]))
    elif (clip := CLIP.fullmatch(name)) and folded(clip["class"]) in by_folded:
        claims.append(("name", by_folded[folded(clip["class"])]))
    if number is not None:
        if not 1 <= number <= len(classes):
            raise DatasetError(f"{where}: class number {number}; expected 1 to {len(classes)}, as in classInd.txt")
        claims.append((f"number {number}", classes[number - 1]))
    if not claims:
        raise DatasetError(
            f"{where}: {line!r} does not say its class; expected 'Class/{name}.avi', or the number of the class behind"
        )
    (source, class_name), *others = claims
    for other, another in others:
        if another != class_name:
            raise DatasetError(
                f"{where}: {name!r} is of class {class_name} by its {source}, of class {another} by its {other};"
                " expected both to agree with classInd.txt; correct the line"
            )
    return Entry(name=name, class_name=class_name, part=part, where=where)
