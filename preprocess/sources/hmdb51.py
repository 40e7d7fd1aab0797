"""HMDB51's lists (Kuehne et al. 2011): a file for each class and split, on each line a video and 0, 1 or 2."""

from __future__ import annotations

import re
from pathlib import Path

from preprocess.errors import DatasetError
from preprocess.sources import disk
from preprocess.sources.listing import Entry, Lists

NAME = "hmdb51"
# The authors' order, which labels follow; no sorting gives it.
# fmt: off
CLASSES = (
    "brush_hair", "cartwheel", "catch", "chew", "clap", "climb", "climb_stairs", "dive", "draw_sword", "dribble",
    "drink", "eat", "fall_floor", "fencing", "flic_flac", "golf", "handstand", "hit", "hug", "jump", "kick_ball",
    "kick", "kiss", "laugh", "pick", "pour", "pullup", "punch", "push", "pushup", "ride_bike", "ride_horse", "run",
    "shake_hands", "shoot_ball", "shoot_bow", "shoot_gun", "sit", "situp", "smile", "smoke", "somersault", "stand",
    "swing_baseball", "sword_exercise", "sword", "talk", "throw", "turn", "walk", "wave",
)
# fmt: on
LISTS = (
    "testTrainMulti_7030_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "test_train_splits",
    "splits",
    "annotations/testTrainMulti_7030_splits",
    "annotations",
    "lists",
    "",
)
LAYOUTS = ("videos", "hmdb51_org", "hmdb51", "")
FLAGS = {"0": "", "1": "train", "2": "test"}  # 0: unused
LINE = re.compile(r"(?P<file>.*\S)\s+(?P<flag>\S+)")
LIST = re.compile(r"(?P<class>.+)_test_split(?P<split>\d+)(\.txt)?", re.IGNORECASE)


def is_lists(folder: Path) -> bool:
    """Whether `folder` holds HMDB51's lists."""
    return any(LIST.fullmatch(entry.name) for entry in disk.entries(folder))


def has_split(folder: Path, split: int) -> bool:
    """Whether a list of `split` lies in `folder`."""
    matches = (LIST.fullmatch(entry.name) for entry in disk.entries(folder))
    return any(match and int(match["split"]) == split for match in matches)


def in_order(classes: set[str]) -> tuple[str, ...]:
    """`classes` as labels count them: the authors' order, then any others by name."""
    place = {name: number for number, name in enumerate(CLASSES)}
    return tuple(sorted(classes, key=lambda name: (place.get(name, len(CLASSES)), name)))


def read_lists(folder: Path, split: int) -> Lists:
    """Classes and entries of `split`, named as the lists spell them. Raises DatasetError, with file and line."""
    entries = []
    named: dict[str, Path] = {}
    for file in disk.entries(folder):
        if not (match := LIST.fullmatch(file.name)) or int(match["split"]) != split:
            continue
        path = Path(file.path)
        class_name = next((name for name in CLASSES if name == match["class"].lower()), match["class"])
        if class_name in named:
            raise DatasetError(f"{path}: a second list of class {class_name} beside {named[class_name]}; expected one")
        named[class_name] = path
        for number, line in disk.lines(path):
            entries.append(_entry(line, class_name, f"{path}, line {number}"))
    if not named:
        here = [entry.name for entry in disk.entries(folder)]
        raise DatasetError(
            f"{folder}: expected lists named <class>_test_split{split}.txt, found {disk.some(here) or 'nothing'};"
            " fetch HMDB51's lists (test_train_splits.rar), or choose a split that is there"
        )
    return Lists(place=folder, classes=in_order(set(named)), entries=tuple(entries))


def _entry(line: str, class_name: str, where: str) -> Entry:
    match = LINE.fullmatch(line)
    if not match or match["flag"] not in FLAGS:
        raise DatasetError(
            f"{where}: expected a video and 0 (unused), 1 (train) or 2 (test), found {line!r}; mend the line"
        )
    return Entry(name=disk.stem(match["file"]), class_name=class_name, part=FLAGS[match["flag"]], where=where)
