"""Validation: what is measured, that it changes nothing of what is learnt, and that the best is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import stmul.train
from shards.errors import CorruptRecordError
from stmul.__main__ import main
from stmul.checkpoint import load
from stmul.errors import RunError
from stmul.evaluate import Networks, evaluate
from stmul.hold_out import divided
from stmul.meter import Validation
from stmul.runs import Run, checkpoint_path
from stmul.stages import build
from stmul.validation import validated
from tests.stmul.conftest import SMALL
from tests.stmul.stage import CPU, assert_same_weights, trained

HELD = "train.hold_out=0.3"


@pytest.mark.parametrize("stage", ["motion", "joint"])
def test_loss_and_accuracy_are_those_of_the_centre_crops_scores(small, split, stage):
    config = small(HELD, "train.sub_batch=4")
    records = divided(split, config.train)[1]
    assert len(records) == 3
    network = build(stage, config, 3).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = validated(network, split, config, stage, records, device=CPU)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    same = small("evaluate.protocol=centre", "evaluate.mirror=false", "evaluate.frames=2")
    results = evaluate(Networks(**{stage: network}), split, same, part="train", device=CPU)
    heads = ("appearance", "motion") if stage == "joint" else (f"{stage} alone",)
    scores_HNK = np.stack([results.heads[head][records] for head in heads]).astype(np.float64)
    labels_N = results.labels[records]
    right_scores_HN = scores_HNK[:, range(len(records)), labels_N]
    loss_HN = np.log(np.exp(scores_HNK).sum(2)) - right_scores_HN
    assert found["loss"] == pytest.approx(loss_HN.sum(0).mean(), rel=1e-4)
    assert found["accuracy"] == (scores_HNK.mean(0).argmax(1) == labels_N).mean()
    assert found["clips"] == 3


def test_validating_changes_nothing_of_what_is_learnt(small, split, tmp_path):
    often = trained(small(HELD), split, tmp_path / "often")
    seldom = trained(small(HELD, "train.validate_every=99"), split, tmp_path / "seldom")
    assert_same_weights(often.network, seldom.network)
    assert [row["loss"] for row in often.rows] == [row["loss"] for row in seldom.rows]
    assert [row["validation"] is None for row in often.rows] == [False, False]
    assert [row["validation"] is None for row in seldom.rows] == [True, False]  # the last epoch's always
    assert [one.validation for one in often.seen if one.validation] == [row["validation"] for row in often.rows]


def test_without_clips_held_out_nothing_is_validated_and_nothing_is_best(small, split, tmp_path):
    rows = trained(small(), split, tmp_path / "run").rows
    assert [row["validation"] for row in rows] == [None, None]
    assert not Run(tmp_path / "run").best("joint").exists()
    with pytest.raises(RunError, match=r"no best checkpoint of stage joint.*train\.hold_out=0\.1.*\(kept: 1, 2\)"):
        checkpoint_path(Run(tmp_path / "run"), "joint", "best")


def test_the_best_epoch_is_kept_and_of_equals_the_earlier(small, split, tmp_path, monkeypatch):
    accuracies = iter([0.25, 0.5, 0.5, 0.25])
    monkeypatch.setattr(
        stmul.train, "validated", lambda *_, **__: Validation(loss=1.0, accuracy=next(accuracies), clips=4)
    )
    config, run = small(HELD, "train.joint={epochs: 4, rates: [0.02]}"), Run(tmp_path / "run")
    weights = {}

    def log(row):
        weights[row["epoch"]] = run.best("joint").exists() and load(run.best("joint")).epoch

    trained(config, split, run.folder, log=log)
    assert weights == {1: False, 2: 1, 3: 2, 4: 2}  # as the epoch is logged: just before it may become the best
    best = load(checkpoint_path(run, "joint", "best"))
    assert (best.epoch, best.best) == (2, (2, 0.5))
    assert load(run.epoch("joint", 4)).best == (2, 0.5)
    assert list(run.checkpoints("joint")) == [3, 4]  # the best outlives its epoch's checkpoint


def test_a_training_with_validation_that_is_stopped_goes_on_as_if_it_never_was(small, split, tmp_path):
    config = small(HELD)
    whole = trained(config, split, tmp_path / "whole")
    first = trained(config, split, tmp_path / "cut", stop_after=1)  # in the midst of an epoch of two steps
    second = trained(config, split, tmp_path / "cut", stop_after=1)  # at its end
    rest = trained(config, split, tmp_path / "cut")
    assert (first.done, second.done, rest.done) == (False, False, True)
    assert first.learnt + second.learnt + rest.learnt == whole.learnt
    assert_same_weights(whole.network, rest.network)
    one, other = (load(Run(tmp_path / name).best("joint")) for name in ("whole", "cut"))
    assert (one.epoch, one.step, one.best, one.loader) == (other.epoch, other.step, other.best, other.loader)
    assert all(torch.equal(value, other.network[name]) for name, value in one.network.items())


def test_an_epoch_whose_validation_failed_is_closed_when_the_training_goes_on(small, split, tmp_path, monkeypatch):
    config = small(HELD)
    whole = trained(config, split, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stmul.train, "validated", lambda *_, **__: (_ for _ in ()).throw(CorruptRecordError("a clip")))
        with pytest.raises(CorruptRecordError) as caught:
            trained(config, split, tmp_path / "cut")
    (note,) = caught.value.__notes__
    assert "stage joint, validating after epoch 1. The same command goes on from" in note
    run = Run(tmp_path / "cut")
    assert run.newest("joint") == run.mid_epoch("joint")
    rest = trained(config, split, run.folder)
    assert rest.learnt == whole.learnt
    assert_same_weights(whole.network, rest.network)
    assert not run.mid_epoch("joint").exists()


def test_damaged_clips_held_out_are_left_out_where_damage_may_be_skipped(small, split, tmp_path):
    config = small(HELD, "data.damage=skip")
    record = int(divided(split, config.train)[1][1])
    row = split.index("train").row(record)
    blob, offset = split.store.place("train", row, "rgb")
    with (split.folder / blob).open("r+b") as file:
        for end in row.rgb.ends.tolist():
            file.seek(offset + end - 5)
            file.write(b"damage")
    found = trained(config, split, tmp_path / "run")
    assert [one["validation"]["clips"] for one in found.rows] == [2, 2]
    assert row.name in (tmp_path / "run" / "damaged.jsonl").read_text()
    with pytest.raises(CorruptRecordError, match=row.name):
        trained(small(HELD), split, tmp_path / "other")


def test_the_best_is_tested_when_asked_for(split, tmp_path):
    own = [f"data.shards={split.location}", f"experiment.folder={tmp_path / 'experiment'}", "train.stages=joint", HELD]
    settings = [word for change in (*SMALL, *own) for word in ("--set", change)]
    runner = CliRunner()
    done = runner.invoke(main, ["train", *settings], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "experiment").iterdir()
    words = ["test", "-e", str(tmp_path / "experiment"), "-u", "0", "-p", "best"]
    done = runner.invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"epoch {load(Run(folder).best('joint')).epoch}" in done.output
    assert runner.invoke(main, [*words[:-1], "bets"]).exit_code == 2
