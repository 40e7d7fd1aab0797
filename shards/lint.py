"""What is worth knowing about a split before weeks of training on it: leaks, duplicates, balance, lengths, odd videos.

What the indexes tell is told of every record; frames are looked at in a sample (`looks`). All of it is a function of
the split: a second time it says the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from shards.findings import CLIPPED, INSTANTS, KINDS, NEAR, REPEATED, STACK, Finding, Lint, PartFacts
from shards.looks import Look, look, to_look_at
from shards.row import Outline
from shards.split import Split
from shards.twins import Member, groups_of, leaks, twins

SAMPLE = 2000  # records whose frames are looked at
UNBALANCED = 10  # records of the largest class for each of the smallest, in a part, from which it is said
DARK = 32  # level that no picture of a black video exceeds: limited range has black at 16
FLAT = 2.0  # standard deviation of levels under which a frame is one colour
SAME, DIFFERENT = 0.5, 4.0  # levels between frames seen: as good as none, and surely some
STILL = 0.999  # share of flow values without motion from which nothing moves
CLIPPED_PART = 0.01  # share of all flow values of a part


def lint(
    split: Split,
    *,
    parts: Sequence[str] = (),
    sample: int = SAMPLE,
    groups: re.Pattern[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Lint:
    """What there is to say about `parts` (none: all) of `split`; the frames of at most `sample` records are looked at.

    `groups` finds a video's group in its name. Raises ShardError where an index cannot be read.
    """
    names = list(parts) or sorted(split.manifest.parts, key="train".__ne__)
    classes, indexes = split.manifest.classes, {name: split.index(name) for name in names}
    outlines = {name: [index.outline(record) for record in range(len(index))] for name, index in indexes.items()}
    members = [Member(name, outline) for name in outlines for outline in outlines[name]]
    looks = list(look(split, _wanted(outlines, sample), progress))
    grouped = groups_of(members, groups)
    facts = tuple(_facts(name, outlines[name], looks, len(classes)) for name in outlines)
    found = [
        *twins(split, members, looks),
        *leaks(grouped),
        *_classes(facts, classes),
        *_lengths(members),
        *_clipped_parts(facts),
        *(finding for one in looks for finding in _seen(one)),
    ]
    kinds = [*KINDS]
    return Lint(
        location=split.location,
        dataset=split.manifest.dataset,
        split=split.manifest.split,
        digest=split.manifest.digest,
        classes=classes,
        parts=facts,
        findings=tuple(sorted(found, key=lambda finding: kinds.index(finding.kind))),
        looked=len(looks),
        groups=len(grouped),
    )


def _wanted(outlines: Mapping[str, Sequence[Outline]], sample: int) -> list[tuple[str, int, bool]]:
    """The records to look at: of each part its share of `sample`."""
    total = sum(map(len, outlines.values()))
    wanted = []
    for part, of_part in outlines.items():
        even, suspect = to_look_at(of_part, -(-sample * len(of_part) // max(total, 1)))
        wanted += sorted([*((part, record, True) for record in even), *((part, record, False) for record in suspect)])
    return wanted


def _facts(name: str, outlines: Sequence[Outline], looks: Sequence[Look], classes: int) -> PartFacts:
    labels = np.array([outline.label for outline in outlines], dtype=np.int64)
    return PartFacts(
        name=name,
        frames_N=np.array([outline.frames for outline in outlines], dtype=np.int64),
        counts_K=np.bincount(labels, minlength=classes),
        bounds_M=np.array([one.bound for one in looks if one.part == name and one.even and one.pairs], np.float64),
    )


def _classes(facts: Sequence[PartFacts], classes: Sequence[str]) -> Iterator[Finding]:
    for part in facts:
        for label in np.flatnonzero(part.counts_K == 0).tolist():
            there = ", ".join(f"{other.counts_K[label]:,} in {other.name}" for other in facts if other is not part)
            what = "no record" + (f"; {there}" if there else "")
            yield Finding(kind="class", part=part.name, subject=classes[label], what=what)
        if not part.counts_K.any():
            continue
        counts = np.where(part.counts_K > 0, part.counts_K, part.counts_K.max())
        few, many = int(counts.argmin()), int(part.counts_K.argmax())
        if counts[few] * UNBALANCED <= counts[many]:
            what = f"records: {counts[few]:,}, but {counts[many]:,} of {classes[many]}"
            yield Finding(kind="balance", part=part.name, subject=classes[few], what=what)


def _lengths(members: Sequence[Member]) -> Iterator[Finding]:
    for member in members:
        frames = member.outline.frames
        if frames < INSTANTS:
            yield Finding(
                kind="short" if frames < STACK else "few instants",
                part=member.part,
                subject=member.outline.name,
                what=f"{frames} frame{'s' if frames > 1 else ''}",
                record=member.outline.record,
            )


def _clipped_parts(facts: Sequence[PartFacts]) -> Iterator[Finding]:
    for part in facts:
        if len(part.bounds_M) and (share := float(part.bounds_M.mean())) >= CLIPPED_PART:
            what = f"{share:.1%} of the flow values of {len(part.bounds_M):,} records are at the bound"
            yield Finding(kind="clipped part", part=part.name, subject="all records", what=what)


def _seen(one: Look) -> Iterator[Finding]:
    """What is to be said of what a look showed."""

    def finding(kind: str, what: str) -> Finding:
        return Finding(kind=kind, part=one.part, subject=one.name, what=what, record=one.record)

    if one.damage:
        yield finding("damage", one.damage)
        return
    seen = f"in {one.seen} of {one.frames} frames"
    still = one.pairs and one.still >= STILL
    if one.brightest <= DARK:
        yield finding("black", f"no level above {one.brightest:.0f} {seen}")
    elif one.spread <= FLAT:
        yield finding("one colour", f"levels within a frame vary by {one.spread:.1f} {seen}")
    elif one.frames > 1 and (one.repeats == one.frames - 1 or (still and one.apart <= SAME)):
        repeated = "all frames are byte for byte the same" if one.repeats == one.frames - 1 else "nothing moves"
        yield finding("still", f"{repeated}, levels change by {one.apart:.1f} {seen}")
    elif still and one.apart >= DIFFERENT:
        yield finding("no flow", f"levels change by {one.apart:.1f} {seen}, but {one.still:.1%} of the flow is zero")
    elif one.repeats >= REPEATED * one.frames:
        yield finding("repeats", f"{one.repeats} of {one.frames} frames are byte for byte the one before")
    if one.bound >= NEAR:
        what = f"{one.bound:.1%} of the flow values in {one.pairs} pairs seen are at the bound"
        yield finding("clipped" if one.bound >= CLIPPED else "near", what)
