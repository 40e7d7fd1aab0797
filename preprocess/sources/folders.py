"""One's own videos in class folders, split by folders train and test, lists, a CSV, or a hash of their names."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from configs import nearest
from preprocess.errors import DatasetError
from preprocess.sources import disk
from preprocess.sources.disk import Found, folded
from preprocess.sources.listing import Entry, Lists, Placed, checked
from preprocess.sources.own_lists import PART_FOLDERS, Claim, has_numbered, listed, only_split_1, split_files
from preprocess.sources.strata import Strata, strata_of

LISTS = ("lists", "splits", "annotations", "")
LAYOUTS = ("videos", "")
GROUP = re.compile(r"(?P<group>.*_g\d+)_")  # clips of one group are cut from one film
TEST_SHARE = 5  # one clip in so many is a test clip where nothing else says


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnVideos:
    """What was found: entries, their places, and what to tell the user."""

    lists: Lists
    placed: tuple[Placed, ...]
    notes: tuple[str, ...]
    strata: Mapping[str, str] = field(default_factory=dict)  # see strata.py


def read_folders(root: Path, split: int, lists: Path | None = None, *, partial: bool = False) -> OwnVideos:
    """One's own videos below `root`, each in its part; names are `class__stem`. Raises DatasetError."""
    places = list(disk.descendants(lists or root, LISTS))
    halves = {part: disk.child(root, names) for part, names in PART_FOLDERS.items()}
    given = split_files(places, split)
    notes, shareable = [], False
    if not given and all(half and half.is_dir() for half in halves.values()):
        only_split_1(split, f"{root} has folders for train and test")
        founds = [(part, disk.videos_below(half, [""])) for part, half in halves.items() if half]
        claims = [_claim(path, found, part) for part, found in founds for path in found.every()]
        notes += [f"split by the folders {', '.join(found.place.name for _, found in founds)}"]
    else:
        found = disk.videos_below(root, LAYOUTS)
        founds, shareable = [("", found)], True
        if given:
            claims, missing = listed(root, found, given, partial)
            notes += [f"{len(missing):,} listed but left out: {disk.some(missing)}"] if missing else []
            notes += [f"split by {', '.join(path.name for path, _ in given)}"]
        else:
            claims = _hashed([_claim(path, found, "") for path in found.every()], split)
            notes += [
                f"no lists found: split {split} is drawn by a hash of the names, one clip in {TEST_SHARE} of each class"
                " to test, clips of one group (_g01_) together"
            ]
    classes, names = _classes(claims, _class_list(places))
    placed = [_placed(claim, name) for claim, name in zip(claims, names, strict=True)]
    taken = {claim.path for claim in claims}
    left = [path.name for _, found in founds for path in found.every() if path not in taken]
    notes += [f"{len(left):,} in no list, left out: {disk.some(left)}"] if left else []
    strays = [path.name for _, found in founds for path in found.strays]
    notes += [f"{len(strays):,} stray, ignored: {disk.some(strays)}"] if strays else []
    all_entries = checked(Lists(place=root, classes=classes, entries=tuple(one.entry for one in placed)))
    strata = Strata()
    if shareable:
        strata = _strata(all_entries, placed, split, lambda other: _parts(root, found, places, other))
    return OwnVideos(
        lists=all_entries,
        placed=tuple(one for one in placed if one.entry.part),
        notes=(*notes, *strata.notes),
        strata=strata.of,
    )


def has_split(root: Path, split: int) -> bool:
    """Whether folders, lists or a CSV in `root` say which video is for training and which for testing."""
    if split_files(list(disk.descendants(root, LISTS)), split):
        return True
    return all((half := disk.child(root, names)) and half.is_dir() for names in PART_FOLDERS.values())


def _strata(
    lists: Lists, placed: Sequence[Placed], split: int, parts: Callable[[int], Mapping[Path, str] | None]
) -> Strata:
    """The strata of these videos; `parts` gives those of another split by the videos' paths."""

    def others(split: int) -> Lists | None:
        if (by_path := parts(split)) is None:
            return None
        return replace(lists, entries=tuple(replace(one.entry, part=by_path.get(one.path, "")) for one in placed))

    return strata_of(lists, split, others)


def _parts(root: Path, found: Found, places: Sequence[Path], split: int) -> dict[Path, str] | None:
    """The part of each listed video in `split`, as a build of that split would have it; None if it cannot be built."""
    try:
        given = split_files(places, split)
    except DatasetError:
        if split == 1 or has_numbered(places, split):
            raise
        return None  # there are lists without a number, which are those of split 1
    if given:
        claims, _ = listed(root, found, given, partial=True)
    else:
        claims = _hashed([_claim(path, found, "") for path in found.every()], split)
    return {claim.path: claim.part for claim in claims}


