"""Exact float64 scores of a MatConvNet graph as it is stored: each layer by its own small function, in the vars' order.

Nothing here knows a ResNet, but for the misreadings at the end, each of which plants one mistake of an importer.

Shapes: C channels, T instants (the frames of one clip), H W positions, L flow stack (2L channels), K classes.
Filters are [H W Cin Cout], pads [top bottom left right].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from graphlib import TopologicalSorter
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.stmul.matconvnet_nets import Layer, Net

Array = NDArray[np.float64]
Operator = Callable[["Layer", list[Array], list[Array]], Array]  # inputs CTHW and parameters to an output CTHW

# --- Layers -----------------------------------------------------------------------------------------------------------


def _windows(x_CTHW: Array, size: Sequence[int], block: Mapping[str, Any], outside: float) -> Iterator[Array]:
    """For each place of a window, row by row, what all the windows see there; `outside` is what the pad holds."""
    top, bottom, left, right = block.get("pad", (0, 0, 0, 0))
    (down, across), (dilate_down, dilate_across) = block.get("stride", (1, 1)), block.get("dilate", (1, 1))
    padded = np.pad(x_CTHW, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=outside)
    rows = (padded.shape[2] - (size[0] - 1) * dilate_down - 1) // down + 1
    columns = (padded.shape[3] - (size[1] - 1) * dilate_across - 1) // across + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"a window of {size[0]}x{size[1]} does not fit into {padded.shape[2]}x{padded.shape[3]}")
    for i, j in product(range(size[0]), range(size[1])):
        i, j = i * dilate_down, j * dilate_across
        yield padded[:, :, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * across + 1 : across]


def convolution(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """y = f * x + b, a correlation (vl_nnconv.m)."""
    taps = params[0].reshape(-1, *params[0].shape[2:])
    windows = _windows(inputs[0], params[0].shape, layer.block, 0.0)
    y_CTHW = reduce(np.add, (np.tensordot(tap.T, window, axes=1) for tap, window in zip(taps, windows, strict=True)))
    return y_CTHW + params[1].reshape(-1, 1, 1, 1) if layer.block.get("hasBias", True) else y_CTHW


def normalisation(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """y = g (x - mu) / sigma + b with the stored moments [mu sigma]; epsilon is in sigma already (vl_nnbnorm.m)."""
    return _normalised(inputs[0], params, params[2][:, 1])


def _normalised(x_CTHW: Array, params: list[Array], sigma: Array) -> Array:
    scale = params[0].reshape(-1) / sigma
    shift = params[1].reshape(-1) - params[2][:, 0] * scale
    return x_CTHW * scale[:, None, None, None] + shift[:, None, None, None]


def pooling(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """The maximum or the average of each window's part inside the picture (pooling_cpu.cpp)."""
    size, block = layer.block["poolSize"], layer.block
    if block["method"] == "max":
        return reduce(np.maximum, _windows(inputs[0], size, block, -np.inf))
    area = reduce(np.add, _windows(np.ones((1, 1, *inputs[0].shape[2:])), size, block, 0.0))
    return reduce(np.add, _windows(inputs[0], size, block, 0.0)) / area


