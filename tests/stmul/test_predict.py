"""Scores of videos in memory: those of a test, window by window, and at the command line."""

from __future__ import annotations

import csv
import doctest
import json
from dataclasses import replace
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from preprocess.errors import PreprocessError, VideoError
from preprocess.in_memory import record_of, settings_as, videos_in
from shards.format import decode
from shards.record import Frames
from shards.split import open_split
from stmul import api
from stmul.__main__ import main
from stmul.errors import RunError
from stmul.evaluate import Networks, evaluate
from stmul.predict import WHOLE, guesses, predict, windows
from stmul.predict_cli import BAR, bar
from stmul.results import read_results
from stmul.runs import find_run
from stmul.snapshot import Origin, save_network
from stmul.stages import build
from tests.stmul.conftest import SMALL

CPU = torch.device("cpu")


def networks(config) -> Networks:
    joint, appearance, motion = (build(stage, config, 3).eval() for stage in ("joint", "appearance", "motion"))
    return Networks(joint=joint, appearance=appearance, motion=motion)


@pytest.mark.parametrize("protocol", ["dense", "centre"])
def test_a_clip_of_the_test_split_is_scored_as_the_test_scores_it(split, small, protocol):
    config = small(f"evaluate.protocol={protocol}")
    made = networks(config)
    tested = evaluate(made, split, config, device=CPU)
    for number, name in enumerate(tested.names):
        found = predict(made, tested.classes, decode(split.read("test", number)), config, device=CPU)
        assert found.name == name
        assert len(found.windows) == 1
        assert found.heads.keys() == tested.heads.keys()
        for head, scores_K in found.heads.items():
            assert np.array_equal(scores_K, tested.heads[head][number])
        assert found.main == tested.main == "joint"


def test_a_window_is_scored_as_a_video_of_just_its_frames(make_record, small):
    config = small()
    made = networks(config)
    long = make_record("v_long", frames=60, width=48, height=40)
    found = predict(made, ("a", "b", "c"), long, config, device=CPU, window=12 / 25, step=6 / 25)
    rate = long.fps[0] / long.fps[1]
    assert found.rate == rate
    assert found.windows[-1].last == 60
    assert np.allclose(found.heads["joint"], np.mean([w.heads["joint"] for w in found.windows], axis=0))
    window = found.windows[2]

    def some(frames, first, last):
        jpegs = [bytes(frames[image]) for image in range(first, last)]
        return Frames.of(
            jpegs, width=frames.width, height=frames.height, components=frames.components, encoder=frames.encoder
        )

    cut = replace(
        long,
        rgb=some(long.rgb, window.first, window.last),
        flow=some(long.flow, 2 * window.first, 2 * (window.last - 1)),
        decoded_frames=window.last - window.first,
    )
    alone = predict(made, ("a", "b", "c"), cut, config, device=CPU)
    for head, scores_K in alone.heads.items():
        assert np.array_equal(scores_K, window.heads[head])


@given(st.integers(1, 5000), st.integers(-2, 400), st.integers(-2, 400))
def test_every_frame_is_in_a_window_and_all_windows_of_a_long_video_are_equally_long(frames, length, step):
    found = windows(frames, length=length, step=step)
    assert found[0].start == 0
    assert found[-1].stop == frames
    for one, other in pairwise(found):
        assert one.start < other.start <= one.stop
    if frames <= WHOLE * max(1, length):
        assert found == [range(frames)]
    else:
        assert {len(span) for span in found} == {max(1, length)}


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.integers(1, 9))
def test_guesses_come_likeliest_first_and_their_probabilities_add_to_one(scores, top):
    names = [f"class{label}" for label in range(len(scores))]
    found = guesses(scores, names, top=top)
    assert [guess.score for guess in found] == sorted(scores, reverse=True)[:top]
    assert sum(guess.probability for guess in guesses(scores, names, top=9)) == pytest.approx(1)
    assert all(names[guess.label] == guess.name for guess in found)


@given(st.floats(0, 1))
def test_a_bar_is_as_full_as_its_part(part):
    assert len(bar(part)) == BAR
    assert abs(bar(part).count("█") / BAR - part) <= 0.5 / BAR + 1e-9


def film(path, frames: int = 14, *, seed: int = 0) -> None:
    """A small video of a moving texture."""
    noise = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for number in range(frames):
        writer.write(np.roll(cv2.GaussianBlur(noise, (0, 0), 2), 2 * number, axis=1))
    writer.release()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Own videos in class folders, their shards with DIS flow, and a run trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number in range(12):
            path = folder / "own" / ("walk" if number % 2 else "wave") / f"take{number}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            film(path, seed=number)
        words = ["preprocess", "shards", "--root", "own", "--flow", "dis", "--set", "preprocess.rgb.short_side=32"]
        stmul(*words, "--workers", "1", "--set", "preprocess.per_shard=4")
        changes = [word for change in (*SMALL, "train.stages=joint") for word in ("--set", change)]
        stmul("train", *changes)
    return folder


@pytest.fixture
def place(trained, monkeypatch):
    """That folder, from inside."""
    monkeypatch.chdir(trained)
    return trained


