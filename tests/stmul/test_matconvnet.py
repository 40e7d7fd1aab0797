"""The authors' networks, read from their files, score clips as an exact evaluation of the stored graphs does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from stmul.config import UNITS_B, TemporalFilters
from stmul.dagnn import read_graph
from stmul.errors import WeightsError
from stmul.evaluate import clip_scores
from stmul.matconvnet import from_base, join_streams, load_network, load_stream, origin_of
from stmul.network import TwoStream
from tests.stmul.matconvnet_files import Layer, Net, Param, appearance_base, final, imagenet_net, motion_base, write
from tests.stmul.matconvnet_nets import pictures
from tests.stmul.matconvnet_scores import WRONG, Array, scores, stream_scores

CLOSE = 1e-4  # of the largest score
STREAMS = ("spatial", "temporal")
# The smallest clip that shows all: final maps of 7x8, two outputs in time, even maps before the first pooling.
RGB, FLOW = pictures(1, 6, 196, 228, 3), pictures(2, 6, 196, 228, 6)


@cache
def net() -> Net:
    return final(stack=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a net into a folder of its own."""

    def save(one: Net, name: str = "net.mat", **how: object) -> Path:
        path = tmp_path_factory.mktemp("nets") / name
        write(path, one, **how)
        return path

    return save


@pytest.fixture(scope="module")
def imported(saved: Callable[..., Path]) -> TwoStream:
    return load_network(saved(net()))


def distance(network: TwoStream, exact: tuple[Array, Array], rgb: object, flow: object, *, mirror: bool) -> float:
    """The largest error of both heads and of their mean, over the largest score."""
    found = [head.double().numpy() for head in clip_scores(network, rgb, flow, mirror=mirror)]
    pairs = zip([*found, np.mean(found, axis=0)], [*exact, np.mean(exact, axis=0)], strict=True)
    return max(float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs)


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


# --- Exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instants", "height", "width", "mirror", "kind", "stack"),
    [
        (6, 224, 256, True, "uint8", 10),
        (6, 256, 224, False, "float32", 3),
        (25, 224, 224, False, "float64", 2),
        (3, 196, 228, True, "uint8", 3),
    ],
)
def test_scores_are_those_of_the_stored_graph(saved, instants, height, width, mirror, kind, stack):
    whole = final(seed=instants, stack=stack)
    if instants < 5:  # MatConvNet has no window of five then; here it shrinks
        pools = [
            replace(one, block={**one.block, "poolSize": (1, 3)}) for one in whole.layers if "PoolTime" in one.type
        ]
        whole, stored = with_layers(whole, *pools), whole
    else:
        stored = whole
    draws = np.random.default_rng(0)
    rgb, flow = pictures(3, instants, height, width, 3), pictures(4, instants, height, width, 2 * stack)
    if kind != "uint8":
        rgb, flow = (np.clip(one + draws.uniform(-3, 3, one.shape), 0, 255).astype(kind) for one in (rgb, flow))
    exact = scores(whole, rgb, flow, mirror=mirror)
    assert distance(load_network(saved(stored)), exact, torch.as_tensor(rgb), flow, mirror=mirror) < CLOSE


@pytest.mark.parametrize(("appearance", "motion"), [(50, 101), (152, 50)])
def test_deeper_streams_score_as_stored_too(saved, appearance, motion):
    deep = final(depth_appearance=appearance, depth_motion=motion, stack=3)
    network = load_network(saved(deep))
    assert (network.settings.appearance.depth, network.settings.motion.depth) == (appearance, motion)
    assert distance(network, scores(deep, RGB, FLOW, mirror=False), RGB, FLOW, mirror=False) < CLOSE


@pytest.mark.parametrize("wrong", WRONG)
def test_every_misreading_would_show(imported, wrong):
    mirror = wrong == "v mirrored too"
    assert distance(imported, scores(net(), RGB, FLOW, mirror=mirror, wrong=wrong), RGB, FLOW, mirror=mirror) > 1e-2


