"""A checkpoint gives back what was saved, or says what is wrong with it; damage never passes for weights."""

from __future__ import annotations

import pickle
import shutil
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from shards.errors import ShardError
from stmul.checkpoint import Checkpoint, load, restore, resume_from, save
from stmul.errors import CheckpointError
from stmul.runs import Run


def tiny(width: int = 3) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(OrderedDict(first=nn.Linear(2, width), norm=nn.BatchNorm1d(width), last=nn.Linear(width, 2)))


def checkpoint(**changes) -> Checkpoint:
    network = tiny()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    whole = {
        "stage": "joint",
        "epoch": 3,
        "step": 120,
        "config": "train:\n  seed: 1\n",
        "dataset": "drawn",
        "split": 1,
        "classes": ["a", "b"],
        "loader": '{"position": 480}',
        "sums": (1.25, 7, 16),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    return Checkpoint(**{**whole, **changes})


def assert_same(one, other) -> None:
    """Equal all the way down, tensors bit by bit, kinds included."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for part, same_part in zip(one, other, strict=True):
            assert_same(part, same_part)
    else:
        assert one == other
        assert type(one) is type(other)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run") / "joint" / "epoch-0003.pt"
    save(path, checkpoint())
    return path


def test_what_is_loaded_is_what_was_saved(tmp_path):
    whole = checkpoint()
    save(tmp_path / "new folder" / "one.pt", whole)
    found = load(tmp_path / "new folder" / "one.pt")
    for field in fields(Checkpoint):
        one, other = getattr(whole, field.name), getattr(found, field.name)
        assert_same(dict(one) if field.name in {"network", "optimizer"} else one, other)
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["one.pt"]


def test_a_network_and_its_optimizer_go_on_from_a_checkpoint_as_if_never_stopped(tmp_path):
    def steps(network: nn.Module, optimizer: torch.optim.SGD, count: int) -> None:
        for number in range(count):
            optimizer.zero_grad()
            network(torch.randn(8, 2, generator=torch.Generator().manual_seed(number))).square().sum().backward()
            optimizer.step()

    network = tiny()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    steps(network, optimizer, 3)
    save(tmp_path / "c.pt", checkpoint(network=network.state_dict(), optimizer=optimizer.state_dict()))
    steps(network, optimizer, 3)

    other = tiny()
    again = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9)
    found = load(tmp_path / "c.pt")
    restore(other, found.network, "here")
    again.load_state_dict(dict(found.optimizer))
    steps(other, again, 3)
    assert_same(dict(network.state_dict()), dict(other.state_dict()))


def test_a_checkpoint_replaces_the_one_before_whole(saved, tmp_path, monkeypatch):
    path = Path(shutil.copy(saved, tmp_path))
    monkeypatch.setattr(torch, "save", lambda _, file: (file.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        save(path, checkpoint())
    assert path.read_bytes() == saved.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("numbers", [10, 100_000])
def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path, numbers):
    (tmp_path / "c.pt.partial").symlink_to("/dev/full")
    with pytest.raises(ShardError, match=r"c\.pt: cannot be written: No space left on device\. Check the disk"):
        save(tmp_path / "c.pt", checkpoint(network={"weights": torch.zeros(numbers)}))
    assert list(tmp_path.iterdir()) == []


def test_what_torch_refuses_to_save_keeps_its_own_words(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        save(tmp_path / "c.pt", checkpoint(config=lambda: None))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_an_earlier_version_with_more_in_it_is_read(saved, tmp_path):
    fields = torch.load(saved, weights_only=True)
    torch.save({**fields, "torch_rng": torch.get_rng_state()}, tmp_path / "earlier.pt")
    assert_same(dict(load(tmp_path / "earlier.pt").network), dict(load(saved).network))


def test_a_stage_goes_on_from_its_newest_checkpoint(saved, tmp_path):
    run = Run(tmp_path)
    assert resume_from(run, "joint") is None
    for epoch in (1, 2):
        save(run.epoch("joint", epoch), checkpoint(epoch=epoch))
    path, found = resume_from(run, "joint")
    assert (path, found.epoch) == (run.epoch("joint", 2), 2)
    save(run.mid_epoch("joint"), checkpoint(epoch=2, step=130))
    path, found = resume_from(run, "joint")
    assert (path, found.step) == (run.mid_epoch("joint"), 130)


def test_a_damaged_newest_checkpoint_is_refused_and_the_one_before_it_named(saved, tmp_path):
    run = Run(tmp_path / "demo-001")
    for epoch in (9, 10):
        save(run.epoch("joint", epoch), checkpoint(epoch=epoch))
    run.epoch("joint", 10).write_bytes(saved.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        resume_from(run, "joint")
    message = str(caught.value)
    assert message.startswith(f"{run.epoch('joint', 10)}: not a checkpoint (")
    assert message.endswith(
        "It was whole when it was written: see what else that disk has damaged."
        f" To go on from {run.epoch('joint', 9)}, delete it and run the same command"
    )
    run.epoch("joint", 9).unlink()
    with pytest.raises(CheckpointError, match="To begin stage joint again, delete it and run the same command"):
        resume_from(run, "joint")


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pt: no such checkpoint"):
        load(tmp_path / "none.pt")


@pytest.mark.parametrize("cut", [0, 1, 3, 50, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, -1])
def test_a_checkpoint_cut_anywhere_is_refused(saved, tmp_path, cut):
    data = saved.read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    with pytest.raises(CheckpointError, match=r"cut\.pt: not a checkpoint \(") as caught:
        load(tmp_path / "cut.pt")
    assert "\n" not in str(caught.value)


@settings(
    max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)
@given(data=st.data())
def test_a_flipped_byte_is_refused_or_changes_nothing(saved, tmp_path, data):
    whole = bytearray(saved.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "flipped.pt"
    path.write_bytes(whole)
    try:
        found = load(path)
    except CheckpointError:
        return
    one = load(saved)
    for field in fields(Checkpoint):
        assert_same(getattr(one, field.name), getattr(found, field.name))


def test_a_flipped_weight_does_not_pass_for_a_weight(tmp_path):
    weights = torch.arange(1000.0)
    save(tmp_path / "c.pt", checkpoint(network={"weights": weights}))
    data = bytearray((tmp_path / "c.pt").read_bytes())
    data[data.index(weights[500:502].numpy().tobytes())] ^= 1
    (tmp_path / "c.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        load(tmp_path / "c.pt")


class Harmful:
    """Would write a file if it were ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["as torch saves", "as pickle saves"])
