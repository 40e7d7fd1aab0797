"""What folders and list files hold: names matched without case, hidden entries left alone, failures one sentence."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs import nearest
from preprocess.errors import DatasetError

VIDEO_ENDINGS = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".mpg", ".m4v")
LIST_ENDINGS = ("", ".txt", ".csv", ".json", ".md")  # may lie beside videos without a word


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Videos by their folded name, in the order of their paths; a name with two paths is one too many."""

    place: Path  # where was looked
    paths: dict[str, list[Path]] = field(default_factory=dict)
    strays: list[Path] = field(default_factory=list)  # what is no video, and should not lie there

    def add(self, name: str, path: Path) -> None:
        """Notes that `path` holds video `name`. Raises DatasetError for a name that no record could have."""
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DatasetError(
                f"{path.parent}: the name {path.name!r} is not UTF-8, which a record's name must be; rename it"
            ) from None
        self.paths.setdefault(folded(name), []).append(path)

    def every(self) -> list[Path]:
        """All paths."""
        return [path for paths in self.paths.values() for path in paths]


def folded(name: str) -> str:
    """`name` as names are compared: without case, composed, and with @ for # (as some copies of HMDB51 have it)."""
    return unicodedata.normalize("NFC", name).casefold().replace("@", "#")


def stem(name: str) -> str:
    """A file's name without its video ending; other dots are part of the name."""
    head, dot, ending = name.rpartition(".")
    return head if (dot + ending).lower() in VIDEO_ENDINGS else name


def is_video(path: Path) -> bool:
    """Whether the ending is a video's."""
    return path.suffix.lower() in VIDEO_ENDINGS


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in `folder`, sorted by name, without hidden entries. Raises DatasetError where it cannot be read."""
    try:
        with os.scandir(folder) as scan:
            return sorted((entry for entry in scan if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{folder}: expected a folder that can be read, found: {error.strerror}") from error


def child(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` that lies in `folder`, whatever its case; None if none does."""
    if not folder.is_dir():
        return None
    here = {folded(entry.name): Path(entry.path) for entry in reversed(entries(folder))}
    return next((here[folded(name)] for name in names if folded(name) in here), None)


def descendants(folder: Path, paths: Iterable[str]) -> Iterator[Path]:
    """Those of `paths` ("a/b", "" for the folder itself) that are folders below `folder`, whatever their case."""
    for path in paths:
        place: Path | None = folder
        for name in filter(None, path.split("/")):
            place = child(place, [name]) if place else None
        if place and place.is_dir():
            yield place


def videos_below(folder: Path, layouts: Iterable[str]) -> Found:
    """The video files in the first of `layouts` (folders below `folder`) that holds any, in class folders or flat."""
    tried = list(descendants(folder, layouts))
    for place in tried:
        found = Found(place=place)
        for entry in entries(place):
            path = Path(entry.path)
            if entry.is_dir():
                _add_class_folder(found, path)
            elif is_video(path) and path.exists():
                found.add(stem(entry.name), path)
            elif path.suffix.lower() not in LIST_ENDINGS:
                found.strays.append(path)
        if found.paths:
            return found
    raise DatasetError(
        f"{folder}: no videos found in {', '.join(map(str, tried))}; expected class folders with files that end in"
        f" {' '.join(VIDEO_ENDINGS)}; unpack the videos there, or name their folder"
    )


def _add_class_folder(found: Found, folder: Path) -> None:
    strays = []
    any_video = False
    for entry in entries(folder):
        path = Path(entry.path)
        if is_video(path) and path.exists():  # a folder, a pipe: that video fails by itself, with its reason
            found.add(stem(entry.name), path)
            any_video = True
        else:
            strays.append(path)
    if any_video:  # a folder without videos is no class folder: lists, pictures, other data
        found.strays.extend(strays)


def lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not empty, stripped, with their numbers from 1; LF or CRLF, UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path}: expected a list that can be read, found: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: expected a list in UTF-8, found byte {error.start} to be none; convert it"
        ) from None
    numbered = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    return [(number, line) for number, line in numbered if line]


def existing(root: Path) -> Path:
    """`root` itself, if it is a folder. Raises DatasetError, with the nearest name that is there."""
    if root.is_dir():
        return root
    if root.exists():
        raise DatasetError(f"{root}: expected the folder of a data set, found a file; name the folder it lies in")
    missing = root.absolute()
    while not missing.parent.exists():
        missing = missing.parent
    here = [entry.name for entry in entries(missing.parent) if entry.is_dir()] if missing.parent.is_dir() else []
    by_folded = {folded(name): name for name in here}
    close = nearest(folded(missing.name), list(by_folded))
    for key, name in by_folded.items():
        close = close.replace(f"mean {key}?", f"mean {missing.parent / name}?")
    raise DatasetError(f"{root}: no such folder{close or f' ({missing.parent} has none of a like name)'}")


def some(names: Sequence[object], most: int = 5) -> str:
    """`names` as text, the first `most` and how many more there are."""
    more = len(names) - most
    text = ", ".join(map(str, names[:most])) + (f" and {more:,} more" if more > 0 else "")
    return text.encode("utf-8", "backslashreplace").decode()  # a stray's name may be anything
