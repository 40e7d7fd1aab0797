"""ImageNet weights in torchvision's form give torchvision's scores; what does not fit is named."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from stmul import weights
from stmul.config import Data, Network, StreamNetwork
from stmul.errors import WeightsError
from stmul.matconvnet import load_stream
from stmul.network import single
from stmul.resnet import Stream
from stmul.weights import (
    TORCHVISION_MEAN,
    TORCHVISION_STD,
    fitted,
    from_torchvision,
    imagenet,
    read_state,
)
from tests.stmul.matconvnet_files import imagenet_net, write


def torchvision_network(depth: int, classes: int = 10) -> nn.Module:
    """Random, with normalisations that are not where they begin."""
    torch.manual_seed(depth)
    made = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=classes).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made


def stream(depth: int, channels: int = 3, classes: int = 10) -> Stream:
    return Stream(
        StreamNetwork(depth=depth), Network(temporal_window=1), mean=[0.0] * channels, classes=classes, pool=7
    ).eval()


def loaded(made: Stream, state: dict[str, Tensor]) -> Stream:
    differences = made.load_state_dict(state, strict=False)
    assert not differences.unexpected_keys
    assert all(".temporal." in name for name in differences.missing_keys)
    return made


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
@torch.no_grad()
def test_each_frame_gets_torchvisions_scores(depth):
    reference = torchvision_network(depth)
    state = from_torchvision(reference.state_dict(), StreamNetwork(depth=depth), channels=3)
    levels_TCHW = torch.randint(0, 256, (3, 3, 64, 96)).float()
    mean, std = (torch.tensor(one)[:, None, None] for one in (TORCHVISION_MEAN, TORCHVISION_STD))
    found_BKTHW = loaded(stream(depth), state)(levels_TCHW[None])
    # torchvision averages over the whole map, here 2x3; so does our window of 7.
    expected_TK = reference((levels_TCHW / 255 - mean / 255) / std)
    assert found_BKTHW.shape == (1, 10, 3, 1, 1)
    assert (found_BKTHW[0, :, :, 0, 0].T - expected_TK).abs().max() <= 1e-5 * expected_TK.abs().max()


@torch.no_grad()
def test_motion_gets_the_mean_filter_for_each_of_its_channels():
    reference = torchvision_network(18)
    state = from_torchvision(reference.state_dict(), StreamNetwork(depth=18), channels=20)
    first = state["conv1.weight"]
    folded = reference.state_dict()["conv1.weight"] / (255 * torch.tensor(TORCHVISION_STD)[:, None, None])
    assert first.shape == (64, 20, 7, 7)
    assert torch.allclose(first, folded.mean(1, keepdim=True).expand(-1, 20, -1, -1))
    assert torch.equal(state["mean"], torch.full((20,), 128.0))
    flow_BTCHW = 128 + torch.randn(1, 2, 20, 64, 64) * 50
    found = loaded(stream(18, channels=20), state)(flow_BTCHW)
    # The same filter everywhere: only the sum over channels matters.
    spread = flow_BTCHW.sum(2, keepdim=True).expand_as(flow_BTCHW) / 20
    assert torch.allclose(loaded(stream(18, channels=20), state)(spread), found, atol=1e-4)


def test_a_state_of_another_depth_is_refused_with_the_first_differences():
    state = torchvision_network(18).state_dict()
    with pytest.raises(WeightsError, match=r"nets\.pt: .*layer1\.2\.conv1\.weight is missing.* more differences"):
        from_torchvision(state, StreamNetwork(depth=34), channels=3, where="nets.pt")
    with pytest.raises(WeightsError, match=r"layer1\.2\.conv1\.weight is not in a ResNet-18"):
        from_torchvision(torchvision_network(34).state_dict(), StreamNetwork(depth=18), channels=3)


def test_a_state_for_other_pictures_is_refused():
    state = dict(torchvision_network(18).state_dict())
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    with pytest.raises(WeightsError, match=r"conv1\.weight has filters of shape \(1, 7, 7\), expected \(3, 7, 7\)"):
        from_torchvision(state, StreamNetwork(depth=18), channels=3)


def tiny(classes: int = 4, depth: int = 18) -> Stream:
    settings = Network(appearance=StreamNetwork(depth=depth, width=4), motion=StreamNetwork(depth=depth, width=4))
    return single(settings, "appearance", stack=2, classes=classes, pool=1)


def test_a_classifier_of_other_classes_stays_as_drawn_and_is_named():
    network, other = tiny(classes=4), tiny(classes=7)
    state, replaced = fitted(other.state_dict(), network)
    assert replaced == ["classifier.weight", "classifier.bias"]
    assert torch.equal(state["classifier.weight"], network.state_dict()["classifier.weight"])
    assert torch.equal(state["conv1.weight"], other.state_dict()["conv1.weight"])
    network.load_state_dict(state)


def test_a_state_that_fits_is_taken_whole():
    state, replaced = fitted(tiny().state_dict(), tiny())
    assert replaced == []
    assert set(state) == set(tiny().state_dict())


def test_whatever_else_does_not_fit_is_refused():
    state = dict(tiny().state_dict())
    del state["norm1.bias"]
    state["extra"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(8, 3, 7, 7)
    expected = r"base\.pt: .*norm1\.bias is missing; extra is not in .*; conv1\.weight has shape \[8, 3, 7, 7\]"
    with pytest.raises(WeightsError, match=expected):
        fitted(state, tiny(), "base.pt")


def test_weights_are_read_from_both_kinds_of_file(tmp_path):
    state = {name: value.contiguous() for name, value in tiny().state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    torch.save({"network": state, "epoch": 3}, tmp_path / "checkpoint.pt")
    for name in ("a.safetensors", "a.pt", "checkpoint.pt"):
        found = read_state(tmp_path / name)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x00" * 500])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        read_state(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path, name, part):
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"a": torch.randn(500)}, path)
    else:
        save_file({"a": torch.randn(500)}, path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(WeightsError, match=name):
        read_state(path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_flipped_byte_is_refused_or_gives_tensors(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".pt":
        torch.save({"a": torch.randn(5)}, path)
    else:
        save_file({"a": torch.randn(5)}, path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 200)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with contextlib.suppress(WeightsError):
            assert all(isinstance(value, Tensor) for value in read_state(path).values())


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {"a": {"b": torch.zeros(1)}}])
def test_a_file_of_other_things_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="expected named tensors"):
        read_state(tmp_path / "a.pt")


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"a": Path("x")}, tmp_path / "a.pt")  # any class of its own would do
    with pytest.raises(WeightsError, match="not readable as weights"):
        read_state(tmp_path / "a.pt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file of weights"):
        read_state(tmp_path / "a.pt")


SETTINGS = Network(appearance=StreamNetwork(depth=18), motion=StreamNetwork(depth=18))


def test_both_streams_start_from_one_file(tmp_path):
    torch.save(torchvision_network(18, classes=1000).state_dict(), tmp_path / "r18.pth")
    weights = imagenet(SETTINGS, Data(), source=str(tmp_path / "r18.pth"))
    states = weights.states
    assert set(states) == {"appearance", "motion"}
    assert weights.shared == {"pooling": "torchvision"}  # a basic unit has one place for its stride
    for name in ("appearance", "motion"):
        network = single(SETTINGS, name, stack=10, classes=6, pool=7)
        state, replaced = fitted(states[name], network)
        assert replaced == ["classifier.weight", "classifier.bias"]
        network.load_state_dict(state)


def test_a_network_of_another_width_is_refused():
    narrow = Network(appearance=StreamNetwork(depth=18, width=8), motion=StreamNetwork(depth=18, width=8))
    with pytest.raises(WeightsError, match=r"width is 64, network\.appearance\.width is 8"):
        imagenet(narrow, Data(), source="unread")


def test_each_depth_finds_its_file_in_a_folder(tmp_path):
    for depth in (18, 34):
        torch.save(torchvision_network(depth, classes=1000).state_dict(), tmp_path / f"resnet{depth}-0123abcd.pth")
    (tmp_path / "resnet180.pth").touch()
    mixed = Network(appearance=StreamNetwork(depth=18), motion=StreamNetwork(depth=34))
    states = imagenet(mixed, Data(), source=str(tmp_path)).states
    assert "units.2c.conv1.weight" not in states["appearance"]
    assert "units.2c.conv1.weight" in states["motion"]
    deep = Network(appearance=StreamNetwork(depth=50), motion=StreamNetwork(depth=50))
    with pytest.raises(WeightsError, match=r"expected one file of a ResNet-50, as resnet50\.pth, found resnet18"):
        imagenet(deep, Data(), source=str(tmp_path))


def test_matconvnets_imagenet_network_begins_both_streams(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.stmul.matconvnet_nets._calibrated", lambda one, seed: one)  # long at this size
    settings = Network(appearance=StreamNetwork(depth=50), motion=StreamNetwork(depth=50))
    write(tmp_path / "imagenet-resnet-50-dag.mat", imagenet_net(width=64, classes=10), wrapped=False)
    weights = imagenet(settings, Data(), source=str(tmp_path))
    stream = load_stream(tmp_path / "imagenet-resnet-50-dag.mat")
    assert weights.shared == {"stride_on": "1x1", "pooling": "caffe"}
    assert torch.equal(weights.states["appearance"]["mean"], stream.mean)
    assert torch.equal(weights.states["motion"]["mean"], torch.full((20,), 128.0))
    first = weights.states["motion"]["conv1.weight"]
    assert torch.allclose(first, stream.conv1.weight.mean(1, keepdim=True).expand(-1, 20, -1, -1))


def test_torchvisions_own_weights_come_from_its_cache_if_they_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(torchvision_network(18, classes=1000).state_dict(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    assert imagenet(SETTINGS, Data()).states["motion"]["conv1.weight"].shape == (64, 20, 7, 7)


def test_weights_that_cannot_be_fetched_are_asked_for(tmp_path, monkeypatch):
    def unreachable(request: object, timeout: float) -> io.BytesIO:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights.urllib.request, "urlopen", unreachable)
    with pytest.raises(WeightsError, match=r"resnet18 .*no route to host.*--set train\.imagenet=PATH"):
        imagenet(SETTINGS, Data())
