"""The clips that a page shows: which, what they were taken for, and strips of pictures of each."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stmul import metrics
from stmul.errors import StmulError
from stmul.results import Results

SIGNATURES = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}


class ReportError(StmulError):
    """What a report cannot be made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """Pictures of a clip at some instants, side by side in one file, each as wide as the others."""

    title: str
    picture: bytes  # a PNG or JPEG file
    head: str = ""  # whose colour it is shown in: a name of HEADS


@dataclass(frozen=True, kw_only=True, slots=True)
class Film:
    """What is to be seen of one clip: strips, one below the other, and when their instants are."""

    instants: Sequence[str]
    strips: Sequence[Strip]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipCard:
    """One clip as shown: what it is, what it was taken for, by how much."""

    name: str
    label: str
    predicted: str
    margin: float
    guesses: Sequence[tuple[str, float, float]]  # class, score, bar from 0 to 1: the top three, then the true class
    heads: Sequence[tuple[str, str, bool]]  # head, what it takes the clip for, whether that is right
    instants: Sequence[str]
    strips: Sequence[tuple[str, str, str]]  # title, head, data URI


def shown_clips(results: Results, best: int = 2, worst: int = 6) -> tuple[list[int], list[int]]:
    """The clips a report shows, as positions in `results`: the `best` highest margins and the `worst` lowest.

    Of each class at most one on either side, none on both; by the main head.
    """
    margins_N = metrics.margins(results.heads[results.main], results.labels)
    ascending = np.argsort(margins_N, kind="stable").tolist()
    surest = _one_of_each_class(ascending[::-1], results, best)
    return surest, _one_of_each_class([clip for clip in ascending if clip not in surest], results, worst)


def guessed(results: Results, clip: int) -> int:
    """The class that the main head takes a clip for."""
    return int(results.heads[results.main][clip].argmax())


def card(results: Results, clip: int, films: Mapping[str, Film], compared: Sequence[str]) -> ClipCard:
    """A clip by its position in `results`. Raises ReportError for a picture that is neither PNG nor JPEG."""
    scores_K = results.heads[results.main][clip].astype(np.float64)
    order = np.argsort(-scores_K, kind="stable").tolist()
    label = int(results.labels[clip])
    shown = [*order[:3], *([label] if label not in order[:3] else [])]
    span = float(scores_K.max() - scores_K.min()) or 1.0
    name = results.names[clip]
    film = films.get(name, Film(instants=(), strips=()))
    taken = {head: int(results.heads[head][clip].argmax()) for head in compared if head != results.main}
    return ClipCard(
        name=name,
        label=results.classes[label],
        predicted=results.classes[order[0]],
        margin=float(metrics.margins(scores_K[None], results.labels[[clip]])[0]),
        guesses=[(results.classes[k], float(scores_K[k]), float(scores_K[k] - scores_K.min()) / span) for k in shown],
        heads=[(head, results.classes[k], k == label) for head, k in taken.items()],
        instants=film.instants,
        strips=[(strip.title, strip.head, _data_uri(name, strip.picture)) for strip in film.strips],
    )


def _one_of_each_class(clips: Sequence[int], results: Results, count: int) -> list[int]:
    first = {int(results.labels[clip]): clip for clip in reversed(clips)}  # the earliest of each class wins
    return sorted(first.values(), key=clips.index)[:count]


def _data_uri(name: str, picture: bytes) -> str:
    for kind, signature in SIGNATURES.items():
        if picture.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(picture).decode()}"
    raise ReportError(f"picture of clip {name!r}: expected a PNG or JPEG file, found {picture[:8]!r}")
