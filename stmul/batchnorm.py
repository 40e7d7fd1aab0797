"""Batch normalisation over sub-batches, whose statistics do not depend on how a step is cut into forwards or ranks.

As the released code trains: each sub-batch of a few clips is normalised with its own moments (mean, sigma), where
sigma = sqrt(biased variance + eps); the moments of all sub-batches of a step are averaged, and the running moments
move once, towards that average. In evaluation y = scale (x - mean) / sigma + bias, without a second eps.

A step is `with sub_batches(network, groups): loss(network(...)).backward()` as often as memory asks for, on every rank,
then `commit_moments(network, rate)`. Ranks sum their `collected_moments` and hand the sum to `commit_moments`; nothing
else may copy buffers between them (DistributedDataParallel: broadcast_buffers=False).

Shapes: N = B T frames of B clips, C channels, H W positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stmul.errors import NetworkError

EPSILON = 1e-5


def sigma_of(variance: Tensor, epsilon: float = EPSILON) -> Tensor:
    """sigma for a running variance of torch's own BatchNorm, which adds its epsilon when it is used."""
    return (variance + epsilon).sqrt()


def variance_of(sigma: Tensor, epsilon: float = EPSILON) -> Tensor:
    """The running variance with which torch's own BatchNorm does what `sigma` does."""
    return (sigma.square() - epsilon).clamp(min=0.0)


class BatchNorm2d(nn.Module):
    """Normalises (N, C, H, W): by sub-batch in training, by the running mean and sigma in evaluation."""

    running_mean: Tensor
    running_sigma: Tensor
    mean_sum: Tensor
    sigma_sum: Tensor
    group_count: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_sigma", torch.ones(channels))
        # What this step has seen so far; never saved: a checkpoint is written between steps.
        self.register_buffer("mean_sum", torch.zeros(channels), persistent=False)
        self.register_buffer("sigma_sum", torch.zeros(channels), persistent=False)
        self.register_buffer("group_count", torch.zeros(1), persistent=False)
        self.groups = 1
        self.valid: tuple[bool, ...] | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Normalised x in its own type and layout. Frames of clips that are not valid come out as zeros in training."""
        if not self.training:
            variance = self.running_sigma.square()
            return nn.functional.batch_norm(
                x_NCHW, self.running_mean, variance, self.weight, self.bias, training=False, eps=0.0
            )
        if len(x_NCHW) % self.groups:
            raise NetworkError(f"{len(x_NCHW)} frames do not divide into {self.groups} sub-batches of equal size")
        parts = x_NCHW.chunk(self.groups)
        if self.valid is None:
            outs = [self._normalise(part) for part in parts]
        else:
            clips = len(self.valid) // self.groups
            masks = [self.valid[i * clips : (i + 1) * clips] for i in range(self.groups)]
            outs = [self._normalise_valid(part, mask) for part, mask in zip(parts, masks, strict=True)]
        return outs[0] if self.groups == 1 else torch.cat(outs)

    def _normalise(self, x_NCHW: Tensor) -> Tensor:
        # The one fused kernel that also hands out what it normalised with; statistics are float32 under autocast too.
        out, mean, inverse_sigma = torch.native_batch_norm(
            x_NCHW, self.weight, self.bias, None, None, True, 0.0, EPSILON
        )
        with torch.no_grad():
            self.mean_sum += mean
            self.sigma_sum += inverse_sigma.reciprocal()
            self.group_count += 1
        return out

    def _normalise_valid(self, x_NCHW: Tensor, valid: Sequence[bool]) -> Tensor:
        if all(valid):
            return self._normalise(x_NCHW)
        out = torch.zeros_like(x_NCHW)
        if not any(valid):
            return out
        frames = len(x_NCHW) // len(valid)
        kept = torch.tensor(valid, device=x_NCHW.device).repeat_interleave(frames).nonzero().squeeze(1)
        return out.index_copy(0, kept, self._normalise(x_NCHW.index_select(0, kept)).to(out.dtype))

    def extra_repr(self) -> str:
        return f"{len(self.weight)}"


def layers(network: nn.Module) -> list[BatchNorm2d]:
    """All BatchNorm2d of `network`, in the order of their names' registration."""
    return [module for module in network.modules() if isinstance(module, BatchNorm2d)]


@contextmanager
def sub_batches(network: nn.Module, groups: int, valid: Sequence[bool] | None = None) -> Iterator[None]:
    """Inside, a forward holds `groups` sub-batches of equally many clips, one after the other.

    `valid` has one entry per clip of the forward: a clip that is not valid is left outside the statistics, and nothing
    of it reaches another clip. Raises NetworkError where the clips do not divide into the groups.
    """
    if groups < 1 or (valid is not None and (len(valid) % groups or not valid)):
        held = "" if valid is None else f" of {len(valid)} clips"
        raise NetworkError(f"{groups} sub-batches{held}: expected at least one, and equally many clips in each")
    mask = None if valid is None or all(valid) else tuple(bool(clip) for clip in valid)
    normalisers = layers(network)
    before = [(layer.groups, layer.valid) for layer in normalisers]
    for layer in normalisers:
        layer.groups, layer.valid = groups, mask
    try:
        yield
    finally:
        for layer, (groups, mask) in zip(normalisers, before, strict=True):
            layer.groups, layer.valid = groups, mask


@torch.no_grad()
def collected_moments(network: nn.Module) -> Tensor:
    """The step's moments so far, flat, which ranks can sum: of each layer, means, sigmas, number of sub-batches."""
    parts = [part for layer in layers(network) for part in (layer.mean_sum, layer.sigma_sum, layer.group_count)]
    return torch.cat(parts) if parts else torch.zeros(0)


@torch.no_grad()
def discard_moments(network: nn.Module) -> None:
    """Starts a new step; what was collected in this one counts for nothing."""
    for layer in layers(network):
        for total in (layer.mean_sum, layer.sigma_sum, layer.group_count):
            total.zero_()


@torch.no_grad()
def commit_moments(network: nn.Module, rate: float, collected: Tensor | None = None) -> None:
    """Moves the running moments by `rate` towards the average over all sub-batches collected, and starts a new step.

    `collected` is the sum of all ranks' `collected_moments`; None takes this process's own. A layer that saw no
    sub-batch keeps its moments.
    """
    flat = collected_moments(network) if collected is None else collected
    start = 0
    for layer in layers(network):
        channels = len(layer.weight)
        mean, sigma = flat[start : start + channels], flat[start + channels : start + 2 * channels]
        count = flat[start + 2 * channels]
        start += 2 * channels + 1
        share = rate * (count > 0).to(count)  # on the device: asking for the count would wait for it
        layer.running_mean.lerp_(mean / count.clamp(min=1.0), share)
        layer.running_sigma.lerp_(sigma / count.clamp(min=1.0), share)
    discard_moments(network)
