"""One user of a cache, a process of its own that can be killed at a chosen moment: `python cache_victim.py WISH`.

A moment is before each call that changes something or agrees on it (open, flock, rename, remove, truncate, fsync, ...),
in the middle of each write, and before each block that comes. What it did is printed as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

EVENTS = ("open", "fcntl.flock", "os.rename", "os.remove", "os.truncate", "os.utime", "os.mkdir", "os.scandir")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a process is to do."""

    folder: str  # of the cache
    origin: str  # the file whose bytes are downloaded
    block: int  # bytes that come at a time
    pause_s: float = 0.0  # before each block
    strike: int = 0  # the moment at which it is killed; 0: it is not
    limit: int = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """What a process has done."""

    code: int  # negative: of the signal that ended it
    moments: int = 0
    pulled: int = 0  # bytes that it downloaded
    right: bool = False  # whether what it got are the bytes of the origin


def begun(wish: Wish) -> subprocess.Popen[str]:
    """The process."""
    command = [sys.executable, __file__, json.dumps(asdict(wish))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> Done:
    """What has become of it."""
    out, err = process.communicate(timeout=120)
    assert process.returncode in (0, -signal.SIGKILL), err
    return Done(code=process.returncode, **(json.loads(out) if out else {}))


class _Moments:
    def __init__(self, strike: int) -> None:
        self.count, self.strike = 0, strike

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.strike:
            os.kill(os.getpid(), signal.SIGKILL)


def _watch(moments: _Moments) -> None:
    pwrite, fsync = os.pwrite, os.fsync

    def torn(handle: int, data: bytes, at: int) -> int:
        view = memoryview(data)
        half = pwrite(handle, view[: len(view) // 2], at) if len(view) > 1 else 0
        moments()
        return half + pwrite(handle, view[half:], at + half)

    def synced(handle: int) -> None:
        moments()
        fsync(handle)

    os.pwrite, os.fsync = torn, synced  # type: ignore[assignment]
    sys.addaudithook(lambda event, _: moments() if event in EVENTS else None)


def main() -> None:
    """Does what the command line wishes."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from shards.cache import Cache, Wanted

    wish = Wish(**json.loads(sys.argv[1]))
    data = Path(wish.origin).read_bytes()
    sha256, pulled = hashlib.sha256(data).hexdigest(), 0
    moments = _Moments(wish.strike)

    def source(start: int) -> Iterator[bytes]:
        nonlocal pulled
        for at in range(start, len(data), wish.block):
            moments()
            time.sleep(wish.pause_s)
            pulled += len(data[at : at + wish.block])
            yield data[at : at + wish.block]

    _watch(moments)
    wanted = Wanted(name=sha256, size=len(data), sha256=sha256, where="the origin")
    with Cache(Path(wish.folder), wish.limit).get(wanted, source, lambda: False) as held:
        found = os.pread(held.handle, len(data) + 1, 0)
    print(json.dumps({"moments": moments.count, "pulled": pulled, "right": found == data}))


if __name__ == "__main__":
    main()
