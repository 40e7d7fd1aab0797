"""What a training starts from: whose base networks are taken, whose are not, and what they were made for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stmul.bases import bases_in, fitting, load_bases
from stmul.errors import WeightsError
from stmul.runs import STAGES
from stmul.snapshot import Origin, save_network
from stmul.stages import build, open_run, train_stages
from stmul.start import find_start, settled
from tests.stmul.matconvnet_files import appearance_base, motion_base, write

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mat(tmp_path_factory):
    """The authors' two base networks of the first split, eight channels wide, three classes, four flow pairs."""
    folder = tmp_path_factory.mktemp("mat")
    write(folder / "ucf101-img-resnet50-split1-dr0.mat", appearance_base(width=8, classes=3))
    write(folder / "ucf101-resnet50-split1-dr0.8.mat", motion_base(width=8, classes=3, stack=4))
    return folder


def copied(mat: Path, to: Path, dataset: str, split: int) -> Path:
    """The authors' files under the names of another data set and split."""
    to.mkdir(exist_ok=True)
    for path in mat.iterdir():
        name = path.name.replace("ucf101", dataset).replace("split1", f"split{split}")
        (to / name).write_bytes(path.read_bytes())
    return to


def deep(small, *changes):
    streams = [f"network.{stream}={{depth: 50, width: 8}}" for stream in ("appearance", "motion")]
    return small(*streams, "train.stages=auto", *changes)


def made_of(split, dataset, number):
    """The split as if its manifest said so."""
    from dataclasses import replace

    split.manifest = replace(split.manifest, dataset=dataset, split=number)
    return split


def test_base_networks_of_the_same_split_are_joined_as_they_were_made(small, split, mat):
    config = deep(small, f"train.base={mat}")
    start = find_start(config, made_of(split, "ucf101", 1))
    assert start.stages == ("joint",)
    assert "ucf101-img-resnet50-split1-dr0.mat and" in start.words
    assert start.shared == {"stride_on": "1x1", "pooling": "caffe"}
    network = settled(config, start).network
    assert (network.stride_on, network.pooling) == ("1x1", "caffe")


@pytest.mark.parametrize(("dataset", "number"), [("ucf101", 2), ("hmdb51", 1)])
def test_base_networks_that_may_have_seen_the_test_clips_are_not_taken_unless_told(small, split, mat, dataset, number):
    split = made_of(split, dataset, number)
    with pytest.raises(WeightsError, match=r"split1-dr0\.mat of ucf101 split 1.*experiment\.other_split=true"):
        find_start(deep(small, f"train.base={mat}", "train.stages=base"), split)
    start = find_start(deep(small, f"train.base={mat}"), split)
    assert start.stages == STAGES
    assert "they may have seen the clips tested here" in start.words
    told = find_start(deep(small, f"train.base={mat}", "experiment.other_split=true"), split)
    assert told.stages == ("joint",)


def test_among_networks_of_several_splits_those_of_this_one_are_taken(small, split, mat, tmp_path):
    for number in (1, 2, 3):
        copied(mat, tmp_path / "bases", "ucf101", number)
    start = find_start(deep(small, f"train.base={tmp_path / 'bases'}"), made_of(split, "ucf101", 3))
    assert start.words.count("split3") == 2


def test_settings_that_contradict_the_weights_are_refused(small, split, tmp_path):
    save_network(tmp_path / "n.safetensors", build("joint", small(), 3), Origin(dataset="drawn", split=1))
    asked = small(f"experiment.pre_trained_id={tmp_path / 'n.safetensors'}", "network.operator=add")
    with pytest.raises(WeightsError, match=r"network\.operator multiply, the settings say add; leave that"):
        settled(asked, find_start(asked, split))


