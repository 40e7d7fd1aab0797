"""The table of the drawn set: which class each combination of appearance and motion belongs to, and what that allows.

Class = (i, j, a xor b): hue i and texture a are appearance, j and its sign b are motion. Hue and motion are told by one
stream each; the rest by neither alone, since with either sign both textures are equally frequent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

HUES = ("warm", "cool")
TEXTURES = ("discs", "rectangles")
MOTIONS = ("shift", "zoom")
SIGNS = (("up", "down"), ("in", "out"))  # of a shift, of a zoom
AGREEMENTS = ("Matched", "Crossed")  # a xor b


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One of the sixteen combinations a clip can show; each field is a position in the table of that name."""

    hue: int  # i, in HUES
    texture: int  # a, in TEXTURES
    motion: int  # j, in MOTIONS
    sign: int  # b, in SIGNS[motion]


CELLS = tuple(Cell(hue=i, texture=a, motion=j, sign=b) for i, a, j, b in product((0, 1), repeat=4))


def class_of(cell: Cell) -> str:
    """The name of a cell's class, as WarmShiftMatched.

    Matched are discs that go up or in and rectangles that go down or out, Crossed the others.
    """
    return f"{HUES[cell.hue].title()}{MOTIONS[cell.motion].title()}{AGREEMENTS[cell.texture ^ cell.sign]}"


CLASSES = tuple(sorted({class_of(cell) for cell in CELLS}))  # by label


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Parts of all clips, 0 .. 1, that the best classifiers of their kind get right."""

    chance: float  # that see nothing
    appearance: float  # that see hue and texture
    motion: float  # that see motion and sign
    late: float  # that add the scores of the best of both, each made for itself
    additive: float  # that add a score of appearance and one of motion, made for each other
    interaction: float  # that see both


def ceilings() -> Ceilings:
    """What the table of labels allows, the cells being equally frequent.

    *late*: a stream made for itself knows no more than how frequent each class is given what it sees, and its best
    scores are the logarithms of that. Given hue and texture, the four classes of the hue are equally frequent, whatever
    the texture; likewise for motion. The sum leaves two classes in the lead, and between them only a coin decides.

    *additive*: of four cells that differ in texture and sign alone, two are of class p, two of class q. With d the
    score of p less that of q, all four right would ask of f(texture) + g(sign) that d(0, 0) + d(1, 1) > 0 and
    d(0, 1) + d(1, 0) < 0, but these sums are equal. Three of four can be right: those that `_three_of_four` gets.
    """
    label = np.array([CLASSES.index(class_of(cell)) for cell in CELLS])
    sees_appearance = [(cell.hue, cell.texture) for cell in CELLS]
    sees_motion = [(cell.motion, cell.sign) for cell in CELLS]
    appearance, motion = _scores(sees_appearance, label), _scores(sees_motion, label)
    return Ceilings(
        chance=_right(_scores([()] * len(CELLS), label), label),
        appearance=_right(appearance, label),
        motion=_right(motion, label),
        late=_right(appearance + motion, label),
        additive=_right(_three_of_four(), label),
        interaction=_right(_scores(list(zip(sees_appearance, sees_motion, strict=True)), label), label),
    )


def _scores(seen: Sequence[object], label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of how frequent each class is among the cells that look alike, (cells, classes)."""
    alike = np.array([[one == other for other in seen] for one in seen], dtype=float)
    frequency = alike @ np.eye(len(CLASSES))[label] / alike.sum(axis=1, keepdims=True)
    scores: NDArray[np.float64] = np.log(np.maximum(frequency, 1e-9))
    return scores


def _three_of_four() -> NDArray[np.float64]:
    """Scores that are a function of appearance plus one of motion, and right but where both a and b are 1."""
    cells = {name: next(cell for cell in CELLS if class_of(cell) == name) for name in CLASSES}
    crossed = np.array([name.endswith(AGREEMENTS[1]) for name in CLASSES])
    appearance = [[3.0 * (cells[name].hue == cell.hue) for name in CLASSES] + cell.texture * crossed for cell in CELLS]
    motion = [[3.0 * (cells[name].motion == cell.motion) for name in CLASSES] + cell.sign * crossed for cell in CELLS]
    return np.array(appearance) + np.array(motion) - 0.5 * crossed


def _right(scores: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    """Part of the cells whose class has the highest score; classes that share it share the cell."""
    leads = scores > scores.max(axis=1, keepdims=True) - 1e-6
    return float(np.mean(leads[np.arange(len(label)), label] / leads.sum(axis=1)))
