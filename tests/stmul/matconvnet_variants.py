"""Nets made of the oracle's: joined in other ways, or as `read_variables` finds them in their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stmul.dagnn.graph import UNREAD
from stmul.matfile import Foreign
from tests.stmul.matconvnet_files import Handle, Layer, Net, Param, final

STREAMS = ("spatial", "temporal")


def as_read(net: Net) -> dict[str, Any]:
    """What `read_variables` finds in the net's file: writing and reading a hundred of them takes a minute."""

    def value(one: Any) -> Any:
        if isinstance(one, Handle):
            return Foreign("a function handle")
        if isinstance(one, str | list):
            return one if isinstance(one, str) else [value(part) for part in one]
        if isinstance(one, Mapping):
            return {name: value(part) for name, part in one.items() if name not in UNREAD}
        array = np.atleast_2d(np.asarray(one, np.uint8 if isinstance(one, bool) else None))
        array = array.astype(np.float64) if array.dtype.kind == "i" else array
        return array.reshape(array.shape[: max(2, *(i for i, side in enumerate(array.shape, 1) if side > 1), 2)])

    layers = [
        {"name": one.name, "type": one.type, "block": value(one.block)}
        | {field: list(getattr(one, field)) for field in ("inputs", "outputs", "params")}
        for one in net.layers
    ]
    params = [{"name": one.name, "value": value(one.value)} for one in net.params]
    return {"net": {"params": params, "layers": layers, "meta": value(net.meta)}}


def with_layers(one: Net, *layers: Layer) -> Net:
    """The net with layers in place of those of their names, or behind them all."""
    named = {layer.name: layer for layer in layers}
    kept = tuple(named.pop(layer.name, layer) for layer in one.layers)
    return replace(one, layers=(*kept, *named.values()))


def turn(param: Param) -> Param:
    return replace(param, value=param.value[:, ::-1])


def with_meta(one: Net, **normalization: object) -> Net:
    return replace(one, meta={**one.meta, "normalization": {**one.meta["normalization"], **normalization}})


def composed(appearance: Net, motion: Net) -> Net:
    """The final net with the parameters of two base nets, its temporal filters at their start."""
    whole = final(temporal_noise=0.0)
    values = {
        f"{param.name}_{stream}": param.value
        for stream, base in zip(STREAMS, (appearance, motion), strict=True)
        for param in base.params
    }
    params = tuple(replace(one, value=values.pop(one.name, one.value)) for one in whole.params)
    assert not values
    images = [base.meta["normalization"]["averageImage"] for base in (motion, appearance)]
    return with_meta(replace(whole, params=params), averageImage=np.concatenate(images, axis=2))


def gated(one: Net, into: tuple[str, ...], operator: str) -> Net:
    """The net with gates into those streams: the other's activation with this one's sum before its ReLU."""
    gates = {layer.name for layer in one.layers if layer.type == "dagnn.Mul"}
    layers = {layer.name: layer for layer in one.layers if layer.name not in gates}
    for stage in range(2, 6):
        for stream, other in (STREAMS, STREAMS[::-1]):
            reader = layers[f"res{stage}b_branch2a_{stream}"]
            source = f"res{stage}ax_{stream}"
            if stream in into:
                source = f"res{stage}_joined_{stream}"
                factors = (f"res{stage}ax_{other}", f"res{stage}a_{stream}")
                layers[source] = Layer(source, f"dagnn.{operator}", factors, (source,), (), {})
            layers[reader.name] = replace(reader, inputs=(source,))
    return replace(one, layers=tuple(layers.values()))


def st_resnet(start: Net) -> Net:
    """Sums for gates, units b whose 1x1 convolutions look along time, no filters of their own, time in steps of two."""
    whole = gated(start, ("spatial",), "Sum")
    skipped = {layer.outputs[0]: layer.inputs[0] for layer in whole.layers if layer.type == "dagnn.ConvTime"}
    draws, values, layers = np.random.default_rng(3), {one.name: one.value for one in whole.params}, []
    for layer in whole.layers:
        layer = replace(layer, inputs=tuple(skipped.get(var, var) for var in layer.inputs))
        if layer.type == "dagnn.ConvTime":
            for name in layer.params:
                del values[name]
            continue
        if layer.type == "dagnn.PoolTime":
            layer = replace(layer, block={**layer.block, "stride": (1, 2)})
        if layer.name[4:].startswith(("b_branch2a", "b_branch2c")) and layer.type == "dagnn.Conv":
            (name,) = layer.params
            taps = np.array([0.5, 0.8, -0.3]).reshape(1, 3, 1, 1) * values[name]
            values[name] = (taps * draws.uniform(0.7, 1.3, taps.shape)).astype(np.float32)
            block = {**layer.block, "size": taps.shape, "pad": (0, 0, 1, 1)}
            layer = replace(layer, type="dagnn.ConvTime", block=block)
        layers.append(layer)
    params = tuple(replace(one, value=values[one.name]) for one in whole.params if one.name in values)
    return replace(whole, layers=tuple(layers), params=params)
