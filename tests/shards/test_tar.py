"""Tar headers: what is cut, damaged or foreign is refused, where Python's own reader loses records without a word."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import CorruptRecordError, FormatError, TruncatedShardError
from shards.format import encode, key_of
from shards.index import index_tar
from shards.record import Record
from shards.tar import Member, members
from shards.writer import write_shard


def listed(data: bytes) -> list[Member]:
    return list(members(lambda start, stop: data[start:stop], len(data), "x.tar"))


def archive(names: list[str], sizes: list[int], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, size in zip(names, sizes, strict=True):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"p" * size))
    return buffer.getvalue()


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\0"), min_size=1, max_size=120)


@given(st.lists(st.tuples(NAMES, st.integers(0, 1500)), max_size=5))
@settings(max_examples=50)
def test_members_are_those_that_python_finds(files: list[tuple[str, int]]) -> None:
    data = archive([name for name, _ in files], [size for _, size in files])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [Member(name=info.name, offset=info.offset_data, size=info.size) for info in tar]
    assert listed(data) == expected


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory, make_record: Callable[..., Record]) -> bytes:
    path = tmp_path_factory.mktemp("shard") / "train-000000.tar"
    long = "#437_" + "sehr_langer_Name_" * 8
    write_shard(
        path, [(key_of(name), encode(make_record(name, frames=2, width=16, height=16))) for name in ("a", long, "c")]
    )
    return path.read_bytes()


def rows_of(data: bytes) -> list[str]:
    return [row.name for row in index_tar(lambda start, stop: data[start:stop], len(data), 0, "x.tar")]


def test_names_too_long_for_a_plain_header_are_understood(shard: bytes) -> None:
    assert [len(name) for name in rows_of(shard)] == [1, 141, 1]
    assert shard.count(b" path=#437_") == 4  # long names alone have an extended header


def test_a_shard_cut_at_any_block_is_refused(shard: bytes) -> None:
    for length in range(0, len(shard), 512):
        with pytest.raises(TruncatedShardError, match=r"x\.tar: "):
            listed(shard[:length])


@given(st.data())
def test_a_shard_cut_anywhere_is_refused(shard: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(shard) - 1))
    with pytest.raises(TruncatedShardError, match=r"x\.tar: "):
        rows_of(shard[:length])


def test_a_damaged_header_is_refused_wherever_it_is(shard: bytes) -> None:
    starts = [member.offset - 512 for member in listed(shard)]
    for start in [*starts[:2], starts[5]]:
        for position in range(start, start + 512, 3):
            damaged = bytearray(shard)
            damaged[position] ^= 0xFF
            with pytest.raises((CorruptRecordError, FormatError)):
                rows_of(bytes(damaged))


def test_a_header_of_zeros_is_no_end(shard: bytes) -> None:
    for member in listed(shard)[1:]:
        damaged = shard[: member.offset - 512] + bytes(512) + shard[member.offset :]
        with pytest.raises((CorruptRecordError, FormatError)):
            rows_of(damaged)


def test_every_flipped_payload_byte_is_noticed(shard: bytes) -> None:
    last = listed(shard)[-4:]
    for member in last:
        for position in range(member.offset, member.offset + member.size, 7):
            damaged = bytearray(shard)
            damaged[position] ^= 0x10
            with pytest.raises((CorruptRecordError, FormatError)):
                rows_of(bytes(damaged))


def test_two_tars_one_behind_the_other_are_refused(shard: bytes) -> None:
    with pytest.raises(FormatError, match="joined or damaged"):
        listed(shard + shard)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_folders_and_devices_are_refused(kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("a.cls")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(FormatError, match=r"a member of type .* at byte 0; a shard holds regular files only"):
        listed(buffer.getvalue())


def test_headers_of_other_kinds_are_refused() -> None:
    with pytest.raises(FormatError, match="expected POSIX tar"):
        listed(archive(["a.cls"], [1], tarfile.GNU_FORMAT))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"size": "5"}) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(FormatError, match="a member of type"):  # a global header
        listed(buffer.getvalue())


def test_an_extended_header_that_changes_more_than_a_name_is_refused() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"GNU.sparse.realsize": "5"}
        tar.addfile(info)
    with pytest.raises(FormatError, match="expected a path"):
        listed(buffer.getvalue())


def test_times_in_an_extended_header_are_passed_over() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.mtime = 0.5
        tar.addfile(info)
    assert [member.name for member in listed(buffer.getvalue())] == ["a"]


@pytest.mark.parametrize("text", [b"", b"hello", b"x" * 20000])
def test_what_is_no_tar_is_refused(text: bytes) -> None:
    with pytest.raises((FormatError, TruncatedShardError), match=r"x\.tar: "):
        listed(text)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.cls", "a.index.msgpack", "a.video.flow.mjpeg"], "record 'a' lacks video.rgb.mjpeg"),
        (["a.cls", "b.cls"], "found 'b.cls' at byte 1536, expected a.index.msgpack"),
        (["a.index.msgpack", "a.cls"], "found 'a.index.msgpack' at byte 512, expected <key>.cls"),
        (["a.cls", "b.index.msgpack"], "found 'b.index.msgpack' at byte 1536, expected a.index.msgpack"),
        (["notes.txt"], "found 'notes.txt'"),
    ],
)
def test_the_members_of_a_record_lie_together_and_in_order(names: list[str], message: str) -> None:
    data = archive(names, [1] * len(names))
    with pytest.raises(FormatError, match=message):
        rows_of(data)


def test_a_key_that_is_not_that_of_the_record_is_refused(shard: bytes, tmp_path: Path) -> None:
    other = bytearray(shard)
    for member in listed(shard)[:4]:
        start = member.offset - 512
        header = bytearray(other[start : start + 512])
        header[0:1] = b"q"
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        other[start : start + 512] = header
    with pytest.raises(FormatError, match="record 'q' holds 'a', whose key is 'a'"):
        rows_of(bytes(other))
