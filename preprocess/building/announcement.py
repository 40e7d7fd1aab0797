"""What is said before a build starts: what becomes of each record and why, how long it takes, and how much disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocess.build import complete_before, read_failures, split_location
from preprocess.building.affected import Affected, affected
from preprocess.building.affected import in_words as affected_in_words
from preprocess.building.estimate import Estimate, bytes_in_words, estimate_build, in_words
from preprocess.building.notes import noted_shards, read_notes
from preprocess.building.places import FolderPlace, Place
from preprocess.building.plan import PlannedShard, planned
from preprocess.building.standing import made_of, manifests
from preprocess.building.work import ENDING, record_name, stem_of
from preprocess.building.workers import engine_of
from preprocess.building.workplace import Share, work_place
from preprocess.config import Preprocess
from preprocess.errors import PreprocessError, VideoError
from preprocess.sources.listing import Dataset, Video
from preprocess.video import source_of
from shards.manifest import Manifest
from shards.stores.connect import is_url


@dataclass(frozen=True, kw_only=True, slots=True)
class Announcement:
    """What a build, or one part of it, will do and take."""

    where: str  # of the split
    what: Affected
    estimate: Estimate | None  # None: not one of the videos tried can be read
    settings: Preprocess
    free: int | None  # bytes on the disk; None: in a bucket
    replaces: bool  # shards that stand there, which stay until the last of their records is taken over
    workers: int  # processes; 0: as many as a cluster has CPUs

    @property
    def room(self) -> float:
        """Bytes that the build needs, with the records that wait to be packed; shards of another split take none."""
        if self.estimate is None:
            return 0.0
        per_shard = self.estimate.bytes / max(self.what.shards, 1)
        new = self.estimate.bytes - per_shard * self.what.standing
        return 2 * new if self.replaces else new + per_shard * min(self.workers or self.what.shards, self.what.shards)

    def lines(self) -> Iterator[str]:
        """All of it, as it is told."""
        yield affected_in_words(self.what)
        if self.what.standing:
            yield (
                f"{self.what.standing:,} of {_counted(self.what.shards, 'shard')} stand in another split already; they"
                " take no room where the file system can link them"
            )
        free = "" if self.free is None else f"; {bytes_in_words(self.free)} are free"
        if self.estimate is None:
            yield f"estimate: not possible, none of the videos tried can be read{free}"
            return
        yield f"estimate: {self._work(self.estimate)}; {self._disk(self.estimate)}{free}"
        if self.free is not None and self.room > self.free:
            yield (
                f"warning: about {bytes_in_words(self.room)} are needed, more than is free; the build would stop, and"
                " go on once there is room"
            )

    def _work(self, estimate: Estimate) -> str:
        amount = f"{estimate.videos:,} videos, about {estimate.frames:,} frames of {estimate.width}x{estimate.height}"
        share, halved = self.what.share_made, self.settings.flow.scale != 1.0
        if not share:
            return f"{amount}; nothing is computed"
        alone = in_words(estimate.core_seconds * share)
        took = f"about {in_words(estimate.seconds * share)} with {_counted(self.workers, 'process')}"
        if self.workers > 1:
            took += f", {alone} with one"
        elif not self.workers:
            took = f"about {alone} with one process, which a cluster divides by its CPUs"
        if estimate.pairs_per_s:
            stored = "; flow is stored at half the size" if halved else ""
            where = "one GPU" if estimate.on_gpu else "one core"
            speed = f"{self.settings.flow.method} does {estimate.pairs_per_s:,.1f} pairs/s on {where} here"
            return f"{amount}; {speed}: {took}{stored}"
        how = "frames are taken over as they are, flow is halved" if halved else "frames and flow are taken over"
        return f"{amount}; {how}: {took}"

    def _disk(self, estimate: Estimate) -> str:
        index = sum(part.index_bytes for part in estimate.parts.values())
        shards = f"about {bytes_in_words(estimate.bytes)} in {_counted(self.what.shards, 'shard')} in {self.where}"
        twice = ", twice that while building" if self.replaces else ""
        return f"{shards}, with {bytes_in_words(index)} of indexes{twice}"


def announcement(dataset: Dataset, settings: Preprocess, out: str | Path, share: Share | None = None) -> Announcement:
    """What a build into `out` will do and take; some videos are tried for it, which takes a few seconds."""
    where = split_location(dataset, out)
    splits = manifests(_folder(where))
    record = made_of(dataset, settings)["record"]
    _, workers = engine_of(settings, dataset, out)
    return Announcement(
        where=where,
        what=affected_by(dataset, settings, out, share, splits=splits),
        estimate=estimate_build(dataset, settings, workers, _shards(dataset, settings, share)),
        settings=settings,
        free=None if is_url(where) else shutil.disk_usage(_standing_folder(Path(where))).free,
        replaces=where in splits and splits[where].made.get("record") == record,
        workers=workers,
    )


def complete(dataset: Dataset, settings: Preprocess, out: str | Path) -> bool:
    """Whether the split stands there as it is asked for, of the files that are there now.

    Raises PreprocessError where another stands, and says what would become of it.
    """
    where, made = split_location(dataset, out), made_of(dataset, settings)
    try:
        return complete_before(where, made, dataset) is not None
    except PreprocessError as error:
        words = affected_in_words(affected_by(dataset, settings, out), said_before=str(error))
        raise PreprocessError(f"{error}: {words}") from error


def affected_by(
    dataset: Dataset,
    settings: Preprocess,
    out: str | Path,
    share: Share | None = None,
    *,
    splits: Mapping[str, Manifest] | None = None,
) -> Affected:
    """What a build into `out` will do to each record; `splits` are those that stand there, where they are known."""
    where, made = split_location(dataset, out), made_of(dataset, settings)
    splits = manifests(_folder(where)) if splits is None else splits
    return affected(
        dataset,
        made,
        _shards(dataset, settings, share),
        {location: splits[location] for location in sorted(splits, key=lambda location: (location != where, location))},
        where=where,
        finished=_finished(work_place(out, dataset.name, made["record"]), json.dumps(made["record"], sort_keys=True)),
        failed=[failure.name for failure in read_failures(where)],
    )


def _shards(dataset: Dataset, settings: Preprocess, share: Share | None) -> Sequence[PlannedShard]:
    plan = planned(dataset, settings.per_shard)
    return plan[share.number - 1 :: share.of] if share else plan


def _finished(work: Place, recipe_text: str) -> Callable[[Video], bool]:
    """Whether the record of a video waits, or is packed already; the video is read where it is newer than that."""
    folder = isinstance(work, FolderPlace)
    names: dict[str, dict[str, float]] = {}  # by stem: names of records, and when they were written, s
    if not isinstance(work, FolderPlace) or work.root.is_dir():
        for name in work.names():
            if name.endswith(ENDING):
                stamp = work.stamp(name) if folder else None
                when = int(stamp.version) / 1e9 if stamp else float("inf")
                names.setdefault(_stem(name), {})[name] = when
        for split, shards in noted_shards(work).items():
            for _, note in read_notes(work, split, shards):
                for name in note.records:
                    names.setdefault(_stem(name), {})[name] = note.began

    def finished(video: Video) -> bool:
        known = names.get(stem_of(video), {})
        try:
            if not known or video.path.stat().st_mtime <= max(known.values()):
                return bool(known)
            return record_name(video, source_of(video.path), recipe_text) in known
        except (OSError, VideoError):
            return False

    return finished


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition("-")[0] + "-"


def _folder(where: str) -> str:
    """That of the data set."""
    return where.rpartition("/")[0]


def _standing_folder(folder: Path) -> Path:
    """The nearest folder that is there."""
    return next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())


def _counted(number: int, noun: str) -> str:
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"
