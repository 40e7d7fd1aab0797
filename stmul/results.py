"""What a test leaves behind: the scores of every clip under every head, in one JSON file that is whole or absent.

N clips, K classes. Everything that a table or a report says is computed from here; the file repeats the measures for
people and other tools, and reading it goes back to the scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from shards.groups import group_of
from shards.whole import whole
from stmul import metrics
from stmul.errors import StmulError

SCHEMA = 1
HEADS: Mapping[str, str] = {  # in the order of every table and plot
    "appearance alone": "appearance stream, trained alone",
    "motion alone": "motion stream, trained alone",
    "late fusion": "mean of the two trained alone",
    "appearance": "appearance head of the joint network",
    "motion": "motion head of the joint network",
    "joint": "mean of the joint network's two heads",
    "fused": "weighted mean of several tests' scores",
}
# The first that is there is what a run is about.
MAIN = ("fused", "joint", "late fusion", "motion alone", "appearance alone")


class ResultsError(StmulError):
    """Results that contradict themselves, or a file that does not hold results."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Results:
    """The scores of one test of one run. Raises ResultsError where its parts do not fit together."""

    run: str  # id
    epoch: int  # of the joint network, or of the stream where there is only one
    dataset: str
    split: int
    part: str  # "test", "train"
    digest: str  # of the part's records
    protocol: str  # "dense": whole frames; "centre": one crop of each
    frames: int  # instants scored of each clip
    mirror: bool  # mirror images scored too
    expected: int  # clips the part has; fewer scored means that some could not be read
    classes: tuple[str, ...]  # (K,), by label
    names: tuple[str, ...]  # (N,), of the clips, in the order of their records
    labels: NDArray[np.int32]  # (N,), 0 .. K-1
    heads: Mapping[str, NDArray[np.float32]]  # scores (N, K), by a name of HEADS

    def __post_init__(self) -> None:
        if wrong := next(_contradictions(self), None):
            raise ResultsError(f"results of {self.run or 'a run'}: {wrong}")

    @property
    def scored(self) -> int:
        """How many clips were scored, N."""
        return len(self.names)

    @property
    def head_names(self) -> tuple[str, ...]:
        """The heads there are, in the order of HEADS."""
        return tuple(name for name in HEADS if name in self.heads)

    @property
    def main(self) -> str:
        """The head that the run is about: joint if there is one, else what comes closest."""
        return next(name for name in (*MAIN, *self.head_names) if name in self.heads)

    @property
    def groups(self) -> int:
        """How many recordings the clips were cut from, as their names tell."""
        return int(groups_of(self.names).max()) + 1

    @property
    def places(self) -> int:
        """How many guesses "top-5" allows: fewer with fewer than five classes."""
        return min(5, len(self.classes))


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryRow:
    """One epoch of a training, as logged; where the epoch was continued, times are of its last session."""

    stage: str  # "appearance", "motion", "joint"
    epoch: int  # from 1
    step: int  # updates made in the stage by then
    loss: float  # mean over the epoch's clips
    accuracy: float  # top-1 of the training clips, 0 .. 1
    lr: float  # at the epoch's end
    clips_per_second: float
    data_wait: float  # part of the time spent waiting for clips, 0 .. 1
    seconds: float
    losses: Mapping[str, float] = field(default_factory=dict)  # of each head, where there are two
    accuracies: Mapping[str, float] = field(default_factory=dict)  # of each head on its own
    memory: float = 0.0  # GiB of a GPU, at most; 0 without one
    validation: Validation | None = None  # where clips were held out, and scored after this epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """How a training does on the groups of clips that are held out of it."""

    loss: float  # mean over the clips
    accuracy: float  # top-1, 0 .. 1
    clips: int


class Measures(TypedDict):
    """How good a head is; parts of the clips, 0 .. 1."""

    top1: float
    top5: float  # min(5, K) guesses
    mean_class: float
    interval: tuple[float, float]  # Wilson, 95 %, of top1, as if clips were drawn one by one
    groups_interval: tuple[float, float]  # bootstrap, 95 %, of top1, over the recordings that clips were cut from


