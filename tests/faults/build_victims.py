"""Builds that are ended where they are told to: processes forked from one that has imported everything.

`strike={"number": 7, "how": "kill", "delay_s": 0.01}` ends the build at its seventh moment, or a little later: moments
lie before and after each file gets its name or a second one, is removed, or has been written to the disk, and each
folder is made or removed. `how` is `kill` (SIGKILL), `term` (SIGTERM) or `int` (SIGINT).
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
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

WATCHED = ("fsync", "replace", "rename", "unlink", "link", "mkdir", "rmdir")
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
TIMEOUT_S = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a build ended."""

    code: int  # negative: of the signal that ended it; 1: an error, which is the output
    output: str
    moments: int  # 0 where it was killed


class BuildVictims:
    """One process that forks builds. Use as a context manager."""

    def __enter__(self) -> BuildVictims:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=TIMEOUT_S)

    def run(self, root: Path, out: Path, what: str = "build", **strike: Any) -> Ended:
        """Builds the data set at `root` into `out` until the build ends or is struck.

        `what` is `build`, a part (`2/3`), or `merge`. One process does it all, one task after the other.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(root), str(out), what, strike or None]), file=self.process.stdin, flush=True)
        code, output, moments = json.loads(self.process.stdout.readline())
        return Ended(code=code, output=output, moments=moments)


def main() -> None:
    """Answers each line (root, out, what, strike) with what became of that build."""
    for name in ("build", "building.parts", "building.engines", "datasets"):
        import_module(f"preprocess.{name}")
    for line in sys.stdin:
        root, out, what, strike = json.loads(line)
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            os.close(reading)
            _build(Path(root), Path(out), what, strike, writing)
        os.close(writing)
        with os.fdopen(reading) as said:
            output, moments = json.loads(said.read() or '["", 0]')
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), output, moments]), flush=True)


def small_build(root: Path, out: Path, what: str, watch: Callable[[Any], None] | None = None) -> None:
    """The build, or part, or merge, with settings that make it take a moment. Raises what it raises."""
    from preprocess.build import build
    from preprocess.building.engines import here
    from preprocess.building.parts import build_part, merge
    from preprocess.building.workplace import Share
    from preprocess.config import Flow, Preprocess, Rgb
    from preprocess.datasets import find_dataset

    settings = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=2)
    dataset = find_dataset(root)
    if what == "build":
        build(dataset, settings, out, watch, engine=here)
    elif what == "merge":
        merge(dataset, settings, out)
    else:
        number, of = map(int, what.split("/"))
        build_part(dataset, settings, out, Share(number=number, of=of), watch, engine=here)


def _build(root: Path, out: Path, what: str, strike: dict[str, Any] | None, writing: int) -> None:
    """It, in the forked process; never returns."""
    from configs import SettingsError
    from preprocess.errors import PreprocessError
    from shards.errors import ShardError

    code, output, moments = 70, "", _Moments(strike)
    try:
        signal.alarm(TIMEOUT_S)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command does it
        for name in WATCHED:
            setattr(os, name, _around(getattr(os, name), moments))
        try:
            small_build(root, out, what)
            code = 0
        except (PreprocessError, ShardError, SettingsError) as error:
            code, output = 1, str(error)
        except KeyboardInterrupt:
            code = 130
    except BaseException:
        output = traceback.format_exc()
    finally:
        os.write(writing, json.dumps([output[:4000], moments.seen]).encode())
        os._exit(code)


class _Moments:
    """Counts the moments, and strikes at the one that was chosen."""

    def __init__(self, strike: dict[str, Any] | None) -> None:
        self.seen = 0
        self.strike = strike or {"number": 0}

    def __call__(self) -> None:
        self.seen += 1
        if self.seen != self.strike["number"]:
            return
        if delay_s := self.strike.get("delay_s", 0):
            threading.Thread(target=lambda: (time.sleep(delay_s), self._hit()), daemon=True).start()
        else:
            self._hit()

    def _hit(self) -> None:
        os.kill(os.getpid(), SIGNALS[self.strike["how"]])


def _around(function: Callable[..., Any], moments: _Moments) -> Callable[..., Any]:
    def watched(*given: Any, **named: Any) -> Any:
        moments()
        result = function(*given, **named)
        moments()
        return result

    return watched


if __name__ == "__main__":
    main()
