"""The JSON of a split: what is written comes back, numbers count from 1 in the file alone, mistakes are named."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.errors import DatasetError
from preprocess.sources.annotations import annotation_name, read_annotations, write_annotations
from preprocess.sources.disk import folded
from preprocess.sources.listing import Dataset, Video

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
CONTENT: dict[str, Any] = {
    "labels": {"Archery": 1, "Bowling": 2},
    "training": {"v_Archery_g01_c01": {"set": "training", "label": 1, "nframes": 30}},
    "validation": {"v_Bowling_g02_c01": {"set": "validation", "label": 2, "nframes": 12}},
}


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    classes = draw(st.lists(words, min_size=1, max_size=5, unique_by=folded))
    names = draw(st.lists(words, max_size=8, unique_by=folded))
    parts: dict[str, list[Video]] = {"train": [], "test": []}
    for name in names:
        label = draw(st.integers(0, len(classes) - 1))
        video = Video(name=name, path=Path(name), label=label, class_name=classes[label])
        parts[draw(st.sampled_from(["train", "test"]))].append(video)
    sealed = {part: tuple(videos) for part, videos in parts.items()}
    return Dataset(name="any", kind="folders", split=1, classes=tuple(classes), parts=sealed)


def written(content: Any, folder: Path) -> Path:
    path = folder / annotation_name(1)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@settings(deadline=None)
@given(dataset=datasets(), data=st.data())
def test_what_is_written_reads_back_with_the_same_labels(dataset: Dataset, data: st.DataObject) -> None:
    videos = [(part, video) for part in ("train", "test") for video in dataset.parts[part]]
    frames = {video.name: data.draw(st.integers(1, 999)) for _, video in videos if data.draw(st.booleans())}
    with tempfile.TemporaryDirectory() as folder:
        lists = read_annotations(written(write_annotations(dataset, frames), Path(folder)))
    assert lists.classes == dataset.classes
    assert [(e.part, e.name, lists.classes.index(e.class_name), e.frames) for e in lists.entries] == [
        (part, video.name, video.label, frames.get(video.name, 0)) for part, video in videos
    ]


def test_labels_count_from_one_in_the_file() -> None:
    video = Video(name="v", path=Path("v"), label=0, class_name="Archery")
    parts = {"train": (video,), "test": ()}
    content = write_annotations(Dataset(name="a", kind="ucf101", split=1, classes=("Archery",), parts=parts), {"v": 9})
    assert content == {
        "labels": {"Archery": 1},
        "training": {"v": {"set": "training", "label": 1, "nframes": 9}},
        "validation": {},
    }


@pytest.mark.parametrize(
    "labels",
    [
        ["Archery", "Bowling"],
        {"1": "Archery", "2": "Bowling"},
        {"Archery": "1", "Bowling": 2},
        {"Bowling": 2, "Archery": 1},
    ],
)
def test_labels_may_be_a_list_or_map_either_way(labels: Any, tmp_path: Path) -> None:
    assert read_annotations(written(CONTENT | {"labels": labels}, tmp_path)).classes == ("Archery", "Bowling")


def test_reading_twice_gives_the_same_labels(tmp_path: Path) -> None:
    path = written(CONTENT, tmp_path)
    assert read_annotations(path) == read_annotations(path)


def test_the_frame_count_may_be_missing(tmp_path: Path) -> None:
    content = CONTENT | {"training": {"v": {"label": 2}}, "validation": {}}
    (entry,) = read_annotations(written(content, tmp_path)).entries
    assert (entry.class_name, entry.frames) == ("Bowling", 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"labels": {}}, "labels: expected a number for each class"),
        ({"labels": {"Archery": 0, "Bowling": 1}}, "numbered from 1 without gaps"),
        ({"labels": {"Archery": 1, "archery": 2}}, "different classes"),
        ({"labels": {"Archery": "first"}}, "found neither"),
        ({"training": {"v": {"label": 0}}}, "training: v: label 0; expected 1 to 2: labels count from 1"),
        ({"training": {"v": {"label": 3}}}, "label 3; expected 1 to 2"),
        ({"training": {"v": {"label": "Archry"}}}, "did you mean Archery"),
        ({"training": {"v": {"label": 1, "nframes": "many"}}}, "nframes 'many'"),
        ({"training": {"v": {"label": 1, "set": "validation"}}}, "expected 'training'"),
        ({"training": {"v": 7}}, "expected set, label and nframes, found 7"),
        ({"training": [1]}, "expected videos by name, found list"),
    ],
)
def test_a_mistake_is_named_with_its_place(change: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"annot01\.json: ") as caught:
        read_annotations(written(CONTENT | change, tmp_path))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "expected JSON"),
        (b"[]", "expected labels, training and validation, found list"),
        (b'{"labels": {}}', "found labels"),
        (b"\xff\xfe", "UTF-8"),
        (b"[" * 100_000, "expected JSON"),
        (
            b'{"labels": ["a"], "training": {"v": {"label": 1}, "v": {"label": 1}}, "validation": {}}',
            "'v' stands there twice",
        ),
    ],
)
def test_what_is_no_annotation_file_is_refused(text: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "annot01.json"
    path.write_bytes(text)
    with pytest.raises(DatasetError, match="annot01") as caught:
        read_annotations(path)
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected an annotation file, found: No such file"):
        read_annotations(tmp_path / "annot02.json")
