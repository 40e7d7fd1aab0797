"""Whatever a manifest, an index, a record, a tar or a saved position holds: a ShardError, in little time and memory.

Checksums keep accidents out; they keep nobody out who can compute them. Most inputs are therefore sealed again after
they were spoiled, so that what stands behind the checksums is met.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.access import Access
from shards.errors import CorruptRecordError, FormatError, ShardError, StateMismatchError
from shards.format import INDEX, MEMBERS, MOST_PIXELS, RGB, crc32c, decode, encode, key_of, parse_index
from shards.index import HEADER_SIZE, Index, parse_index_bytes, records_of
from shards.manifest import dump_manifest, parse_manifest, split_digest
from shards.order import State
from shards.picture import record_sheet
from shards.record import Frames, Record
from shards.split import open_split
from shards.stream import read_clips
from shards.tar import BLOCK, members
from shards.writer import write_shard
from tests.conftest import drawn_record, drawn_split
from tests.hostile import NUMBERS, bounded, nested, paths, replaced, spoiled
from tests.shards.test_frame_members import frame_files

FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
ROW = struct.Struct("<QI2I32sQQIQ QIHHII QIHHII")  # a row of an index, before its CRC

Read = TypeVar("Read")
NOWHERE = Access(cache=Path("/dev/null/nowhere"))  # indexes made of tars are not kept

ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, "", "x", "a/b", "../x", "\0", "x" * 70_000, b"", b"x" * 70, {}, {"a": 1}, []),
    *NUMBERS,
    *([0] * 300, ["x"], {str(number): number for number in range(300)}, nested(12), nested(400), nested(400, key="a")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "split1"
    drawn_split(folder, train=3, test=1, frames=3, per_shard=2)
    return folder


def room(data: bytes) -> int:
    """Bytes that reading `data` may set aside: a small multiple of it."""
    return (1 << 20) + 64 * len(data)


def tried(parse: Callable[[], Read], error: type[ShardError] = ShardError) -> Read | None:
    """What `parse` gives, or None where it raises `error`, in a message of a length that can be read."""
    try:
        return parse()
    except error as refused:
        said = str(refused)
    assert len(said) < 1000, said[:2000]
    return None


# Manifests


def sealed_manifest(tree: Any) -> bytes:
    """A manifest with the digests that it ought to have."""
    if isinstance(tree, dict):
        tree = dict(tree)
        with suppress(Exception):
            tree["digest"] = split_digest({name: part["digest"] for name, part in tree["parts"].items()})
        with suppress(Exception):
            rest = {key: value for key, value in tree.items() if key != "check"}
            text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
            tree["check"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(tree).encode()


def read_manifest(data: bytes) -> None:
    with bounded(room(data)):
        manifest = tried(lambda: parse_manifest(data, "m"))
        assert manifest is None or parse_manifest(dump_manifest(manifest), "m") == manifest


JSON = [odd for odd in ODD if not isinstance(odd, bytes)] + ["\ud800", float("inf"), float("nan"), 10**400]


@FEW
@given(data=st.data())
def test_a_manifest_with_something_odd_in_it_is_refused_or_read(folder: Path, data: st.DataObject) -> None:
    tree = json.loads((folder / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        tree = replaced(tree, data.draw(st.sampled_from(paths(tree))), data.draw(st.sampled_from(JSON)))
    read_manifest(sealed_manifest(tree))


@FEW
@given(data=st.data())
def test_a_spoiled_manifest_is_refused_or_read(folder: Path, data: st.DataObject) -> None:
    read_manifest(data.draw(spoiled((folder / "manifest.json").read_bytes())))


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "-Infinity", "1" * 5000, "0." + "1" * 5000])
@pytest.mark.parametrize("place", ["made", "split", "schema"])
def test_numbers_that_are_none_are_refused_in_a_manifest(folder: Path, place: str, number: str) -> None:
    tree = json.loads((folder / "manifest.json").read_bytes())
    tree[place] = {"a": 1} if place == "made" else "HERE"
    text = json.dumps(tree).replace('{"a": 1}' if place == "made" else '"HERE"', number, 1).encode()
    with bounded(room(text)), pytest.raises(ShardError):
        parse_manifest(text, "m")


def test_a_class_that_stands_twice_among_very_many_is_found_at_once(folder: Path) -> None:
    tree = json.loads((folder / "manifest.json").read_bytes())
    tree["classes"] = [*map(str, range(100_000)), "99999"]
    data = sealed_manifest(tree)
    with bounded(room(data)), pytest.raises(FormatError, match="classes: '99999' stands twice"):
        parse_manifest(data, "m")


def test_text_that_cannot_be_written_is_refused_in_a_manifest(folder: Path) -> None:
    tree = json.loads((folder / "manifest.json").read_bytes())
    for path in (("classes", 0), ("dataset",), ("made", "flow")):
        with pytest.raises(FormatError):
            parse_manifest(sealed_manifest(replaced(tree, path, "\udc80")), "m")


# A record's own header


def sealed_header(data: bytes) -> bytes:
    """index.msgpack with the checksum that it ought to have."""
    return data[:-4] + crc32c(data[:-4]).to_bytes(4, "little") if len(data) > 4 else data


def read_header(data: bytes) -> None:
    with bounded(room(data)):
        header = tried(lambda: parse_index(data, "r"))
        assert header is None or (header.frames > 0 and header.rgb.width * header.rgb.height <= MOST_PIXELS)


RECORD = encode(drawn_record("v_x", frames=3))
HEADER = RECORD[INDEX]
TREE = msgpack.unpackb(HEADER)


@FEW
@given(data=st.data())
def test_a_header_with_something_odd_in_it_is_refused_or_read(data: st.DataObject) -> None:
    tree = TREE
    for _ in range(data.draw(st.integers(1, 3))):
        tree = replaced(tree, data.draw(st.sampled_from(paths(tree))), data.draw(st.sampled_from(ODD)))
    read_header(sealed_header(msgpack.packb(tree)))


@FEW
@given(spoiled(HEADER))
@example(b"\x91" * 100_000)
@example(b"\xdf\xff\xff\xff\xff" + HEADER)
@example(b"\xdd\xff\xff\xff\xff" * 5000)
@example(b"\x81" * 100_000)
@example(b"\xc6\xff\xff\xff\xff" + HEADER)
@example(b"\xdb\xff\xff\xff\xff" + HEADER)
@example(b"\xc9\xff\xff\xff\xff\x01" + HEADER)
@example(b"\xd6\xff\x00\x00\x00\x00" + HEADER)
@example(b"\x81\xc0\xc0....")
@example(b"\x81\x90\xc0....")
def test_a_spoiled_header_is_refused_or_read(data: bytes) -> None:
    read_header(data)
    read_header(sealed_header(data))


@FEW
@given(st.lists(st.sampled_from([*range(6), *NUMBERS]), max_size=6), st.booleans())
def test_a_table_of_frames_that_does_not_ascend_is_refused(numbers: list[int], as_flow: bool) -> None:
    ends = np.array([number % 2**32 for number in numbers], "<u4")
    tree = replaced(TREE, ("flow" if as_flow else "rgb", "ends"), ends.tobytes())
    tree = replaced(tree, ("flow" if as_flow else "rgb", "crcs"), ends.tobytes())
    tree = replaced(tree, ("flow" if as_flow else "rgb", "count"), len(ends))
    good = np.array_equal(ends, np.unique(ends)) and (not len(ends) or ends[0] > 0)
    data = sealed_header(msgpack.packb(tree))
    with bounded(room(data)):
        if good and len(ends) == (4 if as_flow else 3):
            parse_index(data, "r")
        else:
            with pytest.raises(FormatError):
                parse_index(data, "r")


# The index of a part


def sealed_index(data: bytes, *, records: int) -> bytes:
    """An index with the checksums that it ought to have: of tables, rows, columns and header, as far as they lie in
    the file."""
    array = bytearray(data)
    with suppress(struct.error, ValueError, OverflowError):
        starts = struct.unpack_from("<6Q", array, 32)
        for record in range(records):
            at = starts[3] + record * (ROW.size + 8)
            values = list(ROW.unpack_from(array, at))
            column = b"".join(bytes(array[start + 4 * record : start + 4 * record + 4]) for start in starts[:3])
            frames = int.from_bytes(column[4:8], "little")
            begin = starts[5] + 4 * values[8]
            middle, end = begin + 16 * (frames - 1), begin + 16 * (frames - 1) + 8 * frames
            values[14], values[20] = crc32c(bytes(array[begin:middle])), crc32c(bytes(array[middle:end]))
            row = ROW.pack(*values)
            key = bytes(array[starts[4] + values[0] : starts[4] + values[0] + values[1]])
            array[at : at + ROW.size + 8] = row + crc32c(column + row + key).to_bytes(8, "little")
        crcs = [crc32c(bytes(array[start : start + 4 * records])) for start in starts[:3]]
        struct.pack_into("<3I", array, 88, *crcs)
    if len(array) >= HEADER_SIZE:
        struct.pack_into("<I", array, 124, crc32c(bytes(array[:124])))
    return bytes(array)


def read_index(data: bytes) -> Index | None:
    with bounded(room(data)):
        try:
            index = parse_index_bytes(data, "i")
        except ShardError:
            return None
        for column in (index.labels, index.frames, index.shard_of):
            with suppress(ShardError):
                assert len(column()) == len(index)
        for record in range(min(len(index), 50)):
            with suppress(ShardError):
                row = index.row(record)
                assert row.name
                assert len(row.rgb.ends) == row.frames
            with suppress(ShardError):
                index.tables_span(record)
        return index


def test_sealing_an_index_that_was_not_spoiled_changes_nothing(folder: Path) -> None:
    data = (folder / "train.index").read_bytes()
    assert sealed_index(data, records=3) == data


@FEW
@given(data=st.data())
def test_a_spoiled_index_is_refused_or_read(folder: Path, data: st.DataObject) -> None:
    damaged = data.draw(spoiled((folder / "train.index").read_bytes()))
    read_index(damaged)
    read_index(sealed_index(damaged, records=3))


@FEW
@given(data=st.data())
def test_an_index_with_numbers_out_of_bounds_is_refused_or_read(folder: Path, data: st.DataObject) -> None:
    """The numbers are those of the header, and of rows, each in the field where it is read."""
    array = bytearray((folder / "train.index").read_bytes())
    starts = struct.unpack_from("<6Q", array, 32)
    fields = [(16, 8), (24, 4), *((32 + 8 * i, 8) for i in range(7))]
    for column in starts[:3]:
        fields += [(column + 4 * record, 4) for record in range(3)]
    sizes = [8, 4, 4, 4, 32, 8, 8, 4, 8, *2 * [8, 4, 2, 2, 4, 4]]
    for record in range(3):
        at = starts[3] + record * (ROW.size + 8)
        fields += [(at + sum(sizes[:i]), size) for i, size in enumerate(sizes) if size != 32]
    fields += [(at, 4) for at in range(starts[5], len(array), 4)]
    for _ in range(data.draw(st.integers(1, 3))):
        at, size = data.draw(st.sampled_from(fields))
        number = data.draw(st.sampled_from([*NUMBERS, len(array), len(array) - 1, len(array) // 4]))
        array[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    sealed = sealed_index(bytes(array), records=3)
    read_index(sealed)
    read_with_index(folder, sealed)


@pytest.mark.parametrize(
    "key", [b"../../../etc/passwd", b"/etc/passwd", b"a/b", b"a\\b", b"a\0b", b"a.cls", b"\xff\xfe", b""]
)
def test_a_key_that_is_no_name_of_a_file_is_refused_in_an_index(folder: Path, key: bytes) -> None:
    array = bytearray((folder / "train.index").read_bytes())
    starts = struct.unpack_from("<6Q", array, 32)
    key = key[: starts[5] - starts[4]]
    array[starts[4] : starts[4] + len(key)] = key
    struct.pack_into("<QI", array, starts[3], 0, len(key))
    index = parse_index_bytes(sealed_index(bytes(array), records=3), "i")
    with pytest.raises(ShardError):
        index.row(0)


@pytest.mark.parametrize("label", [3, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_label_without_a_class_is_refused_in_an_index(folder: Path, tmp_path: Path, label: int) -> None:
    array = bytearray((folder / "train.index").read_bytes())
    struct.pack_into("<I", array, struct.unpack_from("<Q", array, 32)[0] + 4, label)
    for name in ("manifest.json", "train-000000.tar", "train-000001.tar"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "train.index").write_bytes(sealed_index(bytes(array), records=3))
    with open_split(tmp_path) as split:
        index = split.index("train")
        for act in (index.labels, lambda: index.row(0), lambda: list(index)):
            with pytest.raises(FormatError, match="but there are 3 classes"):
                act()


@dataclass(frozen=True)
class All:
    """Every frame of a clip, and no flow."""

    frames: np.ndarray
    pairs: np.ndarray


def read_with_index(folder: Path, data: bytes) -> None:
    """Reads the records of the split by another index of as many bytes."""
    with open_split(folder) as split:
        index = read_index(data)
        if index is None or len(index) != 3:
            return
        split._indexes["train"] = index
        with bounded(1 << 24):
            for record in range(3):
                with suppress(ShardError):
                    count = len(index.row(record).rgb.ends)
                    clip = All(np.arange(count), np.arange(count - 1))
                    read_clips(split, "train", [(record, record, clip)])
                with suppress(ShardError):
                    decode(split.read("train", record))


# Tars


def sealed_tar(data: bytes) -> bytes:
    """A tar with the checksums that its headers ought to have, one behind the other as their lengths say."""
    array, at = bytearray(data), 0
    while at + BLOCK <= len(array) and any(array[at : at + BLOCK]):
        array[at + 148 : at + 156] = b" " * 8
        array[at + 148 : at + 156] = b"%06o\0 " % sum(array[at : at + BLOCK])
        try:
            length = int(bytes(array[at + 124 : at + 136]).rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        at += BLOCK - -length // BLOCK * BLOCK if length >= 0 else BLOCK
    return bytes(array)


def read_tar(data: bytes) -> None:
    def read(start: int, stop: int) -> bytes:
        assert 0 <= start <= stop <= len(data), "a read beyond the file"
        return data[start:stop]

    with bounded(room(data)), suppress(ShardError):
        for places in records_of(members(read, len(data), "t"), "t"):
            assert set(places) == set(MEMBERS)


@FEW
@given(data=st.data())
def test_a_spoiled_tar_is_refused_or_read(folder: Path, data: st.DataObject) -> None:
    whole = (folder / "train-000001.tar").read_bytes()
    damaged = data.draw(spoiled(whole))
    read_tar(damaged)
    read_tar(sealed_tar(damaged))


@FEW
@given(data=st.data())
def test_a_tar_header_with_something_odd_in_a_field_is_refused_or_read(folder: Path, data: st.DataObject) -> None:
    array = bytearray((folder / "train-000001.tar").read_bytes())
    edges = [0, 100, 108, 116, 124, 136, 148, 156, 157, 257, 263, 265, 297, 329, 337, 345, 500, 512]
    for _ in range(data.draw(st.integers(1, 3))):
        field = data.draw(st.integers(0, len(edges) - 2))
        size = edges[field + 1] - edges[field]
        value = data.draw(
            st.binary(min_size=size, max_size=size)
            | st.sampled_from(
                [b"7" * 20, b"-0000001", b"\x80" + b"\xff" * 20, b"00000000000\0", b"x", b"L", b"../../x"]
            )
        )
        at = data.draw(st.sampled_from([0, 1024, 2048]))
        array[at + edges[field] : at + edges[field] + size] = value[:size].ljust(size, b"\0")
    read_tar(sealed_tar(bytes(array)))


@FEW
@given(st.binary(max_size=300), st.integers(0, 8**11 - 1) | st.integers(0, 400))
@example(b"99999999 path=x\n", 16)
@example(b"1 path=x\n", 9)
@example(b"0 =\n", 4)
@example(b"9 path=\xff\n", 9)
def test_any_extended_header_is_refused_or_read(payload: bytes, length: int) -> None:
    header = b"x".ljust(100, b"\0") + b"0000444\0" * 3 + b"%011o\0" % length + b"0" * 11 + b"\0" + b" " * 8 + b"x"
    block = (header.ljust(257, b"\0") + b"ustar\x0000").ljust(BLOCK, b"\0")
    data = sealed_tar(block + payload.ljust(BLOCK, b"\0"))
    read_tar(data + bytes(-len(data) % 10240))


@FEW
@given(st.binary(max_size=2048))
def test_random_bytes_are_no_shard_no_index_no_manifest_and_no_header(data: bytes) -> None:
    read_tar(data)
    read_tar(data.ljust(10240, b"\0"))
    read_tar(sealed_tar(data.ljust(10240, b"\0")))
    read_index(data)
    read_index(sealed_index(b"STMULIDX\x01\0\0\0" + struct.pack("<I", ROW.size + 8) + data, records=0))
    read_header(sealed_header(data))
    read_manifest(data)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> dict[str, bytes]:
    """A tar as we write it, and one with a member per frame."""
    buffer, record = io.BytesIO(), drawn_record("v_x", frames=3)
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in frame_files(record):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return {"ours": (folder / "train-000001.tar").read_bytes(), "a member per frame": buffer.getvalue()}


@FEW
@given(data=st.data(), sealed=st.booleans(), thorough=st.booleans())
@pytest.mark.parametrize("kind", ["ours", "a member per frame"])
def test_a_spoiled_tar_by_itself_is_refused_or_read(
    alone: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    data: Any,
    sealed: bool,
    thorough: bool,
) -> None:
    damaged = data.draw(spoiled(alone[kind]))
    path = tmp_path_factory.getbasetemp() / "train-000000.tar"
    path.write_bytes(sealed_tar(damaged) if sealed else damaged)
    with bounded(1 << 24), suppress(ShardError), open_split(path, access=NOWHERE, thorough=thorough) as split:
        for record, frames in enumerate(split.index("train").frames().tolist()):
            read_clips(split, "train", [(record, record, All(np.arange(frames), np.arange(frames - 1)))])
            decode(split.read("train", record))


NOTES = [b"", b"[" * 60_000, b"7" * 60_000, b"-1", b"1e999", b"NaN", b"\xff", b"\xb2", b" 1 ", b"0" * 11, b"4294967296"]
NOTES += [
    b'{"fps": 1e999}',
    b'{"fps": [1, 0]}',
    b'{"fps": -1}',
    b'{"fps": NaN}',
    b'{"class": "\\ud800"}',
    b'{"class": ""}',
]
NOTES += [b'{"fps": [1e308, 1e-308]}', b'{"fps": 1e-300}', b'{"class": 7, "fps": "x"}', b'{"a":' * 9000, b"2147483647"]


@pytest.mark.parametrize("note", NOTES, ids=lambda note: repr(note[:20]))
@pytest.mark.parametrize("ending", ["cls", "json"])
def test_odd_notes_of_a_tar_with_a_member_per_frame_are_refused_or_read(
    tmp_path: Path, note: bytes, ending: str
) -> None:
    path = tmp_path / "train-000000.tar"
    with tarfile.open(path, mode="w") as tar:
        for name, data in frame_files(drawn_record("v_x", frames=2)):
            said = note if name.endswith(ending) else data
            entry = tarfile.TarInfo(name)
            entry.size = len(said)
            tar.addfile(entry, io.BytesIO(said))
    with bounded(1 << 24), suppress(ShardError), open_split(path, access=NOWHERE) as split:
        assert all(name.encode() for name in split.manifest.classes)
        decode(split.read("train", 0))


def test_a_label_beyond_all_classes_sets_no_memory_aside(tmp_path: Path) -> None:
    path = tmp_path / "train-000000.tar"
    with folder_of(path, drawn_record("v_x", frames=2, label=2**31 - 1)) as written, bounded(1 << 24):
        for thorough in (False, True):
            with pytest.raises(FormatError, match="a record with label 2147483647, expected less than"):
                open_split(written, access=NOWHERE, thorough=thorough)


@contextmanager
def folder_of(path: Path, record: Record) -> Iterator[Path]:
    """A tar of one record, while it is wanted."""
    write_shard(path, [(key_of(record.name), encode(record))])
    yield path
    path.unlink()


# Saved positions


@FEW
@given(data=st.data())
def test_a_spoiled_position_is_refused_or_read(data: st.DataObject) -> None:
    good = State(digest="d" * 64, seed=1, order="full", batch=8, sub_batch=4, position=16)
    tree = json.loads(good.to_json())
    text = data.draw(
        spoiled(good.to_json().encode()).map(lambda spoilt: spoilt.decode(errors="replace"))
        | st.tuples(st.sampled_from(paths(tree)), st.sampled_from(JSON)).map(
            lambda change: json.dumps(replaced(tree, *change))
        )
    )
    read_state(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 100_000, "", "null", "\ud800", '{"schema": 1}']
)
def test_text_that_is_no_position_is_refused(text: str) -> None:
    with bounded(room(text.encode(errors="replace"))), pytest.raises(StateMismatchError) as caught:
        State.from_json(text)
    assert len(str(caught.value)) < 1000


def read_state(text: str) -> None:
    with bounded(room(text.encode(errors="replace"))):
        state = tried(lambda: State.from_json(text), StateMismatchError)
        assert state is None or state.position % state.batch == 0


# Pictures


def claiming(jpeg: bytes, width: int, height: int) -> bytes:
    """`jpeg` with another size in its frame header."""
    at = next(at for at in range(len(jpeg)) if jpeg[at] == 0xFF and jpeg[at + 1] in (0xC0, 0xC1, 0xC2))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def pictured(record: Record, first: bytes, width: int, height: int) -> Record:
    """`record` with another first frame, and what it says of the size of all."""
    from dataclasses import replace

    jpegs = [first, *(record.rgb[image] for image in range(1, record.frames))]
    return replace(record, rgb=Frames.of(jpegs, width=width, height=height, components=3, encoder={}))


@pytest.mark.parametrize("size", [(65535, 65535), (65535, 1), (1, 65535), (8192, 4096), (20000, 20000), (0, 0)])
@pytest.mark.parametrize("agreeing", [True, False])
def test_a_jpeg_that_claims_a_false_size_is_refused_before_its_pixels(size: tuple[int, int], agreeing: bool) -> None:
    record = drawn_record("v_x", frames=2)
    damaged = pictured(record, claiming(bytes(record.rgb[0]), *size), *(size if agreeing else (32, 24)))
    with bounded(1 << 22), pytest.raises(CorruptRecordError):
        record_sheet(damaged)


def test_a_record_of_pictures_without_end_is_refused(folder: Path) -> None:
    for width, height in ((65535, 65535), (65535, 513), (8193, 4096)):
        tree = replaced(replaced(TREE, ("rgb", "width"), width), ("rgb", "height"), height)
        with pytest.raises(FormatError, match="expected at most 33554432 pixels"):
            parse_index(sealed_header(msgpack.packb(tree)), "r")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "PPM", "EPS", "BMP"])
def test_a_picture_that_is_no_jpeg_is_not_given_to_its_decoder(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24)).save(buffer, kind)
    with pytest.raises(CorruptRecordError, match="cannot be decoded"):
        record_sheet(pictured(drawn_record("v_x", frames=2), buffer.getvalue(), 32, 24))


@settings(FEW, max_examples=60)
@given(data=st.data())
def test_a_spoiled_jpeg_is_a_picture_or_an_error(data: st.DataObject) -> None:
    record = drawn_record("v_x", frames=2)
    jpeg = data.draw(spoiled(bytes(record.rgb[0])))
    with bounded(1 << 26), suppress(CorruptRecordError):
        record_sheet(pictured(record, jpeg or b"\0", 32, 24))


# Whole records


@FEW
@given(data=st.data(), member=st.sampled_from(MEMBERS))
def test_a_record_with_a_spoiled_member_is_refused_or_the_same(data: st.DataObject, member: str) -> None:
    whole = RECORD
    blob = data.draw(spoiled(whole[member]))
    with bounded(room(blob) + room(whole[RGB])):
        try:
            found = decode({**whole, member: blob})
        except ShardError:
            assert blob != whole[member]
        else:
            assert encode(found) == whole


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\\b", "a\0b", "..", ".", "%2e%2e%2fx", "%2E%2E/x"])
def test_no_name_makes_a_key_that_leaves_its_folder(name: str) -> None:
    key = key_of(name)
    assert not set(key) & set("/\\.\0")
    assert (Path("/folder") / key).parent == Path("/folder")
