"""What a training measures of itself: sums over the epoch under way, the row of the log that they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypedDict


class Validation(TypedDict):
    """What a network made of the clips held out."""

    loss: float  # mean over the clips
    accuracy: float  # top-1, 0 .. 1
    clips: int


class Seen(NamedTuple):
    """What a step saw of its clips before its update, on all ranks together."""

    loss: float  # summed over clips and heads
    right: int  # clips that all heads together get right
    valid: int  # clips that count
    losses: tuple[float, ...] = ()  # of each head, summed over clips
    rights: tuple[int, ...] = ()  # clips that each head gets right
    stops: bool = False  # whether a rank was asked to stop
    updated: bool = True  # False: skipped, for float16 could not hold its gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a display may show after each step."""

    stage: str
    step: int  # done
    steps: int
    epoch: float
    loss: float  # mean of the epoch so far
    accuracy: float  # top-1 of the training clips seen in the epoch
    clips_per_second: float
    data_wait: float  # part of the time spent waiting for clips
    losses: Mapping[str, float] = field(default_factory=dict)  # of each head, "appearance" and "motion"
    accuracies: Mapping[str, float] = field(default_factory=dict)
    memory: float = 0.0  # GiB of GPU memory at most; 0 without a GPU
    skipped: int = 0  # steps of the stage that float16 could not hold
    left: float = 0.0  # seconds to the stage's end, at the epoch's pace
    validation: Validation | None = None  # only after the step that it followed


Watch = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """Sums over the epoch under way."""

    heads: tuple[str, ...]
    loss: float = 0.0
    right: int = 0
    clips: int = 0
    losses: tuple[float, ...] = ()  # one for each head, as the next
    rights: tuple[int, ...] = ()
    seconds: float = 0.0
    waited: float = 0.0
    timed: int = 0  # clips since the stage was begun or continued
    steps: int = 0  # ... and steps

    def after(self, seen: Seen, seconds: float, waited: float) -> Meter:
        """The sums with another step's."""
        return replace(
            self,
            loss=self.loss + seen.loss,
            right=self.right + seen.right,
            clips=self.clips + seen.valid,
            losses=_added(self.losses, seen.losses),
            rights=_added(self.rights, seen.rights),
            seconds=self.seconds + seconds,
            waited=self.waited + waited,
            timed=self.timed + seen.valid,
            steps=self.steps + 1,
        )

    def row(self, stage: str, epoch: int, step: int, learning_rate: float, **more: Any) -> dict[str, Any]:
        """A line of the log; `seconds` and what follows are of this session's part of the epoch."""
        clips = max(1, self.clips)
        return {
            "stage": stage,
            "epoch": epoch,
            "step": step,
            "loss": self.loss / clips,
            "accuracy": self.right / clips,
            "losses": {head: loss / clips for head, loss in zip(self.heads, self.losses, strict=False)},
            "accuracies": {head: right / clips for head, right in zip(self.heads, self.rights, strict=False)},
            "lr": learning_rate,
            "clips_per_second": self.timed / max(self.seconds, 1e-9),
            "data_wait": self.waited / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            **more,
        }

    def progress(self, row: Mapping[str, Any], *, steps: int, epoch: float) -> Progress:
        """What a display may show of a row; `epoch` counts parts of one, too."""
        names = ("stage", "step", "loss", "accuracy", "clips_per_second", "data_wait", "losses", "accuracies")
        left = (steps - int(row["step"])) * self.seconds / max(1, self.steps)
        kept = {name: row[name] for name in (*names, "memory", "skipped", "validation")}
        return Progress(steps=steps, epoch=epoch, left=left, **kept)


def _added(sums: Sequence[Any], more: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(one + other for one, other in zip(sums, more, strict=True)) if sums else tuple(more)
