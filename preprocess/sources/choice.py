"""Which data set a command works on, and why: the one named, else one that is there, else the drawn demo set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs import SettingsError
from preprocess.config import Preprocess
from preprocess.datasets import Dataset, find_dataset, reduced
from preprocess.sources.disk import child

FOLDER = Path("dataset")  # where data sets lie
USUAL = {"ucf101": "UCF101", "hmdb51": "HMDB51"}
DRAWN = "drawn"
DRAWN_SETTINGS = "demo"  # the shipped configuration that belongs to the drawn set


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A data set's folder, what it is to be read as, and why it was chosen."""

    root: Path
    kind: str
    why: str


def choose(settings: Preprocess, here: Path = FOLDER) -> Choice:
    """The data set that `settings` name, or the first there is of <here>/UCF101, <here>/HMDB51, the drawn set.

    Raises SettingsError where a kind is named whose folder must be named too.
    """
    kind = settings.dataset
    if settings.root:
        return Choice(root=Path(settings.root), kind=kind, why="named")
    if kind in USUAL:
        return Choice(root=_usual(here, kind) or here / USUAL[kind], kind=kind, why=f"{kind} was asked for")
    if kind in ("auto", "extracted"):
        for name in USUAL:
            if (root := _usual(here, name)) is not None:
                return Choice(root=root, kind=kind, why="found there; no other was named")
    if kind in ("auto", DRAWN):
        missing = " nor ".join(str(here / name) for name in USUAL.values())
        why = "asked for" if kind == DRAWN else f"no data set was named, and neither {missing} is there"
        return Choice(root=here / DRAWN, kind=DRAWN, why=why)
    raise SettingsError(f"data set of kind {kind}: name its folder with --root (preprocess.root)")


def read(choice: Choice, settings: Preprocess, drawing: Callable[[int, int], None] | None = None) -> Dataset:
    """The chosen data set, as far as `settings` ask for it; the drawn set is drawn first where it is not there."""
    if choice.kind == DRAWN:
        from preprocess.drawn import draw_dataset

        draw_dataset(choice.root, settings.drawn, drawing, workers=settings.workers)
    dataset = find_dataset(
        choice.root,
        kind=choice.kind,
        split=settings.split,
        lists=Path(settings.lists) if settings.lists else None,
        classes=settings.classes,
        partial=settings.partial,
    )
    return reduced(dataset, settings.classes, settings.limit)


def _usual(here: Path, kind: str) -> Path | None:
    found = child(here, [USUAL[kind]])
    return found if found is not None and found.is_dir() else None
