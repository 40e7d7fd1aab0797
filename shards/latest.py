"""Which shards were built last: written by the build, read by training when no shards are named."""

from __future__ import annotations

import json
from pathlib import Path

from shards.errors import UnreachableError
from shards.writer import whole

NAME = "latest.json"


def remember(out: Path, shards: Path) -> None:
    """Notes in the folder `out` that the split in `shards` was built last."""
    with whole(out / NAME) as file:
        file.write(json.dumps({"shards": str(shards)}).encode())


def latest(out: Path) -> str:
    """The split built last into `out`. Raises UnreachableError where there is none."""
    path = out / NAME
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UnreachableError(
            f"{path}: no shards have been built here; build some with: make shards SPLIT=1,"
            f" or name them: make train SHARDS=folder, LMDB or URL"
        ) from None
