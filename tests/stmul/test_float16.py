"""Training in float16: nearly that in float32, small gradients are not lost, steps that overflow are skipped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD

import stmul.place
from stmul.arithmetic import GROWTH, LARGEST, LossScale, autocast
from stmul.checkpoint import load
from stmul.errors import DivergedError
from stmul.loading import training_batch, training_stream
from stmul.runs import Run
from stmul.schedule import parameter_groups
from stmul.stages import build
from stmul.train import step
from tests.stmul.stage import assert_same_weights, trained

FLOAT16 = "train.precision=float16"
SETTINGS = {"clips": 4, "seed": 1, "moments_rate": 0.1, "clip_norm": 0.0}


@pytest.fixture
def batches(small, split):
    config = small()
    with training_stream(split, config, "joint", pinned=False) as stream:
        return [training_batch(decoded, config, config.train.joint, "joint") for decoded in stream.step()]


def stepped(network, batches, **changes):
    optimizer = SGD(parameter_groups(network, 5e-4), lr=0.01)
    return step(network, batches, optimizer, **{**SETTINGS, **changes})


def trained_before(small):
    """A network with residual branches as after some training: freshly drawn it amplifies every rounding."""
    network = build("joint", small(), 3).train()
    for name, parameter in network.named_parameters():
        if name.endswith("norm2.weight"):
            torch.nn.init.constant_(parameter, 0.03)
    return network


def gradient(network):
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


def test_a_step_in_float16_is_nearly_the_step_in_float32_whatever_the_loss_is_multiplied_by(small, split):
    config = small("data.crop=64", "train.sub_batch=4")  # statistics of enough values to hold still
    with training_stream(split, config, "joint", pinned=False) as stream:
        batches = [training_batch(decoded, config, config.train.joint, "joint") for decoded in stream.step()]
    gradients, losses = [], []
    for precision, scale in (("float32", None), ("float16", 2.0**2), ("float16", 2.0**6)):
        network = trained_before(small)
        seen = stepped(network, batches, precision=precision, scale=scale and LossScale(scale=scale))
        assert seen.updated
        losses.append(seen.loss)
        gradients.append(gradient(network))
        assert gradients[-1].dtype == torch.float32
    for other in (1, 2):
        assert losses[other] == pytest.approx(losses[0], rel=0.02)
        assert float(torch.nn.functional.cosine_similarity(gradients[0], gradients[other], 0)) > 0.98
        assert float(gradients[other].norm() / gradients[0].norm()) == pytest.approx(1, rel=0.05)
    assert losses[0] != losses[1] == losses[2]


def test_a_step_whose_gradients_overflow_changes_nothing(small, batches):
    network = build("joint", small(), 3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = SGD(parameter_groups(network, 5e-4), lr=0.01, momentum=0.9)
    seen = step(network, batches, optimizer, precision="float16", scale=LossScale(scale=2.0**40), **SETTINGS)
    assert not seen.updated
    assert seen.valid == 4
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not optimizer.state
    after = stepped(network, batches, precision="float16", scale=LossScale())  # moments were begun anew, too
    other = build("joint", small(), 3).train()
    assert stepped(other, batches, precision="float16", scale=LossScale()) == after
    assert_same_weights(network, other)


def test_gradients_that_no_scale_helps_are_an_error(small, batches):
    network = build("joint", small(), 3).train()
    network.appearance.classifier.weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(DivergedError, match="a gradient is not finite"):
        stepped(network, batches, precision="float16", scale=LossScale(scale=0.5))
    with pytest.raises(DivergedError, match="a gradient is not finite"):
        stepped(network, batches)


@given(st.lists(st.booleans(), max_size=60))
def test_the_scale_is_a_power_of_two_halved_by_each_step_skipped(updates):
    scale = LossScale()
    for updated in updates:
        scale = scale.after(updated)
    assert scale.scale == 2.0**16 / 2 ** updates.count(False)
    assert scale.skipped == updates.count(False)


def test_the_scale_doubles_after_many_good_steps_and_no_further_than_it_may():
    scale = LossScale()
    for _ in range(GROWTH):
        assert scale.scale == 2.0**16
        scale = scale.after(True)
    assert (scale.scale, scale.good) == (2.0**17, 0)
    assert LossScale(scale=LARGEST, good=GROWTH - 1).after(True).scale == LARGEST


def test_a_stopped_training_in_float16_goes_on_as_if_it_never_was_and_counts_what_was_skipped(
    small, split, tmp_path, monkeypatch
):
    # So large that the first steps overflow: float16 ends at 65504.
    monkeypatch.setattr(stmul.place, "LossScale", lambda **given: LossScale(**{"scale": 2.0**20, **given}))
    config = small(FLOAT16, "train.joint={epochs: 4, rates: [0.02]}")
    whole = trained(config, split, tmp_path / "whole")
    first = trained(config, split, tmp_path / "cut", stop_after=4)
    kept = load(Run(tmp_path / "cut").newest("joint")).scale
    rest = trained(config, split, tmp_path / "cut")
    assert first.learnt + rest.learnt == whole.learnt
    assert_same_weights(whole.network, rest.network)
    assert 0 < whole.rows[-1]["skipped"] < 10
    assert [one.skipped for one in first.seen + rest.seen] == [one.skipped for one in whole.seen]
    assert (kept[0], kept[2]) == (2.0 ** (20 - first.seen[-1].skipped), first.seen[-1].skipped)
    assert load(Run(tmp_path / "whole").newest("joint")).scale[0] == 2.0 ** (20 - whole.rows[-1]["skipped"])


def test_other_precisions_have_no_scale(small, split, tmp_path):
    rows = trained(small(), split, tmp_path / "run", stop_after=1).seen
    assert rows[0].skipped == 0
    assert load(Run(tmp_path / "run").newest("joint")).scale is None
    with autocast(torch.device("cpu"), "float16"):
        assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == torch.float16
