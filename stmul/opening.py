"""The shards that the settings name, opened as they say."""

from __future__ import annotations

from pathlib import Path

from shards.access import Access
from shards.latest import latest
from shards.split import Split, open_split
from stmul.config import Data


def access_of(data: Data) -> Access:
    """How a URL is to be read."""
    return Access(
        mode=data.access,
        cache=Path(data.cache).expanduser() if data.cache else None,
        cache_limit=round(data.cache_limit * 2**30),
        connections=data.connections,
        deadline=data.deadline,
    )


def open_shards(data: Data, location: str | Path = "") -> Split:
    """The split at `location`, else at `data.shards`, else the one built last. Raises ShardError."""
    return open_split(location or data.shards or latest(Path("data")), access=access_of(data))
