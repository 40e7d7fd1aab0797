"""Data sets as people have them on disk: found whatever their folders look like, or refused in one sentence."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.datasets import Dataset, Video, describe, find_dataset, reduced
from preprocess.errors import DatasetError
from preprocess.sources import hmdb51
from preprocess.sources import ucf101 as ucf101_lists
from preprocess.sources.annotations import write_annotations
from preprocess.sources.disk import entries, existing, some

REAL = Path(__file__).parents[2].parent / "shared" / "data"
CLASSES = ("Archery", "HandstandPushups")
CLIPS = tuple(f"v_{name}_g{group:02}_c01" for name in ("Archery", "HandStandPushups") for group in (1, 8))
UCF_LISTS = {
    "classInd.txt": "1 Archery\n2 HandstandPushups\n",
    "trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\nHandstandPushups/v_HandStandPushups_g08_c01.avi 2\n",
    "testlist01.txt": "Archery/v_Archery_g01_c01.avi\nHandstandPushups/v_HandStandPushups_g01_c01.avi\n",
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


def ucf101(root: Path, below: str = "UCF-101/", **changes: str) -> Path:
    put(root, (f"{below}{CLASSES['Hand' in clip]}/{clip}.avi" for clip in CLIPS))
    put_lists(root / "ucfTrainTestlist", UCF_LISTS | {f"{name}.txt": text for name, text in changes.items()})
    return root


def own(root: Path, classes: Iterable[str] = ("jump", "wave"), count: int = 10, ending: str = ".mp4") -> Path:
    put(root, (f"{name}/clip {number}{ending}" for name in classes for number in range(count)))
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


# --- UCF101 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["UCF-101/", "ucf-101/", "videos/", ""])
def test_ucf101_is_found_in_its_usual_places(below: str, tmp_path: Path) -> None:
    dataset = find_dataset(ucf101(tmp_path / "Some UCF", below))
    assert (dataset.name, dataset.kind, dataset.split, dataset.classes) == ("some-ucf", "ucf101", 1, CLASSES)
    assert names(dataset, "train") == ["v_Archery_g08_c01", "v_HandStandPushups_g08_c01"]
    assert names(dataset, "test") == ["v_Archery_g01_c01", "v_HandStandPushups_g01_c01"]
    assert [video.label for video in dataset.parts["train"]] == [0, 1]
    assert all(video.path.is_file() for videos in dataset.parts.values() for video in videos)
    assert describe(dataset) == "some-ucf, split 1: 2 classes, 2 train and 2 test videos (UCF101's layout)"


def test_ucf101_may_be_flat(tmp_path: Path) -> None:
    put(tmp_path, (f"{clip}.avi" for clip in CLIPS))
    put_lists(tmp_path / "ucfTrainTestlist", UCF_LISTS)
    assert len(find_dataset(tmp_path).parts["train"]) == 2


@pytest.mark.parametrize("crlf", [False, True])
def test_lists_may_lie_beside_the_videos(crlf: bool, tmp_path: Path) -> None:
    put(tmp_path, (f"UCF-101/{CLASSES['Hand' in clip]}/{clip}.avi" for clip in CLIPS))
    put_lists(tmp_path / "ucfTrainTestlist", UCF_LISTS, crlf=crlf)
    assert find_dataset(tmp_path / "UCF-101").parts == find_dataset(tmp_path).parts


def test_lists_may_lie_anywhere_if_they_are_named(tmp_path: Path) -> None:
    put(tmp_path / "videos", (f"{CLASSES['Hand' in clip]}/{clip}.avi" for clip in CLIPS))
    put_lists(tmp_path / "elsewhere" / "lists", UCF_LISTS)
    assert find_dataset(tmp_path / "videos", lists=tmp_path / "elsewhere").classes == CLASSES
    assert "no such folder; did you mean" in refusal(tmp_path / "videos", lists=tmp_path / "elswhere")


def test_file_endings_and_class_folders_of_lists_may_be_missing(tmp_path: Path) -> None:
    put(tmp_path, (f"videos/{CLASSES['Hand' in clip]}/{clip}.avi" for clip in CLIPS))
    plain = {
        "classInd": UCF_LISTS["classInd.txt"],
        "trainlist01": "Archery/v_Archery_g08_c01 1\nv_HandStandPushups_g08_c01 2\n",
        "testlist01": "v_Archery_g01_c01\n\nv_HandStandPushups_g01_c01.avi",
    }
    put_lists(tmp_path / "ucfTrainTestlist", plain)
    dataset = find_dataset(tmp_path)
    assert names(dataset, "train") == ["v_Archery_g08_c01", "v_HandStandPushups_g08_c01"]
    assert [video.class_name for video in dataset.parts["test"]] == list(CLASSES)


@pytest.mark.parametrize("folder", ["HandstandPushups", "HandStandPushups", "handstandpushups"])
@pytest.mark.parametrize("clip", ["v_HandStandPushups", "v_HandstandPushups"])
def test_case_does_not_matter_and_the_lists_spelling_wins(folder: str, clip: str, tmp_path: Path) -> None:
    put(tmp_path, (f"Archery/v_Archery_g0{group}_c01.avi" for group in (1, 8)))
    put(tmp_path, (f"{folder}/{clip}_g0{group}_c01.avi" for group in (1, 8)))
    put_lists(tmp_path / "ucfTrainTestlist", UCF_LISTS)
    video = find_dataset(tmp_path).parts["train"][1]
    assert (video.name, video.class_name, video.label) == ("v_HandStandPushups_g08_c01", "HandstandPushups", 1)


@pytest.mark.parametrize("split", [1, 2, 3])
def test_each_split_has_its_lists(split: int, tmp_path: Path) -> None:
    ucf101(tmp_path)
    for number in (2, 3):
        put_lists(tmp_path / "ucfTrainTestlist", {f"trainlist0{number}.txt": UCF_LISTS["testlist01.txt"]})
        put_lists(tmp_path / "ucfTrainTestlist", {f"testlist0{number}.txt": UCF_LISTS["trainlist01.txt"]})
    dataset = find_dataset(tmp_path, split=split)
    assert dataset.split == split
    assert names(dataset, "train" if split == 1 else "test")[0] == "v_Archery_g08_c01"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"trainlist01": "Archery/v_Archery_g08_c01.avi 2"},
            "trainlist01.txt, line 1: 'v_Archery_g08_c01' is of class",
        ),
        ({"trainlist01": "Archery/v_Archery_g08_c01.avi 3"}, "line 1: class number 3; expected 1 to 2"),
        (
            {"trainlist01": "\nArchry/v_Archery_g08_c01.avi 1"},
            "line 2: class 'Archry' is not in classInd.txt; did you mean Arc",
        ),
        ({"trainlist01": "film.avi"}, "line 1: 'film.avi' does not say its class"),
        ({"trainlist01": ""}, "trainlist01.txt: expected a video on each line, found an empty list"),
        ({"classInd": "1 Archery\n3 HandstandPushups"}, "numbered from 1 without gaps, found [1, 3]"),
        ({"classInd": "1 Archery\n1 HandstandPushups"}, "classInd.txt, line 2: number or class of"),
        ({"classInd": "Archery"}, "classInd.txt, line 1: expected a number and a class, found 'Archery'"),
        ({"testlist01": UCF_LISTS["testlist01.txt"] * 2}, "line 3: a second video 'v_Archery_g01_c01' (the first:"),
        ({"testlist01": UCF_LISTS["trainlist01.txt"]}, "is in the test part, but"),
        ({"testlist01": "Archery/v_Archery_g01_c01.avi"}, "no video in test for 1 of 2 classes: HandstandPushups"),
        ({"classInd": "1 Archery\n2 HandstandPushups\n3 Surfing"}, "no video in train for 1 of 3 classes: Surfing"),
    ],
)
def test_a_mistake_in_the_lists_is_named_with_its_line(change: dict[str, str], says: str, tmp_path: Path) -> None:
    assert says in refusal(ucf101(tmp_path, **change))


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    ucf101(tmp_path)
    (tmp_path / "ucfTrainTestlist" / "testlist01.txt").write_bytes(b"PK\x03\x04\xff\xfe")
    assert "testlist01.txt: expected a list in UTF-8" in refusal(tmp_path)


def test_missing_lists_are_named_with_what_is_there(tmp_path: Path) -> None:
    ucf101(tmp_path)
    assert "expected the list trainlist02.txt, found classInd.txt, testlist01.txt, trainlist01" in refusal(
        tmp_path, split=2
    )
    put(tmp_path / "bare", ["Archery/v_Archery_g01_c01.avi"])
    (tmp_path / "ucfTrainTestlist").rename(tmp_path / "gone")
    assert "UCF101's lists are not there; expected ucfTrainTestlist" in refusal(tmp_path / "bare", kind="ucf101")
    assert "HMDB51's lists are not there" in refusal(tmp_path / "bare", kind="hmdb51")
    assert "the videos are named as UCF101's, but its lists" in refusal(tmp_path / "bare")


def test_a_listed_video_that_is_not_there_is_named_with_file_and_line(tmp_path: Path) -> None:
    ucf101(tmp_path)
    (tmp_path / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi").unlink()
    sentence = refusal(tmp_path)
    assert f"{tmp_path / 'UCF-101'}: 1 of 4 videos listed in {tmp_path / 'ucfTrainTestlist'} are not there" in sentence
    assert "v_Archery_g01_c01 (testlist01.txt, line 1)" in sentence


def test_of_many_missing_videos_five_are_named_and_all_counted(tmp_path: Path) -> None:
    more = "".join(f"Archery/v_Archery_g09_c{clip:02}.avi 1\n" for clip in range(40))
    sentence = refusal(ucf101(tmp_path, trainlist01=UCF_LISTS["trainlist01.txt"] + more))
    assert "40 of 44 videos" in sentence
    assert sentence.count("v_Archery_g09") == 5
    assert "(trainlist01.txt, line 7) and 35 more" in sentence


def test_with_partial_absent_videos_and_classes_are_left_out_and_noted(tmp_path: Path) -> None:
    more = UCF_LISTS["trainlist01.txt"] + "Surfing/v_Surfing_g08_c01.avi\nArchery/v_Archery_g08_c02.avi"
    ucf101(
        tmp_path,
        classInd="1 Surfing\n2 Archery\n3 HandstandPushups",
        trainlist01=more.replace(" 1", "").replace(" 2", ""),
    )
    dataset = find_dataset(tmp_path, partial=True)
    assert dataset.classes == CLASSES
    assert [video.label for video in dataset.parts["train"]] == [0, 1]
    assert "2 listed but left out: v_Surfing_g08_c01, v_Archery_g08_c02" in dataset.notes
    assert "1 of 3 classes have no video: Surfing" in dataset.notes


def test_partial_is_no_licence_for_nothing_at_all(tmp_path: Path) -> None:
    ucf101(tmp_path)
    for clip in CLIPS:
        (tmp_path / "UCF-101" / CLASSES["Hand" in clip] / f"{clip}.avi").unlink()
    put(tmp_path, ["UCF-101/Archery/other.avi"])
    assert "4 of 4 videos" in refusal(tmp_path, partial=True)


@pytest.mark.parametrize("second", ["HandstandPushups/v_Archery_g01_c01.avi", "Archery/v_archery_g01_c01.mp4"])
def test_two_videos_of_one_name_are_refused_with_both_paths(second: str, tmp_path: Path) -> None:
    ucf101(tmp_path)
    put(tmp_path / "UCF-101", [second])
    sentence = refusal(tmp_path)
    assert "two videos have the name 'v_Archery_g01_c01'" in sentence
    assert second in sentence
    assert "Archery/v_Archery_g01_c01.avi" in sentence


def test_what_is_in_no_list_or_no_video_is_noted(tmp_path: Path) -> None:
    ucf101(tmp_path)
    put(tmp_path / "UCF-101", ["Archery/v_Archery_g02_c01.avi", "Archery/Thumbs.db", "Archery/.DS_Store", "x.rar"])
    notes = find_dataset(tmp_path).notes
    assert "1 in no list of this split, left out: v_Archery_g02_c01.avi" in notes
    assert any("2 stray" in note and "Archery/Thumbs.db, x.rar" in note for note in notes)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_a_link_to_nowhere_is_not_there(tmp_path: Path) -> None:
    ucf101(tmp_path)
    clip = tmp_path / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi"
    clip.unlink()
    clip.symlink_to(tmp_path / "nowhere.avi")
    assert "1 of 4 videos" in refusal(tmp_path)


def test_where_there_are_no_lists_annotations_do(tmp_path: Path) -> None:
    by_lists = find_dataset(ucf101(tmp_path, "videos/"))
    (tmp_path / "ucfTrainTestlist").rename(tmp_path / "gone")
    put_lists(tmp_path / "annotations", {"annot01.json": json.dumps(write_annotations(by_lists))})
    assert find_dataset(tmp_path, kind="ucf101").parts == by_lists.parts
    assert find_dataset(tmp_path, kind="hmdb51").parts == by_lists.parts


def test_only_the_wanted_classes_must_be_there(tmp_path: Path) -> None:
    ucf101(tmp_path)
    for group in (1, 8):
        (tmp_path / "UCF-101" / "Archery" / f"v_Archery_g0{group}_c01.avi").unlink()
    dataset = find_dataset(tmp_path, classes=["handstandpushups"])
    assert dataset.classes == ("HandstandPushups",)
    assert [video.label for videos in dataset.parts.values() for video in videos] == [0, 0]
    assert "class 'Archry' is none of the 2 classes; did you mean Archery?" in refusal(tmp_path, classes=["Archry"])


def test_the_drawn_set_is_ucf101_by_another_name(tmp_path: Path) -> None:
    dataset = find_dataset(ucf101(tmp_path), kind="drawn")
    assert (dataset.name, dataset.kind) == ("drawn", "ucf101")


# --- which folder ----------------------------------------------------------------------------------------------------


def test_lists_of_other_data_beside_own_folders_are_left_alone(tmp_path: Path) -> None:
    put_lists(tmp_path / "ucfTrainTestlist", UCF_LISTS)
    put_lists(tmp_path / "splits", {"kick_test_split1.txt": "a_kick_0.avi 1"})
    put(tmp_path / "mine", (f"{name}/{number}.mp4" for name in ("jump", "wave") for number in range(5)))
    assert find_dataset(tmp_path / "mine").kind == "folders"


def test_a_missing_folder_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    ucf101(tmp_path / "UCF101")
    assert refusal(tmp_path / "ucf_101") == f"{tmp_path}/ucf_101: no such folder; did you mean {tmp_path}/UCF101?"
    assert "no such folder; did you mean" in refusal(tmp_path / "UCF10" / "videos")
    assert "has none of a like name" in refusal(tmp_path / "zzz")


def test_a_file_a_wrong_kind_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    put(tmp_path, ["file.avi"])
    (tmp_path / "empty").mkdir()
    assert "expected the folder of a data set, found a file" in refusal(tmp_path / "file.avi")
    assert "kind of data set 'ucf'; expected auto, ucf101" in refusal(tmp_path, kind="ucf")
    assert "empty: no videos found in" in refusal(tmp_path / "empty")
    with pytest.raises(DatasetError, match="expected a folder that can be read, found: Not a directory"):
        entries(tmp_path / "file.avi")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    ucf101(tmp_path / "closed")
    (tmp_path / "closed").chmod(0)
    try:
        assert "expected a folder that can be read, found: Permission denied" in refusal(tmp_path / "closed")
    finally:
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_a_name_that_no_record_could_have_is_refused(tmp_path: Path) -> None:
    own(tmp_path)
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "jump") + b"/caf\xe9.mp4")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert "is not UTF-8" in refusal(tmp_path)


def test_a_folder_named_videos_is_called_as_the_one_above(tmp_path: Path) -> None:
    assert find_dataset(own(tmp_path / "My Set (2)" / "videos")).name == "my-set-2"
    assert existing(tmp_path) == tmp_path


# --- smaller, for a first try ----------------------------------------------------------------------------------------


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    classes = tuple(f"class {n}" for n in range(draw(st.integers(1, 4))))
    parts = {}
    for part in ("train", "test"):
        labels = draw(st.lists(st.integers(0, len(classes) - 1), max_size=20))
        parts[part] = tuple(
            Video(name=f"{part} {n}", path=Path(str(n)), label=label, class_name=classes[label])
            for n, label in enumerate(labels)
        )
    return Dataset(name="any", kind="folders", split=1, classes=classes, parts=parts)


@settings(deadline=None)
@given(dataset=datasets(), limit=st.integers(1, 6), data=st.data())
def test_a_smaller_limit_gives_a_part_of_a_larger_one(dataset: Dataset, limit: int, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(st.sampled_from(dataset.classes), unique=True))
    small, large = reduced(dataset, wanted, limit), reduced(dataset, wanted, limit + 1)
    assert small.classes == large.classes == tuple(name for name in dataset.classes if not wanted or name in wanted)
    for part, videos in dataset.parts.items():
        assert {*names(small, part)} <= {*names(large, part)} <= {video.name for video in videos}
        counts = Counter(video.class_name for video in videos)
        kept = Counter(video.class_name for video in small.parts[part])
        assert kept == +Counter({name: min(counts[name], limit) for name in small.classes})
        assert all(small.classes[video.label] == video.class_name for video in small.parts[part])


@settings(deadline=None)
@given(dataset=datasets())
def test_without_wishes_nothing_is_left_out(dataset: Dataset) -> None:
    assert reduced(dataset) == dataset


def test_an_unknown_class_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="did you mean Archery"):
        reduced(find_dataset(ucf101(tmp_path)), ["archry"])


def test_a_long_list_is_cut_and_counted() -> None:
    assert some([1, 2]) == "1, 2"
    assert some(range(1_000)) == "0, 1, 2, 3, 4 and 995 more"


# --- real data -------------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no real videos in {REAL}")


@real
def test_real_ucf101_clips_are_found() -> None:
    dataset = find_dataset(REAL / "ucf101-6")
    assert describe(dataset) == "ucf101-6, split 1: 6 classes, 108 train and 42 test videos (UCF101's layout)"
    assert set(Counter(video.label for video in dataset.parts["train"]).values()) == {18}
    assert {*names(reduced(dataset, limit=2), "test")} <= {*names(dataset, "test")}


@real
@pytest.mark.parametrize(("split", "train", "test"), [(1, 265, 116), (2, 250, 107), (3, 244, 104)])
def test_real_jhmdb_clips_are_found_in_every_split(split: int, train: int, test: int) -> None:
    dataset = find_dataset(REAL / "jhmdb-8", split=split)
    assert [len(dataset.parts[part]) for part in ("train", "test")] == [train, test]
    assert dataset.classes == hmdb51.in_order(set(dataset.classes))


@real
@pytest.mark.parametrize(("split", "train", "test"), [(1, 9537, 3783), (2, 9586, 3734), (3, 9624, 3696)])
def test_the_published_lists_of_ucf101_are_read_whole(split: int, train: int, test: int) -> None:
    lists = ucf101_lists.read_lists(REAL / "ucf101-lists", split)
    assert Counter(entry.part for entry in lists.entries) == {"train": train, "test": test}
    assert (len(lists.classes), lists.classes[36]) == (101, "HandstandPushups")


def test_all_classes_of_hmdb51_have_its_name(tmp_path: Path) -> None:
    put(tmp_path / "mine", (f"{name}/{clip}_{name}.avi" for name in hmdb51.CLASSES for clip in "ab"))
    lists = {f"{name}_test_split1.txt": f"a_{name}.avi 1\nb_{name}.avi 2" for name in hmdb51.CLASSES}
    put_lists(tmp_path / "mine" / "splits", lists)
    dataset = find_dataset(tmp_path / "mine")
    assert describe(dataset) == "hmdb51, split 1: 51 classes, 51 train and 51 test videos (HMDB51's layout)"
    assert dataset.classes == hmdb51.CLASSES


@real
def test_all_classes_of_ucf101_have_its_name(tmp_path: Path) -> None:
    classes = ucf101_lists.read_lists(REAL / "ucf101-lists", 1).classes
    put(tmp_path / "mine" / "UCF-101", (f"{name}/v_{name}_g0{n}_c01.avi" for name in classes for n in (1, 8)))
    lists = {
        f"{part}list01.txt": "\n".join(f"{c}/v_{c}_g0{n}_c01.avi" for c in classes)
        for part, n in (("train", 8), ("test", 1))
    }
    numbered = "\n".join(f"{number} {name}" for number, name in enumerate(classes, 1))
    put_lists(tmp_path / "mine" / "ucfTrainTestlist", lists | {"classInd.txt": numbered})
    dataset = find_dataset(tmp_path / "mine")
    assert describe(dataset) == "ucf101, split 1: 101 classes, 101 train and 101 test videos (UCF101's layout)"


@real
def test_the_five_real_hmdb51_clips_are_refused_by_their_lists_and_taken_as_folders() -> None:
    assert "5,097 of 5,100 videos" in refusal(REAL / "hmdb51")
    assert [len(videos) for videos in find_dataset(REAL / "hmdb51", partial=True).parts.values()] == [1, 2]
    every = find_dataset(REAL / "hmdb51", kind="folders", partial=True)
    assert sum(map(len, every.parts.values())) == 5


@real
def test_real_clips_without_lists_are_refused_until_lists_are_named() -> None:
    assert "named as UCF101's, but its lists" in refusal(REAL / "ucf101-clips")
    dataset = find_dataset(REAL / "ucf101-clips", lists=REAL / "ucf101-lists", partial=True)
    assert sum(map(len, dataset.parts.values())) == 7
