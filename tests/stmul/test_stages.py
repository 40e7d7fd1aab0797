"""What stages start from: scratch, base networks, ImageNet weights, another run; and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch

from configs import SettingsError
from stmul.checkpoint import load
from stmul.config import Config, Experiment
from stmul.errors import RunError, TrainingError, WeightsError
from stmul.runs import checkpoint_path, find_run
from stmul.stages import (
    WITHOUT_EFFECT,
    build,
    choose_device,
    load_networks,
    open_run,
    pool_of,
    train_stages,
)
from stmul.start import find_start

CPU = torch.device("cpu")


def run_all(config, split, fresh=False):
    start = find_start(config, split)
    run, _ = open_run(config, split, start, name="small", fresh=fresh)
    said = []
    train_stages(
        config, split, run, start, device=CPU, watch=lambda _: None, log=run.log, say=said.append, stop=lambda: False
    )
    return run, start, said


def test_a_stage_begins_as_a_function_of_the_seed(small):
    one, same, other = (build("joint", small(f"train.seed={seed}"), 3) for seed in (1, 1, 2))
    assert torch.equal(one.motion.conv1.weight, same.motion.conv1.weight)
    assert not torch.equal(one.motion.conv1.weight, other.motion.conv1.weight)
    alone = build("motion", small(), 3)
    assert not torch.equal(alone.conv1.weight, one.motion.conv1.weight)


@pytest.mark.parametrize(("crop", "pool"), [(32, 1), (64, 2), (112, 4), (224, 7)])
def test_the_pool_is_as_wide_as_the_last_map_in_training(small, crop, pool):
    assert pool_of(small(f"data.crop={crop}")) == pool


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ("data.threads=1", True),
        ("train.keep=5", True),
        ("train.save_minutes=0", True),
        ("experiment.use_gpu=auto", True),
        ("train.seed=2", False),
        ("train.joint.epochs=3", False),
        ("data.order=windowed", False),
    ],
)
def test_a_stopped_run_goes_on_unless_a_setting_that_matters_to_what_is_learnt_differs(small, split, change, goes_on):
    config = small()
    run, _ = open_run(config, split, find_start(config, split), name="small", fresh=False)
    other = small(change)
    start = find_start(other, split)
    assert open_run(other, split, start, name="small", fresh=False)[1] == goes_on
    assert open_run(config, split, start, name="small", fresh=True) != (run, True)


def test_settings_without_effect_on_what_is_learnt_exist():
    for section, names in WITHOUT_EFFECT.items():
        assert names <= getattr(Config(), section).__class__.model_fields.keys()


def test_base_networks_are_found_by_data_set_split_and_stream_and_the_joint_network_starts_as_they_are(
    small, split, tmp_path
):
    config = small("train.joint.epochs=0", f"train.base={tmp_path}", "train.stages=base")
    with pytest.raises(WeightsError, match="appearance and motion networks of drawn split 1, found neither"):
        find_start(config, split)
    bases = {stream: build(stream, small("train.seed=9"), 3) for stream in ("appearance", "motion")}
    for stream, network in bases.items():
        torch.save(network.state_dict(), tmp_path / f"drawn-split1-{stream}.pt")
    _, start, _ = run_all(config, split)
    assert start.stages == ("joint",)
    assert "drawn-split1-appearance.pt and" in start.words


def test_auto_without_weights_says_why_and_trains_from_scratch(small, split):
    start = find_start(small("train.stages=auto", "train.base=nowhere"), split)
    assert start.stages == ("appearance", "motion", "joint")
    assert "width" in start.words
    assert "from scratch" in start.words


def test_the_joint_network_starts_from_the_streams_trained_before_it(small, split):
    config = small("train.joint={epochs: 1, rates: [1e-12]}", "train.momentum=0", "train.weight_decay=0")
    run, _, _ = run_all(config, split)
    joint = load(run.newest("joint")).network
    for stream in ("appearance", "motion"):
        alone = load(run.newest(stream)).network
        torch.testing.assert_close(
            joint[f"{stream}.conv1.weight"], alone["conv1.weight"], atol=1e-6, rtol=1e-5, check_stride=False
        )


def test_a_run_can_start_from_another_run(small, split):
    run, _, _ = run_all(small(), split)
    config = small(f"experiment.pre_trained_id={run.id}")
    start = find_start(config, split)
    assert start.stages == ("joint",)
    assert torch.equal(
        start.states["joint"]["motion.conv1.weight"], load(run.newest("joint")).network["motion.conv1.weight"]
    )
    with pytest.raises(RunError, match=r"no checkpoint of epoch 7 \(kept: 1, 2\)"):
        checkpoint_path(run, "joint", 7)


def test_a_classifier_of_other_classes_is_drawn_anew_and_said(small, split, make_split, tmp_path):
    run, _, _ = run_all(small(), split)
    make_split(tmp_path / "other", train=8, test=4, classes=4, width=48, height=40, frames=14)
    from shards.split import open_split

    with open_split(tmp_path / "other") as other:
        _, _, said = run_all(small(f"experiment.pre_trained_id={run.id}"), other)
    assert any("classifier.weight is for another number of classes" in line for line in said)


def test_networks_are_loaded_at_the_epoch_asked_for_and_other_classes_are_refused(small, split):
    config = small()
    run, _, _ = run_all(config, split)
    networks, epoch = load_networks(run, config, split.manifest.classes, epoch=1, device=CPU)
    assert epoch == 1
    assert networks.appearance is not None
    with pytest.raises(TrainingError, match=r"class 2 is 'class2' there and 'jump' here"):
        load_networks(run, config, ("class0", "class1", "jump"), epoch=0, device=CPU)
    shutil.rmtree(run.folder / "joint")  # as if it was stopped after the streams
    assert load_networks(run, config, split.manifest.classes, epoch=1, device=CPU)[1] == 1
    with pytest.raises(RunError, match=r"no stream at epoch 2 \(kept: appearance 1; motion 1\)"):
        load_networks(run, config, split.manifest.classes, epoch=2, device=CPU)


def test_a_run_that_is_not_there_suggests_the_nearest(small, split, tmp_path):
    with pytest.raises(RunError, match="make train"):
        find_run(tmp_path / "experiment", "")
    run_all(small(), split)
    with pytest.raises(RunError, match="did you mean small-001"):
        find_run(tmp_path / "experiment", "smal-001")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu():
    assert choose_device(Experiment()) == CPU
    with pytest.raises(SettingsError, match="--use-gpu no"):
        choose_device(Experiment(use_gpu="yes"))