def test_the_settings_are_the_papers(imported):
    settings = imported.settings
    assert (settings.operator, settings.direction, settings.gated) == ("multiply", "motion_to_appearance", UNITS_B)
    assert settings.temporal == TemporalFilters()
    assert (settings.temporal_window, settings.temporal_stride) == (5, 1)
    assert (settings.stride_on, settings.pooling) == ("1x1", "caffe")
    assert (settings.appearance.dropout, settings.motion.dropout) == (0.0, 0.8)
    assert (imported.appearance.pool, imported.motion.channels, imported.appearance.classes) == (7, 6, 6)
    assert not imported.training


# --- Formats ----------------------------------------------------------------------------------------------------------

BARE = {"wrapped": False, "names": "strings", "squeezed": True, "blocks": "old", "order": "shuffled"}


@pytest.mark.parametrize(
    "how",
    [
        {"version": "v5", "extras": True},
        {"version": "v7.3", "extras": True},
        {"wrapped": False, "extras": True},
        {"names": "strings"},
        {"squeezed": True},
        {"blocks": "old"},
        {"order": "shuffled"},
        {"version": "v5", **BARE},
    ],
    ids=lambda how: " ".join(map(str, how.values())),
)
def test_every_way_of_saving_gives_the_same_network(saved, imported, how):
    network = load_network(saved(net(), **how))
    assert network.settings == imported.settings
    assert same(network, imported)


def test_a_bare_file_of_hdf5_gives_the_same_graph(saved):
    start = replace(net(), layers=net().layers[:30], params=net().params[:30])  # HDF5 takes its time
    bare, plain = read_graph(saved(start, version="v7.3", **BARE)), read_graph(saved(start))
    assert {one.name: one.inputs for one in bare.layers} == {one.name: one.inputs for one in plain.layers}
    assert bare.params.keys() == plain.params.keys()
    assert all(np.array_equal(bare.params[name].squeeze(), plain.params[name].squeeze()) for name in plain.params)
    assert not {"dilate", "freeze"} & {field for one in bare.layers for field in one.block}


@pytest.mark.parametrize("shape", [(1, 1, 9), (5, 7, 9), (9, 1), (1, 9)])
def test_means_come_as_a_picture_a_pixel_or_a_list(saved, imported, shape):
    levels = np.arange(9) + np.array([128.0] * 6 + [100.0] * 3)
    slope = np.linspace(-3, 3, shape[0]) if shape[0] == 5 else np.zeros(shape[0])
    image = levels.reshape(shape) if len(shape) < 3 else slope[:, None, None] + np.zeros(shape[:2])[..., None] + levels
    network = load_network(saved(with_meta(net(), averageImage=image)))
    assert torch.allclose(network.motion.mean, torch.tensor(levels[:6]).float())
    assert torch.allclose(network.appearance.mean, torch.tensor(levels[6:]).float())


def test_class_names_are_taken_where_they_are_the_classifiers(saved, imported):
    assert imported.class_names == ()  # the file has ImageNet's
    names = ["Archery", "Biking", "Diving", "Fencing", "Rowing", "TaiChi"]
    base = appearance_base()
    stream = load_stream(saved(replace(base, meta={**base.meta, "classes": {"name": names}})))
    assert stream.class_names == tuple(names)
    assert join_streams(stream, load_stream(saved(motion_base()))).class_names == tuple(names)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v5", "v7", "v7.3"])
