"""How a split behind a URL is read: by ranges or as whole shards, with which cache, and how patiently."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Mode = Literal["auto", "ranges", "shards"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What a reader of URLs may fetch and keep. Splits on a disk are read where they are and need none of it."""

    mode: Mode = "auto"  # auto: whole shards where the cache holds all of them, else the bytes that are used
    cache: Path | None = None  # a folder for whole shards; None: none, unless whole shards must be fetched
    cache_limit: int = 64 << 30  # bytes in that folder
    connections: int = 64  # requests at the same time
    deadline: float = 300.0  # seconds that a server which has answered before may be gone

    @property
    def folder(self) -> Path:
        """Where whole shards are kept when they must be."""
        return self.cache or default_cache()


def default_cache() -> Path:
    """The folder for what can be fetched again: $XDG_CACHE_HOME/stmul, or ~/.cache/stmul."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "stmul"
