"""Training: a stopped training is the same training, a step is one update whatever its cutting, bad losses end it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.optim import SGD

from shards.draws import key_of
from stmul.batchnorm import layers
from stmul.checkpoint import load
from stmul.errors import CheckpointError, TrainingError
from stmul.loading import Batch, merged, training_batch, training_stream
from stmul.memory import divisor, groups_at_once, saved_bytes
from stmul.runs import Run
from stmul.schedule import parameter_groups
from stmul.stages import build, open_run, train_stages
from stmul.start import find_start
from stmul.train import step, train_stage

CPU = torch.device("cpu")
NEW = {"heads", "scale", "best"}  # in checkpoints, since the first version


def trained(config, split, folder, *, stop_after=None, stage="joint"):
    """A stage trained in `folder`; returns whether it finished, its network and the log's rows."""
    network = build(stage, config, 3)
    seen, rows = [], []
    done = train_stage(
        stage,
        network,
        config,
        split,
        Run(folder),
        device=CPU,
        watch=seen.append,
        log=rows.append,
        stop=lambda: stop_after is not None and len(seen) + 1 >= stop_after,
    )
    return done, network, rows


def what_is_learnt(rows):
    return [(row["stage"], row["epoch"], row["step"], row["loss"], row["accuracy"], row["lr"]) for row in rows]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_a_training_stopped_at_any_step_and_continued_is_the_same_training(small, split, tmp_path, stop_after):
    config = small()
    _, whole, rows = trained(config, split, tmp_path / "whole")
    done, _, first = trained(config, split, tmp_path / "cut", stop_after=stop_after)
    assert not done
    done, again, rest = trained(config, split, tmp_path / "cut")
    assert done
    assert what_is_learnt(first + rest) == what_is_learnt(rows)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_other_thread_counts_learn_the_same(small, split, tmp_path):
    one = trained(small("data.threads=1"), split, tmp_path / "one")[2]
    four = trained(small("data.threads=4"), split, tmp_path / "four")[2]
    assert what_is_learnt(one) == what_is_learnt(four)


def test_another_seed_learns_something_else(small, split, tmp_path):
    one = trained(small(), split, tmp_path / "one")[2]
    other = trained(small("train.seed=2"), split, tmp_path / "other")[2]
    assert what_is_learnt(one) != what_is_learnt(other)


def batches_of(config, split, stage="joint"):
    with training_stream(split, config, stage, pinned=False) as stream:
        return [training_batch(decoded, config, config.train.joint, stage) for decoded in stream.step()]


def updated(network, batches, config, **changes):
    network = copy.deepcopy(network)
    optimizer = SGD(parameter_groups(network, 5e-4), lr=0.1)
    settings = {"clips": 4, "seed": 1, "moments_rate": 0.1, "clip_norm": 0.0, **changes}
    loss, right, *_ = step(network, batches, optimizer, **settings)
    return network, float(loss), int(right)


