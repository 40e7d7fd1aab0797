"""Trains and tests every variant with every seed by the commands a user would type, and writes the results page.

    python -m tests.bench.results --folder FOLDER --real jhmdb-8=SHARDS ucf101-6=SHARDS --drawn SHARDS [--out NAME]

What a training leaves is kept in `--folder`; the same command goes on after a stop, and trains nothing twice.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from shards.stream import cores
from shards.whole import whole

STREAMS = "streams"  # both alone: what every joint variant with the same seed starts from
# Fixed before anything was tested. Frames of 170 x 128: one crop of the middle, few instants, for two cores' sake.
SMALL = ("network.appearance.width=16", "network.motion.width=16", "evaluate.protocol=centre", "evaluate.frames=5")
WITHOUT = "network.temporal.units=[]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way of joining the two streams."""

    name: str
    words: str
    changes: tuple[str, ...] = ()


MULTIPLY = Variant(name="multiply", words="motion multiplied into appearance")
ADD = Variant(name="add", words="motion added to appearance", changes=("network.operator=add",))
NONE = Variant(name="none", words="nothing passed on; trained on as the others", changes=("network.operator=none",))
REVERSE = Variant(
    name="multiply-reverse",
    words="appearance multiplied into motion",
    changes=("network.direction=appearance_to_motion",),
)
BOTH = Variant(name="multiply-both", words="multiplied both ways", changes=("network.direction=both",))
BARE = Variant(
    name="multiply-still", words="motion multiplied into appearance, no temporal filters", changes=(WITHOUT,)
)
BARE_ADD = Variant(
    name="add-still",
    words="motion added to appearance, no temporal filters",
    changes=("network.operator=add", WITHOUT),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A data set, a recipe, and the variants that are trained by it, the most important first."""

    name: str
    shards: str
    config: str
    changes: tuple[str, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One training and its test."""

    study: Study
    seed: int
    variant: Variant | None  # None: the streams

    @property
    def name(self) -> str:
        return STREAMS if self.variant is None else self.variant.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What is kept of a task that is done."""

    run: str  # its id
    results: str  # file of its scores, below the study's folder
    commands: tuple[str, ...]
    seconds: tuple[float, float]  # of wall time: training, testing
    cpu: tuple[float, float]  # seconds of all threads: training, testing
    memory: float  # GiB resident at most
    finished: str  # date
    commit: str
    load: float  # of the machine when it ended: others' work too


def real(name: str, shards: str) -> Study:
    """A set of real videos, by the recipe for small ones."""
    return Study(name=name, shards=shards, config="small", changes=SMALL, variants=(MULTIPLY, ADD, NONE))


def drawn(shards: str) -> Study:
    """The drawn set, by the demo's recipe."""
    return Study(
        name="drawn",
        shards=shards,
        config="demo",
        changes=(),
        variants=(MULTIPLY, ADD, REVERSE, BARE, NONE, BARE_ADD, BOTH),
    )


def tasks_of(studies: Sequence[Study], seeds: Sequence[int]) -> list[Task]:
    """All tasks: the streams, then every study's first variant with all seeds, then the second ones."""
    most = max(len(study.variants) for study in studies)
    found = [Task(study=study, seed=seed, variant=None) for study in studies for seed in seeds]
    for number in range(most):
        for study in (study for study in studies if number < len(study.variants)):
            found += [Task(study=study, seed=seed, variant=study.variants[number]) for seed in seeds]
    return found


def place(folder: Path, task: Task) -> Path:
    """The experiment folder of a task: runs of one seed lie together, so that one may start from another."""
    return folder / task.study.name / f"seed-{task.seed}"


def note_path(folder: Path, task: Task) -> Path:
    return place(folder, task) / f"{task.name}.json"


def read_note(folder: Path, task: Task) -> Note | None:
    """What is known of a task; None where it has not been done."""
    path = note_path(folder, task)
    return Note(**json.loads(path.read_text())) if path.exists() else None


def commands_of(folder: Path, task: Task, streams: str) -> list[list[str]]:
    """The two commands of a task, without the program; `streams` is the run that it starts from."""
    changes = [f"data.shards={task.study.shards}", f"train.seed={task.seed}", *task.study.changes]
    changes += ["train.joint.epochs=0"] if task.variant is None else task.variant.changes
    settings = [word for change in changes for word in ("--set", change)]
    start = ["-i", streams] if streams else []
    where = ["-e", str(place(folder, task))]
    return [["train", "-c", task.study.config, *settings, *start, *where], ["test", *where]]


def carried_out(arguments: Sequence[str], threads: int, log: Path) -> tuple[float, float, float]:
    """Runs `stmul`; gives seconds, CPU seconds and GiB at most. Raises SystemExit with the end of what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    with log.open("ab") as file:
        child = subprocess.Popen(
            [sys.executable, "-m", "stmul", *arguments], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"stmul {' '.join(arguments)}: exit {child.returncode}\n{log.read_text()[-2000:]}")
    return time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20


def do(folder: Path, task: Task, threads: int, commit: str) -> None:
    """Trains and tests one task and notes what it took."""
    home = place(folder, task)
    home.mkdir(parents=True, exist_ok=True)
    streams = ""
    if task.variant is not None:
        before = read_note(folder, Task(study=task.study, seed=task.seed, variant=None))
        assert before is not None
        streams = before.run
    train, test = commands_of(folder, task, streams)
    log = home / f"{task.name}.log"
    threaded = ["--set", f"data.threads={threads}"]
    trained = carried_out([*train, *threaded], threads, log)
    run = max(home.glob("*/run.json"), key=lambda path: path.stat().st_mtime_ns).parent
    tested = carried_out([*test, "-i", run.name, *threaded], threads, log)
    results = max((run / "results").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    note = Note(
        run=run.name,
        results=str(results.relative_to(home)),
        commands=tuple(f"stmul {' '.join(words)}" for words in (train, [*test, "-i", run.name])),
        seconds=(trained[0], tested[0]),
        cpu=(trained[1], tested[1]),
        memory=max(trained[2], tested[2]),
        finished=datetime.now(UTC).date().isoformat(),
        commit=commit,
        load=os.getloadavg()[0],
    )
    with whole(note_path(folder, task)) as file:
        file.write(json.dumps(asdict(note), indent=1).encode())


def do_all(folder: Path, tasks: Sequence[Task], *, jobs: int, commit: str) -> None:
    """Does what has not been done, `jobs` at once; those of one seed one after the other, the streams first."""
    waiting = [task for task in tasks if read_note(folder, task) is None]
    busy: set[Path] = set()
    ready = threading.Condition()
    threads, total = max(1, cores() // jobs), len(tasks)

    def next_task() -> Task | None:
        with ready:
            while waiting:
                for task in waiting:
                    begun = task.variant is None or read_note(
                        folder, Task(study=task.study, seed=task.seed, variant=None)
                    )
                    if begun and place(folder, task) not in busy:
                        waiting.remove(task)
                        busy.add(place(folder, task))
                        return task
                ready.wait(5.0)
        return None

    def work(_: int) -> None:
        while (task := next_task()) is not None:
            begin = time.monotonic()
            try:
                do(folder, task, threads, commit)
            except BaseException:
                with ready:
                    waiting.clear()
                raise
            finally:
                with ready:
                    busy.discard(place(folder, task))
                    ready.notify_all()
            minutes = (time.monotonic() - begin) / 60
            left = sum(read_note(folder, other) is None for other in tasks)
            print(
                f"{task.study.name} seed {task.seed} {task.name}: {minutes:.1f} min, {total - left}/{total}", flush=True
            )

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work, number) for number in range(jobs)]:
            done.result()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and test every variant with every seed; write the page.")
    parser.add_argument("--folder", type=Path, required=True, help="of the trainings; the same one goes on")
    parser.add_argument("--real", nargs="*", default=[], metavar="NAME=SHARDS", help="sets of real videos")
    parser.add_argument("--drawn", metavar="SHARDS", help="the drawn set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=min(2, cores()), help="trainings at once")
    parser.add_argument("--only-page", action="store_true", help="of what has been trained; train nothing more")
    parser.add_argument("--out", type=Path, help="the page, without .md")
    given = parser.parse_args()
    studies = [real(*text.split("=", 1)) for text in given.real] + ([drawn(given.drawn)] if given.drawn else [])
    if not studies:
        parser.error("expected --real NAME=SHARDS or --drawn SHARDS")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    tasks = tasks_of(studies, given.seeds)
    if not given.only_page:
        do_all(given.folder, tasks, jobs=given.jobs, commit=commit)
    if given.out is not None:
        from tests.bench.results_tables import write_page

        write_page(given.out, given.folder, studies, given.seeds)


if __name__ == "__main__":
    main()
