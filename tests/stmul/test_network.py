"""The network is its equations: a plain evaluation in numpy gives the same scores, and small changes do not.

Shapes: T instants, C channels, H W positions, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from stmul.batchnorm import BatchNorm2d, sub_batches
from stmul.config import Network, StreamNetwork, TemporalFilters, unit_names
from stmul.errors import NetworkError, WeightsError
from stmul.network import TwoStream, join, single

Array = NDArray[np.float64]
STACK, CLASSES, POOL, WINDOW = 2, 5, 2, 5
SMALL = StreamNetwork(depth=18, width=2)


# A plain evaluation of the network, from the paper and the released code; `wrong` plants one mistake.


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def convolved(x_CHW: Array, weight: Array, bias: Array | float = 0.0, stride: int = 1) -> Array:
    side = weight.shape[2]
    padded = np.pad(x_CHW, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    windows_CHWij = sliding_window_view(padded, (side, side), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("ocij,chwij->ohw", weight, windows_CHWij) + np.reshape(bias, (-1, 1, 1))


def largest(x_CHW: Array, pooling: str) -> Array:
    (before, after) = (0, 1) if pooling == "caffe" else (1, 1)
    padded = np.pad(x_CHW, ((0, 0), (before, after), (before, after)), constant_values=-np.inf)
    return sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2].max((3, 4))


def filtered(x_TCHW: Array, weight: Array, bias: Array) -> Array:
    out = np.zeros((len(x_TCHW), len(weight), *x_TCHW.shape[2:]))
    for t in range(len(x_TCHW)):
        for tap, other in enumerate((t - 1, t, t + 1)):
            if 0 <= other < len(x_TCHW):
                out[t] += np.einsum("oc,chw->ohw", weight[:, :, tap], x_TCHW[other])
        out[t] += bias[:, None, None]
    return out


class Plain:
    """One stream, from the numbers of its state."""

    def __init__(self, state: Mapping[str, Tensor], settings: StreamNetwork, network: Network, wrong: str) -> None:
        self.state = {name: value.double().numpy() for name, value in state.items()}
        self.bottleneck, self.network, self.wrong = settings.depth >= 50, network, wrong

    def each(self, x_TCHW: Array, step: Callable[[Array], Array]) -> Array:
        return np.stack([step(x_CHW) for x_CHW in x_TCHW])

    def normal(self, x_TCHW: Array, name: str) -> Array:
        scale, bias, mean, sigma = (
            self.state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_sigma")
        )
        return scale * (x_TCHW - mean) / sigma + bias

    def conv(self, x_TCHW: Array, name: str, stride: int = 1) -> Array:
        bias = self.state.get(f"{name}.bias", 0.0)
        return self.each(x_TCHW, lambda x: convolved(x, self.state[f"{name}.weight"], bias, stride))

    def over_time(self, x_TCHW: Array, name: str) -> Array:
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias", np.zeros(1))
        return filtered(x_TCHW, weight[:, :, ::-1] if self.wrong == "time reversed" else weight, bias)

    def pointwise(self, x_TCHW: Array, name: str, stride: int = 1) -> Array:
        inflated = self.state[f"{name}.weight"].ndim == 3
        return self.over_time(x_TCHW, name) if inflated else self.conv(x_TCHW, name, stride)

    def stem(self, x_TCHW: Array) -> Array:
        x_TCHW = x_TCHW - self.state["mean"][:, None, None]
        x = relu(self.normal(self.conv(x_TCHW, "conv1", 2), "norm1"))
        return self.each(x, lambda one: largest(one, self.network.pooling))

    def residual(self, x: Array, unit: str, stride: int) -> Array:
        first, middle = (stride, 1) if self.network.stride_on == "1x1" or not self.bottleneck else (1, stride)
        x = relu(self.normal(self.pointwise(x, f"{unit}.conv1", first), f"{unit}.norm1"))
        if self.bottleneck:
            x = relu(self.normal(self.conv(x, f"{unit}.conv2", middle), f"{unit}.norm2"))
        if f"{unit}.temporal.weight" in self.state:
            x = self.over_time(x, f"{unit}.temporal")
            if self.wrong == "relu after the temporal filter":
                x = relu(x)
        last = 3 if self.bottleneck else 2
        return self.normal(self.pointwise(x, f"{unit}.conv{last}"), f"{unit}.norm{last}")

    def unit(self, x: Array, name: str, m: Array | None) -> Array:
        unit, stride = f"units.{name}", 2 if name in ("3a", "4a", "5a") else 1
        shortcut = inner = relu(x)
        if m is not None:
            factor = m if self.wrong == "motion before its relu" else relu(m)
            operand = relu(x) if self.wrong == "appearance after its relu" else x
            inner = operand * factor if self.network.operator == "multiply" else operand + factor
            shortcut = inner if self.wrong == "gated shortcut" else shortcut
        if f"{unit}.project.weight" in self.state:
            shortcut = self.normal(self.conv(shortcut, f"{unit}.project", stride), f"{unit}.project_norm")
        return shortcut + self.residual(inner, unit, stride)

    def head(self, x: Array) -> Array:
        x = relu(x)
        window = len(x) if self.wrong == "maximum over all time" else min(self.network.temporal_window, len(x))

        def over_time(x_TCHW: Array) -> Array:
            return sliding_window_view(x_TCHW, window, axis=0)[:: self.network.temporal_stride].max(-1)

        def over_space(x_TCHW: Array) -> Array:
            sides = (min(POOL, x_TCHW.shape[2]), min(POOL, x_TCHW.shape[3]))
            return sliding_window_view(x_TCHW, sides, axis=(2, 3)).mean((4, 5))

        pooled = over_time(over_space(x)) if self.wrong == "space before time" else over_space(over_time(x))
        scores_TKHW = self.conv(pooled, "classifier")
        if self.wrong == "relu on the scores":
            scores_TKHW = relu(scores_TKHW)
        return scores_TKHW.swapaxes(0, 1)


def plain(network: TwoStream, settings: Network, rgb_TCHW: Array, flow_TCHW: Array, wrong: str = "") -> list[Array]:
    streams = (
        Plain(network.appearance.state_dict(), settings.appearance, settings, wrong),
        Plain(network.motion.state_dict(), settings.motion, settings, wrong),
    )
    a, m = streams[0].stem(rgb_TCHW), streams[1].stem(flow_TCHW)
    names = [unit_names(stream.depth) for stream in (settings.appearance, settings.motion)]
    for stage in "2345":
        pairs = [[name for name in one if name[0] == stage] for one in names]
        for number in range(max(map(len, pairs))):
            x, y = a, m
            for one, own, other in ((0, x, y), (1, y, x)):
                if number >= len(pairs[one]):
                    continue
                name = pairs[one][number]
                into = ("motion_to_appearance", "appearance_to_motion")[one]
                joined = settings.operator != "none" and name in settings.gated and settings.direction in (into, "both")
                out = streams[one].unit(own, name, other if joined else None)
                if one == 0:
                    a = out
                else:
                    m = out
    return [streams[0].head(a), streams[1].head(m)]


def drawn(network: nn.Module) -> nn.Module:
    """All numbers away from where they begin, in double precision, ready to be evaluated."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.5)
            module.running_mean.normal_(0.0, 0.5)
            module.running_sigma.uniform_(0.5, 1.5)
    for name, parameter in network.named_parameters():
        with torch.no_grad():
            if "temporal" in name or parameter.dim() == 3:
                parameter += 0.3 * torch.randn_like(parameter)
            if name.endswith("conv1.bias") or "classifier" in name:
                parameter.normal_()
    return network.double().eval()


