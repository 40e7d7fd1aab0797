"""The results page says what its trainings' scores say, computed another way."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stmul.results import Results, write_results
from tests.bench import results
from tests.bench.results import Note, Task, drawn, note_path, place, real, tasks_of
from tests.bench.results_tables import ALONE, paired, rows_of, write_page

SEEDS = (1, 2, 3)
NAMES = tuple(f"v_Walk_g{group:02d}_c{clip:02d}" for group in range(5) for clip in range(6))
LABELS = np.arange(len(NAMES), dtype=np.int32) % 4


def scored(draws: np.random.Generator, heads: tuple[str, ...]) -> Results:
    return Results(
        run="small-001",
        epoch=12,
        dataset="walks",
        split=1,
        part="test",
        digest="0" * 64,
        protocol="centre",
        frames=5,
        mirror=True,
        expected=len(NAMES),
        classes=("a", "b", "c", "d"),
        names=NAMES,
        labels=LABELS,
        heads={
            head: draws.normal(size=(len(NAMES), 4)).astype(np.float32) + 2 * np.eye(4, dtype=np.float32)[LABELS]
            for head in heads
        },
    )


@pytest.fixture
def finished(tmp_path):
    """A folder as `do` leaves it, of a study whose last variant has two seeds only."""
    study, draws = drawn("shards/of/it"), np.random.default_rng(5)
    for task in tasks_of([study], SEEDS):
        if (task.name, task.seed) == (study.variants[-1].name, 3):
            continue
        heads = ALONE if task.variant is None else ("appearance", "motion", "joint")
        run = place(tmp_path, task) / f"demo-{task.name}"
        (run / "results").mkdir(parents=True)
        write_results(run / "results" / "it.json", scored(draws, heads))
        rows = [
            {"stage": stage, "epoch": epoch, "accuracy": epoch / 10, "clips_per_second": 9.0, "data_wait": 0.01}
            for stage in ("appearance", "motion", "joint")
            for epoch in range(1, 11)
        ]
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        note = Note(
            run=run.name,
            results=f"{run.name}/results/it.json",
            commands=tuple(
                "stmul " + " ".join(words)
                for words in results.commands_of(tmp_path, task, "" if task.variant is None else "demo-streams")
            ),
            seconds=(60.0, 6.0),
            cpu=(120.0, 12.0),
            memory=1.5,
            finished="2026-01-02",
            commit="abc1234",
            load=1.0,
        )
        note_path(tmp_path, task).write_text(json.dumps(asdict(note)))
    return tmp_path, study


def test_a_page_gives_each_seed_their_mean_and_spread(finished, tmp_path):
    folder, study = finished
    write_page(tmp_path / "page", folder, [study], SEEDS)
    text = (tmp_path / "page.md").read_text()
    for row in rows_of(folder, study, SEEDS):
        hits = [100 * np.mean(found.heads[row.head].argmax(1) == LABELS) for found in row.results.values()]
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.words} |"))
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[1] == ", ".join(f"{value:.1f}" for value in hits)
        assert cells[2] == f"{statistics.fmean(hits):.1f}"
        assert cells[3] == f"± {np.std(hits, ddof=1):.1f}"
    assert "8, 8, 8" in text  # the first epoch beyond 75 %
    assert "(2 seeds)" in text
    assert str(tmp_path) not in text
    assert (tmp_path / "page-drawn.svg").stat().st_size > 1000


def test_pairs_are_compared_clip_by_clip_and_group_by_group(finished):
    folder, study = finished
    by_name = {row.name: row for row in rows_of(folder, study, SEEDS)}
    one, other = by_name["late fusion"], by_name["multiply"]
    difference, (low, high), count = paired(one, other)
    assert count == 3
    assert difference == pytest.approx(np.mean(other.accuracies) - np.mean(one.accuracies))
    assert low <= difference <= high
    assert paired(one, one)[:2] == (0.0, (0.0, 0.0))


def test_a_printed_command_names_no_place_and_a_seed_of_its_own(finished, tmp_path):
    folder, study = finished
    write_page(tmp_path / "page", folder, [study], SEEDS)
    commands = re.findall(r"^    stmul (.+)$", (tmp_path / "page.md").read_text(), re.MULTILINE)
    assert len(commands) == 2 * (1 + len(study.variants))
    assert all("-e FOLDER/drawn/seed-1" in command for command in commands)
    trainings = [command for command in commands if command.startswith("train")]
    assert all("data.shards=SHARDS" in command and "train.seed=1" in command for command in trainings)
    assert sum("-i demo-streams" in command for command in trainings) == len(study.variants)


@given(st.integers(1, 4), st.integers(1, 3))
def test_every_variant_of_every_seed_is_one_task_after_its_streams(seeds, sets):
    studies = [real(f"set-{number}", "shards") for number in range(sets)] + [drawn("shards")]
    tasks = tasks_of(studies, range(1, seeds + 1))
    found = [(task.study.name, task.seed, task.name) for task in tasks]
    assert len(set(found)) == len(found) == seeds * sum(1 + len(study.variants) for study in studies)
    for place_, task in enumerate(tasks):
        streams = Task(study=task.study, seed=task.seed, variant=None)
        assert tasks.index(streams) <= place_
