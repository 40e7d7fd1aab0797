"""Maps of what spoke for a class, against the definition evaluated by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stmul.batchnorm import commit_moments
from stmul.config import Network
from stmul.errors import NetworkError
from stmul.gradcam import centres, class_maps
from stmul.network import TwoStream, single

CLASSES, INSTANTS, STACK = 3, 4, 2
SMALL = {"depth": 18, "width": 2}


def two_streams(**changes):
    """A small joint network, drawn, that has seen the clip: its running moments are those of it."""
    torch.manual_seed(7)
    settings = Network(appearance=SMALL, motion=SMALL, temporal_window=3, **changes)
    network = TwoStream(settings, stack=STACK, classes=CLASSES, pool=2)
    for stream in (network.appearance, network.motion):
        torch.nn.init.normal_(stream.classifier.weight)
    shown = clip()
    with torch.no_grad():
        network(shown["appearance"][None], shown["motion"][None])
    commit_moments(network, 1.0)
    return network.eval()


def clip(height=96, width=128):
    draws = torch.Generator().manual_seed(3)
    rgb = torch.randint(0, 256, (INSTANTS, 3, height, width), generator=draws, dtype=torch.uint8)
    flow = torch.randint(0, 256, (INSTANTS, 2 * STACK, height, width), generator=draws, dtype=torch.uint8)
    return {"appearance": rgb, "motion": flow}


def activations(network, shown):
    """f(x) of the last units, by walking through the units one by one: {stream: (T, C, h, w)}."""
    with torch.no_grad():
        a = network.appearance.stem(shown["appearance"][None])
        m = network.motion.stem(shown["motion"][None])
        for name in network.appearance.units:
            gate = m if name in network.settings.gated else None
            a, m = (
                network.appearance.units[name](a, INSTANTS, gate),
                network.motion.units[name](m, INSTANTS),
            )
    return {"appearance": a.relu().double().numpy(), "motion": m.relu().double().numpy()}


def scores(active_TChw, weight_KC, *, window, pool):
    """The classes' scores from the last activations, without biases: maximum over time, means, product. Plain numpy."""
    instants, _, height, width = active_TChw.shape
    values = []
    for t in range(instants - window + 1):
        highest_Chw = active_TChw[t : t + window].max(axis=0)
        for i in range(height - pool + 1):
            for j in range(width - pool + 1):
                values.append(highest_Chw[:, i : i + pool, j : j + pool].mean(axis=(1, 2)))
    return weight_KC @ np.mean(values, axis=0)


def by_differences(active_TChw, weight_KC, *, window, pool, small=1e-5):
    """The definition for each class, its slopes taken from differences of scores: (K, T, h, w)."""
    slopes_K = np.zeros((len(weight_KC), *active_TChw.shape))
    for place in np.ndindex(active_TChw.shape):
        ends = []
        for sign in (1, -1):
            moved = active_TChw.copy()
            moved[place] += sign * small
            ends.append(scores(moved, weight_KC, window=window, pool=pool))
        slopes_K[:, *place] = (ends[0] - ends[1]) / (2 * small)
    weights_KC = slopes_K.mean(axis=(1, 3, 4))
    return np.maximum(np.einsum("kc,tchw->kthw", weights_KC, active_TChw), 0)


@pytest.mark.parametrize("stream", ["appearance", "motion"])
def test_maps_are_those_of_the_definition_by_finite_differences(stream):
    network, shown = two_streams(), clip()
    # All channels awake: where one is 0 at several instants, their maximum has no slope that differences could find.
    getattr(network, stream).units["5b"].norm2.bias.data += 20
    found = class_maps(network, shown, [2, 0, 1])[stream].double().numpy()
    active_TChw = activations(network, shown)[stream]
    assert active_TChw.min() > 1
    weight_KC = getattr(network, stream).classifier.weight.detach().double().numpy()[..., 0, 0]
    expected = by_differences(active_TChw, weight_KC, window=3, pool=2)[[2, 0, 1]]
    assert found.shape == expected.shape == (3, INSTANTS, 3, 4)
    assert expected.max() > 0.1
    # Sums of 16 terms of either sign, in float32: their roundings are far smaller.
    assert np.abs(found - expected).max() <= 1e-4 * expected.max()


