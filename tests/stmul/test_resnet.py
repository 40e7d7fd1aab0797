"""One stream: units by name, sums before the ReLU, filters over time, and a head that looks in the right order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stmul.config import Network, StreamNetwork, TemporalFilters, unit_names
from stmul.errors import NetworkError
from stmul.resnet import Stream, TemporalFilter, Unit

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
MEAN = (0.5, 0.0, -0.5)
NO_FILTERS = TemporalFilters(units=())


def stream(depth: int = 18, width: int = 4, **changes: object) -> Stream:
    torch.manual_seed(depth)
    own = {name: changes.pop(name) for name in ("classes", "pool", "mean", "over_time") if name in changes}
    sizes = {"mean": MEAN, "classes": 5, "pool": 2, **own}
    return Stream(StreamNetwork(depth=depth, width=width), Network(**changes), **sizes).eval()


def clips(count: int = 2, instants: int = 3, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(count, instants, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("depth", "last"), [(18, "2b 3b 4b 5b"), (50, "2c 3d 4f 5c"), (152, "2c 3h 4aj 5c")])
def test_units_are_named_by_stage_and_letter(depth, last):
    names = unit_names(depth)
    assert list({name[0]: name for name in names}.values()) == last.split()
    assert names[:2] == ("2a", "2b")
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("depth", "units"), [(18, 8), (34, 16), (50, 16), (101, 33), (152, 50)])
def test_every_depth_has_its_units_in_order(depth, units):
    with torch.device("meta"):
        made = stream(depth)
    assert tuple(made.units) == unit_names(depth)
    assert len(made.units) == units


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_every_depth_has_as_many_parameters_as_the_paper_says(depth, parameters):
    with torch.device("meta"):
        made = stream(depth, width=64, classes=1000, temporal=NO_FILTERS)
    assert sum(one.numel() for one in made.parameters() if one.requires_grad) == parameters


def test_temporal_filters_add_what_the_paper_says():
    with torch.device("meta"):
        with_filters, without = stream(50, width=64), stream(50, width=64, temporal=NO_FILTERS)
    counts = [sum(one.numel() for one in made.parameters()) for made in (with_filters, without)]
    assert counts[0] - counts[1] == 1_045_440


@pytest.mark.parametrize("depth", [18, 50])
def test_each_stage_halves_the_picture_and_doubles_the_channels(depth):
    made, found = stream(depth), {}
    for name, unit in made.units.items():
        unit.register_forward_hook(lambda module, given, out, name=name: found.update({name: tuple(out.shape[1:])}))
    made(clips())
    widest = 4 if depth == 18 else 16
    for stage in range(4):
        expected = (widest << stage, 16 >> stage, 24 >> stage)
        assert all(shape == expected for name, shape in found.items() if name[0] == str(stage + 2))


@pytest.mark.parametrize(("stride_on", "strides"), [("1x1", (2, 1)), ("3x3", (1, 2))])
def test_the_stride_is_where_it_is_asked_for(stride_on, strides):
    made = stream(50, stride_on=stride_on)
    for name in ("3a", "4a", "5a"):
        unit = made.units[name]
        assert (unit.conv1.stride[0], unit.conv2.stride[0]) == strides
    assert made.units["2a"].conv1.stride == made.units["2a"].conv2.stride == (1, 1)


def test_caffes_maximum_looks_down_and_right_and_torchvisions_to_all_sides():
    x_NCHW = torch.arange(16.0).view(1, 1, 4, 4)
    assert stream(pooling="caffe").maximum(x_NCHW).tolist() == [[[[10, 11], [14, 15]]]]
    assert stream(pooling="torchvision").maximum(x_NCHW).tolist() == [[[[5, 7], [13, 15]]]]


def test_a_unit_hands_on_the_sum_before_its_relu():
    unit = Unit(8, 8, bottleneck=False, stride=1, stride_on="3x3", temporal=None).eval()
    x_NCHW = torch.randn(2, 8, 6, 6)
    assert torch.allclose(unit(x_NCHW, 1), x_NCHW.relu() + unit.residual(x_NCHW.relu(), 1), **CLOSE)
    assert (unit(x_NCHW, 1) < 0).any()


def test_a_joined_unit_multiplies_the_sum_by_the_others_activation_and_keeps_its_shortcut():
    unit = Unit(8, 8, bottleneck=False, stride=1, stride_on="3x3", temporal=None).eval()
    x_NCHW, m_NCHW = torch.randn(2, 2, 8, 6, 6)
    expected = x_NCHW.relu() + unit.residual(x_NCHW * m_NCHW.relu(), 1)
    assert torch.allclose(unit(x_NCHW, 1, m_NCHW, torch.mul), expected, **CLOSE)
    expected = x_NCHW.relu() + unit.residual(x_NCHW + m_NCHW.relu(), 1)
    assert torch.allclose(unit(x_NCHW, 1, m_NCHW, torch.add), expected, **CLOSE)


def test_gradients_flow_into_both_factors():
    unit = Unit(8, 8, bottleneck=False, stride=1, stride_on="3x3", temporal=None)
    x_NCHW, m_NCHW = (one.requires_grad_() for one in torch.randn(2, 2, 8, 6, 6).unbind())
    unit(x_NCHW, 1, m_NCHW).square().sum().backward()
    assert x_NCHW.grad.abs().sum() > 0
    assert m_NCHW.grad[m_NCHW > 0].abs().sum() > 0


def identity(channels: int) -> Tensor:
    return torch.eye(channels)[:, :, None, None]


@settings(deadline=None, max_examples=40)
@given(
    clip_count=st.integers(1, 3),
    instants=st.integers(1, 6),
    channels=st.integers(1, 5),
    side=st.integers(1, 4),
    channels_last=st.booleans(),
)
def test_a_temporal_filter_is_a_convolution_over_time(clip_count, instants, channels, side, channels_last):
    filter_ = TemporalFilter(identity(channels), "centre", bias=True)
    nn.init.normal_(filter_.weight)
    nn.init.normal_(filter_.bias)
    reference = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
    reference.load_state_dict({"weight": filter_.weight[..., None, None], "bias": filter_.bias})
    x_NCHW = torch.randn(clip_count * instants, channels, side, side + 1)
    expected = reference(x_NCHW.unflatten(0, (clip_count, instants)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    found = filter_(x_NCHW.contiguous(memory_format=layout), instants)
    assert torch.allclose(found, expected, **CLOSE)
    weights = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), list(filter_.parameters())),
        torch.autograd.grad((expected * weights).sum(), list(reference.parameters())),
        strict=True,
    ):
        assert torch.allclose(one.flatten(), other.flatten(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("initial", "taps"), [("centre", (0, 1, 0)), ("average", (1 / 3, 1 / 3, 1 / 3)), ("difference", (-1, 3, -1))]
)
def test_a_temporal_filter_starts_with_its_taps_and_sees_zeros_beyond_the_clip(initial, taps):
    filter_, x = TemporalFilter(identity(4), initial, bias=True), torch.randn(3, 4, 2, 2)
    before, after = torch.cat([torch.zeros(1, 4, 2, 2), x[:-1]]), torch.cat([x[1:], torch.zeros(1, 4, 2, 2)])
    assert torch.allclose(filter_(x, 3), taps[0] * before + taps[1] * x + taps[2] * after, **CLOSE)


@pytest.mark.parametrize("depth", [18, 50])
def test_filters_stand_in_unit_b_after_the_middle_relu_alone(depth):
    made, lowest = stream(depth), []
    filtered = {name: unit for name, unit in made.units.items() if unit.temporal is not None}
    assert list(filtered) == ["2b", "3b", "4b", "5b"]
    for unit in filtered.values():
        unit.temporal.register_forward_pre_hook(lambda module, given: lowest.append(given[0].min().item()))
    made(clips())
    assert lowest == [0.0] * 4


@torch.no_grad()
@pytest.mark.parametrize("depth", [18, 50])
def test_filters_that_start_as_the_centre_change_nothing(depth):
    with_filters, without = stream(depth), stream(depth, temporal=NO_FILTERS)
    without.load_state_dict(
        {name: value for name, value in with_filters.state_dict().items() if "temporal" not in name}
    )
    assert torch.equal(with_filters(clips()), without(clips()))


@torch.no_grad()
def test_clips_do_not_see_each_other():
    made, batch = stream(temporal=TemporalFilters(initial="average")), clips(3, 6)
    alone = torch.cat([made(clip[None]) for clip in batch])
    assert torch.allclose(made(batch), alone, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize(
    ("instants", "window", "stride", "windows"),
    [
        *[(1, 5, 1, 1), (4, 5, 1, 1), (5, 5, 1, 1), (6, 5, 1, 2), (25, 5, 1, 21), (6, 1, 1, 6), (3, 2, 1, 2)],
        *[(11, 5, 2, 4), (25, 5, 2, 11), (6, 5, 2, 1), (3, 5, 2, 1)],
    ],
)
def test_the_maximum_over_time_slides(instants, window, stride, windows):
    made = stream(temporal_window=window, temporal_stride=stride)
    found = made(clips(1, instants, 32, 32))
    assert found.shape == (1, 5, windows, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("height", "width", "pool", "maps"),
    [(224, 224, 7, (1, 1)), (256, 340, 7, (2, 5)), (64, 96, 7, (1, 1)), (112, 112, 4, (1, 1)), (128, 192, 4, (1, 3))],
)
def test_the_average_over_space_slides_by_one_position(height, width, pool, maps):
    assert stream(pool=pool)(clips(1, 1, height, width)).shape[-2:] == maps


@torch.no_grad()
def test_the_head_takes_the_maximum_over_time_before_the_average_over_space():
    made, x_NCHW = stream(), torch.randn(6, 32, 2, 3)
    activations_TCHW = x_NCHW.relu()
    pooled_T = [activations_TCHW[t : t + 5].amax(0) for t in range(2)]
    weight, bias = made.classifier.weight[:, :, 0, 0], made.classifier.bias
    expected = torch.stack(
        [
            torch.stack([weight @ one[:, :, j : j + 2].mean((1, 2)) + bias for j in range(2)], -1)[:, None]
            for one in pooled_T
        ],
        1,
    )
    assert torch.allclose(made.head(x_NCHW, 6)[0], expected, **CLOSE)


def test_scores_are_raw():
    assert (stream()(clips()) < 0).any()


def test_dropout_stands_before_the_classifier_and_only_in_training():
    made = Stream(StreamNetwork(depth=18, width=4, dropout=0.8), Network(), mean=MEAN, classes=5, pool=2)
    seen = []
    made.classifier.register_forward_pre_hook(lambda module, given: seen.append((given[0] == 0).float().mean().item()))
    made(clips(8))
    made.eval()(clips(8))
    assert seen[0] > 0.6
    assert seen[1] < 0.2


def test_a_step_reaches_every_trained_parameter():
    made = stream().train()
    made(clips()).square().sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in made.parameters() if one.requires_grad)


def test_the_first_bias_changes_scores_but_is_not_trained():
    made = stream()
    before = made(clips())
    with torch.no_grad():
        made.conv1.bias += 0.5
    assert not torch.allclose(made(clips()), before, **CLOSE)
    assert not made.conv1.bias.requires_grad


def test_filters_in_units_that_are_not_there_are_refused():
    with pytest.raises(NetworkError, match=r"temporal filters in 4c: depth 18 has 2a, 2b"):
        stream(18, temporal=TemporalFilters(units=("2b", "4c")))


@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 32), (2, 3, 32, 32)])
def test_clips_of_other_channels_are_refused(shape):
    with pytest.raises(NetworkError, match=r"expected \(B, T, 3, H, W\)"):
        stream()(torch.zeros(shape))


def test_half_precision_under_autocast_gives_nearly_the_same_scores():
    made = stream()
    expected = made(clips())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(clips())
    assert (found - expected).abs().max() < 0.05 * expected.abs().max() + 1e-3
