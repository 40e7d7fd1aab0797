"""Where a training's time goes, in a trace and in words."""

from __future__ import annotations

import gzip
import json
import time

import pytest
import torch

from stmul import profiling
from stmul.profiling import SECTIONS, Profile, in_words
from stmul.runs import Run
from stmul.stages import begin, train_stages

CPU = torch.device("cpu")


@pytest.fixture
def trained(split, small):
    """Trains, profiled or not; the weights, the folder, and what was said."""

    def train(name: str, *, profiled: bool) -> tuple[dict, Run, list[str]]:
        config = small("train.stages=joint", "train.joint={epochs: 3, rates: [0.02]}")
        begun = begin(config, split, name=name, fresh=True)
        said: list[str] = []
        train_stages(
            config,
            split,
            begun.run,
            begun.start,
            device=CPU,
            watch=lambda progress: None,
            log=lambda row: None,
            stop=lambda: False,
            say=said.append,
            profiled=profiled,
        )
        (path,) = sorted((begun.run.folder / "joint").glob("epoch-0003.pt"))
        return torch.load(path, weights_only=True)["network"], begun.run, said

    return train


def test_a_profiled_training_learns_the_same_and_says_where_its_time_went(trained, monkeypatch):
    monkeypatch.setattr(profiling, "STEPS", 4)
    plain, run, said = trained("plain", profiled=False)
    assert not said
    assert not list(run.folder.glob("profile*"))
    seen, run, said = trained("seen", profiled=True)
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
    assert said[0].startswith("profile   4 steps of ")
    assert all(f"{name} " in said[0] for name in SECTIONS)
    (path,) = run.folder.glob("profile*")
    assert path.name == "profile-joint.json.gz"
    names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert {f"stmul {name}" for name in SECTIONS} <= names
    assert "aten::convolution" in names


def test_a_stage_too_short_to_be_traced_whole_says_what_it_saw(tmp_path):
    said: list[str] = []
    profile = Profile(tmp_path / "profile.json.gz", CPU, said.append)
    for _ in range(profiling.WARM_UP + 1):
        with profile.section("forward"):
            time.sleep(0.01)
        profile.stepped()
    profile.finish()
    profile.finish()  # nothing is left to end
    assert len(said) == 2
    assert "profile   1 steps" in said[0]
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json.gz"]
    Profile(tmp_path / "none.json.gz", CPU, said.append).finish()
    assert len(said) == 2


@pytest.mark.parametrize(
    ("seconds", "advice"),
    [
        ({"data": 3.0, "forward": 4.0}, "It waits for clips"),
        ({"transfer": 2.0, "forward": 4.0}, "Moving and cropping clips takes long"),
        ({"forward": 4.0, "backward": 5.0}, "The network is the limit"),
    ],
)
def test_the_words_name_the_largest_first_and_what_to_do(seconds, advice):
    words = in_words(seconds, 10.0)
    assert advice in words
    parts = [float(part.split()[1]) for part in words.split(". ")[0].split(", ")]
    assert parts == sorted(parts, reverse=True)
    assert sum(parts) == pytest.approx(100, abs=0.2)
