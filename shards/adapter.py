"""Our shards for those who use webdataset: a pipeline of samples that its own stages can follow.

The bytes come through our stores, not through webdataset's: no curl, no `pipe:`, ranged GETs from HTTP and S3, LMDB
too, and every checksum is checked. Plain `webdataset.WebDataset` reads the same tars from a disk; see docs/shards.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.format import FLOW, INDEX, RGB, decode, parse_index
from shards.index import Row
from shards.record import Blob
from shards.split import Split, open_split
from shards.stores.connect import is_url, place_of
from shards.stream import in_order

AHEAD = 2  # records read while another is being used


def as_webdataset(path_or_url: str | Path, part: str = "train") -> Any:
    """A webdataset pipeline over the records of `part`: dicts of `__key__`, `__url__` and the four members as bytes.

    `path_or_url` is all that `shards.split.open_split` takes. Records come in the order of the shards; nodes and the
    workers of a DataLoader share the shards. Nothing is opened before the pipeline runs, so it may go to processes
    however they are started; errors are those of `open_split` and `shards.format.decode`, raised there.
    """
    from webdataset.compat import FluidWrapper  # takes seconds and loads torch: only its users pay for it

    location = str(path_or_url)
    if is_url(location):
        place_of(location)  # what is no URL of ours is refused here and now
    return FluidWrapper(_Samples(location=location, part=part))


def frames(sample: Mapping[str, Any]) -> tuple[list[bytes], list[bytes]]:
    """The JPEGs of an undecoded sample: n of RGB, and of flow x0 y0 x1 y1 ..., 2 (n - 1) of them."""
    header = parse_index(sample[INDEX], str(sample.get("__key__", "a sample")))
    return _cut(sample[RGB], header.rgb.ends), _cut(sample[FLOW], header.flow.ends)


def _cut(blob: Blob, ends: np.ndarray[Any, np.dtype[np.uint32]]) -> list[bytes]:
    return [bytes(blob[start:stop]) for start, stop in zip([0, *ends.tolist()[:-1]], ends.tolist(), strict=False)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Samples:
    """The first stage of the pipeline; can be pickled for a worker that is spawned."""

    location: str
    part: str

    def __call__(self) -> Iterator[dict[str, Any]]:
        from webdataset.shardlists import split_by_node, split_by_worker

        with open_split(self.location) as split:
            index = split.index(self.part)
            rows = (
                index.row(int(record))
                for shard in split_by_worker(split_by_node(range(index.shards)))
                for record in np.flatnonzero(index.shard_of() == shard)
            )
            yield from in_order(rows, lambda row: self._sample(split, row), threads=1, ahead=AHEAD)

    def _sample(self, split: Split, row: Row) -> dict[str, Any]:
        where = f"{split.location}: {self.part}: record {row.record} ({row.name})"
        members = split.members(self.part, row)
        decode(members, where)
        blob, _, _ = split.store.member(self.part, row, RGB)
        named = {member: bytes(data) for member, data in members.items()}
        return {"__key__": row.key, "__url__": f"{split.location}/{blob}", **named}
