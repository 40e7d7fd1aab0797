"""A small split cut at every block and flipped at every byte: exactly what was written is read, or a ShardError.

The split is as small as one can be: a tar of two records of two frames, its index and its manifest. It is read through
the manifest, and the tar by itself. Equal JPEGs are equal pixels, so bytes are compared.
"""

from __future__ import annotations

import io
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.check import problems
from shards.errors import ShardError
from shards.format import decode, encode, key_of
from shards.record import FlowMade, Frames, Record, Source
from shards.split import open_split
from shards.stream import read_clips
from shards.tar import RECORD
from shards.writer import write_split

BLOCK = 512
PATIENCE = 10.0  # seconds for what takes milliseconds
SAMPLE = 60  # positions of each file in the default run
FILES = ("train-000000.tar", "train.index", "manifest.json")

Told = list[tuple[Any, ...]]


class Hung(BaseException):
    """No error that anything under test could catch."""


@dataclass(frozen=True)
class Every:
    """Frames and pairs of a clip that has all of them."""

    frames: np.ndarray
    pairs: np.ndarray


@contextmanager
def patient() -> Iterator[None]:
    """Ends what takes longer than PATIENCE."""

    def give_up(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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


def through_manifest(folder: Path) -> Told:
    """Every clip and every record, read through manifest and index."""
    return told(folder)


def alone(folder: Path) -> Told:
    """The same out of the tar by itself."""
    return told(folder / FILES[0])


def told(location: Path | str) -> Told:
    with open_split(location) as split:
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
        with open_split(location) as split:
            return [str(problem) for problem in problems(split)]
    except ShardError as error:
        return [str(error)]


WAYS: dict[str, Callable[[Path], Told]] = {"manifest": through_manifest, "alone": alone}


def judge(folder: Path, path: Path, whole: dict[str, Told], what: str) -> None:
    """Reads the damaged split in every way that concerns the damaged file."""
    ways = WAYS if path.suffix == ".tar" else {"manifest": through_manifest}
    for way, read in ways.items():
        with patient():
            try:
                found = read(folder)
            except ShardError:
                continue
        assert found == whole[way], f"{what}: other pixels or labels, read by {way}"
    with patient():
        assert verified(folder), f"{what}: not found by verify"


def damage_all(folder: Path, name: str, positions: list[int], bit: Callable[[int], int]) -> None:
    path, whole = folder / name, {way: read(folder) for way, read in WAYS.items()}
    data = path.read_bytes()
    try:
        with path.open("r+b", buffering=0) as file:
            for position in positions:
                file.seek(position)
                file.write(bytes([data[position] ^ 1 << bit(position)]))
                judge(folder, path, whole, f"{name}, bit {bit(position)} of byte {position}")
                file.seek(position)
                file.write(data[position : position + 1])
    finally:
        path.write_bytes(data)


def cut_all(folder: Path, name: str, lengths: list[int]) -> None:
    path, whole = folder / name, {way: read(folder) for way, read in WAYS.items()}
    data = path.read_bytes()
    try:
        for length in lengths:
            path.write_bytes(data[:length])
            judge(folder, path, whole, f"{name} cut to {length} bytes")
    finally:
        path.write_bytes(data)


def seeded(seed: int) -> Callable[[int], int]:
    """A bit for each position, another one with another seed."""
    first = random.Random(0).choices(range(8), k=1 << 16)
    return lambda position: (first[position] + seed) % 8


def test_the_undamaged_split_is_read_in_both_ways_and_has_no_problems(folder: Path) -> None:
    assert len(through_manifest(folder)) == 4
    assert through_manifest(folder) == alone(folder)
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_byte_is_an_error_or_changes_nothing_and_is_found(
    folder: Path, name: str, seed: int
) -> None:
    damage_all(folder, name, list(range((folder / name).stat().st_size)), seeded(seed))


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
            for position in range(len(data)):
                file.seek(position)
                file.write(bytes([data[position] ^ 1 << seeded(0)(position)]))
                with patient():
                    assert verified(path), f"byte {position} of the tar"
                file.seek(position)
                file.write(data[position : position + 1])
    finally:
        path.write_bytes(data)
