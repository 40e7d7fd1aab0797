"""A small split cut at every block and flipped at every byte: exactly what was written is read, or a ShardError.

The split is as small as one can be: a tar of two records of two frames, its index and its manifest. It is read through
the manifest, the tar by itself by its headers, and thoroughly, and as a list. Equal JPEGs are equal pixels, so bytes
are compared.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.access import Access
from shards.check import problems
from shards.errors import ShardError
from shards.format import decode, encode, key_of
from shards.record import FlowMade, Frames, Record, Source
from shards.split import open_split
from shards.stream import read_clips
from shards.tar import RECORD
from shards.writer import write_split
from tests.hostile import patient

BLOCK = 512
SAMPLE = 60  # positions of each file in the default run
FILES = ("train-000000.tar", "train.index", "manifest.json")

Told = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Every:
    """Frames and pairs of a clip that has all of them."""

    frames: np.ndarray
    pairs: np.ndarray


def tiny_record(name: str, label: int) -> Record:
    """Two frames of 8 x 8 pixels and the flow between them, each in one colour: four members of 2560 bytes of tar."""

    def frames(levels: list[Any], components: int) -> Frames:
        jpegs = []
        for level in levels:
            buffer = io.BytesIO()
            shape = (8, 8, 3) if components == 3 else (8, 8)
            picture = Image.fromarray(np.full(shape, level, np.uint8))
            picture.save(buffer, "JPEG", quality=30, optimize=True)
            jpegs.append(buffer.getvalue())
        return Frames.of(jpegs, width=8, height=8, components=components, encoder={})

    return Record(
        name=name,
        label=label,
        class_name=f"class{label}",
        fps=(25, 1),
        source=Source(sha256="", bytes=1),
        decoded_frames=2,
        header_frames=2,
        rgb=frames([(10 + label, 90, 200), (60, 20 + label, 5)], 3),
        flow=frames([120 + label, 140 + label], 1),
        flow_made=FlowMade(method="drawn", parameters={}, library=""),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [(key_of(name), encode(tiny_record(name, label))) for label, name in enumerate(("a", "b"))]
    folder = tmp_path_factory.mktemp("damage") / "split1"
    write_split(
        folder,
        dataset="drawn",
        split=1,
        classes=["class0", "class1"],
        made={"flow": "drawn", "rate": 0.25},
        parts={"train": [records]},
    )
    assert (folder / FILES[0]).stat().st_size == RECORD
    return folder


NOWHERE = Access(cache=Path("/dev/null/nowhere"))  # indexes made of tars are not kept


def through_manifest(folder: Path) -> Told:
    """Every clip and every record, read through manifest and index."""
    return told(folder)


def by_headers(folder: Path) -> Told:
    """The same out of the tar by itself."""
    return told(folder / FILES[0])


def thoroughly(folder: Path) -> Told:
    """The same out of the tar by itself, which is read through first."""
    return told(folder / FILES[0], thorough=True)


def listed(folder: Path) -> Told:
    """The same out of a list of that one tar."""
    return told(f"{folder}/train-{{000000..000000}}.tar")


def told(location: Path | str, *, thorough: bool = False, access: Access = NOWHERE) -> Told:
    with open_split(location, access=access, thorough=thorough) as split:
        index = split.index("train")
        counts = index.frames().tolist()
        wanted = [(record, record, Every(np.arange(n), np.arange(n - 1))) for record, n in enumerate(counts)]
        clips = [
            (clip.row.name, clip.row.label, list(map(bytes, clip.rgb)), list(map(bytes, clip.flow)))
            for clip in read_clips(split, "train", wanted)
        ]
        records = [decode(split.read("train", record)) for record in range(len(index))]
        return [
            *clips,
            *((one.name, one.label, one.class_name, bytes(one.rgb.blob), bytes(one.flow.blob)) for one in records),
        ]


def verified(location: Path | str) -> list[str]:
    """What `stmul shards verify` would list."""
    try:
        with open_split(location, access=NOWHERE) as split:
            return [str(problem) for problem in problems(split)]
    except ShardError as error:
        return [str(error)]


WAYS = (through_manifest, by_headers, thoroughly, listed)


def judge(folder: Path, path: Path, whole: Told, what: str, ways: Sequence[Callable[[Path], Told]]) -> None:
    """Reads the damaged split in every way that concerns the damaged file."""
    for read in ways if path.suffix == ".tar" else ways[:1]:
        with patient():
            try:
                found = read(folder)
            except ShardError:
                continue
        assert found == whole, f"{what}: other pixels or labels, read {read.__name__}"
    with patient():
        assert verified(folder), f"{what}: not found by verify"


def damage_all(
    folder: Path,
    name: str,
    positions: list[int],
    bit: Callable[[int], int],
    ways: Sequence[Callable[[Path], Told]] = WAYS,
) -> None:
    path, whole = folder / name, through_manifest(folder)
    data = path.read_bytes()
    try:
        with path.open("r+b", buffering=0) as file:
            for position in positions:
                file.seek(position)
                file.write(bytes([data[position] ^ 1 << bit(position)]))
                judge(folder, path, whole, f"{name}, bit {bit(position)} of byte {position}", ways)
                file.seek(position)
                file.write(data[position : position + 1])
    finally:
        path.write_bytes(data)


def cut_all(folder: Path, name: str, lengths: list[int]) -> None:
    path, whole = folder / name, through_manifest(folder)
    data = path.read_bytes()
    try:
        for length in lengths:
            path.write_bytes(data[:length])
            judge(folder, path, whole, f"{name} cut to {length} bytes", WAYS)
    finally:
        path.write_bytes(data)


def seeded(seed: int) -> Callable[[int], int]:
    """A bit for each position, another one with another seed."""
    first = random.Random(0).choices(range(8), k=1 << 16)
    return lambda position: (first[position] + seed) % 8


def test_the_undamaged_split_is_read_in_all_ways_and_has_no_problems(folder: Path) -> None:
    assert len(through_manifest(folder)) == 4
    for read in WAYS:
        assert read(folder) == through_manifest(folder)
    assert verified(folder) == verified(folder / FILES[0]) == []


@pytest.mark.parametrize("name", FILES)
def test_a_cut_at_any_block_is_an_error_or_changes_nothing_and_is_found(folder: Path, name: str) -> None:
    cut_all(folder, name, list(range(0, (folder / name).stat().st_size, BLOCK)))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_an_error_or_changes_nothing_and_is_found(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    for seed in (0, 3):
        positions = sorted(random.Random(seed).sample(range(size), SAMPLE))
        damage_all(folder, name, positions, seeded(seed))


def test_an_index_kept_of_a_tar_never_stands_in_for_one_that_was_damaged_since(folder: Path, tmp_path: Path) -> None:
    path, access = tmp_path / FILES[0], Access(cache=tmp_path / "cache")
    data = (folder / FILES[0]).read_bytes()
    path.write_bytes(data)
    whole = told(path, access=access)
    for position in sorted(random.Random(1).sample(range(len(data)), SAMPLE)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << seeded(0)(position)
        path.write_bytes(damaged)
        with patient(), suppress(ShardError):
            assert told(path, access=access) == whole, f"byte {position}"


# Every byte: half of the ways with one bit, the other half with another.
EVERY = [*((name, seed) for name in FILES[1:] for seed in (0, 3)), (FILES[0], 0), (FILES[0], 3)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), EVERY)
def test_a_flipped_bit_in_any_byte_is_an_error_or_changes_nothing_and_is_found(
    folder: Path, name: str, seed: int
) -> None:
    positions = list(range((folder / name).stat().st_size))
    damage_all(folder, name, positions, seeded(seed), WAYS[:2] if seed else (WAYS[0], *WAYS[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_cut_at_any_byte_is_an_error_or_changes_nothing_and_is_found(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    cut_all(folder, name, list(range(0, size, 7 if size > 4 * BLOCK else 1)))


@pytest.mark.slow
def test_a_flipped_bit_in_a_tar_alone_is_found_where_no_digest_is_known(folder: Path) -> None:
    path = folder / FILES[0]
    data = path.read_bytes()
    try:
        with path.open("r+b", buffering=0) as file:
            for position in range(0, len(data), 3):
                file.seek(position)
                file.write(bytes([data[position] ^ 1 << seeded(0)(position)]))
                with patient():
                    assert verified(path), f"byte {position} of the tar"
                file.seek(position)
                file.write(data[position : position + 1])
    finally:
        path.write_bytes(data)
