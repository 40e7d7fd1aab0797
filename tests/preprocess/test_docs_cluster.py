"""The examples of docs/cluster.md run, with ssh and Slurm played by scripts, and its figures are those of the code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import click
import pytest

from shards.index import head_size
from stmul.__main__ import main
from tests.preprocess.test_ray import Nodes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
STMUL = re.compile(r"stmul preprocess (?:shards|merge)[^\n&\"#`]*")

# The machines of the page: whatever is asked of them happens here.
PLAYED = {
    "ssh": 'shift; exec "$@"\n',
    "srun": 'exec "$@"\n',
    "sbatch": """
echo 1
for word in "$@"; do script="$word"; done
case "$*" in *--wrap*) exec bash -c "$script" >&2 ;; esac
export SLURM_ARRAY_TASK_COUNT=2
for SLURM_ARRAY_TASK_ID in 1 2; do export SLURM_ARRAY_TASK_ID; bash "$script" >&2 || exit 1; done
""",
    "ray": "",
}


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_figures_of_the_page_are_those_that_its_python_prints(capsys):
    (block,) = blocks("python")
    exec(compile(block, "docs/cluster.md", "exec"), names := {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3
    for row in printed:
        assert f"| {row} |" in PAGE
    hours = [
        names["needs"](13_320, 187, 340, 256, 64)[0],
        names["needs"](650_000, 300, 454, 256, 64)[0],
    ]
    assert f"| one machine of 16 cores | {hours[0] / 16:.0f} h | {hours[1] / 16 / 24:.0f} days |" in PAGE
    assert f"| eight machines of 32 cores | {hours[0] / 256 * 60:.0f} min | {hours[1] / 256:.0f} h |" in PAGE


def test_its_sizes_of_indexes_are_those_of_a_real_one(make_split, tmp_path):
    make_split(tmp_path, train=7, frames=12)
    frames, names = [12 + i % 3 for i in range(7)], len("v_train_0") * 7
    expected = head_size(7, names) + sum(24 * count - 16 for count in frames)
    assert (tmp_path / "train.index").stat().st_size == expected
    (block,) = blocks("python")
    exec(compile(block, "docs/cluster.md", "exec"), needed := {})
    assert needed["needs"](1000, 30, 340, 256, 64)[3] == head_size(1000, 24_000) + 1000 * (24 * 30 - 16)


@pytest.mark.parametrize("line", sorted({line.strip() for line in STMUL.findall(PAGE)}))
def test_a_command_of_the_page_exists_with_its_options(line):
    command, words = main, shlex.split(line)[1:]
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None, line
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert not {word for word in words if word.startswith("--")} - known


@pytest.fixture
def machines(tmp_path: Path, video_folders: Callable[..., Path]) -> Callable[[str, str], Any]:
    """A function that runs a block of the page on a small data set, and gives the split that it has built."""
    root = video_folders(tmp_path / "nfs" / "UCF101", train=2, width=40, height=30)
    played = tmp_path / "played"
    played.mkdir()
    stmul = f'exec {sys.executable} -m stmul "$@" $([ "$2" = "" ] || echo {{more}})\n'
    more = "--flow dis --set preprocess.rgb.short_side=32 --set preprocess.per_shard=1 --workers 1"
    for name, text in {**PLAYED, "stmul": stmul.format(more=more)}.items():
        (played / name).write_text(f"#!/bin/bash\n{text}")
        (played / name).chmod(0o755)

    def run(block: str, out: str) -> dict[str, bytes]:
        block = block.replace("N=8", "N=2").replace("/nfs/UCF101", str(root)).replace("/nfs/data", f"{tmp_path}/{out}")
        path = f"{played}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = ["bash", "-e", "-o", "pipefail", "-c", block]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        split = (tmp_path / out).glob("*/split1/*")
        return {path.name: path.read_bytes() for path in split if path.name != "settings.yaml"}

    (tmp_path / "shards.sh").write_text(
        blocks("slurm")[0].replace("/nfs/UCF101", str(root)).replace("/nfs/data", f"{tmp_path}/slurm")
    )
    return run


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_blocks_of_the_page_build_the_same_shards(machines, monkeypatch, s3_server, aws):
    pytest.importorskip("ray")
    aws(AWS_ENDPOINT_URL=s3_server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="word", AWS_REGION="us-east-1")
    bucket = boto3.resource("s3").create_bucket(Bucket="bucket")
    one, eight, slurm, ray, cloud = blocks("sh")
    alone = machines(one, "alone")
    assert "manifest.json" in alone
    assert machines(eight, "eight") == alone
    assert machines(slurm, "slurm") == alone
    nodes = Nodes()
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    try:
        assert machines(ray, "ray") == alone
        machines(cloud, "cloud")
    finally:
        nodes.cluster.shutdown()
    objects = {one.key.rpartition("/")[2]: one.get()["Body"].read() for one in bucket.objects.all()}
    assert {name: data for name, data in objects.items() if name != "settings.yaml"} == alone
