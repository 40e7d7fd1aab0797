"""Where finished records wait for their shards: <out>/.work/<data set>-<how they are made>, locked while in use.

In a folder a build locks it against others; parts of one build (`--part 3/16`) work side by side, also from several
nodes, each locked against itself. Buckets know no locks: there it is for the user not to start two builds at a time,
which would do the same work twice and harm nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from preprocess.building.notes import ENDING as PACKED
from preprocess.building.notes import noted_shards, read_notes, remove_notes
from preprocess.building.places import FolderPlace, Place, place_at
from preprocess.building.standing import differences
from preprocess.building.work import ENDING, stem_of
from preprocess.errors import PreprocessError
from preprocess.sources.listing import Video
from shards.stores.connect import is_url

WORK = ".work"
HOW = "made.json"  # in the folder: how its records are made
PATIENCE = 60.0  # seconds that others may take to write down what their parts are of


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Part `number` of `of`, both from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @staticmethod
    def parse(text: str) -> Share | None:
        """What `preprocess.part` says; None where it is empty."""
        number, _, of = text.partition("/")
        return Share(number=int(number), of=int(of)) if text else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What parts that work side by side must agree on."""

    data_set: str
    split: int
    record: Mapping[str, Any]  # how its records are made
    shards: str  # digest of which record goes into which shard
    parts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """What lies in the place of other settings."""

    location: str
    files: int
    bytes: int
    shards: int  # that were packed and noted there
    differences: tuple[str, ...]  # `flow.method: 'dis' then, 'tvl1' now` each
    command: str  # that would remove it


@contextmanager
def workplace(
    out: str | Path,
    dataset: str,
    split: int,
    record: Mapping[str, Any],
    *,
    share: Share | None = None,
    plan: Plan | None = None,
    again: bool = False,
) -> Iterator[Place]:
    """The place of finished records, made if need be, locked against other builds, or for `share` of `plan`.

    Raises PreprocessError where another build is at work, or parts of another plan were begun (unless `again`).
    Records made in another way lie in another place. The locks end with the process, however it ends.
    """
    mark = f"split{split}" + (f"-part{share.number}of{share.of}" if share else "")
    place = work_place(out, dataset, record, mark)
    if not isinstance(place, FolderPlace):
        _say_how(place, record)
        yield place
        return
    name = f"{dataset}-split{split}"
    with ExitStack() as held:
        try:
            place.root.mkdir(parents=True, exist_ok=True)
            locks = [_lock_file(place.root), _lock_file(place.root.with_name(name))]
            if share is not None and plan is not None:
                _agree(place.root.with_name(name), locks, plan, again, held)
                own = _lock_file(place.root.with_name(f"{name}-part{share.number}of{share.of}"))
                held.enter_context(_held(own, f"part {share}"))
            else:
                for lock in locks:
                    held.enter_context(_held(lock))
            _say_how(place, record)
            _spread(place)
        except OSError as error:
            raise PreprocessError(
                f"{out}: shards cannot be written there: {error.strerror} ({error.filename}). Repair that, or name"
                " another folder with --out"
            ) from error
        _tidy(place, share)
        try:
            yield place
        finally:
            _tidy(place, share)


def work_place(out: str | Path, dataset: str, record: Mapping[str, Any], mark: str = "") -> Place:
    """The place of finished records."""
    way = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    name = f"{dataset}-{way[:12]}"
    return place_at(f"{out}/{WORK}/{name}" if is_url(str(out)) else Path(out) / WORK / name, mark)


def finished_before(out: str | Path, dataset: str, record: Mapping[str, Any], videos: Iterable[Video]) -> int:
    """How many of `videos` seem to have been finished by an earlier run: by names and notes, no record is read."""
    place = work_place(out, dataset, record)
    if isinstance(place, FolderPlace) and not place.root.is_dir():
        return 0
    names = [name for name in place.names() if name.endswith(ENDING)]
    for split, shards in noted_shards(place).items():
        names += [name for _, note in read_notes(place, split, shards) for name in note.records]
    stems = {name.rpartition("/")[2].partition("-")[0] + "-" for name in names}
    return sum(stem_of(video) in stems for video in videos)


def waiting_elsewhere(out: str | Path, dataset: str, record: Mapping[str, Any]) -> list[Waiting]:
    """What builds of this data set with other settings left, and are not at: such builds would go on from it."""
    ours, found = work_place(out, dataset, record).location, []
    above = place_at(f"{out}/{WORK}" if is_url(str(out)) else Path(out) / WORK)
    sizes: dict[str, dict[str, int]] = {}
    for name, size in above.sizes().items():
        folder, _, file = name.partition("/")
        if file and file != HOW and _is_of(folder, dataset):
            sizes.setdefault(folder, {})[file] = size
    for folder, those in sorted(sizes.items()):
        place = above.below(folder)
        if place.location == ours or (isinstance(place, FolderPlace) and _at_work(place.root)):
            continue
        with suppress(ValueError):
            then = json.loads(place.read(HOW) or b"{}")
            remove = "aws s3 rm --recursive" if is_url(place.location) else "rm -r"
            found.append(
                Waiting(
                    location=place.location,
                    files=len(those),
                    bytes=sum(those.values()),
                    shards=sum(name.endswith(PACKED) for name in those),
                    differences=tuple(differences(then, record)),
                    command=f"{remove} {shlex.quote(place.location)}",
                )
            )
    return found


