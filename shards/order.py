"""Which record stands at which position: arithmetic on (seed, epoch, position), the same on every machine.

Training is one endless stream of positions 0, 1, 2, ...; position p belongs to epoch p // N. A global batch is
`batch` positions in a row, cut into sub-batches; ranks take sub-batches in turn, so they share positions, never shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, get_type_hints

import numpy as np
from numpy.typing import NDArray

from shards.draws import Draws, key_of, words
from shards.errors import StateMismatchError
from shards.fields import shown

Positions = NDArray[np.int64]
STATE_SCHEMA = 1


def full(count: int, *, seed: int, epoch: int) -> Positions:
    """The order in which `epoch` visits records 0 .. count-1: any record may follow any other."""
    return np.argsort(words(key_of(seed, "order", epoch), count), kind="stable")


def windowed(shard_of: NDArray[np.uint32], *, window: int, seed: int, epoch: int) -> Positions:
    """The order of `epoch` that needs only `window` shards at a time: shards permuted, records permuted in a window.

    `shard_of` (N,) is each record's shard. One machine that keeps a window of shards reads each shard once per epoch.
    """
    shards = np.unique(shard_of)
    shards = shards[Draws.of(seed, "shards", epoch).permutation(len(shards))]
    rank = np.zeros(int(shards.max(initial=0)) + 1, dtype=np.int64)
    rank[shards] = np.arange(len(shards)) // window
    return np.lexsort((words(key_of(seed, "order", epoch), len(shard_of)), rank[shard_of]))


@dataclass(kw_only=True)
class Order:
    """The endless stream of records; keeps the orders of the last two epochs, since a batch may straddle them."""

    count: int
    seed: int
    kind: Literal["full", "windowed"] = "full"
    shard_of: NDArray[np.uint32] | None = None  # needed by windowed
    window: int = 8
    records: Positions | None = None  # (N,), ascending: those it is over, if not 0 .. N-1; `shard_of` is theirs
    _epochs: dict[int, Positions] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("an order needs at least one record")

    def epoch(self, epoch: int) -> Positions:
        """Records in the order of `epoch`, (N,)."""
        known = self._epochs.get(epoch)
        if known is None:
            if self.kind == "full":
                known = full(self.count, seed=self.seed, epoch=epoch)
            else:
                assert self.shard_of is not None
                known = windowed(self.shard_of, window=self.window, seed=self.seed, epoch=epoch)
            # Assigned whole, never mutated: threads may ask at the same time.
            self._epochs = {**{e: p for e, p in self._epochs.items() if abs(e - epoch) < 2}, epoch: known}
        return known

    def record(self, position: int) -> int:
        """The record at `position` of the endless stream."""
        epoch, within = divmod(position, self.count)
        number = int(self.epoch(epoch)[within])
        return number if self.records is None else int(self.records[number])

    @property
    def name(self) -> str:
        """The order in words, which a saved position names: another order would give other records."""
        kind = self.kind if self.kind == "full" else f"windowed:{self.window}"
        if self.records is None:
            return kind
        digest = hashlib.sha256(self.records.astype("<i8").tobytes()).hexdigest()
        return f"{kind} over {self.count} records ({digest[:16]})"


def sub_batches(step: int, *, batch: int, sub_batch: int, rank: int = 0, world: int = 1) -> list[range]:
    """The positions that `rank` of `world` works on at `step`, by sub-batch: whole sub-batches, taken in turn."""
    first = step * batch
    starts = range(first, first + batch, sub_batch)
    return [range(start, start + sub_batch) for start in starts[rank::world]]


def steps_for(epochs: float, *, count: int, batch: int) -> int:
    """Steps that visit every record `epochs` times at least: positions are rounded up to whole batches."""
    return -(-round(epochs * count) // batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """Where a stream stands, counted where batches are consumed; all that a restart needs."""

    digest: str  # of the data set part
    seed: int
    order: str  # "full" or "windowed:8", and over which records, if not all
    batch: int
    sub_batch: int
    position: int  # positions consumed so far: the next to be seen
    schema: int = STATE_SCHEMA

    def to_json(self) -> str:
        """The state as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> State:
        """The state that `to_json` wrote. Raises StateMismatchError where the text is anything else."""
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict) or fields.get("schema") != STATE_SCHEMA:
                raise ValueError(f"schema {STATE_SCHEMA} expected")
            state = cls(**fields)
            for name, kind in get_type_hints(cls).items():
                if type(fields[name]) is not kind:
                    raise ValueError(f"{name} {shown(fields[name])}")
            if state.batch < 1 or state.position < 0 or state.position % state.batch:
                raise ValueError(f"position {shown(state.position)} is no multiple of batch {shown(state.batch)}")
            return state
        except (ValueError, TypeError, RecursionError) as error:
            raise StateMismatchError(
                f"not a saved position of this version ({str(error)[:200]}): {text[:80]!r}"
            ) from error

    def must_fit(self, other: State) -> None:
        """Raises StateMismatchError, naming both values, where `other` (what is to be resumed now) differs."""
        names: Sequence[tuple[str, str]] = (
            ("digest", "data set"),
            ("seed", "seed"),
            ("order", "order"),
            ("batch", "global batch"),
            ("sub_batch", "sub-batch"),
        )
        for name, word in names:
            saved, now = getattr(self, name), getattr(other, name)
            if saved != now:
                why = " (its shards were appended to, or made anew)" if name == "digest" else ""
                raise StateMismatchError(
                    f"cannot resume: the saved position was counted with {word} {saved}, this run has {word} {now}"
                    f"{why}; set it back, or start a new run"
                )


def evaluation(count: int, *, rank: int = 0, world: int = 1) -> Iterator[int]:
    """The records that `rank` scores: every record on exactly one rank, none twice, no padding."""
    return iter(range(rank, count, world))
