"""What a split is made of that is made of others: which of their records, in which shards, under which labels.

All of it is decided, from manifests and indexes, before anything is written. Records of a shard stay together as far as
possible: a shard of which all is kept, under the same labels, is taken over byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs import nearest
from shards.errors import ShardError
from shards.format import MEMBERS
from shards.index import Row
from shards.manifest import ShardFile, shard_name
from shards.provenance import made_of
from shards.split import Split

KEPT_ALONE = 0.75  # of a shard's records: what is left of it stays a shard; less is gathered with what others leave


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """A shard of the new split."""

    part: str
    number: int
    source: int  # which of the recipe's splits its records are of
    rows: tuple[Row, ...]  # of the source, in order
    file: ShardFile | None  # the source's, where it is taken over as it is; else its records are packed

    @property
    def name(self) -> str:
        """Of its file."""
        return shard_name(self.part, self.number)

    @property
    def bytes(self) -> int:
        """Of its file, or of the members that are packed into it."""
        if self.file is not None:
            return self.file.size
        return sum(stop - start for row in self.rows for start, stop in map(row.span, MEMBERS))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recipe:
    """A split as it will be. `splits` must stay open until it has been written."""

    splits: tuple[Split, ...]
    dataset: str
    split: int
    classes: tuple[str, ...]  # by new label
    labels: tuple[tuple[int, ...], ...]  # of each split: the new label by the old one; -1 where none is kept
    parts: tuple[str, ...]  # in order, those without a new piece too
    pieces: tuple[Piece, ...]  # part by part, by number
    made: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # what a user should know of it

    def stays(self, source: int, row: Row) -> bool:
        """Whether a record keeps its label and the name of its class, so that its bytes stay as they are."""
        return _stays(self.splits[source], self.labels[source], self.classes, row.label)

    @property
    def records(self) -> int:
        """How many are taken over or packed."""
        return sum(len(piece.rows) for piece in self.pieces)

    def fingerprint(self) -> str:
        """The SHA-256 (hexadecimal) of all that it decides."""
        digest = hashlib.sha256()
        facts = [self.dataset, self.split, self.classes, self.labels, self.parts, self.made]
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for piece in self.pieces:
            keys = [row.key for row in piece.rows]
            digest.update(json.dumps([piece.name, piece.source, piece.file is None, keys]).encode())
        return digest.hexdigest()


def filtered(
    split: Split,
    *,
    classes: Sequence[str] = (),
    names: Collection[str] | None = None,
    without: Collection[str] = (),
    parts: Sequence[str] = (),
    keep_labels: bool = False,
) -> Recipe:
    """The records of `split` of these classes, with these names, but not those of `without`, in these parts.

    Empty `classes` and `parts` and no `names` mean all. Named classes are counted from 0, in the order that they have
    in `split`, unless `keep_labels`. Raises ShardError for a class, a name or a part that is not there, and where no
    record is left.
    """
    table, kept_parts = split.manifest.classes, tuple(split.manifest.parts)
    must_be_there(split, "class", classes, table)
    must_be_there(split, "part", parts, kept_parts)
    if parts:
        kept_parts = tuple(part for part in kept_parts if part in parts)
    rows = {part: list(split.index(part)) for part in split.manifest.parts}
    called = {row.key: row.name for of_part in rows.values() for row in of_part}
    within = None if names is None else {called.get(name, name) for name in names}
    out = {called.get(name, name) for name in without}
    must_be_there(split, "record", sorted(out | (within or set())), set(called.values()))
    chosen = tuple(name for name in table if name in set(classes)) if classes else table
    new = table if keep_labels else chosen
    labels = tuple(new.index(name) if name in chosen else -1 for name in table)

    def keep(row: Row) -> bool:
        return labels[row.label] >= 0 and (within is None or row.name in within) and row.name not in out

    pieces, left = list[Piece](), list[str]()
    for part in kept_parts:
        of_part = [
            Piece(part=part, number=number, source=0, rows=of_shard, file=file)
            for number, (of_shard, file) in enumerate(dealt(split, part, list(filter(keep, rows[part])), labels, new))
        ]
        left += [part] if of_part or not rows[part] else []
        pieces += of_part
    if not pieces:
        raise ShardError(f"{split.location}: none of its records is of these classes, names and parts: nothing to keep")
    step = {
        "did": "filter",
        "classes": list(chosen) if classes else None,
        "keep_labels": keep_labels,
        "names": _of_names(within),
        "without": _of_names(out or None),
        "parts": list(parts) or None,
    }
    gone = [part for part in kept_parts if part not in left]
    return Recipe(
        splits=(split,),
        dataset=split.manifest.dataset,
        split=split.manifest.split,
        classes=new,
        labels=(labels,),
        parts=tuple(left),
        pieces=tuple(pieces),
        made=made_of([split.manifest], step),
        notes=tuple(f"part {part} is left out: none of its records is kept" for part in gone),
    )


def dealt(
    split: Split, part: str, kept: Sequence[Row], labels: Sequence[int], classes: Sequence[str]
) -> Iterator[tuple[tuple[Row, ...], ShardFile | None]]:
    """The records that are `kept` of a part, shard by shard; and the file of a shard that stays as it is.

    What is left of a shard stays one, unless it is little: that is gathered with what others leave, and comes when
    there is as much as the largest shard has.
    """
    if not kept:
        return
    files = split.manifest.parts[part].shards if split.manifest.store == "tar" else ()
    before = np.bincount(split.index(part).shard_of())
    of_shard: dict[int, list[Row]] = {}
    for row in kept:
        of_shard.setdefault(row.shard, []).append(row)
    gathered = list[Row]()
    for number in sorted(of_shard):
        rows = of_shard[number]
        as_it_is = len(rows) == before[number] and all(_stays(split, labels, classes, row.label) for row in rows)
        if as_it_is and files and files[number].sha256:
            yield tuple(rows), files[number]
        elif len(rows) >= KEPT_ALONE * before[number]:
            yield tuple(rows), None
        else:
            gathered += rows
            while len(gathered) >= before.max():
                yield tuple(gathered[: before.max()]), None
                gathered = gathered[before.max() :]
    if gathered:
        yield tuple(gathered), None


def _stays(split: Split, labels: Sequence[int], classes: Sequence[str], label: int) -> bool:
    return labels[label] == label and classes[label] == split.manifest.classes[label]


def must_be_there(split: Split, kind: str, wanted: Sequence[str], there: Collection[str]) -> None:
    """Raises ShardError where one of the `wanted` is not `there`, with the nearest word that is."""
    missing = [name for name in wanted if name not in there]
    if missing:
        first, more = missing[0], len(missing) - 1
        also = f" (and {more} more that {'is' if more == 1 else 'are'} not there)" if more else ""
        raise ShardError(
            f"{split.location}: no {kind} {first!r} among {len(there)}{nearest(first, sorted(there))}{also}"
        )


def _of_names(names: Collection[str] | None) -> dict[str, Any] | None:
    """A list of names in short: there may be thousands."""
    if names is None:
        return None
    return {"count": len(names), "sha256": hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()}
