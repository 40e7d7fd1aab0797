"""Batches agree to one grey level with a slow loader: loose JPEGs, Pillow's crop, resize and flip."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Resampling, Transpose

from shards.draws import Draws
from shards.format import decode as decode_record
from shards.format import encode, key_of
from shards.order import full
from shards.record import FlowMade, Frames, Record
from shards.split import Split, open_split
from shards.stream import cores
from shards.writer import write_split
from stmul import clips, loading
from stmul.augment import CROPS, View, crop_view, whole_view
from stmul.config import Config, Data, Evaluate, Recipe, Train

STACK, CROP, BATCH, SUB_BATCH, SEED = 4, 32, 6, 3, 11

# Every video of another shape: frames, width, height, size of the flow over size of the frames.
VIDEOS = [(14, 48, 40, 1.0), (9, 64, 36, 0.5), (1, 44, 40, 1.0), (3, 40, 52, 0.5), (20, 28, 24, 1.0), (7, 32, 32, 1.0)]


def noise(key: int, width: int, height: int, colours: int) -> Image.Image:
    """Blocks of colour with grain, as hard on a resize as pictures get."""
    draws = np.random.default_rng(key)
    blocks = draws.integers(0, 256, (height // 6 + 1, width // 6 + 1, colours)).repeat(6, 0).repeat(6, 1)
    pixels = np.clip(blocks[:height, :width] + draws.integers(-40, 41, (height, width, colours)), 0, 255)
    return Image.fromarray(np.squeeze(pixels.astype(np.uint8)))


def stream_of(key: int, count: int, width: int, height: int, colours: int) -> Frames:
    def jpeg(image: int) -> bytes:
        buffer = io.BytesIO()
        noise(1000 * key + image, width, height, colours).save(buffer, "JPEG", quality=95)
        return buffer.getvalue()

    jpegs = [jpeg(image) for image in range(count)]
    return Frames.of(jpegs, width=width, height=height, components=colours, encoder={})


def record_of(make_record, number: int) -> Record:
    frames, width, height, scale = VIDEOS[number]
    return replace(
        make_record(f"v_{number}", frames=frames, label=number % 3),
        rgb=stream_of(2 * number, frames, width, height, 3),
        flow=stream_of(2 * number + 1, 2 * (frames - 1), int(width * scale), int(height * scale), 1),
        flow_made=FlowMade(method="drawn", parameters={}, library="none", scale=scale),
    )


@pytest.fixture(scope="module")
def split(make_record, tmp_path_factory) -> Iterator[Split]:
    folder = tmp_path_factory.mktemp("loading") / "split1"
    records = [record_of(make_record, number) for number in range(len(VIDEOS))]
    part = [[(key_of(record.name), encode(record)) for record in records]]
    classes = ["class0", "class1", "class2"]
    write_split(folder, dataset="drawn", split=1, classes=classes, made={}, parts={"train": part, "test": part})
    with open_split(folder) as split:
        yield split


@pytest.fixture(scope="module")
def loose(split, tmp_path_factory) -> Path:
    """Every frame of every record as a file: <record>/rgb-<frame>.jpg, <record>/flow-<image>.jpg."""
    folder = tmp_path_factory.mktemp("loose")
    for number in range(len(VIDEOS)):
        record = decode_record(split.read("train", number))
        (folder / str(number)).mkdir()
        for name, frames in (("rgb", record.rgb), ("flow", record.flow)):
            for image in range(len(frames)):
                (folder / str(number) / f"{name}-{image}.jpg").write_bytes(frames[image])
    return folder


def config(**data) -> Config:
    data = {"frames": 3, "stack": STACK, "stride": (1, 3), "crop": CROP, "threads": 2, **data}
    return Config(data=Data(**data), train=Train(seed=SEED, batch=BATCH, sub_batch=SUB_BATCH))


# The slow loader


def look(path: Path, colour: str, view: View, frame: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """One loose JPEG through a view, by Pillow: (C, H, W), 0..255; not yet flow's other sign.

    Resized as floats: as bytes Pillow rounds twice and is itself up to a level off.
    """
    image = Image.open(path).convert(colour)
    across, down = image.width / frame[1], image.height / frame[0]
    left, top, right, bottom = view.left * across, view.top * down, view.right * across, view.bottom * down
    image = image.crop((math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom)))
    box = (left % 1, top % 1, right - math.floor(left), bottom - math.floor(top))
    seen = [band.convert("F").resize((size[1], size[0]), Resampling.BILINEAR, box=box) for band in image.split()]
    return np.stack([band.transpose(Transpose.FLIP_LEFT_RIGHT) if view.mirror else band for band in seen])


def slow_clip(
    folder: Path, instants: clips.Instants, view: View, frame: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """RGB (T, 3, H, W) and flow (T, 2L, H, W), 0..255, every image opened again for every use."""
    rgb = [look(folder / f"rgb-{t}.jpg", "RGB", view, frame, size) for t in instants.rgb.tolist()]
    flow = []
    for pairs in instants.flow.tolist():
        planes = []
        for pair in pairs:
            if pair == clips.NO_PAIR:
                planes += [np.full(size, 128, np.float32)] * 2
                continue
            [u] = look(folder / f"flow-{2 * pair}.jpg", "L", view, frame, size)
            [v] = look(folder / f"flow-{2 * pair + 1}.jpg", "L", view, frame, size)
            planes += [255 - u if view.mirror else u, v]
        flow.append(np.stack(planes))
    stacked = [np.stack(planes) if planes else np.zeros((0, 0, *size), np.float32) for planes in (rgb, flow)]
    return stacked[0], stacked[1]


def assert_within_a_level(found: torch.Tensor, expected: np.ndarray) -> None:
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    assert float(np.abs(found.float().numpy() - expected).max(initial=0)) <= 1.001


def slow_choice(settings: Config, stage: str, position: int, n: int) -> clips.Instants:
    """Which instants the blueprint says stand at a position: one alone, T of them with the sub-batch's stride."""
    data, draws = settings.data, Draws.of(SEED, stage, "window", position)
    if stage != "joint":
        return clips.only(clips.single(n, stack=STACK, draws=draws), stage)
    stride = Draws.of(SEED, "joint", "stride", position // SUB_BATCH).integer(*data.stride)
    return clips.training(n, frames=data.frames, stack=STACK, stride=stride, draws=draws)


@pytest.mark.parametrize("crops", CROPS)
@pytest.mark.parametrize("stage", ["joint", "appearance", "motion"])
def test_training_batches_agree_with_the_slow_loader(split, loose, stage, crops):
    settings, recipe = config(), Recipe(epochs=1, rates=(1.0,), crops=crops)
    positions, mirrored = [], set()
    with loading.training_stream(split, settings, stage, pinned=False) as stream:
        batches = [
            loading.training_batch(decoded, settings, recipe, stage) for _ in range(3) for decoded in stream.step()
        ]
    for batch in batches:
        for slot, position in enumerate(batch.positions):
            epoch, within = divmod(position, len(VIDEOS))
            number = int(full(len(VIDEOS), seed=SEED, epoch=epoch)[within])
            n, width, height, scale = VIDEOS[number]
            draws = Draws.of(SEED, stage, "view", position)
            view = crop_view(crops, height, width, CROP, draws, even=scale != 1.0)
            instants = slow_choice(settings, stage, position, n)
            rgb, flow = slow_clip(loose / str(number), instants, view, (height, width), (CROP, CROP))
            assert int(batch.labels_B[slot]) == number % 3
            for found, expected in ((batch.rgb_BTCHW, rgb), (batch.flow_BTCHW, flow)):
                if len(expected):
                    assert_within_a_level(found[slot], expected)
                else:
                    assert found is None
            mirrored.add(view.mirror)
        positions += batch.positions
    assert positions == list(range(3 * BATCH))
    assert mirrored == ({False} if crops == "centre" else {False, True})


def test_a_batch_has_the_shapes_that_the_network_wants(split):
    settings = config()
    for stage, instants in (("joint", 3), ("appearance", 1), ("motion", 1)):
        with loading.training_stream(split, settings, stage, pinned=False) as stream:
            decoded = next(stream.step())
        batch = loading.training_batch(decoded, settings, settings.train.joint, stage)
        if stage != "motion":
            assert batch.rgb_BTCHW.shape == (SUB_BATCH, instants, 3, CROP, CROP)
        if stage != "appearance":
            assert batch.flow_BTCHW.shape == (SUB_BATCH, instants, 2 * STACK, CROP, CROP)
        assert (batch.labels_B.shape, batch.labels_B.dtype) == ((SUB_BATCH,), torch.int64)


def test_clips_of_a_sub_batch_share_a_stride_and_sub_batches_draw_their_own(split):
    with loading.training_stream(split, config(stride=(2, 6)), "joint", pinned=False) as stream:
        strides = [set(np.diff(stream.choose(position, 200).rgb).tolist()) for position in range(40 * SUB_BATCH)]
    by_sub_batch = [set().union(*strides[start : start + SUB_BATCH]) for start in range(0, len(strides), SUB_BATCH)]
    assert {len(shared) for shared in by_sub_batch} == {1}
    assert set().union(*by_sub_batch) == {2, 3, 4, 5, 6}


def test_the_quirks_of_the_original_are_used_when_asked_for(split):
    settings = config(original_crop_corners=True, original_window_start=True, stride=(1, 1), crop=32)
    with loading.training_stream(split, settings, "joint", pinned=False) as stream:
        starts = {int(stream.choose(position, 14).rgb[0]) for position in range(300)}
        decoded = next(stream.step())
    assert starts == set(range(3, 10))  # the first would be 2
    found = loading.training_batch(decoded, settings, settings.train.joint, "joint")
    for slot, clip in enumerate(decoded.clips):
        draws = Draws.of(SEED, "joint", "view", clip.position)
        even = clip.flow[2:] != clip.size
        view = crop_view(settings.train.joint.crops, *clip.size, CROP, draws, original_crop_corners=True, even=even)
        rgb, _ = loading.clip_tensors(decoded, clip, view, size=CROP)
        assert torch.equal(found.rgb_BTCHW[slot], rgb)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_do_not_depend_on_threads_or_on_where_training_was_stopped(split, threads):
    def batches(threads: int, start=None, steps=3):
        settings = config(threads=threads)
        with loading.training_stream(split, settings, "joint", pinned=False, start=start) as stream:
            for _ in range(steps):
                for decoded in stream.step():
                    yield loading.training_batch(decoded, settings, settings.train.joint, "joint"), stream.state()

    whole = list(batches(2))
    state = whole[BATCH // SUB_BATCH - 1][1]
    assert state.position == BATCH
    again = list(batches(threads, steps=1)) + list(batches(threads, start=state, steps=2))
    for (one, _), (other, _) in zip(whole, again, strict=True):
        assert one.positions == other.positions
        assert torch.equal(one.rgb_BTCHW, other.rgb_BTCHW)
        assert torch.equal(one.flow_BTCHW, other.flow_BTCHW)


def test_the_stages_draw_for_themselves(split):
    drawn = []
    for stage in ("appearance", "motion"):
        with loading.training_stream(split, config(), stage, pinned=False) as stream:
            drawn.append([Draws.of(SEED, stage, "view", clip.position).word() for clip in next(stream.step()).clips])
    assert not set(drawn[0]) & set(drawn[1])


def test_merged_batches_are_their_sub_batches_one_after_the_other(split):
    settings = config()
    for stage in ("joint", "motion"):
        with loading.training_stream(split, settings, stage, pinned=False) as stream:
            some = [
                loading.training_batch(decoded, settings, settings.train.joint, stage)
                for _ in range(3)
                for decoded in stream.step()
            ]
        merged = list(loading.merged(iter(some), 4))
        assert [batch.groups for batch in merged] == [4, 2]
        assert [position for batch in merged for position in batch.positions] == list(range(3 * BATCH))
        assert torch.equal(
            torch.cat([batch.flow_BTCHW for batch in merged]), torch.cat([one.flow_BTCHW for one in some])
        )
        assert torch.equal(torch.cat([batch.labels_B for batch in merged]), torch.cat([one.labels_B for one in some]))
        assert (merged[0].rgb_BTCHW is None) == (stage == "motion")
        assert next(loading.merged(iter(some), 1)) is some[0]


# Testing


@pytest.mark.parametrize("protocol", ["dense", "centre"])
def test_every_view_that_is_scored_agrees_with_the_slow_loader(split, loose, protocol):
    settings = config().model_copy(update={"evaluate": Evaluate(protocol=protocol, frames=5)})
    for number, decoded in enumerate(loading.evaluation_clips(split, "test", settings)):
        [clip] = decoded.clips
        n, width, height, _ = VIDEOS[number]
        assert (clip.record, clip.size, clip.label) == (number, (height, width), number % 3)
        instants = clips.testing(n, frames=5, stack=STACK)
        views = loading.test_views(settings, clip.size)
        assert [view.mirror for view, _ in views] == [False, True]
        for view, side in views:
            size = (height, width) if side is None else (side, side)
            rgb, flow = slow_clip(loose / str(number), instants, view, (height, width), size)
            found = loading.clip_tensors(decoded, clip, view, size=side)
            assert_within_a_level(found[0], rgb)
            assert_within_a_level(found[1], flow)
            if protocol == "dense":
                assert np.array_equal(found[0].numpy(), rgb)  # whole frames are not resized at all


def test_the_views_are_the_whole_frame_or_the_middle_and_their_mirror_images():
    base = config()
    dense = loading.test_views(base, (40, 48))
    assert dense == [(whole_view(40, 48), None), (whole_view(40, 48).mirrored(), None)]
    centre = base.model_copy(update={"evaluate": Evaluate(protocol="centre", mirror=False)})
    assert loading.test_views(centre, (40, 48)) == [(View(4.0, 8.0, 36.0, 40.0), CROP)]
    assert loading.test_views(centre, (24, 28)) == [(View(0.0, 0.0, 24.0, 28.0), CROP)]


def test_every_video_is_scored_once_and_stopping_early_leaves_no_thread(split):
    clips_once = [
        clip.record for decoded in loading.evaluation_clips(split, "test", config()) for clip in decoded.clips
    ]
    assert clips_once == list(range(len(VIDEOS)))
    some = loading.evaluation_clips(split, "test", config())
    next(some)
    some.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stmul-read")]


@pytest.mark.parametrize("mirror", [False, True])
def test_a_video_of_one_frame_shows_no_motion(split, mirror):
    settings = config()
    view = whole_view(40, 44)
    [decoded] = [one for one in loading.evaluation_clips(split, "test", settings) if one.clips[0].record == 2]
    _, flow = loading.clip_tensors(decoded, decoded.clips[0], view.mirrored() if mirror else view, size=None)
    assert flow.shape == (25, 2 * STACK, 40, 44)
    assert (flow == 128).all()


def test_threads_are_as_many_as_cores_unless_said_and_no_more_ahead_than_memory_holds(split):
    def reading(clips: int = SUB_BATCH, **data) -> loading.Reading:
        return loading.reading_of(split, "train", Data(stack=STACK, **data), clips=clips, instants=3)

    assert reading().threads == cores()
    assert reading(threads=3) == loading.Reading(threads=3, ahead=6)
    largest = max(
        3 * width * height + 2 * STACK * int(width * scale) * int(height * scale) for _, width, height, scale in VIDEOS
    )
    clips = 2**20 // (3 * largest * 5)  # five sub-batches in a MiB
    assert reading(clips, threads=3, memory=1) == loading.Reading(threads=3, ahead=2)
    assert reading(clips, threads=9, memory=1) == loading.Reading(threads=5, ahead=1)
    assert reading(100 * clips, threads=9, memory=1) == loading.Reading(threads=1, ahead=1)


TEAMS = """
import os, sys
import torch
from shards.split import open_split
from stmul.config import Config, Data, Recipe, Train
from stmul.loading import batch_stream

torch.set_num_threads(2)
torch.rand(1000, 1000).add_(1)  # the team of this thread
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
data = Data(frames=5, stack=10, stride=(3, 5), crop=64, threads=2)  # enough pixels for torch to share them out
joint = Recipe(epochs=1, rates=(1.0,), crops=sys.argv[2])
config = Config(data=data, train=Train(batch=6, sub_batch=3, joint=joint))
with open_split(sys.argv[1]) as split, batch_stream(split, config, "joint", device=torch.device("cpu")) as stream:
    for _ in range(4):
        for make in stream.step():
            make()
    print(threads() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")
@pytest.mark.parametrize("crops", ["border", "independent"])  # kept as they are, and resized
def test_reading_threads_begin_no_teams_of_their_own(make_split, tmp_path, crops):
    make_split(tmp_path / "split1", train=6, test=1, width=96, height=80, frames=30)
    command = [sys.executable, "-c", TEAMS, str(tmp_path / "split1"), crops]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert int(done.stdout) == 2  # the reading threads
