"""Frames and flow that were extracted before: found whatever their folders look like, and taken over byte for byte."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocess.config import Preprocess
from preprocess.datasets import describe, find_dataset
from preprocess.errors import DatasetError, VideoError
from preprocess.extracted import frame_files, record_from_frames, strays
from preprocess.sources.annotations import read_annotations, write_annotations
from preprocess.sources.frame_folders import FRAME
from preprocess.sources.listing import Video

SETTINGS = Preprocess()
NAMES = ("v_HandstandPushups_g01_c01", "v_HandstandPushups_g08_c01", "v_Archery_g01_c01", "v_Archery_g08_c01")
CLASS = {name: name.split("_")[1] for name in NAMES}


def jpeg(number: int, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> bytes:
    """A picture that no other number has."""
    levels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(levels).convert(mode).save(out, "JPEG")
    return out.getvalue()


def write_frames(folder: Path, blobs: Iterable[bytes], pattern: str = "frame{:06}.jpg", first: int = 1) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    blobs = list(blobs)
    for number, blob in enumerate(blobs, first):
        (folder / pattern.format(number)).write_bytes(blob)
    return blobs


def write_video(
    root: Path,
    name: str = "v",
    *,
    frames: int = 4,
    flows: int | None = None,
    pattern: str = "frame{:06}.jpg",
    first: int = 1,
    mode: str = "L",
    below: str = "",
    flow_size: tuple[int, int] = (24, 16),
) -> Video:
    """A video's folders, and the video as a data set would hold it."""
    flows = frames - 1 if flows is None else flows
    folders = [root / kind / below / name for kind in ("images", "flows/u", "flows/v")]
    write_frames(folders[0], (jpeg(n) for n in range(frames)), pattern, first)
    for axis, folder in enumerate(folders[1:], 1):
        write_frames(folder, (jpeg(100 * axis + n, flow_size, mode) for n in range(flows)), pattern, first)
    return Video(name=name, path=folders[0], label=0, class_name="a", flow_path=(folders[1], folders[2]))


def write_lists(root: Path, where: str = "annotations/ucf101_splits", ending: str = "") -> None:
    folder = root / where
    folder.mkdir(parents=True)
    (folder / f"classInd{ending}").write_text("1 Archery\n2 HandstandPushups\n")
    for part, group in (("train", "g08"), ("test", "g01")):
        lines = [f"{CLASS[name]}/{name.replace('HandstandP', 'HandStandP')}.avi" for name in NAMES if group in name]
        (folder / f"{part}list01{ending}").write_text("\n".join(lines))


# --- one video -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["frame{:06}.jpg", "img_{:05}.jpg", "{:05}.jpg", "image-{}.JPEG"])
@pytest.mark.parametrize("first", [0, 1])
def test_every_byte_is_taken_over_in_order(pattern: str, first: int, tmp_path: Path) -> None:
    record = record_from_frames(write_video(tmp_path, frames=12, pattern=pattern, first=first), SETTINGS)
    assert [bytes(record.rgb[n]) for n in range(12)] == [jpeg(n) for n in range(12)]
    expected = [jpeg(100 * axis + n, mode="L") for n in range(11) for axis in (1, 2)]
    assert [bytes(record.flow[n]) for n in range(22)] == expected
    assert (record.rgb.width, record.rgb.height, record.rgb.components) == (24, 16, 3)
    assert (record.flow_made.method, record.flow_made.dropped, record.flow_made.scale) == ("extracted", 0, 1.0)
    assert (record.decoded_frames, record.header_frames, record.fps) == (12, 0, (0, 1))


def test_of_as_many_flow_images_as_frames_the_last_pair_is_left_out(tmp_path: Path) -> None:
    record = record_from_frames(write_video(tmp_path, frames=4, flows=4), SETTINGS)
    assert len(record.flow) == 6
    assert record.flow_made.dropped == 2
    assert bytes(record.flow[5]) == jpeg(202, mode="L")


def test_gray_flow_in_three_components_stays_so(tmp_path: Path) -> None:
    record = record_from_frames(write_video(tmp_path, mode="RGB"), SETTINGS)
    assert record.flow.components == 3
    assert bytes(record.flow[0]) == jpeg(100, mode="RGB")


def test_flow_may_be_smaller_than_the_frames(tmp_path: Path) -> None:
    record = record_from_frames(write_video(tmp_path, flow_size=(12, 8)), SETTINGS)
    assert (record.flow.width, record.flow.height, record.flow_made.scale) == (12, 8, 0.5)


def test_the_source_is_the_names_and_bytes_of_all_files(tmp_path: Path) -> None:
    one = record_from_frames(write_video(tmp_path / "one"), SETTINGS).source
    same = record_from_frames(write_video(tmp_path / "same"), SETTINGS).source
    named = record_from_frames(write_video(tmp_path / "named", pattern="img_{:05}.jpg"), SETTINGS).source
    longer = record_from_frames(write_video(tmp_path / "longer", flows=4), SETTINGS).source
    assert one == same
    assert len({one.sha256, named.sha256, longer.sha256}) == 3
    assert one.bytes == sum(path.stat().st_size for path in (tmp_path / "one").rglob("*.jpg"))


