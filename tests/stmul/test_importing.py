"""The command that imports MatConvNet networks: what it writes, what it calls it, what it refuses before writing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from stmul.__main__ import main
from stmul.checkpoint import load
from stmul.evaluate import clip_scores
from stmul.matconvnet import from_base, load_network, load_stream
from stmul.snapshot import load_snapshot
from tests.stmul.matconvnet_files import appearance_base, final, motion_base, write
from tests.stmul.matconvnet_scores import scores

APPEARANCE, MOTION = "ucf101-img-resnet50-split1-dr0.mat", "ucf101-resnet50-split1-dr0.8.mat"
FINAL = "ST-MulNet-img50-flow50-final.mat"


@pytest.fixture(scope="module")
def mat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mat")
    write(folder / APPEARANCE, appearance_base(width=4, classes=3))
    write(folder / MOTION, motion_base(width=4, classes=3, stack=4))
    write(folder / FINAL, final(width=4, classes=3, stack=4))
    return folder


def stmul(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output


def test_base_networks_get_names_that_training_looks_for(mat, tmp_path):
    out = stmul("import-matconvnet", mat / APPEARANCE, mat / MOTION, "-o", tmp_path / "bases")
    assert "trained on ucf101 split 1" in out
    names = {path.name for path in (tmp_path / "bases").iterdir()}
    assert names == {"ucf101-split1-appearance.safetensors", "ucf101-split1-motion.safetensors"}
    again = stmul("import-matconvnet", mat / APPEARANCE, "-o", tmp_path / "bases", code=1)
    assert "--overwrite" in again
    stmul("import-matconvnet", mat / APPEARANCE, "-o", tmp_path / "bases", "--overwrite")


def test_two_base_networks_for_one_file_are_joined(mat, tmp_path):
    out = stmul("import-matconvnet", mat / MOTION, mat / APPEARANCE, "-o", tmp_path / "joined.safetensors")
    assert "multiply in 2b, 3b, 4b, 5b" in out
    network, about = load_snapshot(tmp_path / "joined.safetensors")
    expected = from_base(mat / APPEARANCE, mat / MOTION).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    assert about.origin.trained_on == "ucf101 split 1"


def test_a_final_network_is_tested_on_shards_of_its_split(mat, tmp_path, make_split, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_split(tmp_path / "split1", train=4, test=3, width=256, height=232, frames=14)
    told = ["--shards", "split1"]
    stmul("import-matconvnet", mat / FINAL, "-o", "official.safetensors", *told)
    network, about = load_snapshot(tmp_path / "official.safetensors")
    assert about.class_names == ("class0", "class1", "class2")
    assert torch.equal(network.motion.conv1.weight, load_network(mat / FINAL).motion.conv1.weight)
    quick = ["--set", "evaluate={frames: 2, mirror: false}", "--set", "data.shards=split1", "-u", "0"]
    out = stmul("test", "-i", "official.safetensors", *quick)
    assert "3 of 3 clips" in out
    assert json.loads(next((tmp_path / "experiment/official/results").glob("*.json")).read_text())["expected"] == 3
    assert (tmp_path / "experiment/official/report.html").exists()
    # Straight from the authors' file too, whose classes and split nobody has told.
    out = stmul("test", "-i", mat / FINAL, *quick)
    assert "an unknown data set: it may have seen the clips tested here" in out
    assert "names no classes" in out


def test_a_network_of_another_split_is_not_tested_unless_told(mat, tmp_path, make_split, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_split(tmp_path / "split1", train=4, test=3, width=256, height=232, frames=14)
    stmul("import-matconvnet", mat / FINAL, "-o", "official.safetensors", "--dataset", "ucf101", "--split", "2")
    words = [
        "test",
        "-i",
        "official.safetensors",
        "--set",
        "data.shards=split1",
        "--set",
        "evaluate.frames=1",
        "-u",
        "0",
    ]
    out = stmul(*words, code=1)
    assert "trained on ucf101 split 2 and may have seen these clips" in out
    assert "3 of 3" in stmul(*words, "--set", "experiment.other_split=true")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{m}/none.mat", "-o", "{t}/out"], "none.mat: no such file"),
        ([f"{{m}}/{APPEARANCE}", "{m}/none.mat", "-o", "{t}/out"], "none.mat: no such file"),
        ([f"{{m}}/{APPEARANCE}", "-o", "{t}/out", "--split", "2"], "its name says split 1, you say 2"),
        ([f"{{m}}/{APPEARANCE}", f"{{m}}/{FINAL}", "-o", "{t}/out.safetensors"], "Give a folder instead"),
        ([f"{{m}}/{MOTION}", f"{{m}}/{MOTION}", "-o", "{t}/out"], "is there already"),
    ],
)
def test_what_cannot_be_imported_is_refused_before_anything_is_written(mat, tmp_path, words, expected):
    out = stmul("import-matconvnet", *(word.format(m=mat, t=tmp_path) for word in words), code=1)
    assert expected in out
    assert not list(tmp_path.iterdir())


def test_the_example_in_the_documents_runs(mat, tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "weights.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(mat)
    clip = {"rgb_THWC": np.zeros((6, 224, 224, 3), np.uint8), "flow_THWC": np.full((6, 224, 224, 8), 128, np.uint8)}
    names: dict[str, object] = dict(clip)
    exec(compile(code, str(page), "exec"), names)
    assert names["fused"].shape == (3,)


def test_streams_may_filter_over_time_in_other_units(tmp_path):
    """STMulNet.m looks for `b_branch2b`: in a ResNet-152 that is in 2b and 5b, for 3b is called 3b1 there."""
    net = final(width=4, classes=3, stack=4, depth_motion=152)
    missed = {f"res{unit}_branch2b_relu_temporal_Time" for unit in ("3b1", "4b1")}
    left_out = [layer for layer in net.layers if layer.name in missed]
    assert len(left_out) == 2
    replaced = {layer.outputs[0]: layer.inputs[0] for layer in left_out}
    layers = tuple(
        replace(layer, inputs=tuple(replaced.get(name, name) for name in layer.inputs))
        for layer in net.layers
        if layer not in left_out
    )
    names = {name for layer in left_out for name in layer.params}
    odd = replace(net, layers=layers, params=tuple(param for param in net.params if param.name not in names))
    write(tmp_path / "img50-flow152.mat", odd)
    network = load_network(tmp_path / "img50-flow152.mat")
    assert network.settings.temporal.units == ("2b", "3b", "4b", "5b")
    assert network.settings.motion.temporal_units == ("2b", "5b")
    draws = np.random.default_rng(1)
    rgb, flow = (draws.integers(0, 256, (6, 196, 228, channels), np.uint8) for channels in (3, 8))
    found = clip_scores(network, rgb, flow)
    for one, other in zip(found, scores(odd, rgb, flow), strict=True):
        assert np.abs(one.numpy() - other).max() <= 1e-4 * np.abs(other).max()


def test_the_joint_network_is_trained_from_the_authors_files_as_they_are(mat, tmp_path, make_split, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_split(tmp_path / "split1", train=4, test=2, width=64, height=48, frames=14)
    bases = tmp_path / "experiment" / "base_pretrained_nets"
    bases.mkdir(parents=True)
    for name in (APPEARANCE, MOTION):
        (bases / name).write_bytes((mat / name).read_bytes())
    settings = [
        "network={appearance: {depth: 50, width: 4}, motion: {depth: 50, width: 4}}",
        "data={shards: split1, crop: 32, frames: 2, stack: 4, stride: [2, 4], threads: 1}",
        # Dead channels, whose sigma is that of eps alone, have gradients 300 times as large in each layer.
        "train={batch: 4, sub_batch: 4, joint: {epochs: 1, rates: [1e-9]}}",
        "evaluate.frames=2",
        "experiment.other_split=true",
    ]
    words = [word for setting in settings for word in ("--set", setting)]
    out = stmul("train", *words, "-u", "0")
    assert f"{APPEARANCE} and experiment/base_pretrained_nets/{MOTION}" in out
    assert "as the starting weights were made: stride_on 1x1, pooling caffe" in out
    assert "2 of 2 clips" in stmul("test")
    (checkpoint,) = (tmp_path / "experiment").glob("*/joint/epoch-0001.pt")
    state = load(checkpoint).network
    assert torch.allclose(state["appearance.mean"], load_stream(mat / APPEARANCE).mean)
    assert not torch.equal(state["appearance.conv1.weight"], load_stream(mat / APPEARANCE).conv1.weight)
