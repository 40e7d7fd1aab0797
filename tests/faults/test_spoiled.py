"""What something else has spoiled since is named and never trained on; what a power cut tore costs nothing."""

from __future__ import annotations

import pytest

from tests.faults.conftest import assert_same_training
from tests.faults.test_told_to_stop import MOMENTS, STEPS

BEFORE_JOINT = MOMENTS * (STEPS["appearance"] + STEPS["motion"])


def test_a_spoiled_checkpoint_and_the_one_before_it_are_named_and_a_torn_log_is_mended(place, uninterrupted):
    assert place.train(kind="backward", number=BEFORE_JOINT + MOMENTS * 4 + 1, how="kill").code < 0
    newest = place.run.mid_epoch("joint")
    newest.write_bytes(newest.read_bytes()[:-100])
    with (place.run.folder / "log.jsonl").open("ab") as log:
        log.write(b'{"stage": "joint", "epo')
    ended = place.train()
    assert ended.code == 1
    folder = "experiment/tiny-001/joint"
    assert f"Error: {folder}/mid-epoch.pt: not a checkpoint (" in ended.output
    assert f"To go on from {folder}/epoch-0001.pt, delete it and run the same command" in ended.output
    assert "Traceback" not in ended.output
    newest.unlink()
    assert place.train().code == 0
    assert_same_training(place.run, uninterrupted[0])


@pytest.mark.parametrize("keep", [0, 1, 100])
def test_the_only_checkpoint_of_a_stage_spoiled_the_stage_is_begun_again(place, keep):
    assert place.train(kind="backward", number=MOMENTS + 1, how="kill").code < 0
    newest = place.run.mid_epoch("appearance")
    newest.write_bytes(newest.read_bytes()[:keep])
    ended = place.train()
    assert ended.code == 1
    assert "To begin stage appearance again, delete it and run the same command" in ended.output
