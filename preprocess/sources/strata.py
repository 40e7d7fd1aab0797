"""Which videos go together through all splits: those that every split's lists have in the same part.

UCF101 has four such strata: groups 1-7, 8-14 and 15-21 are tested in turn, 22-25 never. A shard filled from one of them
is the same file in each split, so one file can serve all (preprocess/building/plan.py, preprocess/building/links.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from preprocess.errors import DatasetError
from preprocess.sources.disk import folded
from preprocess.sources.listing import Lists, checked

SPLITS = (1, 2, 3)
UNUSED = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Strata:
    """The stratum of each video, and what the user should know."""

    of: Mapping[str, str] = field(default_factory=dict)  # video: "train/test/train"; empty: all are one stratum
    notes: tuple[str, ...] = ()


def strata_of(lists: Lists, split: int, others: Callable[[int], Lists | None]) -> Strata:
    """The strata of the videos in train or test of `lists`, which are those of `split`.

    `others` reads the lists of another split; None: there are none. Lists that are broken are noted, and count as none,
    so the stratum of a video is the same whichever split is built.
    """
    parts, notes = {split: _parts(lists)}, []
    missing = []
    for other in SPLITS:
        if other == split:
            continue
        try:
            if (found := others(other)) is None:
                missing.append(str(other))
            else:
                parts[other] = _parts(checked(found))
        except DatasetError as error:
            notes.append(
                f"the lists of split {other} are broken, so it will share no shard with split {split}: {error}"
            )
    if missing:
        notes.append(f"no lists of split {' and '.join(missing)}: no shard is laid out to be shared with it")
    if len(parts) == 1:
        return Strata(notes=tuple(notes))
    of = {
        entry.name: "/".join(parts[number].get(folded(entry.name), "") or UNUSED for number in sorted(parts))
        for entry in lists.entries
        if entry.part
    }
    return Strata(of=of, notes=tuple(notes))


def _parts(lists: Lists) -> dict[str, str]:
    return {folded(entry.name): entry.part for entry in lists.entries}