def stmul(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done.output


def test_videos_are_scored_at_the_command_line_as_the_test_scored_them(place):
    stmul("test", "--use-gpu", "0")
    run = find_run(place / "experiment", "")
    tested = read_results(run.results())
    (place / "own" / "wave" / "broken.avi").write_bytes(b"nothing")
    out = stmul(
        *("predict", "own", "--use-gpu", "0", "--json", "all.json", "--csv", "all.csv", "--sheets", "sheets"), code=1
    )
    assert "1 of 13 videos could not be read; the others are scored" in out
    assert "broken.avi" in out
    assert "flow dis" in out
    scored = {one["name"]: one for one in json.loads((place / "all.json").read_text())["videos"]}
    assert len(scored) == 12
    for number, name in enumerate(tested.names):
        found = scored[name.rpartition("__")[2]]
        for head, scores_NK in tested.heads.items():
            assert np.abs(np.array(found["scores"][head]) - scores_NK[number]).max() <= 1e-4
    rows = list(csv.DictReader((place / "all.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert len(list((place / "sheets").glob("*.png"))) == 12
    # The shards need not be there any more.
    (place / "data").rename(place / "elsewhere")
    assert "walk" in stmul("predict", "own/walk/take1.avi", "--use-gpu", "0", "--top", "1")
    assert "no such file or folder" in stmul("predict", "own/walk/take99.avi", "--use-gpu", "0", code=1)
    assert "no run 'x'" in stmul("predict", "own", "-i", "x", code=1)
    (place / "elsewhere").rename(place / "data")
    (place / "own" / "wave" / "broken.avi").unlink()


def test_a_long_video_is_told_window_by_window_and_all_of_it_written_into_a_folder(place):
    film(place / "long.avi", frames=80)
    out = stmul("predict", "long.avi", "--use-gpu", "0", "--window", "1", "--step", "1", "-o", "seen/here")
    assert "0.0 to     1.0 s" in out
    assert "2.2 to     3.2 s" in out
    written = place / "seen" / "here"
    expected = ["long.avi.mp4", "long.avi.png", "long.avi.windows.png", "scores.json", "windows.csv"]
    assert sorted(path.name for path in written.iterdir()) == expected
    with av.open(str(written / "long.avi.mp4")) as played:
        assert sum(1 for _ in played.decode(video=0)) == 80
    rows = list(csv.DictReader((written / "windows.csv").read_text().splitlines()))
    (told,) = json.loads((written / "scores.json").read_text())["videos"]
    assert told["file"] == "long.avi"
    assert [float(row["from_s"]) for row in rows] == [window["from_s"] for window in told["windows"]]
    assert [row["class"] for row in rows] == [window["top"][0]["class"] for window in told["windows"]]
    # A folder where a file is in the way: said before any video is read.
    (place / "file").write_bytes(b"")
    assert "file: cannot be written" in stmul("predict", "long.avi", "--use-gpu", "0", "-o", "file", code=1)


def test_a_run_is_loaded_and_asked_in_a_line_of_python_each(place):
    film(place / "video.avi")
    tried = doctest.DocTestRunner(optionflags=doctest.FAIL_FAST)
    for test in doctest.DocTestFinder().find(api, "stmul.api"):
        tried.run(test)
    assert tuple(tried.summarize(verbose=False)) == (0, 5)  # failed, tried


def test_python_and_the_command_give_the_same_scores(place):
    stmul("predict", "own/walk/take1.avi", "--use-gpu", "0", "--json", "one.json")
    (told,) = json.loads((place / "one.json").read_text())["videos"]
    run = api.load_run("experiment/own-001", device="cpu")
    record = run.record("own/walk/take1.avi")
    for found in (run.predict("own/walk/take1.avi"), run.predict(record), api.load_run(device="cpu").predict(record)):
        assert found.classes == run.classes == ("walk", "wave")
        for head, scores_K in found.heads.items():
            assert np.array_equal(scores_K, np.array(told["scores"][head], dtype=np.float32))
    with pytest.raises(RunError, match="did you mean own-001"):
        api.load_run("experiment/own-01")
    with pytest.raises(VideoError, match="no such file"):
        run.predict("own/walk/take99.avi")


@pytest.mark.parametrize("stage", ["joint", "appearance", "motion"])
def test_a_network_in_a_file_needs_no_shards(place, stage, small):
    network = build(stage, small(), 2).eval()
    save_network(place / f"{stage}.safetensors", network, Origin())
    run = api.load_run(place / f"{stage}.safetensors", device="cpu", settings=["evaluate.frames=3", "data.crop=32"])
    assert run.classes == ("class 0", "class 1")
    with pytest.raises(PreprocessError, match="name a method with --flow"):
        run.predict("own/walk/take1.avi")
    found = run.predict("own/walk/take1.avi", flow="dis")
    assert found.main == {"joint": "joint"}.get(stage, f"{stage} alone")
    assert all(np.isfinite(scores_K).all() for scores_K in found.heads.values())


def test_flow_that_nobody_noted_is_refused_unless_a_method_is_named(tmp_path):
    with pytest.raises(PreprocessError, match="name a method with --flow"):
        settings_as({"record": {"taken_over": True}})
    assert settings_as({"record": {"taken_over": True}}, flow="dis").flow.method == "dis"
    with pytest.raises(PreprocessError, match="no video in this folder"):
        videos_in((tmp_path,))


def test_settings_are_those_that_the_records_were_made_with(place):
    with open_split(place / "data" / "own" / "split1") as split:
        settings = settings_as(split.manifest.made)
        assert (settings.rgb.short_side, settings.flow.method, settings.flow.parameters) == (32, "dis", {"preset": 2})
        for part in split.manifest.parts:
            for row in split.index(part).rows(range(len(split.index(part)))):
                kept = decode(split.read(part, row.record))
                cls, stem = kept.name.split("__")
                again = record_of(place / "own" / cls / f"{stem}.avi", settings)
                assert (bytes(again.rgb.blob), bytes(again.flow.blob)) == (bytes(kept.rgb.blob), bytes(kept.flow.blob))
