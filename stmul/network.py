"""The two streams and what passes between them (Feichtenhofer, Pinz, Wildes, CVPR 2017).

Shapes: B clips, T instants, C channels, H W positions, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from stmul.checkpoint import differences, first
from stmul.config import FLOW_MEAN, Network
from stmul.errors import NetworkError, WeightsError
from stmul.resnet import Operator, Stream, inflated

OPERATORS: dict[str, Operator] = {"multiply": torch.mul, "add": torch.add}


class TwoStream(nn.Module):
    """Appearance and motion, joined at chosen units.

    With x the appearance sum and m the motion sum before their ReLU f, unit b of a stage gives

        appearance: f(x) + F_a(x * f(m))        motion: f(m) + F_m(f(m))

    where x and m are what the unit before handed on, and F is the residual branch. `*` is the operator (multiply, add;
    none leaves f(x) alone). The direction appearance_to_motion swaps the two; `both` joins both, each from the other's
    sum before the unit. In the units of `temporal`, F filters over time in both streams. Motion has 2 `stack` channels.
    `class_names` are empty where nobody has told them.
    """

    settings: Network
    class_names: tuple[str, ...] = ()

    def __init__(self, settings: Network, *, stack: int, classes: int, pool: int) -> None:
        super().__init__()
        self.settings = settings
        self.appearance = _stream(settings, "appearance", stack=stack, classes=classes, pool=pool, over_time=True)
        self.motion = _stream(settings, "motion", stack=stack, classes=classes, pool=pool, over_time=True)
        self.operator = settings.operator
        gated = frozenset(settings.gated) if settings.operator != "none" else frozenset[str]()
        self.gated_appearance = gated if settings.direction != "appearance_to_motion" else frozenset[str]()
        self.gated_motion = gated if settings.direction != "motion_to_appearance" else frozenset[str]()
        # Units of both in the order of their names; a deeper stream has some to itself.
        names = {*self.appearance.units, *self.motion.units}
        self.order = tuple(sorted(names, key=lambda name: (name[0], len(name), name)))

    def forward(self, rgb_BTCHW: Tensor, flow_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Score maps (B, K, T', H', W') of both heads, before any softmax, for clips of equal length and size.

        Levels 0..255, as `Stream` takes them.
        """
        instants = rgb_BTCHW.shape[1]
        if (found := flow_BTCHW.shape[:2] + flow_BTCHW.shape[3:]) != rgb_BTCHW.shape[:2] + rgb_BTCHW.shape[3:]:
            raise NetworkError(f"flow of (B, T, H, W) {tuple(found)} with RGB of shape {tuple(rgb_BTCHW.shape)}")
        operator = OPERATORS.get(self.operator, torch.mul)
        a, m = self.appearance.stem(rgb_BTCHW), self.motion.stem(flow_BTCHW)
        for name in self.order:
            x, y = a, m
            if name in self.appearance.units:
                a = self.appearance.units[name](x, instants, y if name in self.gated_appearance else None, operator)
            if name in self.motion.units:
                m = self.motion.units[name](y, instants, x if name in self.gated_motion else None, operator)
        return self.appearance.head(a, instants), self.motion.head(m, instants)


def single(
    settings: Network, stream: Literal["appearance", "motion"], *, stack: int, classes: int, pool: int
) -> Stream:
    """One stream to be trained alone, on single instants: nothing in it looks along time, given several or not."""
    return _stream(settings, stream, stack=stack, classes=classes, pool=pool, over_time=False)


def join(settings: Network, appearance: Stream, motion: Stream) -> TwoStream:
    """The two streams, trained alone, as one network; temporal filters and gates are new.

    Weights are copied. Raises WeightsError where a stream does not fit the settings.
    """
    network = TwoStream(settings, stack=motion.channels // 2, classes=appearance.classes, pool=appearance.pool)
    for name, trained in (("appearance", appearance), ("motion", motion)):
        target: Stream = getattr(network, name)
        state = over_time(trained.state_dict(), target, settings.temporal.initial)
        if wrong := differences(state, target.state_dict()):
            raise WeightsError(f"the {name} stream does not fit: {first(wrong)}")
        target.load_state_dict(state)
    network.class_names = appearance.class_names
    return network


def over_time(state: Mapping[str, Tensor], target: Stream, initial: str) -> dict[str, Tensor]:
    """The state of a stream trained on single instants, with what `target` has over time: as `initial` begins it."""
    widened = dict(state)
    for name, own in target.state_dict().items():
        if ".temporal." in name:
            widened.setdefault(name, own)
        elif own.dim() == 3 and name in widened and widened[name].dim() == 4:
            widened[name] = inflated(widened[name], initial)
    return widened


def _stream(settings: Network, name: str, *, stack: int, classes: int, pool: int, over_time: bool) -> Stream:
    own, mean = (
        (settings.appearance, settings.rgb_mean)
        if name == "appearance"
        else (settings.motion, (FLOW_MEAN,) * (2 * stack))
    )
    return Stream(own, settings, mean=mean, classes=classes, pool=pool, over_time=over_time)
