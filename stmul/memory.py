"""What tensors take: a forward's for its backward, a forward's at its widest, and how many sub-batches that allows."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stmul.batchnorm import sub_batches
from stmul.config import Config
from stmul.network import TwoStream

SHARE = 0.6  # of the device's memory that activations may take; the rest is weights, workspaces and fragmentation


def groups_at_once(network: nn.Module, config: Config, stage: str, device: torch.device) -> int:
    """Sub-batches of one forward: `train.groups`; if that is 0 what fits a GPU, and one on the CPU.

    What is learnt does not depend on it, but for the rounding of sums and the drawing of dropout.
    """
    batch, sub_batch = config.train.batches(stage)
    most = batch // sub_batch
    if config.train.groups:
        return divisor(most, config.train.groups)
    if device.type != "cuda":
        return 1
    total = torch.cuda.get_device_properties(device).total_memory
    return divisor(most, int(SHARE * total / saved_bytes(network, config, stage, device)))


def watch_peak(device: torch.device) -> None:
    """Begins to watch how much of a GPU's memory is taken."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """GiB of a GPU's memory that tensors took at most since `watch_peak`; 0.0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def divisor(most: int, limit: int) -> int:
    """The largest divisor of `most` that is at most `limit`, at least 1."""
    return max(part for part in range(1, most + 1) if most % part == 0 and part <= max(1, limit))


def blank_clips(
    config: Config, clips: int, instants: int, size: tuple[int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """RGB and flow of clips of (height, width) `size`, (B, T, C, H, W) each, all zeros."""
    shapes = [(clips, instants, channels, *size) for channels in (3, 2 * config.data.stack)]
    rgb, flow = (torch.zeros(shape, device=device) for shape in shapes)
    return rgb, flow


def saved_bytes(network: nn.Module, config: Config, stage: str, device: torch.device) -> int:
    """Bytes that one forward of one sub-batch keeps for its backward, weights left out; counted in a trial forward.

    On the meta device the trial neither allocates nor computes, and counts the same.
    """
    weights = {parameter.untyped_storage() for parameter in network.parameters()}
    # A storage is one object while somebody holds it. Its address would be no name: 0 on meta, elsewhere used again.
    kept: set[UntypedStorage] = set()

    def count(tensor: Tensor) -> None:  # nothing is saved: a graph that is given its own tensors is never freed
        if (storage := tensor.untyped_storage()) not in weights:
            kept.add(storage)

    side, instants = config.data.crop, config.data.frames if stage == "joint" else 1
    rgb, flow = blank_clips(config, config.train.batches(stage)[1], instants, (side, side), device)
    moments = {name: value.clone() for name, value in network.named_buffers()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda never: rgb), sub_batches(network, 1):
        if isinstance(network, TwoStream):
            network(rgb, flow)
        else:
            network(rgb if stage == "appearance" else flow)
    for name, value in network.named_buffers():  # the trial counts for nothing, also in BatchNorm's sums
        value.copy_(moments[name])
    return max(1, sum(storage.nbytes() for storage in kept))


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside `with Alive(network, rgb, flow) as alive`, follows the tensors alive: `most` is most bytes at once so far.

    The clips given count, weights and running moments do not, nor what a library takes inside an operation. Forwards
    on the meta device count as those on any other.
    """

    def __init__(self, network: nn.Module, *clips: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        weights = (*network.parameters(), *network.buffers())
        self.known = weakref.WeakSet(tensor.untyped_storage() for tensor in weights)
        self.see(clips)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.see(made)
        return made

    def see(self, made: Any) -> None:
        """Adds the memory of those tensors in `made` that is new; it is taken off when nobody holds it any more."""
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, storage.nbytes())
        self.most = max(self.most, self.now)

    def gone(self, size: int) -> None:
        """Takes off memory that has been given back."""
        self.now -= size
