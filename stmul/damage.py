"""What is done about damaged training clips: they are left out and listed, up to a limit."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

from shards.errors import ShardError
from shards.index import Row
from stmul.errors import TrainingError
from stmul.runs import add_line

NAME = "damaged.jsonl"


class Damaged:
    """The damaged videos of a training, each told once: a file with a line for each, those of earlier sessions too.

    Calling it with a video's row and its error notes it; raises TrainingError where they become more than `limit`.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.path, self.limit = folder / NAME, limit
        self._lock = threading.Lock()
        self._known: set[str] = set()
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            with suppress(ValueError, KeyError):  # half a line, left by a power cut: it will be met again
                self._known.add(json.loads(line)["name"])

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, row: Row, error: ShardError) -> None:
        with self._lock:
            if row.name not in self._known:
                self._known.add(row.name)
                line = json.dumps({"name": row.name, "record": row.record, "error": str(error)})
                add_line(self.path, line)
            if len(self._known) > self.limit:
                raise TrainingError(
                    f"{len(self._known)} videos are damaged, data.damage_limit is {self.limit}; they are listed in"
                    f" {self.path}. Copy or build the shards again; the last: {error}"
                )
