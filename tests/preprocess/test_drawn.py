"""The drawn set: its table of classes and what that allows, its files, its pictures and their motion."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import pairwise, product
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import SettingsError, load
from preprocess.config import Drawn, PreprocessConfig
from preprocess.drawing.cells import CELLS, CLASSES, HUES, MOTIONS, SIGNS, TEXTURES, Cell, ceilings, class_of
from preprocess.drawing.drift import TONE, aperture, dust, shapes
from preprocess.drawing.pictures import encoded, pictures
from preprocess.drawn import Clip, clips, draw_dataset, film, is_tested
from preprocess.errors import DatasetError

SMALL = Drawn(seed=7, train=32, test=16, frames=12, width=64, height=64)
FULL = Drawn(seed=7, frames=24)
few = settings(max_examples=8, deadline=None)
some_cell = st.sampled_from(CELLS)
some_group = st.integers(1, 28)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_dataset(tmp_path_factory.mktemp("drawn") / "set", SMALL, workers=1)


def bytes_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def shown(cell: Cell) -> str:
    return f"{HUES[cell.hue]} {TEXTURES[cell.texture]} {MOTIONS[cell.motion]} {SIGNS[cell.motion][cell.sign]}"


# The table


def test_the_classes_are_these():
    table: dict[str, set[str]] = {name: set() for name in CLASSES}
    for cell in CELLS:
        table[class_of(cell)].add(shown(cell))
    assert table["WarmShiftMatched"] == {"warm discs shift up", "warm rectangles shift down"}
    assert table["WarmShiftCrossed"] == {"warm discs shift down", "warm rectangles shift up"}
    assert table["CoolZoomMatched"] == {"cool discs zoom in", "cool rectangles zoom out"}
    assert table["CoolZoomCrossed"] == {"cool discs zoom out", "cool rectangles zoom in"}
    assert len(CLASSES) == 8
    assert len({shown(cell) for cell in CELLS}) == 16


def test_the_table_allows_what_the_docs_say():
    best = ceilings()
    assert best.chance == pytest.approx(1 / 8)
    assert best.appearance == pytest.approx(1 / 4)
    assert best.motion == pytest.approx(1 / 4)
    assert best.late == pytest.approx(1 / 2)
    assert best.additive == pytest.approx(3 / 4)
    assert best.interaction == pytest.approx(1)


def test_no_other_rule_that_sees_one_stream_does_better():
    labels = {(cell.hue, cell.texture, cell.motion, cell.sign): CLASSES.index(class_of(cell)) for cell in CELLS}
    for seen, best in (((0, 1), 1 / 4), ((2, 3), 1 / 4), ((0, 2), 1 / 2), ((0, 1, 2), 1 / 2), ((0, 2, 3), 1 / 2)):
        frequent = Counter((tuple(cell[i] for i in seen), label) for cell, label in labels.items())
        looks = {look for look, _ in frequent}
        right = sum(max(frequent[look, label] for label in range(8)) for look in looks)
        assert right / 16 == best


@few
@given(st.lists(st.floats(-9, 9), min_size=8, max_size=8))
def test_no_sum_of_two_scores_gets_all_four_of_an_exclusive_or(values):
    matched, crossed = np.array(values[:4]).reshape(2, 2), np.array(values[4:]).reshape(2, 2)
    appearance, motion = matched[0] - crossed[0], matched[1] - crossed[1]
    margin = appearance[:, None] + motion
    right = [margin[a, b] > 0 if a == b else margin[a, b] < 0 for a, b in product((0, 1), repeat=2)]
    assert sum(right) <= 3


# The set


@few
@given(st.integers(2, 30), st.integers(1, 10))
def test_every_part_of_every_split_is_balanced(train, test):
    if train < 2 * test:
        return
    size = Drawn(train=16 * train, test=16 * test)
    for split in (1, 2, 3):
        parts = Counter((is_tested(clip, split, size), clip.cell) for clip in clips(size))
        assert all(parts[True, cell] == test and parts[False, cell] == train for cell in CELLS)


def test_no_group_is_on_both_sides_of_a_split_or_tested_twice():
    tested = [{clip.group for clip in clips(FULL) if is_tested(clip, split, FULL)} for split in (1, 2, 3)]
    assert [len(groups) for groups in tested] == [8, 8, 8]
    assert len(set.union(*tested)) == 24
    for split in (1, 2, 3):
        trained = {clip.group for clip in clips(FULL) if not is_tested(clip, split, FULL)}
        assert not trained & tested[split - 1]
        assert len(trained) == 20


def test_names_are_all_different():
    names = [clip.name for clip in clips(FULL)]
    assert len(set(names)) == len(names) == 448
    assert names[0] == "v_WarmShiftMatched_g01_c01"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("train=330", "330"),
        ("test=20", "20"),
        ("test=176", "at least twice"),
        ("train=1600", "at most 99 groups"),
        ("width=66", "at least the height"),
    ],
)
def test_a_set_that_cannot_be_balanced_is_refused(override, complaint):
    with pytest.raises(SettingsError, match=complaint):
        load(PreprocessConfig, None, [f"preprocess.drawn.{override}"])


# The files


def test_the_layout_is_that_of_ucf101(drawn):
    assert len(list(drawn.glob("videos/*/v_*_g??_c??.avi"))) == 48
    lists = drawn / "ucfTrainTestlist"
    assert (lists / "classInd.txt").read_text().splitlines() == [f"{k} {name}" for k, name in enumerate(CLASSES, 1)]
    for split in ("01", "02", "03"):
        train = (lists / f"trainlist{split}.txt").read_text().splitlines()
        test = (lists / f"testlist{split}.txt").read_text().splitlines()
        assert (len(train), len(test)) == (32, 16)
        for line in train:
            path, label = line.split()
            assert CLASSES[int(label) - 1] == path.partition("/")[0]
            assert (drawn / "videos" / path).is_file()
        assert all((drawn / "videos" / path).is_file() for path in test)
        assert not {line.split()[0] for line in train} & set(test)


def test_a_video_is_mpeg4_with_xvids_tag_and_shows_what_was_drawn(drawn):
    clip = clips(SMALL)[5]
    with av.open(str(drawn / "videos" / clip.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.codec_tag) == ("mpeg4", "XVID")
        assert (stream.frames, stream.average_rate) == (12, 25)
        seen = np.stack([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])
    difference = np.abs(seen.astype(int) - pictures(clip.cell, film(clip, SMALL)))
    assert seen.shape == (12, 96, 64)
    assert difference.mean() < 2


def test_the_number_of_processes_does_not_change_a_byte(drawn, tmp_path):
    again = draw_dataset(tmp_path / "again", SMALL, workers=2)
    assert bytes_below(again) == bytes_below(drawn)


def test_the_pixels_are_the_same_for_ever():
    digest = hashlib.sha256()
    for clip in clips(FULL)[:16:5]:
        digest.update(pictures(clip.cell, film(clip, FULL)).tobytes())
    assert digest.hexdigest() == "c95f1274837d080c8b0822225bc7206cf18fec3544d869fd726d4a8896395d56"


def test_progress_counts_every_clip(tmp_path):
    told: list[tuple[int, int]] = []
    draw_dataset(tmp_path / "set", SMALL, lambda done, of: told.append((done, of)), workers=1)
    assert told == [(done, 48) for done in range(1, 49)]


def test_a_set_that_is_there_is_left_alone(drawn):
    before = {path: path.stat().st_mtime_ns for path in drawn.rglob("*.avi")}
    told: list[int] = []
    draw_dataset(drawn, SMALL, lambda done, of: told.append(done))
    assert {path: path.stat().st_mtime_ns for path in drawn.rglob("*.avi")} == before
    assert told == []


def test_a_set_cut_short_is_completed(drawn, tmp_path):
    root = tmp_path / "set"

    def stop(done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_dataset(root, SMALL, stop, workers=1)
    assert json.loads((root / "drawn.json").read_text())["whole"] is False
    told: list[int] = []
    draw_dataset(root, SMALL, lambda done, of: told.append(done), workers=1)
    assert told == list(range(6, 49))
    assert bytes_below(root) == bytes_below(drawn)


def test_a_set_with_other_settings_is_replaced_but_not_what_else_lies_there(drawn, tmp_path):
    root = draw_dataset(tmp_path / "set", SMALL.model_copy(update={"seed": 8}), workers=1)
    (root / "videos" / "holiday.avi").write_bytes(b"mine")
    draw_dataset(root, SMALL, workers=1)
    assert (root / "videos" / "holiday.avi").read_bytes() == b"mine"
    (root / "videos" / "holiday.avi").unlink()
    assert bytes_below(root) == bytes_below(drawn)


@pytest.mark.parametrize("content", ["holiday.avi", "drawn.json"])
def test_a_folder_of_other_things_is_refused_and_untouched(tmp_path, content):
    (tmp_path / content).write_bytes(b"mine")
    with pytest.raises(DatasetError, match=r"nothing was changed.* give another folder"):
        draw_dataset(tmp_path, SMALL, workers=1)
    assert bytes_below(tmp_path) == {content: b"mine"}


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match="expected a folder for the drawn set"):
        draw_dataset(tmp_path / "file" / "set", SMALL, workers=1)


# The pictures


@pytest.mark.parametrize("moving", [shapes, dust])
@few
@given(some_cell, some_group)
def test_both_signs_of_a_motion_are_one_film_forwards_and_backwards(moving, cell, group):
    other = Cell(hue=cell.hue, texture=cell.texture, motion=cell.motion, sign=1 - cell.sign)
    size = film(Clip(group=group, cell=cell), SMALL)
    for there, back in zip(moving(cell, size), reversed(moving(other, size)), strict=True):
        np.testing.assert_array_equal(there, back)


@pytest.mark.parametrize("moving", [shapes, dust])
@few
@given(some_cell, some_group)
def test_shapes_cover_as_much_at_every_time_and_are_half_light_half_dark(moving, cell, group):
    size = film(Clip(group=group, cell=cell), SMALL)
    seen = moving(cell, size)
    counts = np.array([len(table) for table in seen])
    assert len(seen) == SMALL.frames
    assert counts.min() >= 0.8 * counts.max()
    assert all(abs(table[:, TONE].sum()) <= 0.2 * len(table) + 2 for table in seen)


def test_textures_and_motions_have_the_same_light_and_contrast():
    means: dict[tuple[int, int], list[float]] = {}
    for clip in clips(FULL)[:48]:
        size = film(clip, FULL)
        luma, window = pictures(clip.cell, size)[:, :72], aperture(size)
        y, x = np.mgrid[:72, :96]
        inside = luma[:, np.hypot(x - window.x, y - window.y) < window.radius - 2].astype(float)
        means.setdefault((clip.cell.texture, clip.cell.motion), []).append(inside.mean())
    average = [np.mean(values) for values in means.values()]
    assert len(average) == 4
    assert max(average) - min(average) < 6


def test_grey_does_not_tell_the_texture():
    size = film(clips(FULL)[0], FULL)
    discs, rectangles = (pictures(Cell(hue=0, texture=texture, motion=1, sign=1), size) for texture in (0, 1))
    np.testing.assert_array_equal(discs[:, :72], rectangles[:, :72])
    assert (discs[:, 72:] != rectangles[:, 72:]).any()


def test_both_hues_have_the_same_luma():
    size = film(clips(FULL)[0], FULL)
    warm, cool = (pictures(Cell(hue=hue, texture=0, motion=0, sign=0), size) for hue in (0, 1))
    np.testing.assert_array_equal(warm[:, :72], cool[:, :72])
    assert (warm[:, 72:] != cool[:, 72:]).any()


@pytest.mark.parametrize("clip", clips(FULL)[32:48], ids=lambda clip: clip.name)
def test_optical_flow_shows_the_motion_and_its_sign(clip):
    size = film(clip, FULL)
    luma = pictures(clip.cell, size)[:, :72]
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = np.mean([dis.calc(one, other, None) for one, other in pairwise(luma)], axis=0)
    window = aperture(size)
    y, x = np.mgrid[:72, :96]
    x, y = x - window.x, y - window.y
    inside = np.hypot(x, y) < window.radius - 3
    down = flow[inside, 1].mean()
    out = (flow[inside] * np.stack([x, y], axis=-1)[inside]).sum() / np.hypot(x, y)[inside].sum()
    assert (abs(out) > abs(down)) == (clip.cell.motion == 1)
    assert ((out if clip.cell.motion else down) > 0) == (clip.cell.sign == 1)


def test_equal_pictures_give_equal_files():
    planes = pictures(CELLS[3], film(clips(SMALL)[3], SMALL))
    assert encoded(planes) == encoded(planes)
