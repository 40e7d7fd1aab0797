"""The examples of docs/streaming.md run, in their order, on small drawn shards at the places that they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner

from stmul.__main__ import main
from stmul.config import Data

PAGE = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text(encoding="utf-8")
QUICK = ["--fresh", *("--set", "data.crop=32"), *("--set", "train.joint.epochs=1"), *("--set", "train.stages=joint")]


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def drawn(make_split, serve, s3_server, aws, tmp_path, monkeypatch) -> str:
    """The URL of a folder with a small drawn split; it stands in a bucket, too, and in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data" / "drawn" / "split1"
    make_split(folder, train=8, test=3, classes=8, width=64, height=48, frames=14)
    aws(AWS_ENDPOINT_URL=s3_server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="word", AWS_REGION="us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for path in folder.iterdir():
        client.upload_file(str(path), "bucket", f"drawn/split1/{path.name}")
    return str(serve(tmp_path / "data").url)


def test_the_commands_of_the_page_learn_the_same_from_everywhere(drawn):
    lines = [line.replace("https://example.org", drawn) for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 3
    weights = []
    for line in lines:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(main, [*arguments, *QUICK])
        assert (program, result.exit_code) == ("stmul", 0), f"{line}\n{result.output}{result.exception!r}"
        found = re.findall(r"loss\s+(\S+)", result.output)
        assert found
        weights.append(found)
    assert weights[0] == weights[1] == weights[2]


def test_the_python_of_the_page_runs(drawn, capsys):
    for number, block in enumerate(blocks("python")):
        code = compile(block.replace("https://example.org", drawn), f"docs/streaming.md, example {number + 1}", "exec")
        exec(code, {})
    assert capsys.readouterr().out == "8 4\n" * 2
    assert len(list(Path("cache/shards").glob("*" * 1))) > 1


def test_the_settings_of_the_page_and_their_defaults_are_those_of_the_code():
    told = dict(re.findall(r"^\| `data\.(\w+)` \| (\S+)", PAGE, re.MULTILINE))
    defaults = Data()
    assert {name for name in told if not hasattr(defaults, name)} == set()
    for name in ("read_ahead", "connections", "cache_limit", "deadline"):
        assert float(told[name]) == getattr(defaults, name), name
