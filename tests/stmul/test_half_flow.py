"""Flow stored at half its size is seen where, and as large as, flow at the whole size: after any crop, mirrored or not.

Flow is drawn, so what a view should show is known at every place. A view is compared in four quarters, each on its
own: where its structures lie (found to a few hundredths of a pixel by least squares over all planes), and how large
the flow is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from preprocess.config import Flow, Preprocess, Rgb
from preprocess.record import flow_jpegs, make_record, rgb_jpeg
from preprocess.sources.listing import Video
from shards.draws import Draws
from shards.format import encode, key_of
from shards.record import FlowMade, Frames, Record, Source, dequantise
from shards.split import Split, open_split
from shards.writer import write_split
from stmul import clips, loading
from stmul.augment import CROPS, View, crop_view, whole_view
from stmul.config import Config, Data, Evaluate, Network, Recipe, StreamNetwork, Train
from stmul.evaluate import Networks, evaluate
from stmul.network import TwoStream

CPU = torch.device("cpu")
STACK, CROP, SEED, FRAMES = 4, 48, 3, 12
SIZES = [(64, 84), (65, 83), (60, 81)]  # height and width: both even, both odd, one of each

POSITION = 0.25  # pixels of the frame: how far structures may lie from where they are
VALUE = 0.2  # pixels of flow: how far it may be from what it is, on average; what is drawn is 3 on average

Field = NDArray[np.float64]  # (..., H, W) of one part of the flow, in pixels
Spoil = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Blobs:
    """Flow made of blobs that move: a sum of Gaussians, known at every place and time. Another for each axis."""

    height: int
    width: int

    def at(self, rows: NDArray[np.float64], columns: NDArray[np.float64], pair: int) -> Field:
        """The flow (2, rows, columns) at these places, in pixels; the middle of the first pixel is 0.5."""
        draws = np.random.default_rng([self.height, self.width])
        count = (2, 40)
        middles = [draws.uniform(-4, side + 4, count) for side in (self.height, self.width)]
        speeds = [draws.uniform(-1.5, 1.5, count) for _ in middles]
        heights, widths = draws.uniform(-9, 9, count), draws.uniform(5, 7, count)
        down, across = (
            np.exp(-(((places - (middle + speed * pair)[..., None]) / widths[..., None]) ** 2) / 2)
            for places, middle, speed in zip((rows, columns), middles, speeds, strict=True)
        )
        return np.asarray(np.einsum("ab,abh,abw->ahw", heights, down, across))

    def field(self, pair: int) -> NDArray[np.float32]:
        """The flow at every pixel, (H, W, 2)."""
        field = self.at(np.arange(self.height) + 0.5, np.arange(self.width) + 0.5, pair)
        return field.transpose(1, 2, 0).astype(np.float32)

    def seen(self, view: View, pair: int, size: tuple[int, int]) -> Field:
        """What a view should show, (2, rows, columns): x turns round in a mirror."""
        rows = view.top + (np.arange(size[0]) + 0.5) * (view.bottom - view.top) / size[0]
        columns = view.left + (np.arange(size[1]) + 0.5) * (view.right - view.left) / size[1]
        found = self.at(rows, columns[::-1] if view.mirror else columns, pair)
        return found * np.array([-1.0 if view.mirror else 1.0, 1.0])[:, None, None]


def record_of(number: int, settings: Flow, spoil: Spoil | None) -> Record:
    """A record with drawn flow, stored by the functions that store computed flow; `spoil` plants a mistake."""
    height, width = SIZES[number]
    blobs, scale = Blobs(height, width), settings.scale
    fields = [blobs.field(pair) for pair in range(FRAMES - 1)]
    if spoil is not None:
        fields, settings = [spoil(field.astype(np.float64)) for field in fields], Flow()
    jpegs = [jpeg for field in fields for jpeg in flow_jpegs(field, settings)]
    noise = np.random.default_rng(number).integers(0, 256, (FRAMES, height, width, 3), dtype=np.uint8)
    stored = (int(height * scale), int(width * scale))
    assert spoil is None or fields[0].shape[:2] == stored
    return Record(
        name=f"v_{number}",
        label=number,
        class_name=f"class{number}",
        fps=(25, 1),
        source=Source(sha256="0" * 64, bytes=1),
        decoded_frames=FRAMES,
        header_frames=FRAMES,
        rgb=Frames.of([rgb_jpeg(frame, 90) for frame in noise], width=width, height=height, components=3, encoder={}),
        flow=Frames.of(jpegs, width=stored[1], height=stored[0], components=1, encoder={}),
        flow_made=FlowMade(method="drawn", parameters={}, library="none", scale=scale),
    )


def split_of(folder: Path, scale: float, spoil: Spoil | None = None) -> Split:
    records = [record_of(number, Flow(scale=scale), spoil) for number in range(len(SIZES))]
    return written(folder, records)


def written(folder: Path, records: list[Record]) -> Split:
    part = [[(key_of(record.name), encode(record)) for record in records]]
    names = [record.class_name for record in records]
    write_split(folder, dataset="drawn", split=1, classes=names, made={}, parts={"train": part, "test": part})
    return open_split(folder)


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Iterator[Split]:
    with split_of(tmp_path_factory.mktemp("full") / "split1", 1.0) as split:
        yield split


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Iterator[Split]:
    with split_of(tmp_path_factory.mktemp("half") / "split1", 0.5) as split:
        yield split


# What is seen


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """One clip through one view: its flow, what it should be, and how large an output pixel is in the frame."""

    flow: Field  # (planes, H, W), pixels
    truth: Field
    rgb: torch.Tensor
    view: View


def truth_of(record: int, view: View, pairs: NDArray[np.int64], size: tuple[int, int]) -> Field:
    blobs = Blobs(*SIZES[record])
    return np.concatenate([blobs.seen(view, int(pair), size) for pair in pairs.reshape(-1)])


def settings_for(crops: str = "independent") -> tuple[Config, Recipe]:
    data = Data(frames=2, stack=STACK, stride=(1, 3), crop=CROP, threads=1)
    return Config(data=data, train=Train(seed=SEED, batch=6, sub_batch=6)), Recipe(epochs=1, rates=(1.0,), crops=crops)


def pixels(flow: torch.Tensor) -> Field:
    return np.asarray(dequantise(flow.numpy()), dtype=np.float64).reshape(-1, *flow.shape[-2:])


def in_training(split: Split, crops: str) -> Iterator[Seen]:
    """Twelve clips as training draws them, in boxes of even pixels whatever the size of the flow."""
    config, recipe = settings_for(crops)
    with loading.training_stream(split, config, "joint", pinned=False) as stream:
        for _ in range(2):
            for loaded in stream.step():
                decoded = loaded.to(CPU)
                batch = loading.training_batch(decoded, config, recipe, "joint")
                for slot, clip in enumerate(decoded.clips):
                    draws = Draws.of(SEED, "joint", "view", clip.position)
                    view = crop_view(crops, *clip.size, CROP, draws, even=True)
                    rgb, flow = loading.clip_tensors(decoded, clip, view, size=CROP)
                    assert rgb is not None
                    assert flow is not None
                    if clip.flow[2:] != clip.size:  # training looks at full-size flow in odd boxes as well
                        assert torch.equal(flow, batch.flow_BTCHW[slot])
                        assert torch.equal(rgb, batch.rgb_BTCHW[slot])
                    chosen = stream.choose(clip.position, FRAMES)
                    yield Seen(
                        flow=pixels(flow),
                        truth=truth_of(clip.record, view, chosen.flow, (CROP, CROP)),
                        rgb=rgb,
                        view=view,
                    )


def in_testing(split: Split, protocol: str) -> Iterator[Seen]:
    """Every test clip in every view it is scored in."""
    config = settings_for()[0].model_copy(update={"evaluate": Evaluate(protocol=protocol, frames=2)})
    for loaded in loading.evaluation_clips(split, "test", config):
        decoded = loaded.to(CPU)
        (clip,) = decoded.clips
        chosen = clips.testing(FRAMES, frames=2, stack=STACK)
        for view, side in loading.test_views(config, clip.size):
            rgb, flow = loading.clip_tensors(decoded, clip, view, size=side)
            size = (side, side) if side else clip.size
            truth = truth_of(clip.record, view, chosen.flow, size)
            yield Seen(flow=pixels(flow), truth=truth, rgb=rgb, view=view)


# How far it is from what it should be


def quarters(planes: Field) -> Iterator[Field]:
    height, width = planes.shape[-2:]
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            yield planes[:, rows, columns]


def shift(found: Field, expected: Field) -> tuple[float, float]:
    """Down and across, in pixels of the planes, by how much structures of `found` lie beside those of `expected`.

    Least squares of found = gain (expected - shift . gradient) + offset over all planes: blur, which lowers and widens
    a structure about its middle, moves nothing.
    """
    steps = np.gradient(expected, axis=(1, 2))
    terms = np.stack([expected, steps[0], steps[1], np.ones_like(expected)], axis=-1)[:, 1:-1, 1:-1].reshape(-1, 4)
    gain, down, across, _ = np.linalg.lstsq(terms, found[:, 1:-1, 1:-1].reshape(-1), rcond=None)[0]
    return -down / gain, -across / gain


def displaced(found: Field, expected: Field, view: View) -> float:
    """The largest shift of a quarter, in pixels of the frame."""
    height, width = found.shape[-2:]
    zoom = np.array([(view.bottom - view.top) / height, (view.right - view.left) / width])
    shifts = [shift(one, other) for one, other in zip(quarters(found), quarters(expected), strict=True)]
    return float(np.hypot(*(np.array(shifts) * zoom).T).max())


def apart(found: Field, expected: Field) -> float:
    """The largest mean difference of a quarter, in pixels of flow; x and y each on their own."""
    differences = np.abs(found - expected)
    return max(float(one.mean()) for axis in (0, 1) for one in quarters(differences[axis::2]))


def worst(seen: Iterator[Seen]) -> tuple[float, float]:
    """The largest displacement and the largest mean difference in flow, against what was drawn."""
    found = [(displaced(one.flow, one.truth, one.view), apart(one.flow, one.truth)) for one in seen]
    return max(position for position, _ in found), max(value for _, value in found)


# It is where it should be


@pytest.mark.parametrize("crops", CROPS)
def test_a_training_crop_shows_flow_at_half_its_size_where_it_is_and_as_large_as_it_is(full, half, crops):
    ways = [list(in_training(split, crops)) for split in (full, half)]
    assert {one.view.mirror for one in ways[1]} == ({False} if crops == "centre" else {False, True})
    assert min(float(np.abs(one.truth).mean()) for one in ways[1]) > 1  # there is something to see
    for one, other in zip(*ways, strict=True):
        assert one.view == other.view
        assert torch.equal(one.rgb, other.rgb)
        assert displaced(other.flow, one.flow, one.view) < POSITION
        assert apart(other.flow, one.flow) < VALUE
    position, value = worst(iter(ways[1]))
    assert position < POSITION
    assert value < VALUE


@pytest.mark.parametrize("protocol", ["dense", "centre"])
def test_a_test_view_shows_it_there_too(full, half, protocol):
    ways = [list(in_testing(split, protocol)) for split in (full, half)]
    assert {one.view.mirror for one in ways[1]} == {False, True}
    for one, other in zip(*ways, strict=True):
        assert one.flow.shape == other.flow.shape
        assert torch.equal(one.rgb, other.rgb)
        assert displaced(other.flow, one.flow, one.view) < POSITION
        assert apart(other.flow, one.flow) < VALUE
    position, value = worst(iter(ways[1]))
    assert position < POSITION
    assert value < VALUE


def network_of(split: Split, config: Config) -> TwoStream:
    torch.manual_seed(1)
    return TwoStream(config.network, stack=STACK, classes=len(split.manifest.classes), pool=2).eval()


def test_whole_frames_have_score_maps_of_the_same_size_and_nearly_the_same_scores(full, half):
    small = StreamNetwork(depth=18, width=8)
    config = settings_for()[0].model_copy(
        update={"evaluate": Evaluate(frames=2), "network": Network(appearance=small, motion=small)}
    )
    sizes, scores = [], []
    for split in (full, half):
        network = network_of(split, config)
        maps: list[tuple[torch.Size, ...]] = []
        hook = network.register_forward_hook(lambda _, __, found, maps=maps: maps.append(tuple(m.shape for m in found)))
        scores.append(evaluate(Networks(joint=network), split, config, device=CPU).heads)
        hook.remove()
        sizes.append(maps)
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 2 * len(SIZES)
    assert sizes[0][0][1][-2:] == (1, 2)  # rows and columns of a whole frame of 64 x 84
    spread = np.ptp(scores[0]["motion"])
    assert np.abs(scores[1]["motion"] - scores[0]["motion"]).max() < 0.1 * spread


# With flow that was computed


def discs(path: Path, *, width: int, height: int, frames: int) -> Path:
    """A video of textured discs before a textured ground, each moving at its own steady speed."""
    draws = np.random.default_rng(4)

    def texture(high: int, wide: int) -> NDArray[np.float32]:
        ground = cv2.GaussianBlur(draws.normal(size=(high, wide, 3)).astype(np.float32), (0, 0), 1.5)
        return np.asarray(128 + 45 * ground / ground.std(), dtype=np.float32)

    ground, radius = texture(height, width), height / 5
    moving = [(0.3 * width, 0.3 * height, 2.0, 0.5), (0.7 * width, 0.65 * height, -1.5, -1.0)]
    faces = [texture(height, width) for _ in moving]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 8_000_000
        for t in range(frames):
            picture = ground.copy()
            for face, (x, y, dx, dy) in zip(faces, moving, strict=True):
                move = np.array([[1, 0, t * dx], [0, 1, t * dy]], np.float32)
                there = cv2.warpAffine(face, move, (width, height), borderMode=cv2.BORDER_WRAP)
                rows, columns = np.mgrid[:height, :width]
                inside = np.hypot(columns - x - t * dx, rows - y - t * dy) < radius
                picture[inside] = there[inside]
            levels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("size", "short_side"), [((128, 96), 96), ((150, 112), 97)])  # the second as 128 x 97
def test_flow_computed_from_a_video_is_seen_in_the_same_place_at_both_sizes(tmp_path, size, short_side):
    path = discs(tmp_path / "v.avi", width=size[0], height=size[1], frames=6)
    views = [whole_view(short_side, 128), View(7, 11, 91, 120), View(0, 4, 84, 128, mirror=True)]
    config, seen = settings_for()[0].model_copy(update={"evaluate": Evaluate(frames=1)}), []
    for scale in (1.0, 0.5):
        settings = Preprocess(rgb=Rgb(short_side=short_side), flow=Flow(method="farneback", scale=scale))
        record = make_record(Video(name="v", path=path, label=0, class_name="a"), settings)
        with written(tmp_path / f"split-{scale}", [record]) as split:
            (loaded,) = loading.evaluation_clips(split, "test", config)
            decoded = loaded.to(CPU)
            through = [loading.clip_tensors(decoded, decoded.clips[0], view, size=80)[1] for view in views]
            seen.append([pixels(flow) for flow in through])
    for view, one, other in zip(views, *seen, strict=True):
        zoom = np.array([view.bottom - view.top, view.right - view.left]) / 80
        moved = [np.stack([cv2.GaussianBlur(plane, (0, 0), 2.0) for plane in flow]) for flow in (one, other)]
        assert np.abs(moved[0]).max() > 1  # the discs
        assert np.hypot(*(np.array(shift(moved[1], moved[0])) * zoom)) < POSITION
        assert apart(other, one) < VALUE


# The comparison finds mistakes


def right(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """An independent area mean: OpenCV's."""
    return np.asarray(cv2.resize(field, (field.shape[1] // 2, field.shape[0] // 2), interpolation=cv2.INTER_AREA))


def late(field: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The field half a pixel on, down or across: what comes of one pixel taken out of two."""
    before = np.concatenate([np.take(field, [0], axis), np.delete(field, -1, axis)], axis)
    return right((field + before) / 2)


PLANTED: dict[str, tuple[Spoil, bool, bool]] = {  # the mistake; does it show in positions, and in values
    "nothing": (right, False, False),
    "half a pixel down": (lambda field: late(field, 0), True, False),
    "half a pixel across": (lambda field: late(field, 1), True, False),
    "what is over of odd sides cut": (
        lambda field: right(field[: len(field) // 2 * 2, : field.shape[1] // 2 * 2]),
        True,
        True,
    ),
    "pixels of the smaller picture": (lambda field: right(field) / 2, False, True),
    "a tenth too small": (lambda field: right(field) * 0.9, False, True),
    "x and y swapped": (lambda field: right(field)[..., ::-1], True, True),
    "the picture the other way round": (lambda field: right(field)[:, ::-1], True, True),
}


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_found(tmp_path, mistake):
    spoil, moved, wrong = PLANTED[mistake]
    with split_of(tmp_path / "split1", 0.5, spoil) as split:
        for seen in (in_training(split, "random"), in_testing(split, "dense")):
            position, value = worst(seen)
            assert (position >= POSITION) == moved
            assert value >= VALUE if wrong else moved or value < VALUE


def test_a_mirror_that_does_not_turn_x_round_is_found(half):
    mirrored = [one for one in in_training(half, "random") if one.view.mirror]
    turned = [replace(one, flow=one.flow * np.resize([-1.0, 1.0], len(one.flow))[:, None, None]) for one in mirrored]
    assert worst(iter(mirrored))[1] < VALUE
    assert worst(iter(turned))[1] > 10 * VALUE