@pytest.mark.parametrize("stream", ["appearance", "motion"])
def test_for_this_head_they_are_the_classifiers_weights_over_the_activations(stream):
    """CAM (Zhou et al., CVPR 2016), which Grad-CAM is where only means and a linear classifier follow."""
    network, shown = two_streams(operator="none"), clip(64, 64)
    alone = getattr(network, stream)
    found = class_maps(network, shown, [1])[stream][0].double()
    with torch.no_grad():
        x = alone.stem(shown[stream][None])
        for unit in alone.units.values():
            x = unit(x, INSTANTS)
    weight_C = alone.classifier.weight[1, :, 0, 0].detach().double()
    positions = INSTANTS * x.shape[-1] * x.shape[-2]
    expected = torch.einsum("c,tchw->thw", weight_C, x.relu().double()).relu() / positions
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


def test_a_map_is_bright_where_what_counts_is_seen():
    """Noise on the left half of a grey frame, and a class that is all the channels that noise wakes."""
    torch.manual_seed(1)
    alone = single(Network(appearance=SMALL, motion=SMALL), "appearance", stack=STACK, classes=2, pool=2).eval()
    alone.classifier.weight.data[0], alone.classifier.weight.data[1] = 1.0, -1.0
    frames = torch.full((1, 3, 128, 256), 120, dtype=torch.uint8)
    frames[..., :128] = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    for_it, against_it = class_maps(alone, {"appearance": frames}, [0, 1])["appearance"][:, 0]
    assert for_it[:, :3].mean() > 2 * for_it[:, 5:].mean()
    assert against_it.abs().max() == 0  # what speaks against a class is not shown


@pytest.mark.parametrize("pooling", ["torchvision", "caffe"])
@pytest.mark.parametrize(("depth", "stride_on"), [(18, "3x3"), (50, "1x1"), (50, "3x3")])
def test_places_of_a_map_lie_about_the_pixels_that_they_see(pooling, depth, stride_on):
    """With weights that are all alike, a place depends most on what it lies about, and on both sides equally."""
    own = {"depth": depth, "width": 1}
    settings = Network(appearance=own, motion=own, pooling=pooling, stride_on=stride_on)
    alone = single(settings, "appearance", stack=STACK, classes=1, pool=1).double().eval()
    for name, weight in alone.named_parameters():
        if "conv" in name and weight.dim() == 4:
            weight.data.fill_(1 / weight[0].numel())
    alone.maximum = torch.nn.AvgPool2d(3, 2, ceil_mode=True) if pooling == "caffe" else torch.nn.AvgPool2d(3, 2, 1)
    frames = torch.full((1, 1, 3, 33, 2048), 200.0, dtype=torch.float64, requires_grad=True)
    x = alone.stem(frames)
    for unit in alone.units.values():
        x = unit(x, 1)
    places = x.shape[-1]
    x[0, :, 0, places // 2].sum().backward()
    seen_W = frames.grad.abs().sum(dim=(0, 1, 2, 3)).numpy()
    middle = seen_W @ np.arange(len(seen_W)) / seen_W.sum()
    assert middle == pytest.approx(centres(places, pooling)[places // 2], abs=0.01)


def test_looking_leaves_a_network_as_it_was():
    network, shown = two_streams().train(), clip(64, 64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    class_maps(network, shown, [0])
    assert network.training
    assert all(not unit._forward_hooks for unit in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_a_class_that_is_not_there_and_a_clip_that_does_not_fit_are_refused():
    with pytest.raises(NetworkError, match=r"maps of class 3: the network has classes 0 \.\. 2"):
        class_maps(two_streams(), clip(64, 64), [0, 3])
    alone = single(Network(appearance=SMALL, motion=SMALL), "appearance", stack=STACK, classes=2, pool=2)
    with pytest.raises(NetworkError, match="the network takes 3 channels"):
        class_maps(alone, {"motion": clip(64, 64)["motion"]}, [0])
