"""A run on one page: how good, how it was trained, what it takes for what, and the clips it is surest of.

The page is one HTML file that needs no network and no script. Equal input gives equal bytes: no time is written that
is not given.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from shards.writer import whole
from stmul import metrics, plots
from stmul.errors import StmulError
from stmul.results import HEADS, HistoryRow, Results, measures

SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
ANNOTATED = 20  # classes up to which the cells of a confusion matrix have room for numbers


class ReportError(StmulError):
    """What a report cannot be made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """How the heads that are compared do on one class."""

    name: str
    clips: int
    bars: Sequence[tuple[str, float]]  # head, part of the clips hit
    gain: float | None  # joint over late fusion


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Clips of one class (row) that were taken for one class (column)."""

    row: int
    column: int
    clips: int
    share: float  # of the row's clips


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """A confusion matrix laid out: lengths are CSS pixels of a picture that may shrink."""

    head: str
    cells: Sequence[Cell]  # those that are not empty
    totals: Sequence[int]  # (K,) clips of each class
    cell: float
    font: float
    left: float
    top: float
    right: float
    angle: int  # of the column labels, degrees


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipCard:
    """One clip as shown: what it is, what it was taken for, by how much."""

    name: str
    label: str
    predicted: str
    margin: float
    guesses: Sequence[tuple[str, float, float]]  # class, score, bar from 0 to 1: the top three, then the true class
    picture: str  # data URI, empty where there is none


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of the training: its curves and what it took."""

    name: str
    epochs: int
    minutes: float
    curves: str  # SVG


def shown_clips(results: Results, count: int = 4) -> tuple[list[int], list[int]]:
    """The clips a report shows, as positions in `results`: the `count` highest margins and the `count` lowest.

    Of each class at most one on either side, none on both; by the main head.
    """
    margins_N = metrics.margins(results.heads[results.main], results.labels)
    ascending = np.argsort(margins_N, kind="stable").tolist()
    best = _one_of_each_class(ascending[::-1], results, count)
    return best, _one_of_each_class([clip for clip in ascending if clip not in best], results, count)


def write_report(
    path: Path,
    *,
    results: Results,
    history: Sequence[HistoryRow],
    config_yaml: str,
    pictures: Mapping[str, bytes],
    run: Mapping[str, str],
) -> None:
    """Writes the page to `path`, whole or absent.

    `pictures` are PNG or JPEG files by clip name, of those that `shown_clips` names; `run` is the environment as lines
    of text, shown in its order. Raises ReportError for a picture that is neither.
    """
    page = _page(results, history, config_yaml, pictures, run)
    with whole(path) as file:
        file.write(page.encode())


def _page(
    results: Results,
    history: Sequence[HistoryRow],
    config_yaml: str,
    pictures: Mapping[str, bytes],
    run: Mapping[str, str],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, points=_points, css=_css, duration=_duration, short=_short)
    best, worst = shown_clips(results)
    compared = _compared(results)
    return environment.get_template("report.html.j2").render(
        results=results,
        chance=1 / len(results.classes),
        heads=[(head, HEADS[head], measures(results, head)) for head in results.head_names],
        compared=compared,
        gain=_gain(results),
        stages=_stages(history, 1 / len(results.classes)),
        speed=plots.speed_curves(history) if history else (),
        class_rows=_class_rows(results, compared),
        matrices=[_matrix(results, head) for head in compared],
        annotated=len(results.classes) <= ANNOTATED,
        confusions=_confusions(results),
        clips=[
            ("Highest margins", [_card(results, clip, pictures) for clip in best]),
            ("Lowest margins", [_card(results, clip, pictures) for clip in worst]),
        ],
        config_yaml=config_yaml,
        run=run,
    )


def _one_of_each_class(clips: Sequence[int], results: Results, count: int) -> list[int]:
    first = {int(results.labels[clip]): clip for clip in reversed(clips)}  # the earliest of each class wins
    return sorted(first.values(), key=clips.index)[:count]


def _compared(results: Results) -> list[str]:
    """The heads set side by side: the streams alone, their late fusion and the joint network, where there are all."""
    inner = {"appearance", "motion"} if "late fusion" in results.heads else set()
    return [head for head in results.head_names if head not in inner]


def _gain(results: Results) -> float | None:
    """Joint over late fusion, in parts of the clips."""
    if not {"joint", "late fusion"} <= results.heads.keys():
        return None
    return measures(results, "joint")["top1"] - measures(results, "late fusion")["top1"]


