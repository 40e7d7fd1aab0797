"""HMDB51 as people have it on disk: its flags, its order of classes, the signs its names hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.datasets import Dataset, find_dataset
from preprocess.errors import DatasetError
from preprocess.sources import hmdb51

REAL = Path(__file__).parents[2].parent / "shared" / "data"
HMDB_LISTS = {
    "kick_test_split1.txt": "a_kick_0.avi 1 \nb_#1_kick_0.avi 2 \nc_kick_0.avi 0 \n",
    "kick_ball_test_split1.txt": "a_kick_ball_0.avi 1 \nb_kick_ball_0.avi 2 \n",
    "climb_test_split1.txt": "-a(x)_climb_0.avi 2 \n!b+_climb_0.avi 1 \n",
}
HMDB_CLIPS = {
    "kick": ("a_kick_0", "b_#1_kick_0", "c_kick_0"),
    "kick_ball": ("a_kick_ball_0", "b_kick_ball_0"),
    "climb": ("-a(x)_climb_0", "!b+_climb_0"),
}


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


def hmdb(root: Path, below: str = "", sign: str = "#", **changes: str) -> Path:
    put(root, (f"{below}{name}/{clip.replace('#', sign)}.avi" for name, clips in HMDB_CLIPS.items() for clip in clips))
    put_lists(root / "testTrainMulti_7030_splits", HMDB_LISTS | {f"{name}.txt": text for name, text in changes.items()})
    return root


def names(dataset: Dataset, part: str) -> list[str]:
    return [video.name for video in dataset.parts[part]]


def refusal(root: Path, **options: object) -> str:
    """The sentence of the error, which says where, whatever else."""
    with pytest.raises(DatasetError) as caught:
        find_dataset(root, **options)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("below", ["", "videos/", "hmdb51_org/"])
@pytest.mark.parametrize("sign", ["#", "@"])
def test_hmdb51_is_found_with_the_signs_its_names_hold(below: str, sign: str, tmp_path: Path) -> None:
    dataset = find_dataset(hmdb(tmp_path / "small", below, sign))
    assert (dataset.name, dataset.kind) == ("small", "hmdb51")
    assert dataset.classes == ("climb", "kick_ball", "kick")
    assert sorted(names(dataset, "train")) == ["!b+_climb_0", "a_kick_0", "a_kick_ball_0"]
    assert sorted(names(dataset, "test")) == ["-a(x)_climb_0", "b_#1_kick_0", "b_kick_ball_0"]
    assert "1 listed for neither train nor test" in dataset.notes


@pytest.mark.parametrize("folder", ["test_train_splits", "splits", "test_train_splits/testTrainMulti_7030_splits"])
def test_hmdb51_lists_may_have_other_folders(folder: str, tmp_path: Path) -> None:
    root = hmdb(tmp_path)
    (root / folder).parent.mkdir(exist_ok=True)
    (root / "testTrainMulti_7030_splits").rename(root / folder)
    assert find_dataset(root).kind == "hmdb51"


def test_hmdb51_classes_are_in_the_authors_order() -> None:
    assert len(hmdb51.CLASSES) == len(set(hmdb51.CLASSES)) == 51
    for first, second in [("climb", "climb_stairs"), ("kick_ball", "kick"), ("sword_exercise", "sword")]:
        assert hmdb51.CLASSES.index(second) == hmdb51.CLASSES.index(first) + 1


@settings(deadline=None)
@given(st.sets(st.sampled_from(hmdb51.CLASSES)), st.sets(st.sampled_from(["aerobics", "zumba"])))
def test_any_subset_of_hmdb51_keeps_the_order_and_others_follow(ours: set[str], others: set[str]) -> None:
    expected = [name for name in hmdb51.CLASSES if name in ours] + sorted(others)
    assert list(hmdb51.in_order(ours | others)) == expected


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"climb_test_split1": "a.avi 3"},
            "climb_test_split1.txt, line 1: expected a video and 0 (unused), 1 (train) or 2",
        ),
        ({"climb_test_split1": "a.avi"}, "line 1: expected a video and 0"),
        ({"climb_test_split1": HMDB_LISTS["climb_test_split1.txt"] * 2}, "a second video '-a(x)_climb_0'"),
        ({"climb_test_split1": "-a(x)_climb_0.avi 1"}, "no video in test for 1 of 3 classes: climb"),
        ({"walk_test_split1": "w.avi 1\nx.avi 2"}, "2 of 8 videos"),
    ],
)
def test_a_mistake_in_hmdb51_lists_is_named(change: dict[str, str], says: str, tmp_path: Path) -> None:
    assert says in refusal(hmdb(tmp_path, **change))


def test_an_unused_video_need_not_be_there(tmp_path: Path) -> None:
    root = hmdb(tmp_path)
    (root / "kick" / "c_kick_0.avi").unlink()
    assert len(find_dataset(root).parts["train"]) == 3


def test_a_split_without_hmdb51_lists_is_refused(tmp_path: Path) -> None:
    assert "expected lists named <class>_test_split2.txt, found climb_test_split1.txt" in refusal(
        hmdb(tmp_path), split=2
    )


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real videos in {REAL}")
@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_published_lists_of_hmdb51_are_read_whole(split: int) -> None:
    lists = hmdb51.read_lists(REAL / "hmdb51" / "testTrainMulti_7030_splits", split)
    assert Counter(entry.part for entry in lists.entries) == {"train": 3570, "test": 1530, "": 1666}
    assert lists.classes == hmdb51.CLASSES
