"""Indexes that were made from tars, kept for the next time: whole or absent, and believed only if every byte is right.

<SHA-256 of what it is the index of>.index
    one line of JSON: what it is the index of, and the classes; the index; the SHA-256 (32 bytes) of all before
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from shards.errors import ShardError
from shards.index import Index, parse_index_bytes

LIMIT = 1 << 30  # bytes of all that is kept; what was not used for longest goes first
LARGEST = 1 << 28  # bytes of one

Identity = Mapping[str, str | int]  # of a tar: where it is, its version, its size


def find(folder: Path, identity: Identity) -> tuple[Index, dict[int, str]] | None:
    """The index kept in `folder` and the classes by label; None where there is none, or it is not as it was written."""
    path = _path(folder, identity)
    try:
        with path.open("rb") as file:
            data = memoryview(file.read(LARGEST + 1))
        if len(data) > LARGEST or hashlib.sha256(data[:-32]).digest() != data[-32:]:
            return None
        line, _, _ = bytes(data[: 1 << 20]).partition(b"\n")
        said = json.loads(line)
        if said["of"] != dict(identity):
            return None
        index = parse_index_bytes(data[len(line) + 1 : -32], str(path))
        with suppress(OSError):
            os.utime(path)
        return index, {int(label): str(name) for label, name in said["classes"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ShardError):
        return None


def keep(folder: Path, identity: Identity, index: bytes, classes: Mapping[int, str]) -> None:
    """Keeps an index; where the folder cannot be written, that is said once here and nothing else happens."""
    line = json.dumps({"of": dict(identity), "classes": sorted(classes.items())}).encode() + b"\n"
    if len(line) >= 1 << 20 or len(line) + len(index) + 32 > LARGEST:
        return
    data = line + index
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=folder, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data + hashlib.sha256(data).digest())
            Path(partial).replace(_path(folder, identity))
        except BaseException:
            with suppress(OSError):
                Path(partial).unlink()
            raise
        _make_room(folder)
    except OSError as error:
        logging.getLogger("shards").warning(
            "%s: cannot keep the index of a tar there (%s), so it is made again each time", folder, error.strerror
        )


def _path(folder: Path, identity: Identity) -> Path:
    return folder / f"{hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()}.index"


def _make_room(folder: Path) -> None:
    found = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process takes some away at the same time
            if path.suffix in (".index", ".partial"):
                found.append((path.stat().st_mtime, path.stat().st_size, path))
    size = sum(size for _, size, _ in found)
    for _, of_one, path in sorted(found):
        if size <= LIMIT:
            return
        with suppress(OSError):
            path.unlink()
        size -= of_one
