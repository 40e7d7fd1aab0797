"""Run folders: `experiment/<id>/` holds a training's settings, log, checkpoints, scores and report."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

from configs import dump, nearest
from shards.whole import make_folder, unwritable, whole
from stmul.config import BEST, Config
from stmul.errors import RunError

STAGES = ("appearance", "motion", "joint")


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What a run is about, as written in its `run.json`."""

    shards: str  # location, without credentials
    dataset: str
    split: int
    classes: tuple[str, ...]
    digest: str  # of the training part
    settings: Mapping[str, Any]  # resolved, without what does not change the result
    start: str = ""  # what the stages start from, in words
    network: str = ""  # the file of a network that was not trained here
    made: Mapping[str, Any] = field(default_factory=dict)  # how the records of its shards were made, as they say
    done: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def _log(self) -> Path:
        return self.folder / "log.jsonl"

    def about(self) -> About:
        """What the run is about. Raises RunError where its folder has no readable run.json."""
        path = self.folder / "run.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return About(**{**fields, "classes": tuple(fields["classes"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: not the description of a run ({error}); start a new run") from error

    def describe(self, about: About, config: Config) -> None:
        """Writes run.json and the full resolved settings."""
        make_folder(self.folder)
        write_text(self.folder / "config.yaml", dump(config))
        write_text(self.folder / "run.json", json.dumps(asdict(about), indent=1))

    def note_environment(self, where: Mapping[str, str]) -> None:
        """Adds a line about machine, libraries and code to environment.jsonl, unless the last one says the same."""
        if dict(where) != self.environment():
            add_line(self.folder / "environment.jsonl", json.dumps(where))

    def environment(self) -> dict[str, str]:
        """Where the run was trained last, as `stmul.environment` tells it; empty for runs that did not note it."""
        path = self.folder / "environment.jsonl"
        known: dict[str, str] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            with suppress(ValueError, TypeError):  # half a line, left by a power cut
                known = {str(name): str(value) for name, value in dict(json.loads(line)).items()}
        return known

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block no other process trains this run; what a killed one left half written is removed first.

        Raises RunError where another one does: both would write the same files. A kill lets go too.
        """
        with self._log.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.folder}: another process is training this run."
                    f" Wait for it or stop it, or train a second run beside it: --fresh"
                ) from None
            except OSError:  # a file system without locks: as if alone
                pass
            for path in (path for place in ("", *STAGES) for path in (self.folder / place).glob("*.partial")):
                if path.name != "report.html.partial":  # which anyone may be writing
                    path.unlink()
            yield

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds a line to the run's log; it is on disk when this returns, before any checkpoint that follows it.

        Raises ShardError where the disk is full.
        """
        add_line(self._log, json.dumps(row))

    def history(self) -> list[dict[str, Any]]:
        """The log's rows; where a stage was continued from a checkpoint, the later row of an epoch counts.

        Half a line, left by a power cut, is passed over: the checkpoint of its epoch was not yet written.
        """
        latest: dict[tuple[str, int], dict[str, Any]] = {}
        for line in self._log.read_bytes().splitlines() if self._log.exists() else []:
            with suppress(ValueError):
                row = json.loads(line)
                latest[row["stage"], row["epoch"]] = row
        return sorted(latest.values(), key=lambda row: (STAGES.index(row["stage"]), row["epoch"]))

    def checkpoints(self, stage: str) -> dict[int, Path]:
        """The stage's checkpoints at whole epochs, ascending."""
        found = {path.stem.removeprefix("epoch-"): path for path in (self.folder / stage).glob("epoch-*.pt")}
        return {int(epoch): found[epoch] for epoch in sorted(filter(str.isdecimal, found), key=int)}

    def epoch(self, stage: str, epoch: int) -> Path:
        """Where the checkpoint after an epoch lies."""
        return self.folder / stage / f"epoch-{epoch:04d}.pt"

    def mid_epoch(self, stage: str) -> Path:
        """Where the checkpoint within an epoch lies: written every few minutes, and when a training is stopped."""
        return self.folder / stage / "mid-epoch.pt"

    def best(self, stage: str) -> Path:
        """Where the stage's checkpoint lies that scored best on the clips held out; absent where none were."""
        return self.folder / stage / "best.pt"

    def resumable(self, stage: str) -> list[Path]:
        """The checkpoints that the stage can go on from, oldest first; from each the training is the same.

        The one within an epoch is removed once its epoch's has been written. A kill between the two leaves it, and
        some minutes are then trained again.
        """
        within = self.mid_epoch(stage)
        return [*self.checkpoints(stage).values(), *([within] if within.exists() else [])]

    def newest(self, stage: str) -> Path | None:
        """The checkpoint that the stage goes on from; None where it has none yet."""
        return next(reversed(self.resumable(stage)), None)

    def results(self) -> Path | None:
        """The newest scores of a test; None where there are none."""
        return max((self.folder / "results").glob("*.json"), key=lambda path: path.stat().st_mtime_ns, default=None)

    def tidy(self, stage: str, keep: int) -> None:
        """Removes what the newest checkpoint after an epoch has made superfluous; the last `keep` stay."""
        for path in list(self.checkpoints(stage).values())[:-keep]:
            path.unlink()
        self.mid_epoch(stage).unlink(missing_ok=True)


