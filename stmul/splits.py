"""One network for each split of a data set: which runs they are, and the mean of their tests, as papers report it.

UCF101 and HMDB51 have three splits, each with a network of its own; what is reported is the mean of their accuracies.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from configs import SettingsError
from shards.provenance import leaves
from stmul.config import Config
from stmul.errors import RunError
from stmul.results import HEADS, Measures, Results, ResultsError, measures
from stmul.runs import About, Run, runs

SCHEMA = 1
# Sections and settings that say where things are, or how a network is tested: its like may have others.
ELSEWHERE: Mapping[str, Any] = {"experiment": True, "evaluate": True, "train": {"base", "imagenet"}}


class Mean(TypedDict):
    """The mean over splits of a head's measures; parts of the clips, 0 .. 1."""

    top1: float
    top5: float
    mean_class: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OverSplits:
    """Tests of one data set's splits, each of a run of its own, in the order in which they were asked for."""

    tests: tuple[Results, ...]

    def __post_init__(self) -> None:
        first = self.tests[0]
        for other in self.tests[1:]:
            if wrong := next(_unlike(first, other), None):
                raise ResultsError(f"{first.run} and {other.run}: {wrong}; their mean would mean nothing")

    @property
    def splits(self) -> tuple[int, ...]:
        return tuple(test.split for test in self.tests)

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that every split has scores of."""
        return tuple(head for head in HEADS if all(head in test.heads for test in self.tests))

    def of(self, head: str) -> tuple[Measures, ...]:
        """The measures of one head, split by split."""
        return tuple(measures(test, head) for test in self.tests)

    def mean(self, head: str) -> Mean:
        """The mean over splits of one head's measures: of accuracies, however many clips each split has."""
        found, count = self.of(head), len(self.tests)
        return Mean(
            top1=sum(one["top1"] for one in found) / count,
            top5=sum(one["top5"] for one in found) / count,
            mean_class=sum(one["mean_class"] for one in found) / count,
        )


def numbers(text: str) -> tuple[int, ...]:
    """The splits that `1,2,3` names. Raises SettingsError where it names none, or one twice."""
    if not re.fullmatch(r"\s*[1-9][0-9]*\s*(,\s*[1-9][0-9]*\s*)*", text):
        raise SettingsError(f"--splits {text}: expected numbers of splits, such as 1,2,3")
    found = tuple(int(one) for one in text.split(","))
    if len(set(found)) < len(found):
        raise SettingsError(f"--splits {text}: expected each split once")
    return found


def runs_of(splits: Sequence[int], like: Run, folder: Path, *, named: bool) -> list[Run]:
    """For each split the newest finished run in `folder` of the data set and settings of the run `like`.

    Of its own split it is `like` itself where it was `named`. Raises RunError where there is none, with the command
    that trains it.
    """
    about = like.about()
    if about.network:
        raise RunError(
            f"{about.network}: a network that was not trained here is of one split; test one at a time, each on its"
            " shards (--set data.shards=...)"
        )
    known = [(run, found) for run in reversed(runs(folder)) if (found := _about(run)) is not None]
    chosen: dict[int, Run] = {about.split: like} if named else {}
    for split in splits:
        of_split = (run for run, found in known if found.split == split and found.done and _alike(found, about))
        if split not in chosen and (run := next(of_split, None)) is not None:
            chosen[split] = run
    if missing := [split for split in splits if split not in chosen]:
        said = "; ".join(_missing(split, like, about, known) for split in missing)
        raise RunError(f"{folder}: {said}")
    return [chosen[split] for split in splits]


def for_split(changes: Sequence[str], split: int) -> list[str]:
    """The changes of settings for one split: `{split}` in `data.shards` is its number.

    Raises SettingsError where the shards named are those of one split alone.
    """

    def told(change: str) -> str:
        if not change.startswith("data.shards="):
            return change
        if "{split}" not in change:
            raise SettingsError(
                f"--set {change}: with --splits each run is tested on the shards of its own split. Leave this out, or"
                " write {split} for the number: --set data.shards=data/ucf101/split{split}"
            )
        return change.replace("{split}", str(split))

    return [told(change) for change in changes]