def must_not_lose(
    out: str | Path, dataset: str, split: int, record: Mapping[str, Any], shards: Place, again: bool
) -> None:
    """Raises PreprocessError where a build with other settings was not finished that has packed `shards` of this split.

    Their records are kept nowhere else. With `again` their notes go instead: they will be replaced.
    """
    ours = work_place(out, dataset, record).location
    above = place_at(f"{out}/{WORK}" if is_url(str(out)) else Path(out) / WORK)
    folders = {name.partition("/")[0] for name in above.names() if name.endswith(PACKED)}
    for place in (above.below(folder) for folder in sorted(folders) if _is_of(folder, dataset)):
        noted = dict(read_notes(place, split, noted_shards(place).get(split, [])))
        if place.location == ours or not noted:
            continue
        lost = [name for name, note in noted.items() if shards.stamp(name) == note.stamp]
        if lost and not again:
            other = differences(json.loads(place.read(HOW) or b"{}"), record)
            raise PreprocessError(
                f"{shards.location}: {len(lost)} shards there are of a build that was not finished, with other settings"
                f" ({'; '.join(other)}). Finish it with those settings, name another folder with --out, or replace them"
                " with --rebuild: what they hold is then lost"
            )
        if again:
            remove_notes(place, split, noted)


def clear(out: str | Path, place: Place, dataset: str, split: int, videos: Iterable[Video]) -> None:
    """Removes what waited for the split of these `videos`, now complete, and the place where nothing else waits."""
    stems = {stem_of(video) for video in videos}
    names = [name for name in place.names() if name.endswith(ENDING)]
    place.remove([name for name in names if f"{name.rpartition('/')[2].partition('-')[0]}-" in stems])
    place.remove(place.names(f"split{split}"))
    if place.names() == [HOW]:
        place.remove([HOW])
    if not isinstance(place, FolderPlace):
        return
    for below in sorted(place.root.glob("*/")):
        with suppress(OSError):  # it holds something
            below.rmdir()
    folder = place.root.with_name(f"{dataset}-split{split}")
    locks = [_lock_file(folder), *folder.parent.glob(f"{folder.name}-p*.lock")]  # of the plan, of each part
    for path in [_plan_file(folder), *locks]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        place.root.rmdir()
        _lock_file(place.root).unlink(missing_ok=True)
        place.root.parent.rmdir()


def _agree(folder: Path, locks: Sequence[Path], plan: Plan, again: bool, held: ExitStack) -> None:
    """Locks for a part beside other parts of the same plan, until `held` ends.

    The plan is written down by the first part; it stays until all parts are merged. Another number of parts, when none
    is at work, is no other plan: what is packed is found by shards.
    """
    ours = json.loads(json.dumps(asdict(plan)))
    with _held(folder.with_name(f"{folder.name}-plan.lock"), patience=PATIENCE):  # one at a time decides
        files = [held.enter_context(_held(lock, shared=True)) for lock in locks]
        try:
            before = json.loads(_plan_file(folder).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {**ours, "parts": 0}
        if before == ours:
            return
        if {**before, "parts": 0} != {**ours, "parts": 0} and not again:
            raise PreprocessError(
                f"{_plan_file(folder)}: parts of this split were begun otherwise"
                f" ({'; '.join(differences(before, ours))}). Give all parts the same settings and data set; or begin"
                " anew with --rebuild"
            )
        for file in files:
            _alone(file, folder)
        _plan_file(folder).write_text(json.dumps(ours, indent=1), encoding="utf-8")
        for file in files:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_SH)


def _alone(lock: IO[str], folder: Path) -> None:
    """Turns a shared lock into one against all. Raises PreprocessError where there are others."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PreprocessError(
            f"{folder}: parts of another plan are at work here (other settings, another number of parts, or another"
            " split, whose records this one could take over); wait for them, or name another folder with --out"
        ) from None
    except OSError:
        return  # a file system without locks


def _is_of(folder: str, dataset: str) -> bool:
    """Whether a folder of finished records is of this data set, and not of one whose name begins in the same way."""
    return re.fullmatch(re.escape(dataset) + "-[0-9a-f]{12}", folder) is not None


def _spread(place: FolderPlace) -> None:
    """Moves records of an earlier version of this software to where they are looked for now."""
    for path in place.root.glob(f"*{ENDING}"):
        folder = place.root / path.name[:2]
        with suppress(FileNotFoundError):  # another part has moved it
            folder.mkdir(exist_ok=True)
            path.rename(folder / path.name)


def _say_how(place: Place, record: Mapping[str, Any]) -> None:
    place.write(HOW, json.dumps(record, indent=1, sort_keys=True).encode())


def _at_work(folder: Path) -> bool:
    """Whether somebody holds the lock of a place."""
    try:
        with _held(_lock_file(folder)):
            return False
    except (PreprocessError, OSError):
        return True


def _plan_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-plan.json")


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _held(
    path: Path, who: str = "another build of this data set", *, patience: float = 0.0, shared: bool = False
) -> IO[str]:
    """The file at `path`, locked until it is closed. Raises PreprocessError where others hold it."""
    lock, kind, end = path.open("a+"), fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            lock.close()
            raise PreprocessError(
                f"{path.with_suffix('')}: {who} is at work here; wait for it, or name another folder with --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        return lock


def _tidy(place: FolderPlace, share: Share | None) -> None:
    """Removes what a killed build left half written; of parts, only what this one left, for others are at work."""
    (place if share else FolderPlace(place.root)).tidy()
