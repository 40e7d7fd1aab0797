"""How many sub-batches go through the network at once: as many as the memory holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmul.batchnorm import sub_batches
from stmul.config import Config
from stmul.network import TwoStream

SHARE = 0.6  # of the device's memory that activations may take; the rest is weights, workspaces and fragmentation


def groups_at_once(network: nn.Module, config: Config, stage: str, device: torch.device) -> int:
    """Sub-batches of one forward: `train.groups`; if that is 0 what fits a GPU, and one on the CPU.

    What is learnt does not depend on it, but for the rounding of sums and the drawing of dropout.
    """
    most = config.train.batch // config.train.sub_batch
    if config.train.groups:
        return divisor(most, config.train.groups)
    if device.type != "cuda":
        return 1
    total = torch.cuda.get_device_properties(device).total_memory
    return divisor(most, int(SHARE * total / saved_bytes(network, config, stage, device)))


def divisor(most: int, limit: int) -> int:
    """The largest divisor of `most` that is at most `limit`, at least 1."""
    return max(part for part in range(1, most + 1) if most % part == 0 and part <= max(1, limit))


def saved_bytes(network: nn.Module, config: Config, stage: str, device: torch.device) -> int:
    """Bytes that one forward of one sub-batch keeps for its backward, weights left out; counted in a trial forward."""
    seen: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    clips, side = config.train.sub_batch, config.data.crop
    instants = config.data.frames if stage == "joint" else 1
    rgb = torch.zeros(clips, instants, 3, side, side, device=device)
    flow = torch.zeros(clips, instants, 2 * config.data.stack, side, side, device=device)
    moments = {name: value.clone() for name, value in network.named_buffers()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), sub_batches(network, 1):
        if isinstance(network, TwoStream):
            network(rgb, flow)
        else:
            network(rgb if stage == "appearance" else flow)
    for name, value in network.named_buffers():  # the trial counts for nothing, also in BatchNorm's sums
        value.copy_(moments[name])
    return max(1, sum(seen.values()))
