"""Every layer and every parameter of a MatConvNet file counts: what would be computed otherwise is refused, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.io

from stmul.dagnn.graph import UNREAD
from stmul.errors import WeightsError
from stmul.matconvnet import load_network, load_stream
from stmul.matfile import read_variables
from tests.stmul.matconvnet_files import Handle, Layer, Net, Param, appearance_base, final, motion_base, write
from tests.stmul.matconvnet_variants import as_read

Change = Callable[[Net], Net]


@cache
def base() -> Net:
    return appearance_base()


@cache
def both() -> Net:
    return final(stack=2)


# --- Changes ----------------------------------------------------------------------------------------------------------


def layer(which: str, /, **fields: Any) -> Change:
    """Other fields of a layer; a block's fields are added to it."""

    def change(net: Net) -> Net:
        old = next(one for one in net.layers if one.name == which)
        block = {**old.block, **fields["block"]} if isinstance(fields.get("block"), dict) else old.block
        new = replace(
            old, **{**fields, "block": fields["block"] if "block" in fields and block is old.block else block}
        )
        return replace(net, layers=tuple(new if one is old else one for one in net.layers))

    return change


def block(name: str, **fields: Any) -> Change:
    return layer(name, block=fields)


def read(name: str, *inputs: str) -> Change:
    return layer(name, inputs=inputs)


def without_layer(name: str) -> Change:
    return lambda net: replace(net, layers=tuple(one for one in net.layers if one.name != name))


def without_param(name: str) -> Change:
    return lambda net: replace(net, params=tuple(one for one in net.params if one.name != name))


def with_layer(name: str, kind: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **fields: Any) -> Change:
    return lambda net: replace(net, layers=(*net.layers, Layer(name, f"dagnn.{kind}", inputs, outputs, (), fields)))


def param(name: str, value: Callable[[Any], Any]) -> Change:
    return lambda net: replace(
        net, params=tuple(replace(one, value=value(one.value)) if one.name == name else one for one in net.params)
    )


def exchanged(one: str, other: str) -> Change:
    names = {one: other, other: one}
    return lambda net: replace(net, params=tuple(replace(p, name=names.get(p.name, p.name)) for p in net.params))


def twice(name: str, what: str) -> Change:
    return lambda net: replace(
        net, **{what: (*getattr(net, what), next(one for one in getattr(net, what) if one.name == name))}
    )


def meta(**fields: Any) -> Change:
    return lambda net: replace(net, meta={**net.meta, **fields})


def image(value: Any) -> Change:
    return meta(normalization={"averageImage": value})


def stray(name: str) -> Change:
    return lambda net: replace(net, params=(*net.params, Param(name, np.ones((1, 1), np.float32), 1, 1)))


def several(*changes: Change) -> Change:
    def change(net: Net) -> Net:
        for one in changes:
            net = one(net)
        return net

    return change


def spoilt(number: float) -> Callable[[Any], Any]:
    def value(old: Any) -> Any:
        new = old.copy()
        new.flat[-1] = number  # of moments: the last sigma
        return new

    return value


# --- What is refused --------------------------------------------------------------------------------------------------

