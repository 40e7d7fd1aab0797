"""All videos of a split -> its shards: planned first, worked through by an engine, resumed where it was stopped.

What goes where is decided from names alone, so neither the number of workers, nor parts that are built apart, nor a
stop on the way changes a byte of the result. A video that cannot be used is noted in failures.jsonl and leaves a hole;
the others stay where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from preprocess.building.engines import Engine
from preprocess.building.finish import Complete, finish, start
from preprocess.building.former import changed_files
from preprocess.building.notes import read_notes
from preprocess.building.places import DESK, FolderPlace, place_at
from preprocess.building.schedule import Schedule, work_off
from preprocess.building.site import Site, named, opened_site, split_location
from preprocess.building.standing import differences, made_of, standing
from preprocess.building.tally import FAILURES, Progress, Tally, failures_in
from preprocess.building.work import Failure
from preprocess.building.workers import engine_of, pinned, worker_count
from preprocess.building.workplace import clear, work_place
from preprocess.config import Preprocess
from preprocess.errors import PreprocessError
from preprocess.sources.disk import some
from preprocess.sources.listing import Dataset
from shards.errors import ShardError
from shards.latest import remember
from shards.manifest import Manifest
from shards.stores.connect import is_url

__all__ = [
    "FAILURES",
    "BuildReport",
    "Progress",
    "build",
    "complete_before",
    "complete_report",
    "completed",
    "read_failures",
    "split_folder",
    "split_location",
    "worker_count",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did."""

    location: str  # of the split: a folder, or a URL
    manifest: Manifest
    new: bool  # False: it was complete before
    seconds: float = 0.0
    how: Mapping[str, int] = field(default_factory=dict)  # records made, kept (of an earlier run), taken over
    failures: tuple[Failure, ...] = ()
    without_records: tuple[tuple[str, str], ...] = ()  # (part, class)

    @property
    def folder(self) -> Path:
        """The location, where it is a folder."""
        return Path(self.location)

    @property
    def bytes(self) -> int:
        """Of all shards."""
        return sum(shard.size for part in self.manifest.parts.values() for shard in part.shards)


def build(
    dataset: Dataset,
    settings: Preprocess,
    out: str | Path,
    progress: Callable[[Progress], None] | None = None,
    *,
    rebuild: bool = False,
    engine: Engine | None = None,
) -> BuildReport:
    """Makes the shards of `dataset` in <out>/<data set>/split<n>, or finds them complete; notes them as the latest.

    `out` is a folder or s3://BUCKET/FOLDER; `engine` is the one that the settings name unless given. Records finished
    before, by this build, by parts of it, or for another split in the same way, are not made again.
    Raises PreprocessError where there are shards of other settings (unless `rebuild`), where more videos fail than
    `settings.failures`, or none is left; ShardError where `out` cannot be written. The same call then goes on.
    """
    begin, settings = time.monotonic(), pinned(settings, dataset)
    location, made = split_location(dataset, out), made_of(dataset, settings)
    if not rebuild and (complete := complete_before(location, made, dataset)) is not None:
        return complete_report(dataset, settings, out, complete)
    with opened_site(dataset, settings, out, again=rebuild) as site:
        tally = Tally(site.shards, settings.failures, progress)
        known = site.known(site.plan)
        if known.lost and not rebuild:
            raise PreprocessError(
                f"{location}: its shards hold {known.lost:,} records of a build of more videos that was not finished."
                " Finish it first, name another folder with --out, or replace them with --rebuild: those records are"
                " then lost"
            )
        if not known.ours:
            start(site.shards)
        hold = partial(start, site.shards) if known.ours else None
        schedule = Schedule(
            site.plan, site.videos, known.notes, known.tars, tally, hold=hold, ours=site.shards.location
        )
        tally.begin()
        run, workers = engine_of(settings, dataset, out)
        work_off(schedule, site.job(), workers, engine or run)
        return completed(site, tally.how, begin)


def completed(site: Site, how: Mapping[str, int], begin: float) -> BuildReport:
    """The report of a split all of whose shards are packed: its indexes and its manifest are written now."""
    notes = dict(read_notes(site.work, site.dataset.split, map(named, site.plan)))
    parts = {part: [notes[named(shard)] for shard in site.plan if shard.part == part] for part in site.dataset.parts}
    done = finish(site.dataset, site.made, site.shards, site.work, parts)
    _remember(site.out, site.shards.location)
    clear(site.out, site.work, site.dataset.name, site.dataset.split, site.videos.values())
    return BuildReport(
        location=site.shards.location,
        manifest=done.manifest,
        new=True,
        seconds=time.monotonic() - begin,
        how={one: count for one, count in how.items() if count},
        failures=done.failures,
        without_records=_without_records(site.dataset, done),
    )


def split_folder(dataset: Dataset, out: Path) -> Path:
    """Where the shards of a split go below a folder."""
    return Path(split_location(dataset, out))


def complete_before(location: str | Path, made: Mapping[str, Any], dataset: Dataset) -> Manifest | None:
    """The manifest of shards at `location` that are complete and just those asked for; None if there is none.

    Raises PreprocessError where there are others, or of files that were changed since, and says what differs.
    """
    before = standing(location)
    if before.manifest is None and not before.problem:
        return None
    changes = [before.problem] if before.manifest is None else differences(before.manifest.made, made)
    if not changes and (changed := changed_files(chain.from_iterable(dataset.parts.values()), str(location))):
        changes = [f"of other files than are there now: {some(changed)}"]
    if changes:
        raise PreprocessError(
            f"{location}: holds other shards ({'; '.join(changes)}). Keep them and name another folder with --out, or"
            " make them anew with --rebuild"
        )
    return None if before.missing else before.manifest


def complete_report(dataset: Dataset, settings: Preprocess, out: str | Path, manifest: Manifest) -> BuildReport:
    """The report of a split that was complete before."""
    location = split_location(dataset, out)
    _clear_up(dataset, settings, out)
    _remember(out, location)
    return BuildReport(location=location, manifest=manifest, new=False, failures=read_failures(location))


def _clear_up(dataset: Dataset, settings: Preprocess, out: str | Path) -> None:
    """Removes what a build left that was killed when the split was complete, unless others are at work there."""
    work, location = work_place(out, dataset.name, made_of(dataset, settings)["record"]), split_location(dataset, out)
    with suppress(PreprocessError, ShardError, OSError):
        if isinstance(work, FolderPlace):
            left = work.root.parent.exists() or any(Path(location).glob(f"{DESK}*"))
        else:
            left = bool(work.names())
        if left:
            with opened_site(dataset, settings, out) as site:
                clear(out, site.work, dataset.name, dataset.split, site.videos.values())


def read_failures(location: str | Path) -> tuple[Failure, ...]:
    """The videos without a record, as the build of the split at `location` noted them."""
    return failures_in(place_at(location))


def _remember(out: str | Path, location: str) -> None:
    if not is_url(str(out)):
        remember(Path(out), Path(location))


def _without_records(dataset: Dataset, done: Complete) -> tuple[tuple[str, str], ...]:
    return tuple(
        (part, name)
        for part, videos in dataset.parts.items()
        for label, name in enumerate(dataset.classes)
        if videos and label not in done.labels[part]
    )
