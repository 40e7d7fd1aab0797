"""Scores of several tests fused into one, and two tests compared clip by clip; other tools' scores from a table.

N clips, K classes. Clips and classes are matched by name, so that no order of a file decides anything.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from configs import nearest
from stmul import metrics
from stmul.results import Results, ResultsError, groups_of

Scale = Literal["deviation", "softmax", "none"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """Scores to be fused: of one head of one test, or out of a table."""

    words: str  # what it is, for people
    split: str = ""  # what was tested: "ucf101 split 1, test"; empty: of a table, which does not say
    classes: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]  # (K,) by clip


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two heads on the same clips: parts of the clips, 0 .. 1."""

    clips: int
    groups: int  # of clips cut from one source
    top1: tuple[float, float]
    intervals: tuple[tuple[float, float], tuple[float, float]]  # bootstrap, 95 %
    difference: float  # the second's top-1 minus the first's
    interval: tuple[float, float]  # of the difference: paired bootstrap over groups, 95 %
    only: tuple[int, int]  # clips that the first alone hits, and the second alone
    p: float  # that so uneven a pair comes by chance: McNemar's exact test, two-sided

    @property
    def resolved(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return not self.interval[0] <= 0.0 <= self.interval[1]


def source_of(results: Results, head: str = "") -> Source:
    """The scores of a head (its main one unless named). Raises ResultsError, with the nearest head."""
    head = head or results.main
    if head not in results.heads:
        hint = nearest(head, list(results.heads))
        raise ResultsError(f"{results.run}: no scores of {head!r}{hint} (there are {', '.join(results.head_names)})")
    scores_NK = results.heads[head].astype(np.float64)
    return Source(
        words=f"{results.run}, {head}",
        split=_split_of(results),
        classes=results.classes,
        scores=dict(zip(results.names, scores_NK, strict=True)),
    )


def read_table(path: Path) -> Source:
    """Scores of another method: CSV whose first line is `name` and the classes, then a line for each clip.

    Raises ResultsError naming the line that is not so.
    """
    scores: dict[str, NDArray[np.float64]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            head = next(rows, [])
            if len(head) < 2 or head[0].strip() != "name":
                raise ResultsError(f"{path}: line 1: expected `name` and the classes, found {','.join(head)[:60]!r}")
            for row in rows:
                if len(row) != len(head):
                    where = f"{path}: line {rows.line_num}"
                    raise ResultsError(f"{where}: expected a name and {len(head) - 1} scores, found {len(row)} fields")
                if row[0] in scores:
                    raise ResultsError(f"{path}: line {rows.line_num}: a second line of clip {row[0]!r}")
                values_K = np.array(row[1:], dtype=np.float64)
                if not np.isfinite(values_K).all():
                    raise ResultsError(f"{path}: line {rows.line_num}: scores of {row[0]!r} are not finite")
                scores[row[0]] = values_K
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(f"{path}: not readable as a table of scores ({error})") from error
    except ValueError as error:
        raise ResultsError(f"{path}: line {rows.line_num}: expected numbers ({error})") from error
    return Source(words=path.name, classes=tuple(name.strip() for name in head[1:]), scores=scores)


def fuse(base: Results, sources: Sequence[Source], weights: Sequence[float], scale: Scale = "deviation") -> Results:
    """`base` with one head, `fused`: the weighted mean of the sources' scores of its clips.

    Before that each source is brought to one scale: `deviation` takes off each clip's mean and divides by the standard
    deviation over all clips, `softmax` makes probabilities, `none` leaves scores as they are. Raises ResultsError where
    a source lacks a clip or a class of `base`, or is a test of another split.
    """
    if len(weights) != len(sources) or not sources or not all(np.isfinite(weights)) or sum(weights) <= 0:
        raise ResultsError(
            f"weights {', '.join(map(str, weights))}: expected one for each of {len(sources)} sources, above 0 in sum"
        )
    for source in sources:
        if source.split not in ("", _split_of(base)):
            raise ResultsError(
                f"{source.words}: scores of {source.split}, and {base.run} was tested on {_split_of(base)}; tests are"
                " fused clip by clip: test both on one split"
            )
    total_NK = np.zeros((base.scored, len(base.classes)))
    for source, weight in zip(sources, weights, strict=True):
        total_NK += weight / sum(weights) * _scaled(_matched(source, base), scale)
    run = " + ".join(source.words for source in sources)
    return replace(base, run=run, epoch=0, protocol=f"fused, {scale}", heads={"fused": total_NK.astype(np.float32)})


def compare(one: Results, other: Results, heads: tuple[str, str] = ("", "")) -> Comparison:
    """A head of each (their main ones unless named) on the same clips. Raises ResultsError where clips differ."""
    if _split_of(one) != _split_of(other):
        raise ResultsError(
            f"{one.run} was tested on {_split_of(one)}, {other.run} on {_split_of(other)}; tests are compared clip by"
            " clip: test both on one split"
        )
    if one.classes != other.classes or set(one.names) != set(other.names):
        shared = len(set(one.names) & set(other.names))
        raise ResultsError(
            f"{one.run} and {other.run}: {one.scored} and {other.scored} clips, {shared} of them the same, of"
            f" {len(one.classes)} and {len(other.classes)} classes; expected the same ones: test both on one split"
        )
    labels = dict(zip(other.names, other.labels.tolist(), strict=True))
    for name, label in zip(one.names, one.labels.tolist(), strict=True):
        if labels[name] != label:
            raise ResultsError(
                f"clip {name!r} is {one.classes[label]!r} in {one.run}, and {one.classes[labels[name]]!r} in"
                f" {other.run}: these are not the same clips; test both on the same shards"
            )
    sources = (source_of(one, heads[0]), source_of(other, heads[1]))
    first_N, second_N = (
        (metrics.ranks(_matched(source, one), one.labels) == 0).astype(np.float64) for source in sources
    )
    groups_N = groups_of(one.names)
    only = int(np.sum(first_N > second_N)), int(np.sum(second_N > first_N))
    return Comparison(
        clips=one.scored,
        groups=int(groups_N.max()) + 1,
        top1=(float(first_N.mean()), float(second_N.mean())),
        intervals=(metrics.bootstrap(first_N, groups_N), metrics.bootstrap(second_N, groups_N)),
        difference=float((second_N - first_N).mean()),
        interval=metrics.bootstrap(second_N - first_N, groups_N),
        only=only,
        p=mcnemar(*only),
    )


def _split_of(results: Results) -> str:
    return f"{results.dataset} split {results.split}, {results.part}"


def mcnemar(only_one: int, only_other: int) -> float:
    """How likely so uneven a split of the clips that one alone hits is, if either were as likely; two-sided, exact.

    Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947.
    """
    count = only_one + only_other
    tail: int = sum(comb(count, hits) for hits in range(min(only_one, only_other) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**count)))


def _matched(source: Source, base: Results) -> NDArray[np.float64]:
    """The source's scores (N, K) of the clips and classes of `base`, in their order."""
    column = {name: number for number, name in enumerate(source.classes)}
    if missing := [name for name in base.classes if name not in column]:
        raise ResultsError(
            f"{source.words}: no scores of class {missing[0]!r}{nearest(missing[0], source.classes)};"
            f" {len(missing)} of {len(base.classes)} classes are missing"
        )
    if absent := [name for name in base.names if name not in source.scores]:
        hint = nearest(absent[0], list(source.scores))
        raise ResultsError(
            f"{source.words}: no scores of clip {absent[0]!r}{hint}; {len(absent)} of {base.scored} clips are missing"
        )
    columns = [column[name] for name in base.classes]
    return np.stack([source.scores[name][columns] for name in base.names])


def _scaled(scores_NK: NDArray[np.float64], scale: Scale) -> NDArray[np.float64]:
    if scale == "none":
        return scores_NK
    if scale == "softmax":
        powers_NK = np.exp(scores_NK - scores_NK.max(axis=1, keepdims=True))
        return np.asarray(powers_NK / powers_NK.sum(axis=1, keepdims=True))
    centred_NK = scores_NK - scores_NK.mean(axis=1, keepdims=True)
    return np.asarray(centred_NK / (centred_NK.std() or 1.0))
