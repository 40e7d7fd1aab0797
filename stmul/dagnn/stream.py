"""One stream of a DagNN, read from its classifier back to its input.

Only the way layers are joined decides what a layer is; names find parameters and nothing else. Whatever `Stream` would
compute otherwise is refused. Sources of the layers' meaning: vl_nnconv.m, vl_nnpool.m, vl_nnbnorm.m and
matlab/+dagnn in matconvnet; ConvTime.m, PoolTime.m and Mul.m in feichtenhofer/matconvnet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from stmul.config import STRIDED, UNITS, unit_names
from stmul.dagnn.graph import Layer
from stmul.dagnn.layers import (
    State,
    filters,
    folded,
    has_bias,
    no_leak,
    normalised,
    pads_of,
    plain,
    pool_window,
    relu,
    strides_of,
    time_filters,
)
from stmul.dagnn.walk import Walk


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What the residual branch of a unit reads in place of its own activation."""

    operator: str  # "multiply" or "add"
    other: str  # the other stream's activation, a variable


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoundUnit:
    """A residual unit."""

    state: State  # names as in `resnet.Unit`
    strides: tuple[int, int]  # of its first and of its middle convolution
    projected: bool
    over_time: str  # "", "injected" or "inflated"
    entering: str  # the activation it starts from, a variable
    gate: Gate | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FoundStream:
    """A whole stream."""

    input: str  # variable
    state: State  # names as in `resnet.Stream`, without the mean
    units: Mapping[str, FoundUnit]
    depth: int
    dropout: float
    stride_on: str
    pooling: str
    pool: int
    temporal_window: int
    temporal_stride: int

    @property
    def channels(self) -> int:
        return self.state["conv1.weight"].shape[1]

    @property
    def width(self) -> int:
        return len(self.state["conv1.weight"])

    @property
    def classes(self) -> int:
        return len(self.state["classifier.weight"])


def read_stream(walk: Walk, scores: str) -> FoundStream:
    """The stream whose classifier makes the variable `scores`. Raises WeightsError where it is another network."""
    state, dropout, pooled = _classifier(walk, scores)
    pool, window, temporal_stride, activation = _averages(walk, pooled)
    found: list[FoundUnit] = []
    while (maker := walk.peek(activation)) is not None and maker.type == "ReLU":
        found.append(_unit(walk, walk.back(activation, "ReLU")))
        no_leak(walk, maker)
        activation = found[-1].entering
    pooling, first, variable = _stem(walk, activation)
    depth, named = _named(walk, found[::-1])
    for name, unit in named.items():
        state |= {f"units.{name}.{key}": value for key, value in unit.state.items()}
    return FoundStream(
        input=variable,
        state=state | first,
        units=named,
        depth=depth,
        dropout=dropout,
        stride_on=_stride_on(walk, named),
        pooling=pooling,
        pool=pool,
        temporal_window=window,
        temporal_stride=temporal_stride,
    )


def _classifier(walk: Walk, scores: str) -> tuple[State, float, str]:
    layer = walk.back(scores, "Conv")
    walk.must(has_bias(walk, layer), layer, "no bias", "one")
    bias = walk.take(layer, 1, [-1])
    state = {"classifier.weight": filters(walk, layer, 1, len(bias), strides=(1,)), "classifier.bias": bias}
    dropout, variable = 0.0, layer.inputs[0]
    while (maker := walk.peek(variable)) is not None and maker.type == "DropOut":
        rate = maker.numbers("rate", [0.5], 1)[0]
        walk.must(0 <= rate < 1, maker, f"rate {rate:g}", "at least 0, below 1")
        dropout = max(dropout, rate)
        variable = walk.back(variable, "DropOut").inputs[0]
    return state, dropout, variable


