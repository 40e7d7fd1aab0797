"""Which record goes into which shard: decided from names and lists alone, before anything is made.

Each stratum of a part (preprocess/sources/strata.py) is permuted by a hash of its keys and cut into shards of its own,
so that a shard that two splits share holds the same records in both. A stratum's last shard may be small: that costs at
most eight more shards in a part, and small strata are not merged, which would store their records once for each split.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from preprocess.sources.listing import Dataset
from shards.format import key_of
from shards.writer import shard_slots


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedShard:
    """A shard: its part, its number there, the keys of its records in order, whether or not they can be made."""

    part: str
    number: int
    keys: tuple[str, ...]


def planned(dataset: Dataset, per_shard: int) -> tuple[PlannedShard, ...]:
    """Every shard of every part; the order of the lists plays no role. Raises ValueError for `per_shard` below 1."""
    return tuple(
        PlannedShard(part=part, number=number, keys=keys)
        for part in dataset.parts
        for number, keys in enumerate(_cut(dataset, part, per_shard))
    )


def _cut(dataset: Dataset, part: str, per_shard: int) -> list[tuple[str, ...]]:
    by_stratum: dict[str, list[str]] = {}
    for video in dataset.parts[part]:
        by_stratum.setdefault(dataset.strata.get(video.name, ""), []).append(key_of(video.name))
    slots = [tuple(slot) for keys in by_stratum.values() for slot in shard_slots(keys, per_shard)]
    # Numbered by hash too, so that shards next to each other are no more alike than any two.
    return sorted(slots, key=lambda slot: (hashlib.sha256(slot[0].encode()).digest(), slot[0]))
