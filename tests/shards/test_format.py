"""A record and its four members: nothing is lost, nothing damaged passes, nothing foreign is believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import google_crc32c
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import CorruptRecordError, FormatError
from shards.format import (
    CLS,
    FLOW,
    INDEX,
    LONGEST_SIDE,
    MEMBERS,
    MOST_PIXELS,
    RGB,
    crc32c,
    dataset_digest,
    decode,
    encode,
    key_of,
    name_of,
    parse_index,
    record_sha256,
    split_digest,
)
from shards.record import FlowMade, Frames, Record, Source

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SETTINGS = st.dictionaries(
    TEXT,
    st.none()
    | st.booleans()
    | TEXT
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False),
    max_size=4,
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)


@st.composite
def streams(draw: Any, images: int, components: int) -> Frames:
    blobs = draw(st.lists(st.binary(min_size=1, max_size=9), min_size=images, max_size=images))
    width = draw(st.integers(0, LONGEST_SIDE))
    height = draw(st.integers(0, min(LONGEST_SIDE, MOST_PIXELS // max(width, 1))))
    return Frames.of(blobs, width=width, height=height, components=components, encoder=draw(SETTINGS))


@st.composite
def records(draw: Any) -> Record:
    frames = draw(st.integers(1, 4))
    count = st.integers(0, 2**32 - 1)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    return Record(
        name=draw(NAMES),
        label=draw(st.integers(0, 2**31 - 1)),
        class_name=draw(TEXT),
        fps=(draw(count), draw(count)),
        source=Source(sha256=draw(TEXT), bytes=draw(st.integers(0, 2**63 - 1))),
        decoded_frames=draw(count),
        header_frames=draw(count),
        rgb=draw(streams(frames, 3)),
        flow=draw(streams(2 * (frames - 1), 1)),
        flow_made=FlowMade(
            method=draw(TEXT),
            parameters=draw(SETTINGS),
            library=draw(TEXT),
            levels_per_pixel=draw(finite),
            zero=draw(finite),
            scale=draw(finite),
            dropped=draw(count),
        ),
    )


def plain(record: Record) -> dict[str, Any]:
    """All of a record in values that can be compared."""
    tree: dict[str, Any] = {field: getattr(record, field) for field in Record.__dataclass_fields__}
    for stream in ("rgb", "flow"):
        frames = tree[stream]
        tree[stream] = {field: getattr(frames, field) for field in Frames.__dataclass_fields__}
        tree[stream] |= {"ends": frames.ends.tolist(), "crcs": frames.crcs.tolist(), "blob": bytes(frames.blob)}
    return tree


@given(records())
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert plain(decode(encode(record))) == plain(record)


@given(records())
def test_equal_records_give_equal_bytes(record: Record) -> None:
    backwards = dict(reversed(list(record.rgb.encoder.items())))
    again = decode(encode(record))
    object.__setattr__(again.rgb, "encoder", backwards)
    assert encode(again) == encode(record)


@given(records())
def test_members_may_be_views(record: Record) -> None:
    views = {member: memoryview(blob) for member, blob in encode(record).items()}
    assert plain(decode(views)) == plain(record)
    assert record_sha256(views) == record_sha256(encode(record))


def test_the_members_are_those_of_the_design(make_record: Callable[..., Record]) -> None:
    record = make_record("v_Archery_g01_c01", frames=3, label=7)
    members = encode(record)
    assert tuple(members) == MEMBERS == ("cls", "index.msgpack", "video.flow.mjpeg", "video.rgb.mjpeg")
    assert members[CLS] == b"7"
    assert members[RGB] == b"".join(bytes(record.rgb[i]) for i in range(3))
    header = msgpack.unpackb(members[INDEX])
    assert list(header)[-1] == "crc"
    assert int.from_bytes(header["crc"], "little") == google_crc32c.value(members[INDEX][:-4])
    assert np.frombuffer(header["rgb"]["ends"], "<u4").tolist() == record.rgb.ends.tolist()
    assert header["flow_made"]["levels_per_pixel"] == 6.375
    assert header["flow_made"]["zero"] == 127.5


def test_one_frame_has_an_empty_flow_member(make_record: Callable[..., Record]) -> None:
    members = encode(make_record("still", frames=1))
    assert members[FLOW] == b""
    assert decode(members).frames == 1


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("mask", [0x01, 0x20, 0xFF])
def test_every_flipped_byte_is_noticed(member: str, mask: int) -> None:
    members = encode(tiny())
    for position in range(len(members[member])):
        damaged = bytearray(members[member])
        damaged[position] ^= mask
        with pytest.raises((CorruptRecordError, FormatError), match=r"here: .*"):
            decode({**members, member: bytes(damaged)}, "here")


@pytest.mark.parametrize("member", MEMBERS)
def test_every_cut_and_every_extra_byte_is_noticed(member: str) -> None:
    members = encode(tiny())
    for length in range(len(members[member])):
        with pytest.raises((CorruptRecordError, FormatError)):
            decode({**members, member: members[member][:length]})
    with pytest.raises((CorruptRecordError, FormatError)):
        decode({**members, member: members[member] + b"0"})


def test_damage_names_the_frame_and_both_checksums() -> None:
    members = encode(tiny())
    rgb = bytearray(members[RGB])
    rgb[5] ^= 1  # the second of the frames "one", "two", "three"
    expected, found = google_crc32c.value(b"two"), google_crc32c.value(bytes(rgb[3:6]))
    message = rf"a\.tar: record x: video\.rgb\.mjpeg: frame 1 of 3: checksum {found:08x}, expected {expected:08x}"
    with pytest.raises(CorruptRecordError, match=message):
        decode({**members, RGB: bytes(rgb)}, "a.tar: record x")


@pytest.mark.parametrize("member", MEMBERS)
def test_a_missing_member_is_refused_by_its_name(member: str) -> None:
    members = encode(tiny())
    del members[member]
    with pytest.raises(FormatError, match=f"lacks {member}"):
        decode(members)


def test_a_foreign_member_is_refused_by_its_name() -> None:
    with pytest.raises(FormatError, match=r"unknown member sound\.wav"):
        decode({**encode(tiny()), "sound.wav": b""})


@pytest.mark.parametrize("path", ["colour", "source.host", "rgb.codec", "flow.codec", "flow_made.time"])
def test_an_unknown_key_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(FormatError, match=rf"{path}: unknown key"):
        parse_index(altered(path, 1), "here")


@pytest.mark.parametrize("path", ["name", "fps", "cls_crc", "source.bytes", "rgb.ends", "flow.count", "flow_made.zero"])
def test_a_missing_key_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(FormatError, match=rf"{path}: missing key"):
        parse_index(altered(path, None, delete=True), "here")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, r"schema 2, this version reads 1"),
        ("schema", True, r"schema True"),
        ("name", 5, r"name: expected text, found 5"),
        ("name", "", r"name: expected text"),
        ("name", "x" * 201, r"201 bytes as a key"),
        ("label", -1, r"label: expected a whole number in 0 \.\. 2147483647, found -1"),
        ("label", 1.0, r"label: expected a whole number"),
        ("label", True, r"label: expected a whole number"),
        ("fps", [25], r"fps: expected 2 whole numbers, found 1"),
        ("fps", [25, -1], r"fps\[1\]: expected a whole number"),
        ("source", 3, r"source: expected a map, found int"),
        ("rgb.ends", b"123", r"rgb\.ends: expected 12 bytes, found 3 bytes"),
        ("rgb.crcs", b"", r"rgb\.crcs: expected 12 bytes, found 0 bytes"),
        ("rgb.count", 2, r"rgb\.ends: expected 8 bytes"),
        ("rgb.count", 2**32, r"rgb\.count: expected a whole number"),
        ("rgb.ends", np.array([3, 3, 9], "<u4").tobytes(), r"rgb: each JPEG must end after the one before it"),
        ("rgb.ends", np.array([0, 3, 9], "<u4").tobytes(), r"rgb: each JPEG must end after the one before it"),
        ("rgb.components", 0, r"rgb\.components"),
        ("rgb.width", 65536, r"rgb\.width"),
        ("rgb.encoder", {"a": [1]}, r"rgb\.encoder\.a: expected text, a number"),
        ("flow_made.zero", float("nan"), r"flow_made\.zero: expected a number"),
        ("flow_made.parameters", {"a": float("inf")}, r"flow_made\.parameters\.a"),
    ],
)
def test_a_wrong_value_is_refused_with_its_path(path: str, value: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_index(altered(path, value), "here")


def test_frames_and_flow_must_fit() -> None:
    fields = unpacked()
    fields["rgb"] |= {"count": 2, "ends": fields["rgb"]["ends"][:8], "crcs": fields["rgb"]["crcs"][:8]}
    with pytest.raises(FormatError, match=r"2 frames, 4 flow images; n frames \(n > 0\) have 2 \(n - 1\)"):
        parse_index(sealed(fields), "here")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xdd\xff\xff\xff\xff",  # a list said to have four thousand million values
        b"\xdd\x00\x10\x00\x00" * 200,  # lists in lists, each said to be long
        b"\x91" * 2000,  # deeply nested
        b"\xc6\xff\xff\xff\xff",  # bytes that are not there
        b"\xc9\x00\x00\x00\x01\x05a",  # an extension type
        msgpack.packb({1: 2}),
        msgpack.packb([1, 2]),
        msgpack.packb({"schema": 1}) + b"x",
    ],
)
def test_what_is_no_record_is_refused_before_anything_is_allocated(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_index(data + google_crc32c.value(data).to_bytes(4, "little"), "here")


def test_what_cannot_be_read_back_is_not_written(make_record: Callable[..., Record]) -> None:
    for name in ("", "x" * 201, "\udce9"):
        with pytest.raises(FormatError):
            encode(renamed(make_record, name))
    record = make_record("x", frames=1)
    object.__setattr__(record.rgb, "encoder", {"a": [1, 2]})
    with pytest.raises(FormatError, match="setting 'a' is"):
        encode(record)
    with pytest.raises(FormatError, match="each JPEG must end after the one before it"):
        encode(tiny(b"one", b"", b"three"))


# Keys


@given(st.text(max_size=24), st.text(max_size=24))
def test_no_two_names_share_a_key(one: str, other: str) -> None:
    try:
        keys = key_of(one), key_of(other)
    except FormatError:
        return
    assert (keys[0] == keys[1]) == (one == other)


@given(NAMES)
def test_a_key_gives_its_name_back(name: str) -> None:
    key = key_of(name)
    assert name_of(key) == name
    assert not set("./\0\n") & set(key)


@given(st.text("%.2Ef/ab0", max_size=8))
def test_what_is_no_key_gives_no_name(text: str) -> None:
    try:
        name = name_of(text)
    except FormatError:
        return
    assert key_of(name) == text


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("v_Archery_g01_c01", "v_Archery_g01_c01"),
        ("#122_Fahren_Sie_(mit)!_&+;@[]~", "#122_Fahren_Sie_(mit)!_&+;@[]~"),
        ("-leading", "-leading"),
        ("a.b", "a%2Eb"),
        ("..", "%2E%2E"),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("tab\tnul\0", "tab%09nul%00"),
        ("\x85", "%C2%85"),
        ("köln", "köln"),
    ],
)
def test_only_what_must_be_is_escaped(name: str, key: str) -> None:
    assert key_of(name) == key


@pytest.mark.parametrize("name", ["x" * 201, "ä" * 101, "." * 67])
def test_a_key_has_at_most_200_bytes(name: str) -> None:
    with pytest.raises(FormatError, match="bytes as a key, expected at most 200; rename the video"):
        key_of(name)
    assert key_of(name[:66])


# Digests


@given(st.binary(max_size=100), st.integers(0, 10))
def test_the_checksum_of_a_view_is_that_of_its_bytes(data: bytes, start: int) -> None:
    assert crc32c(memoryview(data)[start:]) == crc32c(data[start:]) == google_crc32c.value(data[start:])


def test_the_digest_depends_on_keys_labels_records_and_their_order() -> None:
    rows = [("a", 0, bytes(32)), ("b", 1, b"x" * 32)]
    digests = {
        dataset_digest(rows),
        dataset_digest(rows[::-1]),
        dataset_digest(rows[:1]),
        dataset_digest([("a", 1, bytes(32)), rows[1]]),
        dataset_digest([("c", 0, bytes(32)), rows[1]]),
        dataset_digest([("a", 0, b"y" * 32), rows[1]]),
    }
    assert len(digests) == 6
    assert split_digest({"train": "1", "test": "2"}) == split_digest({"test": "2", "train": "1"})
    assert split_digest({"train": "1", "test": "2"}) != split_digest({"train": "2", "test": "1"})


def tiny(*frames: bytes) -> Record:
    frames = frames or (b"one", b"two", b"three")
    size: dict[str, Any] = {"width": 4, "height": 2}
    return Record(
        name="x",
        label=12,
        class_name="Wave",
        fps=(25, 1),
        source=Source(sha256="ab", bytes=5),
        decoded_frames=3,
        header_frames=3,
        rgb=Frames.of(frames, **size, components=3, encoder={"quality": 90}),
        flow=Frames.of([b"x0", b"y0", b"x1", b"y1"], **size, components=1, encoder={}),
        flow_made=FlowMade(method="drawn", parameters={}, library=""),
    )


def renamed(make_record: Callable[..., Record], name: str) -> Record:
    record = make_record("x", frames=1)
    object.__setattr__(record, "name", name)
    return record


def unpacked() -> dict[str, Any]:
    fields: dict[str, Any] = msgpack.unpackb(encode(tiny())[INDEX])
    return fields


def sealed(fields: dict[str, Any]) -> bytes:
    """The header with these fields and a right checksum of itself."""
    data = msgpack.packb({**{key: fields[key] for key in fields if key != "crc"}, "crc": bytes(4)})[:-4]
    return bytes(data + google_crc32c.value(data).to_bytes(4, "little"))


def altered(path: str, value: object, delete: bool = False) -> bytes:
    fields = unpacked()
    *above, last = path.split(".")
    below = fields
    for key in above:
        below = below[key]
    if delete:
        del below[last]
    else:
        below[last] = value
    return sealed(fields)
