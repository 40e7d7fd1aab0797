"""Whole files of a split on their way: hashed as they pass, and published only when they are what the manifest says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.errors import CorruptRecordError, ShardError
from shards.manifest import Manifest, ShardFile
from shards.record import Blob
from shards.stores import Store
from shards.whole import whole

CHUNK = 1 << 20  # bytes that are handed on, hashed and counted at a time

Passed = Callable[[int], None]  # so many bytes more


def files_of(manifest: Manifest) -> tuple[ShardFile, ...]:
    """The files of a split beside its manifest, each once: shards and index, part by part."""
    files = [file for part in manifest.parts.values() for file in (*part.shards, part.index)]
    return tuple({file.name: file for file in files}.values())


def strays(manifest: Manifest, folder: Path) -> list[Path]:
    """The shards in `folder` that are none of the split's: left from another build."""
    names = {file.name for file in files_of(manifest)}
    return [path for path in sorted(folder.glob("*.tar")) if path.name not in names]


def pieces(store: Store, file: ShardFile) -> Iterator[Blob]:
    """The bytes of `file` as they lie in `store`, from first to last; the store may hold more or fewer."""
    from_afar: Callable[[str], Iterator[Blob]] | None = getattr(store, "whole", None)
    if from_afar is not None:  # several requests ahead, past any cache
        yield from from_afar(file.name)
        return
    size, read = store.size(file.name), store.reader(file.name)
    for start in range(0, size, CHUNK):
        yield read(start, min(start + CHUNK, size))


def checked(parts: Iterable[Blob], file: ShardFile, where: str) -> Iterator[memoryview]:
    """`parts`, cut to CHUNK bytes at most and handed on while they are hashed.

    Raises CorruptRecordError as soon as it is known that they are not `file`: before the end, so that whoever writes
    them does not come to an end either.
    """
    digest, size = hashlib.sha256(), 0
    for part in parts:
        view = memoryview(part).cast("B")
        size += len(view)
        if size > file.size:
            raise _another(where, f"more than {file.size} bytes", file)
        for start in range(0, len(view), CHUNK):
            digest.update(view[start : start + CHUNK])
            yield view[start : start + CHUNK]
    if size != file.size:
        raise _another(where, f"{size} bytes", file)
    if digest.hexdigest() != file.sha256:
        raise _another(where, f"SHA-256 {digest.hexdigest()[:12]}...", file)


def fetch_file(store: Store, file: ShardFile, folder: Path, passed: Passed | None = None) -> None:
    """Writes `file` of `store` into `folder`; there it is whole, or as it was before.

    Raises CorruptRecordError where the store holds other bytes than the manifest says, ShardError where the disk is
    full, UnreachableError where the store cannot be read.
    """
    with whole(folder / file.name) as opened:
        for view in checked(pieces(store, file), file, f"{store.location}/{file.name}"):
            opened.write(view)
            if passed is not None:
                passed(len(view))


def difference(path: Path, file: ShardFile, passed: Passed | None = None) -> str:
    """What is wrong with the file at `path`, or nothing where it is `file`, byte for byte."""
    digest: Any = hashlib.sha256()
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != file.size:
            return f"{size} bytes, expected {file.size}"
        with path.open("rb") as opened:
            while view := opened.read(CHUNK):
                digest.update(view)
                if passed is not None:
                    passed(len(view))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    found: str = digest.hexdigest()
    return "" if found == file.sha256 else f"SHA-256 {found[:12]}..., expected {file.sha256[:12]}..."


def counted(total: int, progress: Callable[[int, int], None] | None) -> Passed:
    """A function that is told of bytes more, by any thread, and tells `progress` the bytes so far and `total`."""
    done, lock = 0, threading.Lock()

    def passed(more: int) -> None:
        nonlocal done
        with lock:
            done += more
            if progress is not None:
                progress(done, total)

    return passed


def _another(where: str, found: str, file: ShardFile) -> ShardError:
    return CorruptRecordError(
        f"{where}: {found}, but its manifest says {file.size} bytes with SHA-256 {file.sha256[:12]}...: damaged, or of"
        f" another build. Find all damage with: stmul shards verify {where.removesuffix('/' + file.name)}"
    )
