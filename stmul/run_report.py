"""The report of a run: its scores, its log, pictures of its surest and worst clips, and where it was made."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from shards.format import decode
from shards.picture import record_sheet
from shards.split import Split
from stmul.environment import environment
from stmul.report import shown_clips, write_report
from stmul.results import HistoryRow, Results
from stmul.runs import Run


def report_of_run(run: Run, results: Results, split: Split) -> Path:
    """Writes `report.html` into the run's folder and gives its path."""
    path = run.folder / "report.html"
    names = [field.name for field in fields(HistoryRow)]
    history = [HistoryRow(**{name: row[name] for name in names if name in row}) for row in run.history()]
    best, worst = shown_clips(results)
    about = run.about()
    write_report(
        path,
        results=results,
        history=history,
        config_yaml=(run.folder / "config.yaml").read_text(encoding="utf-8"),
        pictures=_pictures(split, results.part, [*best, *worst]),
        run={"shards": split.location, "digest": about.digest, "started from": about.start, **environment()},
    )
    return path


def _pictures(split: Split, part: str, records: Iterable[int]) -> dict[str, bytes]:
    sheets = {}
    for number in records:
        record = decode(split.read(part, number))
        buffer = io.BytesIO()
        record_sheet(record).save(buffer, "JPEG", quality=85)
        sheets[record.name] = buffer.getvalue()
    return sheets
