"""Which training clips are held out to validate: whole groups of videos that belong together, some of every class.

A pure function of the seed and the videos' names; clips of the test part have no say in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.draws import key_of
from shards.groups import group_of
from shards.split import Split
from stmul.config import Train
from stmul.errors import TrainingError


def held_out(names: Sequence[str], labels: Sequence[int], *, part: float, seed: int) -> NDArray[np.int64]:
    """The records, ascending, whose groups are held out: `part` of each class's groups, rounded, but at least one.

    Groups are drawn class by class. One is not taken where a class would lose its last: a class of a single group is
    trained on, and not validated. A video whose name tells no group is one of its own.
    """
    groups = [group_of(name) or f"/{name}" for name in names]  # no name has a slash
    classes: dict[str, set[int]] = {}
    for group, label in zip(groups, labels, strict=True):
        classes.setdefault(group, set()).add(label)
    left = Counter(label for of_group in classes.values() for label in of_group)
    wanted = {label: max(1, round(part * count)) for label, count in left.items()} if part else {}
    taken: set[str] = set()
    for label in sorted(wanted):
        own = sorted(
            (group for group, of_group in classes.items() if label in of_group),
            key=lambda group: (key_of(seed, "hold out", group), group),
        )
        missing = wanted[label] - sum(group in taken for group in own)
        for group in own:
            if missing > 0 and group not in taken and all(left[one] > 1 for one in classes[group]):
                taken.add(group)
                left.subtract(classes[group])
                missing -= 1
    return np.array([number for number, group in enumerate(groups) if group in taken], dtype=np.int64)


def divided(split: Split, settings: Train) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """The training part's records that are trained on (None: all), and those held out, ascending.

    Raises TrainingError where something is to be held out and every class has a single group.
    """
    if not settings.hold_out:
        return None, np.zeros(0, dtype=np.int64)
    index = split.index("train")
    outlines = [index.outline(record) for record in range(len(index))]
    names, labels = [one.name for one in outlines], [one.label for one in outlines]
    held = held_out(names, labels, part=settings.hold_out, seed=settings.seed)
    if not len(held):
        raise TrainingError(
            f"{split.location}: train.hold_out is {settings.hold_out:g}, but no class has two groups of videos, one to"
            f" train on and one to hold out. Train without: --set train.hold_out=0"
        )
    return np.setdiff1d(np.arange(len(index)), held), held
