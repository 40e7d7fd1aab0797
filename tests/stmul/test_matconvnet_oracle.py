"""The oracle of MatConvNet files is held to facts computed by hand, and to being sensitive to every misreading."""

from collections import Counter
from dataclasses import replace
from functools import cache

import h5py
import numpy as np
import pytest
import scipy.io

from tests.stmul.matconvnet_files import Layer, Net, Param, appearance_base, final, imagenet_net, motion_base, write
from tests.stmul.matconvnet_nets import SIGMA_OF_DEAD, pictures
from tests.stmul.matconvnet_scores import OPS, WRONG, Array, evaluate, scores, stream_scores

# The smallest clip that shows all: final maps of 7x8, two outputs in time, even maps before the first pooling.
RGB, FLOW = pictures(1, 6, 196, 228, 3), pictures(2, 6, 196, 228, 6)


def output(kind: str, x: object, *params: object, **block: object) -> Array:
    """What a layer gives for a picture (H, W), or for (C, T, H, W)."""
    x_CTHW = np.array(x, np.float64, ndmin=4)
    layer = Layer("layer", f"dagnn.{kind}", ("x",), ("y",), (), block)
    return OPS[layer.type](layer, [x_CTHW], [np.array(param, np.float64) for param in params])


def along_time(*values: float) -> Array:
    return np.array(values).reshape(1, -1, 1, 1)


@cache
def net() -> Net:
    return final(stack=3)


@cache
def head() -> Net:
    """A few layers, quicker to write."""
    return replace(net(), layers=net().layers[:40], params=net().params[:40], vars=net().vars[:40])


@cache
def right(mirror: bool) -> Array:
    return np.mean(scores(net(), RGB, FLOW, mirror=mirror), axis=0)


# --- Layers -----------------------------------------------------------------------------------------------------------


def test_a_convolution_is_a_correlation_padded_at_top_bottom_left_right():
    kernel = np.array([[1, 10], [100, 1000]]).reshape(2, 2, 1, 1)
    plain = output("Conv", [[1, 2, 3], [4, 5, 6]], kernel, hasBias=False)
    assert plain.tolist() == [[[[5421, 6532]]]]
    padded = output("Conv", [[1, 2, 3], [4, 5, 6]], kernel, [[7]], hasBias=True, pad=(0, 1, 1, 0), stride=(1, 2))
    assert padded.tolist() == [[[[4017, 6539], [47, 72]]]]


def test_a_filter_has_its_input_channels_before_its_output_channels():
    x_CTHW = np.array([1, 10]).reshape(2, 1, 1, 1)
    y_CTHW = output("Conv", x_CTHW, np.array([[2, 3, 4], [5, 6, 7]]).reshape(1, 1, 2, 3), hasBias=False)
    assert y_CTHW.ravel().tolist() == [52, 63, 74]


@pytest.mark.parametrize(("side", "expected"), [(4, [[-6, -5], [-2, -1]]), (5, [[-13, -11], [-3, -1]])])
def test_a_pad_at_bottom_and_right_never_wins_a_maximum(side, expected):
    x = np.arange(-side * side, 0).reshape(side, side)
    block = {"method": "max", "poolSize": (3, 3), "stride": (2, 2), "pad": (0, 1, 0, 1)}
    assert output("Pooling", x, **block).tolist() == [[expected]]


def test_an_average_is_divided_by_the_part_inside_the_picture():
    y_CTHW = output("Pooling", [[1, 2], [3, 6]], method="avg", poolSize=(2, 2), stride=(1, 1), pad=(0, 1, 0, 0))
    assert y_CTHW.tolist() == [[[[3.0], [4.5]]]]


def test_a_normalisation_divides_by_sigma_and_by_nothing_else():
    y_CTHW = output("BatchNorm", np.array([5, 7]).reshape(2, 1, 1, 1), [[3], [2]], [[1], [-1]], [[1, 2], [6, 0.25]])
    assert y_CTHW.ravel().tolist() == [7.0, 7.0]


def test_a_temporal_convolution_meets_zeros_before_and_after_the_clip():
    taps = np.array([2, 3, 5]).reshape(1, 3, 1, 1)
    y_CTHW = output("ConvTime", along_time(1, 10, 100), taps, [[7]], hasBias=True, pad=(0, 0, 1, 1), stride=(1, 1))
    assert y_CTHW.ravel().tolist() == [60, 539, 327]


@pytest.mark.parametrize(("length", "expected"), [(5, [5, 9]), (np.inf, [9])])
def test_a_temporal_pooling_takes_the_maximum_of_each_window(length, expected):
    x_CTHW = along_time(5, 1, 2, 4, 3, 9)
    assert output("PoolTime", x_CTHW, method="max", poolSize=(1, length)).ravel().tolist() == expected


def test_positions_stay_apart_along_time():
    x_CTHW = np.random.default_rng(0).normal(size=(2, 6, 3, 4))
    y_CTHW = output("PoolTime", x_CTHW, method="max", poolSize=(1, 5))
    assert np.array_equal(y_CTHW[:, 1], x_CTHW[:, 1:6].max(axis=1))


