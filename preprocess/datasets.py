"""The data set in a folder: UCF101, HMDB51, one's own class folders, or frames and flow that were extracted before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from preprocess.errors import DatasetError
from preprocess.listing import Dataset, Video

__all__ = ["Dataset", "Video", "describe", "find_dataset", "reduced"]


def find_dataset(
    root: Path, *, kind: str = "auto", split: int = 1, lists: Path | None = None, classes: Sequence[str] = ()
) -> Dataset:
    """The split `split` of the data set in `root`, with every listed video found on disk.

    `kind` is auto, ucf101, hmdb51, folders, extracted or drawn; `lists` is the folder of the split lists (None: inside
    or beside the root); with `classes` only these are looked for, so the others may be absent. Raises DatasetError.
    """
    raise DatasetError(f"{root}: not read yet")


def reduced(dataset: Dataset, classes: Sequence[str] = (), limit: int = 0) -> Dataset:
    """`dataset` with only `classes` (empty: all), at most `limit` videos of each class and part (0: all), labelled anew.

    Which videos stay is decided by a hash of their names: those of a limit are among those of every larger one.
    """
    return dataset


def describe(dataset: Dataset) -> str:
    """One line: name, kind, split, classes and videos of each part."""
    return dataset.name