def add_line(path: Path, line: str) -> None:
    """Adds a line to a file, never to half a line that a power cut left; it is on disk when this returns.

    Raises ShardError where the disk is full or the file cannot be written.
    """
    try:
        with path.open("a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            torn = file.read(1) not in (b"", b"\n")
            file.write(b"\n" * torn + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or absent."""
    with whole(path) as file:
        file.write(text.encode())


def runs(folder: Path) -> list[Run]:
    """All runs in an experiment folder, oldest first."""
    found = [path.parent for path in folder.glob("*/run.json")]
    return [Run(path) for path in sorted(found, key=lambda path: ((path / "run.json").stat().st_mtime_ns, path.name))]


def find_run(folder: Path, run_id: str) -> Run:
    """The run `run_id`, or the newest one where it is empty. Raises RunError with the nearest id."""
    known = runs(folder)
    if not known:
        raise RunError(f"{folder}: no runs here; train one first: make train, or stmul train -c demo")
    if not run_id:
        return known[-1]
    for run in known:
        if run.id == run_id:
            return run
    ids = [run.id for run in known]
    raise RunError(f"{folder}: no run {run_id!r}{nearest(run_id, ids)} (runs: {', '.join(ids[-8:])})")


def new_run(folder: Path, name: str) -> Run:
    """A run folder that was not there yet, made: `<name>-001`, `<name>-002`, ...; never one that two runs share.

    Raises ShardError where `folder` cannot be written.
    """
    make_folder(folder)
    numbers = count(1)
    while True:
        path = folder / f"{name}-{next(numbers):03d}"
        with suppress(FileExistsError):
            path.mkdir(parents=True)
            return Run(path)


def run_of_network(folder: Path, path: Path) -> Run:
    """The run folder of a network that was not trained here, named as its file; none that belongs to anything else."""

    def own(run: Run) -> bool:
        with suppress(RunError):
            return not run.folder.exists() or run.about().network == str(path)
        return False

    names = (path.stem if number == 1 else f"{path.stem}-{number}" for number in count(1))
    return next(run for run in (Run(folder / name) for name in names) if own(run))


def unfinished(folder: Path, about: About) -> Run | None:
    """The newest run that was begun with exactly these data and settings and not finished."""
    for run in reversed(runs(folder)):
        with suppress(RunError):  # of another version, or damaged: not this one
            known = run.about()
            if not known.done and known.digest == about.digest and same_settings(known.settings, about.settings):
                return run
    return None


def same_settings(known: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether settings that a run noted are those of now; one that did not exist then counts as its default.

    What `now` leaves out, since it changes nothing of what is learnt, may differ.
    """
    return _as_now(known, now, Config().model_dump(mode="json")) == now


def _as_now(known: Mapping[str, Any], now: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """`known` with what it lacks from `default`, and without what only `now` lacks."""
    whole: dict[str, Any] = {}
    for name in now.keys() | (known.keys() - default.keys()):
        value, own, usual = known.get(name, default.get(name)), now.get(name), default.get(name)
        if isinstance(value, Mapping) and isinstance(own, Mapping) and isinstance(usual, Mapping):
            value = _as_now(value, own, usual)
        whole[name] = value
    return whole


def checkpoint_path(run: Run, stage: str, epoch: int | Literal["best"]) -> Path:
    """The checkpoint of `stage` after `epoch`, the last for 0, or the best. Raises RunError listing what there is."""
    known = run.checkpoints(stage)
    if epoch == BEST:
        if (best := run.best(stage)).exists():
            return best
        raise RunError(
            f"{run.folder}: no best checkpoint of stage {stage}: no clips were held out to tell which is."
            f" Train with --set train.hold_out=0.1, or name an epoch (kept: {', '.join(map(str, known)) or 'none'})"
        )
    if not known:
        raise RunError(f"{run.folder}: no checkpoint of stage {stage}; its training has not completed an epoch")
    if epoch and epoch not in known:
        raise RunError(f"{run.folder}: no checkpoint of epoch {epoch} (kept: {', '.join(map(str, known))})")
    return known[epoch or max(known)]
