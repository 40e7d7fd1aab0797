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
from stmul.matconvnet import from_base, join_streams, load_either, load_network, load_stream, origin_of
from stmul.network import TwoStream
from stmul.resnet import Stream
from tests.stmul.matconvnet_files import Net, appearance_base, final, imagenet_net, motion_base, write
from tests.stmul.matconvnet_nets import pictures
from tests.stmul.matconvnet_scores import WRONG, Array, scores, stream_scores
from tests.stmul.matconvnet_variants import (
    STREAMS,
    as_read,
    composed,
    gated,
    st_resnet,
    turn,
    with_layers,
    with_meta,
)

CLOSE = 1e-4  # of the largest score
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


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Net], TwoStream | Stream]:
    """Reads a net as from its file, which another test writes."""

    def load(one: Net) -> TwoStream | Stream:
        with monkeypatch.context() as patch:
            patch.setattr("stmul.dagnn.graph.read_variables", lambda path, names, unread: as_read(one))
            return load_either("net.mat")

    return load


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
        (6, 196, 228, True, "uint8", 10),
        (25, 196, 196, False, "float64", 2),
        (3, 228, 196, False, "float32", 3),
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


@pytest.mark.parametrize(("appearance", "motion"), [(50, 101), pytest.param(152, 50, marks=pytest.mark.slow)])
def test_deeper_streams_score_as_stored_too(loaded, appearance, motion):
    deep = final(depth_appearance=appearance, depth_motion=motion, stack=3)
    network = loaded(deep)
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
        {"wrapped": False, "extras": True},
        {"version": "v5", **BARE},
        pytest.param({"version": "v7.3", "extras": True}, marks=pytest.mark.slow),
        pytest.param({"version": "v7.3", **BARE}, marks=pytest.mark.slow),
    ],
    ids=lambda how: " ".join(map(str, how.values())),
)
def test_every_way_of_saving_gives_the_same_network(saved, imported, how):
    network = load_network(saved(net(), **how))
    assert network.settings == imported.settings
    assert same(network, imported)


@pytest.mark.parametrize(
    "how",
    [
        {"names": "strings", "order": "shuffled"},
        {"squeezed": True, "blocks": "old"},
        {"version": "v7.3", "extras": True},
    ],
    ids=lambda how: " ".join(map(str, how.values())),
)
def test_every_way_of_saving_gives_the_same_stream(saved, streams, how):
    stream = load_stream(saved(motion_base(), **how))
    assert stream.own == streams[1].own
    assert same(stream, streams[1])


def test_a_bare_file_of_hdf5_gives_the_same_graph(saved):
    start = replace(net(), layers=net().layers[:30], params=net().params[:30])  # HDF5 takes its time
    bare, plain = read_graph(saved(start, version="v7.3", **BARE)), read_graph(saved(start))
    assert {one.name: one.inputs for one in bare.layers} == {one.name: one.inputs for one in plain.layers}
    assert bare.params.keys() == plain.params.keys()
    assert all(np.array_equal(bare.params[name].squeeze(), plain.params[name].squeeze()) for name in plain.params)
    assert not {"dilate", "freeze"} & {field for one in bare.layers for field in one.block}


def test_the_means_of_motion_come_first(imported):
    levels = torch.from_numpy(net().meta["normalization"]["averageImage"].ravel()).float()
    assert torch.equal(torch.cat([imported.motion.mean, imported.appearance.mean]), levels)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 7, 3), (3, 1), (1, 3)])
def test_means_come_as_a_picture_a_pixel_or_a_list(loaded, shape):
    levels = np.array([120.5, 110, 90])
    slope = np.linspace(-3, 3, shape[0]) if shape[0] == 5 else np.zeros(shape[0])
    image = levels.reshape(shape) if len(shape) < 3 else slope[:, None, None] + np.zeros(shape[:2])[..., None] + levels
    stream = loaded(with_meta(appearance_base(), averageImage=image))
    assert torch.allclose(stream.mean, torch.tensor(levels).float())


def test_class_names_are_taken_where_they_are_the_classifiers(saved, streams, imported):
    assert imported.class_names == ()  # the file has ImageNet's
    names = ["Archery", "Biking", "Diving", "Fencing", "Rowing", "TaiChi"]
    base = appearance_base()
    stream = load_stream(saved(replace(base, meta={**base.meta, "classes": {"name": names}})))
    assert stream.class_names == tuple(names)
    assert join_streams(stream, streams[1]).class_names == tuple(names)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v5", "v7", "v7.3"])
