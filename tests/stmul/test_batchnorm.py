"""Statistics are a sub-batch's, moments a step's: however a step is cut into forwards, groups and ranks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from stmul.batchnorm import (
    EPSILON,
    BatchNorm2d,
    collected_moments,
    commit_moments,
    sigma_of,
    sub_batches,
    variance_of,
)
from stmul.errors import NetworkError

CHANNELS = 5
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def frames(count: int = 12, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, CHANNELS, 4, 6, generator=draw) * 3 + torch.arange(CHANNELS)[:, None, None]


def layer() -> BatchNorm2d:
    torch.manual_seed(1)
    made = BatchNorm2d(CHANNELS)
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return made


def torch_layer(like: BatchNorm2d) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(CHANNELS, eps=EPSILON)
    made.load_state_dict({"weight": like.weight, "bias": like.bias}, strict=False)
    return made


def moments(x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    return x_NCHW.mean((0, 2, 3)), (x_NCHW.var((0, 2, 3), unbiased=False) + EPSILON).sqrt()


def test_each_sub_batch_is_normalised_by_itself():
    norm, x_NCHW = layer(), frames()
    with sub_batches(norm, 3):
        found = norm(x_NCHW)
    expected = torch.cat([torch_layer(norm)(part) for part in x_NCHW.chunk(3)])
    assert torch.allclose(found, expected, **CLOSE)


def test_gradients_are_those_of_torchs_own_layer():
    norm, weights = layer(), torch.randn(12, CHANNELS, 4, 6)
    other = torch_layer(norm)
    found, expected = frames().requires_grad_(), frames().requires_grad_()
    (norm(found) * weights).sum().backward()
    (other(expected) * weights).sum().backward()
    assert torch.allclose(found.grad, expected.grad, **CLOSE)
    assert torch.allclose(norm.weight.grad, other.weight.grad, **CLOSE)
    assert torch.allclose(norm.bias.grad, other.bias.grad, **CLOSE)


def test_a_forward_alone_moves_no_running_moments():
    norm = layer()
    before = copy.deepcopy(norm.state_dict())
    norm(frames())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_step_moves_the_running_moments_once_towards_the_mean_over_sub_batches():
    norm, x_NCHW, rate = layer(), frames(), 0.05
    with sub_batches(norm, 3):
        norm(x_NCHW)
    commit_moments(norm, rate)
    means, sigmas = zip(*(moments(part) for part in x_NCHW.chunk(3)), strict=True)
    assert torch.allclose(norm.running_mean, rate * torch.stack(means).mean(0), **CLOSE)
    assert torch.allclose(norm.running_sigma, 1 - rate + rate * torch.stack(sigmas).mean(0), **CLOSE)


def test_a_step_leaves_nothing_behind_for_the_next():
    norm, other = layer(), layer()
    norm(frames(seed=1))
    commit_moments(norm, 1.0)
    norm(frames(seed=2))
    commit_moments(norm, 1.0)
    other(frames(seed=2))
    commit_moments(other, 1.0)
    assert torch.allclose(norm.running_sigma, other.running_sigma, **CLOSE)
    assert collected_moments(norm).abs().sum() == 0


def test_a_step_without_a_forward_changes_nothing():
    norm = layer()
    commit_moments(norm, 0.5)
    assert torch.equal(norm.running_mean, torch.zeros(CHANNELS))
    assert torch.equal(norm.running_sigma, torch.ones(CHANNELS))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_is_the_same_step_in_one_forward_or_in_several(groups):
    norm, other, x_NCHW = layer(), layer(), frames(8)
    outs = []
    for part in x_NCHW.chunk(4 // groups):
        with sub_batches(norm, groups):
            outs.append(norm(part))
    with sub_batches(other, 4):
        expected = other(x_NCHW)
    commit_moments(norm, 0.3)
    commit_moments(other, 0.3)
    assert torch.allclose(torch.cat(outs), expected, **CLOSE)
    assert torch.allclose(norm.running_mean, other.running_mean, **CLOSE)
    assert torch.allclose(norm.running_sigma, other.running_sigma, **CLOSE)


def test_ranks_that_sum_what_they_collected_agree_with_one_that_saw_all():
    networks = [nn.Sequential(layer(), layer()) for _ in range(3)]
    x_NCHW = frames(12)
    for network, part, groups in zip(networks, (x_NCHW, x_NCHW[:8], x_NCHW[8:]), (3, 2, 1), strict=True):
        with sub_batches(network, groups):
            network(part)
    total = collected_moments(networks[1]) + collected_moments(networks[2])
    for network, collected in zip(networks, (None, total, total), strict=True):
        commit_moments(network, 0.05, collected)
    one, *ranks = [network.state_dict() for network in networks]
    for rank in ranks:
        assert all(torch.allclose(rank[name], one[name], **CLOSE) for name in one)


def test_a_clip_that_is_not_valid_is_as_good_as_not_there():
    norm, other, instants = layer(), layer(), 2
    x_NCHW = frames(8).requires_grad_()  # 4 clips of 2 instants, in 2 sub-batches
    with sub_batches(norm, 2, [True, False, True, True]):
        found = norm(x_NCHW)
    kept = torch.cat([x_NCHW[:instants], x_NCHW[2 * instants :]]).detach()
    expected = torch.cat([other(kept[:instants]), other(kept[instants:])])
    assert torch.allclose(torch.cat([found[:2], found[4:]]), expected, **CLOSE)
    assert torch.allclose(collected_moments(norm), collected_moments(other), **CLOSE)
    weights = torch.randn(found.shape)
    (found * weights).sum().backward()
    assert found.isfinite().all()
    assert x_NCHW.grad[instants : 2 * instants].abs().sum() == 0
    assert (x_NCHW.grad[:instants].abs().sum(), x_NCHW.grad[2 * instants :].abs().sum()) > (0, 0)


def test_values_of_a_clip_that_is_not_valid_reach_nothing():
    norm, x_NCHW = layer(), frames(4)
    x_NCHW[2:] = float("nan")
    with sub_batches(norm, 1, [True, False]):
        assert norm(x_NCHW)[:2].isfinite().all()
    assert collected_moments(norm).isfinite().all()


def test_a_sub_batch_without_a_valid_clip_is_not_counted():
    norm = layer()
    with sub_batches(norm, 2, [True, True, False, False]):
        out = norm(frames(4))
    assert out[2:].abs().sum() == 0
    assert norm.group_count == 1


def test_all_clips_valid_is_the_same_as_no_mask():
    norm = layer()
    with sub_batches(norm, 2, [True] * 4):
        found = norm(frames(4))
    with sub_batches(norm, 2):
        assert torch.equal(found, norm(frames(4)))


def test_what_a_forward_holds_is_forgotten_afterwards():
    norm = layer()
    with pytest.raises(ZeroDivisionError), sub_batches(norm, 2, [True, False]):
        raise ZeroDivisionError
    assert (norm.groups, norm.valid) == (1, None)


def test_evaluation_divides_by_sigma_and_adds_no_epsilon():
    norm = layer().eval()
    norm.running_mean.copy_(torch.arange(CHANNELS))
    norm.running_sigma.copy_(torch.tensor([EPSILON**0.5, 0.1, 1.0, 3.0, 1e3]))
    x_NCHW = frames()
    mean, sigma, scale, bias = (
        one[:, None, None] for one in (norm.running_mean, norm.running_sigma, norm.weight, norm.bias)
    )
    assert torch.allclose(norm(x_NCHW), scale * (x_NCHW - mean) / sigma + bias, rtol=1e-4, atol=1e-4)


def test_evaluation_is_that_of_torchs_own_layer_after_conversion():
    norm = layer()
    other = torch_layer(norm)
    other.running_mean.uniform_(-1, 1)
    other.running_var.uniform_(0, 2)
    norm.running_mean.copy_(other.running_mean)
    norm.running_sigma.copy_(sigma_of(other.running_var))
    assert torch.allclose(norm.eval()(frames()), other.eval()(frames()), **CLOSE)


def test_sigma_and_variance_turn_into_each_other():
    variance = torch.tensor([0.0, 1e-6, 0.5, 4.0, 1e4])
    assert torch.allclose(variance_of(sigma_of(variance)), variance, rtol=1e-5, atol=1e-8)
    assert variance_of(torch.tensor(0.0)) == 0.0


@pytest.mark.parametrize(("groups", "valid"), [(0, None), (2, [True] * 3), (1, [])])
def test_groups_that_cannot_be_made_are_refused(groups, valid):
    with pytest.raises(NetworkError, match="sub-batches"), sub_batches(layer(), groups, valid):
        pass


def test_frames_that_do_not_divide_into_the_groups_are_refused():
    norm = layer()
    with sub_batches(norm, 5), pytest.raises(NetworkError, match="12 frames do not divide into 5 sub-batches"):
        norm(frames(12))


def test_half_precision_keeps_its_type_and_its_statistics_in_single():
    norm = layer()
    x_NCHW = frames().bfloat16()
    assert norm(x_NCHW).dtype == torch.bfloat16
    assert collected_moments(norm).dtype == torch.float32
    mean, _ = moments(x_NCHW.float())
    assert torch.allclose(norm.mean_sum, mean, rtol=1e-3, atol=1e-3)
    assert norm.eval()(x_NCHW).dtype == torch.bfloat16


def test_the_layout_is_kept():
    norm = layer()
    x_NCHW = frames().contiguous(memory_format=torch.channels_last)
    for mode in (True, False):
        assert norm.train(mode)(x_NCHW).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_it_is_one_graph_for_a_compiler():
    norm, other, x_NCHW = layer(), layer(), frames(8)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    for one in (norm, other):
        for module in one.modules():
            module.groups = 2
    assert torch.allclose(compiled(x_NCHW), other(x_NCHW), **CLOSE)
    assert torch.allclose(collected_moments(norm), collected_moments(other), **CLOSE)


def test_only_the_running_moments_are_saved():
    assert set(layer().state_dict()) == {"weight", "bias", "running_mean", "running_sigma"}
