"""The two streams and what passes between them (Feichtenhofer, Pinz, Wildes, CVPR 2017).

Shapes: B clips, T instants, C channels, H W positions, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stmul.config import Network
from stmul.errors import NetworkError, WeightsError
from stmul.resnet import Operator, Stream

RGB_CHANNELS = 3
OPERATORS: dict[str, Operator] = {"multiply": torch.mul, "add": torch.add}


class TwoStream(nn.Module):
    """Appearance and motion, joined at chosen units.

    With x the appearance sum and m the motion sum before their ReLU f, unit b of a stage gives

        appearance: f(x) + F_a(x * f(m))        motion: f(m) + F_m(f(m))

    where x and m are what the unit before handed on, and F is the residual branch. `*` is the operator (multiply, add;
    none leaves f(x) alone). The direction appearance_to_motion swaps the two; `both` joins both, each from the other's
    sum before the unit. In the units of `temporal`, F filters over time in both streams. Motion has 2 `stack` channels.
    """

    def __init__(self, settings: Network, *, stack: int, classes: int, pool: int) -> None:
        super().__init__()
        self.appearance = _stream(settings, "appearance", stack=stack, classes=classes, pool=pool, temporal=True)
        self.motion = _stream(settings, "motion", stack=stack, classes=classes, pool=pool, temporal=True)
        self.operator = settings.operator
        gated = frozenset(settings.gated) if settings.operator != "none" else frozenset[str]()
        self.gated_appearance = gated if settings.direction != "appearance_to_motion" else frozenset[str]()
        self.gated_motion = gated if settings.direction != "motion_to_appearance" else frozenset[str]()
        # Units of both in the order of their names; a deeper stream has some to itself.
        names = {*self.appearance.units, *self.motion.units}
        self.order = tuple(sorted(names, key=lambda name: (name[0], len(name), name)))

    def forward(self, rgb_BTCHW: Tensor, flow_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Score maps (B, K, T', H', W') of both heads, before any softmax, for clips of equal length and size."""
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
    return _stream(settings, stream, stack=stack, classes=classes, pool=pool, temporal=False)


def join(settings: Network, appearance: Stream, motion: Stream) -> TwoStream:
    """The two streams, trained alone, as one network; temporal filters and gates are new.

    Weights are copied. Raises WeightsError where a stream does not fit the settings.
    """
    network = TwoStream(settings, stack=motion.channels // 2, classes=appearance.classes, pool=appearance.pool)
    for name, trained in (("appearance", appearance), ("motion", motion)):
        target: Stream = getattr(network, name)
        new = {key for key in target.state_dict() if ".temporal." in key}
        try:
            differences = target.load_state_dict(trained.state_dict(), strict=False)
        except RuntimeError as error:
            raise WeightsError(f"the {name} stream does not fit: {' '.join(str(error).split())}") from error
        if wrong := [*(set(differences.missing_keys) - new), *differences.unexpected_keys]:
            raise WeightsError(f"the {name} stream does not fit: {', '.join(sorted(wrong)[:3])}")
    return network


def _stream(settings: Network, name: str, *, stack: int, classes: int, pool: int, temporal: bool) -> Stream:
    return Stream(
        settings.appearance if name == "appearance" else settings.motion,
        channels=RGB_CHANNELS if name == "appearance" else 2 * stack,
        classes=classes,
        temporal=settings.temporal if temporal else None,
        stride_on=settings.stride_on,
        pooling=settings.pooling,
        pool=pool,
        temporal_window=settings.temporal_window if temporal else 1,
    )
