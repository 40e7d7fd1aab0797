"""RAFT with weights from a file: which network, what size, what errors, and the same bytes however it is asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large, raft_small

from configs import SettingsError
from preprocess.errors import PreprocessError
from preprocess.flows import raft


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of raft_small as drawn."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("raft") / "small.pth"
    torch.save(raft_small().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(small: Path) -> raft.Raft:
    """The network with these weights, on the CPU."""
    return raft.open_raft(small)


def flows(network: raft.Raft, video: np.ndarray, *, updates: int) -> np.ndarray:
    """The flow from each frame to the next."""
    return raft.raft_flow(network, video[:-1], video[1:], updates=updates)


def frames(count: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_flow_is_what_torchvision_makes_of_pictures_that_need_no_border(network):
    pair = frames(2, 128, 136)
    [found] = flows(network, pair, updates=2)
    one, other = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 * 2 - 1 for p in pair)
    with torch.inference_mode():
        expected = network.network(one, other, num_flow_updates=2)[-1][0].permute(1, 2, 0).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(130, 129), (31, 200), (128, 128)])
def test_flow_has_the_frames_size_and_is_finite(network, height, width):
    found = flows(network, frames(2, height, width), updates=1)
    assert found.shape == (1, height, width, 2)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_a_pair_gives_the_same_bytes_in_a_video_and_alone_whatever_the_batch(network, monkeypatch):
    video = frames(5, 24, 40)
    whole = flows(network, video, updates=1)
    np.testing.assert_array_equal(whole, [flows(network, video[i : i + 2], updates=1)[0] for i in range(4)])
    # Batches of more than one pair, as on a GPU, the last one filled up: the same up to how its library adds.
    monkeypatch.setattr(raft, "batch_size", lambda *_: 3)
    in_batches = flows(network, video, updates=1)
    np.testing.assert_allclose(whole, in_batches, atol=1e-3)
    np.testing.assert_array_equal(in_batches[:3], flows(network, video[:4], updates=1))
    np.testing.assert_array_equal(in_batches[3:], flows(network, video[3:], updates=1))


def test_pictures_that_do_not_match_are_refused(network):
    with pytest.raises(ValueError, match=r"expected twice the same \(N, H, W, 3\)"):
        raft.raft_flow(network, frames(2, 16, 16), frames(3, 16, 16))


def test_the_file_says_which_network_it_is_for(small, tmp_path):
    assert raft.open_raft(small).name == "raft_small"
    large = {f"module.{name}": value for name, value in raft_large().state_dict().items()}  # as trained in parallel
    save_file(large, tmp_path / "large.safetensors")
    assert raft.open_raft(tmp_path / "large.safetensors").name == "raft_large"


def test_the_digest_is_that_of_the_file_and_stands_in_what_computed_the_flow(small):
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    assert raft.weights_digest(small) == digest
    assert raft.library(small, "cpu").startswith(f"raft {digest} on cpu, torch ")


def test_a_network_is_read_once_for_many_videos(small):
    assert raft.open_raft(small) is raft.open_raft(str(small), "cpu")


def test_other_weights_under_the_same_name_have_another_digest(small, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(small.read_bytes())
    before = raft.weights_digest(path)
    path.write_bytes(small.read_bytes() + b" ")
    assert raft.weights_digest(path) != before


def test_a_batch_is_bounded_by_its_correlations_and_knows_only_the_frames_size():
    gpu = torch.device("cuda")
    assert raft.batch_size(gpu, 256, 340) == 8
    assert raft.batch_size(gpu, 1080, 1920) == 1
    assert raft.batch_size(torch.device("cpu"), 256, 340) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no weights", "not readable as weights"),
        ({"module.fnet.conv1.weight": torch.zeros(1)}, "RAFT's own code"),
        ({"layer1.0.conv1.weight": torch.zeros(1)}, "found tensors named layer1.0.conv1.weight"),
        ({"feature_encoder.convnormrelu.0.weight": torch.zeros(2, 3)}, "do not fit torchvision's raft_small"),
        ({"epoch": 3}, "expected named tensors"),
        ([1, 2], "expected named tensors, found list"),
    ],
)
def test_what_is_no_file_of_its_weights_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(PreprocessError, match=message) as caught:
        raft.open_raft(path)
    assert str(path) in str(caught.value)


def test_a_cut_file_and_a_strange_tensor_are_refused(small, tmp_path):
    cut = tmp_path / "cut.pth"
    cut.write_bytes(small.read_bytes()[:-1000])
    with pytest.raises(PreprocessError, match="not readable as weights"):
        raft.open_raft(cut)
    more = tmp_path / "more.pth"
    torch.save({**torch.load(small, weights_only=True), "head.weight": torch.zeros(1)}, more)
    with pytest.raises(PreprocessError, match=r"head\.weight is not among raft_small's"):
        raft.open_raft(more)


@pytest.mark.parametrize("path", ["", "nowhere/raft.pth"])
def test_without_a_file_it_says_where_to_get_one(path):
    for do in (raft.weights_digest, raft.open_raft):
        with pytest.raises(SettingsError, match=r"preprocess.flow.weights: .* Fetch them once with: python"):
            do(path)


@pytest.mark.gpu
def test_on_a_gpu_flow_is_the_cpus_and_the_same_again(network, small):
    video = frames(11, 64, 96)
    there = raft.open_raft(small, "cuda")
    once, again = (flows(there, video, updates=3) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_allclose(once, flows(network, video, updates=3), atol=1e-2)
