"""A data set as its lists name it and as the disk holds it: entries matched to videos, every doubt an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs import nearest
from preprocess.errors import DatasetError
from preprocess.sources.disk import Found, folded, some

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
    notes: tuple[str, ...] = ()  # what was decided or ignored, for the user to read
    strata: Mapping[str, str] = field(default_factory=dict)  # video: its stratum (strata.py); empty: all are one


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of a list: a video, its class and the part it belongs to."""

    name: str  # as the list spells it, without folder and ending
    class_name: str
    part: str  # "train", "test"; "" in neither
    where: str  # file and line
    frames: int = 0  # as the list counts them; 0 unknown


@dataclass(frozen=True, kw_only=True, slots=True)
class Lists:
    """What the lists of one split say."""

    place: Path  # the folder or file they are
    classes: tuple[str, ...]  # by label
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """An entry and where its video lies."""

    entry: Entry
    path: Path
    flow_path: tuple[Path, Path] | None = None


def chosen(classes: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of `classes` that are `wanted` (none: all), in their own order. Raises DatasetError for an unknown one."""
    by_folded = {folded(name): name for name in classes}
    for name in wanted:
        if folded(name) not in by_folded:
            hint = nearest(name, classes)
            raise DatasetError(f"class {name!r} is none of the {len(classes)} classes{hint or f': {some(classes)}'}")
    keep = {folded(name) for name in wanted}
    return tuple(name for name in classes if not keep or folded(name) in keep)


def checked(lists: Lists) -> Lists:
    """`lists` as they are. Raises DatasetError where they name a video twice."""
    seen: dict[str, Entry] = {}
    for entry in lists.entries:
        other = seen.setdefault(folded(entry.name), entry)
        if other is entry:
            continue
        if {other.part, entry.part} == set(PARTS):
            raise DatasetError(
                f"{entry.where}: video {entry.name!r} is in the {entry.part} part, but {other.where} has it in the"
                f" {other.part} part; expected each name in one part; take one of the two out, or rename one of them"
            )
        raise DatasetError(
            f"{entry.where}: a second video {entry.name!r} (the first: {other.where}); expected each name once;"
            " take one of the two out, or rename one of them"
        )
    return lists


def matched(lists: Lists, found: Found, *, classes: Sequence[str] = (), partial: bool = False) -> list[Placed]:
    """The videos of train and test with their paths, in the lists' order.

    Raises DatasetError for listed videos that are not there (with `partial` they are left out) or there twice.
    """
    keep = set(chosen(lists.classes, classes))
    wanted = [entry for entry in checked(lists).entries if entry.part and entry.class_name in keep]
    missing = [entry for entry in wanted if folded(entry.name) not in found.paths]
    if missing and (not partial or len(missing) == len(wanted)):
        named = some([f"{entry.name} ({_line(entry, lists)})" for entry in missing])
        hint = nearest(folded(missing[0].name), list(found.paths)) if len(missing) <= 5 else ""
        raise DatasetError(
            f"{found.place}: {len(missing):,} of {len(wanted):,} videos listed in {lists.place} are not there:"
            f" {named}{hint};"
            " put them there, build only the classes that are complete, or take them out of the lists"
        )
    placed = []
    for entry in wanted:
        paths = found.paths.get(folded(entry.name), [])
        if len(paths) > 1:
            raise DatasetError(
                f"{found.place}: two videos have the name {entry.name!r}: {paths[0]} and {paths[1]};"
                " expected one file for each name; move one of them away, or rename it and its line in the lists"
            )
        placed += [Placed(entry=entry, path=path) for path in paths]
    return placed


def _line(entry: Entry, lists: Lists) -> str:
    """Where an entry stands, below the place of its lists."""
    return entry.where.removeprefix(str(lists.place)).lstrip("/\\: ")


def assembled(
    placed: Sequence[Placed],
    *,
    name: str,
    kind: str,
    split: int,
    classes: Sequence[str],
    notes: Iterable[str] = (),
    strata: Mapping[str, str] | None = None,
    partial: bool = False,
) -> Dataset:
    """The data set of these videos, labelled by their place in `classes`.

    Raises DatasetError for a class without videos in train or test; with `partial` a class may lack one of them, and
    a class that lacks both is left out.
    """
    counts = {part: dict.fromkeys(classes, 0) for part in PARTS}
    for one in placed:
        counts[one.entry.part][one.entry.class_name] += 1
    there = [class_name for class_name in classes if any(counts[part][class_name] for part in PARTS)]
    absent = [class_name for class_name in classes if class_name not in there]
    said = [*notes, *([f"{len(absent)} of {len(classes)} classes have no video: {some(absent)}"] if absent else [])]
    for part in PARTS:
        empty = [class_name for class_name in (there if partial else classes) if not counts[part][class_name]]
        if (empty and not partial) or not there or (part == "train" and len(empty) == len(there)):
            lack = empty or list(classes)
            raise DatasetError(
                f"{name}, split {split}: no video in {part} for {len(lack)} of {len(classes)} classes: {some(lack)};"
                " expected at least one of each class in train and in test; add some, or build the other classes only"
            )
        if empty:
            said.append(f"no video in {part} for {len(empty)} of {len(there)} classes: {some(empty)}")
    label = {class_name: number for number, class_name in enumerate(there)}
    parts = {
        part: tuple(
            Video(
                name=one.entry.name,
                path=one.path,
                label=label[one.entry.class_name],
                class_name=one.entry.class_name,
                flow_path=one.flow_path,
            )
            for one in placed
            if one.entry.part == part
        )
        for part in PARTS
    }
    names = {one.entry.name for one in placed}
    return Dataset(
        name=name,
        kind=kind,
        split=split,
        classes=tuple(there),
        parts=parts,
        notes=tuple(said),
        strata={video: stratum for video, stratum in (strata or {}).items() if video in names},
    )


def remarks(lists: Lists, found: Found, placed: Sequence[Placed], classes: Sequence[str] = ()) -> list[str]:
    """What the user should know: videos in no list, listed ones left out, files that do not belong there."""
    keep = set(chosen(lists.classes, classes))
    named = {folded(entry.name) for entry in lists.entries}
    unlisted = [paths[0].name for key, paths in found.paths.items() if key not in named]
    taken = {one.entry.name for one in placed}
    absent = [e.name for e in lists.entries if e.part and e.class_name in keep and e.name not in taken]
    unused = sum(not entry.part and entry.class_name in keep for entry in lists.entries)
    notes = []
    if unlisted:
        notes.append(f"{len(unlisted):,} in no list of this split, left out: {some(unlisted)}")
    if absent:
        notes.append(f"{len(absent):,} listed but left out: {some(absent)}")
    if unused:
        notes.append(f"{unused:,} listed for neither train nor test")
    if found.strays:
        strays = [path.relative_to(found.place) for path in found.strays]
        notes.append(f"{len(strays):,} stray in {found.place}, ignored: {some(strays)}")
    return notes


def plain_name(root: Path) -> str:
    """The folder's name as the name of a data set: lower case, without spaces or signs that paths and URLs mind."""
    folder = root.resolve()
    folder = folder.parent if folder.name.lower() == "videos" else folder
    return re.sub(r"[^a-z0-9._-]+", "-", folder.name.lower()).strip("-.") or "videos"
