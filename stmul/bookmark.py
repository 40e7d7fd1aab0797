"""Where one rank stands in the endless stream: the number of its next sub-batch, and the small JSON that says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from configs import SettingsError
from shards.errors import StateMismatchError
from shards.order import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Counting:
    """How a rank counts its sub-batches: 0, 1, 2, ... from the start of the stream of a stage."""

    begin: State  # at position 0
    stage: str
    world: int  # ranks

    def __post_init__(self) -> None:
        all_of_them = self.begin.batch // self.begin.sub_batch
        if all_of_them % self.world:
            raise SettingsError(
                f"{self.world} ranks cannot share the {all_of_them} sub-batches of a batch equally: train.batch is"
                f" {self.begin.batch}, train.sub_batch {self.begin.sub_batch}"
            )

    @property
    def share(self) -> int:
        """Sub-batches of each step that are a rank's own."""
        return self.begin.batch // self.begin.sub_batch // self.world

    def number(self, position: int) -> int:
        """Which of its rank's sub-batches holds `position`."""
        step, within = divmod(position, self.begin.batch)
        return step * self.share + within // self.begin.sub_batch // self.world

    def saved(self, number: int) -> dict[str, Any]:
        """The JSON for a rank whose next sub-batch is `number`."""
        step, taken = divmod(number, self.share)
        place = replace(self.begin, position=step * self.begin.batch)
        return {**asdict(place), "stage": self.stage, "taken": taken, "world": self.world}

    def restored(self, saved: Mapping[str, Any]) -> int:
        """The number of the next sub-batch; between two batches also where there were more or fewer ranks.

        Raises StateMismatchError, naming both values, where `saved` was counted in another way.
        """
        state = State.from_json(json.dumps({field.name: saved.get(field.name) for field in fields(State)}))
        state.must_fit(self.begin)
        stage, taken, world = saved.get("stage"), saved.get("taken"), saved.get("world")
        if stage != self.stage:
            raise StateMismatchError(_differs("stage", stage, self.stage))
        if taken and world != self.world:
            raise StateMismatchError(_differs("ranks in the middle of a batch", world, self.world))
        if type(taken) is not int or not 0 <= taken < self.share:
            raise StateMismatchError(f"not a saved position of this version: taken {taken!r} of {self.share}")
        return state.position // state.batch * self.share + taken


def _differs(word: str, then: object, now: object) -> str:
    return (
        f"cannot resume: the saved position was counted with {word} {then}, this run has {word} {now};"
        f" set it back, or start a new run"
    )
