"""An index that lies afar: the same rows as on a disk, no more bytes than are wanted, nothing believed unchecked."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import ranged, unnamed
from shards.errors import CorruptRecordError, FormatError, ShardError, TruncatedShardError
from shards.index import Index, head_size, index_bytes, parse_index_bytes
from shards.manifest import Manifest, Part, ShardFile
from shards.ranged import RangedIndex, open_ranged
from shards.record import Blob
from shards.row import Row
from shards.split import open_split
from shards.stores import Range
from shards.stores.remote import WithoutRanges
from tests.shards.test_index import parts, plain


class Afar:
    """Bytes as a server has them; notes what is asked for, and may answer wrongly."""

    def __init__(self, data: bytes, *, ranges: bool = True) -> None:
        self.data, self.ranges = data, ranges
        self.fetched: list[list[tuple[int, int]]] = []
        self.asked_again = 0
        self.wrong: dict[int, int] = {}  # byte: how often it is still sent wrong

    def small(self, name: str, limit: int) -> bytes:
        if len(self.data) > limit:
            raise FormatError(f"{name}: {len(self.data)} bytes, expected at most {limit}")
        return self.data

    def size(self, blob: str) -> int:
        return len(self.data)

    def fetch(self, ranges: Sequence[Range]) -> list[Blob]:
        if not self.ranges:
            raise WithoutRanges("no ranges here")
        self.fetched.append([(wanted.start, wanted.stop) for wanted in ranges])
        return [self._sent(wanted) for wanted in ranges]

    def again(self, wanted: Range) -> Blob:
        self.asked_again += 1
        return self._sent(wanted)

    def whole(self, blob: str) -> Iterator[Blob]:
        yield from (self.data[start : start + 777] for start in range(0, len(self.data), 777))

    def _sent(self, wanted: Range) -> bytes:
        if wanted.stop > len(self.data):
            raise TruncatedShardError(f"{wanted.blob} ends before byte {wanted.stop}")
        sent = bytearray(self.data[wanted.start : wanted.stop])
        for byte, times in self.wrong.items():
            if times and wanted.start <= byte < wanted.stop:
                sent[byte - wanted.start] ^= 0xFF
                self.wrong[byte] -= 1
        return bytes(sent)


def part_of(data: bytes, rows: Sequence[Row]) -> Part:
    index = ShardFile(name="train.index", size=len(data), sha256=hashlib.sha256(data).hexdigest(), records=len(rows))
    frames = sum(row.frames for row in rows)
    return Part(shards=(), index=index, records=len(rows), frames=frames, digest="0" * 64)


def opened(afar: Afar, rows: Sequence[Row], small: int = 0) -> Index:
    return open_ranged(afar, part_of(afar.data, rows), "x.index", small)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> list[Row]:
    folder = tmp_path_factory.mktemp("afar") / "split1"
    make_split(folder, train=12, test=1, frames=30)
    with open_split(folder) as split:
        return list(split.index("train"))


@given(parts(), st.data())
def test_it_has_the_rows_that_are_in_it_in_whatever_order_they_are_asked_for(rows: list[Row], data: Any) -> None:
    index = opened(Afar(b"".join(index_bytes(rows))), rows)
    assert isinstance(index, RangedIndex)
    wanted = data.draw(st.lists(st.sampled_from(range(len(rows))))) if rows else []
    for group in data.draw(st.permutations([wanted[:2], wanted[2:]])):
        assert [plain(row) for row in index.rows(group)] == [plain(rows[record]) for record in group]
    assert [plain(index.row(record)) for record in wanted] == [plain(rows[record]) for record in wanted]
    assert [plain(row) for row in index] == [plain(row) for row in rows]
    assert index.labels().tolist() == [row.label for row in rows]
    assert index.frames().tolist() == [row.frames for row in rows]


@given(parts(), st.data())
def test_a_flipped_byte_is_noticed_or_lies_between_the_sections(rows: list[Row], data: Any) -> None:
    damaged = bytearray(b"".join(index_bytes(rows)))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.sampled_from([0x01, 0x80, 0xFF]))
    try:
        found = [plain(row) for row in opened(Afar(bytes(damaged)), rows)]
    except (CorruptRecordError, FormatError, TruncatedShardError):
        return
    assert found == [plain(row) for row in rows]


def test_a_small_one_is_one_request_and_matches_the_manifest(rows: list[Row]) -> None:
    afar = Afar(b"".join(index_bytes(rows)))
    assert [plain(row) for row in opened(afar, rows, small=1 << 20)] == [plain(row) for row in rows]
    assert afar.fetched == []
    other = part_of(afar.data, rows)
    other = replace(other, index=replace(other.index, sha256="1" * 64))
    with pytest.raises(FormatError, match=r"x\.index: it is of another build than the manifest"):
        open_ranged(afar, other, "x.index", 1 << 20)
    with pytest.raises(FormatError, match="expected at most 200"):
        open_ranged(afar, replace(other, index=replace(other.index, size=200)), "x.index", 1 << 20)


def test_opening_reads_the_start_alone_and_rows_their_tables_in_one_fetch(rows: list[Row]) -> None:
    afar = Afar(b"".join(index_bytes(rows)))
    index = opened(afar, rows)
    assert [stop for group in afar.fetched for _, stop in group][-1] < len(afar.data) / 2
    assert len(afar.fetched) == 1
    index.rows([7, 2, 8, 7])
    assert len(afar.fetched) == 2
    assert len(afar.fetched[1]) == 2  # 7 and 8 lie side by side
    index.rows([7, 2, 8]), index.row(8), index.labels()
    assert len(afar.fetched) == 2
    index.row(3)
    assert len(afar.fetched) == 3
    assert sum(stop - start for start, stop in afar.fetched[2]) == 8 * (3 * rows[3].frames - 2)


def test_one_gone_through_from_its_start_is_read_ahead(rows: list[Row]) -> None:
    afar = Afar(b"".join(index_bytes(rows)))
    index = opened(afar, rows)
    for record in range(len(rows)):
        index.row(record)
    assert len(afar.fetched) == 2
    assert sum(stop - start for start, stop in afar.fetched[1]) == len(afar.data) - index.head


def test_long_keys_are_read_to_their_end(rows: list[Row]) -> None:
    named = [replace(row, key=f"{row.key}-{'x' * 150}") for row in rows]
    index = opened(Afar(b"".join(index_bytes(named))), named)
    assert [row.key for row in index] == [row.key for row in named]


def test_wrong_bytes_are_fetched_once_more_and_then_an_error(rows: list[Row]) -> None:
    afar = Afar(b"".join(index_bytes(rows)))
    index = opened(afar, rows)
    start, _ = index.tables_span(5)
    afar.wrong = {start + 3: 1}
    assert plain(index.rows([4, 5])[1]) == plain(rows[5])
    assert afar.asked_again == 1
    start, _ = index.tables_span(9)
    afar.wrong = {start + 3: 1000}
    assert plain(index.row(8)) == plain(rows[8])
    with pytest.raises(CorruptRecordError, match=r"x\.index: row 9, flow table: checksum"):
        index.rows([9, 10])
    assert plain(index.row(10)) == plain(rows[10])
    afar.wrong = {}
    assert plain(index.row(9)) == plain(rows[9])


@pytest.mark.parametrize("longer", [-1, 1, 10_000])
def test_a_file_of_another_size_than_the_manifest_says_is_refused(rows: list[Row], longer: int) -> None:
    data = b"".join(index_bytes(rows))
    afar = Afar(data[:longer] if longer < 0 else data + bytes(longer))
    with pytest.raises((FormatError, TruncatedShardError), match=rf"{len(afar.data)} bytes, but the manifest says"):
        open_ranged(afar, part_of(data, rows), "x.index", 0)
    assert afar.fetched == []


@pytest.mark.parametrize("change", [{"records": 2**32 - 1}, {"records": 11}, {"records": 0}])
def test_a_manifest_that_lies_makes_nobody_reserve_or_read_much(rows: list[Row], change: dict[str, int]) -> None:
    afar = Afar(b"".join(index_bytes(rows)))
    with pytest.raises((FormatError, CorruptRecordError, TruncatedShardError)):
        open_ranged(afar, replace(part_of(afar.data, rows), **change), "x.index", 0)
    assert sum(stop - start for group in afar.fetched for start, stop in group) <= len(afar.data)


def test_a_size_that_the_records_cannot_need_is_refused_before_anything_is_asked(rows: list[Row]) -> None:
    part = part_of(b"".join(index_bytes(rows)), rows)
    with pytest.raises(FormatError, match=r"the manifest says 1099511627776 bytes for 12 records of \d+ frames"):
        open_ranged(object(), replace(part, index=replace(part.index, size=2**40)), "x.index")  # type: ignore[arg-type]


def test_a_size_that_no_disk_has_is_refused_in_words(rows: list[Row]) -> None:
    class Vast(Afar):
        def size(self, blob: str) -> int:
            return 2**63 - 1

    afar, frames = Vast(b"".join(index_bytes(rows))), 2**58
    part = part_of(afar.data, rows)
    part = replace(part, frames=frames, index=replace(part.index, size=2**63 - 1))
    with pytest.raises(ShardError, match=r"cannot be written|expected"):
        open_ranged(afar, part, "x.index")


def test_a_server_without_ranges_sends_it_whole(rows: list[Row]) -> None:
    data = b"".join(index_bytes(rows))
    assert [plain(row) for row in opened(Afar(data, ranges=False), rows)] == [plain(row) for row in rows]

    class Short(Afar):
        def size(self, blob: str) -> int:
            return len(self.data) + 8

    with pytest.raises(TruncatedShardError, match=rf"{len(data)} bytes were sent, expected {len(data) + 8}"):
        open_ranged(Short(data, ranges=False), part_of(data + bytes(8), rows), "x.index", 0)


def test_a_full_disk_is_an_error_with_the_folder(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    afar = Afar(b"".join(index_bytes(rows)))
    index = opened(afar, rows)
    monkeypatch.setattr(unnamed.os, "pwrite", full)
    with pytest.raises(ShardError, match=rf"{tempfile.gettempdir()}: cannot be written: No space left"):
        index.row(3)
    with pytest.raises(ShardError, match="No space left"):
        opened(afar, rows)


def test_threads_get_the_same_rows_and_what_was_handed_out_outlives_it(rows: list[Row]) -> None:
    index, draws = opened(Afar(b"".join(index_bytes(rows))), rows), random.Random(1)
    wanted = [[draws.randrange(len(rows)) for _ in range(5)] for _ in range(100)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(index.rows, wanted))
    index.close()
    for group, of_group in zip(wanted, found, strict=True):
        assert [plain(row) for row in of_group] == [plain(rows[record]) for record in group]
    with pytest.raises(ShardError, match="already closed"):
        index.row(0)


def test_a_key_that_would_lead_out_of_its_folder_is_refused(rows: list[Row]) -> None:
    for key in ("../a", "a.b", "/etc"):
        data = b"".join(index_bytes([replace(rows[0], key=key)]))
        with pytest.raises(FormatError, match="key b'"):
            parse_index_bytes(data, "x.index").row(0)


def test_over_http_only_the_tables_that_are_wanted_are_sent(
    serve: Callable[[Path], Any], make_split: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_split(tmp_path / "split1", train=12, test=1, frames=40)
    url = f"{serve(tmp_path).url}/split1"
    size = (tmp_path / "split1" / "train.index").stat().st_size
    assert size > 2 * head_size(12, 32 * 12)
    monkeypatch.setattr(ranged.open_ranged, "__defaults__", (0,))
    with open_split(url) as split, open_split(tmp_path / "split1") as local:
        rows = split.index("train").rows([5, 1])
        assert [plain(row) for row in rows] == [plain(local.index("train").row(record)) for record in (5, 1)]
        assert bytes(split.members("train", rows[0])["cls"]) == bytes(local.read("train", 5)["cls"])
    with urlopen(f"{url.rpartition('/')[0]}/requests", timeout=10) as answer:
        counts = json.load(answer)
    assert counts["split1/train.index"] == 4  # its size, its start, two tables
