"""Whatever ends a training in the midst of a step is told, and has the steps before it kept: going on loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import stmul.train
from shards.errors import CorruptRecordError
from stmul.__main__ import main
from stmul.batchnorm import BatchNorm2d
from stmul.checkpoint import load
from stmul.errors import CheckpointError, TrainingError
from stmul.failures import out_of_memory
from stmul.runs import Run
from stmul.stages import build
from tests.stmul.conftest import SMALL
from tests.stmul.stage import assert_same_weights, trained

STEP = 4  # the one that fails, counted from 0: in the midst of the second epoch


@contextmanager
def failing(what: Callable[[Tensor], Tensor], number: int = STEP) -> Iterator[None]:
    """Inside, `what` becomes of each normalised map in the forwards of one step, counted by updates."""
    updates, update, normalise = 0, torch.optim.SGD.step, BatchNorm2d._normalise

    def updated(optimizer):
        nonlocal updates
        updates += 1
        return update(optimizer)

    def normalised(layer, x_NCHW):
        out = normalise(layer, x_NCHW)
        return what(out) if updates == number else out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", updated)
        patch.setattr(BatchNorm2d, "_normalise", normalised)
        yield


def raising(error):
    def raises(x_NCHW):
        raise error

    return raises


def full_gpu(x_NCHW):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words.")


FAILURES = [
    (full_gpu, TrainingError, r"no memory is left \(CUDA out of memory\. Tried to allocate 2\.00 GiB\)"),
    (lambda x_NCHW: x_NCHW * float("nan"), TrainingError, "the loss is nan.*lower rate .*train.joint.rates"),
    (raising(CorruptRecordError("a shard of them")), CorruptRecordError, "a shard of them"),
    (raising(ZeroDivisionError("a mistake of ours")), ZeroDivisionError, "a mistake of ours"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory, make_split):
    """Settings, shards, and the training that nothing ended."""
    from configs import load as load_settings
    from shards.split import open_split
    from stmul.config import Config

    folder = tmp_path_factory.mktemp("plain")
    make_split(folder / "split1", train=10, test=5, width=48, height=40, frames=14)
    config = load_settings(Config, None, SMALL)
    with open_split(folder / "split1") as split:
        yield config, split, trained(config, split, folder / "run")


@pytest.mark.parametrize(("what", "kind", "words"), FAILURES)
def test_a_step_that_fails_has_the_steps_before_it_kept_and_going_on_is_as_if_it_had_not(
    plain, tmp_path, what, kind, words
):
    config, split, whole = plain
    rows = []
    with failing(what), pytest.raises(kind, match=words) as caught:
        trained(config, split, tmp_path / "run", log=rows.append)
    run = Run(tmp_path / "run")
    kept = load(run.mid_epoch("joint"))
    assert (kept.step, run.newest("joint")) == (STEP, run.mid_epoch("joint"))
    assert all(value.isfinite().all() for value in kept.network.values())
    told = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert f"{run.folder}: stage joint, step {STEP + 1} of 5" in told
    assert f"The same command goes on from {run.mid_epoch('joint')}" in told
    assert not list(run.folder.rglob("*.partial"))
    rest = trained(config, split, run.folder, log=rows.append)
    assert [(row["epoch"], row["loss"], row["losses"]) for row in rows] == [
        (row["epoch"], row["loss"], row["losses"]) for row in whole.rows
    ]
    assert_same_weights(whole.network, rest.network)


def test_a_failure_at_the_same_step_again_loses_nothing(plain, tmp_path):
    config, split, _ = plain
    for number in (STEP, 0):  # counted in each session
        with failing(full_gpu, number), pytest.raises(TrainingError, match=r"goes on from .*mid-epoch\.pt"):
            trained(config, split, tmp_path / "run")
        assert load(Run(tmp_path / "run").newest("joint")).step == STEP


def test_a_failure_in_the_first_step_says_that_nothing_was_done(plain, tmp_path):
    config, split, _ = plain
    with failing(full_gpu, 0), pytest.raises(TrainingError, match="same command begins stage joint"):
        trained(config, split, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_an_update_that_ends_in_its_midst_is_not_kept(plain, tmp_path, monkeypatch):
    config, split, whole = plain
    commit, calls = stmul.train.commit_moments, []

    def fails(*args):
        calls.append(1)
        if len(calls) == STEP + 1:
            full_gpu(None)
        return commit(*args)

    monkeypatch.setattr(stmul.train, "commit_moments", fails)
    with pytest.raises(TrainingError, match=r"of no step\. The same.*epoch-0001\.pt"):
        trained(config, split, tmp_path / "run")
    monkeypatch.undo()
    assert not Run(tmp_path / "run").mid_epoch("joint").exists()
    assert_same_weights(whole.network, trained(config, split, tmp_path / "run").network)


def test_weights_that_are_not_finite_are_never_kept(plain, tmp_path, monkeypatch):
    config, split, _ = plain
    update = torch.optim.SGD.step

    def spoils(optimizer):
        update(optimizer)
        optimizer.param_groups[0]["params"][0].data.fill_(float("inf"))

    monkeypatch.setattr(torch.optim.SGD, "step", spoils)
    with pytest.raises(TrainingError, match=r"could not be kept \(appearance\.conv1\.weight is not finite\)"):
        trained(config, split, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.pt"))


def test_what_could_not_be_kept_is_said_beside_what_ended_the_step(plain, tmp_path):
    config, split, _ = plain
    (tmp_path / "run" / "joint").mkdir(parents=True)
    (tmp_path / "run" / "joint" / "mid-epoch.pt.partial").symlink_to("/dev/full")
    with (
        failing(full_gpu),
        pytest.raises(TrainingError, match=r"no memory is left.*The 4 steps before it could not be kept \(.*No space"),
    ):
        trained(config, split, tmp_path / "run")


def test_fewer_sub_batches_at_once_go_on_with_the_same_run(split, tmp_path):
    own = [f"data.shards={split.location}", f"experiment.folder={tmp_path / 'experiment'}", "train.stages=joint"]
    settings = [word for change in (*SMALL, *own) for word in ("--set", change)]
    runner = CliRunner()
    with failing(full_gpu):
        done = runner.invoke(main, ["train", *settings, "--set", "train.groups=2"])
    assert (done.exit_code, "Traceback" in done.output) == (1, False)
    assert "2 sub-batches of 2 go through the network at once: --set train.groups=1" in done.output
    done = runner.invoke(main, ["train", *settings, "--set", "train.groups=1"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "goes on where it was stopped" in done.output
    assert len(list((tmp_path / "experiment").iterdir())) == 1


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (torch.OutOfMemoryError("x"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("shape '[2]' is invalid"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_only_what_says_so_is_taken_for_a_full_memory(error, is_full):
    assert out_of_memory(error) == is_full


def test_a_checkpoint_of_other_classes_is_refused(plain, tmp_path, make_split):
    from shards.split import open_split

    config, split, _ = plain
    trained(config, split, tmp_path / "run", stop_after=1)
    make_split(tmp_path / "other", train=10, test=5, classes=4, width=48, height=40, frames=14)
    with (
        open_split(tmp_path / "other") as other,
        pytest.raises(CheckpointError, match=r"trained on 3 classes \(class0, .*these shards have 4 .*--fresh"),
    ):
        trained(config, other, tmp_path / "run")


def test_deterministic_trainings_are_the_same_and_leave_the_mode_as_it_was(plain, tmp_path, monkeypatch):
    from stmul.arithmetic import deterministic

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert build("joint", plain[0], 3) is not None
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_what_cannot_be_done_deterministically_is_said_with_what_to_leave_out(plain, tmp_path):
    config, split, _ = plain
    words = "max_unpool does not have a deterministic implementation, but you set 'torch.use_deterministic_algorithms"
    with failing(raising(RuntimeError(words)), 0), pytest.raises(TrainingError, match="Train without --deterministic"):
        trained(config, split, tmp_path / "run")
