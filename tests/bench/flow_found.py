"""What is measured of flow: agreement with OpenCV, errors against known flow, pairs a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.record import quantise
from tests.bench.flow_drawn import Drawn, end_point_error
from tests.bench.flow_pairs import Pair
from tests.bench.flow_ways import OPENCV, Field, Way, opencv_again, opencv_tvl1, ours_together
from tests.bench.measure import Progress

ALLOWANCE = 0.02  # pixels: beside twice of what OpenCV differs from itself
TOGETHER = 4  # pairs of a batch that must give what each gives alone


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Agreement:
    """One pair's flow by OpenCV and by ours; differences are means over the picture, in pixels."""

    pair: Pair
    opencv: Field
    ours: Field
    noisy: Field  # OpenCV's with noise, of the draw that differs most
    again: tuple[float, ...]  # OpenCV's with noise of 1e-5 grey levels, each with other noise
    levels_off: float  # share of uint8 values as stored that differ by more than 1

    @property
    def difference(self) -> float:
        """Of ours."""
        return difference(self.ours, self.opencv)

    @property
    def within(self) -> bool:
        """Whether ours is as near as OpenCV is to itself, twice that and a little."""
        return self.difference <= 2 * max(self.again) + ALLOWANCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What a way took on the same pairs, round by round: CPU seconds a pair."""

    seconds: tuple[float, ...]
    pairs: int  # of a round


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRate:
    """Pairs a second on a GPU, one after the other from one video or from as many videos."""

    what: str
    batch: int
    pairs_a_second: float


def difference(one: Field, other: Field) -> float:
    """The mean distance of two fields."""
    return float(np.linalg.norm(one.astype(np.float64) - other, axis=-1).mean())


def agreement(pairs: Sequence[Pair], ours: Callable[[Pair], Field], draws: int, progress: Progress) -> list[Agreement]:
    """Each pair by OpenCV, by OpenCV with noise, and by ours."""
    found = []
    for number, pair in enumerate(pairs, 1):
        progress(f"agreement, {number} of {len(pairs)}: {pair.name}")
        opencv, mine = opencv_tvl1(*pair.gray), ours(pair)
        noisy = [opencv_again(pair, seed) for seed in range(draws)]
        again = tuple(difference(one, opencv) for one in noisy)
        found.append(
            Agreement(
                pair=pair,
                opencv=opencv,
                ours=mine,
                noisy=noisy[int(np.argmax(again))],
                again=again,
                levels_off=float((np.abs(_levels(mine) - _levels(opencv)) > 1).mean()),
            )
        )
    return found


def batches_agree(pairs: Sequence[Pair], alone: Callable[[Pair], Field], device: str) -> int:
    """How many pairs were computed together with others; SystemExit unless each gives the bytes that it gives alone."""
    height, width = pairs[0].first.shape[:2]
    some = [pair for pair in pairs if pair.first.shape[:2] == (height, width)]
    for start in range(0, len(some), TOGETHER):
        part = some[start : start + TOGETHER]
        for pair, field in zip(part, ours_together(part, device), strict=True):
            if not np.array_equal(field, alone(pair)):
                raise SystemExit(f"{pair.name}: in a batch of {len(part)} the flow is another than alone, on {device}")
    return len(some)


def known_errors(drawn: Sequence[Drawn], ways: Sequence[Way], progress: Progress) -> dict[str, dict[str, float]]:
    """The mean end-point error of each way for each drawn pair."""
    found: dict[str, dict[str, float]] = {}
    for known in drawn:
        progress(f"drawn: {known.pair.name}")
        found[known.pair.name] = {way.name: end_point_error(way.flow(known.pair), known) for way in ways}
    return found


def rates(
    pairs: Sequence[Pair], ways: Sequence[Way], slow: Mapping[str, int], repeats: int, progress: Progress
) -> dict[str, Rate]:
    """CPU seconds a pair of each way, all on the same pairs, alternating; `slow` ways do fewer pairs of each round."""
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for way in ways:
        progress(f"warming up: {way.name}")
        way.flow(pairs[0])
    for repeat in range(repeats):
        for way in ways if repeat % 2 else reversed(ways):
            progress(f"round {repeat + 1} of {repeats}: {way.name}")
            some = pairs[: slow.get(way.name, len(pairs))]
            begin = time.process_time()
            for pair in some:
                way.flow(pair)
            found[way.name].append((time.process_time() - begin) / len(some))
    return {
        name: Rate(seconds=tuple(seconds), pairs=min(slow.get(name, len(pairs)), len(pairs)))
        for name, seconds in found.items()
    }


def faster(found: Mapping[str, Rate], name: str, than: str = OPENCV) -> float | None:
    """How many times as fast as another way, in the median round; only where both did the same pairs."""
    if name not in found or than not in found or found[name].pairs != found[than].pairs:
        return None
    return statistics.median(other / one for one, other in zip(found[name].seconds, found[than].seconds, strict=True))


def gpu_rates(
    what: str,
    pairs: Sequence[Pair],
    batches: Sequence[int],
    device: str,
    progress: Progress,
    together: Callable[[Sequence[Pair], str], Field] = ours_together,
) -> list[GpuRate]:
    """Pairs a second with so many in a call; uploads, downloads and grey levels included. Each size warms up first."""
    found = []
    for batch in batches:
        some = [pairs[i % len(pairs)] for i in range(batch)]
        for _ in range(2):  # compiled, then recorded
            together(some, device)
        times: list[float] = []
        while len(times) < 3 or (sum(times) < 3 and len(times) < 50):
            progress(f"GPU: {what}, {batch} pairs at once")
            torch.cuda.synchronize()
            begin = time.perf_counter()
            together(some, device)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        found.append(GpuRate(what=what, batch=batch, pairs_a_second=batch / statistics.median(times)))
    return found


def _levels(field: Field) -> NDArray[np.int16]:
    return quantise(field).astype(np.int16)
