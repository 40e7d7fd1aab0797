"""What users get wrong when they test, predict, fuse, compare: one line that says what to do, and nothing written."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

from shards.manifest import shard_name
from stmul.__main__ import main
from stmul.results import read_results, write_results

QUICK = [
    "network={appearance: {depth: 18, width: 8}, motion: {depth: 18, width: 8}}",
    "data={crop: 32, frames: 2, stack: 4, stride: [2, 4], threads: 1}",
    "train={stages: joint, batch: 4, sub_batch: 4, joint: {epochs: 1, rates: [0.01]}}",
    "evaluate={frames: 2}",
]
SIZES = {"width": 48, "height": 40, "frames": 14}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_split):
    """A folder with a run that was trained and tested, and shards of several kinds."""
    place = tmp_path_factory.mktemp("trained")
    make_split(place / "split1", train=4, test=3, **SIZES)
    make_split(place / "split2", train=4, test=3, split=2, **SIZES)
    make_split(place / "four", train=4, test=4, classes=4, **SIZES)
    words = [word for one in [*QUICK, "data.shards=split1"] for word in ("--set", one)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for arguments in (["train", *words, "-u", "0"], ["test"]):
            done = CliRunner().invoke(main, arguments)
            assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of it, in which a test may do harm."""
    here = tmp_path / "here"
    shutil.copytree(trained, here)
    (here / "file").write_text("in the way of a folder")
    monkeypatch.chdir(here)
    return here


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refused(*words: str, code: int = 1, new: tuple[str, ...] = ()) -> str:
    """The one line that a command ends with; it has written no file but those that are `new`."""
    before = files(Path())
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit), done.output
    assert done.output.count("Error: ") == 1
    line = done.output.rpartition("Error: ")[2]
    assert line.count("\n") == 1, line
    after = files(Path())
    assert {name for name in after if after[name] != before.get(name)} == set(new)
    return line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "network.appearance.depth=34", "--set", "network.motion.depth=34"], "appearance.depth 18, now 34"),
        (["--set", "network.appearance.width=4", "--set", "network.motion.width=4"], "appearance.width 8, now 4"),
        (["--set", "network.operator=add"], "network.operator multiply, now add"),
        (["--set", "network.gated=[2b]"], "network.gated [2b, 3b, 4b, 5b], now [2b]"),
        (["--set", "network.pooling=caffe"], "network.pooling torchvision, now caffe"),
        (["--set", "data.stack=6"], "data.stack 4, now 6"),
        (["--set", "data.crop=64"], "data.crop / 32 1, now 2"),
        (["-c", "ucf101", "--set", "data.shards=split1"], "network.appearance.depth 18, now 50"),
    ],
)
def test_a_trained_network_keeps_its_settings(place, words, said):
    line = refused("test", "-u", "0", "-i", "demo-001", *words)
    assert said in line
    assert "epoch-0001.pt: trained with" in line
    assert "leave out what changes them" in line


def test_so_it_does_where_it_predicts(place, film):
    line = refused("predict", str(film), "-u", "0", "--flow", "dis", "--set", "network.operator=add")
    assert "epoch-0001.pt: trained with network.operator multiply, now add" in line