ALONE: dict[str, tuple[Change, str]] = {
    "a convolution is missing": (without_layer("res3b_branch2b"), "res3b_branch2b is made by none"),
    "a normalisation is missing": (without_layer("bn4c_branch2a"), "res4c_branch2ax is made by none"),
    "a sum is missing": (without_layer("res5b"), "res5b is made by none"),
    "the classifier is missing": (without_layer("fc1000"), "fc1000 is made by none"),
    "filters are missing": (without_param("res2a_branch2a_filter"), "res2a_branch2a_filter is missing"),
    "moments are missing": (without_param("bn5a_branch1_moments"), "bn5a_branch1_moments is missing"),
    "a bias is missing": (without_param("fc1000_bias"), "fc1000_bias is missing"),
    "a parameter too many": (stray("res6a_filter"), "nothing here uses parameter res6a_filter"),
    "a layer too many": (
        with_layer("spare", "ReLU", ("res5cx",), ("res5cxx",)),
        r"nothing here uses layer spare \(ReLU\)",
    ),
    "a parameter of another name": (exchanged("bn_conv1_mult", "bn_conv1_multiplier"), "bn_conv1_mult is missing"),
    "parameters exchanged": (
        exchanged("res2a_branch2a_filter", "res2a_branch2b_filter"),
        r"parameter res2a_branch2\w_filter has shape .* expected",
    ),
    "a parameter shared": (
        layer("res2c_branch2a", params=("res2b_branch2a_filter",)),
        "res2b_branch2a_filter is shared",
    ),
    "a parameter twice in a layer": (
        layer("bn3a_branch2a", params=("bn3a_branch2a_mult", "bn3a_branch2a_mult", "bn3a_branch2a_moments")),
        "bn3a_branch2a_mult is shared",
    ),
    "a layer's name twice": (twice("res4a_relu", "layers"), "layer res4a_relu is there twice"),
    "a parameter's name twice": (twice("conv1_bias", "params"), "parameter conv1_bias is there twice"),
    "a variable made twice": (layer("res4b_relu", outputs=("res4bx", "res4ax")), "res4ax is made by layers"),
    "filters of other channels": (
        param("res3b_branch2b_filter", lambda old: old[:, :, :-1]),
        "res3b_branch2b_filter|units.3b.conv2.weight",
    ),
    "filters of another size": (param("conv1_filter", lambda old: old[1:-1, 1:-1]), "conv1_filter has shape"),
    "moments without sigma": (param("bn3a_branch1_moments", lambda old: old[:, :1]), "bn3a_branch1_moments has shape"),
    "a bias of another length": (param("bn3a_branch1_bias", lambda old: old[1:]), "bn3a_branch1_bias has shape"),
    "NaN": (param("res5c_branch2c_filter", spoilt(np.nan)), "res5c_branch2c_filter: holds numbers that are not finite"),
    "infinity": (param("fc1000_bias", spoilt(np.inf)), "fc1000_bias: holds numbers that are not finite"),
    "beyond single precision": (
        param("fc1000_bias", lambda old: old.astype(np.float64) * 1e300),
        "fc1000_bias: holds numbers that are not finite",
    ),
    "a sigma of zero": (param("bn2a_branch2a_moments", spoilt(0)), "bn2a_branch2a .*a sigma of 0"),
    "a sigma below zero": (param("bn2a_branch2a_moments", spoilt(-1)), "bn2a_branch2a .*a sigma of -1"),
    "a sigma without a square": (param("bn2a_branch2a_moments", spoilt(1e-30)), "bn2a_branch2a .*a sigma of 1e-30"),
    "no numbers": (
        param("fc1000_bias", lambda old: np.zeros((0, 0), np.float32)),
        "parameter fc1000_bias: expected numbers",
    ),
    "complex numbers": (param("fc1000_bias", lambda old: old + 1j), "parameter fc1000_bias: expected numbers"),
    "an unknown layer": (layer("res2b_relu", type="dagnn.Sigmoid"), r"res2b_relu \(Sigmoid\)"),
    "a dilated convolution": (block("res5b_branch2b", dilate=(2, 2)), "res5b_branch2b .*dilate"),
    "a dilated maximum": (block("pool1", dilate=(2, 2)), "pool1 .*dilate"),
    "a leaky activation": (block("res2b_relu", leak=0.1), "res2b_relu .*leak 0.1"),
    "a leaky activation in a branch": (block("res2b_branch2a_relu", leak=0.1), "res2b_branch2a_relu .*leak 0.1"),
    "other padding": (block("res2b_branch2b", pad=(1, 1, 0, 2)), "res2b_branch2b .*padding"),
    "padding of three": (block("res2b_branch2b", pad=(1, 1, 1)), "res2b_branch2b .*pad is 1 1 1"),
    "padding in parts": (block("conv1", pad=(3.5, 3, 3, 3)), "conv1 .*pad is 3.5 3 3 3"),
    "another padding of the maximum": (block("pool1", pad=(1, 0, 1, 0)), "pool1 .*padding"),
    "a padded average": (block("pool5", pad=(1, 1, 1, 1)), "pool5 .*padding"),
    "another stride": (block("conv1", stride=(1, 1)), "conv1 .*stride 1"),
    "unlike strides": (block("res3a_branch2a", stride=(2, 1)), "res3a_branch2a .*stride 2 x 1"),
    "strides of three": (block("res3a_branch2a", stride=(2, 2, 2)), "res3a_branch2a .*stride is 2 2 2"),
    "a stride that is none": (block("res3a_branch2a", stride=float("nan")), "res3a_branch2a .*stride is nan"),
    "stride in the wrong unit": (
        several(*(block(f"res3{unit}_branch2a", stride=(2, 2)) for unit in "ab")),
        r"3b \(2, 1\)",
    ),
    "stride in the branch alone": (block("res3a_branch1", stride=(1, 1)), "res3a_branch1 .*stride 1"),
    "another window of the maximum": (block("pool1", poolSize=(2, 2)), "pool1 .*window"),
    "a window that is none": (block("pool5", poolSize=(0, 0)), "pool5 .*poolSize 0 0"),
    "a window without end": (block("pool5", poolSize=(float("inf"),) * 2), "pool5 .*poolSize is inf inf"),
    "a window that is no square": (block("pool5", poolSize=(7, 8)), "pool5 .*7 x 8"),
    "a maximum for the average": (block("pool5", method="max"), "pool5 .*method max"),
    "an average for the maximum": (block("pool1", method="avg"), "pool1 .*method avg"),
    "a method that is no text": (block("pool1", method=3), "pool1 .*method is an array"),
    "a stride that is text": (block("conv1", stride="two"), "conv1 .*stride is the text 'two'"),
    "a stride in a cell": (block("conv1", stride=[2, 2]), "conv1 .*stride is a cell"),
    "a bias that is switched off": (block("fc1000", hasBias=False), "fc1000 .*hasBias false"),
    "a classifier without bias": (
        several(layer("fc1000", params=("fc1000_filter",)), without_param("fc1000_bias")),
        "fc1000 .*no bias",
    ),
    "an instant picked": (block("res4d", pickTemporalCentre=True), "res4d .*pickTemporalCentre"),
    "a sum of three": (read("res2b", "res2ax", "res2b_branch2cx", "res2ax"), "res2b .*inputs"),
    "a sum of one": (read("res2b", "res2b_branch2cx"), "res2b .*inputs"),
    "a sum of two branches": (read("res2b", "res2a_branch2cx", "res2b_branch2cx"), "res2b .*inputs"),
    "layers in a circle": (
        several(read("res2b_branch2a", "res3dx"), read("res2b", "res3dx", "res2b_branch2cx")),
        "met twice",
    ),
    "an activation of itself": (read("res2b_relu", "res2bx"), "res2b"),
    "a normalisation without input": (layer("bn2b_branch2b", inputs=()), "bn2b_branch2b .*no input"),
    "a convolution without input": (layer("res2b_branch2c", inputs=()), "res2b"),
    "an activation without input": (layer("res2b_branch2b_relu", inputs=()), "res2b"),
    "a loss without input": (layer("loss_fc1000", inputs=()), "loss_fc1000 .*no input"),
    "a loss of the label": (read("loss_fc1000", "label", "fc1000"), "variable label is made by none"),
    "a unit missing": (
        several(
            read("res4f_branch2a", "res4dx"),
            read("res4f", "res4dx", "res4f_branch2cx"),
        ),
        "stages of",
    ),
    "a name with a control character": (layer("res2b", name="res2b\x1b[2J"), "expected a name"),
    "a stream joined with itself": (
        several(
            with_layer("self", "Mul", ("res2ax", "res2b"), ("joined",)),
            read("res2c_branch2a", "joined"),
        ),
        "joined with itself in 2c",
    ),
    "a maximum over time": (
        several(
            with_layer("time", "PoolTime", ("res5cx",), ("longest",), method="max", poolSize=(1, 5)),
            read("pool5", "longest"),
        ),
        "maximum over time",
    ),
    "instants left out": (
        several(
            with_layer("time", "PoolTime", ("res5cx",), ("some",), method="max", stride=(1, 2)),
            read("pool5", "some"),
        ),
        "maximum over time",
    ),
    "no means": (meta(normalization={"imageSize": (224, 224, 3)}), "averageImage is missing"),
    "meta that is no data": (meta(normalization=Handle("@(x)x")), "averageImage is missing"),
    "means of other channels": (image(np.full((1, 1, 20), 128.0)), "averageImage has shape"),
    "means that are not finite": (image(np.array([1.5, np.nan, 2])), "averageImage"),
    "means in a cell": (image([1, 2, 3]), "averageImage is missing"),
    "means that are text": (image("RGB"), "averageImage is missing"),
}
JOINED: dict[str, tuple[Change, str]] = {
    "an average over time": (block("res5c_relu_pool_spatial1", method="avg"), "res5c_relu_pool_spatial1 .*method avg"),
    "the maximum of one stream": (
        several(read("pool5_spatial", "res5cx_spatial"), without_layer("res5c_relu_pool_spatial1")),
        "temporal_window is 1 in appearance and 5 in motion",
    ),
    "windows in space and time": (block("res5c_relu_pool_temporal1", poolSize=(2, 5)), "res5c_relu_pool_temporal1 "),
    "a maximum of all time": (block("res5c_relu_pool_temporal1", poolSize=(1, float("inf"))), "poolSize is 1 inf"),
    "a temporal filter with other padding": (
        block("res2b_branch2b_relu_spatial_Time", pad=(0, 0, 2, 0)),
        "res2b_branch2b_relu_spatial_Time .*padding",
    ),
    "a temporal filter with strides": (
        block("res2b_branch2b_relu_spatial_Time", stride=(1, 2)),
        "res2b_branch2b_relu_spatial_Time .*stride",
    ),
    "a temporal filter of five": (
        param("res2b_branch2b_relu_spatial_Time_f", lambda old: np.concatenate([old, old[:, :2]], axis=1)),
        "res2b_branch2b_relu_spatial_Time_f has shape",
    ),
    "a temporal filter without bias": (
        layer("res2b_branch2b_relu_spatial_Time", params=("res2b_branch2b_relu_spatial_Time_f",)),
        "res2b_branch2b_relu_spatial_Time .*no bias",
    ),
    "a gate after the activation": (
        read("res3a_relu_spatial_sum", "res3ax_temporal", "res3ax_spatial"),
        "res3a_relu_spatial_sum",
    ),
    "a gate before motion's activation": (
        read("res3a_relu_spatial_sum", "res3a_temporal", "res3a_spatial"),
        "res3a_relu_spatial_sum .*input res3a_temporal",
    ),
    "a gate from the wrong unit": (
        read("res3a_relu_spatial_sum", "res3bx_temporal", "res3a_spatial"),
        "unit 3b is joined with res3bx_temporal, expected res3ax_temporal",
    ),
    "a gate on the shortcut too": (read("res3b_spatial", "res3a_relu_spatial_sum", "res3b_branch2cx_spatial"), "res3"),
    "a gate of three": (
        read("res3a_relu_spatial_sum", "res3ax_temporal", "res3a_spatial", "res3a_spatial"),
        "res3a_relu_spatial_sum .*inputs",
    ),
    "gates of two kinds": (layer("res3a_relu_spatial_sum", type="dagnn.Sum"), "add and multiply"),
    "other classes in one stream": (
        several(
            param("fc1000_filter_temporal", lambda old: old[..., :-1]),
            param("fc1000_bias_temporal", lambda old: old[:-1]),
        ),
        "classes is 6 in appearance and 5 in motion",
    ),
    "a rate of one": (block("prediction_temporal", rate=1), "prediction_temporal .*rate 1"),
    "a rate below zero": (block("prediction_temporal", rate=-0.5), "prediction_temporal .*rate -0.5"),
    "other windows in one stream": (block("pool5_spatial", poolSize=(6, 6)), "pool is 6 in appearance and 7 in motion"),
    "means of one stream": (image(np.full((1, 1, 3), 100.0)), "averageImage has shape .* expected 7 channels"),
    "a loss of one stream missing": (
        several(without_layer("loss_fc1000_spatial"), without_layer("err1__spatial")),
        "nothing here uses",
    ),
    "a stream twice": (
        several(read("loss_fc1000_temporal", "fc1000_spatial"), read("err1_temporal", "fc1000_spatial")),
        "nothing here uses",
    ),
}


