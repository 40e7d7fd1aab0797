"""Where the time of a training goes: a trace of some steps, and a line in words.

Inside a profile a GPU is waited for at the end of each section, so that a section's time is its own; what would overlap
otherwise (the next clips are moved while the GPU computes) is then counted in turn.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from shards.whole import whole

T = TypeVar("T")
SECTIONS = ("data", "transfer", "forward", "backward", "optimiser")
WARM_UP, STEPS = 3, 10
Section = Callable[[str], AbstractContextManager[None]]


def unmeasured(name: str) -> AbstractContextManager[None]:
    """A section of a training that nobody profiles."""
    return nullcontext()


@dataclass(slots=True)
class Profile:
    """The profile of one stage: call `section` around each part of a step and `stepped` after it."""

    path: Path  # of the trace: Chrome's format, gzipped
    device: torch.device
    say: Callable[[str], None]
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # by section, of the steps measured
    begun: float = 0.0
    tracer: profile | None = None

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Inside, time belongs to the section `name`."""
        with record_function(f"stmul {name}"):
            begin = time.perf_counter()
            try:
                yield
            finally:
                self._wait()
                if self.tracer is not None:
                    self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def stepped(self) -> None:
        """A step has been made: tracing begins after the first few, and ends with what it found, said."""
        self.steps += 1
        if self.steps == WARM_UP:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
            self.tracer = profile(activities=activities, acc_events=True)
            self.tracer.start()
            self.begun = time.perf_counter()
        elif self.steps == WARM_UP + STEPS:
            self.finish()

    def finish(self) -> None:
        """Ends a trace that has begun, writes it and says what it shows."""
        if self.tracer is None:
            return
        tracer, self.tracer = self.tracer, None
        spent, measured = time.perf_counter() - self.begun, self.steps - WARM_UP
        tracer.stop()
        if measured < 1:
            return
        draft = self.path.with_suffix(".tmp")
        tracer.export_chrome_trace(str(draft))
        with whole(self.path) as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0, filename="") as packed:
            packed.write(draft.read_bytes())
        draft.unlink()
        self.say(f"profile   {measured} steps of {spent / measured:.3f} s: {in_words(self.seconds, spent)}")
        self.say(f"          trace {self.path}: open it at ui.perfetto.dev or chrome://tracing")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def watched(watch: Callable[[T], None], profile: Profile) -> Callable[[T], None]:
    """`watch`, called after every step, which the profile then knows of."""

    def both(progress: T) -> None:
        watch(progress)
        profile.stepped()

    return both


def in_words(seconds: Mapping[str, float], spent: float) -> str:
    """Each section's part of the time, the largest first, and the advice that follows from it."""
    parts = {name: seconds.get(name, 0.0) / spent for name in SECTIONS}
    parts["other"] = max(0.0, 1.0 - sum(parts.values()))
    words = ", ".join(f"{name} {100 * part:.1f} %" for name, part in sorted(parts.items(), key=lambda one: -one[1]))
    if parts["data"] > 0.02:
        return f"{words}. It waits for clips: see what limits them with stmul shards bench"
    if parts["transfer"] > 0.1:
        return f"{words}. Moving and cropping clips takes long: store flow at half its size (--flow-scale 0.5)"
    return f"{words}. The network is the limit"
