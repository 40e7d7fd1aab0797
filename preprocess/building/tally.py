"""What a build has done so far, which videos failed, and who is told of it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass

from preprocess.building.pack import Result
from preprocess.building.places import Place
from preprocess.building.work import Failure, Finished, How
from preprocess.errors import PreprocessError

FAILURES = "failures.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a build is. Its two stages go on side by side: a shard is packed as soon as its videos are done."""

    stage: str  # "videos" or "shards"
    done: int
    total: int
    failed: int = 0
    kept: int = 0  # of the videos done, those found finished or taken over
    bytes: int = 0  # videos: of the records made or taken over; shards: of those packed or found
    shard: str = ""  # that the video belongs to, or that was packed


class Tally:
    """What has been done, what has failed, and who is told."""

    def __init__(
        self, shards: Place, allowed: int, progress: Callable[[Progress], None] | None, failures: str = FAILURES
    ) -> None:
        """Failures are noted in the file `failures` beside the shards; more than `allowed` end the build."""
        self.failures: list[Failure] = []
        self.how: Counter[str] = Counter()
        self.videos = self.shards = 0  # in all
        self._place, self._file, self._allowed = shards, failures, allowed
        self._progress = progress or (lambda _: None)
        self._done: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def begin(self) -> None:
        """Tells what there is to do."""
        self._tell("videos")
        self._tell("shards")

    def found(self, records: int) -> None:
        """Counts records in shards that were packed before, of videos that were not written since."""
        self._done["videos"] += records
        self.how["kept"] += records

    def finished(self, result: Finished, shard: str) -> None:
        """Counts a record."""
        self.how[result.how] += 1
        self._bytes["videos"] += result.bytes
        self._done["videos"] += 1
        self._tell("videos", shard)

    def packed(self, result: Result) -> None:
        """Counts a shard, and the records of extracted frames in it."""
        assert result.file is not None
        self.how["made"] += result.made
        self.how["kept"] += result.kept
        self._bytes["shards"] += result.file.size
        self._done["shards"] += 1
        self._tell("shards", result.file.name)

    def again(self, records: int, how: How) -> None:
        """Takes back that records were there, which must be made or copied after all."""
        self._done["videos"] -= records
        self.how[how] -= min(records, self.how[how])

    def failed(self, failure: Failure, *, video: bool = True) -> None:
        """Notes the failure. Raises PreprocessError where there are more than are put up with, or the video is gone."""
        if not os.path.lexists(failure.path):
            raise PreprocessError(
                f"{failure.path}: was there when the build began, and is gone; was a disk unmounted, or a folder moved?"
                " Put it back and run the same command again: what is finished is kept"
            )
        self._done["videos"] += video
        self.failures = sorted([*self.failures, failure], key=lambda one: (one.part, one.name))
        write_failures(self._place, self._file, self.failures)
        check_failures(self.failures, failure, self._allowed, f"{self._place.location}/{self._file}")
        if video:
            self._tell("videos")

    def _tell(self, stage: str, shard: str = "") -> None:
        videos = stage == "videos"
        self._progress(
            Progress(
                stage=stage,
                done=self._done[stage],
                total=self.videos if videos else self.shards,
                failed=len(self.failures),
                kept=self.how["kept"] + self.how["taken over"] if videos else 0,
                bytes=self._bytes[stage],
                shard=shard,
            )
        )


def check_failures(failures: Iterable[Failure], last: Failure, allowed: int, where: str) -> None:
    """Raises PreprocessError where there are more failures than are put up with."""
    if (number := len(list(failures))) > allowed:
        raise PreprocessError(
            f"{number} broken videos, at most {allowed} are put up with (preprocess.failures);"
            f" the last: {last.reason}. All stand in {where}: repair them and run the same"
            " command again, what is finished is kept"
        )


def write_failures(place: Place, name: str, failures: Iterable[Failure]) -> None:
    """Writes a list of failures, a line of JSON each."""
    place.write(name, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in failures).encode())


def failures_in(place: Place, name: str = FAILURES) -> tuple[Failure, ...]:
    """The videos without a record, as the build of the split noted them."""
    with suppress(ValueError, TypeError):
        data = place.read(name) or b""
        return tuple(Failure(**json.loads(line)) for line in data.decode().splitlines())
    return ()