def test_the_full_network_is_read_in_ten_seconds_and_two_gigabytes(tmp_path, monkeypatch, version):
    monkeypatch.setattr("tests.stmul.matconvnet_nets._calibrated", lambda one, seed: one)  # minutes at this size
    path = tmp_path / "ucf101-ST-ResNet50-split=1.mat"
    write(path, final(width=64, classes=101), version=version)
    script = """
import resource, sys, time
from stmul.matconvnet import load_network
started = time.monotonic()
network = load_network(sys.argv[1])
spent_s, peak_mib = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(spent_s, peak_mib, sum(one.numel() for one in network.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
    spent_s, peak_mib, parameters = map(float, done.stdout.split())
    print(f"{version}: {path.stat().st_size / 2**20:.0f} MiB read in {spent_s:.1f} s, peak {peak_mib:.0f} MiB")
    assert parameters > 49e6
    assert spent_s < 10
    assert peak_mib < 2048


# --- Base networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["appearance", "motion", "imagenet"])
@pytest.mark.parametrize("depth", [50, 101])
def test_a_single_stream_scores_frame_by_frame_as_stored(saved, kind, depth):
    made = {"appearance": appearance_base, "motion": motion_base, "imagenet": imagenet_net}[kind]
    base = made(depth=depth, stack=3) if kind == "motion" else made(depth=depth)
    frames = FLOW[:2] if kind == "motion" else RGB[:2]
    mirrored = frames[:, :, ::-1].copy()
    if kind == "motion":
        mirrored[..., ::2] = 255 - mirrored[..., ::2]
    stream = load_stream(saved(base))
    both = torch.from_numpy(np.stack([*frames, *mirrored])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        found = stream(both[None]).mean((0, 2, 3, 4)).numpy()
    exact = stream_scores(base, frames, kind="motion" if kind == "motion" else "appearance")
    assert np.abs(found - exact).max() < CLOSE * np.abs(exact).max()


@pytest.fixture(scope="module")
def bases(saved) -> tuple[Path, Path]:
    return (
        saved(appearance_base(), "ucf101-img-resnet50-split1-dr0.mat"),
        saved(motion_base(), "ucf101-resnet50-split1-dr0.8.mat"),
    )


def test_two_base_networks_are_joined_as_the_released_script_joins_them(saved, bases):
    start = load_network(saved(composed(appearance_base(), motion_base())))
    joined = from_base(*bases)
    assert joined.settings == start.settings
    assert same(joined, start)
    assert same(joined, join_streams(*map(load_stream, bases)))
    assert not joined.training


def test_before_training_motion_gives_the_features_of_its_base(bases):
    joined, base = from_base(*bases).motion, load_stream(bases[1])
    frames = torch.from_numpy(pictures(5, 3, 96, 64, 20)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        x, y = joined.stem(frames[None]), torch.cat([base.stem(frame[None, None]) for frame in frames])
        for name in joined.units:
            x = joined.units[name](x, 3)
            y = torch.cat([base.units[name](one[None], 1) for one in y])
    assert torch.allclose(x, y, atol=1e-4, rtol=1e-4)
    assert base.settings.operator == "none"


@pytest.mark.parametrize(
    "changes",
    [
        {"operator": "add"},
        {"direction": "both"},
        {"gated": ("3c", "4f")},
        {"temporal": TemporalFilters(kind="inflated")},
        {"temporal_window": 3, "temporal_stride": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_base_networks_are_joined_in_other_ways_when_asked(bases, changes):
    settings = from_base(*bases, **changes).settings
    assert {name: getattr(settings, name) for name in changes} == changes


def test_what_cannot_be_joined_is_refused(saved, bases, imported):
    with pytest.raises(WeightsError, match="exchanged"):
        from_base(*bases[::-1])
    with pytest.raises(WeightsError, match="exchanged"):
        from_base(bases[0], bases[0])
    with pytest.raises(WeightsError, match="9z"):
        from_base(*bases, gated=("9z",))
    with pytest.raises(WeightsError, match="operatr"):
        from_base(*bases, operatr="add")
    with pytest.raises(WeightsError, match=r"6 classes.* 5"):
        from_base(bases[0], saved(motion_base(classes=5)))
    with pytest.raises(WeightsError, match=r"width 4.*width 8"):
        from_base(bases[0], saved(motion_base(width=8)))
    with pytest.raises(WeightsError, match="streams"):
        from_base(bases[0], saved(net()))
    with pytest.raises(WeightsError, match="stream"):
        load_network(bases[0])


@pytest.mark.parametrize("name", ["ucf101-resnet50-split2-dr0.8.mat", "hmdb51-resnet50-split1-dr0.8.mat", "hmdb51.mat"])
def test_base_networks_of_other_splits_or_data_sets_are_refused(bases, name, tmp_path):
    (tmp_path / name).write_bytes(bases[1].read_bytes())
    with pytest.raises(WeightsError, match=r"is of ucf101 split 1, .* of (ucf101 split 2|.*hmdb51)"):
        from_base(bases[0], tmp_path / name)


@pytest.mark.parametrize(
    ("name", "dataset", "split"),
    [
        ("ucf101-img-resnet50-split1-dr0.mat", "ucf101", 1),
        ("ucf101-resnet50-split1-dr0.8.mat", "ucf101", 1),
        ("ucf101-ST-ResNet50-split=1.mat", "ucf101", 1),
        ("hmdb51-img-resnet50-split3-dr0.mat", "hmdb51", 3),
        ("HMDB51-ST-ResNet50-split=2.mat", "hmdb51", 2),
        ("imagenet-resnet-50-dag.mat", "", 0),
        ("my-ucf101.mat", "", 0),
    ],
)
def test_file_names_tell_data_set_and_split(name, dataset, split):
    origin = origin_of(Path("nets") / name)
    assert (origin.dataset, origin.split) == (dataset, split)
    assert name in origin.source


# --- Other ways of joining: gates into motion and into both, ST-ResNet (STResNet_stage1.m) ----------------------------


@pytest.mark.parametrize("into", [("spatial",), ("temporal",), STREAMS], ids=["appearance", "motion", "both"])
@pytest.mark.parametrize("operator", ["Mul", "Sum"])
def test_streams_are_joined_in_the_stored_direction_by_the_stored_operator(saved, into, operator):
    other = gated(net(), into, operator)
    network = load_network(saved(other))
    names = {("spatial",): "motion_to_appearance", ("temporal",): "appearance_to_motion", STREAMS: "both"}
    assert network.settings.direction == names[into]
    assert network.settings.operator == {"Mul": "multiply", "Sum": "add"}[operator]
    assert distance(network, scores(other, RGB, FLOW, mirror=False), RGB, FLOW, mirror=False) < CLOSE


def test_streams_without_gates_are_read_as_such(saved):
    apart = gated(net(), (), "Mul")
    network = load_network(saved(apart))
    assert network.settings.operator == "none"
    assert distance(network, scores(apart, RGB, FLOW, mirror=False), RGB, FLOW, mirror=False) < CLOSE


def test_st_resnet_is_read_as_stored(saved):
    rgb, flow = (np.concatenate([one, one[:2] // 2]) for one in (RGB, FLOW))
    other = st_resnet()
    network = load_network(saved(other))
    assert (network.settings.operator, network.settings.temporal_stride) == ("add", 2)
    assert network.settings.temporal == TemporalFilters(kind="inflated", units=UNITS_B)
    exact = scores(other, rgb, flow, mirror=False)
    assert distance(network, exact, rgb, flow, mirror=False) < CLOSE
    filters = {name for layer in other.layers if layer.type == "dagnn.ConvTime" for name in layer.params}
    turned = replace(other, params=tuple(turn(one) if one.name in filters else one for one in other.params))
    assert distance(load_network(saved(turned)), exact, rgb, flow, mirror=False) > 1e-2


# --- Nets made of the oracle's ----------------------------------------------------------------------------------------


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


def st_resnet() -> Net:
    """Sums for gates, units b whose 1x1 convolutions look along time, no filters of their own, time in steps of two."""
    whole = gated(net(), ("spatial",), "Sum")
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
