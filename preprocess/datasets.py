"""The data set in a folder: UCF101, HMDB51, one's own class folders, or frames and flow that were extracted before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from configs import nearest
from preprocess.errors import DatasetError
from preprocess.sources import disk, folders, frame_folders, hmdb51, ucf101
from preprocess.sources.annotations import read_annotations
from preprocess.sources.listing import (
    PARTS,
    Dataset,
    Lists,
    Video,
    assembled,
    chosen,
    matched,
    plain_name,
    remarks,
)
from preprocess.sources.strata import Strata, strata_of

__all__ = ["Dataset", "Video", "describe", "find_dataset", "reduced"]

KIND_WORDS = {
    "ucf101": "UCF101's layout",
    "hmdb51": "HMDB51's layout",
    "folders": "class folders",
    "extracted": "extracted frames",
}
OFFICIAL_NAMES = {
    "UCF101": re.compile(r"v_.+_g\d\d_c\d\d", re.IGNORECASE),
    "HMDB51": re.compile(r".+_[a-z]+_(nm|cm)_np\d_(fr|ba|le|ri)_(bad|med|goo)_\d+", re.IGNORECASE),
}


class Official(Protocol):
    """What reads the published lists of a data set; see ucf101.py and hmdb51.py."""

    def is_lists(self, folder: Path) -> bool: ...
    def has_split(self, folder: Path, split: int) -> bool: ...
    def read_lists(self, folder: Path, split: int) -> Lists: ...


OFFICIAL: dict[str, Official] = {"ucf101": ucf101, "hmdb51": hmdb51}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to read: see find_dataset."""

    root: Path
    split: int
    lists: Path | None
    classes: tuple[str, ...]
    partial: bool


def find_dataset(
    root: Path,
    *,
    kind: str = "auto",
    split: int = 1,
    lists: Path | None = None,
    classes: Sequence[str] = (),
    partial: bool = False,
) -> Dataset:
    """The split `split` of the data set in `root`, with every listed video found on disk.

    `kind` is auto, ucf101, hmdb51, folders, extracted or drawn; `lists` is the folder of the split lists (None: inside
    or beside the root); with `classes` only these are looked for, so that the others may be absent; with `partial` what
    is listed and not there is left out. Whatever was decided or ignored stands in the notes. Raises DatasetError.
    """
    for folder in [root, lists] if lists else [root]:
        disk.existing(folder)
    request = Request(root=root, split=split, lists=lists, classes=tuple(classes), partial=partial)
    if kind == "auto":
        kind = _recognised(request)
    if kind not in READERS:
        hint = nearest(kind, list(READERS))
        raise DatasetError(f"kind of data set {kind!r}; expected auto, {', '.join(READERS)}{hint}")
    return READERS[kind](request)


def reduced(dataset: Dataset, classes: Sequence[str] = (), limit: int = 0) -> Dataset:
    """`dataset` with only `classes` (empty: all), at most `limit` videos of each class and part (0: all).

    Labels are counted anew, in the order of `dataset`. Which videos stay is decided by a hash of their names: those of
    a limit are among those of every larger one. A limit falls on each split's parts by themselves, so no stratum stays.
    Raises DatasetError for an unknown class.
    """
    keep = chosen(dataset.classes, classes)
    label = {class_name: number for number, class_name in enumerate(keep)}
    parts = {}
    for part, videos in dataset.parts.items():
        stay: set[str] = set()
        for class_name in keep:
            names = [video.name for video in videos if video.class_name == class_name]
            drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
            stay.update(drawn[: limit or None])
        parts[part] = tuple(replace(v, label=label[v.class_name]) for v in videos if v.name in stay)
    there = {video.name for videos in parts.values() for video in videos}
    strata = {} if limit else {name: stratum for name, stratum in dataset.strata.items() if name in there}
    return replace(dataset, classes=keep, parts=parts, strata=strata)


def describe(dataset: Dataset) -> str:
    """One line: name, split, classes, videos of each part, and what the folder was read as."""
    counts = " and ".join(f"{len(dataset.parts[part]):,} {part}" for part in PARTS)
    number = len(dataset.classes)
    classes = f"{number} class{'es' if number != 1 else ''}"
    return f"{dataset.name}, split {dataset.split}: {classes}, {counts} videos ({KIND_WORDS[dataset.kind]})"


def _ucf101(request: Request, name: str = "") -> Dataset:
    place = _lists_folder(request, ucf101.LISTS, ucf101.is_lists)
    if not place and (lists := _annotations(request)):
        return _from_files(request, lists, ucf101.LAYOUTS, "ucf101", name)
    if not place:
        raise DatasetError(
            f"{request.lists or request.root}: UCF101's lists are not there; expected ucfTrainTestlist with"
            f" classInd.txt, trainlist{request.split:02}.txt and testlist{request.split:02}.txt in the folder or beside"
            " it; put them there, or name their folder"
        )
    return _from_files(request, ucf101.read_lists(place, request.split), ucf101.LAYOUTS, "ucf101", name)


def _hmdb51(request: Request) -> Dataset:
    place = _lists_folder(request, hmdb51.LISTS, hmdb51.is_lists)
    if not place and (lists := _annotations(request)):
        return _from_files(request, lists, hmdb51.LAYOUTS, "hmdb51", "")
    if not place:
        raise DatasetError(
            f"{request.lists or request.root}: HMDB51's lists are not there; expected testTrainMulti_7030_splits with"
            f" <class>_test_split{request.split}.txt in the folder or beside it; put them there, or name their folder"
        )
    return _from_files(request, hmdb51.read_lists(place, request.split), hmdb51.LAYOUTS, "hmdb51", "")


