"""SIGTERM and Ctrl-C: the step is finished and a checkpoint written; a second one interrupts and costs that alone."""

from __future__ import annotations

import pytest

from stmul.checkpoint import load
from tests.faults.conftest import assert_same_training

STEPS = {"appearance": 3, "motion": 3, "joint": 5}
MOMENTS = 4  # of a step: before and after the backward pass of each of its two sub-batches


def test_told_to_stop_in_the_middle_of_a_step_of_each_stage_and_run_again(place, uninterrupted):
    before = 0  # steps from where the training goes on to where the stage begins
    for stage, steps in STEPS.items():
        ended = place.train(save_minutes=0, kind="backward", number=MOMENTS * (before + 1) + 2, how="term")
        assert ended.code == 130, ended.output
        assert "stopping after this step" in ended.output
        assert "run the same command to go on" in ended.output
        stopped = load(place.run.mid_epoch(stage))
        assert (stopped.stage, stopped.step, stopped.sums[2]) == (stage, 2, 8)
        before = steps - 2
    assert place.train(save_minutes=0).code == 0
    assert_same_training(place.run, uninterrupted[0])


def test_told_to_stop_at_the_last_step_of_a_stage_it_stops_in_the_next(place, uninterrupted):
    ended = place.train(kind="backward", number=MOMENTS * STEPS["appearance"], how="term")
    assert ended.code == 130, ended.output
    assert load(place.run.mid_epoch("motion")).step == 1
    assert list(place.run.checkpoints("appearance")) == [1]


@pytest.mark.parametrize("kind", ["backward", "write"])
def test_told_twice_it_is_interrupted_and_goes_on_from_the_last_checkpoint(place, uninterrupted, kind):
    assert place.train(kind="backward", number=MOMENTS + 1, how="kill").code < 0  # a step is saved
    ended = place.train(kind=kind, number=30 if kind == "write" else 3, how="twice")
    assert ended.code == 1
    assert ended.output.endswith("Aborted!\n")
    assert "Traceback" not in ended.output
    assert load(place.run.newest("appearance")).step == 1
    assert not list(place.run.folder.rglob("*.partial"))
    assert place.train().code == 0
    assert_same_training(place.run, uninterrupted[0])
