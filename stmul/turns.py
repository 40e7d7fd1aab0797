"""What the workers of a DataLoader must agree on without talking: where an iteration begins.

Each iteration of a DataLoader has workers with copies of the data set, all as it was given to the DataLoader. A few
words in memory that they share say where the iteration under way began, and who has come to its end: the next one
begins there. A word is written whole, and by all workers alike, so none needs a lock.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from configs import SettingsError
from shards.draws import key_of

MOST = 1024  # workers
_START, _WORKERS, _ENDS = 0, 1, 2


class Info(Protocol):
    """What PyTorch says about a worker."""

    @property
    def id(self) -> int: ...

    @property
    def num_workers(self) -> int: ...

    @property
    def seed(self) -> int: ...


class Turns:
    """The words; a spawned or forked worker has the same ones, a copy by way of a file new ones."""

    def __init__(self) -> None:
        self._words = torch.zeros(_ENDS + MOST, dtype=torch.int64)
        self._words.share_memory_()  # type: ignore[no-untyped-call]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._words.is_shared():  # type: ignore[no-untyped-call]
            self.__init__()  # type: ignore[misc]

    @property
    def taken(self) -> bool:
        """Whether workers have begun an iteration."""
        return bool(self._words[_START])

    def begin(self, info: Info, rounds: int, first: int, *, anew: bool = False) -> int | None:
        """The number at which this iteration begins for all workers: `first` in the first one, else the last one's end.

        `rounds` counts the iterations that this worker has begun. None where the last one was not carried to its end.
        With `anew` nothing that was before counts.
        """
        tag, last = _tag(info, rounds), int(self._words[_START])
        if info.num_workers > MOST:
            raise SettingsError(f"num_workers {info.num_workers}: expected at most {MOST}")
        if last >> 32 == tag:
            return last & 0xFFFFFFFF
        if last and not anew:
            ends = self._words[_ENDS : _ENDS + int(self._words[_WORKERS])].tolist()
            if any(end >> 32 != last >> 32 for end in ends):
                return None
            first = ends[0] & 0xFFFFFFFF
        self._words[_WORKERS] = info.num_workers
        self._words[_START] = tag << 32 | first
        return first

    def end(self, info: Info, rounds: int, end: int) -> None:
        """Says that this worker has come to the end of the iteration."""
        self._words[_ENDS + info.id] = _tag(info, rounds) << 32 | end


def _tag(info: Info, rounds: int) -> int:
    """A number of 31 bits for an iteration: a DataLoader draws a seed for each, unless its workers are persistent."""
    return key_of(info.seed - info.id, rounds) >> 33 or 1
