"""What is to be done for the shards of a build, and when: the records of a shard first, then the shard.

A shard is packed as soon as its last record is there, so that finished records need room for a few shards only. Where
shards of the same names stand that hold records which are still needed, those that stay as they are come first, and
packing waits for copies of all other records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial

from preprocess.building.engines import Died, Engine
from preprocess.building.notes import AT_ONCE, Note, contents_of
from preprocess.building.pack import Entry, Result, Shard, packer
from preprocess.building.plan import PlannedShard
from preprocess.building.tally import Tally
from preprocess.building.work import Failure, Finished, How, Job, Task, video_worker
from preprocess.errors import PreprocessError
from preprocess.sources.listing import Video
from shards.format import key_of
from shards.manifest import shard_name

Done = Finished | Failure | Result
SURE = 600.0  # seconds that the clocks of nodes and file servers may differ


@dataclass(kw_only=True, slots=True)
class _Slot:
    """A planned shard on its way."""

    planned: PlannedShard
    videos: Mapping[str, Video]  # by key, in order
    contents: str
    began: float
    waiting: set[str]  # keys whose records are not there yet
    entries: dict[str, Entry] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    lost: int = 0  # how often records had to be made again
    stays: bool = False  # it stands as it is to be, and replaces nothing

    @property
    def name(self) -> str:
        return shard_name(self.planned.part, self.planned.number)

    def shard(self) -> Shard:
        """The shard, its records in the planned order."""
        return Shard(
            name=self.name,
            part=self.planned.part,
            number=self.planned.number,
            videos=self.contents,
            began=self.began,
            entries=tuple(self.entries[key] for key in self.videos if key in self.entries),
            failures=tuple(self.failures[key] for key in self.videos if key in self.failures),
        )


class Schedule:
    """The tasks of a build; new ones are appended as shards become ready."""

    def __init__(
        self,
        planned: Sequence[PlannedShard],
        videos: Mapping[tuple[str, str], Video],
        notes: Mapping[str, Note],
        tars: Mapping[str, tuple[str, ...]],
        tally: Tally,
        *,
        hold: Callable[[], None] | None = None,
        ours: str = "",
    ) -> None:
        """`videos` by part and key; `notes` by shard; `tars`: where shards of unfinished builds hold records, by key.

        With `hold` no shard is replaced before all records are there, and `hold` was called. `ours` is the location of
        the split: records that stand there are copied, unless they are a whole shard that stays.
        """
        self.tasks: list[Task | Shard] = []
        self._tally, self._hold, self._ours, self._ready = tally, hold, ours, list[_Slot]()
        self._slots: dict[tuple[str, str], _Slot] = {}  # by part and key
        self._open = 0  # tasks that a replaced shard must wait for
        tally.shards = len(planned)
        with ThreadPoolExecutor(AT_ONCE) as threads:  # each looks at its files, which a shared folder is slow at
            slots = list(
                threads.map(lambda one: _slot(one, videos, notes.get(shard_name(one.part, one.number))), planned)
            )
        for one, slot in zip(planned, slots, strict=True):
            self._slots |= {(one.part, key): slot for key in one.keys}
            tally.videos += sum(video.flow_path is None for video in slot.videos.values())
            noted = notes.get(slot.name)
            packed = dict(zip(noted.keys, noted.records, strict=True)) if noted is not None else {}
            for key in (key for key in one.keys if key in slot.waiting):
                task = Task(video=slot.videos[key], part=one.part, packed=packed.get(key, ""), tars=tars.get(key, ()))
                self.tasks.append(task)
            self._open += len(slot.waiting)
            tally.found(sum(video.flow_path is None for video in slot.videos.values()) - len(slot.waiting))
            if not slot.waiting:
                self._pack(slot)
        self._release()

    def take(self, task: Task | Shard, result: Done | Died) -> None:
        """Notes what came of a task. Raises PreprocessError where the build cannot go on."""
        if isinstance(task, Task):
            assert not isinstance(result, Result)
            self._take_record(task, result)
        else:
            assert isinstance(result, Result | Died)
            self._take_shard(task, result)
        self._release()

    def _take_record(self, task: Task, result: Finished | Failure | Died) -> None:
        key = key_of(task.video.name)
        slot = self._slots[task.part, key]
        slot.waiting.discard(key)
        self._open -= 1
        if isinstance(result, Finished):
            slot.entries[key] = Entry(key=key, video=task.video, record=result.record, held=result.held)
            self._tally.finished(result, slot.name)
        else:
            slot.failures[key] = failure = _crash(task, result) if isinstance(result, Died) else result
            self._tally.failed(failure)
        if not slot.waiting:
            self._complete(slot)

    def _take_shard(self, shard: Shard, result: Result | Died) -> None:
        if isinstance(result, Died):
            raise PreprocessError(f"{shard.name}: the process writing it was {result.reason}, twice; is memory short?")
        slot = self._slots[shard.part, next(iter(shard.entries)).key] if shard.entries else None
        if slot is not None and slot.stays:
            self._open -= 1
        if not result.lost:
            for failure in result.failures:
                if failure.name not in {one.name for one in shard.failures}:
                    self._tally.failed(failure, video=False)  # of extracted frames: packing is all there is to do
            self._tally.packed(result)
            for entry in shard.entries:
                del self._slots[shard.part, entry.key]
            return
        assert slot is not None
        slot.lost += 1
        if slot.lost > 2:
            raise PreprocessError(
                f"{shard.name}: finished records vanish before they are packed, {result.lost[0]!r} among them; does"
                " something else write or clean up there?"
            )
        self._again(slot, result.lost, "taken over" if slot.stays else "kept")

    def _complete(self, slot: _Slot) -> None:
        """Packs a shard, or leaves it as it stands; or has those records copied first that stand in this split."""
        held = {key: entry.held for key, entry in slot.entries.items() if entry.held is not None}
        standing = {key: one for key, one in held.items() if one.location == self._ours}
        of_shards = {(one.part, one.shard) for one in standing.values()}
        if not standing:
            self._pack(slot)
        elif len(standing) == len(slot.entries) and of_shards == {(slot.planned.part, slot.planned.number)}:
            slot.stays = True
            self._open += 1
            self.tasks.append(slot.shard())
        else:
            self._again(slot, [*standing], "taken over")

    def _again(self, slot: _Slot, keys: Sequence[str], how: How) -> None:
        """Has records made again, or copied from where they stand."""
        slot.waiting, slot.stays = set(keys), False
        self._open += len(slot.waiting)
        self._tally.again(len(slot.waiting), how)
        self.tasks += [Task(video=slot.videos[key], part=slot.planned.part, copy=True) for key in keys]

    def _pack(self, slot: _Slot) -> None:
        if self._hold is None:
            self.tasks.append(slot.shard())
        else:
            self._ready.append(slot)

    def _release(self) -> None:
        """Goes on to packing, where it had to wait for all records."""
        if self._hold is not None and not self._open:
            self._hold()
            self._hold = None
            self.tasks += [slot.shard() for slot in self._ready]


def worker(job: Job) -> Callable[[Task | Shard], Done]:
    """The function that does the tasks of a build, whichever they are."""
    record, pack = video_worker(job), packer(job)
    return lambda task: record(task) if isinstance(task, Task) else pack(task)


def work_off(schedule: Schedule, job: Job, workers: int, engine: Engine) -> None:
    """Does all tasks. Raises PreprocessError or ShardError; what is finished is kept."""
    while tasks := schedule.tasks:
        done: set[int] = set()
        with closing(engine(partial(worker, job), tasks, workers)) as results:
            for position, result in results:
                done.add(position)
                schedule.take(tasks[position], result)
        # What was appended, where the engine has not seen it.
        schedule.tasks = [task for position, task in enumerate(tasks) if position not in done]


def planned_contents(planned: PlannedShard, videos: Mapping[tuple[str, str], Video]) -> str:
    """A digest of what is to be in a shard; `videos` by part and key."""
    return contents_of((video, _size(video)) for video in (videos[planned.part, key] for key in planned.keys))


def _slot(planned: PlannedShard, videos: Mapping[tuple[str, str], Video], note: Note | None) -> _Slot:
    of_shard = {key: videos[planned.part, key] for key in planned.keys}
    began, contents = time.time(), planned_contents(planned, videos)
    slot = _Slot(planned=planned, videos=of_shard, contents=contents, began=began, waiting=set())
    for key, video in of_shard.items():
        if video.flow_path is not None:
            slot.entries[key] = Entry(key=key, video=video)
    if note is not None and note.videos == contents and not note.failures and _unchanged(of_shard.values(), note.began):
        # No video was written since it was read: none is read again to know it.
        for key, record in zip(note.keys, note.records, strict=True):
            if key not in slot.entries:
                slot.entries[key] = Entry(key=key, video=of_shard[key], record=record)
        slot.began = note.began
    slot.waiting = {key for key in of_shard if key not in slot.entries}
    return slot


def _size(video: Video) -> int:
    """Bytes of the video file; of extracted frames, which `pack` looks at, nothing."""
    if video.flow_path is None:
        with suppress(OSError):
            return video.path.stat().st_size
    return -1


def _unchanged(videos: Iterable[Video], began: float) -> bool:
    """Whether no video file was written, moved or replaced after `began`, nor shortly before."""
    try:
        facts = [video.path.stat() for video in videos if video.flow_path is None]
    except OSError:
        return False
    return all(max(fact.st_mtime, fact.st_ctime) < began - SURE for fact in facts)


def _crash(task: Task, died: Died) -> Failure:
    path = task.video.path
    reason = f"{path}: the process decoding it was {died.reason}, twice: it crashes the decoder, or memory is short"
    return Failure(name=task.video.name, path=str(path), part=task.part, reason=reason)