def test_every_kind_of_base_file_is_known_by_what_it_says_or_by_its_name(small, split, tmp_path):
    """A network that says what it is, a checkpoint of a run, a bare state; what else lies there is passed over."""
    folder = tmp_path / "bases"
    folder.mkdir()
    config = small("network.pooling=caffe")
    streams = {stream: build(stream, config, 3) for stream in ("appearance", "motion")}
    save_network(folder / "mine.safetensors", streams["appearance"], Origin(dataset="drawn", split=2))
    bare = {name: value.contiguous() for name, value in streams["motion"].state_dict().items()}
    save_file(bare, folder / "drawn-split2-motion.safetensors")
    torch.save(bare, folder / "drawn-split3-motion.pt")
    torch.save(bare, folder / "drawn-motion.pt")
    save_network(folder / "joint.safetensors", build("joint", config, 3), Origin(dataset="drawn", split=2))
    (folder / "notes.pt").write_text("none")
    (folder / "README").write_text("none")
    found = {base.path.name: (base.stream, base.origin.dataset, base.origin.split) for base in bases_in(folder)}
    assert found == {
        "mine.safetensors": ("appearance", "drawn", 2),
        "drawn-split2-motion.safetensors": ("motion", "drawn", 2),
        "drawn-split3-motion.pt": ("motion", "drawn", 3),
        "drawn-motion.pt": ("motion", "drawn", 0),
    }
    both = load_bases(fitting(bases_in(folder), "drawn", 2, other_split=False))
    assert both.shared == {"stride_on": "3x3", "pooling": "caffe"}
    assert torch.equal(both.states["motion"]["conv1.weight"], bare["conv1.weight"])
    assert fitting(bases_in(folder), "drawn", 1, other_split=False) == {}
    own = fitting(bases_in(folder), "drawn", 3, other_split=True)  # what there is of the split itself goes first
    assert {stream: base.path.name for stream, base in own.items()} == {
        "appearance": "mine.safetensors",
        "motion": "drawn-split3-motion.pt",
    }


def test_a_streams_checkpoint_is_a_base_network_of_its_split(small, split, tmp_path):
    config = small("network.pooling=caffe")
    start = find_start(config, split)
    run, _ = open_run(config, split, start, name="small", fresh=False)
    quiet = {"watch": lambda _: None, "log": run.log, "say": lambda _: None, "stop": lambda: False}
    train_stages(config, split, run, start, device=CPU, **quiet)
    folder = tmp_path / "bases"
    folder.mkdir()
    for stream in ("appearance", "motion"):
        (folder / f"{stream}.pt").write_bytes(run.newest(stream).read_bytes())
    again = find_start(small(f"train.base={folder}", "train.stages=base"), split)
    assert again.shared == {"stride_on": "3x3", "pooling": "caffe"}
    assert settled(small(), again).network.pooling == "caffe"
    # The run itself says so too, and is not begun with on other clips.
    asked = small(f"experiment.pre_trained_id={run.id}")
    assert find_start(asked, split).shared == {"stride_on": "3x3", "pooling": "caffe"}
    with pytest.raises(WeightsError, match=r"trained on drawn split 1, and these are drawn split 2"):
        find_start(asked, made_of(split, "drawn", 2))
    told = small(f"experiment.pre_trained_id={run.id}", "experiment.other_split=true")
    assert find_start(told, split).stages == ("joint",)


def test_streams_made_for_different_networks_are_not_joined(small, tmp_path):
    for stream, pooling in (("appearance", "caffe"), ("motion", "torchvision")):
        network = build(stream, small(f"network.pooling={pooling}"), 3)
        save_network(tmp_path / f"{stream}.safetensors", network, Origin(dataset="drawn", split=1))
    with pytest.raises(WeightsError, match=r"caffe.*cannot be joined|torchvision.*cannot be joined"):
        load_bases(fitting(bases_in(tmp_path), "drawn", 1, other_split=False))


def test_a_file_whose_name_says_another_stream_is_refused(mat, tmp_path):
    (tmp_path / "ucf101-img-resnet50-split1-dr0.mat").write_bytes(
        (mat / "ucf101-resnet50-split1-dr0.8.mat").read_bytes()
    )
    bases = {"appearance": bases_in(tmp_path)[0]}
    with pytest.raises(WeightsError, match="expected the appearance stream alone"):
        load_bases(bases)


def test_a_joint_network_in_a_file_brings_all_its_settings(small, split, tmp_path):
    config = small("network.operator=add", "network.pooling=caffe")
    save_network(tmp_path / "n.safetensors", build("joint", config, 3), Origin(dataset="drawn", split=1))
    asked = small(f"experiment.pre_trained_id={tmp_path / 'n.safetensors'}")
    start = find_start(asked, split)
    assert start.stages == ("joint",)
    assert settled(asked, start).network == config.network
    save_network(tmp_path / "a.safetensors", build("appearance", config, 3), Origin())
    with pytest.raises(WeightsError, match="the appearance stream alone"):
        find_start(small(f"experiment.pre_trained_id={tmp_path / 'a.safetensors'}"), split)