def measures(results: Results, head: str) -> Measures:
    """The measures of one head."""
    scores_NK, labels_N = results.heads[head], results.labels
    hits_N = metrics.ranks(scores_NK, labels_N) == 0
    hits = int(np.count_nonzero(hits_N))
    return Measures(
        top1=hits / results.scored,
        top5=metrics.top(scores_NK, labels_N, results.places),
        mean_class=metrics.mean_class_accuracy(scores_NK, labels_N),
        interval=metrics.wilson_interval(hits, results.scored),
        groups_interval=metrics.bootstrap(hits_N.astype(np.float64), groups_of(results.names)),
    )


def groups_of(names: Sequence[str]) -> NDArray[np.int64]:
    """Which recording each clip was cut from, (N,) numbers from 0, as its name tells; else its own."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(group_of(name) or name, len(numbers)) for name in names], dtype=np.int64)


def table_header(results: Results) -> tuple[str, ...]:
    """The column titles of `table`."""
    intervals = ("by clips", "by groups") if results.groups < results.scored else ("95 % interval",)
    return ("scores", "top-1", *intervals, f"top-{results.places}", "mean class")


def table(results: Results) -> list[tuple[str, ...]]:
    """One row of text for each head, for a terminal; percentages with one decimal.

    Where clips share recordings, an interval over these stands beside that over clips: it is the one to believe.
    """
    grouped = results.groups < results.scored
    return [_row(head, measures(results, head), grouped) for head in results.head_names]


def table_notes(results: Results) -> str:
    """What the table leaves to be said: the accuracy of chance, and what its intervals are."""
    chance = f"chance {100 / len(results.classes):.1f} %"
    if results.groups == results.scored:
        return chance
    return f"{chance}; 95 % of top-1: Wilson's by clips, bootstrap by {results.groups} groups (recordings)"


def _row(head: str, found: Measures, grouped: bool) -> tuple[str, ...]:
    intervals = [found["interval"], found["groups_interval"]] if grouped else [found["interval"]]
    dash = "\N{EN DASH}" if grouped else " to "
    told = (f"{100 * low:.1f}{dash}{100 * high:.1f}" for low, high in intervals)
    return (head, _percent(found["top1"]), *told, _percent(found["top5"]), _percent(found["mean_class"]))


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def write_results(path: Path, results: Results) -> None:
    """Writes `path`, whole or absent: JSON, a clip's scores on a line, numbers as short as reads back equal."""
    with whole(path) as file:
        file.write(_text(results).encode())


def read_results(path: Path) -> Results:
    """The results in `path`, equal to those written to the last bit.

    Raises ResultsError where the file is missing, cut, of another schema, or contradicts itself.
    """
    again = "; test the network again with: stmul test"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such results; make them with: stmul test") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: not readable as results ({error}){again}") from error
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        found = tree.get("schema") if isinstance(tree, dict) else type(tree).__name__
        raise ResultsError(f"{path}: expected results of schema {SCHEMA}, found {found!r}{again}")
    try:
        return _parsed(tree)
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}{again}") from None


KINDS: Mapping[str, tuple[type, str]] = {
    **dict.fromkeys(("run", "dataset", "part", "digest", "protocol"), (str, "text")),
    **dict.fromkeys(("epoch", "split", "frames", "expected"), (int, "a whole number")),
    **dict.fromkeys(("classes", "names", "labels"), (list, "a list")),
    "mirror": (bool, "true or false"),
    "heads": (dict, "scores by head"),
}


def _contradictions(results: Results) -> Iterator[str]:
    """What does not fit together, worst first."""
    clips, classes = len(results.names), len(results.classes)
    if not clips or not classes:
        yield f"expected at least one clip and one class, found {clips} and {classes}"
    if results.labels.shape != (clips,) or results.labels.dtype != np.int32:
        yield f"labels: expected {clips} of int32, found {list(results.labels.shape)} of {results.labels.dtype}"
    if results.labels.min() < 0 or results.labels.max() >= classes:
        yield f"labels: expected 0 .. {classes - 1}, found {results.labels.min()} .. {results.labels.max()}"
    if len(set(results.names)) != clips:
        yield "names: a clip is there twice"
    if len(set(results.classes)) != classes:
        yield "classes: a class is there twice"
    if clips > results.expected:
        yield f"{clips} clips were scored of {results.expected} that there are"
    if not results.heads or set(results.heads) - set(HEADS):
        yield f"heads: expected some of {', '.join(HEADS)}; found {', '.join(results.heads) or 'none'}"
    for head, scores_NK in results.heads.items():
        if scores_NK.shape != (clips, classes) or scores_NK.dtype != np.float32:
            found = f"{list(scores_NK.shape)} of {scores_NK.dtype}"
            yield f"scores of {head}: expected {[clips, classes]} of float32, found {found}"
        elif not np.isfinite(scores_NK).all():
            clip = results.names[int(np.argmin(np.isfinite(scores_NK).all(axis=1)))]
            yield f"scores of {head}: not finite at clip {clip!r}; the training diverged: try a lower learning rate"