def evaluated(settings: Network, wrong: str = "", instants: int = 6) -> tuple[list[Array], list[Array]]:
    """Score maps (K, T', H', W') of both heads, by the network and by the plain evaluation."""
    torch.manual_seed(2)
    network = drawn(TwoStream(settings, stack=STACK, classes=CLASSES, pool=POOL))
    rgb = torch.randn(1, instants, 3, 64, 96).double() + torch.tensor(settings.rgb_mean)[:, None, None]
    flow = torch.randn(1, instants, 2 * STACK, 64, 96).double() + 128
    with torch.no_grad():
        found = [scores[0].numpy() for scores in network(rgb, flow)]
    return found, plain(network, settings, rgb[0].numpy(), flow[0].numpy(), wrong)


def settings(**changes: object) -> Network:
    return Network(**{"appearance": SMALL, "motion": SMALL, **changes})


def apart(found: list[Array], expected: list[Array]) -> float:
    """The largest difference, over the largest score; one head's where it is alone in being apart."""
    return max(
        float(np.abs(one - other).max() / np.abs(other).max()) if one.shape == other.shape else np.inf
        for one, other in zip(found, expected, strict=True)
    )


INFLATED = TemporalFilters(kind="inflated", initial="average")
DEEP = {"appearance": StreamNetwork(depth=50, width=2), "motion": StreamNetwork(depth=50, width=2)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"operator": "add"},
        {"operator": "none"},
        {"direction": "appearance_to_motion"},
        {"direction": "both"},
        {"direction": "both", "operator": "add"},
        {"gated": ("2b", "3a", "4a", "4b", "5a")},
        {"temporal": TemporalFilters(initial="average", units=("2a", "3b", "5a"))},
        {"temporal": TemporalFilters(initial="difference")},
        {"temporal": TemporalFilters(units=())},
        {"pooling": "caffe"},
        {"temporal_window": 2},
        {"temporal_window": 3, "temporal_stride": 2},
        {"rgb_mean": (0.5, -0.25, 1.0)},
        {**DEEP, "operator": "add", "temporal": INFLATED, "temporal_window": 5, "temporal_stride": 2},
        {**DEEP, "temporal": INFLATED.model_copy(update={"initial": "difference", "units": ("2a", "3b", "5c")})},
        {"motion": StreamNetwork(depth=34, width=2)},
        {**DEEP, "stride_on": "1x1", "pooling": "caffe"},
        {**DEEP, "stride_on": "3x3", "direction": "both"},
    ],
    ids=str,
)
def test_the_network_is_its_equations(changes):
    found, expected = evaluated(settings(**changes))
    assert [one.shape for one in found] == [one.shape for one in expected]
    assert apart(found, expected) < 1e-10