def _annotations(request: Request) -> Lists | None:
    path = frame_folders.annotation_file(request.lists or request.root, request.split)
    return read_annotations(path) if path else None


def _from_files(request: Request, lists: Lists, layouts: Sequence[str], kind: str, name: str) -> Dataset:
    found = disk.videos_below(request.root, layouts)
    placed = matched(lists, found, classes=request.classes, partial=request.partial)
    strata = _strata(request, lists, [OFFICIAL[kind]])
    return assembled(
        placed,
        name=name or _name(lists, request),
        kind=kind,
        split=request.split,
        classes=chosen(lists.classes, request.classes),
        notes=[f"lists: {lists.place}", *remarks(lists, found, placed, request.classes), *strata.notes],
        strata=strata.of,
        partial=request.partial,
    )


def _extracted(request: Request) -> Dataset:
    lists = frame_folders.read_lists(request.root, request.split, request.lists)
    here = frame_folders.frame_folders(request.root)
    placed = frame_folders.placed(lists, here, classes=request.classes, partial=request.partial)
    notes = [f"lists: {lists.place}", *remarks(lists, here.images, placed, request.classes)]
    strays = [path.name for found in (here.u, here.v) for path in found.strays]
    notes += [f"{len(strays):,} stray beside the flow, ignored: {disk.some(strays)}"] if strays else []
    strata = _strata(request, lists, OFFICIAL.values())
    return assembled(
        placed,
        name=_name(lists, request),
        kind="extracted",
        split=request.split,
        classes=chosen(lists.classes, request.classes),
        notes=[*notes, *strata.notes],
        strata=strata.of,
        partial=request.partial,
    )


def _strata(request: Request, lists: Lists, official: Iterable[Official]) -> Strata:
    """The strata by the lists of the other splits, which lie where `lists` do and are of the same kind."""
    kind = next((kind for kind in official if lists.place.is_dir() and kind.is_lists(lists.place)), None)

    def others(split: int) -> Lists | None:
        if kind is None:
            path = frame_folders.annotation_file(request.lists or request.root, split)
            return read_annotations(path) if path else None
        return kind.read_lists(lists.place, split) if kind.has_split(lists.place, split) else None

    return strata_of(lists, request.split, others)


def _folders(request: Request) -> Dataset:
    own = folders.read_folders(request.root, request.split, request.lists, partial=request.partial)
    keep = chosen(own.lists.classes, request.classes)
    return assembled(
        [one for one in own.placed if one.entry.class_name in keep],
        name=plain_name(request.root),
        kind="folders",
        split=request.split,
        classes=keep,
        notes=own.notes,
        strata=own.strata,
        partial=request.partial,
    )


READERS: dict[str, Callable[[Request], Dataset]] = {
    "ucf101": _ucf101,
    "hmdb51": _hmdb51,
    "folders": _folders,
    "extracted": _extracted,
    "drawn": lambda request: _ucf101(request, "drawn"),
}


def _recognised(request: Request) -> str:
    """What the folder is: by what lies in it, then by lists beside it that speak of its videos, then by its names."""
    root = request.root
    if frame_folders.is_extracted(root):
        return "extracted"
    inside = replace(request, lists=request.lists or root)
    if _lists_folder(inside, hmdb51.LISTS, hmdb51.is_lists):
        return "hmdb51"
    if _lists_folder(inside, ucf101.LISTS, ucf101.is_lists):
        return "ucf101"
    if request.lists or folders.has_split(root, request.split):
        return "folders"
    found = disk.videos_below(root, dict.fromkeys((*ucf101.LAYOUTS, *hmdb51.LAYOUTS)))
    for kind, lists in _beside(request):
        if any(disk.folded(entry.name) in found.paths for entry in lists.entries):
            return kind
    names = [disk.stem(path.name) for path in found.every()]
    for official, pattern in OFFICIAL_NAMES.items():
        if all(map(pattern.fullmatch, names)):
            raise DatasetError(
                f"{root}: the videos are named as {official}'s, but its lists are neither in the folder nor beside it;"
                f" expected {'ucfTrainTestlist' if official == 'UCF101' else 'testTrainMulti_7030_splits'};"
                " name their folder, or have the folder read as class folders, which are split by a hash of the names"
            )
    return "folders"


def _beside(request: Request) -> Iterator[tuple[str, Lists]]:
    if place := _lists_folder(request, hmdb51.LISTS, hmdb51.is_lists):
        yield "hmdb51", hmdb51.read_lists(place, request.split)
    if place := _lists_folder(request, ucf101.LISTS, ucf101.is_lists):
        yield "ucf101", ucf101.read_lists(place, request.split)


def _lists_folder(request: Request, names: Sequence[str], is_lists: Callable[[Path], bool]) -> Path | None:
    """The folder of lists: the one that was named, else in the root, else beside it."""
    bases = [request.lists] if request.lists else [request.root, request.root.absolute().parent]
    return next((place for base in bases for place in disk.descendants(base, names) if is_lists(place)), None)


def _name(lists: Lists, request: Request) -> str:
    """The published name for all its classes, else the folder's: a subset shall not pass for the whole."""
    if request.partial:
        return plain_name(request.root)
    if len(lists.classes) == ucf101.CLASSES and lists.classes[0] == "ApplyEyeMakeup":
        return ucf101.NAME
    return hmdb51.NAME if lists.classes == hmdb51.CLASSES else plain_name(request.root)
