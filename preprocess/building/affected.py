"""What a build will do to each record, and why, said before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from preprocess.building.former import Former, former_records, unchanged
from preprocess.building.plan import PlannedShard
from preprocess.building.standing import differences
from preprocess.sources.disk import some
from preprocess.sources.listing import Dataset, Video
from shards.format import key_of
from shards.manifest import Manifest

NEW = "no record yet"
ANOTHER = "another file"
FAILED = "failed before"
NAMED = 5  # videos; of more, for one and the same reason, the reason alone is said


@dataclass(frozen=True, kw_only=True, slots=True)
class Affected:
    """What will become of the records of a split."""

    kept: int = 0  # finished by an earlier run of this build
    taken_over: int = 0  # as they are, from another split or from this one's former shards
    relabelled: int = 0  # likewise, with another label
    packed: int = 0  # from frames and flow that were extracted before
    made: Mapping[str, str] = field(default_factory=dict)  # name of the video: why
    shards: int = 0  # planned
    standing: int = 0  # of these, how many stand record for record in another split: their files are shared

    @property
    def records(self) -> int:
        """How many there are."""
        return self.kept + self.taken_over + self.relabelled + self.packed + len(self.made)

    @property
    def share_made(self) -> float:
        """Which part of the records are made, 0 to 1."""
        return (len(self.made) + self.packed) / max(self.records, 1)


def affected(
    dataset: Dataset,
    made: Mapping[str, Any],
    shards: Sequence[PlannedShard],
    splits: Mapping[str, Manifest],
    *,
    where: str = "",
    finished: Callable[[Video], bool] = lambda _: False,
    failed: Collection[str] = (),
) -> Affected:
    """What a build of these shards of `dataset` will do whose bytes `made` decides, as `standing.made_of` has it.

    `splits` are those of the data set that stand, by location, the one at `where` first, which is built; `finished`
    says whether a video's record waits from an earlier run; `failed` names videos that had none. Files are told apart
    by their size, and by their bytes where they are newer than the record; no other is read.
    """
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    alike = [location for location, manifest in splits.items() if manifest.made.get("record") == made["record"]]
    former = former_records(alike)
    keys = {(shard.part, key) for shard in shards for key in shard.keys}
    videos = [video for part in dataset.parts for video in dataset.parts[part] if (part, key_of(video.name)) in keys]
    waiting = [video for video in videos if video.flow_path is None and not finished(video)]
    pairs = [(video, one) for video in waiting for one in former.of.get(key_of(video.name), ())]
    fitting: dict[str, Former] = {}
    for (video, one), same in zip(pairs, unchanged(pairs), strict=True):
        if same:
            fitting.setdefault(video.name, one)  # the first is the one that the build takes
    otherwise, open_names = _otherwise(made, splits, alike), {video.name for video in waiting}
    as_they_are: set[str] = set()
    for video in videos:
        if video.flow_path is not None:
            counts["packed"] += 1
        elif video.name not in open_names:
            counts["kept"] += 1
        elif (found := fitting.get(video.name)) is None:
            known = key_of(video.name) in former.of
            reasons[video.name] = ANOTHER if known else FAILED if video.name in failed else otherwise
        elif (found.label, found.class_name) == (video.label, video.class_name):
            counts["taken_over"] += 1
            as_they_are.add(key_of(video.name))
        else:
            counts["relabelled"] += 1
    elsewhere = {keys for keys, locations in former.shards.items() if set(locations) - {where}}
    standing = sum(shard.keys in elsewhere and as_they_are.issuperset(shard.keys) for shard in shards)
    return Affected(made=reasons, shards=len(shards), standing=standing, **counts)


def in_words(what: Affected, said_before: str = "") -> str:
    """It as one reads it: `149 records are taken over, 1 is made: v_x (another file)`; no reason is said twice."""
    said = [
        (what.kept, "kept from an earlier run"),
        (what.taken_over, "taken over"),
        (what.relabelled, "taken over with another label"),
        (what.packed, "packed from extracted frames"),
        (len(what.made), "made"),
    ]
    said = [(number, how) for number, how in said if number]
    if len(said) == 1 and what.records > 1:
        head = f"all {what.records:,} records are {said[0][1]}"
    else:
        head = ", ".join(_clause(number, how, first=not place) for place, (number, how) in enumerate(said))
    names_by_reason: dict[str, list[str]] = {}
    for name, why in what.made.items():
        names_by_reason.setdefault(why, []).append(name)
    if len(names_by_reason) == 1 and len(what.made) > NAMED:
        (why,) = names_by_reason
        return head if why in said_before else f"{head}: {why}"
    named = "; ".join(f"{some(names)} ({why})" for why, names in names_by_reason.items())
    return f"{head}: {named}" if named else head


def _clause(number: int, how: str, *, first: bool) -> str:
    noun = (" record" if number == 1 else " records") if first else ""
    return f"{number:,}{noun} {'is' if number == 1 else 'are'} {how}"


def _otherwise(made: Mapping[str, Any], splits: Mapping[str, Manifest], alike: Collection[str]) -> str:
    """Why a video without a former record is made: no split has it, or those that have were made in another way."""
    if alike or not splits:
        return NEW
    before = next(iter(splits.values())).made.get("record")
    return "; ".join(differences({"record": before}, {"record": made["record"]}) if before else []) or NEW
