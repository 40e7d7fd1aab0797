"""Every shipped configuration learns: twenty steps on shards of real videos, or of drawn ones where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from configs import load, names
from shards.split import Split, open_split
from stmul.__main__ import main
from stmul.config import Config
from stmul.meter import Progress
from stmul.runs import STAGES, About, Run
from stmul.stages import train_stages
from stmul.start import Start

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "ucf101-6"
STEPS, CLIPS = 20, 8  # enough to tell; each step costs seconds


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Split]:
    """Four training clips of each of two classes, decoded, with DIS flow, packed."""
    out = tmp_path_factory.mktemp("shipped")
    if REAL.is_dir():
        classes = sorted({path.name.split("_")[1] for path in (REAL / "videos").rglob("*.avi")})[:2]
        source = ["--dataset", "ucf101", "--root", str(REAL), "--set", "preprocess.rgb.short_side=60"]
    else:  # one pair that differs in hue and in motion
        classes = ["CoolShiftMatched", "WarmZoomMatched"]
        source = ["-c", "demo", "--dataset", "drawn", "--root", str(out / "videos")]
        source += ["--set", "preprocess.drawn={train: 32, test: 16, frames: 32}"]
    limits = f"--classes {','.join(classes)} --limit {CLIPS // 2} --flow dis --workers 1".split()
    done = CliRunner().invoke(main, ["preprocess", "shards", *source, *limits, "--out", str(out)])
    assert done.exit_code == 0, done.output
    with open_split(next(out.glob("*/split1"))) as split:
        yield split


def losses(config: Config, split: Split, run: Run) -> dict[str, list[float]]:
    """The loss of each step of each stage: the streams from weights drawn at random, then both joined."""
    found: dict[str, list[float]] = {}

    def watch(progress: Progress) -> None:
        found.setdefault(progress.stage, []).append(progress.loss)

    run.folder.mkdir()
    run.describe(About(shards="", dataset="", split=1, classes=(), digest="", settings={}), config)
    train_stages(
        config,
        split,
        run,
        Start(STAGES, "from scratch"),
        device=torch.device("cpu"),
        watch=watch,
        log=lambda row: None,
        say=lambda text: None,
        stop=lambda: False,
    )
    return found


def sized(name: str) -> Config:
    """A shipped configuration for two cores: narrow and small, each step an epoch of the same eight clips.

    A schedule of falling rates stays at its first: it is far from over. Without dropout: eight channels are too few
    to leave out four fifths of them, twenty steps too few to average over that.
    """
    sizes = ["network.appearance.width=8", "network.motion.width=8", "data.crop=48", "data.threads=1"]
    steps = [f"train.batch={CLIPS}", f"train.sub_batch={CLIPS}", "train.groups=1"]
    steps += [f"train.{stage}.epochs={STEPS}" for stage in STAGES]
    shipped = load(Config, name).train
    for stage in STAGES:
        recipe, (_, sub_batch) = getattr(shipped, stage), shipped.batches(stage)
        steps += [f"train.{stage}.batch={CLIPS}", f"train.{stage}.sub_batch={min(CLIPS, sub_batch)}"]
        steps += [f"train.{stage}.rates=[{recipe.rates[0]}]", f"train.{stage}.dropout=0"]
    return load(Config, name, [*sizes, *steps, "experiment.use_gpu='no'"])


LONG = ("hmdb51", "st-resnet-final")  # as ucf101, as st-resnet, with other schedules and lengths


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names()]
)
def test_twenty_steps_of_each_stage_of_a_shipped_configuration_lower_its_loss(name, shards, tmp_path):
    found = losses(sized(name), shards, Run(tmp_path / name))
    assert list(found) == list(STAGES)
    for stage, steps in found.items():
        assert len(steps) == STEPS
        assert np.isfinite(steps).all()
        # Medians: of so few clips, cropped at random, single steps are far off.
        assert np.median(steps[STEPS // 2 :]) < np.median(steps[: STEPS // 4]), (stage, steps)
