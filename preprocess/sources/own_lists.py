"""The lists of one's own videos: train.txt and test.txt, a CSV, and what their lines mean."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import nearest
from preprocess.errors import DatasetError
from preprocess.sources import disk
from preprocess.sources.disk import Found, folded
from preprocess.sources.listing import PARTS

PART_FOLDERS = {"train": ("train", "training"), "test": ("test", "testing", "val", "validation", "valid")}
PART_OF = {name: part for part, names in PART_FOLDERS.items() for name in names} | {"unused": "", "": ""}
LABELLED = re.compile(r"(?P<video>.*[^\s,;])[\s,;]+(?P<label>[^\s,;]+)")
COLUMNS = ("video", "label", "set")


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A video as a list or a folder speaks of it."""

    path: Path
    folder: str  # the class folder it lies in; "" for none
    label: str  # class name, number, or "" where only the folder speaks
    part: str
    where: str


def only_split_1(split: int, because: str) -> None:
    """Raises DatasetError where another split is asked for than the one there is."""
    if split != 1:
        raise DatasetError(
            f"{because}, which is split 1; found no split {split}; choose split 1, or give lists for {split}"
        )


def split_files(places: Sequence[Path], split: int) -> list[tuple[Path, str]]:
    """The files in `places` that say who is in which part, each with its part ("" for a CSV, which says it itself)."""
    for place in places:
        for number in (f"{split:02}", str(split), ""):
            pair = [(disk.child(place, _list_names(part, number)), part) for part in PARTS]
            table = disk.child(place, [f"split{number}.csv", f"videos{number}.csv"])
            if not number:
                table = table or _only_table(place)
            files = [(path, part) for path, part in pair if path and path.is_file()]
            if len(files) < len(PARTS) and table and table.is_file():
                files = [(table, "")]
            elif len(files) == 1:
                other = next(part for part in PARTS if part != files[0][1])
                raise DatasetError(f"{place}: {files[0][0].name} is there, but no {other}{number}.txt; expected both")
            if files and not number:
                only_split_1(split, f"{place} has {files[0][0].name}")
            if files:
                return files
    return []


def has_numbered(places: Sequence[Path], split: int) -> bool:
    """Whether a list in `places` has the number of `split` in its name."""
    numbers = (f"{split:02}", str(split))
    names = [name for number in numbers for part in PARTS for name in _list_names(part, number)]
    names += [f"{word}{number}.csv" for number in numbers for word in ("split", "videos")]
    return any(disk.child(place, names) for place in places)


def _list_names(part: str, number: str) -> list[str]:
    return [f"{name}{number}.txt" for word in PART_FOLDERS[part] for name in (word, f"{word}list")]


def _only_table(place: Path) -> Path | None:
    """The CSV in `place` that has our columns, whatever its name. Raises DatasetError where there are two."""
    files = [Path(entry.path) for entry in disk.entries(place) if entry.name.lower().endswith(".csv")]
    tables = [path for path in files if set(COLUMNS) <= set(_columns(path))]
    if len(tables) > 1:
        raise DatasetError(f"{place}: {tables[0].name} and {tables[1].name} may both say the split; name one split.csv")
    return tables[0] if tables else None


def listed(root: Path, found: Found, files: Sequence[tuple[Path, str]], partial: bool) -> tuple[list[Claim], list[str]]:
    """The videos that `files` list, and those that are not there. Raises DatasetError for these, unless `partial`."""
    look_up = _finder(root, found)
    claims: list[Claim] = []
    missing: list[str] = []
    count = 0
    for file, part in files:
        for where, video, label, line_part in _table(file) if not part else _lines(file, part, look_up):
            count += 1
            if path := look_up(video, where):
                folder = "" if path.parent in (found.place, root) else path.parent.name
                claims.append(Claim(path=path, folder=folder, label=label, part=line_part, where=where))
            else:
                missing.append(f"{video} ({where})")
    if missing and (not partial or not claims):
        raise DatasetError(
            f"{root}: {len(missing):,} of {count:,} listed videos are not there: {disk.some(missing)};"
            " put them there, or take them out of the list"
        )
    return claims, missing


Row = tuple[str, str, str, str]  # where, video, label, part


def _lines(file: Path, part: str, look_up: Callable[[str, str], Path | None]) -> Iterable[Row]:
    """A path on each line, then perhaps a label; a path may hold spaces, so what is there decides."""
    for number, line in disk.lines(file):
        where = f"{file}, line {number}"
        match = LABELLED.fullmatch(line)
        if match and not look_up(line, where) and not disk.is_video(Path(line)):
            yield where, match["video"], match["label"], part
        else:
            yield where, line, "", part


def _table(file: Path) -> Iterable[Row]:
    """The rows of a CSV with the columns video, label and set, divided by commas, semicolons or tabs."""
    columns = _columns(file)
    if not set(COLUMNS) <= set(columns):
        raise DatasetError(
            f"{file}, line 1: expected the columns {', '.join(COLUMNS)}, found {disk.some(columns) or 'nothing'};"
            " add a header"
        )
    for number, cells in _rows(file)[1:]:
        where = f"{file}, line {number}"
        row = dict(zip(columns, map(str.strip, cells), strict=False))
        if not set(COLUMNS) <= row.keys():
            raise DatasetError(f"{where}: expected {len(columns)} cells, found {len(cells)}; mend the line")
        if row["set"].lower() not in PART_OF:
            hint = nearest(row["set"].lower(), list(PART_OF))
            raise DatasetError(f"{where}: set {row['set']!r}; expected train, test or unused{hint}")
        yield where, row["video"], row["label"], PART_OF[row["set"].lower()]


def _rows(file: Path) -> list[tuple[int, list[str]]]:
    """The rows that are not empty, with their lines."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{file}: expected a CSV in UTF-8, found another file: {error}; write it anew") from error


def _columns(file: Path) -> list[str]:
    rows = _rows(file)
    return [name.strip().lower() for name in rows[0][1]] if rows else []


def _finder(root: Path, found: Found) -> Callable[[str, str], Path | None]:
    """A function that gives the video a list speaks of: by its path, with or without ending, or by its bare name."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in found.every():
        below = path.relative_to(found.place).as_posix()
        for name in dict.fromkeys([below, disk.stem(below), path.name, disk.stem(path.name)]):
            by_name[folded(name)].append(path)

    def look_up(video: str, where: str) -> Path | None:
        name = video.replace("\\", "/").removeprefix("./").removeprefix("videos/")
        paths = by_name.get(folded(name), [])
        if len(paths) > 1:
            raise DatasetError(
                f"{where}: {video!r} may be {paths[0]} or {paths[1]}; expected one; write the class folder before it"
            )
        if paths:
            return paths[0]
        direct = root / name
        return direct if disk.is_video(direct) and direct.is_file() else None

    return look_up