def _text(results: Results) -> str:
    tree: dict[str, Any] = {"schema": SCHEMA, **{one.name: getattr(results, one.name) for one in fields(Results)}}
    heads = tree.pop("heads")
    tree = {**tree, "scored": results.scored, "labels": results.labels.tolist()}
    lines = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in tree.items()]
    described = [f"{json.dumps(head)}: {json.dumps(_described(results, head))}" for head in results.head_names]
    tables = [f"{json.dumps(head)}: {_block('[', _rows(heads[head]), ']')}" for head in results.head_names]
    lines += [f'"measures": {_block("{", described, "}")}', f'"heads": {_block("{", tables, "}")}']
    return _block("{", lines, "}") + "\n"


def _block(opening: str, lines: list[str], closing: str) -> str:
    return opening + "\n" + ",\n".join(lines) + "\n" + closing


def _described(results: Results, head: str) -> dict[str, Any]:
    """The measures of a head with what each class got; null for a class without clips."""
    scores_NK, labels_N = results.heads[head], results.labels
    by_class = [None if np.isnan(part) else float(part) for part in metrics.class_accuracies(scores_NK, labels_N)]
    confusion = metrics.confusion_matrix(scores_NK, labels_N).tolist()
    return {**measures(results, head), "class_accuracies": by_class, "confusion": confusion}


def _rows(scores_NK: NDArray[np.float32]) -> list[str]:
    """Each row as JSON; numpy prints a float32 as the shortest decimal that no other float32 is closer to."""
    return [f"[{', '.join(row)}]" for row in scores_NK.astype(np.str_).tolist()]


def _parsed(tree: Mapping[str, Any]) -> Results:
    """The results in a tree read from JSON. Raises ResultsError naming the first key that is not what it should be."""
    if strange := sorted(tree.keys() - KINDS.keys() - {"schema", "scored", "measures"}):
        raise ResultsError(f"{strange[0]}: no such key in results of schema {SCHEMA}")
    for key, (kind, words) in KINDS.items():
        if key not in tree:
            raise ResultsError(f"{key}: missing, expected {words}")
        if not isinstance(tree[key], kind) or (kind is int and isinstance(tree[key], bool)):
            raise ResultsError(f"{key}: expected {words}, found {type(tree[key]).__name__}")
    values = {key: tree[key] for key in KINDS}
    for key in ("classes", "names"):
        if not all(isinstance(name, str) for name in tree[key]):
            raise ResultsError(f"{key}: expected a list of text")
        values[key] = tuple(tree[key])
    if not all(type(label) is int and 0 <= label < len(tree["classes"]) for label in tree["labels"]):
        raise ResultsError(f"labels: expected whole numbers 0 .. {len(tree['classes']) - 1}")
    values["labels"] = np.array(tree["labels"], dtype=np.int32)
    values["heads"] = {head: _matrix(head, rows, len(tree["classes"])) for head, rows in tree["heads"].items()}
    return Results(**values)


def _matrix(head: str, rows: Any, classes: int) -> NDArray[np.float32]:
    try:
        scores_NK = np.array(rows)
    except ValueError:  # rows of different lengths
        scores_NK = np.array("")
    if scores_NK.dtype.kind not in "if":
        raise ResultsError(f"scores of {head}: expected rows of {classes} numbers")
    with np.errstate(over="ignore"):  # what no float32 can hold becomes infinite, and is refused as that
        return scores_NK.astype(np.float32)