def _along_time(operator: Operator, layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """The operator on (C, 1, HW, T), a picture whose rows are positions and whose columns are instants."""
    (x_CTHW,) = inputs
    channels, _, *space = x_CTHW.shape
    x_C1ST = x_CTHW.reshape(channels, -1, 1, np.prod(space)).transpose(0, 2, 3, 1)
    y_C1ST = operator(layer, [x_C1ST], params)
    return y_C1ST.transpose(0, 3, 1, 2).reshape(len(y_C1ST), -1, *space)


def convolution_in_time(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """A correlation with f [1 3 Cin Cout] along the clip; its first tap meets the frame before (ConvTime.m)."""
    return _along_time(convolution, layer, inputs, params)


def pooling_in_time(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """The maximum of each window of poolSize(2) instants, of all of them where that is infinite (PoolTime.m)."""
    length = layer.block["poolSize"][1]
    length = inputs[0].shape[1] if np.isinf(length) else length
    return _along_time(pooling, _changed(layer, poolSize=(1, length)), inputs, params)


def rectification(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return np.where(inputs[0] > 0, inputs[0], layer.block.get("leak", 0) * inputs[0])


def softmax(x_CTHW: Array) -> Array:
    exponentials = np.exp(x_CTHW - x_CTHW.max(axis=0))
    return exponentials / exponentials.sum(axis=0)


OPS: dict[str, Operator] = {
    "dagnn.Conv": convolution,
    "dagnn.BatchNorm": normalisation,
    "dagnn.ReLU": rectification,
    "dagnn.Pooling": pooling,
    "dagnn.Sum": lambda layer, inputs, params: reduce(np.add, inputs),
    "dagnn.Mul": lambda layer, inputs, params: reduce(np.multiply, inputs),
    "dagnn.DropOut": lambda layer, inputs, params: inputs[0],
    "dagnn.SoftMax": lambda layer, inputs, params: softmax(inputs[0]),
    "dagnn.ConvTime": convolution_in_time,
    "dagnn.PoolTime": pooling_in_time,
}


# --- Graph ------------------------------------------------------------------------------------------------------------


def evaluate(
    net: Net, inputs: Mapping[str, Array], wanted: Sequence[str], operators: Mapping[str, Operator] = OPS
) -> dict[str, Array]:
    """The wanted vars, (C, T, H, W) each, from the net's inputs; its layers are in any order, its losses left out."""
    writers = {layer.outputs[0]: layer for layer in net.layers if layer.type != "dagnn.Loss"}
    params = {param.name: param.value.astype(np.float64) for param in net.params}
    needed: dict[str, tuple[str, ...]] = {}
    open_vars = list(wanted)
    while open_vars:
        if (var := open_vars.pop()) in writers and var not in needed:
            needed[var] = writers[var].inputs
            open_vars.extend(needed[var])
    readers = Counter(wanted) + Counter(var for sources in needed.values() for var in sources)
    values = dict(inputs)
    for var in TopologicalSorter(needed).static_order():
        if layer := writers.get(var):
            sources = [values[source] for source in layer.inputs]
            values[var] = operators[layer.type](layer, sources, [params[name] for name in layer.params])
            readers.subtract(layer.inputs)
            for source in {source for source in layer.inputs if not readers[source]}:
                del values[source]  # nobody reads it any more
    return {var: values[var] for var in wanted}


def classifiers(net: Net) -> list[str]:
    """The vars that the losses read, or where there are none the softmax, sorted: '..._spatial', '..._temporal'."""
    kind = "dagnn.Loss" if any(layer.type == "dagnn.Loss" for layer in net.layers) else "dagnn.SoftMax"
    return sorted({layer.inputs[0] for layer in net.layers if layer.type == kind})


def scores(
    net: Net, rgb_THWC: NDArray[Any], flow_THWC: NDArray[Any], *, mirror: bool = True, wrong: str = ""
) -> tuple[Array, Array]:
    """Appearance's and motion's scores (K,) of one clip: raw, averaged over positions, instants and mirror images.

    rgb (T, H, W, 3) and flow (T, H, W, 2L), u and v in turn, are 0..255 with no mean taken away.
    """
    reading = READINGS[wrong]
    flow_average, rgb_average = np.split(_average(net), [-3])
    wanted = classifiers(net)

    def maps(mirrored: bool) -> dict[str, Array]:
        rgb = _prepared(rgb_THWC, rgb_average, reading, "appearance", mirrored)
        flow = _prepared(flow_THWC, flow_average, reading, "motion", mirrored)
        return evaluate(reading.graph(net), {"input": rgb, "input_flow": flow}, wanted, OPS | reading.operators)

    appearance, motion = _mean_scores(maps, wanted, reading, mirror)
    return appearance, motion


def stream_scores(
    net: Net,
    frames_THWC: NDArray[Any],
    *,
    mirror: bool = True,
    kind: Literal["appearance", "motion"] = "appearance",
    wrong: str = "",
) -> Array:
    """The scores (K,) of a stream by itself, frame by frame, averaged over frames, positions and mirror images."""
    reading, wanted = READINGS[wrong], classifiers(net)
    written = {layer.outputs[0] for layer in net.layers}
    (source,) = {var for layer in net.layers for var in layer.inputs} - written - {"label"}

    def maps(mirrored: bool) -> dict[str, Array]:
        frames = _prepared(frames_THWC, _average(net), reading, kind, mirrored)
        return evaluate(reading.graph(net), {source: frames}, wanted, OPS | reading.operators)

    return _mean_scores(maps, wanted, reading, mirror)[0]


def _average(net: Net) -> Array:
    """The average colour (C,), also where a whole average picture is stored."""
    return np.asarray(net.meta["normalization"]["averageImage"], np.float64).mean(axis=(0, 1))


def _prepared(frames_THWC: NDArray[Any], average: Array, reading: Reading, kind: str, mirrored: bool) -> Array:
    """Frames (C, T, H, W) of mean 0; a mirror image is flipped, and its u negated, before the mean is taken away."""
    frames = reading.frames(np.array(frames_THWC, np.float64), kind)
    if mirrored:
        frames = frames[:, :, ::-1]
        if kind == "motion":
            frames[..., :: reading.negated] = 255 - frames[..., :: reading.negated]
    return (frames - average).transpose(3, 0, 1, 2)


def _mean_scores(
    maps: Callable[[bool], dict[str, Array]], wanted: Sequence[str], reading: Reading, mirror: bool
) -> list[Array]:
    views = [maps(mirrored) for mirrored in ((False, True) if mirror else (False,))]
    return [np.mean([reading.scores(view[var]).mean(axis=(1, 2, 3)) for view in views], axis=0) for var in wanted]


# --- Misreadings ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a stored net is read; what is not said is read aright."""

    operators: dict[str, Operator] = field(default_factory=dict)
    graph: Callable[[Net], Net] = lambda net: net
    frames: Callable[[Array, str], Array] = lambda frames_THWC, kind: frames_THWC
    negated: int = 2  # every so many channels of a mirrored flow change their sign, from the first: u alone
    scores: Callable[[Array], Array] = lambda scores_KTHW: scores_KTHW


def _changed(layer: Layer, **fields: Any) -> Layer:
    return replace(layer, block={**layer.block, **fields})


def _rewired(net: Net, reads: Callable[[Layer], bool], changes: Mapping[str, str]) -> Net:
    """The net with other vars for the inputs of some layers."""

    def rewired(layer: Layer) -> Layer:
        inputs = tuple(changes.get(var, var) for var in layer.inputs)
        return replace(layer, inputs=inputs) if reads(layer) else layer

    return replace(net, layers=tuple(rewired(layer) for layer in net.layers))


def _of(net: Net, kind: str) -> list[Layer]:
    return [layer for layer in net.layers if layer.type == f"dagnn.{kind}"]


def _rectified(net: Net) -> dict[str, str]:
    """From a var to its ReLU."""
    return {layer.inputs[0]: layer.outputs[0] for layer in _of(net, "ReLU")}


def _stride_on_the_3x3(net: Net) -> Net:
    """Stride 2 is taken from branch2a and given to branch2b; the projection keeps its own."""
    strided = [layer.name for layer in _of(net, "Conv") if layer.block["stride"] == (2, 2)]
    moved = [name for name in strided if "branch2a" in name]
    strides = dict.fromkeys(moved, (1, 1)) | {name.replace("branch2a", "branch2b"): (2, 2) for name in moved}
    layers = (_changed(layer, stride=strides[layer.name]) if layer.name in strides else layer for layer in net.layers)
    return replace(net, layers=tuple(layers))


def _gate_one_unit_later(net: Net) -> Net:
    relu_of = _rectified(net)
    sum_with = {var: layer.outputs[0] for layer in _of(net, "Sum") for var in layer.inputs}
    for gate in _of(net, "Mul"):
        motion, appearance = gate.inputs
        (product_var,), shortcut = gate.outputs, relu_of[appearance]
        later = {motion: relu_of[sum_with[motion]], appearance: sum_with[shortcut]}
        readers = {product_var: shortcut, relu_of[sum_with[shortcut]]: product_var}
        net = _rewired(net, lambda layer: layer.type == "dagnn.Conv", readers)
        net = _rewired(net, lambda layer, name=gate.name: layer.name == name, later)
    return net


def _shortcut_gated(net: Net) -> Net:
    relu_of = _rectified(net)
    changes = {relu_of[gate.inputs[1]]: gate.outputs[0] for gate in _of(net, "Mul")}
    return _rewired(net, lambda layer: layer.type == "dagnn.Sum", changes)


def _space_before_time(net: Net) -> Net:
    """A PoolTime and the Pooling that reads it change places."""
    layers = {layer.name: layer for layer in net.layers}
    for time in _of(net, "PoolTime"):
        (space,) = (layer for layer in _of(net, "Pooling") if time.outputs[0] in layer.inputs)
        layers[time.name] = replace(time, type=space.type, block=space.block)
        layers[space.name] = replace(space, type=time.type, block=time.block)
    return replace(net, layers=tuple(layers.values()))


def _padded_pooling(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return pooling(_changed(layer, pad=(1,) * 4) if layer.block["method"] == "max" else layer, inputs, params)


def _global_pooling(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return pooling(
        layer if layer.block["method"] == "max" else _changed(layer, poolSize=inputs[0].shape[2:]), inputs, params
    )


def _normalised_in_time(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """No bias, and each channel normalised over the clip."""
    y_CTHW = convolution_in_time(_changed(layer, hasBias=False), inputs, params)
    deviation = np.sqrt(y_CTHW.var(axis=(1, 2, 3), keepdims=True) + 1e-5)
    return (y_CTHW - y_CTHW.mean(axis=(1, 2, 3), keepdims=True)) / deviation


def _repeated_in_time(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    """The clip's ends continue into the pad instead of zeros."""
    longer = np.pad(inputs[0], ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    return convolution_in_time(_changed(layer, pad=(0, 0, 0, 0)), [longer], params)


def _sigma_as_variance(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return _normalised(inputs[0], params, np.sqrt(params[2][:, 1] + 1e-5))


def _epsilon_twice(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return _normalised(inputs[0], params, np.sqrt(params[2][:, 1] ** 2 + 1e-5))


def _transposed(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return convolution(layer, inputs, [params[0].swapaxes(0, 1), *params[1:]])


def _reversed(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return convolution_in_time(layer, inputs, [params[0][:, ::-1], *params[1:]])


def _whole_clip(layer: Layer, inputs: list[Array], params: list[Array]) -> Array:
    return pooling_in_time(_changed(layer, poolSize=(1, np.inf)), inputs, params)


READINGS = {
    "": Reading(),
    "sigma as variance": Reading(operators={"dagnn.BatchNorm": _sigma_as_variance}),
    # Less than a float32 would show, but for dead channels, whose sigma squared is epsilon: there it is the root of 2.
    "epsilon twice": Reading(operators={"dagnn.BatchNorm": _epsilon_twice}),
    "stride on the 3x3": Reading(graph=_stride_on_the_3x3),
    "maximum padded by one on all sides": Reading(operators={"dagnn.Pooling": _padded_pooling}),
    "height and width exchanged": Reading(operators={"dagnn.Conv": _transposed}),
    "appearance after its relu": Reading(
        graph=lambda net: _rewired(net, lambda layer: layer.type == "dagnn.Mul", _rectified(net))
    ),
    "motion before its relu": Reading(
        graph=lambda net: _rewired(
            net, lambda layer: layer.type == "dagnn.Mul", {relu: var for var, relu in _rectified(net).items()}
        )
    ),
    "gate one unit later": Reading(graph=_gate_one_unit_later),
    "shortcut gated": Reading(graph=_shortcut_gated),
    "normalised temporal filter without bias": Reading(operators={"dagnn.ConvTime": _normalised_in_time}),
    "time reversed": Reading(operators={"dagnn.ConvTime": _reversed}),
    "clip ends repeated": Reading(operators={"dagnn.ConvTime": _repeated_in_time}),
    "space before time": Reading(graph=_space_before_time),
    "global average": Reading(operators={"dagnn.Pooling": _global_pooling}),
    "maximum over all time": Reading(operators={"dagnn.PoolTime": _whole_clip}),
    "relu on the scores": Reading(scores=lambda scores_KTHW: np.maximum(scores_KTHW, 0)),
    "softmax": Reading(scores=softmax),
    "v mirrored too": Reading(negated=1),
    "red and blue exchanged": Reading(
        frames=lambda frames_THWC, kind: frames_THWC[..., ::-1] if kind == "appearance" else frames_THWC
    ),
    "u and v exchanged": Reading(
        frames=lambda frames_THWC, kind: (
            frames_THWC.reshape(*frames_THWC.shape[:3], -1, 2)[..., ::-1].reshape(frames_THWC.shape)
            if kind == "motion"
            else frames_THWC
        )
    ),
}
WRONG = tuple(READINGS)[1:]