def test_settings_that_change_no_score_may_be_others(place):
    (path,) = Path("experiment/demo-001/results").glob("*.json")
    before = path.read_bytes()
    others = ("network.motion.dropout=0.1", "network.rgb_mean=[1, 2, 3]", "data.threads=2")
    done = CliRunner().invoke(main, ["test", "-u", "0", *(word for one in others for word in ("--set", one))])
    assert done.exit_code == 0, done.output
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_network_or_of_other_classes_is_refused(place):
    words = [word for one in QUICK for word in ("--set", one)]
    wide = ["--set", "network={appearance: {depth: 18, width: 4}, motion: {depth: 18, width: 4}}"]
    assert CliRunner().invoke(main, ["train", *words, *wide, "--set", "data.shards=split1", "-u", "0"]).exit_code == 0
    checkpoint = Path("experiment/demo-001/joint/epoch-0001.pt")
    shutil.copy("experiment/demo-002/joint/epoch-0001.pt", checkpoint)
    assert "trained with network.appearance.width 4, now 8" in refused("test", "-i", "demo-001")
    again = ["--set", "data.shards=four", "--set", "experiment.other_split=true"]
    assert "trained on 3 classes, these shards have 4: one has more" in refused("test", "-i", "demo-002", *again)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert "epoch-0001.pt: not a checkpoint" in refused("test", "-i", "demo-001")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["test", "-i", "demo-01"], 1, "no run 'demo-01'; did you mean demo-001? (runs: demo-001)"),
        (["predict", "x.avi", "-i", "dmo-001"], 1, "did you mean demo-001?"),
        (["report", "-i", "demo-002"], 1, "did you mean demo-001?"),
        (["fuse", "demo-002"], 1, "did you mean demo-001?"),
        (["compare", "demo-001", "demo-002"], 1, "did you mean demo-001?"),
        (["compare", "demo-001", "demo-001:jont"], 1, "no scores of 'jont'; did you mean joint?"),
        (["test", "-p", "7"], 1, "no checkpoint of epoch 7 (kept: 1)"),
        (["test", "--part", "tset"], 2, "--part tset: expected one of test, train; did you mean test?"),
        (["test", "--splits", "1,2"], 1, "stmul train -c experiment/demo-001/config.yaml --set data.shards="),
        (["test", "--set", "data.shards=split2"], 1, "may have seen these clips"),
        (["test", "--set", "data.shards=splt1"], 1, "splt1"),
        (["test", "-e", "elsewhere"], 1, "elsewhere: no runs here"),
        (["test", "--set", "evaluate.protocol=dens"], 2, "did you mean dense?"),
        (["predict", "nothing.avi", "--flow", "dis"], 1, "nothing.avi: no such file or folder"),
        (["predict", "split1", "--flow", "dis"], 1, "split1: no video in this folder"),
        (["fuse", "nothing.json"], 1, "nothing.json: no such results; make them with: stmul test"),
        (["fuse", "demo-001", "nothing.csv"], 1, "nothing.csv: not readable as a table of scores"),
        (["fuse", "demo-001", "-w", "1", "-w", "2"], 1, "expected one for each of 1 sources"),
        (["fuse", "demo-001", "-o", "nowhere/out.json"], 1, "nowhere/out.json: cannot be written"),
        (["train", "-c", "demo", "--set", "data.shards=split1", "-e", "file", "-u", "0"], 1, "file: cannot be written"),
        (["test", "-e", "file"], 1, "file: no runs here"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(place, words, code, said):
    assert said in refused(*words, code=code)


def test_results_of_another_split_are_neither_fused_nor_compared(place):
    (own,) = Path("experiment/demo-001/results").glob("*.json")
    tree = json.loads(own.read_text())
    Path("other.json").write_text(json.dumps({**tree, "split": 2, "run": "other"}))
    assert "other, joint: scores of drawn split 2, test, and demo-001 was tested on" in refused(
        "fuse", "demo-001", "other.json"
    )
    assert "demo-001 was tested on drawn split 1, test, other on drawn split 2, test" in refused(
        "compare", "demo-001", "other.json"
    )


@pytest.mark.parametrize("harm", ["byte", "cut", "gone"])
def test_damaged_shards_end_a_test_before_anything_is_written(place, harm):
    shard = place / "split1" / shard_name("test", 0)
    data = shard.read_bytes()
    if harm == "byte":  # in the frames of a record
        middle = data.index(b"\xff\xd8") + 300
        shard.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif harm == "cut":
        shard.write_bytes(data[: len(data) // 2])
    else:
        shard.unlink()
    line = refused("test")
    assert shard.name in line


def test_a_folder_that_cannot_be_written_is_said_before_the_first_clip(place, monkeypatch):
    shutil.rmtree("experiment/demo-001/results")
    Path("experiment/demo-001/results").write_text("")  # in its way; root may write into any folder
    line = refused("test")
    assert line.startswith("experiment/demo-001/results: cannot be written")
    Path("experiment/demo-001/results").unlink()
    monkeypatch.setattr("os.access", lambda *_: False)
    done = CliRunner().invoke(main, ["test"])
    assert "experiment/demo-001/results: cannot be written: Permission denied" in done.output
    assert "clips/s" not in done.output


def movie(*, frames: int, sound: bool = False) -> bytes:
    """An MP4 of so many pictures, or of a second of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        if sound:
            stream = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 8000
            for packet in (*stream.encode(silence), *stream.encode()):
                container.mux(packet)
        else:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                picture = np.full((48, 64, 3), 10 * number % 256, np.uint8)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    container.mux(packet)
            for packet in stream.encode():
                container.mux(packet)
    return file.getvalue()


@pytest.fixture
def film(place) -> Path:
    path = place / "film.mp4"
    path.write_bytes(movie(frames=14))
    return path


def unreadable() -> dict[str, bytes]:
    whole = movie(frames=14)
    return {
        "empty": b"",
        "words": b"this is no video\n" * 50,
        "sound": movie(frames=0, sound=True),
        "cut": whole[: len(whole) // 3],
        "noise": whole[:48] + bytes(1000) + whole[48:],
    }


@pytest.mark.parametrize("kind", unreadable())
def test_a_video_without_frames_or_an_unreadable_stream_is_named_and_the_others_are_scored(place, film, kind):
    bad = place / f"{kind}.avi"
    bad.write_bytes(unreadable()[kind])
    words = ["predict", "-u", "0", "--flow", "dis", "--json", "out.json"]
    done = CliRunner().invoke(main, [*words, str(bad), str(film)])
    assert done.exit_code == 1, done.output
    assert isinstance(done.exception, SystemExit)
    assert f"{kind}.avi: " in done.output
    assert "1 of 2 videos could not be read; the others are scored" in done.output
    assert [video["name"] for video in json.loads(Path("out.json").read_text())["videos"]] == ["film"]
    assert not list(place.rglob("*.partial"))


@pytest.mark.parametrize("option", ["--json", "--sheets", "-o"])
def test_a_prediction_that_cannot_be_written_is_not_begun(place, film, option):
    target = "file/out" if option == "--json" else "file"
    line = refused("predict", str(film), "-u", "0", "--flow", "dis", option, target)
    assert line.startswith("file: cannot be written")


def test_a_mistyped_flow_method_is_told_before_any_video_is_read(place, film):
    line = refused("predict", str(film), "-u", "0", "--flow", "tvl", code=2)
    assert "--flow tvl: " in line
    assert "did you mean tvl1?" in line


def test_a_test_that_is_stopped_leaves_the_former_scores(place, monkeypatch):
    (own,) = Path("experiment/demo-001/results").glob("*.json")
    before = own.read_bytes()

    def full(path, results):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            write_results(path, results)

    monkeypatch.setattr("stmul.testing.write_results", full)
    done = CliRunner().invoke(main, ["test"])
    assert done.exit_code == 1, done.output
    assert "cannot be written: No space left on device" in done.output
    assert own.read_bytes() == before
    assert not list(place.rglob("*.partial"))
    assert read_results(own).scored == 3
