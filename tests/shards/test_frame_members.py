"""Tars with a member per frame give the very clips of our own shards; whatever is missing from them is named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.access import Access
from shards.bare import UNKNOWN
from shards.errors import CorruptRecordError, FormatError, ShardError, TruncatedShardError
from shards.foreign import files_of
from shards.format import decode, encode, key_of
from shards.index import index_bytes, parse_index_bytes
from shards.record import Record
from shards.split import Split, open_split
from shards.stream import read_clips
from shards.writer import write_shard
from tests.conftest import drawn_record
from tests.shards.test_index import plain

Files = list[tuple[str, bytes]]


class Chosen:
    """Frames and pairs of a clip."""

    def __init__(self, frames: Sequence[int], pairs: Sequence[int]) -> None:
        self.frames, self.pairs = np.array(frames, np.int64), np.array(pairs, np.int64)


def frame_files(
    record: Record, *, first: int = 1, digits: int = 6, extra: bool = False, note: bool = True, ending: str = "jpg"
) -> Files:
    """The files of a record as others write them; `extra`: as many flow pairs as frames."""
    name, files = record.name, [(f"{record.name}.cls", str(record.label).encode())]
    if note:
        said = {"class": record.class_name, "fps": record.fps[0], "caption": "a square that moves"}
        files.append((f"{name}.json", json.dumps(said).encode()))
    files += [(f"{name}.rgb.{first + i:0{digits}}.{ending}", bytes(record.rgb[i])) for i in range(record.frames)]
    pairs = [bytes(record.flow[i]) for i in range(len(record.flow))]
    pairs += pairs[-2:] if extra else []
    for i, jpeg in enumerate(pairs):
        files.append((f"{name}.flow_{'xy'[i % 2]}.{first + i // 2:0{digits}}.{ending}", jpeg))
    return files


def joined(records: Sequence[Record]) -> Files:
    return [file for record in records for file in frame_files(record)]


def write_tar(path: Path, files: Files, form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1700000000.25 if form == tarfile.PAX_FORMAT else 1700000000
            tar.addfile(info, io.BytesIO(data))
    return path


def write_webdataset(path: Path, records: Sequence[Record]) -> Path:
    from webdataset import TarWriter

    with TarWriter(str(path), encoder=False) as tar:
        for record in records:
            files = {name.removeprefix(f"{record.name}."): data for name, data in frame_files(record)}
            tar.write({"__key__": record.name, **files})
    return path


@pytest.fixture(scope="module")
def records() -> list[Record]:
    made = [drawn_record(f"v_{i}", frames=[1, 2, 7, 12][i], label=i % 2) for i in range(4)]
    return [replace(record, fps=(25, 1)) for record in made]


def ours(folder: Path, records: Sequence[Record]) -> Path:
    path = folder / "train-000000.tar"
    write_shard(path, [(key_of(record.name), encode(record)) for record in records])
    return path


def clip_of(split: Split, record: Record, frames: Sequence[int], pairs: Sequence[int]) -> tuple[list[bytes], ...]:
    number = [row.key for row in split.index("train")].index(record.name)
    (clip,) = read_clips(split, "train", [(0, number, Chosen(frames, pairs))])
    return [bytes(jpeg) for jpeg in clip.rgb], [bytes(jpeg) for jpeg in clip.flow]


@settings(max_examples=25)
@given(data=st.data())
def test_the_clips_are_those_of_our_own_shards_bit_for_bit(
    data: st.DataObject, records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("loose")
    files = [
        frame_files(
            record,
            first=data.draw(st.sampled_from([0, 1])),
            digits=data.draw(st.sampled_from([1, 5, 8])),
            extra=data.draw(st.booleans()) and record.frames > 1,
            ending=data.draw(st.sampled_from(["jpg", "jpeg", "JPG"])),
        )
        for record in records
    ]
    form = data.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    members = [one for of_record in files for one in data.draw(st.permutations(of_record))]
    write_tar(folder / "loose.tar", members, form)
    with open_split(folder / "loose.tar") as loose, open_split(ours(folder, records)) as packed:
        assert loose.manifest.classes == packed.manifest.classes
        for record in records:
            n = record.frames
            frames = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
            pairs = sorted(data.draw(st.sets(st.integers(0, n - 2)))) if n > 1 else []
            found = clip_of(loose, record, frames, pairs)
            assert found == clip_of(packed, record, frames, pairs)
            assert found[0] == [bytes(record.rgb[i]) for i in frames]
        for row, of_ours in zip(loose.index("train"), packed.index("train"), strict=True):
            assert (row.key, row.label, row.frames, row.fps) == (of_ours.key, of_ours.label, of_ours.frames, (25, 1))
            record = decode(loose.members("train", row))
            assert bytes(record.rgb.blob) == bytes(decode(packed.members("train", of_ours)).rgb.blob)


def test_what_webdataset_writes_is_read(records: list[Record], tmp_path: Path) -> None:
    long = replace(drawn_record("v_" + "Ü" * 70, frames=3), fps=(25, 1))
    write_webdataset(tmp_path / "train-000000.tar", [*records, long])
    with open_split(tmp_path / "train-000000.tar") as split:
        assert [row.name for row in split.index("train")] == [record.name for record in [*records, long]]
        for record in [*records, long]:
            frames = list(range(record.frames))
            assert clip_of(split, record, frames, frames[:-1])[0] == [bytes(record.rgb[i]) for i in frames]


def test_frames_one_behind_the_other_are_one_read_where_the_gap_allows(records: list[Record], tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", frame_files(records[3]))
    with open_split(tmp_path / "a.tar") as split:
        asked: list[int] = []
        fetch = split.store.fetch
        split.store.fetch = lambda ranges: asked.append(len(ranges)) or fetch(ranges)  # type: ignore[method-assign,func-returns-value]
        clip_of(split, records[3], [2, 3, 4], [2])
        assert asked == [2]  # of rgb, and of flow, which lies further away


def test_the_digest_is_true_and_the_same_when_it_was_kept_or_copied(
    records: list[Record], tmp_path: Path, serve: Callable[[Path], Any]
) -> None:
    from shards.copy import copy_split

    path, access = write_tar(tmp_path / "train-000000.tar", joined(records)), Access()
    digests = []
    for location in (path, path, f"{serve(tmp_path).url}/train-000000.tar"):
        with open_split(location, access=access) as split:
            digests.append(split.manifest.digest)
            assert all(row.sha256 != UNKNOWN for row in split.index("train"))
            rows = [plain(row) for row in split.index("train")]
    with open_split(path, thorough=True) as split:
        digests.append(split.manifest.digest)
        assert [plain(row) for row in split.index("train")] == rows
    for kind in ("copy", "copy.lmdb", "copy.files"):
        digests.append(copy_split(path, tmp_path / kind).digest)
        with open_split(tmp_path / kind) as copied, open_split(path) as loose:
            for record in records:
                frames = list(range(record.frames))
                assert clip_of(copied, record, frames, frames[:-1]) == clip_of(loose, record, frames, frames[:-1])
    assert len(set(digests)) == 1


def test_verify_finds_nothing_in_a_whole_one_and_the_damage_in_another(records: list[Record], tmp_path: Path) -> None:
    from shards.check import problems

    path = write_tar(tmp_path / "train-000000.tar", joined(records))
    with open_split(path) as split:
        assert list(problems(split)) == []
        place = split.index("train").row(3).rgb
        data = bytearray(path.read_bytes())
        data[place.offset + int(place.ends[4]) - 30] ^= 1
        path.write_bytes(data)
        found = list(problems(split))
    assert len(found) == 1
    assert "frame 4" in str(found[0])


def test_a_frame_that_changed_is_refused_and_named(records: list[Record], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-000000.tar", frame_files(records[3]))
    with open_split(path) as split:
        place = split.index("train").row(0).flow
        data = bytearray(path.read_bytes())
        data[place.offset + int(place.ends[9]) - 3] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptRecordError, match=r"\(v_3\), flow pair 4 y"):
            clip_of(split, records[3], [0], [3, 4, 5])
        with pytest.raises(CorruptRecordError, match="image 9 of 22"):
            decode(split.read("train", 0))


def test_an_index_of_such_a_tar_comes_back_as_it_was_and_refuses_flips(records: list[Record], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-000000.tar", joined(records))
    with open_split(path) as split:
        rows = list(split.index("train"))
    whole = b"".join(index_bytes(rows))
    assert whole[8] == 2
    expected = [plain(row) | {"rgb": None, "flow": None} for row in rows]
    found = [plain(row) | {"rgb": None, "flow": None} for row in parse_index_bytes(whole, "x")]
    assert found == expected
    for row, again in zip(rows, parse_index_bytes(whole, "x"), strict=True):
        for one, other in ((row.rgb, again.rgb), (row.flow, again.flow)):
            assert np.array_equal(one.begins(), other.begins())
            assert np.array_equal(one.ends, other.ends)
            assert np.array_equal(one.crcs, other.crcs)
    for byte in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[byte] ^= 0x20
        try:
            again = list(parse_index_bytes(bytes(damaged), "x"))  # type: ignore[assignment]
        except ShardError:
            continue
        assert [row.rgb.ends.tolist() for row in again] == [row.rgb.ends.tolist() for row in rows]  # type: ignore[attr-defined]


def test_ours_and_theirs_may_stand_in_one_list(records: list[Record], tmp_path: Path) -> None:
    ours(tmp_path, records[:2])
    write_tar(tmp_path / "train-000001.tar", joined(records[2:]))
    with open_split(f"{tmp_path}/train-{{000000..000001}}.tar") as split:
        assert [row.loose for row in split.index("train")] == [False, False, True, True]
        for record in records:
            frames = list(range(record.frames))
            assert clip_of(split, record, frames, frames[:-1])[0] == [bytes(record.rgb[i]) for i in frames]
            row = next(row for row in split.index("train") if row.key == record.name)
            assert decode(split.members("train", row)).frames == record.frames


def without(files: Files, *names: str) -> Files:
    assert all(any(name == one for one, _ in files) for name in names)
    return [(name, data) for name, data in files if name not in names]


def renamed(files: Files, old: str, new: str) -> Files:
    assert any(name == old for name, _ in files)
    return [(new if name == old else name, data) for name, data in files]


@pytest.fixture(scope="module")
def files(records: list[Record]) -> Files:
    return frame_files(records[2])  # v_2: 7 frames


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: without(f, "v_2.rgb.000003.jpg"), r"'v_2': lacks rgb number 3; found v_2\.rgb\.000004\.jpg"),
        (lambda f: without(f, "v_2.rgb.000001.jpg"), r"'v_2': its frames begin with v_2\.rgb\.000002\.jpg"),
        (lambda f: without(f, "v_2.rgb.000007.jpg", "v_2.rgb.000006.jpg"), "5 frames have 4 or 5 flow pairs, found 6"),
        (lambda f: without(f, "v_2.flow_y.000002.jpg"), r"lacks flow_y number 2; found v_2\.flow_y\.000003\.jpg"),
        (lambda f: without(f, "v_2.flow_y.000006.jpg"), r"v_2\.flow_x\.000006\.jpg is alone"),
        (lambda f: without(f, "v_2.flow_x.000006.jpg", "v_2.flow_y.000006.jpg"), "have 6 or 7 flow pairs, found 5"),
        (lambda f: without(f, "v_2.cls"), r"'v_2': has no v_2\.cls"),
        (lambda f: renamed(f, "v_2.rgb.000003.jpg", "v_2.rgb.3.jpg"), ""),
        (lambda f: [*f, ("v_2.rgb.3.jpg", f[4][1])], r"rgb\.3\.jpg and v_2\.rgb\.000003\.jpg have the same number"),
        (
            lambda f: renamed(f, "v_2.rgb.000003.jpg", "v_2.rgb.000003.png"),
            r"found v_2\.rgb\.000003\.png, expected names",
        ),
        (
            lambda f: renamed(f, "v_2.flow_x.000003.jpg", "v_2.flow.000003.jpg"),
            r"found v_2\.flow\.000003\.jpg, expected",
        ),
        (lambda f: [(n, b"GIF89a" if n == "v_2.rgb.000004.jpg" else d) for n, d in f], r"000004\.jpg: not a JPEG"),
        (lambda f: [(n, d[:-9] if n == "v_2.rgb.000004.jpg" else d) for n, d in f], r"000004\.jpg: not a JPEG"),
        (lambda f: [(n, b"" if n == "v_2.flow_x.000004.jpg" else d) for n, d in f], r"000004\.jpg: not a JPEG"),
        (
            lambda f: [(n, f[2][1] if "flow_x.000004" in n else d) for n, d in f],
            "3 components, the others 32x24 with 1",
        ),
        (lambda f: [(n, b"-1" if n == "v_2.cls" else d) for n, d in f], r"v_2\.cls: expected a label"),
        (lambda f: [(n, b"9" * 12 if n == "v_2.cls" else d) for n, d in f], r"v_2\.cls: expected a label"),
        (lambda f: [(n, b"[1]" if n == "v_2.json" else d) for n, d in f], r"v_2\.json: expected a map"),
        (lambda f: [(n, b"{" if n == "v_2.json" else d) for n, d in f], r"v_2\.json: not readable as JSON"),
        (lambda f: [(n, b"[" * 60000 if n == "v_2.json" else d) for n, d in f], r"v_2\.json: "),
        (lambda f: [(n, b'{"fps": -3}' if n == "v_2.json" else d) for n, d in f], r"v_2\.json: fps: expected frames"),
        (
            lambda f: [(n, b'{"class": 7}' if n == "v_2.json" else d) for n, d in f],
            r"v_2\.json: class: expected a name",
        ),
        (lambda f: [*f, *[(n.replace("v_2", "w"), d) for n, d in f], f[3]], r"'v_2': a second record with this key"),
        (lambda f: [*f, ("v_2.cls", b"2")], r"v_2\.cls: a second one"),
        (lambda f: [(n, d) for n, d in f if "rgb" not in n and "flow" not in n], "lacks|expected|found"),
    ],
)
def test_what_is_wrong_is_refused_with_key_and_member(
    files: Files, tmp_path: Path, change: Callable[[Files], Files], message: str
) -> None:
    path = write_tar(tmp_path / "train-000000.tar", change(files))
    if not message:
        with open_split(path) as split:
            assert len(split.index("train")) == 1
        return
    with pytest.raises(FormatError, match=message):
        open_split(path)


def test_classes_and_rates_come_from_the_json_or_are_the_label_and_unknown(
    records: list[Record], tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "a.tar", frame_files(records[1], note=False))
    with open_split(path) as split:
        assert split.manifest.classes == ("unknown-0", "1")
        assert split.index("train").row(0).fps == (0, 1)
    for said, fps in ((29.97, (2997, 100)), (25, (25, 1)), ([30000, 1001], (30000, 1001)), (0, (0, 1))):
        note = ("v_1.json", json.dumps({"fps": said}).encode())
        with open_split(write_tar(path, [note, *frame_files(records[1], note=False)])) as split:
            assert split.index("train").row(0).fps == fps


def test_folders_hidden_files_and_other_endings_are_passed_over(records: list[Record], tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    files = [(f"./some.dir/{name}", data) for name, data in frame_files(records[2])]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("./some.dir/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in [("./some.dir/.hidden", b"x"), ("README", b"x"), *files, ("./some.dir/v_2.txt", b"x")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with open_split(path) as split:
        (row,) = split.index("train")
        assert row.name == "some.dir/v_2"
        assert "/" not in row.key


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_one_cut_at_any_block_is_refused(files: Files, tmp_path: Path, form: int) -> None:
    path = write_tar(tmp_path / "train-000000.tar", files, form)
    data = path.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512 + 1024
    for length in range(0, end, 512):
        path.write_bytes(data[:length])
        with pytest.raises((TruncatedShardError, FormatError)):
            open_split(path)


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=130),
            st.binary(max_size=700),
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_names_and_bytes_are_those_that_pythons_reader_finds(files: Files, form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(one.name, one.offset_data, one.size) for one in tar if one.isfile()]
    found = [(one.name, one.offset, one.size) for one in files_of(lambda start, stop: data[start:stop], len(data), "x")]
    assert [one[1:] for one in found] == [one[1:] for one in expected]
    for (name, *_), (known, *_) in zip(found, expected, strict=True):
        assert name in (known, known.removeprefix("./"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.FIFOTYPE])
def test_links_and_sparse_files_are_refused(files: Files, tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", files)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("v_9.rgb.000001.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(FormatError, match=r"v_9\.rgb\.000001\.jpg at byte \d+ is of type"):
        open_split(path)


def test_an_extended_header_that_changes_lengths_is_refused(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, data) in enumerate(files):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = {"GNU.sparse.realsize": "7"} if number == 5 else {}
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(FormatError, match=r"has b'GNU\.sparse\.realsize'; expected a path or a time"):
        open_split(path)
