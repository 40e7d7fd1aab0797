"""Where a stage of a training stands between two steps: taken from its newest checkpoint, and kept in new ones."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from configs import dump
from shards.order import State
from shards.split import Split
from stmul.agreement import must_agree
from stmul.arithmetic import LossScale
from stmul.checkpoint import Checkpoint, restore, resume_from, save
from stmul.config import Config
from stmul.distributed import Ranks
from stmul.errors import CheckpointError, DivergedError, HalfUpdatedError
from stmul.failures import first_line, told
from stmul.meter import Meter, Seen, Validation
from stmul.runs import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A stage after a whole number of steps; weights and momenta are in the network and the optimiser."""

    meter: Meter
    scale: LossScale | None  # only in float16
    step: int = 0  # updates made
    best: tuple[int, float] | None = None  # epoch and top-1 on the clips held out

    def after(self, seen: Seen, seconds: float, waited: float) -> Place:
        """One step further, which took `seconds`, of which `waited` for clips."""
        scale = self.scale.after(seen.updated) if self.scale is not None else None
        return replace(self, meter=self.meter.after(seen, seconds, waited), scale=scale, step=self.step + 1)

    def row(
        self, stage: str, epoch: int, learning_rate: float, memory: float, validation: Validation | None
    ) -> dict[str, Any]:
        """What the log says of the epoch under way, as far as it has come."""
        skipped = self.scale.skipped if self.scale is not None else 0
        more = {"memory": memory, "skipped": skipped, "validation": validation}
        return self.meter.row(stage, epoch, self.step, learning_rate, **more)


@dataclass(slots=True)
class Keeper:
    """Writes a stage's checkpoints, and tells of what ends it in the midst of a step."""

    stage: str
    run: Run
    config: Config
    split: Split
    network: nn.Module
    optimizer: SGD
    ranks: Ranks
    steps: int  # of the whole stage
    groups: int = 1  # sub-batches in one forward
    kept: int = 0  # steps in the newest checkpoint
    at: float = 0.0  # when that was written, or the stage begun

    @property
    def due(self) -> bool:
        """Whether `train.save_minutes` have passed since the last one."""
        minutes = self.config.train.save_minutes
        return bool(minutes) and time.monotonic() - self.at >= 60 * minutes

    def keep(self, place: Place, state: State, epoch: int, path: Path) -> None:
        """Writes a checkpoint, on the first rank, to go on from; `epoch` passes over the data are done.

        Raises TrainingError where a weight is not finite, ShardError where the file cannot be written.
        """
        with self.telling(f"after {place.step} of {self.steps} steps"):
            self._keep(place, state, epoch, path)

    def _keep(self, place: Place, state: State, epoch: int, path: Path) -> None:
        if not self.ranks.first:
            return
        weights = self.network.state_dict()
        if wrong := next((name for name, value in weights.items() if not value.isfinite().all()), None):
            raise DivergedError(f"{wrong} is not finite")
        save(path, self._checkpoint(place, state, epoch, weights))
        if path != self.run.best(self.stage):
            self.kept, self.at = place.step, time.monotonic()

    def _checkpoint(self, place: Place, state: State, epoch: int, weights: dict[str, Tensor]) -> Checkpoint:
        meter, scale, manifest = place.meter, place.scale, self.split.manifest
        return Checkpoint(
            stage=self.stage,
            epoch=epoch,
            step=place.step,
            config=dump(self.config),
            dataset=manifest.dataset,
            split=manifest.split,
            classes=list(manifest.classes),
            loader=replace(state, position=place.step * state.batch).to_json(),
            sums=(meter.loss, meter.right, meter.clips),
            network=weights,
            optimizer=self.optimizer.state_dict(),
            heads=dict(zip(meter.heads, zip(meter.losses, meter.rights, strict=True), strict=False)),
            scale=(scale.scale, scale.good, scale.skipped) if scale is not None else None,
            best=place.best,
        )

    @contextmanager
    def rescuing(self, place: Place, state: State, epoch: int, doing: str = "") -> Iterator[None]:
        """Inside, whatever ends what follows `place` first has the stage kept as it was there, and then is told."""
        with self.telling(doing or f"step {place.step + 1} of {self.steps}") as words:
            try:
                yield
            except HalfUpdatedError as error:
                words.append("The update had begun, so that the weights are those of no step.")
                raise (error.__cause__ or error) from None
            except Exception:
                if self.ranks.first and place.step > self.kept:
                    try:
                        self._keep(place, state, epoch, self.run.mid_epoch(self.stage))
                    except Exception as error:  # what ended the step is what is to be told
                        words.append(f"The {place.step} steps before it could not be kept ({first_line(error)}).")
                raise

    @contextmanager
    def telling(self, doing: str) -> Iterator[list[str]]:
        """Inside, an error is told with where it came, what to do, and what the same command goes on from.

        Gives a list that takes more sentences about the last.
        """
        words: list[str] = []
        try:
            yield words
        except Exception as error:
            where = f"{self.run.folder}: stage {self.stage}, {doing}"
            kept = " ".join([*words, self._goes_on()])
            known = told(error, self.config, self.stage, where=where, kept=kept, groups=self.groups)
            if known is error:
                raise
            raise known from error

    def _goes_on(self) -> str:
        if not self.ranks.first:
            return "The same command goes on from what the first rank has kept"
        newest = self.run.newest(self.stage)
        return f"The same command goes on from {newest}" if newest else f"The same command begins stage {self.stage}"


