"""A split of a million videos opens at once, takes little memory, and its epoch is ordered within a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.format import crc32c, split_digest
from shards.manifest import Manifest, Part, ShardFile, write_manifest
from shards.split import open_split

FRAMES = 186  # of every video: UCF101's mean
PER_SHARD = 100
TABLES = 4 * (4 * (FRAMES - 1) + 2 * FRAMES)  # bytes of a video's

STREAM = [("offset", "<u8"), ("size", "<u4"), ("width", "<u2"), ("height", "<u2"), ("colours", "<u4"), ("crc", "<u4")]
ROW = np.dtype(
    [
        *(("name", "<u8"), ("length", "<u4"), ("fps", "<u4", 2), ("sha256", "S32"), ("cls", "<u8"), ("header", "<u8")),
        *(("header_size", "<u4"), ("tables", "<u8"), ("flow", STREAM), ("rgb", STREAM)),
    ]
)
COLUMNS = np.dtype([("label", "<i4"), ("frames", "<u4"), ("shard", "<u4")])


def stream(count: int, colours: int, table: bytes) -> np.ndarray:
    values = np.zeros(1, STREAM)
    values["size"], values["width"], values["height"] = count * 1000, 340, 256
    values["colours"], values["crc"] = colours, crc32c(table)
    return values[0]


def real(count: int) -> bytes:
    """Ends and CRCs of `count` images of 1,000 bytes."""
    return (np.arange(1, count + 1, dtype="<u4") * 1000).tobytes() + np.arange(count, dtype="<u4").tobytes()


def write_index(path: Path, count: int) -> int:
    """Writes the index of `count` made-up videos as the layout of `shards.index` says, all at once; bytes of the file.

    Its tables are a hole in the file but for those of the first video, one in the middle and the last.
    """
    pairs, zeros = 2 * (FRAMES - 1), bytes(8 * 2 * FRAMES)
    number = np.arange(count)
    columns, rows = np.zeros(count, COLUMNS), np.zeros(count, ROW)
    columns["label"], columns["frames"], columns["shard"] = number % 400, FRAMES, number // PER_SHARD
    key = np.char.encode(np.char.add("v_", np.char.zfill(number.astype("U7"), 7)))
    rows["name"], rows["length"], rows["fps"], rows["sha256"] = number * 9, 9, (25, 1), b"s" * 32
    rows["cls"], rows["header"], rows["header_size"], rows["tables"] = 512, 1536, 900, number * (TABLES // 4)
    rows["flow"], rows["rgb"] = stream(pairs, 1, zeros[: 8 * pairs]), stream(FRAMES, 3, zeros[: 8 * FRAMES])
    marked = [0, count // 2, count - 1]
    rows["flow"][marked], rows["rgb"][marked] = stream(pairs, 1, real(pairs)), stream(FRAMES, 3, real(FRAMES))

    pieces = [array.view("u1").reshape(count, -1) for array in (columns, rows, key)]
    whole = np.concatenate(pieces, axis=1).tobytes()
    step = len(whole) // count
    crcs = np.array([crc32c(whole[start : start + step]) for start in range(0, len(whole), step)], "<u4")
    packed = np.concatenate([pieces[1], crcs[:, None].view("u1"), np.zeros((count, 4), "u1")], axis=1)
    sections = [columns[name].tobytes() for name in COLUMNS.names or ()] + [packed.tobytes(), key.tobytes()]
    starts = [128]
    for section in sections:
        starts.append(starts[-1] + -(-len(section) // 8) * 8)
    size = starts[-1] + count * TABLES
    header = b"STMULIDX" + np.array([1, 136], "<u4").tobytes() + np.array([count], "<u8").tobytes()
    header += np.array([-(-count // PER_SHARD), 0], "<u4").tobytes() + np.array([*starts, size], "<u8").tobytes()
    header += np.array([crc32c(section) for section in sections[:3]], "<u4").tobytes() + bytes(24)
    with path.open("wb") as file:
        file.write(header + crc32c(header).to_bytes(4, "little"))
        for start, section in zip(starts, sections, strict=False):
            file.seek(start)
            file.write(section)
        for video in marked:
            file.seek(starts[-1] + video * TABLES)
            file.write(real(pairs) + real(FRAMES))
        file.truncate(size)
    return size


def write_split(folder: Path, count: int) -> Path:
    """A split of `count` made-up videos without the shards themselves."""
    folder.mkdir(parents=True)
    shards = tuple(
        ShardFile(name=f"train-{number:06d}.tar", size=1 << 30, sha256="0" * 64, records=PER_SHARD)
        for number in range(count // PER_SHARD)
    )
    index = ShardFile(
        name="train.index", size=write_index(folder / "train.index", count), sha256="0" * 64, records=count
    )
    part = Part(shards=shards, index=index, records=count, frames=count * FRAMES, digest="0" * 64)
    classes = tuple(f"class{label}" for label in range(400))
    manifest = Manifest(
        dataset="made-up",
        split=1,
        classes=classes,
        parts={"train": part},
        made={},
        store="tar",
        digest=split_digest({"train": part.digest}),
    )
    write_manifest(folder / "manifest.json", manifest)
    return folder


MEASURED = """
import json, sys, time
from pathlib import Path
import numpy as np
from shards.order import Order
from shards.split import open_split

