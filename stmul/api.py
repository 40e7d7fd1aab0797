"""A trained network in a few lines of Python: what is done in a video, scored as `stmul predict` scores it.

Example:
    >>> from stmul.api import load_run
    >>> run = load_run("experiment/own-001")
    >>> found = run.predict("video.avi")
    >>> sorted(guess.name for guess in found.top(2))
    ['walk', 'wave']
    >>> found.seconds(found.windows[0])
    (0.0, 0.56)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shards.record import Record
from stmul.predict import Prediction, predict
from stmul.start import is_network_file
from stmul.trained import Trained, load_trained

__all__ = ["LoadedRun", "Prediction", "load_run"]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedRun:
    """The networks of a run, ready to score videos."""

    trained: Trained

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes it tells apart, by label."""
        return self.trained.classes

    def predict(
        self,
        video: str | Path | Record,
        *,
        window: float = 10.0,
        step: float = 0.0,
        flow: str = "",
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> Prediction:
        """The scores of a video: a file, of which flow is computed as the training's was, or a record.

        One longer than three windows of `window` seconds is scored in windows, one every `step` seconds (0: half a
        window). `flow` names another method. `watch` is told (done, total) after each window.
        Raises VideoError where the file cannot be read, PreprocessError where nobody noted how flow was made.
        """
        record = video if isinstance(video, Record) else self.record(video, flow=flow)
        one = self.trained
        return predict(
            *(one.networks, one.classes, record, one.config),
            device=one.device,
            window=window,
            step=step,
            watch=watch,
        )

    def record(self, video: str | Path, *, flow: str = "") -> Record:
        """A video file as the record that would stand in shards: frames and flow, as the training's were made."""
        from stmul.__main__ import records  # the one place that knows of preprocess

        videos = records()
        made: Record = videos.record_of(Path(video), videos.settings_as(self.trained.made, flow=flow))
        return made


def load_run(
    run: str | Path = "",
    *,
    epoch: int | Literal["best"] = 0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    settings: Sequence[str] = (),
) -> LoadedRun:
    """The networks of a run: its folder, or a file with a network; the newest run in `experiment/` unless named.

    `epoch` 0 is the last, "best" the one that did best on clips held out; `settings` are changes as the command line
    takes them: "evaluate.protocol=centre".
    Raises RunError with the nearest name where there is no such run.
    """
    place = Path(run)
    use = {"auto": "auto", "cpu": "no", "cuda": "yes"}[device]
    changes = {"use_gpu": use, "pre_trained_epoch": epoch}
    if is_network_file(str(run)):
        changes["pre_trained_id"] = str(run)
    elif str(run):
        changes |= {"folder": str(place.parent), "pre_trained_id": place.name}
    words = [f"experiment.{name}={json.dumps(value)}" for name, value in changes.items()]
    return LoadedRun(load_trained(None, [*settings, *words]))
