"""Class scores of a video that lies in memory: of the whole of it as a test scores it, or window by window with times.

A video up to `WHOLE` windows long is scored as one, exactly as a test scores a clip of a split. A longer one is scored
in windows, each as a test would score a clip of just these frames; the video's score is their mean.

Example:
    >>> from stmul.predict import guesses
    >>> [guess.name for guess in guesses([0.5, 3.0, 1.0], ("jump", "run", "sit"), top=2)]
    ['run', 'sit']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.format import encode, key_of
from shards.record import Record
from shards.row import Row, row_of
from shards.stream import Clip, pair_images
from stmul import clips as instants_of
from stmul.clips import Instants
from stmul.config import Config
from stmul.decode import decode
from stmul.evaluate import Networks, fused, video_scores
from stmul.results import MAIN

WHOLE = 3.0  # windows: a video up to so long is scored as one
RATE = 25.0  # frames a second where a video does not say

Scores = NDArray[np.float32]  # (K,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """A class, and how likely the network holds it to be."""

    name: str
    label: int
    probability: float  # softmax over the classes
    score: float  # raw


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Window:
    """Frames `first` up to `last`, without it, and what they were scored."""

    first: int
    last: int
    heads: Mapping[str, Scores]  # as stmul.results.HEADS names them


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What a network makes of one video."""

    name: str
    classes: tuple[str, ...]
    frames: int
    rate: float  # frames a second
    windows: tuple[Window, ...]  # one of the whole video, or several

    @property
    def heads(self) -> dict[str, Scores]:
        """The scores of the video: the mean over its windows."""
        return {
            head: np.mean([window.heads[head] for window in self.windows], axis=0) for head in self.windows[0].heads
        }

    @property
    def main(self) -> str:
        """The head that counts: the joint network's if there is one, else what comes closest."""
        return next(head for head in MAIN if head in self.windows[0].heads)

    def top(self, count: int = 5, window: Window | None = None) -> list[Guess]:
        """The likeliest classes of the video, or of one of its windows, the likeliest first."""
        heads = self.heads if window is None else window.heads
        return guesses(heads[self.main], self.classes, top=count)

    def likely(self, window: Window | None = None) -> NDArray[np.float64]:
        """How likely each class is, (K,), in the video or in one of its windows."""
        heads = self.heads if window is None else window.heads
        return softmax(heads[self.main])

    def at(self, frame: int) -> Window:
        """The window whose middle is nearest to a frame; of two the earlier."""
        return min(self.windows, key=lambda window: abs(window.first + window.last - 1 - 2 * frame))

    def seconds(self, window: Window) -> tuple[float, float]:
        """When a window begins and ends."""
        return window.first / self.rate, window.last / self.rate


def guesses(scores_K: Sequence[float] | Scores, classes: Sequence[str], *, top: int = 5) -> list[Guess]:
    """The `top` classes by score, the first of equal ones first."""
    raw_K = np.asarray(scores_K, dtype=np.float64)
    likely_K = softmax(raw_K)
    order = np.argsort(-raw_K, kind="stable")[:top].tolist()
    return [Guess(name=classes[k], label=k, probability=float(likely_K[k]), score=float(raw_K[k])) for k in order]


def softmax(scores_K: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64]:
    """Scores as probabilities, (K,), which add to 1."""
    raw_K = np.asarray(scores_K, dtype=np.float64)
    powers_K = np.exp(raw_K - raw_K.max())
    return np.asarray(powers_K / powers_K.sum())


def predict(
    networks: Networks,
    classes: Sequence[str],
    record: Record,
    config: Config,
    *,
    device: torch.device,
    window: float = 10.0,
    step: float = 0.0,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> Prediction:
    """The scores of the video in `record`, in windows of `window` seconds, one every `step` seconds (0: half a window).

    `networks` and `config` are a run's, as for a test; `classes` in label order. Flow must have been computed as that
    of the training shards: the caller minds that.
    """
    rate = record.fps[0] / record.fps[1] if record.fps[0] and record.fps[1] else RATE
    spans = windows(record.frames, length=round(window * rate), step=round((step or window / 2) * rate))
    row = row_of(key_of(record.name), record, encode(record), number=0, shard=0)
    found = []
    for network in networks.all():
        network.eval()
    for span in spans:
        heads = video_scores(networks, decode([_clip(record, row, span, config)]).to(device), config)
        found.append(Window(first=span.start, last=span.stop, heads=fused(heads)))
        watch(len(found), len(spans))
    return Prediction(name=record.name, classes=tuple(classes), frames=record.frames, rate=rate, windows=tuple(found))


def windows(frames: int, *, length: int, step: int) -> list[range]:
    """The windows of a video: all of it where it is at most WHOLE of them long; else `length` frames every `step`.

    The last one ends with the video, so that every frame is in one.
    """
    length, step = max(1, length), max(1, step)
    if frames <= WHOLE * length:
        return [range(frames)]
    starts = [*range(0, frames - length, min(step, length)), frames - length]
    return [range(start, start + length) for start in starts]


def _clip(record: Record, row: Row, span: range, config: Config) -> Clip[Instants]:
    """The frames and pairs that a test would see of a video of just the frames in `span`."""
    seen = instants_of.testing(len(span), frames=config.evaluate.frames, stack=config.data.stack)
    flow = np.where(seen.flow == instants_of.NO_PAIR, seen.flow, seen.flow + span.start)
    chosen = Instants(seen.rgb + span.start, flow)
    return Clip(
        position=0,
        row=row,
        chosen=chosen,
        rgb=tuple(record.rgb[int(frame)] for frame in chosen.frames),
        flow=tuple(record.flow[int(image)] for image in pair_images(chosen.pairs)),
    )
