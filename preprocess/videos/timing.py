"""When frames are shown, and what that tells: frames that were dropped, shown twice, or never were at a steady rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

LATE = Fraction(3, 2)  # usual steps from which a frame is missing between two
STEADY = Fraction(1, 4)  # of the usual step: how far a step may be off one or several, where containers count in ms
UNSTEADY = Fraction(1, 10)  # share of steps that are further off, from which the rate is variable


@dataclass(frozen=True, kw_only=True, slots=True)
class Gap:
    """A place where frames are missing."""

    after: int  # number of the frame before it
    missing: int  # frames, at the usual step


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """What the times of a video's frames tell."""

    step: Fraction | None  # seconds from a frame to the next as it mostly is; None: unknown
    shortest: Fraction | None
    longest: Fraction | None
    variable: bool  # no steady rate: then nothing is said of gaps
    gaps: tuple[Gap, ...]
    together: tuple[int, ...]  # frames that are shown at the time of the one before
    sorted: bool  # False: the container's times are not in the frames' order, as AVI has them with B-frames

    @property
    def missing(self) -> int:
        """Frames that are missing in all gaps."""
        return sum(gap.missing for gap in self.gaps)


def timing(times: Sequence[Fraction | None], most: int | None = None) -> Timing:
    """What the times (seconds, None where the container has none) of frames 0, 1, 2 ... tell of the first `most`.

    Decoders give frames in the order in which they are shown, so times that are out of order are put in order first.
    """
    known = [time for time in times if time is not None]
    in_order = sorted(known)[:most]
    steps = [b - a for a, b in pairwise(in_order)]
    forward = [step for step in steps if step > 0]
    if len(known) < len(times) or not forward:
        return Timing(step=None, shortest=None, longest=None, variable=False, gaps=(), together=(), sorted=True)
    usual = median_low(forward)
    off = sum(abs(step - max(round(step / usual), 1) * usual) > STEADY * usual for step in forward)
    variable = off > UNSTEADY * len(steps)
    late = [(frame, step) for frame, step in enumerate(steps) if step >= LATE * usual and not variable]
    return Timing(
        step=usual,
        shortest=min(steps),
        longest=max(steps),
        variable=variable,
        gaps=tuple(Gap(after=frame, missing=max(round(step / usual) - 1, 1)) for frame, step in late),
        together=tuple(frame + 1 for frame, step in enumerate(steps) if not step),
        sorted=known == sorted(known),
    )


def in_words(found: Timing) -> str:
    """What is to be said of it in one line."""
    if found.step is None or found.shortest is None or found.longest is None:
        return "unknown, or one for all frames"
    words = []
    if found.variable:
        words.append(
            f"variable: {_ms(found.shortest)} to {_ms(found.longest)} ms apart; every frame counts as one step of time"
        )
    else:
        words.append(f"steady, {_ms(found.step)} ms apart")
    if found.gaps:
        after = _some([f"{gap.after} ({gap.missing})" for gap in found.gaps])
        words.append(f"{found.missing} dropped: after frame {after}")
    if found.together:
        words.append(f"at the time of the one before: frame {_some([*map(str, found.together)])}")
    if not found.sorted:
        words.append("out of order in the container, put in order here")
    return "; ".join(words)


def _ms(seconds: Fraction) -> str:
    return f"{float(1000 * seconds):.4g}"


def _some(texts: Sequence[str], most: int = 6) -> str:
    left = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {left} more" if left > 0 else "")
