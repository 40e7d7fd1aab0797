"""The report of a run: its scores, its log, pictures of its surest and least sure clips, and where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from shards.errors import ShardError
from shards.split import Split
from stmul.config import Config
from stmul.environment import environment
from stmul.errors import StmulError
from stmul.evaluate import Networks
from stmul.report import write_report
from stmul.report_clips import guessed, shown_clips
from stmul.report_pictures import Asked, films
from stmul.results import HistoryRow, Results, Validation
from stmul.runs import Run
from stmul.stages import load_networks

OTHER_CLIPS = "these shards hold other clips than were tested; test again with: stmul test"


def report_of_run(run: Run, results: Results, split: Split, config: Config, device: torch.device) -> Path:
    """Writes `report.html` into the run's folder and gives its path.

    The streams' own networks are loaded again to see what they looked at; where they are gone, the page says so.
    """
    path = run.folder / "report.html"
    about = run.about()
    asked = _asked(results) if split.manifest.parts[results.part].digest == results.digest else []
    networks, unseen = _networks(run, results, config, device) if asked else (None, OTHER_CLIPS)
    write_report(
        path,
        results=results,
        history=[history_row(row) for row in run.history()],
        config_yaml=(run.folder / "config.yaml").read_text(encoding="utf-8"),
        films=films(split, results.part, asked, networks, config, device),
        run={
            "shards": split.location,
            "digest of the training clips": about.digest,
            "started from": about.start,
            **_where(run.environment(), environment()),
        },
        unseen=unseen,
    )
    return path


def _where(trained: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """Where a run was trained, as it noted; and what is otherwise where its page is written."""
    if not trained:
        return {f"{name}, for this page": words for name, words in here.items()}
    return {**trained, **{f"{name}, for this page": here[name] for name in here if here[name] != trained.get(name)}}


def history_row(row: Mapping[str, Any]) -> HistoryRow:
    """A row of a run's log; what earlier versions did not write is as `HistoryRow` has it by default."""
    known = {field.name: row[field.name] for field in fields(HistoryRow) if field.name in row}
    if known.get("validation") is not None:
        known["validation"] = Validation(**{one.name: known["validation"][one.name] for one in fields(Validation)})
    return HistoryRow(**known)


def _asked(results: Results) -> list[Asked]:
    """The clips shown, each with the class it was taken for and, where that is another, its own."""
    best, worst = shown_clips(results)
    return [
        Asked(
            record=clip,
            classes=[
                (label, results.classes[label])
                for label in dict.fromkeys((guessed(results, clip), int(results.labels[clip])))
            ],
        )
        for clip in [*worst, *best]
    ]


def _networks(run: Run, results: Results, config: Config, device: torch.device) -> tuple[Networks | None, str]:
    """The networks that were tested, or None and why."""
    try:
        return load_networks(run, config, results.classes, epoch=results.epoch, device=device)[0], ""
    except (StmulError, ShardError) as error:
        return None, str(error)
