"""Confusion matrices laid out for a page: where each cell and each class's name goes.

The page's script, where it runs, zooms into them; it begins from the layout made here and follows the same rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stmul import metrics
from stmul.results import Results

ANNOTATED = 20  # classes up to which the cells have room for numbers, and slanted names for the columns
LETTERS = 22  # of a class's name, at most
LETTER = 0.56  # width of a letter over the font's size, at most about
LARGEST = 13.0  # font, CSS pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Clips of one class (row) that were taken for one class (column)."""

    row: int
    column: int
    clips: int
    share: float  # of the row's clips

    @property
    def shade(self) -> float:
        """How dark the cell is, 0 .. 1: the square root of the share, so that rare mistakes show."""
        return float(self.share**0.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """A confusion matrix laid out: lengths are CSS pixels of a picture that may shrink."""

    head: str
    cells: Sequence[Cell]  # those that are not empty
    totals: Sequence[int]  # (K,) clips of each class
    cell: float
    font: float
    letters: int  # of the longest name
    left: float
    top: float
    right: float
    angle: int  # of the column labels, degrees
    hits: int

    @property
    def side(self) -> float:
        """Of the square of cells."""
        return self.cell * len(self.totals)

    @property
    def width(self) -> float:
        """Of the whole picture."""
        return self.left + self.side + self.right

    @property
    def height(self) -> float:
        """Of the whole picture."""
        return self.top + self.side + 4


def matrix_of(results: Results, head: str) -> Matrix:
    """The confusion matrix of one head."""
    matrix_KK = metrics.confusion_matrix(results.heads[head], results.labels)
    totals = matrix_KK.sum(axis=1).tolist()
    classes = len(totals)
    slanted = classes <= ANNOTATED
    cell = 56.0 if classes <= 10 else 40.0 if slanted else max(9.2, 780 / classes)
    font = min(LARGEST, 0.9 * cell)
    letters = max(len(short(name)) for name in results.classes)
    label = LETTER * font * letters + 12
    return Matrix(
        head=head,
        cells=[
            Cell(row=row, column=column, clips=int(matrix_KK[row, column]), share=matrix_KK[row, column] / totals[row])
            for row, column in np.argwhere(matrix_KK).tolist()
        ],
        totals=totals,
        cell=cell,
        font=font,
        letters=letters,
        left=label + 22,
        top=(0.75 * label if slanted else label) + 22,
        right=0.75 * label if slanted else 4,
        angle=45 if slanted else 90,
        hits=int(matrix_KK.trace()),
    )


def confusions(results: Results, count: int = 12) -> list[tuple[str, str, int, int]]:
    """The most frequent mistakes of the main head: true class, taken for, clips, clips of the true class."""
    matrix_KK = metrics.confusion_matrix(results.heads[results.main], results.labels)
    totals_K = matrix_KK.sum(axis=1)
    wrong = [(row, column) for row, column in np.argwhere(matrix_KK).tolist() if row != column]
    wrong.sort(key=lambda place: (-matrix_KK[place], *place))
    names = results.classes
    return [
        (names[row], names[column], int(matrix_KK[row, column]), int(totals_K[row])) for row, column in wrong[:count]
    ]


def short(name: str, length: int = LETTERS) -> str:
    """A class's name, cut to `length`."""
    return name if len(name) <= length else name[: length - 1] + "…"