@pytest.mark.parametrize("instants", [1, 3, 5])
def test_the_network_is_its_equations_for_short_clips(instants):
    found, expected = evaluated(settings(), instants=instants)
    assert found[0].shape == (CLASSES, 1, 1, 2)
    assert apart(found, expected) < 1e-10


@pytest.mark.parametrize(
    "wrong",
    [
        "appearance after its relu",
        "motion before its relu",
        "gated shortcut",
        "space before time",
        "maximum over all time",
        "relu after the temporal filter",
        "time reversed",
        "relu on the scores",
    ],
)
@pytest.mark.parametrize("depth", [18, 50])
def test_a_planted_mistake_is_found_by_a_wide_margin(wrong, depth):
    small = StreamNetwork(depth=depth, width=2)
    found, expected = evaluated(settings(appearance=small, motion=small), wrong)
    assert apart(found, expected) > 0.02


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"operator": "add"}),
        ({}, {"operator": "none"}),
        ({}, {"direction": "both"}),
        ({}, {"direction": "appearance_to_motion"}),
        ({}, {"gated": ("2b", "3b", "4b")}),
        ({}, {"pooling": "caffe"}),
        ({**DEEP}, {**DEEP, "stride_on": "1x1"}),
    ],
    ids=str,
)
def test_each_setting_makes_a_difference(ours, theirs):
    (found, _), (other, _) = evaluated(settings(**ours)), evaluated(settings(**theirs))
    assert apart(found, other) > 0.01


def streams(**changes: object) -> tuple[nn.Module, nn.Module]:
    made = [
        single(settings(**changes), name, stack=STACK, classes=CLASSES, pool=POOL) for name in ("appearance", "motion")
    ]
    appearance, motion = (drawn(one).float() for one in made)
    return appearance, motion