@pytest.mark.parametrize("what", ALONE)
def test_a_stream_is_refused_for(what, monkeypatch):
    refused(base(), *ALONE[what], load_stream, monkeypatch)


@pytest.mark.parametrize("what", JOINED)
def test_a_final_net_is_refused_for(what, monkeypatch):
    refused(both(), *JOINED[what], load_network, monkeypatch)


def refused(start: Net, change: Change, message: str, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stmul.dagnn.graph.read_variables", lambda path, names, unread: as_read(change(start)))
    with pytest.raises(WeightsError, match=message) as caught:
        load("ucf101.mat")
    assert str(caught.value).startswith("ucf101.mat: ")


@pytest.mark.parametrize(("net", "version"), [(base, "v5"), (both, "v7")])
def test_the_changes_are_read_as_from_a_file(net, version, tmp_path):
    write(tmp_path / "net.mat", net(), version=version)
    found = read_variables(tmp_path / "net.mat", ("net", "layers"), UNREAD)
    assert list(leaves(found)) == list(leaves(as_read(net())))


def leaves(value: Any) -> Iterator[Any]:
    """What is inside, in turn; numbers with their shape, and without their type."""
    if isinstance(value, dict):
        yield sorted(value)
        value = [value[name] for name in sorted(value)]
    if isinstance(value, list):
        yield len(value)
        for one in value:
            yield from leaves(one)
    else:
        yield (value.shape, value.tolist()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (3.0, "expected a DagNN"),
        ("net", "expected a DagNN"),
        ({"layers": np.zeros((0, 0))}, "expected a DagNN .* found layers"),
        ({"layers": np.zeros((0, 0)), "params": np.zeros((0, 0))}, "without layers"),
        ({"layers": "none", "params": np.zeros((0, 0))}, "layers: expected structs, found the text 'none'"),
        ({"layers": {"name": "a", "type": ""}, "params": np.zeros((0, 0))}, "layer a: type: expected a name"),
        ({"layers": {"name": 7, "type": "x"}, "params": np.zeros((0, 0))}, r"layers\(1\).name: expected a name"),
        (
            {"layers": {"name": "a", "type": "x", "block": "b"}, "params": np.zeros((0, 0))},
            "layer a: block is the text",
        ),
        ({"layers": {"name": "a", "type": "x"}, "params": np.zeros((0, 0))}, "nothing here uses layer a"),
    ],
)
def test_a_variable_that_is_no_net_is_refused(net, message, tmp_path):
    scipy.io.savemat(tmp_path / "net.mat", {"net": net})
    for load in (load_network, load_stream):
        with pytest.raises(WeightsError, match=message) as caught:
            load(tmp_path / "net.mat")
        assert str(caught.value).startswith(f"{tmp_path / 'net.mat'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["net.mat"]


def test_two_streams_are_not_one_and_one_not_two(tmp_path):
    write(tmp_path / "one.mat", motion_base(stack=2))
    write(tmp_path / "both.mat", both())
    with pytest.raises(WeightsError, match=r"both.mat: two streams"):
        load_stream(tmp_path / "both.mat")
    with pytest.raises(WeightsError, match=r"one.mat: one stream"):
        load_network(tmp_path / "one.mat")
