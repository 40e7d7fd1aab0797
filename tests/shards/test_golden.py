"""The bytes of version 1, frozen. If one of these fails, shards that stand on people's disks can no longer be trusted:
make it version 2 instead. `golden/` was written once by `written` below, from the JPEGs that lie beside it.
"""

from __future__ import annotations

from pathlib import Path

from shards.format import decode, encode, key_of
from shards.index import index_tar, write_index
from shards.record import FlowMade, Frames, Record, Source
from shards.split import open_split
from shards.writer import write_split

GOLDEN = Path(__file__).parent / "golden"
LONG = "#437_How_To_Ride_A_Bike_(Fahrrad_fahren)_ride_bike_u_cm_np1_ba_med_3.avi_&_ein_sehr_langer_Name_&_50%"
FILES = ("train-000000.tar", "train.index", "manifest.json")


def jpegs(stream: str, count: int) -> Frames:
    """The first `count` JPEGs of a stream, 16 by 8 pixels."""
    images = [(GOLDEN / f"{stream}{i}.jpg").read_bytes() for i in range(count)]
    encoder = {"quality": 90, "subsampling": "4:2:0"} if stream == "rgb" else {"quality": 95, "optimize": False}
    return Frames.of(images, width=16, height=8, components=3 if stream == "rgb" else 1, encoder=encoder)


def record(name: str, label: int, class_name: str, frames: int) -> Record:
    return Record(
        name=name,
        label=label,
        class_name=class_name,
        fps=(30000, 1001),
        source=Source(sha256="0123456789abcdef" * 4, bytes=123456),
        decoded_frames=frames,
        header_frames=frames + 1,
        rgb=jpegs("rgb", frames),
        flow=jpegs("flow", 2 * (frames - 1)),
        flow_made=FlowMade(
            method="tvl1", parameters={"warps": 5, "tau": 0.25, "stop": None}, library="opencv 5.0.0", scale=0.5
        ),
    )


def written(folder: Path) -> None:
    records = [record("v_Archery_g01_c01", 0, "Archery", 3), record(LONG, 1, "ride bike", 1)]
    write_split(
        folder,
        dataset="golden",
        split=1,
        classes=["Archery", "ride bike"],
        made={"flow": {"method": "tvl1", "tau": 0.25}, "short_side": 8},
        parts={"train": [[(key_of(one.name), encode(one)) for one in records]]},
    )


def test_the_same_records_give_the_same_bytes_for_ever(tmp_path: Path) -> None:
    written(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), f"{name} differs"


def test_the_frozen_bytes_are_read_as_they_were_meant() -> None:
    with open_split(GOLDEN) as split:
        found = [decode(split.read("train", number)) for number in range(2)]
        assert split.manifest.digest == "0ed047fa3098004e331d0655f0f0a5c273429a3ffe2a805b51bfb56869248aaa"
    assert [one.name for one in found] == ["v_Archery_g01_c01", LONG]
    assert [one.class_name for one in found] == ["Archery", "ride bike"]
    assert [(one.frames, len(one.flow)) for one in found] == [(3, 4), (1, 0)]
    assert found[0].flow_made.parameters == {"stop": None, "tau": 0.25, "warps": 5}
    assert found[0].fps == (30000, 1001)
    for i in range(3):
        assert bytes(found[0].rgb[i]) == (GOLDEN / f"rgb{i}.jpg").read_bytes()


def test_the_frozen_index_comes_from_the_frozen_tar_alone(tmp_path: Path) -> None:
    data = (GOLDEN / "train-000000.tar").read_bytes()
    write_index(tmp_path / "train.index", index_tar(lambda start, stop: data[start:stop], len(data), 0, "golden"))
    assert (tmp_path / "train.index").read_bytes() == (GOLDEN / "train.index").read_bytes()
