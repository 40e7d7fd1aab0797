"""Findings about a split: their kinds, how grave each is, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

STACK = 11  # frames that a stack of 10 flow pairs and the frame in its middle need
INSTANTS = 35  # frames that have 25 different instants with a whole stack each
CLIPPED, NEAR = 0.05, 0.01  # share of a record's flow values at the bound: much, and some
REPEATED = 0.1  # share of frames that repeat the one before


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of finding: how grave it is, what it is called, and what to do about it."""

    level: Level
    title: str
    advice: str  # SPLIT stands for where the shards are
    pictured: bool = False  # whether a picture of the record shows it


KINDS: Mapping[str, Kind] = {
    "twins across": Kind(
        level="error",
        title="the same video in two parts",
        advice="What is trained on is tested on: take one of them off the lists, and build again.",
        pictured=True,
    ),
    "leak": Kind(
        level="error",
        title="a group in two parts",
        advice="Clips of one recording resemble each other: move the whole group to one part in the lists, and build"
        " again. Groups are read off the names; --groups says another way.",
    ),
    "damage": Kind(
        level="error",
        title="damaged records",
        advice="Find all damage with: stmul shards verify SPLIT; then mend it from a copy (--repair), or build again.",
    ),
    "twins inside": Kind(
        level="warning",
        title="the same video twice in a part",
        advice="It counts twice; take all but one off the lists, above all where their classes differ.",
        pictured=True,
    ),
    "class": Kind(
        level="warning",
        title="classes without records in a part",
        advice="Add videos of the class to the part, or take the class off the lists.",
    ),
    "balance": Kind(
        level="warning",
        title="unbalanced classes",
        advice="Accuracy says little about small classes: look at mean class accuracy, or even out the lists.",
    ),
    "short": Kind(
        level="warning",
        title=f"shorter than a stack ({STACK} frames)",
        advice="Their first and last flow is repeated to fill the stack; take them off the lists, or cut longer clips.",
    ),
    "black": Kind(
        level="warning",
        title="black videos",
        advice="Look at the source (stmul preprocess inspect); replace it, or take it off the lists.",
        pictured=True,
    ),
    "one colour": Kind(
        level="warning",
        title="videos of one colour",
        advice="Look at the source (stmul preprocess inspect); replace it, or take it off the lists.",
        pictured=True,
    ),
    "still": Kind(
        level="warning",
        title="videos in which nothing moves",
        advice="Look at the source (stmul preprocess inspect): a picture, or a decoder that stood still.",
        pictured=True,
    ),
    "no flow": Kind(
        level="warning",
        title="pictures that change, but no flow",
        advice="The flow belongs to another video, or was lost: build the record again.",
        pictured=True,
    ),
    "clipped": Kind(
        level="warning",
        title=f"flow at the bound ({CLIPPED:.0%} of the values or more)",
        advice="Motion beyond 20 px is stored as 20 px. Look at the record (stmul shards show SPLIT --record NAME"
        " --sheet out.png): fast cuts and camera sweeps do that; frames left out do, too. Else store smaller frames"
        " (preprocess.rgb.short_side).",
        pictured=True,
    ),
    "clipped part": Kind(
        level="warning",
        title="flow at the bound in a whole part",
        advice="Flow in another unit or with another bound was taken over, or frames are too large or too far apart:"
        " compare a few records with stmul preprocess inspect.",
    ),
    "near": Kind(
        level="note",
        title=f"flow partly at the bound ({NEAR:.0%} to {CLIPPED:.0%} of the values)",
        advice="Fast motion is stored as 20 px there; nothing need be done where it is few videos.",
        pictured=True,
    ),
    "repeats": Kind(
        level="note",
        title=f"repeated frames ({REPEATED:.0%} or more)",
        advice="The source was stretched to a higher frame rate: flow is zero at each repetition. Take a source with"
        " its own rate if there is one.",
        pictured=True,
    ),
    "few instants": Kind(
        level="note",
        title=f"fewer than 25 instants ({STACK} to {INSTANTS - 1} frames)",
        advice="The test on 25 instants scores some of them several times; nothing need be done.",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about a record, or about a class of a part."""

    kind: str  # of KINDS
    part: str
    subject: str  # a video's name, or a class
    what: str
    record: int = -1  # its number in the part; -1: of none


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PartFacts:
    """What one part is like."""

    name: str
    frames_N: NDArray[np.int64]  # of each record
    counts_K: NDArray[np.int64]  # records of each class
    bounds_M: NDArray[np.float64]  # share of flow values at the bound, of each record of the even sample that has flow


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lint:
    """What there is to say about a split."""

    location: str
    dataset: str
    split: int
    digest: str
    classes: tuple[str, ...]
    parts: tuple[PartFacts, ...]
    findings: tuple[Finding, ...]  # in the order of KINDS, then of the parts
    looked: int  # records whose frames were looked at
    groups: int  # that names tell of; 0: leaks between clips of one recording could not be looked for

    @property
    def records(self) -> int:
        """How many records."""
        return sum(len(part.frames_N) for part in self.parts)

    def count(self, level: Level) -> int:
        """How many findings are as grave as that."""
        return sum(KINDS[finding.kind].level == level for finding in self.findings)

    def by_kind(self) -> list[tuple[Kind, list[Finding]]]:
        """The kinds that were found, the gravest first, with their findings."""
        return [(about, found) for kind, about in KINDS.items() if (found := self.of(kind))]

    def of(self, kind: str) -> list[Finding]:
        """The findings of a kind."""
        return [finding for finding in self.findings if finding.kind == kind]