@pytest.mark.parametrize("flows", [0, 1])
def test_a_video_of_one_frame_has_no_flow(flows: int, tmp_path: Path) -> None:
    record = record_from_frames(write_video(tmp_path, frames=1, flows=flows), SETTINGS)
    assert (len(record.rgb), len(record.flow), record.flow_made.dropped) == (1, 0, 2 * flows)


def test_strays_are_named_and_ignored(tmp_path: Path) -> None:
    video = write_video(tmp_path)
    expected = record_from_frames(video, SETTINGS).source
    (video.path / "TSP flows").mkdir()
    (video.path / "Thumbs.db").write_bytes(b"x")
    (video.path / "cover1.jpg").write_bytes(b"x")
    (video.path / ".DS_Store").write_bytes(b"x")
    assert record_from_frames(video, SETTINGS).source == expected
    assert {path.name for path in strays([video])} == {"TSP flows", "Thumbs.db", "cover1.jpg"}


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 40), min_size=1))
def test_missing_numbers_are_the_only_thing_wrong_with_gaps(numbers: set[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in numbers:
            (folder / f"{number:05}.jpg").write_bytes(b"")
        missing = set(range(min(1, *numbers, 1), max(numbers))) - numbers
        if missing:
            with pytest.raises(VideoError, match=f"{len(missing)} of the frames .* are missing: {min(missing)}"):
                frame_files(folder)
        else:
            assert [int(path.stem) for path in frame_files(folder).frames] == sorted(numbers)


def _nothing(video: Video) -> None:
    for path in video.path.iterdir():
        path.unlink()


def _cut(video: Video) -> None:
    path = video.path / "frame000002.jpg"
    path.write_bytes(path.read_bytes()[:-70])


def _gap(video: Video) -> None:
    (video.path / "frame000002.jpg").unlink()


def _date(video: Video) -> None:
    (video.path / "frame20230101123456789.jpg").write_bytes(jpeg(0))


def _twice(video: Video) -> None:
    (video.path / "frame2.jpg").write_bytes(jpeg(0))


def _other_kind(video: Video) -> None:
    write_frames(video.path, (jpeg(n) for n in range(4)), "img_{:05}.jpg")


def _no_jpeg(video: Video) -> None:
    (video.path / "frame000003.jpg").write_bytes(b"\x89PNG and so on")


def _empty(video: Video) -> None:
    (video.path / "frame000003.jpg").write_bytes(b"")


def _larger(video: Video) -> None:
    (video.path / "frame000003.jpg").write_bytes(jpeg(0, (32, 16)))


def _gray(video: Video) -> None:
    (video.path / "frame000003.jpg").write_bytes(jpeg(0, mode="L"))


def _cmyk(video: Video) -> None:
    (video.path / "frame000001.jpg").write_bytes(jpeg(0, mode="CMYK"))


def _absurd(video: Video) -> None:
    path = video.path / "frame000001.jpg"
    blob = path.read_bytes()
    size = blob.index(b"\xff\xc0") + 5
    path.write_bytes(blob[:size] + b"\x20\x00\x10\x01" + blob[size + 4 :])


def _less_flow(video: Video) -> None:
    assert video.flow_path
    for folder in video.flow_path:
        (folder / "frame000003.jpg").unlink()


def _less_v(video: Video) -> None:
    assert video.flow_path
    (video.flow_path[1] / "frame000003.jpg").unlink()


def _other_v(video: Video) -> None:
    assert video.flow_path
    write_frames(video.flow_path[1], [jpeg(n, (12, 8), "L") for n in range(3)])


def _no_folder(video: Video) -> None:
    _nothing(video)
    video.path.rmdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_nothing, "holds no frames"),
        (_no_folder, "expected a folder of frames, found none"),
        (_cut, "frame000002.jpg: .* without the end mark of a JPEG"),
        (_gap, "1 of the frames 1 to 4 are missing: 2;"),
        (_date, "of the frames 1 to 20230101123456789 are missing: 5, 6, .* more"),
        (_twice, "frame000002.jpg and frame2.jpg have one number"),
        (_other_kind, "as many files are named 'frame' and a number as 'img_' and a number"),
        (_no_jpeg, "frame000003.jpg: expected a JPEG, found 14 bytes"),
        (_empty, "frame000003.jpg: expected a JPEG, found 0 bytes"),
        (_larger, "frame000003.jpg: 32x16 with 3 components, but frame000001.jpg is 24x16 with 3 components"),
        (_gray, "24x16 with 1 component, but"),
        (_cmyk, "in gray or RGB, found CMYK"),
        (_absurd, "frame000001.jpg: 4097x8192 with 3 components, expected at most 33554432 pixels"),
        (_less_flow, "4 frames with 2 u and 2 v flow images; expected 3 or 4"),
        (_less_v, "4 frames with 3 u and 2 v flow images; expected 3 or 4"),
        (_other_v, "u flow is 24x16 with 1 component, v flow 12x8 with 1 component"),
    ],
)
def test_what_does_not_fit_is_an_error_of_that_video(
    damage: Callable[[Video], None], says: str, tmp_path: Path
) -> None:
    video = write_video(tmp_path)
    damage(video)
    with pytest.raises(VideoError, match=says):
        record_from_frames(video, SETTINGS)


