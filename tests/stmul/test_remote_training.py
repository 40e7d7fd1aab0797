"""A training whose shards lie in S3 or on a web server is the training whose shards lie on the disk, bit for bit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from configs import load
from shards.split import open_split
from stmul.checkpoint import load as load_checkpoint
from stmul.config import Config
from stmul.loading import batch_stream, evaluation_clips, training_stream
from stmul.runs import STAGES, Run
from tests.faults.victims import Victims
from tests.seaweedfs import READER

CPU = torch.device("cpu")
KINDS = ("disk", "web", "s3")
SETTINGS = [
    "network={appearance: {depth: 18, width: 8}, motion: {depth: 18, width: 8, dropout: 0.5}}",
    "data={crop: 32, frames: 2, stack: 4, stride: [2, 4], threads: 2, read_ahead: 1}",
    "train={stages: scratch, batch: 4, sub_batch: 2, joint: {epochs: 1, rates: [0.01]},"
    " appearance: {epochs: 1, rates: [0.01]}, motion: {epochs: 1, rates: [0.01]}}",
    "evaluate={frames: 2}",
    "experiment.use_gpu='no'",
]


@pytest.fixture(scope="module")
def locations(weed, nginx, tmp_path_factory, make_split) -> dict[str, str]:
    """Where the same split lies, by kind of place."""
    folder = tmp_path_factory.mktemp("split") / "split1"
    make_split(folder, train=6, test=3, width=48, height=40, frames=14)
    shutil.copytree(folder, nginx.folder / "trained" / "split1")
    web = nginx.at("private").replace("//", "//reader:secret@")
    s3 = weed.upload(folder, "videos", "trained/split1")
    return {"disk": str(folder), "web": f"{web}/trained/split1", "s3": s3}


@pytest.fixture(scope="module")
def profile(weed, tmp_path_factory) -> dict[str, str]:
    """The environment of a user of `aws configure`, whose keys may read the bucket and not list it."""
    folder = tmp_path_factory.mktemp("aws")
    (folder / "config").write_text(f"[profile lab]\nregion = us-east-1\nendpoint_url = {weed.url}\n")
    keys = f"aws_access_key_id = {READER.id}\naws_secret_access_key = {READER.secret}\n"
    (folder / "credentials").write_text(f"[lab]\n{keys}")
    files = {"AWS_CONFIG_FILE": folder / "config", "AWS_SHARED_CREDENTIALS_FILE": folder / "credentials"}
    return {"AWS_PROFILE": "lab", **{name: str(path) for name, path in files.items()}}


def drawn(split, config, stage):
    """All that is drawn from a split for a stage, as tensors: decoded clips, batches, evaluation's clips."""
    with training_stream(split, config, stage, pinned=False) as stream:
        decoded = [loaded.to(CPU) for _ in range(3) for loaded in stream.step()]
    with batch_stream(split, config, stage, device=CPU) as stream:
        batches = [make() for _ in range(3) for make in stream.step()]
    tested = [loaded.to(CPU) for loaded in evaluation_clips(split, "test", config)]
    tensors = [one.arena for one in (*decoded, *tested)]
    for batch in batches:
        tensors += [one for one in (batch.rgb_BTCHW, batch.flow_BTCHW, batch.labels_B) if one is not None]
    return tensors, [clip.position for one in decoded for clip in one.clips], [batch.positions for batch in batches]


@pytest.mark.parametrize(("stage", "order"), [*((stage, "full") for stage in STAGES), ("joint", "windowed")])
def test_batches_are_the_same_bytes_from_everywhere(locations, profile, aws, stage, order):
    aws(**profile)
    config = load(Config, None, [*SETTINGS, f"data.order={order}", "data.window=2"])
    found = {}
    for kind in KINDS:
        with open_split(locations[kind]) as split:
            found[kind] = drawn(split, config, stage)
    tensors, positions, batched = found["disk"]
    assert len(tensors) > 12
    for kind in ("web", "s3"):
        assert found[kind][1:] == (positions, batched)
        for here, there in zip(tensors, found[kind][0], strict=True):
            assert torch.equal(here, there), kind


@pytest.fixture(scope="module")
def trained(locations, profile, tmp_path_factory) -> dict[str, tuple[Path, str]]:
    """By kind of place a folder, empty at first, in which its split was trained on and tested; what was told."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "XDG_"))]:
            patch.delenv(name)
        for name, value in {**profile, "HOME": str(tmp_path_factory.mktemp("home"))}.items():
            patch.setenv(name, value)
        with Victims() as commands:
            for kind, location in locations.items():
                folder = tmp_path_factory.mktemp(kind)
                shards = ["--set", f"data.shards={location}"]
                settings = [word for setting in SETTINGS for word in ("--set", setting)]
                told = ""
                # The run does not know the password: whoever tests gives the address again. One test is enough: drawing
                # its page takes longer than the training.
                tests = {"disk": [["test"]], "web": [["test", *shards]], "s3": []}[kind]
                for words in (["train", *settings, *shards], *tests):
                    ended = commands.run(folder, words)
                    assert ended.code == 0, ended.output
                    told += ended.output
                found[kind] = (folder, told)
    return found


def run_in(folder: Path) -> Run:
    return Run(folder / "experiment" / "demo-001")


def learnt(run: Run) -> list[list[object]]:
    """The log without what depends on the clock."""
    return [[row[name] for name in ("stage", "epoch", "step", "loss", "accuracy", "lr")] for row in run.history()]


@pytest.mark.parametrize("kind", ["web", "s3"])
def test_training_from_afar_learns_the_same_weights(trained, kind):
    here, there = (run_in(trained[one][0]) for one in ("disk", kind))
    assert learnt(here) == learnt(there)
    assert len(learnt(there)) >= 3
    for stage in STAGES:
        (one, other) = (run.checkpoints(stage) for run in (here, there))
        assert one.keys() == other.keys() != set()
        for epoch, path in one.items():
            weights, same = (load_checkpoint(file).network for file in (path, other[epoch]))
            assert weights.keys() == same.keys()
            assert [name for name in weights if not torch.equal(weights[name], same[name])] == []


@pytest.mark.parametrize("kind", ["web", "s3"])
def test_training_from_afar_keeps_neither_shards_nor_keys(trained, kind):
    folder, told = trained[kind]
    secrets = [READER.id, READER.secret, "reader:secret"]
    assert [secret for secret in secrets if secret in told] == []
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.suffix not in (".tar", ".index"), path
        content = path.read_bytes()
        assert [secret for secret in secrets if secret.encode() in content] == [], path


def test_an_evaluation_from_afar_gives_the_same_scores(trained):
    runs = [run_in(trained[kind][0]).folder for kind in ("disk", "web")]
    here, there = (json.loads(next(run.glob("results/*.json")).read_text()) for run in runs)
    assert len(here["names"]) == 3
    assert here == there