def _claim(path: Path, found: Found, part: str) -> Claim:
    folder = "" if path.parent == found.place else path.parent.name
    return Claim(path=path, folder=folder, label="", part=part, where=str(path))


def _placed(claim: Claim, class_name: str) -> Placed:
    name = f"{class_name}__{disk.stem(claim.path.name)}"
    return Placed(entry=Entry(name=name, class_name=class_name, part=claim.part, where=claim.where), path=claim.path)


def _class_list(places: Sequence[Path]) -> list[str]:
    """The class names in classes.txt (or classInd.txt), in order, without numbers before them; [] if there is none."""
    for place in places:
        if (path := disk.child(place, ["classes.txt", "classInd.txt"])) and path.is_file():
            names = [line for _, line in disk.lines(path)]
            numbers = [name.split(maxsplit=1) for name in names]
            first = [pair[0] for pair in numbers if len(pair) == 2]
            if first in ([str(n) for n in range(len(names))], [str(n) for n in range(1, len(names) + 1)]):
                names = [pair[1] for pair in numbers]
            if len({folded(name) for name in names}) < len(names):
                raise DatasetError(f"{path}: a class stands there twice; expected each once; take one of the two out")
            return names
    return []


def _classes(claims: Sequence[Claim], order: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The classes by label, and the class of each claim: by its label, a name or a number, else by its folder."""
    known = {folded(name): name for name in order} or {folded(c.folder): c.folder for c in claims if c.folder}
    numbers = {int(c.label) for c in claims if c.label.isdecimal() and folded(c.label) not in known}
    first = 0 if 0 in numbers else 1  # numbers count from 0 where there is a 0
    by_number: dict[int, str] = {}
    names = []
    for claim in claims:
        word = claim.label or claim.folder
        if not word:
            raise DatasetError(
                f"{claim.where}: neither a class folder nor a label says the class; expected one of them;"
                " move the video into a folder of its class, or write the class into the list"
            )
        if folded(word) in known:
            names.append(known[folded(word)])
        elif claim.label.isdecimal():
            names.append(_numbered(claim, int(claim.label), order, first, by_number))
        elif order:
            raise DatasetError(
                f"{claim.where}: class {word!r} is not in classes.txt{nearest(word, order)}; mend one of the two"
            )
        else:
            names.append(known.setdefault(folded(word), word))
    if order:
        return tuple(order), names
    ranks = {name: number for number, name in by_number.items()}
    found = sorted(set(names), key=lambda name: (ranks.get(name, len(ranks)), folded(name)))
    return tuple(found), names


def _numbered(claim: Claim, number: int, order: Sequence[str], first: int, by_number: dict[int, str]) -> str:
    if order:
        if not first <= number < first + len(order):
            raise DatasetError(
                f"{claim.where}: class number {number}; expected {first} to {first + len(order) - 1},"
                f" as classes.txt has {len(order)} classes; correct the number"
            )
        return order[number - first]
    name = by_number.setdefault(number, claim.folder or claim.label)
    other = next((n for n, folder in by_number.items() if folder == name and n != number), None)
    if claim.folder and (name != claim.folder or other is not None):
        raise DatasetError(
            f"{claim.where}: number {number} is for videos in {name!r} here, but folder {claim.folder!r} is numbered"
            f" {number if other is None else other} elsewhere; expected one number for each class folder;"
            " correct the list, or name the classes in classes.txt"
        )
    return name


def _hashed(claims: Sequence[Claim], split: int) -> list[Claim]:
    """`claims` with parts: in each class whole groups go to test, in an order drawn by hash, until it has its share."""
    groups: dict[tuple[str, str], list[Claim]] = defaultdict(list)
    for claim in claims:
        match = GROUP.match(claim.path.name)
        groups[claim.folder, match["group"] if match else disk.stem(claim.path.name)].append(claim)
    by_class: dict[str, list[str]] = defaultdict(list)
    for folder, group in groups:
        by_class[folder].append(group)
    test: set[Path] = set()
    for folder, names in by_class.items():
        share = sum(len(groups[folder, group]) for group in names) / TEST_SHARE
        drawn = sorted(names, key=lambda group: hashlib.sha256(f"{split}/{folder}/{group}".encode()).digest())
        chosen: list[Path] = []
        for group in drawn[:-1]:  # one group at least is for training
            if len(chosen) < share:
                chosen += [claim.path for claim in groups[folder, group]]
        test.update(chosen)
    return [replace(claim, part="test" if claim.path in test else "train") for claim in claims]
