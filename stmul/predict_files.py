"""What is written of predictions: all scores as JSON, windows as CSV, and of each video a sheet, a timeline, a film."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.picture import record_sheet
from shards.record import Record
from shards.whole import unwritable, whole
from stmul.predict import Guess, Prediction
from stmul.predict_film import pages
from stmul.predict_timeline import write_timeline

# (path, pages of the film, frames a second as numerator and denominator)
WriteMovie = Callable[[Path, Any, tuple[int, int]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Folders:
    """Where pictures of each video go; None: they are not wanted."""

    sheets: Path | None = None
    timelines: Path | None = None
    films: Path | None = None

    def made(self) -> Folders:
        """The same, once the folders are there. Raises ShardError where one cannot be made."""
        for folder in (self.sheets, self.timelines, self.films):
            if folder is not None:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise unwritable(folder, error) from error
        return self


def write_pictures(
    folders: Folders, name: str, record: Record, found: Prediction, *, top: int, write_movie: WriteMovie
) -> list[tuple[str, Path]]:
    """Writes what is wanted of one video, files named `name`; gives what each is, and its path."""
    written: list[tuple[str, Path]] = []
    words = " · ".join(f"{guess.name} {100 * guess.probability:.1f} %" for guess in found.top(top))
    if folders.sheets is not None:
        target = folders.sheets / f"{name}.png"
        with whole(target) as file:
            record_sheet(record, said=words).save(file, "PNG")
        written.append(("sheet", target))
    if folders.timelines is not None:
        target = folders.timelines / f"{name}.windows.png"
        with whole(target) as file:
            write_timeline(file, record, found, title=name)
        written.append(("windows", target))
    if folders.films is not None:
        target = folders.films / f"{name}.mp4"
        write_movie(target, pages(record, found), record.fps)
        written.append(("film", target))
    return written


def names_of(files: Sequence[Path]) -> list[str]:
    """A name for each file that none of the others has: its own, with as many folders before it as that takes."""
    parts = [list(path.absolute().parts) for path in files]
    depth = [1] * len(files)
    while True:
        names = ["__".join(own[-many:]) for own, many in zip(parts, depth, strict=True)]
        counts = Counter(name.casefold() for name in names)
        short = [i for i, name in enumerate(names) if counts[name.casefold()] > 1 and depth[i] < len(parts[i]) - 1]
        if not short:
            return names
        depth = [many + (i in short) for i, many in enumerate(depth)]


def as_json(found: Sequence[tuple[Path, Prediction]], run: str, top: int) -> str:
    """Every score of every head and window."""
    return json.dumps(
        {"run": run, "videos": [{"file": str(path), **_video(one, top)} for path, one in found]},
        ensure_ascii=False,
        indent=1,
    )


def as_csv(found: Sequence[tuple[Path, Prediction]]) -> str:
    """A line for each window: video, from, to, class, probability."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "from_s", "to_s", "class", "probability"])
    for _, one in found:
        for part in one.windows:
            (best,), (begin, end) = one.top(1, part), one.seconds(part)
            table.writerow([one.name, f"{begin:.3f}", f"{end:.3f}", best.name, f"{best.probability:.6f}"])
    return text.getvalue()


def _video(one: Prediction, top: int) -> dict[str, Any]:
    return {
        "name": one.name,
        "frames": one.frames,
        "frames_per_second": one.rate,
        "scores_of": one.main,
        "top": [_guess(guess) for guess in one.top(top)],
        "classes": one.classes,
        "scores": _scores(one.heads),
        "windows": [
            {
                "from_s": one.seconds(part)[0],
                "to_s": one.seconds(part)[1],
                "top": [_guess(guess) for guess in one.top(top, part)],
                "scores": _scores(part.heads),
            }
            for part in one.windows
        ],
    }


def _guess(guess: Guess) -> dict[str, Any]:
    return {"class": guess.name, "probability": guess.probability, "score": guess.score}


def _scores(heads: Mapping[str, Any]) -> dict[str, list[float]]:
    return {head: [float(score) for score in scores_K] for head, scores_K in heads.items()}
