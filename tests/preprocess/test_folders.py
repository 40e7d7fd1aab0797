"""One's own class folders: split by folders, lists, a table, or a hash, and every mistake named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.datasets import Dataset, find_dataset
from preprocess.errors import DatasetError
from preprocess.sources.disk import VIDEO_ENDINGS


def put(root: Path, names: Iterable[str]) -> None:
    """Empty files: a data set is found by names, and no video is opened."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def put_lists(folder: Path, lists: dict[str, str], *, crlf: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (folder / name).write_bytes((text.replace("\n", "\r\n") if crlf else text).encode())


def names(dataset: Dataset, part: str) -> list[str]:
    return [video.name for video in dataset.parts[part]]


def refusal(root: Path, **options: object) -> str:
    """The sentence of the error, which says where, whatever else."""
    with pytest.raises(DatasetError) as caught:
        find_dataset(root, **options)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def own(root: Path, classes: Iterable[str] = ("jump", "wave"), count: int = 10, ending: str = ".mp4") -> Path:
    put(root, (f"{name}/clip {number}{ending}" for name in classes for number in range(count)))
    return root


@pytest.mark.parametrize("ending", [*VIDEO_ENDINGS, ".AVI", ".Mp4"])
def test_common_video_endings_are_known_whatever_their_case(ending: str, tmp_path: Path) -> None:
    dataset = find_dataset(own(tmp_path, ending=ending))
    assert (dataset.kind, dataset.classes) == ("folders", ("jump", "wave"))
    assert [len(dataset.parts[part]) for part in ("train", "test")] == [16, 4]


def test_names_of_own_videos_hold_their_class(tmp_path: Path) -> None:
    dataset = find_dataset(own(tmp_path))
    every = {*names(dataset, "train"), *names(dataset, "test")}
    assert every == {f"{name}__clip {number}" for name in ("jump", "wave") for number in range(10)}


