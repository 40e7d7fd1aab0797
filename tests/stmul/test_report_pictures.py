"""The strips of a clip: what a test sees of it, and what its networks looked at, in its place."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from stmul.errors import NetworkError
from stmul.evaluate import Networks, evaluate
from stmul.report_clips import shown_clips
from stmul.report_pictures import Asked, films
from stmul.results import HistoryRow, Validation
from stmul.run_report import history_row, report_of_run
from stmul.runs import About, Run
from stmul.stages import build

CPU = torch.device("cpu")
BOTH = ("evaluate.protocol=centre", "evaluate.mirror=false")


def pixels(strip):
    with Image.open(io.BytesIO(strip.picture)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def joint(config, classes=3):
    return build("joint", config, classes).eval()


def test_a_film_shows_what_a_test_sees(small, split):
    config = small("evaluate.frames=9", "evaluate.protocol=dense")
    ((name, film),) = films(split, "test", [Asked(record=1, classes=())], None, config, CPU).items()
    record = split.index("test").row(1)
    assert name == record.name
    assert [strip.title for strip in film.strips] == ["Frames", "Flow, full colour at 1.5 pixels a frame"]
    wide = round(128 * record.rgb.width / record.rgb.height)
    assert [pixels(strip).shape for strip in film.strips] == [(128, len(film.instants) * wide, 3)] * 2
    assert 3 <= len(film.instants) <= 5
    assert len(set(film.instants)) == len(film.instants)


def test_maps_of_each_class_asked_for_lie_where_the_network_looked(small, split):
    config = small(*BOTH)
    asked = [Asked(record=0, classes=[(0, "class0"), (2, "class2")])]
    ((_, film),) = films(split, "test", asked, Networks(joint=joint(config)), config, CPU).items()
    assert [(strip.head, strip.title.split(", ")[-1]) for strip in film.strips[2:]] == [
        ("appearance", "for class0"),
        ("motion", "for class0"),
        ("appearance", "for class2"),
        ("motion", "for class2"),
    ]
    maps = [pixels(strip) for strip in film.strips if strip.head]
    assert any(np.abs(maps[0] - other).max() > 20 for other in maps[2:]) or np.abs(maps[1] - maps[3]).max() > 20
    # A crop of 32 of 40 x 48 pixels: beyond it the picture is grey and dark, at its corner and at its end.
    for page in maps:
        corner = page[:8, :8]
        assert corner.max() - corner.min() < 140
        assert np.ptp(corner, axis=2).max() <= 12  # grey, but for JPEG


def test_a_map_lies_over_what_its_places_see(small, split, monkeypatch):
    """Of a map that is 1 at its second place only, the brightest pixels are about pixel 32 of what was seen."""
    config = small("evaluate.protocol=dense", "evaluate.mirror=false")
    lit = torch.zeros(1, config.evaluate.frames, 2, 2)
    lit[..., 0, 1] = 1
    monkeypatch.setattr("stmul.report_pictures.class_maps", lambda *_: {"appearance": lit})
    networks = Networks(joint=joint(config))
    ((_, film),) = films(split, "test", [Asked(record=0, classes=[(0, "a")])], networks, config, CPU).items()
    page = pixels(film.strips[2])
    tile = page[:, : page.shape[1] // len(film.instants)]
    warm = tile[..., 0] - tile[..., 2]
    row, column = np.unravel_index(warm.argmax(), warm.shape)
    assert row < 128 * 16 / 40
    assert abs(column - 32 * tile.shape[1] / 48) < 16 * tile.shape[1] / 48


def test_a_stream_alone_is_asked_for_its_own_maps(small, split):
    config = small(*BOTH)
    networks = Networks(appearance=build("appearance", config, 3).eval(), motion=build("motion", config, 3).eval())
    ((_, film),) = films(split, "test", [Asked(record=0, classes=[(1, "b")])], networks, config, CPU).items()
    assert [strip.head for strip in film.strips] == ["", "", "appearance alone", "motion alone"]
    with pytest.raises(NetworkError, match="maps of class 3"):
        films(split, "test", [Asked(record=0, classes=[(3, "none")])], networks, config, CPU)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_videos_have_films_too(small, make_split, tmp_path, frames):
    from shards.split import open_split

    make_split(tmp_path / "short", train=2, test=1, width=48, height=40, frames=frames)
    config = small(*BOTH)
    with open_split(tmp_path / "short") as short:
        networks = Networks(joint=joint(config))
        ((_, film),) = films(short, "test", [Asked(record=0, classes=[(0, "a")])], networks, config, CPU).items()
    assert len(film.strips) == 4
    assert len(film.instants) == 1  # too short for a stack of flow: all its instants are the middle one


@pytest.fixture
def tested(small, split, tmp_path):
    """A run of a network that was never trained, its checkpoints gone, and its scores."""
    config = small(*BOTH)
    results = evaluate(Networks(joint=joint(config)), split, config, device=CPU, run="made-001", epoch=1)
    run = Run(tmp_path / "made-001")
    about = About(
        shards=split.location, dataset="made", split=1, classes=split.manifest.classes, digest="00", settings={}
    )
    run.describe(about, config)
    return run, results, config


def test_the_report_of_a_run_without_its_networks_says_so_and_shows_the_clips(tested, split):
    run, results, config = tested
    text = report_of_run(run, results, split, config, CPU).read_text(encoding="utf-8")
    assert "What the streams looked at is not shown" in text
    assert "nothing to test: no stage has completed an epoch" in text
    best, worst = shown_clips(results)
    assert text.count("data:image/jpeg;base64,") == 2 * len({*best, *worst})
    assert "no training log" in text


def test_clips_of_other_shards_than_were_tested_are_not_shown(tested, split, tmp_path, make_split):
    from shards.split import open_split

    run, results, config = tested
    make_split(tmp_path / "other", train=2, test=3, width=48, height=40, seed=9)
    with open_split(tmp_path / "other") as other:
        text = report_of_run(run, results, other, config, CPU).read_text(encoding="utf-8")
    assert "these shards hold other clips than were tested" in text
    assert "data:image" not in text


def test_rows_of_older_and_newer_logs_are_read():
    old = {"stage": "joint", "epoch": 1, "step": 2, "loss": 1.0, "accuracy": 0.5, "lr": 0.1}
    old |= {"clips_per_second": 9.0, "data_wait": 0.0, "seconds": 1.0}
    assert history_row(old) == HistoryRow(**old)
    seen = {"loss": 1.5, "accuracy": 0.25, "clips": 8}
    new = old | {"losses": {"appearance": 1.0}, "memory": 2.0, "validation": seen, "of a later version": 3}
    found = history_row(json.loads(json.dumps(new)))
    assert found.validation == Validation(**seen)
    assert (found.losses, found.memory) == ({"appearance": 1.0}, 2.0)
    assert history_row(old | {"validation": None}).validation is None