def held():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024

def timed(work):
    begun = time.process_time()
    return work(), time.process_time() - begun

small = Path(sys.argv[2])
with open_split(small) as split:  # what is imported, and what is allocated once, is not this split's
    split.index("train").row(0), split.index("train").shard_of()
    Order(count=10, seed=1).epoch(0)
before, figures = held(), {}
split, figures["split_s"] = timed(lambda: open_split(sys.argv[1]))
figures["manifest_mib"] = held() - before
index, figures["index_s"] = timed(lambda: split.index("train"))
figures["index_mib"] = held() - before - figures["manifest_mib"]
row, figures["row_s"] = timed(lambda: index.row(len(index) // 2))
shard_of = index.shard_of()
figures["columns_mib"] = held() - before - figures["manifest_mib"]
for kind in ("full", "windowed"):
    order = Order(count=len(index), seed=1, kind=kind, shard_of=shard_of, window=8)
    epoch, figures[kind + "_s"] = timed(lambda: order.epoch(1))
    assert len(np.unique(epoch)) == len(index)
    del order, epoch
print(json.dumps(figures))
"""


@pytest.mark.parametrize(
    ("count", "share"), [pytest.param(50_000, 0.1), pytest.param(1_000_000, 1.0, marks=pytest.mark.slow)]
)
def test_a_million_videos_open_in_a_tenth_of_a_second_and_are_ordered_in_one(
    tmp_path: Path, count: int, share: float
) -> None:
    write_split(tmp_path / "large", count)
    write_split(tmp_path / "small", 200)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "large"), str(tmp_path / "small")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print({name: round(value, 4) for name, value in figures.items()})
    assert figures["index_s"] < 0.1
    assert figures["split_s"] + figures["index_s"] < 0.1 + share  # with its manifest, which names 10,000 shards
    assert max(figures["index_mib"], figures["columns_mib"]) < 50 * share
    assert figures["row_s"] < 0.1
    assert max(figures["full_s"], figures["windowed_s"]) < share


def test_rows_of_a_made_up_index_read_as_they_were_made(tmp_path: Path) -> None:
    with open_split(write_split(tmp_path / "split", 2000)) as split:
        index = split.index("train")
        assert len(index) == 2000
        for record in (0, 1000, 1999):  # the others' tables are a hole in the file, and refused
            row = index.row(record)
            assert (row.key, row.label, row.shard) == (f"v_{record:07d}", record % 400, record // PER_SHARD)
            assert (row.frames, row.sha256, row.fps, row.header_size) == (FRAMES, b"s" * 32, (25, 1), 900)
            assert (len(row.rgb.ends), int(row.rgb.ends[-1])) == (FRAMES, 1000 * FRAMES)
            assert len(row.flow.crcs) == 2 * (FRAMES - 1)
