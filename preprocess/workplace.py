"""Where finished records wait for their shards: <out>/.work/<data set>-<how they are made>, for one build at a time."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from preprocess.errors import PreprocessError
from preprocess.listing import Video
from preprocess.work import ENDING, stem_of

WORK = ".work"


@contextmanager
def workplace(out: Path, dataset: str, record: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of finished records, made if need be, locked against other builds. Raises PreprocessError.

    Records made in another way lie in another folder. The lock ends with the process, however it ends.
    """
    folder = work_folder(out, dataset, record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(folder).open("a")
    except OSError as error:
        raise PreprocessError(
            f"{out}: shards cannot be written there: {error.strerror} ({error.filename}). Repair that, or name another"
            " folder with --out"
        ) from error
    with lock:
        _hold(lock.fileno(), folder)
        _remove_partial(folder)  # a build that was killed left them
        try:
            yield folder
        finally:
            _remove_partial(folder)


def work_folder(out: Path, dataset: str, record: Mapping[str, Any]) -> Path:
    """The name of that folder."""
    way = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return out / WORK / f"{dataset}-{way[:12]}"


def finished_before(out: Path, dataset: str, record: Mapping[str, Any], videos: Iterable[Video]) -> int:
    """How many of `videos` seem to have been finished by an earlier run: by the names of files, none is read."""
    stems = {path.name.partition("-")[0] + "-" for path in work_folder(out, dataset, record).glob(f"*{ENDING}")}
    return sum(stem_of(video) in stems for video in videos)


def clear(folder: Path, files: Iterable[Path]) -> None:
    """Removes `files` from the folder, and the folder with its lock where nothing else waits there."""
    for path in files:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
        _lock_file(folder).unlink(missing_ok=True)
        folder.parent.rmdir()


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove_partial(folder: Path) -> None:
    for path in folder.glob("*.partial"):
        path.unlink(missing_ok=True)


def _hold(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PreprocessError(
            f"{folder}: another build of this data set is at work here; wait for it, or name another folder with --out"
        ) from None
    except OSError:
        return  # a file system without locks