def test_a_mirror_image_negates_u_and_only_flips_v():
    kernel = np.zeros((1, 2, 2, 2), np.float32)
    kernel[0, 0] = np.eye(2)  # the scores are u and v in the left column
    conv = Layer("fc", "dagnn.Conv", ("input",), ("fc",), ("f",), {"hasBias": False})
    loss = Layer("loss", "dagnn.Loss", ("fc", "label"), ("objective",), (), {"loss": "softmaxlog"})
    meta = {"normalization": {"averageImage": np.full((1, 1, 2), 128.0)}}
    tiny = Net((loss, conv), (Param("f", kernel, 1, 1),), ("input", "fc", "label", "objective"), meta)
    flow_THWC = np.array([[10, 30], [20, 40]], np.uint8).reshape(1, 1, 2, 2)
    assert stream_scores(tiny, flow_THWC, kind="motion", mirror=False).tolist() == [10 - 128, 30 - 128]
    mirrored = [255 - 20 - 128, 40 - 128]
    expected = np.mean([[10 - 128, 30 - 128], mirrored], axis=0)
    assert stream_scores(tiny, flow_THWC, kind="motion").tolist() == expected.tolist()


# --- Nets -------------------------------------------------------------------------------------------------------------


def test_a_net_of_50_layers_has_175_of_matconvnets_and_ends_its_first_152_with_res5ax():
    layers = imagenet_net().layers
    assert len(layers) == 175
    assert (layers[0].inputs, layers[151].outputs, layers[-1].outputs) == (("data",), ("res5ax",), ("prob",))


def test_the_dropout_of_the_motion_stream_stands_behind_its_reader():
    names = [layer.name for layer in motion_base().layers]
    assert names[-5:] == ["fc1000", "drop_pool5", "loss_fc1000", "top1error", "top5error"]


def test_the_final_net_gates_the_sum_before_the_relu_and_reads_the_gate_once():
    layers = {layer.name: layer for layer in net().layers}
    kinds = Counter(layer.type for layer in net().layers)
    assert (kinds["dagnn.Mul"], kinds["dagnn.ConvTime"], kinds["dagnn.PoolTime"]) == (4, 8, 2)
    assert layers["res3a_relu_spatial_sum"].inputs == ("res3ax_temporal", "res3a_spatial")
    readers = [layer.name for layer in net().layers if "res3a_relu_spatial_sum" in layer.inputs]
    assert readers == ["res3b_branch2a_spatial"]
    assert layers["res3b_spatial"].inputs == ("res3ax_spatial", "res3b_branch2cx_spatial")
    assert layers["res3b_branch2c_spatial"].inputs == ("res3b_branch2b_relu_spatial_Time",)
    assert layers["pool5_temporal"].inputs == ("res5c_relu_pool_temporal1",)
    assert (layers["prediction_spatial"].type, layers["prediction_temporal"].type) == ("dagnn.Conv", "dagnn.DropOut")
    assert [layer.outputs for layer in net().layers[-2:]] == [("error",), ("error",)]
    assert final().meta["normalization"]["averageImage"].ravel()[:20].tolist() == [128] * 20


def test_the_deeper_nets_name_the_units_of_their_long_stages_by_numbers():
    names = {layer.name for layer in final(depth_appearance=101).layers}
    assert {"res3b3_spatial", "res4b22_spatial", "res5c_spatial", "res4b1_branch2b_relu_spatial_Time"} <= names
    assert not {"res3b_spatial", "res4b23_spatial", "res4b1_temporal"} & names


def test_moments_are_far_from_one_and_some_channels_are_dead():
    sigma = np.concatenate([param.value[:, 1] for param in net().params if "_moments" in param.name])
    dead = np.isclose(sigma, SIGMA_OF_DEAD)
    assert 0.02 < dead.mean() < 0.1
    assert np.abs(np.log(sigma[~dead])).min() > 0.2


def test_the_sums_that_are_gated_have_both_signs():
    rgb, flow = (frames[:2, :64, :64].transpose(3, 0, 1, 2) - 120.0 for frames in (RGB, FLOW))
    wanted = [f"res{stage}a_spatial" for stage in range(2, 6)]
    sums = evaluate(net(), {"input": rgb, "input_flow": flow}, wanted)
    assert all(0.2 < (sums[var] > 0).mean() < 0.8 for var in wanted)


def test_temporal_filters_without_noise_are_the_identity():
    params = {param.name: param.value for param in final(temporal_noise=0).params}
    taps = params["res2b_branch2b_relu_temporal_Time_f"]
    assert np.array_equal(taps[0], [np.zeros((4, 4)), np.eye(4), np.zeros((4, 4))])
    assert not params["res2b_branch2b_relu_temporal_Time_b"].any()


