"""The drawn set on disk: real video files in UCF101's layout, with groups and three split lists.

    <root>/videos/WarmShiftMatched/v_WarmShiftMatched_g01_c01.avi ...
    <root>/ucfTrainTestlist/classInd.txt, trainlist01.txt ... testlist03.txt
    <root>/drawn.json       what it was drawn with, and whether all of it is there

Clips of one group share background and light, as those of UCF101 share a scene; no group is on both sides of a split.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.config import Drawn
from preprocess.drawing.cells import CELLS, CLASSES, Cell, class_of
from preprocess.drawing.drift import Film
from preprocess.drawing.pictures import encoded, pictures
from preprocess.errors import DatasetError
from shards.draws import key_of
from shards.whole import whole

VERSION = 1  # of the drawing; another draws other pixels
SETTINGS = "drawn.json"
VIDEOS = "videos"
LISTS = "ucfTrainTestlist"
SPLITS = (1, 2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One clip of the set: its group and what it shows."""

    group: int  # from 1
    cell: Cell

    @property
    def class_name(self) -> str:
        return class_of(self.cell)

    @property
    def name(self) -> str:
        """As v_WarmShiftMatched_g01_c01; c01 shows discs, c02 rectangles."""
        return f"v_{self.class_name}_g{self.group:02}_c{self.cell.texture + 1:02}"

    @property
    def path(self) -> str:
        """As the split lists name it: below the folder of videos."""
        return f"{self.class_name}/{self.name}.avi"


def clips(settings: Drawn) -> list[Clip]:
    """Every clip of the set, each cell once in each group."""
    groups = (settings.train + settings.test) // len(CELLS)
    return [Clip(group=group, cell=cell) for group in range(1, groups + 1) for cell in CELLS]


def is_tested(clip: Clip, split: int, settings: Drawn) -> bool:
    """True if the clip is in the test list of `split` (1, 2, 3); no clip is in two of them, as in UCF101."""
    return (clip.group - 1) // (settings.test // len(CELLS)) == split - 1


def film(clip: Clip, settings: Drawn) -> Film:
    """The clip's size and keys."""
    return Film(
        width=settings.width,
        height=settings.height,
        frames=settings.frames,
        scene=key_of(settings.seed, "scene", clip.group),
        clip=key_of(settings.seed, "clip", clip.name),
    )


def draw_dataset(
    root: Path, settings: Drawn, progress: Callable[[int, int], None] | None = None, *, workers: int = 0
) -> Path:
    """The folder of the drawn set, `root`, after drawing what is not yet there.

    Equal settings give equal bytes, whatever the number of processes (`workers`; 0: one for each core). A set drawn
    with the same settings is left as it is, a partial one is completed, one with other settings is replaced.
    `progress` is told how many clips of how many are there. Raises DatasetError, before any change, for a folder that
    holds anything else, and where no folder can be made; ShardError where a file cannot be written.
    """
    wanted = clips(settings)
    _claim(root, settings)
    missing = [clip for clip in wanted if not (root / VIDEOS / clip.path).is_file()]
    for there, _ in enumerate(_drawn(root, missing, settings, workers), len(wanted) - len(missing) + 1):
        if progress:
            progress(there, len(wanted))
    for name, text in _lists(settings).items():
        _write(root / LISTS / name, text.encode())
    _write(root / SETTINGS, _record(settings, whole_set=True))
    return root


def _claim(root: Path, settings: Drawn) -> None:
    """Makes `root` the folder of a set with these settings, all of it still to be drawn unless it has the same."""
    record = root / SETTINGS
    if record.is_file():
        found = _read(record)
        if {**found, "whole": True} == json.loads(_record(settings, whole_set=True)):
            return
        for name in CLASSES:
            for path in (root / VIDEOS / name).glob(f"v_{name}_g[0-9][0-9]_c[0-9][0-9].avi*"):
                path.unlink()
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(
            f"{root}: expected a drawn set, an empty folder or none, found other things and no {SETTINGS};"
            " nothing was changed; give another folder"
        )
    _write(record, _record(settings, whole_set=False))


def _read(record: Path) -> dict[str, Any]:
    try:
        found = json.loads(record.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or "drawn" not in found:
        raise DatasetError(
            f"{record}: expected the settings of a drawn set, found something else; nothing was changed;"
            " give another folder, or remove this one"
        )
    return found


def _record(settings: Drawn, *, whole_set: bool) -> bytes:
    tree = {"drawn": VERSION, "settings": settings.model_dump(mode="json"), "whole": whole_set}
    return json.dumps(tree, indent=1).encode() + b"\n"


def _lists(settings: Drawn) -> dict[str, str]:
    """The text of each list by its name: classes count from 1, and only the training lists have them, as UCF101's."""
    by_class = sorted(clips(settings), key=lambda clip: clip.path)
    texts = {"classInd.txt": [f"{label} {name}" for label, name in enumerate(CLASSES, 1)]}
    for split in SPLITS:
        tested = {clip: is_tested(clip, split, settings) for clip in by_class}
        texts[f"trainlist{split:02}.txt"] = [
            f"{clip.path} {CLASSES.index(clip.class_name) + 1}" for clip in by_class if not tested[clip]
        ]
        texts[f"testlist{split:02}.txt"] = [clip.path for clip in by_class if tested[clip]]
    return {name: "".join(f"{line}\n" for line in lines) for name, lines in texts.items()}


def _drawn(root: Path, missing: Sequence[Clip], settings: Drawn, workers: int) -> Iterator[Clip]:
    """The clips, each once its file is there."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(missing))
    if workers <= 1:
        for clip in missing:
            yield _draw(root, clip, settings)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for done in as_completed([pool.submit(_draw, root, clip, settings) for clip in missing]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _draw(root: Path, clip: Clip, settings: Drawn) -> Clip:
    _write(root / VIDEOS / clip.path, encoded(pictures(clip.cell, film(clip, settings))))
    return clip


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{path.parent}: expected a folder for the drawn set that can be made, found: {error.strerror};"
            " give another folder"
        ) from error
    with whole(path) as file:
        file.write(content)