def test_sub_batches_at_once_or_one_by_one_are_the_same_step(small, split):
    config = small("network.motion.dropout=0.0")
    network = build("joint", config, 3).train()
    batches = batches_of(config, split)
    apart, loss_apart, right_apart = updated(network, batches, config)
    at_once, loss_at_once, right_at_once = updated(network, merged(iter(batches), 2), config)
    assert loss_apart == pytest.approx(loss_at_once, rel=1e-5)
    assert right_apart == right_at_once
    for name, value in apart.state_dict().items():
        torch.testing.assert_close(value, at_once.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_loss_of_a_step_is_the_sum_over_heads_and_clips_of_the_cross_entropy(small, split):
    config = small("network.motion.dropout=0.0", "train.sub_batch=4")
    network = build("joint", config, 3).train()
    (batch,) = batches_of(config, split)
    maps = copy.deepcopy(network)(batch.rgb_BTCHW, batch.flow_BTCHW)
    expected = 0.0
    for map_BKTHW in maps:
        for scores_K, label in zip(map_BKTHW.mean((2, 3, 4)).tolist(), batch.labels_B.tolist(), strict=True):
            expected += math.log(sum(math.exp(score) for score in scores_K)) - scores_K[label]
    assert updated(network, [batch], config)[1] == pytest.approx(expected, rel=1e-4)


def test_a_step_moves_the_moments_once_and_clips_the_gradient_when_asked(small, split):
    config = small("network.motion.dropout=0.0")
    network = build("joint", config, 3).train()
    batches = batches_of(config, split)
    still, _, _ = updated(network, batches, config, moments_rate=1e-9)
    moved, _, _ = updated(network, batches, config, moments_rate=1.0)
    assert not torch.allclose(layers(still)[0].running_sigma, layers(moved)[0].running_sigma)
    clipped, _, _ = updated(network, batches, config, clip_norm=1e-9)
    before, after = (dict(one.named_parameters())["appearance.classifier.bias"] for one in (network, clipped))
    torch.testing.assert_close(before, after, atol=1e-7, rtol=0)


def test_dropout_is_a_function_of_the_position(small, split):
    config = small()
    network = build("joint", config, 3).train()
    batches = batches_of(config, split)
    torch.manual_seed(1)
    one = updated(network, batches, config)[1]
    torch.manual_seed(2)
    assert updated(network, batches, config)[1] == one
    assert updated(network, batches, config, seed=key_of(2))[1] != one


def test_a_loss_that_is_not_finite_ends_the_stage_and_says_what_to_try(small, split, tmp_path):
    config = small("train.joint={epochs: 50, rates: [1e12]}", "network.temporal.units=[]")
    with pytest.raises(TrainingError, match=r"train\.joint\.rates"):
        trained(config, split, tmp_path / "run")


def test_only_the_last_checkpoints_are_kept(small, split, tmp_path):
    config = small("train.joint={epochs: 5, rates: [0.02]}")
    trained(config, split, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert list(run.checkpoints("joint")) == [4, 5]
    assert load(run.newest("joint")).epoch == 5


def test_a_checkpoint_of_other_settings_is_refused_by_their_names(small, split, tmp_path):
    trained(small(), split, tmp_path / "run")
    wider = small("network.appearance.width=16", "network.motion.width=16")
    with pytest.raises(CheckpointError, match=r"trained with network\.appearance\.width 8, now 16; network\.motion"):
        trained(wider, split, tmp_path / "run")


def test_all_stages_run_and_a_finished_run_is_not_continued(small, split):
    config = small()
    start = find_start(config, split)
    rows = []

    def run_all(run):
        return train_stages(
            config,
            split,
            run,
            start,
            device=CPU,
            watch=lambda progress: None,
            log=lambda row: (run.log(row), rows.append(row)),
            say=print,
            stop=lambda: False,
        )

    run, goes_on = open_run(config, split, start, name="small", fresh=False)
    assert not goes_on
    assert open_run(config, split, start, name="small", fresh=False) == (run, True)
    assert run_all(run)
    assert run.about().done
    assert [row["stage"] for row in run.history()] == ["appearance", "motion", "joint", "joint"]
    other, goes_on = open_run(config, split, start, name="small", fresh=False)
    assert (other.id, goes_on) == ("small-002", False)
    first = what_is_learnt(rows)
    rows.clear()
    run_all(other)
    assert what_is_learnt(rows) == first


def test_groups_at_once_divide_the_batch(small):
    assert [divisor(32, limit) for limit in (0, 1, 3, 31, 32, 99)] == [1, 1, 2, 16, 32, 32]
    config = small("train.groups=2")
    assert groups_at_once(build("joint", config, 3), config, "joint", CPU) == 2
    assert groups_at_once(build("joint", small(), 3), small(), "joint", CPU) == 1


def test_the_trial_forward_counts_memory_and_leaves_no_trace(small):
    config = small()
    network = build("joint", config, 3).train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    small_bytes = saved_bytes(network, config, "joint", CPU)
    large = small("data.crop=64")
    assert 3 < saved_bytes(network, large, "joint", CPU) / small_bytes < 5
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]), name


def test_merged_batches_keep_every_clip_in_order():
    def one(position):
        return Batch(
            rgb_BTCHW=torch.full((1, 1, 3, 2, 2), float(position)),
            flow_BTCHW=None,
            labels_B=torch.tensor([position]),
            positions=(position,),
            valid=(True,),
        )

    found = list(merged((one(position) for position in range(5)), 2))
    assert [batch.positions for batch in found] == [(0, 1), (2, 3), (4,)]
    assert [batch.groups for batch in found] == [2, 2, 1]
    assert found[0].rgb_BTCHW[:, 0, 0, 0, 0].tolist() == [0.0, 1.0]
    assert found[0].flow_BTCHW is None


def test_a_row_tells_each_heads_loss_and_accuracy_and_they_add_up(small, split, tmp_path):
    for stage, heads in (("joint", ["appearance", "motion"]), ("motion", ["motion"])):
        _, _, rows = trained(small(), split, tmp_path / stage, stage=stage)
        for row in rows:
            assert list(row["losses"]) == list(row["accuracies"]) == heads
            assert sum(row["losses"].values()) == pytest.approx(row["loss"], rel=1e-6)
            assert all(0 <= accuracy <= 1 for accuracy in row["accuracies"].values())
            assert (row["memory"], row["skipped"], row["validation"]) == (0.0, 0, None)
        if stage == "motion":
            assert [row["accuracies"]["motion"] for row in rows] == [row["accuracy"] for row in rows]


def test_a_checkpoint_of_an_earlier_version_goes_on_and_tells_no_heads_of_its_epoch(small, split, tmp_path):
    config, run = small(), Run(tmp_path / "cut")
    _, whole, rows = trained(config, split, tmp_path / "whole")
    trained(config, split, run.folder, stop_after=1)
    fields = torch.load(run.mid_epoch("joint"), weights_only=True)
    torch.save({name: value for name, value in fields.items() if name not in NEW}, run.mid_epoch("joint"))
    _, again, rest = trained(config, split, run.folder)
    assert what_is_learnt(rest) == what_is_learnt(rows)
    assert rest[0]["losses"] == {}
    assert rest[1]["losses"] == rows[1]["losses"]
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