def test_a_file_that_holds_code_is_refused_and_the_code_not_run(tmp_path, how):
    path, mark = tmp_path / "harmful.pt", tmp_path / "mark"
    if how == "as torch saves":
        torch.save({"schema": 1, "network": Harmful(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(CheckpointError, match=r"harmful\.pt: not a checkpoint"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(3)}, "expected a checkpoint of schema 1, found None"),
        ({"schema": 2}, "expected a checkpoint of schema 1, found 2"),
        (torch.zeros(3), "expected a checkpoint of schema 1, found 'Tensor'"),
        ([1, 2], "expected a checkpoint of schema 1, found 'list'"),
        ({"schema": 1}, "not a checkpoint of this version"),
        ({"schema": 1, "sums": 5}, "not a checkpoint of this version"),
        ({"schema": 1, "sums": (1.0, 1, 1), "more": 1}, "not a checkpoint of this version"),
    ],
)
def test_a_foreign_file_of_torch_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "foreign.pt")


def test_weights_of_another_network_are_refused_with_names_and_shapes_and_nothing_is_loaded():
    network = tiny(3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        restore(network, tiny(5).state_dict(), "run-001/joint/epoch-0003.pt")
    assert str(caught.value) == (
        "run-001/joint/epoch-0003.pt: made by another network: first.weight has shape [5, 2], expected [3, 2];"
        " first.bias has shape [5], expected [3]; norm.weight has shape [5], expected [3] and 4 more differences."
        " Use the settings beside it (config.yaml in its run folder)"
    )
    assert_same(before, dict(network.state_dict()))


def test_weights_that_lack_something_or_have_too_much_are_refused():
    network, state = tiny(), dict(tiny().state_dict())
    state["second.weight"] = state.pop("first.weight")
    with pytest.raises(CheckpointError, match=r"first\.weight is missing; second\.weight is not in this network\."):
        restore(network, state, "here")


def test_weights_of_the_same_network_are_restored():
    network, other = tiny(), tiny()
    nn.init.zeros_(other.first.weight)
    restore(network, other.state_dict(), "here")
    assert_same(dict(network.state_dict()), dict(other.state_dict()))