def _stages(history: Sequence[HistoryRow], chance: float) -> list[Stage]:
    groups = [(name, list(rows)) for name, rows in groupby(history, key=lambda row: row.stage)]
    return [
        Stage(
            name=name,
            epochs=len(rows),
            minutes=sum(row.seconds for row in rows) / 60,
            curves=plots.stage_curves(rows, chance),
        )
        for name, rows in groups
    ]


def _class_rows(results: Results, compared: Sequence[str]) -> list[ClassRow]:
    """The classes that have clips, the largest gain of joint over late fusion first; without these, the best first."""
    by_head = {head: metrics.class_accuracies(results.heads[head], results.labels) for head in compared}
    totals_K = np.bincount(results.labels, minlength=len(results.classes))
    both = {"joint", "late fusion"} <= by_head.keys()
    rows = [
        ClassRow(
            name=name,
            clips=int(totals_K[label]),
            bars=[(head, float(by_head[head][label])) for head in compared],
            gain=float(by_head["joint"][label] - by_head["late fusion"][label]) if both else None,
        )
        for label, name in enumerate(results.classes)
        if totals_K[label]
    ]
    return sorted(rows, key=lambda row: (-(row.gain or 0.0), -dict(row.bars)[results.main], row.name))


def _matrix(results: Results, head: str) -> Matrix:
    matrix_KK = metrics.confusion_matrix(results.heads[head], results.labels)
    totals = matrix_KK.sum(axis=1).tolist()
    cells = [
        Cell(row=row, column=column, clips=int(matrix_KK[row, column]), share=matrix_KK[row, column] / totals[row])
        for row, column in np.argwhere(matrix_KK).tolist()
    ]
    classes = len(totals)
    cell = 56.0 if classes <= 10 else 40.0 if classes <= ANNOTATED else max(9.2, 780 / classes)
    font = min(13, 0.9 * cell)
    label = 0.56 * font * max(len(_short(name)) for name in results.classes) + 12
    slanted = classes <= ANNOTATED
    return Matrix(
        head=head,
        cells=cells,
        totals=totals,
        cell=cell,
        font=font,
        left=label + 22,
        top=(0.75 * label if slanted else label) + 22,
        right=0.75 * label if slanted else 4,
        angle=45 if slanted else 90,
    )


def _confusions(results: Results, count: int = 12) -> list[tuple[str, str, int, int]]:
    """The most frequent mistakes of the main head: true class, taken for, clips, clips of the true class."""
    matrix_KK = metrics.confusion_matrix(results.heads[results.main], results.labels)
    totals_K = matrix_KK.sum(axis=1)
    wrong = [(row, column) for row, column in np.argwhere(matrix_KK).tolist() if row != column]
    wrong.sort(key=lambda place: (-matrix_KK[place], *place))
    names = results.classes
    return [
        (names[row], names[column], int(matrix_KK[row, column]), int(totals_K[row])) for row, column in wrong[:count]
    ]


def _card(results: Results, clip: int, pictures: Mapping[str, bytes]) -> ClipCard:
    scores_K = results.heads[results.main][clip].astype(np.float64)
    order = np.argsort(-scores_K, kind="stable").tolist()
    label = int(results.labels[clip])
    shown = [*order[:3], *([label] if label not in order[:3] else [])]
    span = float(scores_K.max() - scores_K.min()) or 1.0
    name = results.names[clip]
    return ClipCard(
        name=name,
        label=results.classes[label],
        predicted=results.classes[order[0]],
        margin=float(metrics.margins(scores_K[None], results.labels[[clip]])[0]),
        guesses=[(results.classes[k], float(scores_K[k]), float(scores_K[k] - scores_K.min()) / span) for k in shown],
        picture=_data_uri(name, pictures[name]) if name in pictures else "",
    )


def _data_uri(name: str, picture: bytes) -> str:
    for kind, signature in SIGNATURES.items():
        if picture.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(picture).decode()}"
    raise ReportError(f"picture of clip {name!r}: expected a PNG or JPEG file, found {picture[:8]!r}")


def _percent(part: float) -> str:
    return f"{100 * part:.1f}"


def _points(part: float) -> str:
    """A signed difference in points of a percentage, with a minus as wide as the plus."""
    rounded = round(100 * part, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def _css(head: str) -> str:
    """The page's colour of a head: that of its stream."""
    return f"var(--{'late' if head == 'late fusion' else head.split()[0]})"


def _duration(minutes: float) -> str:
    seconds = round(60 * minutes)
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds // 60, 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min {seconds % 60} s"


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
