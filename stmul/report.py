"""A run on one page: how good, how it was trained, what it takes for what, and clips it is sure and unsure of.

The page is one HTML file that needs no network. Its one script, which its policy names by its digest, zooms into the
confusion matrices; the page reads as well without it. Equal input gives equal bytes: no time is written that is not
given.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from shards.whole import whole
from stmul import metrics, plots
from stmul.report_clips import Film, ReportError, card, shown_clips
from stmul.report_matrix import ANNOTATED, confusions, matrix_of, short
from stmul.results import HEADS, HistoryRow, Results, measures

__all__ = ["Film", "ReportError", "shown_clips", "write_report"]
HERE = Path(__file__).parent
COLOUR_OF = {"late fusion": "late", "fused": "joint"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """How the heads that are compared do on one class."""

    name: str
    clips: int
    bars: Sequence[tuple[str, float]]  # head, part of the clips hit
    gain: float | None  # joint over late fusion


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of the training: its curves and what it took."""

    name: str
    epochs: int
    minutes: float
    curves: str  # SVG
    lines: Sequence[tuple[str, str, bool]]  # what each line is, its colour, whether it is dashed; empty for one line


def write_report(
    path: Path,
    *,
    results: Results,
    history: Sequence[HistoryRow],
    config_yaml: str,
    films: Mapping[str, Film],
    run: Mapping[str, str],
    unseen: str = "",
) -> None:
    """Writes the page to `path`, whole or absent.

    `films` are pictures by clip name, of those that `shown_clips` names; `unseen` says why they do not show what the
    streams looked at. `run` is the environment as lines of text, shown in its order. Raises ReportError for a picture
    that is neither PNG nor JPEG.
    """
    page = _page(results, history, config_yaml, films, run, unseen)
    with whole(path) as file:
        file.write(page.encode())


def _page(
    results: Results,
    history: Sequence[HistoryRow],
    config_yaml: str,
    films: Mapping[str, Film],
    run: Mapping[str, str],
    unseen: str,
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, points=_points, css=_css, duration=_duration, short=short)
    best, worst = shown_clips(results)
    compared = _compared(results)
    script = (HERE / "report_zoom.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        css=(HERE / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=_digest(script),
        results=results,
        chance=1 / len(results.classes),
        heads=[(head, HEADS[head], measures(results, head)) for head in results.head_names],
        compared=compared,
        gain=_gain(results),
        stages=_stages(history, 1 / len(results.classes)),
        held_out=max((row.validation.clips for row in history if row.validation), default=0),
        speed=plots.speed_curves(history) if history else (),
        class_rows=_class_rows(results, compared),
        matrices=[matrix_of(results, head) for head in compared],
        annotated=len(results.classes) <= ANNOTATED,
        confusions=confusions(results),
        clips=[
            ("Lowest margins", [card(results, clip, films, compared) for clip in worst]),
            ("Highest margins", [card(results, clip, films, compared) for clip in best]),
        ],
        seen=any(strip.head for film in films.values() for strip in film.strips),
        unseen=unseen,
        config_yaml=config_yaml,
        run=run,
    )


def _digest(script: str) -> str:
    """A script as a content security policy names it: no other one runs on the page."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


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
            lines=_lines(name, rows),
        )
        for name, rows in groups
    ]


def _lines(stage: str, rows: Sequence[HistoryRow]) -> list[tuple[str, str, bool]]:
    heads = plots.heads_of(rows)
    held_out = [("held out", "ink", True)] if any(row.validation for row in rows) else []
    if not heads and not held_out:
        return []
    both = "training clips" if not heads else "both (loss: sum)"
    return [(both, stage, False), *((f"{head} head", head, False) for head in heads), *held_out]


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


def _percent(part: float) -> str:
    return f"{100 * part:.1f}"


def _points(part: float) -> str:
    """A signed difference in points of a percentage, with a minus as wide as the plus."""
    rounded = round(100 * part, 1)
    return f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}") if rounded else "0.0"


def _css(head: str) -> str:
    """The page's colour of a head: that of its stream."""
    return f"var(--{COLOUR_OF.get(head, head.split()[0])})"


def _duration(minutes: float) -> str:
    seconds = round(60 * minutes)
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds // 60, 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min {seconds % 60} s"