def resumed(keeper: Keeper, heads: tuple[str, ...]) -> tuple[Place, State | None]:
    """Where the stage's newest checkpoint was written; the first rank reads it, and the others get what it holds.

    Raises CheckpointError where it is damaged, or of a network of other settings or classes.
    """
    ranks, optimizer = keeper.ranks, keeper.optimizer
    found = resume_from(keeper.run, keeper.stage) if ranks.first else None
    if found is not None:
        path, checkpoint = found
        must_agree(checkpoint.config, keeper.config, path)
        must_know(checkpoint, keeper.split.manifest.classes, path)
        restore(keeper.network, checkpoint.network, path)
        optimizer.load_state_dict(dict(checkpoint.optimizer))
    names = ("step", "loader", "sums", "heads", "scale", "best")
    said = ranks.told({name: getattr(found[1], name) for name in names} if found else None)
    scale = LossScale() if keeper.config.train.precision == "float16" else None
    if said is None:
        return Place(meter=Meter(heads=heads), scale=scale), None
    ranks.same([*keeper.network.state_dict().values(), *momenta(optimizer)])
    loss, right, clips = said["sums"]
    known = [head for head in heads if head in said["heads"]]
    meter = Meter(
        heads=() if clips and not known else heads,  # of an epoch begun by an earlier version only the whole is known
        loss=loss,
        right=right,
        clips=clips,
        losses=tuple(said["heads"][head][0] for head in known),
        rights=tuple(said["heads"][head][1] for head in known),
    )
    if scale is not None and said["scale"] is not None:
        power, good, skipped = said["scale"]
        scale = LossScale(scale=power, good=good, skipped=skipped)
    best = (int(said["best"][0]), float(said["best"][1])) if said["best"] else None
    keeper.kept = said["step"]
    return Place(meter=meter, scale=scale, step=said["step"], best=best), State.from_json(said["loader"])


def must_know(checkpoint: Checkpoint, classes: Sequence[str], where: Path) -> None:
    """Raises CheckpointError where the checkpoint is of a network for other classes."""
    then = checkpoint.classes
    if then != list(classes):
        raise CheckpointError(
            f"{where}: trained on {len(then)} classes ({', '.join(then[:3])}, ...), these shards have {len(classes)}"
            f" ({', '.join(classes[:3])}, ...). Train on the shards it was begun with, or begin another run: --fresh"
        )


def momenta(optimizer: SGD) -> list[Tensor]:
    """The momentum of each weight, zeros where there has been none yet."""
    groups = [group for group in optimizer.param_groups if group["momentum"]]
    weights = [weight for group in groups for weight in group["params"]]
    return [optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight)) for weight in weights]