def test_the_order_of_layers_and_parameters_does_not_matter():
    turned = replace(net(), layers=net().layers[::-1], params=net().params[::-1])
    assert np.array_equal(np.mean(scores(turned, RGB, FLOW, mirror=False), axis=0), right(False))


def test_the_motion_stream_does_not_see_appearance():
    _, motion = scores(net(), RGB, FLOW, mirror=False)
    assert np.array_equal(scores(net(), 255 - RGB, FLOW, mirror=False)[1], motion)


@pytest.mark.parametrize(("base", "frames"), [(imagenet_net, RGB), (appearance_base, RGB), (motion_base, FLOW)])
def test_a_single_stream_is_scored_frame_by_frame(base, frames):
    kind = "motion" if base is motion_base else "appearance"
    single = base(stack=3) if base is motion_base else base()
    together = stream_scores(single, frames[:2], kind=kind)
    apart = np.mean([stream_scores(single, frames[i : i + 1], kind=kind) for i in range(2)], axis=0)
    assert together.shape == (6,)
    assert np.allclose(together, apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wrong", WRONG)
def test_every_misreading_changes_the_fused_scores(wrong):
    mirror = wrong == "v mirrored too"
    changed = np.mean(scores(net(), RGB, FLOW, mirror=mirror, wrong=wrong), axis=0)
    assert np.abs(changed - right(mirror)).max() > 1e-2 * np.abs(right(mirror)).max()


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v5", "v7"])
def test_scipy_reads_the_stated_fields(version, tmp_path):
    write(tmp_path / "net.mat", head(), version=version, extras=True)
    variables = scipy.io.loadmat(tmp_path / "net.mat", squeeze_me=True, struct_as_record=False)
    assert {"net", "state", "stats", "opts"} <= variables.keys()
    saved = variables["net"]
    assert set(saved._fieldnames) == {"vars", "params", "layers", "meta"}
    conv, total = saved.layers[0], next(layer for layer in saved.layers if layer.name == "res2a_spatial")
    assert (conv.name, conv.type, conv.inputs) == ("conv1_spatial", "dagnn.Conv", "input")
    assert conv.block.pad.dtype == np.uint8
    assert total.inputs.tolist() == ["res2a_branch1x_spatial", "res2a_branch2cx_spatial"]
    assert total.params.size == 0
    assert (saved.params[0].name, saved.params[0].value.shape) == ("conv1_filter_spatial", (7, 7, 3, 4))
    assert np.array_equal(saved.params[0].value, head().params[0].value)
    assert isinstance(variables["opts"].getBatch, scipy.io.matlab.MatlabFunction)


def test_names_and_shapes_are_written_as_asked(tmp_path):
    def layers_and_value(**how: object) -> tuple[np.ndarray, np.ndarray]:
        write(tmp_path / "net.mat", head(), wrapped=False, **how)
        variables = scipy.io.loadmat(tmp_path / "net.mat")
        (conv,) = (param for param in variables["params"][0] if param["name"] == "res2a_branch2c_filter_spatial")
        return {layer["name"].item(): layer for layer in variables["layers"][0]}, conv["value"]

    layers, value = layers_and_value()
    assert layers["conv1_spatial"]["inputs"].dtype == object
    assert layers["res2a_spatial"]["block"].dtype.names == ("pickTemporalCentre",)
    assert value.shape == (1, 1, 4, 16)
    layers, value = layers_and_value(names="strings", squeezed=True, blocks="old", order="shuffled")
    assert layers["conv1_spatial"]["inputs"].tolist() == ["input"]
    assert layers["conv1_spatial"]["params"].shape == (1, 2)
    assert layers["res2a_spatial"]["block"].dtype.names is None
    assert not {"dilate", "freeze"} & set(layers["conv1_spatial"]["block"].dtype.names)
    assert value.shape == (4, 16)
    assert next(iter(layers)) != "conv1_spatial"


def test_hdf5_holds_reversed_axes_and_references(tmp_path):
    write(tmp_path / "net.mat", head(), version="v7.3", extras=True)
    assert (tmp_path / "net.mat").read_bytes()[:19] == b"MATLAB 7.3 MAT-file"
    with h5py.File(tmp_path / "net.mat") as file:
        assert file.userblock_size == 512
        assert set(file) == {"#refs#", "net", "state", "stats", "opts"}
        params, layers = file["net/params"], file["net/layers"]
        assert params["value"].shape == (len(head().params), 1)
        value = file[params["value"][0, 0]]
        assert value.attrs["MATLAB_class"] == b"single"
        assert np.array_equal(value[()].T, head().params[0].value)
        name, sources = file[layers["name"][0, 0]], file[layers["inputs"][0, 0]]
        assert (name.attrs["MATLAB_class"], sources.attrs["MATLAB_class"]) == (b"char", b"cell")
        assert bytes(name[()].astype(np.uint8)) == b"conv1_spatial"
        assert bytes(file[sources[0, 0]][()].astype(np.uint8)) == b"input"
        assert file[layers["params"][2, 0]].attrs["MATLAB_empty"] == 1
