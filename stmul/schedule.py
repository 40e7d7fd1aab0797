"""The learning rate of each step, and which parameters learn faster or are not decayed."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from stmul.batchnorm import BatchNorm2d
from stmul.config import Recipe
from stmul.resnet import TemporalFilter


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """The learning rate of step 0 .. steps-1.

    `steps`: each of the recipe's rates for an equal share of all steps; `cosine`: from the first rate towards 0 along
    half a cosine. During the first `warm_up` of all steps the rate rises in equal parts to where the schedule then is.
    """
    warming = round(recipe.warm_up * steps)
    rise = (step + 1) / warming if step < warming else 1.0
    if recipe.schedule == "cosine":
        past = max(0, step - warming) / max(1, steps - warming)
        return rise * recipe.rates[0] * 0.5 * (1.0 + math.cos(math.pi * past))
    return rise * recipe.rates[min(step * len(recipe.rates) // steps, len(recipe.rates) - 1)]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All trained parameters in groups for an optimiser: `params`, `weight_decay`, `scale` of the rate, `name`.

    As released (matconvnet `setLrWd.m`): convolution weights are decayed; their biases learn twice as fast, as do the
    scales of normalisations, whose biases learn at the rate itself; none of these is decayed. Temporal filters are
    added after that was settled (`STMulNet.m`): their biases learn and are decayed as their weights.
    """
    groups: dict[str, dict[str, Any]] = {
        "weights": {"params": [], "weight_decay": weight_decay, "scale": 1.0},
        "biases": {"params": [], "weight_decay": 0.0, "scale": 2.0},
        "normalisation scales": {"params": [], "weight_decay": 0.0, "scale": 2.0},
        "normalisation biases": {"params": [], "weight_decay": 0.0, "scale": 1.0},
    }
    for module in network.modules():
        kind = "normalisation scales" if isinstance(module, BatchNorm2d) else "weights"
        other = "normalisation biases" if isinstance(module, BatchNorm2d) else "biases"
        other = "weights" if isinstance(module, TemporalFilter) else other
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                groups[other if name == "bias" else kind]["params"].append(parameter)
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]
