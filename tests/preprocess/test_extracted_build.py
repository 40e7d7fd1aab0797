"""A build of extracted frames: whatever the folders look like, the shards hold the very bytes of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess.build import build
from preprocess.building.engines import here
from preprocess.config import Preprocess
from preprocess.datasets import find_dataset
from preprocess.sources.frame_folders import FRAME
from shards.format import decode
from shards.split import open_split
from tests.preprocess.test_extracted import CLASS, NAMES, write_lists, write_video

FRAMES = dict(zip(NAMES, (5, 1, 12, 3), strict=True))
SETTINGS = Preprocess(per_shard=3, workers=1)


def files(folder: Path) -> list[bytes]:
    """The frames in `folder` in the order of their numbers."""
    found = {int(match["number"]): path for path in folder.iterdir() if (match := FRAME.fullmatch(path.name))}
    return [found[number].read_bytes() for number in sorted(found)]


def plain(root: Path) -> None:
    for name, frames in FRAMES.items():
        write_video(root, name, frames=frames)


def from_nought(root: Path) -> None:
    for name, frames in FRAMES.items():
        write_video(root, name, frames=frames, first=0, pattern="{:05}.jpg")


def unpadded(root: Path) -> None:
    for name, frames in FRAMES.items():
        write_video(root, name, frames=frames, pattern="image-{}.JPEG")  # image-10 stands before image-2


def with_strays(root: Path) -> None:
    plain(root)
    for folder in [*root.glob("images/*"), *root.glob("flows/*/*")]:
        (folder / "Thumbs.db").write_bytes(b"x")
        (folder / ".DS_Store").write_bytes(b"x")
        (folder / "poster.jpg").write_bytes(b"no frame")
        if len([*folder.glob("frame*")]) > 1:  # else nothing tells the frames from the rest
            (folder / "cover1.jpg").write_bytes(b"no frame")
            (folder / "TSP flows").mkdir()


def with_as_many_flows_as_frames(root: Path) -> None:
    for name, frames in FRAMES.items():
        write_video(root, name, frames=frames, flows=frames)


def in_class_folders(root: Path) -> None:
    for name, frames in FRAMES.items():
        write_video(root, name, frames=frames, below=CLASS[name])


def in_three_components(root: Path) -> None:
    for name, frames in FRAMES.items():
        write_video(root, name, frames=frames, mode="RGB")


LAYOUTS = [
    plain,
    from_nought,
    unpadded,
    with_strays,
    with_as_many_flows_as_frames,
    in_class_folders,
    in_three_components,
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_shards_hold_the_bytes_of_the_files(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    root = tmp_path / "set"
    layout(root)
    write_lists(root)  # which spell HandStandPushups, the folders HandstandPushups
    report = build(find_dataset(root), SETTINGS, tmp_path / "out", engine=here)
    folders = {path.name: path for path in root.glob("**/v_*_g*") if "images" in path.parts}
    seen = set()
    with open_split(report.folder) as split:
        for part in ("train", "test"):
            for row in split.index(part):
                record = decode(split.read(part, row.record))
                images = folders[record.name.replace("HandStand", "Handstand")]
                u, v = (Path(str(images).replace("/images/", f"/flows/{axis}/")) for axis in "uv")
                pairs = FRAMES[images.name] - 1
                assert [bytes(record.rgb[image]) for image in range(len(record.rgb))] == files(images)
                assert [bytes(record.flow[image]) for image in range(0, len(record.flow), 2)] == files(u)[:pairs]
                assert [bytes(record.flow[image]) for image in range(1, len(record.flow), 2)] == files(v)[:pairs]
                assert record.class_name == CLASS[images.name]
                seen.add(images.name)
    assert seen == set(NAMES)


def test_the_same_files_give_the_same_shards_wherever_they_lie(tmp_path: Path) -> None:
    shards = []
    for base in (tmp_path / "here", tmp_path / "there"):
        plain(base / "set")
        write_lists(base / "set")
        folder = build(find_dataset(base / "set"), SETTINGS, base / "out", engine=here).folder
        shards.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert shards[0] == shards[1]
    assert {"train-000000.tar", "test-000000.tar", "manifest.json"} <= shards[0].keys()


def test_a_broken_folder_is_named_and_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "set"
    plain(root)
    write_lists(root)
    whole = build(find_dataset(root), SETTINGS, tmp_path / "whole", engine=here).folder
    (root / "flows" / "u" / NAMES[2] / "frame000004.jpg").write_bytes(b"\xff\xd8\xff cut")
    report = build(find_dataset(root), SETTINGS, tmp_path / "broken", engine=here)
    (failure,) = report.failures
    assert failure.name == NAMES[2]
    assert "frame000004.jpg: expected a JPEG, found" in failure.reason
    with open_split(whole) as before, open_split(report.folder) as after:
        for part in ("train", "test"):
            kept = {row.name: row.sha256 for row in before.index(part) if row.name != NAMES[2]}
            assert {row.name: row.sha256 for row in after.index(part)} == kept
