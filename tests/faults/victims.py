"""Trainings that are ended where they are told to: each a process of its own that runs the real command.

`Victims` talks to one process that has imported everything and forks: a training then costs its second, not the four
of importing. `strike={"kind": "write", "number": 3, "how": "kill"}` ends the training at the third moment of a kind:

    write     within writing a checkpoint, so much of it on disk     log       before and after a row of the log
    fsync     before and after                                       backward  in the middle of a step
    replace   before and after a file gets its name                  unlink    before and after a file is removed

`how` is `kill` (SIGKILL, also after `delay_s`), `term` (SIGTERM) or `twice` (two of them).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("write", "log", "fsync", "replace", "unlink", "backward")
TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a training ended."""

    code: int  # negative: of the signal that ended it
    output: str
    moments: Counter[str]  # how many there were of each kind; none where it was killed


class Victims:
    """One process that forks trainings. Use as a context manager."""

    def __enter__(self) -> Victims:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=TIMEOUT_S)

    def run(self, folder: Path, words: list[str], strike: dict[str, Any] | None = None) -> Ended:
        """Runs `stmul WORDS` in `folder` until it ends or is struck."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(folder), words, strike]), file=self.process.stdin, flush=True)
        code = json.loads(self.process.stdout.readline())
        moments = folder / "moments.json"
        counted = Counter(json.loads(moments.read_text())) if moments.exists() else Counter[str]()
        moments.unlink(missing_ok=True)
        return Ended(code=code, output=(folder / "output.txt").read_text(), moments=counted)


def main() -> None:
    """Answers each line (folder, words, strike) with the exit code of that training."""
    import torch._dynamo  # imported here so that no training has to: SGD does it, for seconds
    import torch.utils.tensorboard  # noqa: F401

    import stmul.cli
    import stmul.display
    import stmul.stages  # noqa: F401

    for line in sys.stdin:
        folder, words, strike = json.loads(line)
        if (child := os.fork()) == 0:
            _train(Path(folder), words, strike)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _train(folder: Path, words: list[str], strike: dict[str, Any] | None) -> None:
    """The training, in the forked process; never returns."""
    from stmul.__main__ import main as stmul

    code = 70
    try:
        signal.alarm(TIMEOUT_S)
        os.chdir(folder)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        moments = _Moments(strike)
        _watch(moments)
        try:
            stmul(args=words, prog_name="stmul")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        Path("moments.json").write_text(json.dumps(moments.seen))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Moments:
    """Counts the moments of each kind, and strikes at the one that was chosen."""

    def __init__(self, strike: dict[str, Any] | None) -> None:
        self.seen: Counter[str] = Counter()
        self.strike = strike or {"kind": "", "number": 0, "how": "kill"}

    def __call__(self, kind: str) -> None:
        self.seen[kind] += 1
        if (kind, self.seen[kind]) != (self.strike["kind"], self.strike["number"]):
            return
        if delay_s := self.strike.get("delay_s", 0):
            threading.Thread(target=lambda: (time.sleep(delay_s), self.hit()), daemon=True).start()
        else:
            self.hit()

    def hit(self) -> None:
        number = signal.SIGKILL if self.strike["how"] == "kill" else signal.SIGTERM
        for _ in range(2 if self.strike["how"] == "twice" else 1):
            os.kill(os.getpid(), number)


def _watch(moments: _Moments) -> None:
    """Puts the moments where they happen."""
    import torch

    import stmul.checkpoint
    from stmul.runs import Run

    def around(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            moments(kind)
            result = function(*given, **named)
            moments(kind)
            return result

        return watched

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, around(name, getattr(os, name)))
    Run.log = around("log", Run.log)  # type: ignore[method-assign]
    torch.Tensor.backward = around("backward", torch.Tensor.backward)  # type: ignore[method-assign]
    whole = stmul.checkpoint.whole

    @contextmanager
    def watched(path: Path) -> Iterator[_File]:
        with whole(path) as file:
            yield _File(file, moments)

    stmul.checkpoint.whole = watched  # type: ignore[assignment]


class _File:
    """A file whose writes are moments."""

    def __init__(self, file: Any, moments: _Moments) -> None:
        self.file, self.moments = file, moments

    def write(self, data: Any) -> int:
        written: int = self.file.write(data)
        self.file.flush()
        self.moments("write")
        return written

    def flush(self) -> None:
        self.file.flush()


if __name__ == "__main__":
    main()