def _averages(walk: Walk, variable: str) -> tuple[int, int, int, str]:
    """Window of the average over space; window and stride of the maximum over time before it; what that one reads."""
    layer = walk.back(variable, "Pooling")
    tall, wide = pool_window(walk, layer, "avg")
    walk.must(tall == wide and strides_of(layer) == (1, 1), layer, f"a window of {tall} x {wide}", "a square, stride 1")
    walk.must(not any(pads_of(layer)), layer, f"padding {pads_of(layer)}", "none")
    variable = layer.inputs[0]
    if (maker := walk.peek(variable)) is None or maker.type != "PoolTime":
        return tall, 1, 1, variable
    layer = walk.back(variable, "PoolTime")
    one, window = pool_window(walk, layer, "max")
    across, stride = strides_of(layer)
    walk.must(one == 1 == across, layer, f"a window of {one} positions, stride {across}", "time alone")
    walk.must(not any(pads_of(layer)), layer, f"padding {pads_of(layer)}", "none")
    return tall, window, stride, layer.inputs[0]


def _unit(walk: Walk, relu: Layer) -> FoundUnit:
    """The unit whose sum `relu` reads."""
    total = walk.back(relu.inputs[0], "Sum")
    plain(walk, total)
    ends = [variable for variable in total.inputs if _ends_a_branch(walk, variable)]
    walk.must(len(total.inputs) == 2 and len(ends) == 1, total, f"inputs {', '.join(total.inputs)}", "shortcut, branch")
    (shortcut,) = (variable for variable in total.inputs if variable != ends[0])
    state, strides, over_time, inner = _branch(walk, ends[0])
    projected = (maker := walk.peek(shortcut)) is not None and maker.type == "BatchNorm"
    entering = shortcut
    if projected:
        normal, variable, out = normalised(walk, shortcut, "project_norm")
        layer = walk.back(variable, "Conv")
        both = strides[0] * strides[1]
        state |= folded(walk, layer, normal, "project_norm", out)
        state["project.weight"] = filters(walk, layer, 1, out, strides=(both,))
        entering = layer.inputs[0]
    gate = None if inner == entering else _gate(walk, inner, entering)
    return FoundUnit(
        state=state, strides=strides, projected=projected, over_time=over_time, entering=entering, gate=gate
    )


def _ends_a_branch(walk: Walk, variable: str) -> bool:
    """Whether a variable is the normalised end of several convolutions, rather than an activation or its projection."""
    normal = walk.peek(variable)
    if normal is None or normal.type != "BatchNorm":
        return False
    before = walk.before(walk.before(normal))
    if before is None or before.type != "ReLU":
        return before is not None and before.type == "ConvTime"
    inside = walk.before(before)
    return inside is not None and inside.type == "BatchNorm"


def _branch(walk: Walk, end: str) -> tuple[State, tuple[int, int], str, str]:
    """The residual branch: its state, two strides, what looks along time in it, and what it reads."""
    state: State = {}
    variable, _, inflated_last = _convolved(walk, end, state, 3, kernel=1, strides=(1,))
    injected = (maker := walk.peek(variable)) is not None and maker.type == "ConvTime"
    if injected:
        layer = walk.back(variable, "ConvTime")
        walk.must(has_bias(walk, layer), layer, "no bias", "one")
        bias = walk.take(layer, 1, [-1])
        state |= {"temporal.weight": time_filters(walk, layer, len(bias)), "temporal.bias": bias}
        variable = layer.inputs[0]
    variable, middle, _ = _convolved(walk, relu(walk, variable), state, 2, kernel=3, strides=(1, 2))
    variable, first, inflated_first = _convolved(walk, relu(walk, variable), state, 1, kernel=1, strides=(1, 2))
    if inflated_first != inflated_last or (inflated_first and injected):
        raise walk.wrong(f"the branch that makes {end} filters over time in a way no network here does")
    return state, (first, middle), "injected" if injected else "inflated" if inflated_first else "", variable


