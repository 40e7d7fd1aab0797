"""Records that are one video, and groups of records: what must not be in two parts of a split."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shards.findings import Finding
from shards.groups import group_of
from shards.looks import Look
from shards.row import Outline, Row
from shards.split import Split

NAMED = 3  # others named beside a record


@dataclass(frozen=True, slots=True)
class Member:
    """A record and the part it is in."""

    part: str
    outline: Outline

    def __str__(self) -> str:
        return f"{self.outline.name} ({self.part})"


def twins(split: Split, members: Sequence[Member], looks: Iterable[Look]) -> Iterator[Finding]:
    """A finding for each set of records that are one video: by name, by all of their pictures, by their source file.

    Pictures are compared by the size and the CRC-32C of every frame, as the indexes have them; sources among `looks`.
    """
    seen = set[frozenset[tuple[str, int]]]()
    for why, found in (
        ("the same pictures, byte for byte, as", _same_pictures(split, members)),
        ("made from the same file as", _same_source(members, looks)),
        ("the same name as", _same_name(members)),
    ):
        for alike in found:
            one = frozenset((member.part, member.outline.record) for member in alike)
            if any(one <= other for other in seen):
                continue
            seen.add(one)
            yield _twins(why, alike)


def groups_of(members: Sequence[Member], pattern: re.Pattern[str] | None = None) -> dict[str, list[Member]]:
    """The records of each group that names tell of, in the order of the parts."""
    grouped = defaultdict[str, list[Member]](list)
    for member in members:
        if group := group_of(member.outline.name, pattern):
            grouped[group].append(member)
    return dict(grouped)


def leaks(groups: dict[str, list[Member]]) -> Iterator[Finding]:
    """A finding for each group that is in several parts, about a record of the part that has the fewest of it."""
    for group, members in groups.items():
        counts = {part: [m for m in members if m.part == part] for part in dict.fromkeys(m.part for m in members)}
        if len(counts) < 2:
            continue
        part = min(counts, key=lambda name: len(counts[name]))
        first, others = counts[part][0], [m for m in members if m.part != part]
        where = ", ".join(f"{len(counts[name])} in {name}" for name in counts)
        yield Finding(
            kind="leak",
            part=part,
            subject=first.outline.name,
            what=f"group {group}: {where}; beside it {_some(others)}",
            record=first.outline.record,
        )


def _twins(why: str, alike: Sequence[Member]) -> Finding:
    last, others = alike[-1], alike[:-1]
    labels = len({member.outline.label for member in alike})
    return Finding(
        kind="twins across" if len({member.part for member in alike}) > 1 else "twins inside",
        part=last.part,
        subject=last.outline.name,
        what=f"{why} {_some(others)}" + (f", in {labels} classes" if labels > 1 else ""),
        record=last.outline.record,
    )


def _same_pictures(split: Split, members: Sequence[Member]) -> Iterator[list[Member]]:
    candidates = defaultdict[tuple[int, ...], list[Member]](list)
    for member in members:
        one = member.outline
        candidates[one.frames, one.width, one.height, one.rgb_size, one.rgb_tables].append(member)
    for alike in candidates.values():
        while len(alike) > 1:
            rows = [split.index(member.part).row(member.outline.record) for member in alike]
            same = [_same_frames(rows[0], row) for row in rows]
            if sum(same) > 1:
                yield [member for member, is_same in zip(alike, same, strict=True) if is_same]
            alike = [member for member, is_same in zip(alike, same, strict=True) if not is_same]


def _same_frames(one: Row, other: Row) -> bool:
    sizes = [row.rgb.ends - row.rgb.begins() for row in (one, other)]
    return np.array_equal(sizes[0], sizes[1]) and np.array_equal(one.rgb.crcs, other.rgb.crcs)


def _same_source(members: Sequence[Member], looks: Iterable[Look]) -> list[list[Member]]:
    by_place = {(member.part, member.outline.record): member for member in members}
    found = defaultdict[str, list[Member]](list)
    for look in looks:
        if look.source:
            found[look.source].append(by_place[look.part, look.record])
    return [alike for alike in found.values() if len(alike) > 1]


def _same_name(members: Sequence[Member]) -> list[list[Member]]:
    found = defaultdict[str, list[Member]](list)
    for member in members:
        found[member.outline.key].append(member)
    return [alike for alike in found.values() if len(alike) > 1]


def _some(members: Sequence[Member]) -> str:
    left = len(members) - NAMED
    return ", ".join(map(str, members[:NAMED])) + (f" and {left:,} more" if left > 0 else "")
