"""The examples of docs/loading.md run, in their order, on small drawn shards at the places that they name."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from stmul.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs" / "loading.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def drawn(make_split, tmp_path, monkeypatch) -> Path:
    """Small drawn shards in the working directory: twenty training and three test videos of eight classes."""
    monkeypatch.chdir(tmp_path)
    make_split(tmp_path / "data" / "drawn" / "split1", train=20, test=3, classes=8, width=96, height=72, frames=14)
    return tmp_path


def run(chosen: list[str]) -> dict[str, object]:
    """The names that the examples make, run one after the other."""
    names: dict[str, object] = {}
    for number, block in enumerate(chosen):
        exec(compile(block, f"docs/loading.md, example {number + 1}", "exec"), names)
    return names


def test_the_python_of_the_page_runs_and_its_loop_lowers_the_loss(drawn, capsys):
    torch.manual_seed(0)
    names = run([block for block in blocks("python") if "import lightning" not in block])
    losses = names["losses"]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert names["state"]["position"] == 32
    printed = capsys.readouterr().out
    assert re.search(r"^loss \d\.\d\d at first, \d\.\d\d at last$", printed, re.MULTILINE)
    assert len(re.findall(r"\(2, 5, 3, 64, 64\)$", printed, re.MULTILINE)) == 3


def test_the_loop_of_the_page_is_short():
    (loop,) = [block for block in blocks("python") if "losses = []" in block]
    assert len(loop[loop.index("losses = []") :].splitlines()) <= 10


def test_the_commands_of_the_page_run(drawn, serve):
    url = serve(drawn / "data").url
    lines = [line.replace("https://example.org", url) for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        program, *arguments = shlex.split(line)
        quick = ["--seconds", "0.02", "--set", "experiment.use_gpu='no'"]
        result = CliRunner().invoke(main, [*arguments, *quick])
        assert (program, result.exit_code) == ("stmul", 0), f"{line}\n{result.output}"


def test_lightning_trains_and_goes_on_exactly(drawn):
    lightning = pytest.importorskip("lightning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning has many opinions
        first, second = blocks("python")[0], next(block for block in blocks("python") if "import lightning" in block)
        names = run([first, second])
        assert names["trainer"].global_step == 6
        clips, colours = names["TrainingClips"], names["Colours"]

        class Noted(colours):
            def __init__(self) -> None:
                super().__init__()
                self.seen: list[int] = []

            def training_step(self, batch, number):
                self.seen.append(int(batch["position"][0]))
                return super().training_step(batch, number)

        def fit(steps: int, resume: str | None) -> list[int]:
            keep = lightning.pytorch.callbacks.ModelCheckpoint(dirpath="kept", every_n_train_steps=1, save_top_k=-1)
            options = {"accelerator": "cpu", "enable_progress_bar": False, "logger": False, "max_epochs": -1}
            module = Noted()
            trainer = lightning.Trainer(max_steps=steps, callbacks=[keep], **options)
            trainer.fit(module, clips("data/drawn/split1", "demo"), ckpt_path=resume)
            return module.seen

        whole = fit(5, None)
        assert whole == [0, 16, 32, 48, 64]
        for stop in (1, 2, 3):
            (saved,) = Path("kept").glob(f"*step={stop}.ckpt")
            assert fit(5, str(saved)) == whole[stop:]