def as_json(found: OverSplits, scores: Sequence[str]) -> str:
    """Measures by split and their mean; `scores` is where each split's scores lie."""
    first = found.tests[0]
    tree = {
        "schema": SCHEMA,
        **{name: getattr(first, name) for name in ("dataset", "part", "protocol", "frames", "mirror")},
        "splits": [
            {
                **{name: getattr(test, name) for name in ("split", "run", "epoch", "digest", "scored", "expected")},
                "scores": path,
                "measures": {head: measures(test, head) for head in test.head_names},
            }
            for test, path in zip(found.tests, scores, strict=True)
        ],
        "mean": {head: found.mean(head) for head in found.heads},
    }
    return json.dumps(tree, ensure_ascii=False, indent=1) + "\n"


def header(found: OverSplits) -> tuple[str, ...]:
    """The column titles of `table`."""
    places = found.tests[0].places
    return ("scores", *(f"split {split}" for split in found.splits), "mean", f"top-{places}", "mean class")


def table(found: OverSplits) -> list[tuple[str, ...]]:
    """One row of text for each head: top-1 of each split, then means over splits; percentages with one decimal."""
    rows = []
    for head in found.heads:
        mean = found.mean(head)
        parts = [*(one["top1"] for one in found.of(head)), mean["top1"], mean["top5"], mean["mean_class"]]
        rows.append((head, *(f"{100 * part:.1f} %" for part in parts)))
    return rows


def lacking(found: OverSplits) -> tuple[str, ...]:
    """The heads that some splits have no scores of, and are left out of the mean."""
    return tuple(head for head in HEADS if head not in found.heads and any(head in test.heads for test in found.tests))


def _unlike(one: Results, other: Results) -> Iterator[str]:
    for name in ("dataset", "part", "classes", "protocol", "frames", "mirror"):
        if (here := getattr(one, name)) != (there := getattr(other, name)):
            yield f"other classes, {len(here)} and {len(there)}" if name == "classes" else f"{name} {here} and {there}"
    if one.split == other.split:
        yield f"both of split {one.split}"


def _about(run: Run) -> About | None:
    with suppress(RunError):  # of another version, or damaged: not this one
        about = run.about()
        return None if about.network else about
    return None


def _learnt_from(about: About) -> Mapping[str, Any]:
    """The settings that decide what is learnt, complete also where an earlier version wrote fewer of them."""
    settings, given = dict(about.settings), dict(about.settings.get("experiment") or {})
    with suppress(ValueError):
        settings = Config.model_validate(settings).model_dump(mode="json")
    settings = {section: values for section, values in settings.items() if ELSEWHERE.get(section) is not True}
    for section, names in ELSEWHERE.items():
        if isinstance(names, set) and isinstance(settings.get(section), dict):
            settings[section] = {name: value for name, value in settings[section].items() if name not in names}
    return {**settings, "from a network": bool(given.get("pre_trained_id"))}


def _alike(one: About, other: About) -> bool:
    return (one.dataset, one.classes) == (other.dataset, other.classes) and not _differences(one, other)


def _differences(one: About, other: About) -> list[str]:
    """Where the settings of two runs differ: `train.seed 2 and 1` each."""
    here, there = dict(leaves(_learnt_from(one))), dict(leaves(_learnt_from(other)))
    keys = [key for key in {**there, **here} if here.get(key) != there.get(key)]
    return [f"{key} {here.get(key)} and {there.get(key)}" for key in keys]


def _missing(split: int, like: Run, about: About, known: Sequence[tuple[Run, About]]) -> str:
    """What there is instead of a run of `split`, and the command that trains it."""
    said = f"no finished run of {about.dataset} split {split} with the data set and settings of {like.id}"
    same = [(run, found) for run, found in known if found.dataset == about.dataset and found.split == split]
    for run, found in same:
        if _alike(found, about):
            said += f" ({run.id} is not finished)"
            break
    else:
        for run, found in same[:1]:
            unlike = _differences(found, about)[:3] or ["other classes"]
            said += f" ({run.id} and {like.id}: {', '.join(unlike)})"
    shards = re.sub(rf"(.*split){about.split}(?!\d)", rf"\g<1>{split}", about.shards)
    train = f"stmul train -c {shlex.quote(str(like.folder / 'config.yaml'))} --set data.shards={shlex.quote(shards)}"
    if shards == about.shards:
        return f"{said}; train it on its shards: {train.rpartition('=')[0]}=..."
    made = Path(about.shards) / "settings.yaml"
    if "://" in shards or Path(shards).exists() or not made.exists():
        return f"{said}; train it with: {train}"
    return f"{said}; train it with: stmul preprocess shards -c {shlex.quote(str(made))} --split {split} && {train}"
