"""Small real video files for tests, drawn and encoded on the spot.

`write_video(path, frames=12, width=64, height=48, dx=2, dy=0, seed=0, codec="mpeg4", fps=25)` writes a texture that
moves by (dx, dy) pixels a frame and gives `path`; the ending chooses the container.

`video_folders(root, train=2, test=1, classes=("a", "b"), **video)` writes such videos in UCF101's layout with one list
for each of the three splits (split n tests on group n) and gives `root`. It needs train + test >= 3 groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest


def moving_texture(frames: int, width: int, height: int, dx: float, dy: float, seed: int) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) of a smooth texture that moves by (dx, dy) pixels from each to the next."""
    margin = int(frames * max(abs(dx), abs(dy))) + 8
    noise = np.random.default_rng(seed).normal(size=(height + 2 * margin, width + 2 * margin, 3)).astype(np.float32)
    ground = cv2.GaussianBlur(noise, (0, 0), 2.0)
    ground = 128 + 50 * ground / ground.std()
    for t in range(frames):
        shift = np.array([[1, 0, t * dx - margin], [0, 1, t * dy - margin]], np.float32)
        picture = cv2.warpAffine(ground, shift, (width, height), flags=cv2.INTER_CUBIC)
        yield np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def drawn_video(
    path: Path,
    frames: int = 12,
    width: int = 64,
    height: int = 48,
    dx: float = 2,
    dy: float = 0,
    seed: int = 0,
    codec: str = "mpeg4",
    fps: int | Fraction = 25,
) -> Path:
    """A video file of a moving texture; see the top of this file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.bit_rate = 2_000_000
        for picture in moving_texture(frames, width, height, dx, dy, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def drawn_folders(
    root: Path, train: int = 2, test: int = 1, classes: tuple[str, ...] = ("a", "b"), frames: int = 6, **video: int
) -> Path:
    """A data set in UCF101's layout; see the top of this file."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(classes, 1)))
    names = [
        (name, group, f"{name}/v_{name}_g{group:02}_c01.avi")
        for name in classes
        for group in range(1, train + test + 1)
    ]
    for number, (_, group, path) in enumerate(names):
        drawn_video(root / "videos" / path, frames=frames + group % 3, seed=number, **video)
    for split in (1, 2, 3):
        tested = {split + i for i in range(test)}
        texts = {"train": [], "test": []}
        for name, group, path in names:
            if group in tested:
                texts["test"].append(f"{path}\n")
            else:
                texts["train"].append(f"{path} {classes.index(name) + 1}\n")
        for part, lines in texts.items():
            (lists / f"{part}list{split:02}.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """See the top of this file."""
    return drawn_video


@pytest.fixture(scope="session")
def video_folders() -> Callable[..., Path]:
    """See the top of this file."""
    return drawn_folders


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real clips in {folder}")
    return folder
