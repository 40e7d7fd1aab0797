"""What runs on the nodes of a Ray cluster: a worker process makes sure that its node will do, then does tasks.

Nothing here needs Ray. Terms are plain values, and the rest is unpacked only once the code is known to be the same.
"""

from __future__ import annotations

import copy
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from configs import SettingsError
from preprocess.errors import PreprocessError
from preprocess.sources.listing import Video
from shards.errors import ShardError

Answer = tuple[Literal["result", "error", "unfit", "unseen"], Any]
# with: the result; the exception; what is wrong with the node; the path that it does not see

PATIENCE_S = 15.0  # how long a file that was just written may take to be seen: NFS remembers what was not there
PACKAGES = ("configs", "preprocess", "shards")
LIBRARIES = ("numpy", "opencv-contrib-python-headless", "av", "simplejpeg", "numba", "msgpack", "webdataset")


Code = tuple[tuple[str, str], ...]  # names and versions
Terms = tuple[Code, tuple[str, ...], str]
# what a node must fulfil: the code; files to be seen in the folders that all share; the folder of relative paths, or ""


@dataclass(frozen=True, slots=True)
class Start:
    """What makes the working function, to be fetched."""

    key: str  # of one build, and no other
    fetch: Callable[[], Callable[[], Callable[[Any], Any]]] = field(compare=False)


@cache
def code_here() -> Code:
    """What decides the bytes of records on this machine: our code, by its digest, and the libraries' versions."""
    above, digest = Path(__file__).parents[2], sha256()
    for path in sorted(path for package in PACKAGES for path in (above / package).rglob("*.py")):
        digest.update(f"{path.relative_to(above).as_posix()}\0{sha256(path.read_bytes()).hexdigest()}\n".encode())
    found = [("stmul", digest.hexdigest()[:12])]
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found.append((name, version(name)))
    return tuple(found)


def serve(terms: Terms, start: Start, fetch_task: Callable[[], Any], look: bool) -> Answer:
    """Does a task, unless this node does not fulfil the terms, or (if it is to look) does not see the task's videos."""
    try:
        if unfit := _unfit(terms):
            return "unfit", unfit
        task = fetch_task()
        if look and (missing := next((path for path in videos_of(task) if not there(path)), None)):
            return "unseen", missing
        return "result", _started(start)(task)
    except Exception as error:
        if not isinstance(error, PreprocessError | ShardError | SettingsError):
            error.add_note(f"on {socket.gethostname()}:\n{traceback.format_exc()}")  # it would be lost on the way
        return "error", _sendable(error)


def videos_of(value: Any) -> Iterator[Path]:
    """The files and folders of all videos in a task, however deep they stand in it."""
    if isinstance(value, Video):
        yield from (value.path, *(value.flow_path or ()))
    elif isinstance(value, tuple):
        for one in value:
            yield from videos_of(one)
    elif is_dataclass(value):
        for one in fields(value):
            yield from videos_of(getattr(value, one.name))


def there(path: Path) -> bool:
    """Whether the file or folder can be seen from here."""
    try:
        return path.exists()
    except OSError:  # a folder above it may not be looked into
        return False


@lru_cache(maxsize=1)
def _unfit(terms: Terms) -> str:
    """Which of the terms this node does not fulfil, and what to do; nothing if it fulfils them."""
    (code, seen, folder), here = terms, dict(code_here())
    wrong = [
        f"{name} {here.get(name, 'missing')}, expected {expected}"
        for name, expected in code
        if here.get(name) != expected
    ]
    if wrong:
        return (
            f"has other code than the machine where the build was started ({'; '.join(wrong)}); its records could have"
            " other bytes. Install the same there, and start its Ray anew"
        )
    if folder:
        try:
            os.chdir(folder)
        except OSError as error:
            return (
                f"cannot go to {folder}, where the build was started ({error.strerror}): name --root and --out by"
                " their full paths"
            )
    end = time.monotonic() + PATIENCE_S
    for path in map(Path, seen):
        while not there(path):
            if time.monotonic() > end:
                return (
                    f"does not see {path.parent} as the machine where the build was started does. Write to a folder"
                    " that all nodes share under one path, or to a bucket: --out s3://..."
                )
            time.sleep(0.2)
            with suppress(OSError):
                list(path.parent.iterdir())  # makes NFS look again
    return ""


@lru_cache(maxsize=1)
def _started(start: Start) -> Callable[[Any], Any]:
    """The working function, made once in each worker process."""
    return start.fetch()()


def _sendable(error: Exception) -> Exception:
    """The error itself where it can be sent and read, else its words."""
    from ray import cloudpickle

    try:
        cloudpickle.dumps(error)  # as Ray will
        copy.copy(error)  # as reading it does: some can be sent and not be made again
    except Exception:
        return PreprocessError("\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]))
    return error
