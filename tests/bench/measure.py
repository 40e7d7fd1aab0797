"""CPU and wall time of works that alternate in one run, their spread, and ratios taken within the same round."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is timed: a variant, on shards of a resolution, to an end point, with so many threads."""

    variant: str
    flow: str  # "full" or "half"
    end: str  # "decoded" or "ready"
    threads: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """What one round of a case took, in ms per clip."""

    cpu: float  # of this process, all its threads, and of its worker processes
    wall: float


Rounds = Mapping[Case, Sequence[Times]]


def cpu_s(children: Sequence[int]) -> float:
    """CPU seconds of this process and of worker processes that live.

    `resource` counts children only once they have ended, start-up included. Linux has a CPU clock of every process,
    whose number is made of the process's as glibc's clock_getcpuclockid does; it counts nanoseconds.
    """
    return time.process_time() + sum(time.clock_gettime(~child << 3 | 2) for child in children)


def timed(work: Callable[[], None], clips: int) -> Times:
    """What `work` takes for so many clips, worker processes that are there at its beginning included."""
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    cpu, wall = cpu_s(children), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - wall, cpu_s(children) - cpu
    return Times(cpu=1000 * cpu / clips, wall=1000 * wall / clips)


def rounds(
    cases: Sequence[Case], run: Callable[[Case], Times], *, repeats: int, progress: Progress
) -> dict[Case, list[Times]]:
    """The times of all cases in each of `repeats` rounds, every other one backwards, after one that is not counted."""
    found: dict[Case, list[Times]] = {case: [] for case in cases}
    for repeat in range(repeats + 1):
        gc.collect()  # what one round leaves behind is no matter of the next
        for number, case in enumerate(cases if repeat % 2 else reversed(cases), 1):
            where = f"round {repeat} of {repeats}" if repeat else "a round that is not counted"
            progress(f"{where}, {number} of {len(cases)}: {case.variant}, {case.end}, {case.threads} threads")
            times = run(case)
            if repeat:
                found[case].append(times)
    return found


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(found: Rounds, over: Case, under: Case, clock: str = "cpu") -> float | None:
    """The median of the ratios `over` / `under` within each round; None where one was not measured."""
    if not found.get(over) or not found.get(under):
        return None
    pairs = zip(found[over], found[under], strict=True)
    return statistics.median(getattr(one, clock) / getattr(other, clock) for one, other in pairs)
