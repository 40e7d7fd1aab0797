"""Single layers of a DagNN as networks here have them: weights in our order of axes; any other geometry is refused.

Sources of their meaning: vl_nnconv.m, vl_nnpool.m, vl_nnbnorm.m and matlab/+dagnn in matconvnet; ConvTime.m and
PoolTime.m in feichtenhofer/matconvnet.
"""

from __future__ import annotations

from torch import Tensor

from stmul.dagnn.graph import Layer
from stmul.dagnn.walk import Walk

State = dict[str, Tensor]


def normalised(walk: Walk, variable: str, name: str) -> tuple[State, str, int]:
    """A normalisation's state, what it reads, and its channels."""
    layer = walk.back(variable, "BatchNorm")
    scale = walk.take(layer, 0, [-1])
    moments = walk.take(layer, 2, [len(scale), 2])
    sigma = moments[:, 1]
    walk.must(
        bool((sigma > 0).all() and (sigma.square() > 0).all()), layer, f"a sigma of {sigma.min():g}", "positive ones"
    )
    state = {
        f"{name}.weight": scale,
        f"{name}.bias": walk.take(layer, 1, [len(scale)]),
        f"{name}.running_mean": moments[:, 0].clone(),
        f"{name}.running_sigma": moments[:, 1].clone(),
    }
    return state, layer.inputs[0], len(scale)


def folded(walk: Walk, layer: Layer, normal: State, name: str, out: int) -> State:
    """The normalisation's state with the bias of the convolution before it in its mean, where that one has a bias."""
    if not has_bias(walk, layer):
        return normal
    return normal | {f"{name}.running_mean": normal[f"{name}.running_mean"] - walk.take(layer, 1, [out])}


def has_bias(walk: Walk, layer: Layer) -> bool:
    walk.must(len(layer.params) in (1, 2), layer, f"{len(layer.params)} parameters", "filters, and a bias or none")
    used = layer.numbers("hasBias", [1], 1)[0] != 0
    walk.must(used or len(layer.params) == 1, layer, "a bias, and hasBias false", "one or the other")
    return len(layer.params) == 2


def filters(walk: Walk, layer: Layer, kernel: int, out: int, *, strides: tuple[int, ...]) -> Tensor:
    """Filters (Cout, Cin, k, k) of a convolution that keeps the size but for its stride."""
    side, pads = kernel // 2, pads_of(layer)
    walk.must(pads == (side,) * 4, layer, f"padding {pads}", f"{side} on every side")
    down, across = strides_of(layer)
    said = " or ".join(map(str, strides))
    walk.must(down == across and down in strides, layer, f"stride {down} x {across}", said)
    undilated(walk, layer)
    return walk.take(layer, 0, [kernel, kernel, -1, out]).permute(3, 2, 0, 1).contiguous()


def time_filters(walk: Walk, layer: Layer, out: int) -> Tensor:
    """Filters (Cout, Cin, 3) over the instants t-1, t, t+1."""
    pads = pads_of(layer)
    walk.must(pads == (0, 0, 1, 1), layer, f"padding {pads}", "0 0 1 1: one instant before and after the clip")
    walk.must(strides_of(layer) == (1, 1), layer, f"stride {strides_of(layer)}", "1")
    undilated(walk, layer)
    return walk.take(layer, 0, [1, 3, -1, out])[0].permute(2, 1, 0).contiguous()


def relu(walk: Walk, variable: str) -> str:
    layer = walk.back(variable, "ReLU")
    no_leak(walk, layer)
    return layer.inputs[0]


def plain(walk: Walk, layer: Layer) -> None:
    centre = layer.numbers("pickTemporalCentre", [0], 1)[0]
    walk.must(centre == 0, layer, "pickTemporalCentre", "all instants")


def no_leak(walk: Walk, layer: Layer) -> None:
    leak = layer.numbers("leak", [0], 1)[0]
    walk.must(leak == 0, layer, f"leak {leak:g}", "0")


def undilated(walk: Walk, layer: Layer) -> None:
    dilate = layer.whole("dilate", [1, 1], 2)
    walk.must(dilate == (1, 1), layer, f"dilate {dilate}", "1")


def pool_window(walk: Walk, layer: Layer, method: str) -> tuple[int, int]:
    walk.must(layer.text("method", "max") == method, layer, f"method {layer.text('method', 'max')}", method)
    undilated(walk, layer)
    tall, wide = layer.whole("poolSize", [1, 1], 2)
    walk.must(min(tall, wide) > 0, layer, f"poolSize {tall} {wide}", "a window")
    return tall, wide


def strides_of(layer: Layer) -> tuple[int, int]:
    down, across = layer.whole("stride", [1, 1], 2)
    return down, across


def pads_of(layer: Layer) -> tuple[int, ...]:
    """Top, bottom, left, right."""
    if len(layer.numbers("pad", [0] * 4, 4)) == 2:
        tall, wide = layer.whole("pad", [0] * 4, 2)
        return tall, tall, wide, wide
    return layer.whole("pad", [0] * 4, 4)
