"""Memory: what is counted without allocating is what tensors take, and tensors that are gone count no more."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from configs import load
from stmul.config import Config
from stmul.memory import Alive, blank_clips, saved_bytes
from stmul.stages import build

CPU, META = torch.device("cpu"), torch.device("meta")
NETWORKS = {
    "as in the paper": (),
    "two streams side by side": ("network.operator=none", "network.temporal={units: []}"),
    "joined both ways": ("network.operator=add", "network.direction=both"),
    "of different depths": (
        "network.appearance={depth: 50, width: 8}",
        "network.motion={depth: 101, width: 8, dropout: 0.5}",
    ),
}


def made(config, device, stage="joint"):
    with device:
        return build(stage, config, 3)


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS.keys())
@pytest.mark.parametrize("stage", ["appearance", "motion", "joint"])
def test_a_trial_on_the_meta_device_counts_the_bytes_that_a_real_one_keeps(small, changes, stage):
    config = small(*changes)
    counted = saved_bytes(made(config, META, stage), config, stage, META)
    assert counted == saved_bytes(made(config, CPU, stage), config, stage, CPU) > 100_000


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_widest_moment_on_the_meta_device_is_the_real_one(small, changes):
    config = small(*changes)
    found = []
    for device in (CPU, META):
        network, clips = made(config, device).eval(), blank_clips(config, 1, 3, (40, 56), device)
        with torch.inference_mode(), Alive(network, *clips) as alive:
            network(*clips)
        found.append(alive.most)
    inputs = 4 * 3 * (3 + 8) * 40 * 56
    assert found[0] == found[1] > 2 * inputs  # every stem takes its mean off a copy


def test_bytes_kept_for_the_backward_are_known_for_a_layer(small):
    config, layer = small(), Doubled()
    clips = 4 * 2 * 3 * 32 * 32  # bytes of one float for each clip, channel and pixel
    assert saved_bytes(layer, config, "appearance", CPU) == saved_bytes(layer.to(META), config, "appearance", META)
    assert saved_bytes(layer, config, "appearance", META) == 2 * clips  # exp's and relu's; the view is not another one


def test_a_trial_gives_its_memory_back():
    layer, config = Watched(), load(Config, None, ["data.crop=32", "data.frames=1"])
    assert saved_bytes(layer, config, "appearance", CPU) > 0
    gc.collect()
    assert layer.made() is None


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_memory_is_taken_off_when_its_last_tensor_is_gone(device):
    layer = nn.Linear(10, 10, bias=False).to(device)
    clip = torch.zeros(10, 10, device=device)
    with torch.no_grad(), Alive(layer, clip) as alive:
        assert alive.now == 400
        one = clip + 1
        part = one.view(100)[:5]
        assert alive.now == 800
        del one
        assert alive.now == 800, "a part holds the whole"
        del part
        assert alive.now == 400
        layer.weight.view(100)
        assert alive.now == alive.most - 400 == 400, "weights do not count"


class Doubled(nn.Module):
    """Keeps the results of exp and of relu for the backward, one of them twice."""

    def forward(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        e = x_BTCHW.requires_grad_().exp()
        return e.relu().flatten() * e.flatten()


class Watched(nn.Module):
    """Knows whether the tensor that it made and kept for the backward is still held."""

    def forward(self, x_BTCHW: torch.Tensor) -> torch.Tensor:
        e = x_BTCHW.requires_grad_().exp()
        self.made = weakref.ref(e.untyped_storage())
        return e
