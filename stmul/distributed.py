"""Training and testing in several processes, one for each GPU, as torchrun starts them.

Every rank makes the same steps and holds the same network. What a step sums over ranks (gradients, moments, loss) is
what one process would sum over its sub-batches; what only one may do (folders, checkpoints, lines on the terminal) the
first rank does and tells the others. They need no common disk but for the shards. Nothing that passes between them is
pickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs import SettingsError
from stmul.errors import TrainingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """The processes that work together, as one of them sees it; alone, every method leaves things as they are."""

    rank: int = 0
    world: int = 1
    local: int = 0  # number of this process on its machine
    local_world: int = 1  # processes on this machine

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    def parallel(self, network: nn.Module) -> nn.Module:
        """`network` as one whose gradients are averaged over ranks; the first rank's weights go to all."""
        if self.world == 1:
            return network
        self.same(network.buffers())
        # Never again: the step sums the statistics (stmul.batchnorm). PyTorch 2.15 has a new name for that.
        known = signature(DistributedDataParallel).parameters
        never: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
        return DistributedDataParallel(network, gradient_as_bucket_view=True, **never)

    def summing(self, network: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Inside, a backward pass adds to this rank's gradients; the `last` of a step averages them over ranks, too."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) and not last else nullcontext()

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, in place."""
        if self.world > 1:
            with together(self):
                dist.all_reduce(tensor)
        return tensor

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Gives every rank the first one's values."""
        if self.world > 1:
            with together(self), torch.no_grad():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def told(self, said: Any = None) -> Any:
        """What the first rank says, in JSON's types; what the others say is not listened to."""
        if self.world == 1:
            return said
        with together(self):
            data = json.dumps(said).encode() if self.first else b""
            size = torch.tensor(len(data))
            dist.broadcast(size, 0)
            words = torch.frombuffer(bytearray(data or int(size)), dtype=torch.uint8)
            dist.broadcast(words, 0)
        return json.loads(words.numpy().tobytes())

    def gathered(self, data: bytes) -> list[bytes]:
        """What each rank hands in, by rank."""
        if self.world == 1:
            return [data]
        with together(self):
            sizes = [torch.tensor(0) for _ in range(self.world)]
            dist.all_gather(sizes, torch.tensor(len(data)))
            longest = max(map(int, sizes))
            blocks = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
            own = bytearray(data).ljust(longest, b"\0")
            dist.all_gather(blocks, torch.frombuffer(own, dtype=torch.uint8) if longest else blocks[self.rank])
        return [block.numpy().tobytes()[: int(size)] for block, size in zip(blocks, sizes, strict=True)]


ALONE = Ranks()


def here(environment: Mapping[str, str] | None = None) -> Ranks:
    """Which rank this process is, by the variables that torchrun sets; alone where it sets none.

    Raises SettingsError where only some are set, or they cannot be right.
    """
    given = os.environ if environment is None else environment
    names = {"rank": "RANK", "world": "WORLD_SIZE", "local": "LOCAL_RANK", "local_world": "LOCAL_WORLD_SIZE"}
    found = {field: given[name] for field, name in names.items() if name in given}
    if "world" not in found:
        return ALONE
    try:
        ranks = Ranks(**{field: int(value) for field, value in found.items()})
    except ValueError:
        ranks = Ranks(world=0)
    if len(found) < len(names) or not (0 <= ranks.rank < ranks.world and 0 <= ranks.local < ranks.local_world):
        said = ", ".join(f"{name}={given.get(name, 'unset')}" for name in names.values())
        raise SettingsError(
            f"{said}: expected what torchrun sets; start with: torchrun --nproc-per-node N -m stmul train ..."
        )
    return ranks


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process as one of the ranks that torchrun started, connected to the others while inside."""
    ranks = here()
    if ranks.world == 1:
        yield ranks
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with together(ranks):
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Inside, the loss of another rank becomes a TrainingError in one line."""
    try:
        yield
    except RuntimeError as error:
        if ranks.world == 1 or not _of_connection(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"rank {ranks.rank} of {ranks.world}: another rank has ended, or cannot be reached ({reason}). What that"
            " rank says comes first; the same command goes on from the newest checkpoint, also with other ranks"
        ) from error


def within(network: nn.Module) -> nn.Module:
    """The network itself, without what averages its gradients."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def _of_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection closed"))
