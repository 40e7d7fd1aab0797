"""A rank that streams, a process of its own that may be killed: `python streaming_victim.py WISH`.

After each step it adds a line to its book: the clips of the step, and the state of the stream as a checkpoint has it.
A line that was torn by the end of its process is none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a rank is to do."""

    location: str
    book: str
    steps: int  # in all, with those before
    state: str = ""  # to go on from
    rank: int = 0
    world: int = 1
    mode: str = "ranges"
    cache: str = ""
    kind: str = "full"
    pause_s: float = 0.0  # after each step


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A line of a book."""

    state: str
    clips: tuple[tuple[Any, ...], ...]


def begun(wish: Wish) -> subprocess.Popen[str]:
    """The process."""
    command = [sys.executable, __file__, json.dumps(asdict(wish))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def steps_in(book: Path) -> list[Step]:
    """The steps that stand in a book."""
    lines = book.read_bytes().split(b"\n")[:-1] if book.exists() else []
    told = [json.loads(line) for line in lines]
    return [Step(state=one["state"], clips=tuple(tuple(clip) for clip in one["clips"])) for one in told]


def cut(book: Path, steps: int) -> None:
    """Keeps the first `steps` of a book: those that were saved."""
    lines = book.read_bytes().split(b"\n")[:steps] if book.exists() else []
    book.write_bytes(b"".join(line + b"\n" for line in lines))


def main() -> None:
    """Does what the command line wishes."""
    sys.path.insert(0, str(ROOT))
    from dataclasses import astuple

    from shards.access import Access
    from shards.order import State
    from shards.split import open_split
    from tests.faults.delivery import BATCH, steps, stream

    wish = Wish(**json.loads(sys.argv[1]))
    access = Access(mode=wish.mode, cache=Path(wish.cache) if wish.cache else None, deadline=60)  # type: ignore[arg-type]
    start = State.from_json(wish.state) if wish.state else None
    with (
        open_split(wish.location, access=access) as split,
        stream(split, start=start, rank=wish.rank, world=wish.world, kind=wish.kind) as reading,
        Path(wish.book).open("ab") as book,
    ):
        while reading.state().position < wish.steps * BATCH:
            clips = [astuple(clip) for clip in steps(reading, 1)]
            book.write(json.dumps({"state": reading.state().to_json(), "clips": clips}).encode() + b"\n")
            book.flush()
            time.sleep(wish.pause_s)


if __name__ == "__main__":
    main()