@settings(max_examples=12, deadline=None)
@given(counts=st.lists(st.integers(2, 25), min_size=1, max_size=3), split=st.integers(1, 3))
def test_the_split_by_hash_gives_a_fifth_of_each_class_to_test(
    counts: list[int], split: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("own")
    for number, count in enumerate(counts):
        own(root, [f"class {number}"], count)
    dataset = find_dataset(root, split=split)
    assert dataset == find_dataset(root, split=split)
    assert any("drawn by a hash" in note for note in dataset.notes)
    in_test = Counter(video.label for video in dataset.parts["test"])
    assert in_test == {label: -(-count // 5) for label, count in enumerate(counts)}


@settings(max_examples=12, deadline=None)
@given(groups=st.lists(st.integers(1, 6), min_size=2, max_size=12))
def test_the_split_by_hash_keeps_groups_together(groups: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("own")
    clips = (f"jump/x_g{group:02}_c{clip:02}.avi" for group, count in enumerate(groups) for clip in range(count))
    put(root, clips)
    dataset = find_dataset(root, kind="folders")
    sides = [{name.split("_c")[0] for name in names(dataset, part)} for part in ("train", "test")]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]


def test_a_class_that_cannot_be_split_is_refused_unless_partial(tmp_path: Path) -> None:
    own(own(tmp_path), ["once"], 1)
    assert "no video in test for 1 of 3 classes: once" in refusal(tmp_path)
    dataset = find_dataset(tmp_path, partial=True)
    assert dataset.classes == ("jump", "once", "wave")
    assert "no video in test for 1 of 3 classes: once" in dataset.notes


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Training", "Validation"), ("train", "val")])
def test_folders_for_train_and_test_split_own_videos(train: str, test: str, tmp_path: Path) -> None:
    put(tmp_path, [f"{train}/jump/1.avi", f"{train}/wave/2.avi", f"{test}/jump/3.avi", f"{test}/wave/4.avi"])
    dataset = find_dataset(tmp_path)
    assert (names(dataset, "train"), names(dataset, "test")) == (["jump__1", "wave__2"], ["jump__3", "wave__4"])
    assert "choose split 1" in refusal(tmp_path, split=2)


def test_one_name_in_both_folders_is_refused(tmp_path: Path) -> None:
    put(tmp_path, ["train/jump/1.avi", "test/jump/1.avi"])
    assert "'jump__1' is in the test part, but" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("jump/clip 0.mp4\nwave/clip 0", "jump/clip 1.mp4\nwave/clip 1.mp4"),
        ("./jump/clip 0.mp4 0\nwave\\clip 0.mp4 1", "jump/clip 1.mp4 0\nwave/clip 1.mp4 1"),
        ("jump/clip 0.mp4 jump\nwave/clip 0.mp4, wave", "jump/clip 1.mp4 Jump\r\nwave/clip 1.mp4"),
        ("videos/jump/clip 0.mp4\t1\nwave/clip 0.mp4,2", "jump/clip 1.mp4 1\nwave/clip 1.mp4 2"),
    ],
)
def test_own_lists_hold_paths_and_perhaps_labels(train: str, test: str, tmp_path: Path) -> None:
    put_lists(own(tmp_path), {"train.txt": train, "test.txt": test})
    dataset = find_dataset(tmp_path)
    assert dataset.classes == ("jump", "wave")
    assert names(dataset, "train") == ["jump__clip 0", "wave__clip 0"]
    assert names(dataset, "test") == ["jump__clip 1", "wave__clip 1"]
    assert any(note.startswith("16 in no list") for note in dataset.notes)


def test_numbers_in_own_lists_give_the_order_of_classes(tmp_path: Path) -> None:
    put_lists(own(tmp_path), {"train.txt": "jump/clip 0 2\nwave/clip 0 1", "test.txt": "jump/clip 1 2\nwave/clip 1 1"})
    assert find_dataset(tmp_path).classes == ("wave", "jump")


@pytest.mark.parametrize("text", ["wave\njump\n", "1 wave\n2 jump\n", "0 wave\n1 jump\n"])
def test_a_list_of_classes_gives_their_order(text: str, tmp_path: Path) -> None:
    put_lists(own(tmp_path), {"classes.txt": text})
    assert find_dataset(tmp_path).classes == ("wave", "jump")


def test_own_lists_may_be_numbered_by_split(tmp_path: Path) -> None:
    one = {"train01.txt": "jump/clip 0\nwave/clip 0", "test01.txt": "jump/clip 1\nwave/clip 1"}
    two = {"trainlist02.txt": "jump/clip 2\nwave/clip 2", "testlist02.txt": "jump/clip 3\nwave/clip 3"}
    put_lists(own(tmp_path) / "lists", one | two)
    assert names(find_dataset(tmp_path, split=2), "test") == ["jump__clip 3", "wave__clip 3"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_says_video_label_and_set(delimiter: str, tmp_path: Path) -> None:
    put(tmp_path, (f"videos/{number}.avi" for number in range(5)))
    rows = [
        "Video,Label,Set,Note",
        "0.avi,long jump,train,x",
        "1.avi,wave,TRAIN,",
        "2,long jump,validation,",
        "3.avi,wave,test,",
    ]
    rows += ["", "4.avi,wave,unused,"]
    put_lists(tmp_path, {"table.csv": "\n".join(rows).replace(",", delimiter)})
    dataset = find_dataset(tmp_path)
    assert dataset.classes == ("long jump", "wave")
    assert names(dataset, "train") == ["long jump__0", "wave__1"]
    assert names(dataset, "test") == ["long jump__2", "wave__3"]


def test_classes_that_are_only_numbers_count_as_numbers(tmp_path: Path) -> None:
    put(tmp_path, (f"{number}.avi" for number in range(6)))
    rows = "\n".join(f"{n}.avi,{[10, 9, 2][n % 3]},{'train' if n < 3 else 'test'}" for n in range(6))
    put_lists(tmp_path, {"all.csv": f"video,label,set\n{rows}"})
    assert find_dataset(tmp_path).classes == ("2", "9", "10")


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ({"train.txt": "jump/clip 0.mp4"}, "train.txt is there, but no test.txt"),
        (
            {"train.txt": "jump/clip 0\njump/none.mp4", "test.txt": "x 1"},
            "2 of 3 listed videos are not there: jump/none.mp4 (",
        ),
        ({"train.txt": "clip 0.mp4", "test.txt": "jump/clip 1"}, "train.txt, line 1: 'clip 0.mp4' may be"),
        ({"train.txt": "jump/clip 0\nwave/clip 0", "test.txt": "jump/clip 0"}, "is in the test part, but"),
        (
            {"train.txt": "jump/clip 0\njump/clip 0.mp4", "test.txt": "jump/clip 1"},
            "line 2: a second video 'jump__clip 0'",
        ),
        (
            {"train.txt": "jump/clip 0 0\nwave/clip 0 0", "test.txt": "jump/clip 1"},
            "expected one number for each class folder",
        ),
        (
            {"train.txt": "jump/clip 0 0\njump/clip 1 1", "test.txt": "jump/clip 2"},
            "expected one number for each class folder",
        ),
        (
            {"train.txt": "jump/clip 0 0", "test.txt": "jump/clip 1 3", "classes.txt": "jump\nwave"},
            "number 3; expected 0 to 1",
        ),
        ({"train.txt": "jump/clip 0 jmp", "test.txt": "jump/clip 1", "classes.txt": "jump\nwave"}, "did you mean jump"),
        ({"classes.txt": "jump\nJump"}, "classes.txt: a class stands there twice"),
        ({"classes.txt": "jump"}, "class 'wave' is not in classes.txt"),
        ({"videos.csv": "a,b\n1,2"}, "line 1: expected the columns video, label, set, found a, b"),
        ({"videos.csv": ""}, "line 1: expected the columns video, label, set, found nothing"),
        (
            {"videos.csv": "video,label,set\njump/clip 0.mp4,jump,tset"},
            "line 2: set 'tset'; expected train, test or unused",
        ),
        ({"videos.csv": "video,label,set\njump/clip 0.mp4,jump"}, "line 2: expected 3 cells, found 2"),
        ({"a.csv": "video,label,set\n", "b.csv": "video,label,set\n"}, "a.csv and b.csv may both say the split"),
    ],
)
def test_a_mistake_in_own_lists_is_named(lists: dict[str, str], says: str, tmp_path: Path) -> None:
    put_lists(own(tmp_path), lists)
    assert says in refusal(tmp_path)


def test_of_own_lists_absent_videos_may_be_left_out(tmp_path: Path) -> None:
    put_lists(own(tmp_path), {"train.txt": "jump/clip 0\nnone.mp4", "test.txt": "jump/clip 1"})
    dataset = find_dataset(tmp_path, partial=True)
    assert any(note.startswith("1 listed but left out: none.mp4 (") for note in dataset.notes)


def test_other_tables_are_no_lists(tmp_path: Path) -> None:
    put_lists(own(tmp_path), {"notes.csv": "who,when\nme,now\n"})
    assert any("drawn by a hash" in note for note in find_dataset(tmp_path).notes)


def test_videos_of_no_class_are_refused(tmp_path: Path) -> None:
    put(tmp_path, ["1.avi", "2.avi"])
    assert "1.avi: neither a class folder nor a label says the class" in refusal(tmp_path)
