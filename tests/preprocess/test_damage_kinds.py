"""One data set with every kind of damage: each broken video is named with its reason, and no other one changes."""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest

from preprocess.build import build
from preprocess.building.engines import here
from preprocess.config import Flow, Preprocess, Rgb
from preprocess.datasets import find_dataset
from shards.split import open_split

CLASSES = ("a", "b")
GROUPS = 12
Write = Callable[..., Path]


def empty(path: Path, write: Write) -> None:
    path.write_bytes(b"")


def a_page(path: Path, write: Write) -> None:
    path.write_bytes(b"<html>404 Not Found</html>" * 40)


def cut_avi(path: Path, write: Write) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def cut_mp4(path: Path, write: Write) -> None:
    write(path.with_suffix(".mp4"))
    cut(path)


def cut_mkv(path: Path, write: Write) -> None:
    write(path.with_suffix(".mkv"))
    cut(path)


def cut(path: Path) -> None:
    """Takes the AVI's place with the first half of the other file of its name."""
    path.unlink()
    (other,) = path.parent.glob(f"{path.stem}.*")
    data = other.read_bytes()
    other.write_bytes(data[: len(data) // 2])


def cut_samples(path: Path, write: Write) -> None:
    """An MP4 whose samples reach to the end of the file, wherever that is: only its table shows the cut."""
    whole, other = write(path.with_suffix(".mp4")), path.with_suffix(".mov")
    with av.open(str(whole)) as source, av.open(str(other), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = bytearray(other.read_bytes())
    box = data.index(b"mdat") - 4
    assert box > data.index(b"moov")
    data[box : box + 4] = bytes(4)
    whole.unlink()
    path.unlink()
    other.write_bytes(data[:-1000])


def no_table(path: Path, write: Write) -> None:
    other = write(path.with_suffix(".mp4"))
    path.unlink()
    other.write_bytes(other.read_bytes().replace(b"moov", b"gone"))


def cut_index(path: Path, write: Write) -> None:
    data = bytearray(path.read_bytes())
    last = data.index(b"idx1") + 8 + 8 + 16 * 3
    data[last : last + 4] = struct.pack("<I", len(data))
    path.write_bytes(data)


def flipped(path: Path, write: Write) -> None:
    data = bytearray(path.read_bytes())
    middle = (data.index(b"movi") + data.index(b"idx1")) // 2
    data[middle : middle + 64] = bytes(255 - byte for byte in data[middle : middle + 64])
    path.write_bytes(data)


def spoiled_frame(path: Path, write: Write) -> None:
    write(path, codec="mjpeg")
    data = bytearray(path.read_bytes())
    frame = data.index(b"00dc", data.index(b"movi"))
    frame = data.index(b"00dc", frame + 8)
    size = struct.unpack("<I", data[frame + 4 : frame + 8])[0]
    data[frame + 8 : frame + 8 + size] = bytes(size)
    path.write_bytes(data)


def unknown_codec(path: Path, write: Write) -> None:
    data = path.read_bytes()
    assert data.count(b"FMP4") == 2
    path.write_bytes(data.replace(b"FMP4", b"ZZ~1"))


def sound_alone(path: Path, write: Write) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


def no_frames(path: Path, write: Write) -> None:
    data = path.read_bytes()
    movie = data.index(b"LIST", data.index(b"movi") - 8)
    left = bytearray(data[:movie] + b"LIST" + struct.pack("<I", 4) + b"movi")
    left[4:8] = struct.pack("<I", len(left) - 8)
    path.write_bytes(left)


def huge(path: Path, write: Write) -> None:
    write(path, codec="rawvideo")
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 8 + 32, data.index(b"strf") + 8 + 4):
        data[place : place + 8] = struct.pack("<ii", 16000, 16000)
    path.write_bytes(data)


def folder(path: Path, write: Write) -> None:
    path.unlink()
    path.mkdir()
    (path / "notes.txt").write_text("not a video")


def forbidden(path: Path, write: Write) -> None:
    path.chmod(0)


def pipe(path: Path, write: Write) -> None:
    path.unlink()
    os.mkfifo(path)


KINDS = {  # damage: what the reason says
    empty: r"the file is empty \(0 bytes\)",
    a_page: r"not a video that can be read .* it begins with b'<html>404",
    cut_avi: r"cut short: its 'RIFF' reaches to byte \d+, the file ends at byte \d+",
    cut_mp4: r"cut short: its 'mdat' reaches to byte",
    cut_mkv: r"cut short: its 'Segment' reaches to byte",
    cut_samples: r"cut short: \d+ of the \d+ frames in its table lie past the end of the file",
    no_table: r"not a video that can be read \(Invalid data",
    cut_index: r"cut short: 1 of the \d+ entries of its index point past the end",
    flipped: r"frame \d+ is damaged|decoding fails after frame \d+",
    spoiled_frame: r"decoding fails after frame 1 \(Invalid data",
    unknown_codec: r"its video is of a kind that this FFmpeg \(.+\) cannot decode",
    sound_alone: r"no video stream in this avi file \(streams: audio\)",
    no_frames: r"has a video stream but not one frame",
    huge: r"claims pictures of 16000x16000, expected at most",
    folder: r"a folder; expected a video",
    forbidden: r"Permission denied",
    pipe: r"neither a file nor a folder",
}


def as_anyone() -> None:
    """Without root's right to read what is forbidden; called in the new process before its program starts."""
    libc = ctypes.CDLL(None, use_errno=True)
    for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if libc.prctl(24, right, 0, 0, 0):  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "the right to read everything cannot be laid down here")


BUILD = """
import sys
from pathlib import Path
from tests.preprocess.test_damage_kinds import built
print(built(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def built(root: Path, out: Path) -> Path:
    """The folder of the split of `root`, built in this process."""
    settings = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=2)
    return build(find_dataset(root), settings, out, engine=here).folder


def built_by_anyone(root: Path, out: Path) -> Path:
    """The same, for somebody who is not root."""
    command = [sys.executable, "-c", BUILD, str(root), str(out)]
    lay_down = as_anyone if os.geteuid() == 0 else None
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lay_down, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class Builds:
    """The same data set built whole and damaged."""

    whole: Path
    damaged: Path
    damage: dict[str, str]  # name of the video: what the reason must say


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory, video_folders: Write, write_video: Write) -> Builds:
    base = tmp_path_factory.mktemp("damage")
    root = video_folders(base / "set", train=GROUPS - 1, width=64, height=48, classes=CLASSES)
    whole = built(root, base / "whole")
    damage = {}
    videos = sorted((root / "videos").rglob("*.avi"))[:: 2 * GROUPS // len(KINDS)]
    for path, (spoil, says) in zip(videos, KINDS.items(), strict=False):
        spoil(path, lambda path, **how: write_video(path, frames=4, **how))
        damage[path.stem] = says
    assert len(damage) == len(KINDS)
    return Builds(whole=whole, damaged=built_by_anyone(root, base / "damaged"), damage=damage)


def test_every_damaged_video_is_named_with_its_reason_and_no_other(builds: Builds) -> None:
    lines = (builds.damaged / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    failures = {failure["name"]: failure for failure in map(json.loads, lines)}
    assert len(lines) == len(failures)
    assert failures.keys() == builds.damage.keys()
    for name, says in builds.damage.items():
        assert re.search(says, failures[name]["reason"]), f"{failures[name]['reason']!r} does not say {says!r}"
        assert name in failures[name]["path"]
        assert failures[name]["reason"].startswith(failures[name]["path"])


def test_the_records_of_all_other_videos_are_the_same_bytes(builds: Builds) -> None:
    with open_split(builds.whole) as whole, open_split(builds.damaged) as damaged:
        for part in ("train", "test"):
            records = {row.name: row.sha256 for row in whole.index(part)}
            left = {row.name: row.sha256 for row in damaged.index(part)}
            assert left == {name: sha256 for name, sha256 in records.items() if name not in builds.damage}
            hurt = {row.shard for row in whole.index(part) if row.name in builds.damage}
            unhurt = {row.shard for row in whole.index(part)} - hurt
            for number in unhurt:
                name = f"{part}-{number:06}.tar"
                assert (builds.whole / name).read_bytes() == (builds.damaged / name).read_bytes()
    assert not (builds.whole / "failures.jsonl").exists()
