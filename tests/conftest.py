"""Small records and splits for tests: drawn, seeded, the same on every call.

`make_record(name, frames=12, width=32, height=24, label=0, seed=0, class_name="class0")` gives a `Record` whose frames
are Pillow's JPEGs of a drawn square that moves 1 pixel a frame to the right; its flow says so.

`make_split(folder, train=6, test=3, classes=3, per_shard=2, frames=12, width=32, height=24, seed=0, split=1)` writes a
split of such records as tar shards and gives its `Manifest`. Video i of a part is named `v_<part>_<i>` and has label i
modulo `classes`, its class is `class<label>`; video i has `frames + i % 3` frames.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from shards.format import encode, key_of
from shards.manifest import Manifest
from shards.record import FlowMade, Frames, Record, Source, quantise
from shards.writer import shard_slots, write_split

# A busy machine is no mistake, and where a change is judged it is judged by the same examples each time.
settings.register_profile(
    "house",
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=any(os.environ.get(name) for name in ("CI", "STMUL_REQUIRE_SERVERS")),
)
settings.load_profile("house")

if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side; threads that spin for a busy core cost minutes
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["tests.servers", "tests.real_servers"]


def drawn_record(
    name: str,
    frames: int = 12,
    width: int = 32,
    height: int = 24,
    label: int = 0,
    seed: int = 0,
    class_name: str | None = None,
) -> Record:
    """A record of `frames` frames: a bright square on noise, moving right."""
    draws = np.random.default_rng([seed, label, *name.encode()])
    ground = draws.integers(0, 120, (height, width, 3), dtype=np.uint8)
    pictures, flows = [], []
    for t in range(frames):
        picture = ground.copy()
        left = t % max(width - 8, 1)
        picture[height // 4 : height // 2, left : left + 8] = (250, 40 * (label % 6), 10)
        pictures.append(jpeg(picture, quality=90))
        if t:
            flow = np.zeros((2, height, width))
            flow[0, height // 4 : height // 2, left : left + 8] = 1.0
            flows += [jpeg(quantise(plane), quality=95) for plane in flow]
    size = {"width": width, "height": height}
    return Record(
        name=name,
        label=label,
        class_name=class_name or f"class{label}",
        fps=(25, 1),
        source=Source(sha256="0" * 64, bytes=1234),
        decoded_frames=frames,
        header_frames=frames,
        rgb=Frames.of(pictures, **size, components=3, encoder={"quality": 90, "subsampling": "4:2:0"}),
        flow=Frames.of(flows, **size, components=1, encoder={"quality": 95}),
        flow_made=FlowMade(method="drawn", parameters={"dx": 1.0}, library="none"),
    )


def jpeg(picture: np.ndarray, quality: int) -> bytes:
    """A picture, (H, W, 3) or (H, W), as Pillow's JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def drawn_split(
    folder: Path,
    train: int = 6,
    test: int = 3,
    classes: int = 3,
    per_shard: int = 2,
    frames: int = 12,
    width: int = 32,
    height: int = 24,
    seed: int = 0,
    split: int = 1,
) -> Manifest:
    """Writes a split of drawn records into `folder`."""
    parts = {}
    for part, count in (("train", train), ("test", test)):
        records = {
            key_of(f"v_{part}_{i}"): encode(
                drawn_record(f"v_{part}_{i}", frames + i % 3, width, height, label=i % classes, seed=seed)
            )
            for i in range(count)
        }
        parts[part] = [[(key, records[key]) for key in keys] for keys in shard_slots(list(records), per_shard)]
    return write_split(
        folder,
        dataset="drawn",
        split=split,
        classes=[f"class{label}" for label in range(classes)],
        made={"flow": "drawn"},
        parts=parts,
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the user's cache out of the tests, and the tests out of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    """See the top of this file."""
    return drawn_record


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Manifest]:
    """See the top of this file."""
    return drawn_split
