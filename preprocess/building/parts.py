"""Parts of a build, made side by side on nodes that share a folder or a bucket, and what puts them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from preprocess.build import BuildReport, complete_before, complete_report, completed
from preprocess.building.engines import Engine
from preprocess.building.finish import start
from preprocess.building.notes import AT_ONCE, Note, read_notes
from preprocess.building.pack import stands
from preprocess.building.places import FolderPlace, Place
from preprocess.building.plan import PlannedShard, planned
from preprocess.building.schedule import Schedule, planned_contents, work_off
from preprocess.building.site import Site, named, opened_site, split_location
from preprocess.building.standing import differences, made_of, standing
from preprocess.building.tally import Progress, Tally, check_failures
from preprocess.building.work import Failure
from preprocess.building.workers import engine_of, pinned
from preprocess.building.workplace import Share, work_place
from preprocess.config import Preprocess
from preprocess.errors import PreprocessError
from preprocess.sources.disk import some
from preprocess.sources.listing import Dataset

NOT_PACKED = "not packed"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What the build of one part did."""

    location: str  # of the split
    shards: int  # packed now, or before
    of_shards: int  # in all parts
    seconds: float
    how: Mapping[str, int]
    failures: tuple[Failure, ...]


def build_part(
    dataset: Dataset,
    settings: Preprocess,
    out: str | Path,
    share: Share,
    progress: Callable[[Progress], None] | None = None,
    *,
    rebuild: bool = False,
    engine: Engine | None = None,
) -> PartReport:
    """Makes and packs every n-th shard of `dataset`; `merge` makes the split of them when all parts are done.

    Parts work side by side on a folder that they share, or a bucket. Raises as `build`, where another build that is no
    part is at work there, and where shards stand that only a build of the whole can take over.
    """
    begin, settings = time.monotonic(), pinned(settings, dataset)
    location, made = split_location(dataset, out), made_of(dataset, settings)
    plan = planned(dataset, settings.per_shard)
    ours = plan[share.number - 1 :: share.of]
    before = standing(location)
    same = before.manifest is not None and not before.missing and not differences(before.manifest.made, made)
    if (same or not rebuild) and complete_before(location, made, dataset) is not None:
        return PartReport(location=location, shards=len(ours), of_shards=len(plan), seconds=0.0, how={}, failures=())
    with opened_site(dataset, settings, out, share, again=rebuild) as site:
        noted_failures = f"failures-{share.number}-of-{share.of}.jsonl"
        tally = Tally(site.shards, settings.failures, progress, noted_failures)
        known = site.known(ours)
        if known.ours:
            raise PreprocessError(
                f"{location}: holds shards whose records can be taken over, but not by parts, which would replace them"
                " under each other's hands; build it once without --part (nothing is computed twice), or name another"
                " folder with --out"
            )
        start(site.shards)
        schedule = Schedule(ours, site.videos, known.notes, known.tars, tally)
        tally.begin()
        run, workers = engine_of(settings, dataset, out)
        work_off(schedule, site.job(), workers, engine or run)
        if not tally.failures:
            site.shards.remove([noted_failures])
    return PartReport(
        location=location,
        shards=len(ours),
        of_shards=len(plan),
        seconds=time.monotonic() - begin,
        how={how: count for how, count in tally.how.items() if count},
        failures=tuple(tally.failures),
    )


def merge(dataset: Dataset, settings: Preprocess, out: str | Path) -> BuildReport:
    """Makes the split of shards that parts have packed: indexes and manifest; nothing is computed.

    Raises PreprocessError where shards are missing, and says which parts they are of.
    """
    begin, settings = time.monotonic(), pinned(settings, dataset)
    location, made = split_location(dataset, out), made_of(dataset, settings)
    if (complete := complete_before(location, made, dataset)) is not None:
        return complete_report(dataset, settings, out, complete)
    if not _begun(work_place(out, dataset.name, made["record"])):  # a refusal leaves no folders behind
        plan = planned(dataset, settings.per_shard)
        raise PreprocessError(f"{location}: {_missing_in_words(plan, {}, dict.fromkeys(range(len(plan)), NOT_PACKED))}")
    with opened_site(dataset, settings, out) as site:
        notes = dict(read_notes(site.work, dataset.split, map(named, site.plan)))
        with ThreadPoolExecutor(AT_ONCE) as threads:
            found = threads.map(lambda shard: _lacking(site, shard, notes.get(named(shard))), site.plan)
            missing = {position: why for position, why in enumerate(found) if why}
        if missing:
            raise PreprocessError(f"{location}: {_missing_in_words(site.plan, notes, missing)}")
        failures = [failure for note in notes.values() for failure in note.failures]
        if failures:
            check_failures(failures, failures[-1], settings.failures, f"{location}/failures-*.jsonl")
        start(site.shards)
        return completed(site, {"packed by parts": sum(len(note.keys) for note in notes.values())}, begin)


def _begun(place: Place) -> bool:
    """Whether any part, or build, has been at work with these settings."""
    return place.root.is_dir() if isinstance(place, FolderPlace) else bool(place.names())


def _lacking(site: Site, shard: PlannedShard, note: Note | None) -> str:
    """Why a shard cannot be merged; empty: it can."""
    if note is None:
        return NOT_PACKED
    if note.videos != planned_contents(shard, site.videos):
        return "packed of other videos or files"
    return "" if stands(site.job(), note) else "gone, or not the file that was packed"


def _missing_in_words(plan: Sequence[PlannedShard], notes: Mapping[str, Note], missing: Mapping[int, str]) -> str:
    """What to do about missing shards."""
    said = some([f"{named(plan[position])} ({why})" for position, why in missing.items()])
    text = f"{len(missing):,} of {len(plan):,} shards are missing: {said}"
    counts = {int(note.share.partition("/")[2]) for note in notes.values() if note.share}
    if not notes:
        return f"{text}; no part was built with these settings yet. Build the parts with --part, or all without it"
    if len(counts) != 1:
        return f"{text}. Build them with the same command as the others, without --part"
    count = counts.pop()
    parts = sorted({position % count + 1 for position in missing})
    return f"{text}. Build part {some([f'{part}/{count}' for part in parts])} again: what is finished is kept"
