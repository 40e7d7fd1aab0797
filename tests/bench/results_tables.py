"""The results page: every figure with its command, mean and spread over seeds, and what the clips can resolve."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from shards.stream import cores
from shards.whole import whole
from stmul import metrics
from stmul.bases import STREAMS
from stmul.fusing import groups_of
from stmul.results import Results, measures, read_results
from tests.bench.results import Note, Study, Task, place, read_note
from tests.bench.results_chart import draw

ALONE = ("appearance alone", "motion alone", "late fusion")
LEARNT = 0.75  # training accuracy of the drawn set that no sum of two scores reaches
WORDS = {
    "appearance alone": "appearance, alone",
    "motion alone": "motion, alone",
    "late fusion": "late fusion of these two",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """What is known of one way of scoring, by seed."""

    name: str  # a head of the streams, or a variant
    words: str
    results: Mapping[int, Results]
    head: str
    notes: Mapping[int, Note]
    logs: Mapping[int, Sequence[Mapping[str, float]]]  # epochs of its last stage

    @property
    def accuracies(self) -> list[float]:
        return [measures(found, self.head)["top1"] for found in self.results.values()]


def write_page(out: Path, folder: Path, studies: Sequence[Study], seeds: Sequence[int]) -> None:
    """Writes `out`.md and, for each study with a learning curve worth a look, `out`-STUDY.svg."""
    text: list[str] = [*_head(folder, studies, seeds)]
    for study in studies:
        rows = rows_of(folder, study, seeds)
        text += ["", f"## {study.name}", "", *_table(study, rows), "", *_comparisons(rows), "", *_commands(study, rows)]
        if study.name == "drawn":
            picture = out.with_name(f"{out.name}-{study.name}.svg")
            draw({row.words: row.logs for row in rows if row.name not in ALONE}, picture)
            text += ["", f"![training accuracy over epochs]({picture.name})"]
    with whole(out.with_suffix(".md")) as file:
        file.write(("\n".join(text) + "\n").encode())


def rows_of(folder: Path, study: Study, seeds: Sequence[int]) -> list[Row]:
    """The rows of a study: the streams' three, then its variants'; each with the seeds that are done."""
    streams = _found(folder, study, seeds, None)
    rows = [_row(head, WORDS[head], head, streams) for head in ALONE] if streams else []
    for variant in study.variants:
        if found := _found(folder, study, seeds, variant):
            rows.append(_row(variant.name, f"joint: {variant.words}", "joint", found))
    return rows


def _found(folder: Path, study: Study, seeds: Sequence[int], variant: object) -> dict[int, tuple[Path, Note]]:
    found = {}
    for seed in seeds:
        task = Task(study=study, seed=seed, variant=variant)  # type: ignore[arg-type]
        if (note := read_note(folder, task)) is not None:
            found[seed] = place(folder, task), note
    return found


def _row(name: str, words: str, head: str, found: Mapping[int, tuple[Path, Note]]) -> Row:
    return Row(
        name=name,
        words=words,
        head=head,
        results={seed: read_results(home / note.results) for seed, (home, note) in found.items()},
        notes={seed: note for seed, (_, note) in found.items()},
        logs={
            seed: _epochs(home / note.run, head.split()[0] if head in ALONE[:2] else "joint")
            for seed, (home, note) in found.items()
        },
    )


def _epochs(run: Path, stage: str) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def _head(folder: Path, studies: Sequence[Study], seeds: Sequence[int]) -> Iterator[str]:
    notes = [
        note
        for study in studies
        for seed in seeds
        for variant in (None, *study.variants)
        if (note := read_note(folder, Task(study=study, seed=seed, variant=variant))) is not None
    ]
    day, commits = max(note.finished for note in notes), sorted({note.commit for note in notes})
    yield f"# {day}, results of training"
    yield ""
    yield (
        f"Last epochs, never the best on the test part. {len(notes)} trainings and tests,"
        f" {sum(sum(note.cpu) for note in notes) / 3600:.1f} hours of CPU, on {cores()} cores of"
        f" {platform.machine()} without a GPU; beside other work (load {min(note.load for note in notes):.0f} to"
        f" {max(note.load for note in notes):.0f}), so times are CPU times. Python {platform.python_version()},"
        f" torch {version('torch')}, stmul at {', '.join(commits)}."
    )
    yield ""
    yield (
        "*spread*: standard deviation over seeds. *heads*: mean top-1 of the joint network's appearance and motion"
        " heads; its score is their mean. *CPU min*: of a training and its test, all threads; that of both streams is"
        " with late fusion. *clips/s*: in training, one thread, at the middle epoch. *data wait*: part of the"
        " training's time. *GiB*: resident at most. Intervals of differences: paired bootstrap over groups of test"
        " clips (those cut from one recording), of each clip's hits averaged over the seeds that both have. They tell"
        " what other clips would have given, with these trainings; what other seeds would, the spread tells."
    )
    yield ""
    words = " ".join(f"{study.name}=SHARDS" for study in studies if study.name != "drawn")
    yield "All of it again, with one command:"
    yield ""
    drawn = " --drawn SHARDS" if any(study.name == "drawn" for study in studies) else ""
    chosen = " ".join(str(seed) for seed in seeds)
    yield f"    make results ARGS='--folder FOLDER --real {words}{drawn} --seeds {chosen} --out NAME'"


def _table(study: Study, rows: Sequence[Row]) -> Iterator[str]:
    base = rows[0].results[min(rows[0].results)]
    sampled = f"{base.frames} instants of a clip, {'whole frames' if base.protocol == 'dense' else 'centre crops'}"
    mirrored = ", mirror images too" if base.mirror else ""
    yield (
        f"{base.expected} test clips of {len(base.classes)} classes, in {len(set(groups_of(base.names)))} groups;"
        f" chance {100 / len(base.classes):.1f} %. Scored: {sampled}{mirrored}. Top-1 in %."
    )
    yield ""
    drawn = study.name == "drawn"
    yield (
        "| scores | seeds | mean | spread | heads | top-5 |"
        + (f" epochs to {100 * LEARNT:.0f} % in training |" if drawn else "")
        + " CPU min | clips/s | data wait | GiB |"
    )
    yield "|---|---|---|---|---|---|" + ("---|" if drawn else "") + "---|---|---|---|"
    for row in rows:
        values = [100 * value for value in row.accuracies]
        spread = f"± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        top5 = statistics.fmean(100 * measures(found, row.head)["top5"] for found in row.results.values())
        learnt = f" {_learnt(row)} |" if drawn else ""
        yield (
            f"| {row.words} | {', '.join(f'{value:.1f}' for value in values)} | {statistics.fmean(values):.1f}"
            f" | {spread} | {_heads(row)} | {top5:.1f} |{learnt} {_cost(row)} |"
        )


def _heads(row: Row) -> str:
    if row.name in ALONE:
        return ""
    means = (statistics.fmean(measures(one, head)["top1"] for one in row.results.values()) for head in STREAMS)
    return " and ".join(f"{100 * mean:.1f}" for mean in means)


def _cost(row: Row) -> str:
    if row.name in ALONE[:2]:
        minutes, memory = "", ""
    else:
        minutes = f"{statistics.fmean(sum(note.cpu) / 60 for note in row.notes.values()):.1f}"
        memory = f"{max(note.memory for note in row.notes.values()):.1f}"
    epochs = [epoch for log in row.logs.values() for epoch in log]
    if not epochs:
        return f"{minutes} | | | {memory}"
    rate = statistics.median(epoch["clips_per_second"] for epoch in epochs)
    wait = statistics.median(epoch["data_wait"] for epoch in epochs)
    return f"{minutes} | {rate:.1f} | {100 * wait:.1f} % | {memory}"


def _learnt(row: Row) -> str:
    """The first epoch of each seed in which the training accuracy is beyond what a sum of scores can reach."""
    if row.name in ALONE:
        return ""
    firsts = [next((round(e["epoch"]) for e in log if e["accuracy"] > LEARNT), None) for log in row.logs.values()]
    return ", ".join("never" if first is None else str(first) for first in firsts)


def _comparisons(rows: Sequence[Row]) -> Iterator[str]:
    """Each joint variant beside late fusion and beside the first one, clip by clip."""
    by_name = {row.name: row for row in rows}
    fusion, first = by_name.get("late fusion"), by_name.get("multiply")
    pairs = [(fusion, row) for row in rows if row.name not in ALONE]
    pairs += [(row, first) for row in rows if row.name not in (*ALONE, "multiply")]
    pairs = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not pairs:
        return
    yield "| | over | points | 95 % interval | |"
    yield "|---|---|---|---|---|"
    for one, other in pairs:
        difference, (low, high), count = paired(one, other)
        sure = "resolved" if not low <= 0 <= high else "no difference resolvable"
        seeds = "" if count == len(rows[0].results) else f" ({count} seeds)"
        yield (
            f"| {other.words} | {one.words} | {100 * difference:+.1f}{seeds} | {100 * low:+.1f} to {100 * high:+.1f}"
            f" | {sure} |"
        )


def paired(one: Row, other: Row) -> tuple[float, tuple[float, float], int]:
    """How much more of the clips `other` hits, with its interval, over how many seeds."""
    seeds = [seed for seed in one.results if seed in other.results]
    names = one.results[seeds[0]].names
    differences = []
    for seed in seeds:
        first, second = one.results[seed], other.results[seed]
        assert first.names == second.names == names  # every clip of the part, in the order of its records
        hits = [metrics.ranks(r.heads[row.head], r.labels) == 0 for r, row in ((first, one), (second, other))]
        differences.append(hits[1].astype(np.float64) - hits[0])
    mean_N = np.mean(differences, axis=0)
    return float(mean_N.mean()), metrics.bootstrap(mean_N, groups_of(names)), len(seeds)


def _commands(study: Study, rows: Sequence[Row]) -> Iterator[str]:
    """The commands of one seed; the others differ in the seed and the run's number."""
    yield f"The commands, of seed {min(rows[0].notes)}:"
    yield ""
    shown = []
    for row in (row for row in rows if row.name not in ALONE[1:]):
        seed = min(row.notes)
        for command in row.notes[seed].commands:
            text = command.replace(study.shards, "SHARDS")
            words = text.split()
            where = words.index("-e")
            words[where + 1] = f"FOLDER/{study.name}/seed-{seed}"
            shown.append("    " + " ".join(words))
    yield from shown
    yield ""
    yield "The joint ones start from the first run (`-i`), which holds both streams." if len(rows) > len(ALONE) else ""