def test_a_video_file_has_no_extracted_flow(tmp_path: Path) -> None:
    video = Video(name="v", path=tmp_path, label=0, class_name="a")
    with pytest.raises(VideoError, match="no folders of flow"):
        record_from_frames(video, SETTINGS)


# --- a whole data set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_folders", [False, True])
@pytest.mark.parametrize(("where", "ending"), [("annotations/ucf101_splits", ""), ("ucfTrainTestlist", ".txt")])
def test_folders_are_found_with_class_folders_or_without(
    class_folders: bool, where: str, ending: str, tmp_path: Path
) -> None:
    root = tmp_path / "UCF101"
    for name in NAMES:
        write_video(root, name, below=CLASS[name] if class_folders else "")
    write_lists(root, where, ending)
    dataset = find_dataset(root)
    assert describe(dataset) == "ucf101, split 1: 2 classes, 2 train and 2 test videos (extracted frames)"
    assert dataset.classes == ("Archery", "HandstandPushups")
    assert {video.name: video.label for videos in dataset.parts.values() for video in videos} == {
        "v_Archery_g01_c01": 0,
        "v_Archery_g08_c01": 0,
        "v_HandStandPushups_g01_c01": 1,  # as the lists spell it, whatever the folder
        "v_HandStandPushups_g08_c01": 1,
    }
    for videos in dataset.parts.values():
        for video in videos:
            assert record_from_frames(video, SETTINGS).frames == 4


def test_annotations_say_what_the_lists_said(tmp_path: Path) -> None:
    for name in NAMES:
        write_video(tmp_path, name)
    write_lists(tmp_path)
    by_lists = find_dataset(tmp_path, kind="extracted")
    content = write_annotations(by_lists, dict.fromkeys(NAMES, 4))
    (tmp_path / "annotations" / "annot01.json").write_text(json.dumps(content))
    assert any("ucf101_splits" in note for note in find_dataset(tmp_path).notes)  # lists come first
    (tmp_path / "annotations" / "ucf101_splits").rename(tmp_path / "gone")
    by_annotations = find_dataset(tmp_path)
    assert by_annotations.parts == by_lists.parts
    assert read_annotations(tmp_path / "annotations" / "annot01.json").classes == by_lists.classes
    assert any("annot01.json" in note for note in by_annotations.notes)


def test_strays_beside_the_videos_are_named(tmp_path: Path) -> None:
    for name in NAMES:
        write_video(tmp_path, name)
    write_lists(tmp_path)
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "images" / "TSP flows").mkdir()
    (tmp_path / "flows" / "u" / "log.txt").write_bytes(b"")
    notes = "\n".join(find_dataset(tmp_path).notes)
    assert "Thumbs.db" in notes
    assert "TSP flows" in notes
    assert "1 stray beside the flow, ignored: log.txt" in notes


def test_a_listed_video_without_flow_is_not_there(tmp_path: Path) -> None:
    for name in NAMES:
        write_video(tmp_path, name)
    write_lists(tmp_path)
    (tmp_path / "flows" / "v" / NAMES[2]).rename(tmp_path / "flows" / "v" / "v_Archery_g01_c02")
    with pytest.raises(DatasetError, match=r"flows/v: 1 of 4 videos .* v_Archery_g01_c01 \(testlist01, line 2\)"):
        find_dataset(tmp_path)
    dataset = find_dataset(tmp_path, partial=True)
    assert [len(dataset.parts[part]) for part in ("train", "test")] == [2, 1]


def test_two_folders_of_one_name_are_one_too_many(tmp_path: Path) -> None:
    for name in NAMES:
        write_video(tmp_path, name)
    write_video(tmp_path, NAMES[0], below="HandstandPushups")
    write_lists(tmp_path)
    with pytest.raises(DatasetError, match="two videos have the name"):
        find_dataset(tmp_path)


def test_frames_without_lists_or_flow_are_refused(tmp_path: Path) -> None:
    write_video(tmp_path, NAMES[0])
    with pytest.raises(DatasetError, match=r"no lists of split 1 found; expected annotations/annot01\.json"):
        find_dataset(tmp_path)
    write_lists(tmp_path)
    (tmp_path / "flows" / "v").rename(tmp_path / "flows" / "w")
    with pytest.raises(DatasetError, match="expected images, flows/u and flows/v, found annotations, flows, images"):
        find_dataset(tmp_path, kind="extracted")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("frame000001.jpg", "frame"), ("img_00001.jpg", "img_"), ("00000.JPG", ""), ("a1b02.jpeg", "a1b")],
)
def test_a_frame_is_a_prefix_and_a_number(name: str, prefix: str) -> None:
    match = FRAME.fullmatch(name)
    assert match
    assert match["prefix"] == prefix
