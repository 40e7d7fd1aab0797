"""Broken files of a split in a folder, replaced by those of another copy of the same split; nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.errors import ShardError
from shards.manifest import NAME, Manifest, dump_manifest, parse_manifest
from shards.split import Split, open_split
from shards.stores.connect import is_url, place_of
from shards.transfer import counted, difference, fetch_file, files_of, strays
from shards.whole import whole

Progress = Callable[[int, int], None]  # bytes done, in all

_ANEW = "stmul shards copy SOURCE NEWFOLDER"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mended:
    """What a repair found and did."""

    manifest: Manifest
    files: tuple[tuple[str, str], ...]  # the file that was fetched, and what had been wrong with it
    bytes: int  # fetched, without the manifest
    strays: tuple[str, ...]  # shards that are not of this split: named, never deleted


def repair(
    folder: str | Path, source: str | Path, looked: Progress | None = None, fetched: Progress | None = None
) -> Mended:
    """Fetches what is missing or broken in the split in `folder` from `source`, another copy of it; what was mended.

    Every file of the split is then byte for byte what its manifest says. Each is fetched beside its place, checked, and
    takes that place at once, so that a repair that is interrupted leaves no more damage than there was. `looked` and
    `fetched` are told the bytes of either. Raises ShardError where the two are not the same split as tar shards, and
    where `source` is damaged at a file that is wanted.
    """
    if is_url(str(folder)):
        shown = place_of(str(folder)).shown
        raise ShardError(f"{shown}: only a folder is repaired. Delete its {NAME}, and copy the split there again")
    path = Path(folder)
    if not path.is_dir():
        raise ShardError(f"{path}: no such folder; get the whole split with: stmul shards copy SOURCE {path}")
    with open_split(source) as split:
        theirs = split.manifest
        if theirs.store != "tar" or not all(file.sha256 for file in files_of(theirs)):
            raise ShardError(
                f"{split.location}: stored as {theirs.store}, without the files that a repair fetches. Give a folder or"
                f" a URL of tar shards, or copy anew: {_ANEW}"
            )
        wrong = _manifest(path, split)
        files = files_of(theirs)
        size = sum(file.size for file in files)
        seen = counted(size, looked)
        broken = [(file, what) for file in files if (what := difference(path / file.name, file, seen))]
        if looked is not None:
            looked(size, size)  # files of another size were not read
        if wrong and len(broken) == len(files):  # nothing says that this folder was ever that split
            raise ShardError(
                f"{path}: no readable {NAME}, and no file in it is one of {split.location}: it is another split, or"
                f" nothing of it is left. Copy anew: {_ANEW}"
            )
        passed = counted(sum(file.size for file, _ in broken), fetched)
        for file, _ in broken:
            fetch_file(split.store, file, path, passed)
        if wrong:
            with whole(path / NAME) as manifest:
                manifest.write(dump_manifest(theirs))
        mended = [(file.name, what) for file, what in broken] + ([(NAME, wrong)] if wrong else [])
        return Mended(
            manifest=theirs,
            files=tuple(mended),
            bytes=sum(file.size for file, _ in broken),
            strays=tuple(path.name for path in strays(theirs, path)),
        )


def _manifest(path: Path, split: Split) -> str:
    """What is wrong with the manifest in `path`, or nothing. Raises ShardError where it is another split's."""
    try:
        data = (path / NAME).read_bytes()
        ours = parse_manifest(data, str(path / NAME))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ShardError as error:
        return str(error).removeprefix(f"{path / NAME}: ")
    if ours.store != "tar":
        raise ShardError(f"{path}: stored as {ours.store}, of which no part can be fetched. Copy anew: {_ANEW}")
    theirs = split.manifest
    if ours.digest != theirs.digest:
        raise ShardError(
            f"{path}: {_named(ours)}, but {split.location}: {_named(theirs)}: a split is repaired from another copy of"
            " itself alone"
        )
    if (files_of(ours), ours.classes) != (files_of(theirs), theirs.classes):
        what = "classes of other names" if files_of(ours) == files_of(theirs) else "other files"
        raise ShardError(
            f"{path}: holds the same records as {split.location} (digest {ours.digest[:12]}...), but {what}. Copy anew:"
            f" {_ANEW}"
        )
    return "" if data == dump_manifest(ours) else "is not as it was written"


def _named(manifest: Manifest) -> str:
    return f"{manifest.dataset}, split {manifest.split}, digest {manifest.digest[:12]}..."
