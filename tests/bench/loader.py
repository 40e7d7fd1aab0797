"""What a two-stream clip costs to load: ours beside the slow obvious way and pure decoding, interleaved in one run.

    python -m tests.bench.loader --shards data/ucf101-6/split1 --repeats 5

All variants load the same clips (same videos, same instants). Two end points: *decoded*, uint8 frames in memory, and
*ready*, crops of the configured size (float for the reference, as it works; float for ours, as the trainer gets them).
CPU milliseconds per clip, one thread; median and quartiles over repeats.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from configs import load
from shards.copy import copy_split
from shards.draws import Draws
from shards.format import decode as decode_record
from shards.split import Split, open_split
from shards.stream import pair_images, read_clips
from stmul import clips
from stmul.augment import crop_view
from stmul.clips import Instants
from stmul.config import Config
from stmul.decode import decode
from stmul.loading import training_batch

Wanted = list[tuple[int, int, Instants]]


def wanted_clips(split: Split, config: Config, count: int) -> Wanted:
    """The clips that all variants load."""
    frames = split.index("train").frames()
    found = []
    for position in range(count):
        draws = Draws.of(7, "bench", position)
        record, stride = draws.integer(0, len(frames) - 1), draws.integer(*config.data.stride)
        n = int(frames[record])
        found.append(
            (
                position,
                record,
                clips.training(n, frames=config.data.frames, stack=config.data.stack, stride=stride, draws=draws),
            )
        )
    return found


def loose_files(split: Split, wanted: Wanted, folder: Path) -> None:
    """The videos of the wanted clips as one JPEG file per frame and plane, as the earlier implementation keeps them."""
    for record in {record for _, record, _ in wanted}:
        video = decode_record(split.read("train", record))
        for stream, frames in (("rgb", video.rgb), ("flow", video.flow)):
            place = folder / str(record) / stream
            place.mkdir(parents=True, exist_ok=True)
            for number in range(len(frames)):
                (place / f"{number}.jpg").write_bytes(frames[number])


def reference(folder: Path, wanted: Wanted, config: Config, *, ready: bool) -> None:
    """Loose JPEGs opened with Pillow, one by one as the instants ask; cropped, resized, mirrored; a float tensor."""
    size = config.data.crop
    for position, record, instants in wanted:
        planes = []
        for stream, numbers, mode in (
            ("rgb", instants.rgb.tolist(), "RGB"),
            ("flow", pair_images(instants.flow.reshape(-1)).tolist(), "L"),
        ):
            for number in numbers:
                image = Image.open(folder / str(record) / stream / f"{number}.jpg").convert(mode)
                if ready:
                    view = crop_view("independent", image.height, image.width, size, Draws.of(7, "view", position))
                    box = (view.left, view.top, view.right, view.bottom)
                    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
                    if view.mirror:
                        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                    planes.append(torch.from_numpy(np.array(image)).float())
                else:
                    planes.append(torch.from_numpy(np.array(image)))


def ours(split: Split, wanted: Wanted, config: Config, *, ready: bool) -> None:
    """What the trainer's threads do, sub-batch by sub-batch, and, if `ready`, what the trainer does with it."""
    for start in range(0, len(wanted), config.train.sub_batch):
        decoded = decode(read_clips(split, "train", wanted[start : start + config.train.sub_batch]))
        if ready:
            training_batch(decoded, config, config.train.joint, "joint")


def pure(jpegs: list[tuple[bytes, str]]) -> None:
    """The JPEG decoder alone, on bytes in memory."""
    for jpeg, colour in jpegs:
        simplejpeg.decode_jpeg(jpeg, colorspace=colour)


def jpegs_of(split: Split, wanted: Wanted, *, once: bool) -> list[tuple[bytes, str]]:
    """The JPEGs of the wanted clips; `once`: a frame that several instants of a clip share is there once."""
    found = []
    for clip in read_clips(split, "train", wanted):
        chosen = clip.chosen
        rgb = range(len(clip.rgb)) if once else np.searchsorted(chosen.frames, chosen.rgb).tolist()
        pairs = chosen.pairs if once else chosen.flow.reshape(-1)
        flow = pair_images(np.searchsorted(chosen.pairs, pairs)).tolist()
        found += [(bytes(clip.rgb[i]), "RGB") for i in rgb] + [(bytes(clip.flow[i]), "GRAY") for i in flow]
    return found


def measured(variants: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each variant, `repeats` times, interleaved, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, work in variants.items():
            begin = time.process_time()
            work()
            if repeat:
                times[name].append(time.process_time() - begin)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", default="data/drawn/split1")
    parser.add_argument("--config", default="ucf101")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    config = load(Config, settings.config)
    with tempfile.TemporaryDirectory() as place, open_split(settings.shards) as tar:
        copy_split(settings.shards, f"{place}/copy.lmdb")
        wanted = wanted_clips(tar, config, settings.clips)
        loose_files(tar, wanted, Path(place))
        once, all_of_them = jpegs_of(tar, wanted, once=True), jpegs_of(tar, wanted, once=False)
        with open_split(f"{place}/copy.lmdb") as lmdb:
            variants = {
                "reference, decoded": lambda: reference(Path(place), wanted, config, ready=False),
                "reference, ready": lambda: reference(Path(place), wanted, config, ready=True),
                "pure decoding, every use": lambda: pure(all_of_them),
                "pure decoding, each frame once": lambda: pure(once),
                "tar, decoded": lambda: ours(tar, wanted, config, ready=False),
                "LMDB, decoded": lambda: ours(lmdb, wanted, config, ready=False),
                "tar, ready": lambda: ours(tar, wanted, config, ready=True),
            }
            times = measured(variants, settings.repeats)
    sizes = sum(len(jpeg) for jpeg, _ in once) / len(wanted) / 1e6
    print(f"{platform.machine()}, torch {torch.__version__}, simplejpeg {simplejpeg.__version__}; {settings.shards}")
    print(f"{len(wanted)} clips of {config.data.frames} instants, {sizes:.2f} MB of JPEGs each; one thread")
    print(f"{'CPU ms per clip':<34}{'median':>8}{'quartiles':>16}{'x reference':>14}")
    for name, seconds in times.items():
        low, middle, high = (1000 * part / len(wanted) for part in statistics.quantiles(seconds, n=4))
        end = name.rpartition(", ")[2]
        base = statistics.median(times[f"reference, {'ready' if end == 'ready' else 'decoded'}"])
        ratio = base / statistics.median(seconds)
        print(f"{name:<34}{middle:>8.2f}{low:>8.2f} –{high:>6.2f}{ratio:>14.2f}")


if __name__ == "__main__":
    main()
