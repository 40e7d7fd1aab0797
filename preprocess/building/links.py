"""One file for what several splits hold: a shard that a sibling has already becomes a second name of that file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from shards.errors import ShardError
from shards.manifest import NAME, ShardFile, parse_manifest
from shards.whole import sync_folder

PIECE = 1 << 20  # bytes compared at a time

Siblings = Mapping[tuple[int, str], tuple[Path, ...]]  # size and SHA-256: the files that have them


def siblings_of(folder: Path) -> Siblings:
    """The shards that the manifests of the splits beside `folder` name; what cannot be read is left out."""
    found: dict[tuple[int, str], tuple[Path, ...]] = {}
    for path in sorted(folder.parent.glob(f"split*/{NAME}")):
        if path.parent == folder:
            continue
        with suppress(OSError, ShardError):
            manifest = parse_manifest(path.read_bytes(), str(path))
            for file in (file for part in manifest.parts.values() for file in part.shards):
                fact = (file.size, file.sha256)
                found[fact] = (*found.get(fact, ()), path.parent / file.name)
    return found


def share(path: Path, file: ShardFile, siblings: Siblings) -> bool:
    """Makes `path`, which is `file`, a hard link to a sibling of equal bytes; False: it stays a file of its own.

    Every byte of both is compared first. `path` is at all times one whole file or the other. A file system without
    hard links, another disk and a sibling that was changed are no errors: nothing happens then.
    """
    for other in siblings.get((file.size, file.sha256), ()):
        with suppress(OSError):
            if other.samefile(path):
                return True
            if _device(other) == _device(path) and _equal(path, other) and _linked(path, other):
                return True
    return False


def shared_bytes(paths: Iterable[Path]) -> int:
    """Bytes of those of `paths` that are more than one name of a file: they are on the disk once."""
    total = 0
    for path in paths:
        with suppress(OSError):
            facts = path.stat()
            total += facts.st_size if facts.st_nlink > 1 else 0
    return total


def _device(path: Path) -> int:
    return path.stat().st_dev


def _equal(one: Path, other: Path) -> bool:
    with one.open("rb") as first, other.open("rb") as second:
        while piece := first.read(PIECE):
            if piece != second.read(PIECE):
                return False
        return not second.read(1)


def _linked(path: Path, other: Path) -> bool:
    """Whether `path` is now a link to `other`; put there in one step, so that a kill leaves one or the other."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(other, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True
