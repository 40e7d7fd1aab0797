"""What is written is what webdataset's own writer writes, though it is loaded alone and its buffer gone past."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset import TarWriter

from shards.format import MEMBERS, encode, key_of
from shards.record import Frames, Record
from shards.writer import AHEAD, OWNER, PIECE, pack_shard

Make = Callable[..., Record]


def sized(record: Record, name: str, size: int) -> Record:
    """`record` with two frames of `size` bytes together, at least one each."""
    noise = np.random.default_rng(size).integers(0, 256, max(size, 2), dtype=np.uint8).tobytes()
    frames = [noise[: len(noise) // 2], noise[len(noise) // 2 :]]
    rgb = Frames.of(frames, width=16, height=16, components=3, encoder={})
    return replace(record, name=name, rgb=rgb)


def by_webdataset(path: Path, records: list[Record]) -> bytes:
    with path.open("wb") as file:
        tar = TarWriter(file, user=OWNER, group=OWNER, mode=0o444, mtime=0, encoder=False, compress=False)
        for record in records:
            members = encode(record)
            tar.write({"__key__": key_of(record.name), **{member: bytes(members[member]) for member in MEMBERS}})
        tar.close()
    return path.read_bytes()


EDGES = [PIECE + step for step in (-2000, -600, -1, 0, 1)]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.integers(2, 3000), st.sampled_from(EDGES)), max_size=4))
def test_members_of_any_size_give_webdatasets_bytes(
    tmp_path_factory: object, make_record: Make, sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("written")
    small = make_record("v", frames=2, width=16, height=16)
    records = [sized(small, f"v{number}", size) for number, size in enumerate(sizes)]
    packed = pack_shard(folder / "ours-000000.tar", [(key_of(record.name), record) for record in records])
    written = (folder / "ours-000000.tar").read_bytes()
    assert written == by_webdataset(folder / "theirs.tar", records)
    assert (packed.file.size, packed.file.sha256) == (len(written), hashlib.sha256(written).hexdigest())


def test_a_shard_that_the_disk_begins_early_is_the_same(tmp_path: Path, make_record: Make) -> None:
    small = make_record("v", frames=2, width=16, height=16)
    records = [sized(small, f"v{number}", AHEAD // 2) for number in range(4)]
    packed = pack_shard(tmp_path / "ours-000000.tar", [(key_of(record.name), record) for record in records])
    written = (tmp_path / "ours-000000.tar").read_bytes()
    assert written == by_webdataset(tmp_path / "theirs.tar", records)
    assert packed.file.sha256 == hashlib.sha256(written).hexdigest()


def test_records_and_their_members_are_packed_alike(tmp_path: Path, make_record: Make) -> None:
    records = [make_record(name, frames=3, width=16, height=16) for name in ("a", "b")]
    made = pack_shard(tmp_path / "made-000000.tar", [(record.name, record) for record in records])
    kept = pack_shard(tmp_path / "kept-000000.tar", [(record.name, encode(record)) for record in records])
    assert (tmp_path / "made-000000.tar").read_bytes() == (tmp_path / "kept-000000.tar").read_bytes()
    assert [row.sha256 for row in made.rows] == [row.sha256 for row in kept.rows]


ALONE = """
import sys
from pathlib import Path
from shards.writer import pack_shard
pack_shard(Path(sys.argv[1]) / "first-000000.tar", [])
loaded = {"torch", "webdataset"} & set(sys.modules)
import webdataset
pack_shard(Path(sys.argv[1]) / "second-000000.tar", [])
print(sorted(loaded), webdataset.TarWriter.__module__, webdataset.WebDataset.__name__)
"""


def test_writing_loads_neither_torch_nor_all_of_webdataset_and_leaves_it_to_others(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] webdataset.writer WebDataset"
    first, second = (tmp_path / f"{name}-000000.tar" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