def _convolved(
    walk: Walk, variable: str, state: State, number: int, *, kernel: int, strides: tuple[int, ...]
) -> tuple[str, int, bool]:
    """A convolution and its normalisation, into `state`: what it reads, its stride, whether it looks along time."""
    normal, variable, out = normalised(walk, variable, f"norm{number}")
    layer = walk.back(variable, "Conv", "ConvTime") if kernel == 1 else walk.back(variable, "Conv")
    over_time = layer.type == "ConvTime"
    state |= folded(walk, layer, normal, f"norm{number}", out)
    state[f"conv{number}.weight"] = (
        time_filters(walk, layer, out) if over_time else filters(walk, layer, kernel, out, strides=strides)
    )
    return layer.inputs[0], 1 if over_time else strides_of(layer)[0], over_time


def _gate(walk: Walk, inner: str, entering: str) -> Gate:
    """What joins the other stream: a product, or a sum, of this stream's sum before its ReLU and the other's after."""
    layer = walk.back(inner, "Mul", "Sum")
    plain(walk, layer)
    own = walk.back(entering, "ReLU").inputs[0]
    others = [variable for variable in layer.inputs if variable != own]
    walk.must(len(layer.inputs) == 2 and len(others) == 1, layer, f"inputs {', '.join(layer.inputs)}", f"{own} and one")
    maker = walk.peek(others[0])
    walk.must(
        maker is not None and maker.type == "ReLU", layer, f"input {others[0]}", "the other stream's ReLU as its factor"
    )
    return Gate(operator="multiply" if layer.type == "Mul" else "add", other=others[0])


def _stem(walk: Walk, variable: str) -> tuple[str, State, str]:
    """Padding of the first maximum, the state of what comes before it, and the stream's input."""
    layer = walk.back(variable, "Pooling")
    window, pads = pool_window(walk, layer, "max"), pads_of(layer)
    kinds: dict[tuple[int, ...], str] = {(0, 1, 0, 1): "caffe", (1, 1, 1, 1): "torchvision"}
    walk.must(
        window == (3, 3) and strides_of(layer) == (2, 2) and pads in kinds,
        layer,
        f"window {window}, stride {strides_of(layer)}, padding {pads}",
        "window 3, stride 2, padding 0 1 0 1 or 1 1 1 1",
    )
    normal, variable, out = normalised(walk, relu(walk, layer.inputs[0]), "norm1")
    first = walk.back(variable, "Conv")
    state = normal | {"conv1.weight": filters(walk, first, 7, out, strides=(2,)), "conv1.bias": torch.zeros(out)}
    if has_bias(walk, first):
        state["conv1.bias"] = walk.take(first, 1, [out])
    source = walk.peek(first.inputs[0])
    walk.must(source is None, first, f"its input from {source}", "an input of the net")
    return kinds[pads], state, first.inputs[0]


def _named(walk: Walk, units: Sequence[FoundUnit]) -> tuple[int, dict[str, FoundUnit]]:
    """The depth, and the units by name: a projection begins a stage."""
    stages: list[int] = []
    for unit in units:
        if unit.projected or not stages:
            stages.append(0)
        stages[-1] += 1
    depths: dict[tuple[int, ...], int] = {UNITS[depth]: depth for depth in (50, 101, 152)}
    if tuple(stages) not in depths:
        known = ", ".join(f"{counts} (ResNet-{depth})" for counts, depth in depths.items())
        raise walk.wrong(f"stages of {tuple(stages)} bottleneck units, expected one of {known}")
    depth = depths[tuple(stages)]
    return depth, dict(zip(unit_names(depth), units, strict=True))


def _stride_on(walk: Walk, units: Mapping[str, FoundUnit]) -> str:
    found = {name: unit.strides for name, unit in units.items()}
    for kind, strides in {"1x1": (2, 1), "3x3": (1, 2)}.items():
        if all(pair == (strides if name in STRIDED else (1, 1)) for name, pair in found.items()):
            return kind
    odd = ", ".join(f"{name} {pair}" for name, pair in found.items() if pair != (1, 1))
    raise walk.wrong(f"strides of the first and middle convolutions: {odd}; expected 2 in one of them, in 3a, 4a, 5a")
