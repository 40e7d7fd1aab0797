"""The clips for other people's loops: iterable data sets that a plain loop, a DataLoader or Lightning can take.

They hand out what our trainer would be given: the same order, instants, crops and mirror images, sub-batch by
sub-batch. Reading and decoding run in threads of the process that iterates, so no worker processes are needed; the
workers of a DataLoader share the sub-batches in turn, and give the same sequence.

Shapes: B clips of a sub-batch, T instants, C channels (RGB 3, flow 2L), H W positions, V views of a video.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.utils.data import IterableDataset, get_worker_info

from configs import SettingsError, load, nearest
from shards.errors import ShardError, StateMismatchError
from shards.index import Row
from shards.order import steps_for
from shards.split import Split
from shards.stream import cores
from stmul.bookmark import Counting
from stmul.config import Config
from stmul.decode import Loaded
from stmul.errors import TrainingError
from stmul.loading import Batch, batch_stream, clip_tensors, evaluation_clips, test_views, training_stream
from stmul.opening import open_shards
from stmul.turns import Turns

Item = dict[str, Tensor]
Stage = Literal["appearance", "motion", "joint"]
STAGES = ("appearance", "motion", "joint")


class _Clips(IterableDataset[Item]):
    """What both have: where the shards are, the settings, the device, and which of the ranks this is."""

    def __init__(
        self,
        shards: str | Path,
        config: Config | str | Path,
        changes: Sequence[str],
        device: str | torch.device,
        rank: int | None,
        world: int | None,
    ) -> None:
        super().__init__()
        if (rank is None) != (world is None) or (rank is not None and not 0 <= rank < (world or 0)):
            raise SettingsError(f"rank {rank} of world {world}: expected both or neither, and 0 <= rank < world")
        self.shards = str(shards)
        self.config = load(Config, config, changes) if not isinstance(config, Config) else config
        self.device = torch.device(device)
        self._ranks = (rank, world) if rank is not None and world is not None else None

    def ranks(self) -> tuple[int, int]:
        """This rank and how many there are: as given, else torch.distributed's where it is initialised, else 0 of 1.

        Raises SettingsError where several processes were started together and nothing says which of them this is.
        """
        if self._ranks is not None:
            return self._ranks
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        if (started := os.environ.get("WORLD_SIZE", "1")) != "1" and get_worker_info() is None:
            raise SettingsError(
                f"one of {started} processes that were started together, but torch.distributed is not initialised, and"
                " each would get the same clips. Call init_process_group first, or give rank and world"
            )
        return 0, 1

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if distributed.is_available() and distributed.is_initialized():
            state["_ranks"] = self.ranks()  # a spawned worker has no process group of its own
        return state

    def _worker(self) -> tuple[int, int]:
        """The number of this DataLoader worker and how many there are; 0 of 1 where there are none."""
        info = get_worker_info()
        if info is None:
            return 0, 1
        if self.device.type != "cpu":
            raise SettingsError(
                f"device {self.device}: the workers of a DataLoader cannot hand on what lies on a GPU."
                " Use num_workers=0 (threads read and decode), or device='cpu'"
            )
        return info.id, info.num_workers

    def _shared(self, workers: int) -> Config:
        """The settings of one of `workers` processes, which share the threads and their memory."""
        if workers == 1:
            return self.config
        data = self.config.data
        parts = {"threads": max(1, (data.threads or cores()) // workers), "memory": max(1, data.memory // workers)}
        return self.config.model_copy(update={"data": data.model_copy(update=parts)})


class TrainingClips(_Clips):
    """Training's clips, sub-batch by sub-batch, as `stmul train` would see them in `stage`.

    An item holds `rgb` (B, T, 3, H, W) and `flow` (B, T, 2L, H, W), uint8, cropped and mirrored as drawn (a stage of
    one stream has only its own); `label` (B,); `position` (B,) in the endless stream; and `valid` (B,), False for a
    damaged clip that `data.damage=skip` left out, whose pixels mean nothing; `damaged` has their videos' names and
    errors (in a DataLoader each worker its own).

    Each iteration goes on where the last one stopped, and ends where the stream has come to the next multiple of
    `epochs`, rounded up to whole batches; with None never. `state_dict` counts what has been handed out, sub-batch by
    sub-batch. Ranks share positions and all get equally many sub-batches.
    """

    def __init__(
        self,
        shards: str | Path,
        config: Config | str | Path,
        stage: Stage = "joint",
        *,
        changes: Sequence[str] = (),
        device: str | torch.device = "cpu",
        epochs: float | None = 1.0,
        start: Mapping[str, Any] | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(shards, config, changes, device, rank, world)
        if stage not in STAGES:
            raise SettingsError(f"stage {stage!r}{nearest(str(stage), STAGES)}: expected one of {', '.join(STAGES)}")
        if epochs is not None and not 0 < epochs < math.inf:
            raise SettingsError(f"epochs {epochs!r}: expected a number above 0, or None for a stream without end")
        self.stage, self.epochs = stage, epochs
        self._next = 0  # the number, among this rank's sub-batches, of the one to hand out next
        self._saved: Mapping[str, Any] | None = start  # loaded, not yet taken over
        self._counting: Counting | None = None
        self._records = 0
        self._turns = Turns()
        self.damaged: dict[str, str] = {}
        # In a worker of a DataLoader:
        self._rounds = 0  # iterations begun
        self._until: int | None = None  # where the one begun last ends
        self._begun = self._under_way = False

    def __iter__(self) -> Iterator[Item]:
        if self._under_way:  # another one, in this worker: at its end, or left early
            self._begun = self._under_way = False
        return self._items()

    def _items(self) -> Iterator[Item]:
        info = get_worker_info()
        with open_shards(self.config.data, self.shards) as split:
            counting = self._settled(split)
            (_, workers), end = self._worker(), self._begin()
            self._under_way = info is not None
            with closing(self._sub_batches(split, counting, self._next, workers)) as sub_batches:
                while end is None or self._next < end:
                    item = self._item(next(sub_batches)())
                    self._next += workers
                    yield item
            if info is not None:
                self._turns.end(info, self._rounds, end)

    def __len__(self) -> int:
        """How many sub-batches a whole iteration gives this rank. Raises TypeError where it has no end."""
        self._known()
        if (each := self._each()) is None:
            raise TypeError("a stream without end has no length; give epochs=1")
        return each

    def state_dict(self) -> dict[str, Any]:
        """What has been handed out, as a small JSON: `load_state_dict` of it goes on with the very next sub-batch.

        Raises TrainingError where a DataLoader's workers handed it out: see `state_after`.
        """
        counting, end = self._known(), self._begin()
        saved = counting.saved(self._next)
        return saved if get_worker_info() is None else {**saved, "worker": [*self._worker()], "until": end}

    def state_after(self, item: Item) -> dict[str, Any]:
        """The state once `item` has been used, whoever handed it out, and however much was fetched after it."""
        counting = self._known()
        return counting.saved(counting.number(int(item["position"][0])) + 1)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken, in the next iteration: StateMismatchError is raised there if it cannot."""
        self._saved = dict(state)
        if get_worker_info() is None:
            self._turns = Turns()  # other ones: workers that still run may write into theirs

    def _item(self, batch: Batch) -> Item:
        streams = {"rgb": batch.rgb_BTCHW, "flow": batch.flow_BTCHW}
        return {
            **{name: pixels for name, pixels in streams.items() if pixels is not None},
            "label": batch.labels_B,
            "position": torch.tensor(batch.positions),
            "valid": torch.tensor(batch.valid, device=batch.labels_B.device),
        }

    def _sub_batches(
        self, split: Split, counting: Counting, first: int, stride: int
    ) -> Generator[Callable[[], Batch], None, None]:
        """What makes this rank's sub-batches number `first`, `first + stride`, ...

        They are those of one of `stride` times as many ranks, over as many steps as make the shares come out even.
        """
        rank, world = self.ranks()
        steps = stride // math.gcd(counting.share, stride)
        config, batch = self._shared(stride), counting.begin.batch * steps
        recipe = getattr(config.train, self.stage).model_copy(update={"batch": batch})
        config = config.model_copy(update={"train": config.train.model_copy(update={self.stage: recipe})})
        round_, within = divmod(first, counting.share * steps)
        with batch_stream(
            split,
            config,
            self.stage,
            device=self.device,
            start=replace(counting.begin, batch=batch, position=round_ * batch),
            rank=rank + world * (first % stride),
            world=world * stride,
            skip=self._skip if config.data.damage == "skip" else None,
        ) as stream:
            yield from islice(stream.step(), within // stride, None)
            while True:
                yield from stream.step()

    def _skip(self, row: Row, error: ShardError) -> None:
        self.damaged[row.name] = str(error)
        if len(self.damaged) > (limit := self.config.data.damage_limit):
            names = ", ".join(sorted(self.damaged))
            raise TrainingError(
                f"{len(self.damaged)} videos are damaged, data.damage_limit is {limit}: {names}. Copy or build the"
                f" shards again; the last: {error}"
            )

    def _known(self) -> Counting:
        if self._counting is not None and self._saved is None:
            return self._counting
        with open_shards(self.config.data, self.shards) as split:
            return self._settled(split)

    def _settled(self, split: Split) -> Counting:
        """How this rank counts on these shards; a state that was loaded is taken over."""
        if self._counting is None:
            with training_stream(split, self.config, self.stage, pinned=False) as stream:
                begin = replace(stream.state(), position=0)
            self._counting = Counting(begin=begin, stage=self.stage, world=self.ranks()[1])
            self._records = stream.order.count
        if self._saved is not None:
            info, mine = get_worker_info(), self._saved.get("worker")
            if mine is not None and mine != [*self._worker()]:
                raise StateMismatchError(
                    f"cannot resume: the state is that of DataLoader worker {mine}, here is {[*self._worker()]}"
                    " (number, all of them). Use as many workers, or a state made by state_after"
                )
            self._next = self._counting.restored(self._saved)
            self._until, self._saved = self._saved.get("until"), None
            self._begun, self._under_way = mine is not None, False
            if self._begun and info is not None:
                self._rounds += 1
                self._turns.begin(info, self._rounds, max(0, (self._until or 0) - (self._each() or 0)), anew=True)
        return self._counting

    def _each(self) -> int | None:
        """This rank's sub-batches from one multiple of `epochs` to the next."""
        assert self._counting is not None
        if self.epochs is None:
            return None
        steps = steps_for(self.epochs, count=self._records, batch=self._counting.begin.batch)
        return max(1, steps) * self._counting.share

    def _begin(self) -> int | None:
        """Where the iteration ends that comes next, or is under way; in a worker, the first of its own is next.

        Raises TrainingError where the workers of a DataLoader have handed out clips. They read ahead of what is used,
        so how far the loop has come is known to nobody here; but a whole iteration is one.
        """
        each, info = self._each(), get_worker_info()
        first: int | None = self._next
        if info is None and self._turns.taken:
            first = None
        if info is not None:
            if self._begun:
                return self._until
            first = self._turns.begin(info, self._rounds + 1, self._next)
        if first is None:
            raise TrainingError(
                f"{self.shards}: the workers of a DataLoader have handed out clips, ahead of what was used, so where to"
                " go on is not known here. Say it with clips.load_state_dict(clips.state_after(batch)), batch being the"
                " last one used, or use num_workers=0: reading and decoding run in threads"
            )
        until = (first // each + 1) * each if each is not None else None
        if info is not None:
            self._next, self._until, self._begun, self._rounds = first + info.id, until, True, self._rounds + 1
        return until


class EvaluationClips(_Clips):
    """Every clip of `part` exactly once, over all ranks and workers, in the views that `stmul test` scores.

    An item is one video: `rgb` (V, T, 3, H, W) and `flow` (V, T, 2L, H, W), uint8, of its V views (the whole frame or
    the centre, and the mirror image); `label`, `position` (the record's number) and `valid`, (V,) each. The mean of the
    views' scores is the video's. Sizes differ between videos where whole frames are looked at.
    """

    def __init__(
        self,
        shards: str | Path,
        config: Config | str | Path,
        part: str = "test",
        *,
        changes: Sequence[str] = (),
        device: str | torch.device = "cpu",
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__(shards, config, changes, device, rank, world)
        self.part = part
        self._count: int | None = None

    def __len__(self) -> int:
        """How many videos are this rank's."""
        if self._count is None:
            with open_shards(self.config.data, self.shards) as split:
                self._count = len(split.index(self.part))
        rank, world = self.ranks()
        return len(range(rank, self._count, world))

    def __iter__(self) -> Iterator[Item]:
        (rank, world), (worker, workers) = self.ranks(), self._worker()
        turn, turns = rank + world * worker, world * workers  # a DataLoader asks its workers in turn
        with open_shards(self.config.data, self.shards) as split:
            clips = evaluation_clips(split, self.part, self._shared(workers), rank=turn, world=turns)
            with closing(clips):  # type: ignore[type-var]  # a generator
                yield from map(self._item, clips)

    def _item(self, loaded: Loaded) -> Item:
        decoded = loaded.to(self.device)
        (clip,) = decoded.clips
        views = [clip_tensors(decoded, clip, view, size=size) for view, size in test_views(self.config, clip.size)]
        streams = {
            name: [pixels for pixels in of_views if pixels is not None]
            for name, of_views in zip(("rgb", "flow"), zip(*views, strict=True), strict=True)
        }
        count, device = len(views), decoded.arena.device
        return {
            **{name: torch.stack(of_views) for name, of_views in streams.items() if of_views},
            "label": torch.full((count,), clip.label, device=device),
            "position": torch.full((count,), clip.record),
            "valid": torch.full((count,), clip.valid, device=device),
        }