def test_the_full_network_is_read_in_ten_seconds_and_two_gigabytes(tmp_path, monkeypatch, version):
    monkeypatch.setattr("tests.stmul.matconvnet_nets._calibrated", lambda one, seed: one)  # minutes at this size
    path = tmp_path / "ucf101-ST-ResNet50-split=1.mat"
    write(path, final(width=64, classes=101), version=version)
    script = """
import resource, sys, time
from stmul.matconvnet import load_network
started = time.process_time()
network = load_network(sys.argv[1])
spent_s, peak_mib = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(spent_s, peak_mib, sum(one.numel() for one in network.parameters()))
"""
    done = subprocess.run([sys.executable, "-c", script, path], check=True, capture_output=True, text=True)
    spent_s, peak_mib, parameters = map(float, done.stdout.split())
    print(f"{version}: {path.stat().st_size / 2**20:.0f} MiB read in {spent_s:.1f} s, peak {peak_mib:.0f} MiB")
    assert parameters > 49e6
    assert spent_s < 10
    assert peak_mib < 2048


# --- Base networks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "depth"), [("appearance", 50), ("motion", 50), ("imagenet", 50), ("motion", 101)])
def test_a_single_stream_scores_frame_by_frame_as_stored(loaded, kind, depth):
    made = {"appearance": appearance_base, "motion": motion_base, "imagenet": imagenet_net}[kind]
    base = made(depth=depth, stack=3) if kind == "motion" else made(depth=depth)
    frames = FLOW[:2] if kind == "motion" else RGB[:2]
    mirrored = frames[:, :, ::-1].copy()
    if kind == "motion":
        mirrored[..., ::2] = 255 - mirrored[..., ::2]
    stream = loaded(base)
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


@pytest.fixture(scope="module")
def streams(bases) -> tuple[Stream, Stream]:
    return load_stream(bases[0]), load_stream(bases[1])


def test_two_base_networks_are_joined_as_the_released_script_joins_them(loaded, bases, streams):
    joined = from_base(*bases)
    start = loaded(composed(appearance_base(), motion_base()))
    assert joined.settings == start.settings
    assert same(joined, start)
    assert same(joined, join_streams(*streams))
    assert not joined.training


def test_before_training_motion_gives_the_features_of_its_base(streams):
    joined, base = join_streams(*streams).motion, streams[1]
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
def test_base_networks_are_joined_in_other_ways_when_asked(streams, changes):
    settings = join_streams(*streams, **changes).settings
    assert {name: getattr(settings, name) for name in changes} == changes


def test_what_cannot_be_joined_is_refused(saved, bases, streams, loaded):
    with pytest.raises(WeightsError, match="exchanged"):
        from_base(*bases[::-1])
    with pytest.raises(WeightsError, match="exchanged"):
        join_streams(streams[0], streams[0])
    with pytest.raises(WeightsError, match="9z"):
        join_streams(*streams, gated=("9z",))
    with pytest.raises(WeightsError, match="operatr"):
        join_streams(*streams, operatr="add")
    with pytest.raises(WeightsError, match=r"6 classes.* 5"):
        join_streams(streams[0], loaded(motion_base(classes=5)))
    with pytest.raises(WeightsError, match=r"width 4.*width 8"):
        join_streams(streams[0], loaded(motion_base(width=8)))
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


@pytest.mark.parametrize(
    ("into", "operator"),
    [(("spatial",), "Sum"), (("temporal",), "Mul"), (STREAMS, "Mul"), (STREAMS, "Sum")],
    ids=["appearance sum", "motion product", "both products", "both sums"],
)
def test_streams_are_joined_in_the_stored_direction_by_the_stored_operator(loaded, into, operator):
    other = gated(net(), into, operator)
    network = loaded(other)
    names = {("spatial",): "motion_to_appearance", ("temporal",): "appearance_to_motion", STREAMS: "both"}
    assert network.settings.direction == names[into]
    assert network.settings.operator == {"Mul": "multiply", "Sum": "add"}[operator]
    assert distance(network, scores(other, RGB, FLOW, mirror=False), RGB, FLOW, mirror=False) < CLOSE


def test_streams_without_gates_are_read_as_such(loaded):
    apart = gated(net(), (), "Mul")
    network = loaded(apart)
    assert network.settings.operator == "none"
    assert distance(network, scores(apart, RGB, FLOW, mirror=False), RGB, FLOW, mirror=False) < CLOSE


def test_st_resnet_is_read_as_stored(saved, loaded):
    rgb, flow = (np.concatenate([one, one[:2] // 2]) for one in (RGB, FLOW))
    other = st_resnet(net())
    network = load_network(saved(other))
    assert (network.settings.operator, network.settings.temporal_stride) == ("add", 2)
    assert network.settings.temporal == TemporalFilters(kind="inflated", units=UNITS_B)
    exact = scores(other, rgb, flow, mirror=False)
    assert distance(network, exact, rgb, flow, mirror=False) < CLOSE
    filters = {name for layer in other.layers if layer.type == "dagnn.ConvTime" for name in layer.params}
    turned = replace(other, params=tuple(turn(one) if one.name in filters else one for one in other.params))
    assert distance(loaded(turned), exact, rgb, flow, mirror=False) > 1e-2