def clips(instants: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    return tuple(120 + torch.randn(2, instants, channels, 64, 96, generator=draw) for channels in (3, 2 * STACK))


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_two_streams_joined_without_a_gate_are_the_streams_alone(depth):
    small = StreamNetwork(depth=depth, width=2)
    changes = {"operator": "none", "temporal_window": 1, "appearance": small, "motion": small}
    appearance, motion = streams(**changes)
    network = join(settings(**changes), appearance, motion).eval()
    rgb, flow = clips()
    a, m = network(rgb, flow)
    assert torch.equal(a, appearance(rgb))
    assert torch.equal(m, motion(flow))


@torch.no_grad()
def test_a_gate_leaves_the_stream_it_comes_from_alone():
    appearance, motion = streams()
    rgb, flow = clips(1)
    a, m = join(settings(), appearance, motion).eval()(rgb, flow)
    assert torch.allclose(m, motion(flow), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(a, appearance(rgb), rtol=1e-2, atol=1e-2)


def test_joining_copies():
    appearance, motion = streams()
    network = join(settings(), appearance, motion)
    with torch.no_grad():
        network.appearance.conv1.weight.zero_()
    assert appearance.conv1.weight.abs().sum() > 0
    assert torch.equal(network.motion.units["3b"].temporal.weight[:, :, 1], torch.eye(4))


@torch.no_grad()
def test_a_stream_joined_with_inflated_filters_begins_as_it_was():
    changes = {**DEEP, "operator": "none", "temporal_window": 1}
    appearance, motion = streams(**changes)
    rgb, flow = clips()
    for stream, clip, alone in (("appearance", rgb, appearance), ("motion", flow, motion)):
        centre = TemporalFilters(kind="inflated", initial="centre")
        network = join(settings(**changes, temporal=centre), appearance, motion).eval()
        expected = alone(clip)
        assert (getattr(network, stream)(clip) - expected).abs().max() <= 1e-5 * expected.abs().max()
    network = join(settings(**changes, temporal=INFLATED), appearance, motion)
    weight = appearance.units["2b"].conv3.weight
    assert torch.allclose(network.appearance.units["2b"].conv3.weight, weight[:, :, 0] / 3 * torch.ones(3))
    assert "2b.temporal.weight" not in " ".join(network.state_dict())


def test_a_stream_that_does_not_fit_is_refused_at_joining():
    appearance, motion = streams()
    wider = settings(appearance=StreamNetwork(depth=18, width=4), motion=StreamNetwork(depth=18, width=4))
    deeper = settings(appearance=StreamNetwork(depth=34, width=2))
    with pytest.raises(WeightsError, match="the appearance stream does not fit"):
        join(wider, appearance, motion)
    with pytest.raises(WeightsError, match="the appearance stream does not fit"):
        join(deeper, appearance, motion)


def test_a_stream_alone_looks_along_time_nowhere():
    appearance, _ = streams()
    rgb, _ = clips(3)
    apart_ = torch.cat([appearance(rgb[:, t : t + 1]) for t in range(3)], 2)
    assert torch.allclose(appearance(rgb), apart_, atol=1e-5)


def test_the_loss_of_appearance_trains_motion_only_through_a_gate():
    for operator, reached in (("multiply", True), ("none", False)):
        network = TwoStream(settings(operator=operator), stack=STACK, classes=CLASSES, pool=POOL)
        network(*clips())[0].sum().backward()
        assert (network.motion.conv1.weight.grad is not None) == reached


def test_a_training_forward_in_groups_is_the_groups_forwards():
    torch.manual_seed(0)
    network = TwoStream(settings(), stack=STACK, classes=CLASSES, pool=POOL)
    rgb, flow = clips()
    with sub_batches(network, 2):
        together = network(rgb, flow)
    alone = [network(rgb[i : i + 1], flow[i : i + 1]) for i in range(2)]
    for head in (0, 1):
        assert torch.allclose(together[head], torch.cat([one[head] for one in alone]), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 5, 4, 64, 96), (2, 4, 4, 64, 64), (1, 4, 4, 64, 96)])
