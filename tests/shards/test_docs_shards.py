"""The examples of docs/shards.md run, in their order, on a small split at the places that they name."""

import gc
import re
import shlex
import warnings
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner
from PIL import Image

from shards.format import encode, key_of
from shards.writer import write_split
from stmul.__main__ import main

PAGE = (Path(__file__).parents[2] / "docs" / "shards.md").read_text(encoding="utf-8")
CLASSES = ("Archery", "Surfing")


def blocks(kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def places(make_record, serve, s3_server, aws, tmp_path, monkeypatch):
    """A function that puts the test's own addresses into an example; its folders stand in the working directory."""
    monkeypatch.chdir(tmp_path)
    parts = {}
    for part, groups in (("train", (2, 3)), ("test", (1,))):
        parts[part] = []
        for group in groups:
            names = [f"v_{name}_g{group:02d}_c01" for name in CLASSES]
            records = [make_record(name, label=i, class_name=CLASSES[i]) for i, name in enumerate(names)]
            parts[part].append([(key_of(record.name), encode(record)) for record in records])
    folder = tmp_path / "data" / "ucf101" / "split1"
    write_split(folder, dataset="ucf101", split=1, classes=CLASSES, made={"flow": {"method": "dis"}}, parts=parts)
    aws(AWS_ENDPOINT_URL=s3_server, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="word", AWS_REGION="us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for path in folder.iterdir():
        client.upload_file(str(path), "bucket", f"ucf101/split1/{path.name}")
    url = serve(tmp_path / "data").url
    return lambda text: text.replace("https://example.org", url)


def test_the_python_of_the_page_runs(places, capsys):
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # plain webdataset leaves its files to the collector
        for number, block in enumerate(blocks("python")):
            exec(compile(places(block), f"docs/shards.md, example {number + 1}", "exec"), names)
        gc.collect()
    printed = capsys.readouterr().out
    assert "v_Archery_g02_c01 0 (24, 32, 3) 12 22" in printed
    assert "('Archery', 'Surfing') 4" in printed
    with Image.open("sheet.png") as picture:
        assert picture.width > 400


def test_the_commands_of_the_page_run(places):
    (Path.cwd() / "copies").mkdir()
    lines = [line for block in blocks("sh") for line in places(block).splitlines()]
    assert len(lines) == 15
    for line in lines:
        program, *arguments = shlex.split(line)
        result = CliRunner().invoke(main, arguments)
        assert (program, result.exit_code) == ("stmul", 0), f"{line}\n{result.output}"


def test_the_splitter_of_the_page_has_ten_lines():
    splitter = re.search(r"def frames.*?return streams\n", PAGE, re.DOTALL)
    assert len(splitter[0].splitlines()) <= 10
