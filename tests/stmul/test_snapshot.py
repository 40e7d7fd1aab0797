"""A network in one file comes back as it was, and anything else than such a file is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shards.errors import ShardError
from stmul.config import Network, StreamNetwork, TemporalFilters
from stmul.errors import WeightsError
from stmul.evaluate import clip_scores
from stmul.network import TwoStream, single
from stmul.resnet import Stream
from stmul.snapshot import Origin, describe, load_snapshot, save_network

SETTINGS = Network(
    appearance=StreamNetwork(depth=50, width=4),
    motion=StreamNetwork(depth=50, width=4, dropout=0.8),
    stride_on="1x1",
    pooling="caffe",
    temporal_window=3,
)
ORIGIN = Origin(dataset="ucf101", split=2, source="a drawing")
NAMES = ("Archery", "Fencing", "Tai Chi", "平衡木", "")


@cache
def network(kind: str = "joint", changes: Network = SETTINGS) -> TwoStream | Stream:
    torch.manual_seed(7)
    sizes = {"stack": 3, "classes": 5, "pool": 2}
    made = TwoStream(changes, **sizes) if kind == "joint" else single(changes, kind, **sizes)
    for name, value in made.state_dict().items():
        if name.endswith("running_sigma"):
            value.uniform_(0.5, 2)
        elif not name.endswith("weight"):
            value.uniform_(-1, 1)
    made.class_names = NAMES
    return made.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("snapshots")

    def save(kind: str) -> Path:
        path = folder / "new" / f"{kind}.safetensors"
        if not path.exists():
            save_network(path, network(kind), ORIGIN)
        return path

    return save


@pytest.mark.parametrize("kind", ["joint", "appearance", "motion"])
def test_a_network_comes_back_bit_for_bit(saved, kind):
    found, about = load_snapshot(saved(kind))
    first = network(kind)
    assert type(found) is type(first)
    assert not found.training
    assert found.settings == SETTINGS == about.network
    assert found.class_names == NAMES == about.class_names
    assert (about.origin, about.kind, about.classes, about.pool) == (ORIGIN, kind, 5, 2)
    assert about.stack == (0 if kind == "appearance" else 3)
    assert about == describe(saved(kind))
    for (name, one), (other_name, other) in zip(first.state_dict().items(), found.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
    assert [one.requires_grad for one in first.parameters()] == [one.requires_grad for one in found.parameters()]


def test_scores_are_equal_bit_for_bit(saved):
    found, _ = load_snapshot(saved("joint"))
    draws = np.random.default_rng(0)
    clip = [draws.integers(0, 256, (4, 96, 64, channels), dtype=np.uint8) for channels in (3, 6)]
    for one, other in zip(clip_scores(network(), *clip), clip_scores(found, *clip), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"operator": "none", "motion": StreamNetwork(depth=18, width=8)},
        {"temporal": TemporalFilters(kind="inflated", units=("2c", "5c"))},
        {"temporal": TemporalFilters(units=())},
        {"direction": "both", "operator": "add", "temporal_stride": 2, "rgb_mean": (1.0, 2.0, 3.0)},
    ],
)
def test_every_kind_of_network_is_held(changes, tmp_path):
    settings = Network.model_validate({**dict(SETTINGS), "temporal": TemporalFilters(units=()), **changes})
    save_network(tmp_path / "one.safetensors", network(changes=settings), Origin())
    found, about = load_snapshot(tmp_path / "one.safetensors")
    assert found.settings == settings
    assert about.origin.trained_on == "an unknown data set"


def test_a_file_is_whole_or_absent(saved, tmp_path, monkeypatch):
    path = tmp_path / "one.safetensors"
    path.write_bytes(b"the one before")
    monkeypatch.setattr("stmul.snapshot.save", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(ShardError, match="full"):
        save_network(path, network("appearance"), ORIGIN)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


@given(part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_a_cut_file_is_refused(saved, tmp_path_factory, part):
    whole = saved("appearance").read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(WeightsError, match=r"cut.safetensors: "):
        load_snapshot(path)


@given(part=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), head=st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_file_with_a_flipped_bit_is_refused(saved, tmp_path_factory, part, bit, head):
    whole = bytearray(saved("appearance").read_bytes())
    length = 8 + struct.unpack("<Q", whole[:8])[0] if head else len(whole)
    whole[int(part * length)] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(whole)
    with pytest.raises(WeightsError, match=r"flipped.safetensors: "):
        load_snapshot(path)


def metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    found: dict[str, str] = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_": 2}, "of another version: schema_"),
        ({"kind": "both"}, "of another version: kind"),
        ({"colour": 1}, "of another version: colour"),
        ({"classes": 0}, "of another version: classes"),
        ({"stack": 10**9}, "of another version: stack"),
        ({"network": {"width": 4}}, "of another version: network.width"),
        ({"classes": 10**12}, "damaged"),
        ({"kind": "joint"}, "of another version: .*kind joint with a stack of 0"),
        ({"split": 1}, "of another version"),
    ],
)
def test_another_description_is_refused(saved, tmp_path, changes, message):
    about = metadata(saved("appearance"))
    tensors = load_file(saved("appearance"))
    about["stmul"] = json.dumps({**json.loads(about["stmul"]), **changes})
    save_file(tensors, tmp_path / "other.safetensors", about)
    with pytest.raises(WeightsError, match=f"other.safetensors: {message}"):
        load_snapshot(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 6}, r"classifier.bias is not \(6,\)"),
        ({"classes": 10**12}, "classifier.bias is not"),
        ({"kind": "joint", "stack": 3}, "appearance.conv1.weight is not"),
        ({"kind": "motion", "stack": 3}, "conv1.weight is not"),
        (
            {"network": {**json.loads(SETTINGS.model_dump_json()), "appearance": {"depth": 152, "width": 10**6}}},
            "joins",
        ),
        (
            {"network": {"operator": "none", "appearance": {"depth": 152, "width": 10**6}}},
            r"conv1.weight is not \(1000000, 3, 7, 7\)",
        ),
        ({"network": {"operator": "none", "appearance": {"depth": 152, "width": 4}}}, "units.2a.conv1.weight|missing"),
    ],
)
def test_a_description_of_another_network_is_refused_before_it_takes_memory(
    saved, tmp_path, changes, message, monkeypatch
):
    about = metadata(saved("appearance"))
    about["stmul"] = json.dumps({**json.loads(about["stmul"]), **changes})
    tensors = load_file(saved("appearance"))
    save_file(tensors, tmp_path / "other.safetensors", about)
    monkeypatch.setattr("stmul.snapshot._checksum", lambda *args: about["crc32c"])
    with pytest.raises(WeightsError, match=message):
        load_snapshot(tmp_path / "other.safetensors")


def test_files_of_something_else_are_refused(saved, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "tensors.safetensors")
    (tmp_path / "text.safetensors").write_text("a text")
    torch.save({"x": torch.zeros(2)}, tmp_path / "torch.safetensors")
    (tmp_path / "empty.safetensors").touch()
    for name in ("tensors", "text", "torch", "empty", "missing"):
        with pytest.raises(WeightsError, match=rf"{name}.safetensors: "):
            load_snapshot(tmp_path / f"{name}.safetensors")
    with pytest.raises(WeightsError, match="not readable"):
        load_snapshot(tmp_path)
    with pytest.raises(WeightsError, match="only tensors"):
        describe(tmp_path / "tensors.safetensors")


def test_a_snapshot_without_its_checksum_is_refused(saved, tmp_path):
    about = metadata(saved("motion"))
    del about["crc32c"]
    save_file(load_file(saved("motion")), tmp_path / "bare.safetensors", about)
    with pytest.raises(WeightsError, match="checksum"):
        load_snapshot(tmp_path / "bare.safetensors")