def test_streams_of_unequal_clips_are_refused(shape):
    network = TwoStream(settings(), stack=STACK, classes=CLASSES, pool=POOL)
    with pytest.raises(NetworkError, match="flow of"):
        network(clips()[0], torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gated": ("2a",)}, "units that follow another in both streams are 2b, 3a"),
        ({"gated": ("3c",)}, "gated"),
        ({"temporal": {"units": ("4c",)}}, "units of depth 18 are 2a, 2b"),
        ({"motion": StreamNetwork(depth=18, width=4)}, "equal channels"),
        ({"motion": StreamNetwork(depth=50, width=2)}, "equal channels"),
        ({"gated": ("6b",)}, "pattern"),
        ({"temporal": INFLATED}, "depth 50 and more"),
        ({**DEEP, "temporal": {"kind": "inflated", "units": ("2b", "3a")}}, r"\['3a'\].*cannot be inflated"),
    ],
    ids=str,
)
def test_settings_that_no_network_can_be_made_of_are_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        settings(**changes)


def test_what_is_not_used_need_not_fit():
    made = settings(operator="none", gated=("2a",), motion=StreamNetwork(depth=18, width=4))
    network = TwoStream(made, stack=STACK, classes=CLASSES, pool=POOL)
    assert network(*clips())[0].shape == (2, CLASSES, 1, 1, 2)


@pytest.mark.slow
def test_it_is_one_graph_for_a_compiler():
    network = TwoStream(settings(), stack=STACK, classes=CLASSES, pool=POOL).eval()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        for one, other in zip(compiled(*clips()), network(*clips()), strict=True):
            assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_a_gpu_gives_the_same_scores(depth):
    small = StreamNetwork(depth=depth, width=16)
    network = drawn(TwoStream(settings(appearance=small, motion=small), stack=STACK, classes=CLASSES, pool=POOL))
    clip = [one.double() for one in clips(6)]
    expected = network(*clip)
    found = network.cuda()(*(one.cuda() for one in clip))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.cpu(), other, rtol=1e-8, atol=1e-8)


def equation(streams: TwoStream, name: str, x: Tensor, m: Tensor, instants: int) -> tuple[Tensor, Tensor]:
    """Unit `name` of both streams, from the sums before it, as the paper writes it; of bottlenecks in evaluation."""

    def branch(unit: nn.Module, y: Tensor) -> Tensor:
        for i in (1, 2, 3):
            y = nn.functional.conv2d(y, getattr(unit, f"conv{i}").weight, padding=(i == 2) * 1)
            norm = getattr(unit, f"norm{i}")
            scale, shift = (
                norm.weight / norm.running_sigma,
                norm.bias - norm.running_mean * norm.weight / norm.running_sigma,
            )
            y = y * scale[:, None, None] + shift[:, None, None]
            y = y.clamp(min=0) if i < 3 else y
            if i == 2 and unit.temporal is not None:
                kernel, before = unit.temporal.weight, y.unflatten(0, (-1, instants)).transpose(1, 2)
                y = nn.functional.conv3d(before, kernel[..., None, None], unit.temporal.bias, padding=(1, 0, 0))
                y = y.transpose(1, 2).flatten(0, 1)
        return y

    appearance, motion = streams.appearance.units[name], streams.motion.units[name]
    f = nn.functional.relu
    return f(x) + branch(appearance, x * f(m)), f(m) + branch(motion, f(m))


@pytest.mark.parametrize("name", ["2b", "3b", "5b"])
def test_gate_shortcut_and_gradients_are_the_equations_by_autograd(name):
    """Values, and the gradients of both sums and of every parameter, from either output alone."""
    torch.manual_seed(4)
    streams = drawn(TwoStream(settings(**DEEP), stack=STACK, classes=CLASSES, pool=POOL))
    units = [stream.units[name] for stream in (streams.appearance, streams.motion)]
    channels = units[0].conv1.weight.shape[1]
    x, m = (torch.randn(6, channels, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = units[0](x, 3, m, torch.mul), units[1](m, 3)
    expected = equation(streams, name, x, m, 3)
    leaves = [x, m, *units[0].parameters(), *units[1].parameters()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        weights = torch.randn_like(one)
        gradients = [
            torch.autograd.grad((out * weights).sum(), leaves, retain_graph=True, allow_unused=True)
            for out in (one, other)
        ]
        for mine, theirs in zip(*gradients, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    # Of appearance's output both factors have gradients; motion's output has none from appearance.
    assert torch.autograd.grad(found[0].sum(), m, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(found[1].sum(), x, allow_unused=True)[0] is None
