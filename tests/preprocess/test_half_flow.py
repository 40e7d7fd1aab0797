"""Flow at half its size: exact means, the whole picture onto the whole, made anew where the scale was another."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs import SettingsError, load
from preprocess.build import build
from preprocess.building.engines import here
from preprocess.building.estimate import estimate_build
from preprocess.building.plan import planned
from preprocess.building.standing import made_of
from preprocess.config import Flow, Preprocess, PreprocessConfig, Rgb
from preprocess.datasets import find_dataset
from preprocess.errors import PreprocessError, VideoError
from preprocess.extracted import record_from_frames
from preprocess.flow import compute, gray_of
from preprocess.flows.half import halved, halved_levels
from preprocess.record import gray_jpeg, how_made, make_record
from preprocess.sources.listing import Video
from preprocess.video import read_video
from shards.check import problems
from shards.copy import copy_split
from shards.format import decode
from shards.manifest import Manifest
from shards.picture import record_sheet
from shards.record import dequantise, quantise
from shards.split import open_split
from stmul.__main__ import main

FULL = Preprocess(rgb=Rgb(short_side=32), flow=Flow(method="dis"), per_shard=2, workers=1)
HALF = FULL.model_copy(update={"flow": Flow(method="dis", scale=0.5)})

sides = st.integers(2, 11)
pictures = st.tuples(sides, sides, st.integers(0, 2**32)).map(
    lambda drawn: np.random.default_rng(drawn[2]).integers(0, 256, drawn[:2], dtype=np.uint8)
)


def video_of(path: Path) -> Video:
    return Video(name=path.stem, path=path, label=0, class_name="a")


def levels_of(jpeg: bytes | memoryview) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as picture:
        return np.asarray(picture.convert("L"))


# The arithmetic


def overlap(pixel: int, output: int, size: int) -> Fraction:
    """How much of an input pixel lies under an output pixel, as areas are defined."""
    step = Fraction(size, size // 2)
    return max(Fraction(0), min(Fraction(pixel + 1), (output + 1) * step) - max(Fraction(pixel), output * step))


def by_area(picture: np.ndarray) -> list[list[Fraction]]:
    height, width = picture.shape
    means = []
    for i in range(height // 2):
        rows = [(y, part) for y in range(height) if (part := overlap(y, i, height))]
        means.append([])
        for j in range(width // 2):
            columns = [(x, part) for x in range(width) if (part := overlap(x, j, width))]
            total = sum(down * across * int(picture[y, x]) for y, down in rows for x, across in columns)
            means[-1].append(total / (sum(part for _, part in rows) * sum(part for _, part in columns)))
    return means


@given(pictures)
def test_each_level_is_the_exact_mean_of_the_area_under_it_rounded_once(picture):
    means = by_area(picture)
    assert halved_levels(picture).tolist() == [[round(mean) for mean in row] for row in means]  # half to even
    fields = halved(np.stack([picture, 255.0 - picture], axis=2).astype(np.float32))
    assert np.abs(fields[..., 0] - np.array(means, dtype=float)).max() < 1e-9
    assert np.abs(fields[..., 0] + fields[..., 1] - 255).max() < 1e-9


@given(pictures)
def test_the_mean_of_the_whole_picture_stays(picture):
    assert np.isclose(halved(picture[..., None].astype(np.float32)).mean(), picture.mean(), rtol=1e-12)


@given(sides, sides)
def test_a_structure_stays_where_it_is_in_the_picture(height, width):
    y, x = np.mgrid[:height, :width] + 0.5  # each pixel says where its middle is
    found = halved(np.stack([x, y], axis=2).astype(np.float32))
    rows, columns = height // 2, width // 2
    assert np.abs(found[..., 0] - (np.arange(columns) + 0.5) * width / columns).max() <= 0.25 / columns
    assert np.abs(found[..., 1] - ((np.arange(rows) + 0.5) * height / rows)[:, None]).max() <= 0.25 / rows


# A record


@pytest.mark.parametrize(("width", "height", "short_side"), [(64, 48, 48), (40, 30, 32), (50, 34, 33), (34, 52, 17)])
def test_a_record_holds_the_full_flow_averaged_and_says_so(tmp_path, write_video, width, height, short_side):
    path = write_video(tmp_path / "v.avi", frames=4, width=width, height=height, dx=2, dy=-1)
    full, half = (
        make_record(video_of(path), settings.model_copy(update={"rgb": Rgb(short_side=short_side)}))
        for settings in (FULL, HALF)
    )
    assert bytes(half.rgb.blob) == bytes(full.rgb.blob)
    assert (half.flow.width, half.flow.height) == (full.rgb.width // 2, full.rgb.height // 2)
    assert (full.flow_made.scale, half.flow_made.scale) == (1.0, 0.5)
    frames = read_video(path, short_side).frames_THWC
    for pair, field in enumerate(compute("dis", [gray_of(frame) for frame in frames])):  # at the whole size
        for axis in (0, 1):
            levels = levels_of(half.flow[2 * pair + axis])
            assert levels.shape == (half.flow.height, half.flow.width)
            assert np.abs(levels.astype(int) - quantise(halved(field)[..., axis])).max() <= 6  # JPEG's loss
    motion = [np.median(dequantise(levels_of(half.flow[axis]))) for axis in (0, 1)]
    assert np.abs(np.array(motion) - np.array([2, -1]) * short_side / min(width, height)).max() < 0.25  # whole pixels


def test_the_whole_size_is_made_as_it_ever_was(tmp_path, write_video):
    assert Flow().scale == 1.0
    assert "flow_scale" not in how_made(FULL)  # so shards that never heard of it stay what is asked for
    assert how_made(HALF) == how_made(FULL) | {"flow_scale": 0.5}
    record = make_record(video_of(write_video(tmp_path / "v.avi", frames=2, width=40, height=30)), FULL)
    frames = [gray_of(frame) for frame in read_video(tmp_path / "v.avi", 32).frames_THWC]
    (field,) = compute("dis", frames)
    assert bytes(record.flow[0]) == gray_jpeg(np.ascontiguousarray(quantise(field)[..., 0]), 95)


def test_a_video_of_one_frame_has_no_flow_at_half_the_size_either(tmp_path, write_video):
    record = make_record(video_of(write_video(tmp_path / "v.avi", frames=1, width=40, height=30)), HALF)
    assert (len(record.flow), record.flow.width, record.flow.height) == (0, 21, 16)


@pytest.mark.parametrize("scale", [0.25, 2, 0, -0.5])
def test_other_scales_are_refused_with_those_there_are(scale):
    message = r"preprocess\.flow\.scale=.*: expected 1 \(the frames' size\) or 0\.5 \(half of each side\), found "
    with pytest.raises(SettingsError, match=message):
        load(PreprocessConfig, None, [f"preprocess.flow.scale={scale}"])


# Whole builds


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, video_folders: Callable[..., Path]) -> Path:
    """One class of three groups: split n tests on group n. Stored as 46 x 32, with flow of 23 x 16 at half the size."""
    return video_folders(tmp_path_factory.mktemp("data") / "small", classes=("a",), width=50, height=34)


def test_records_of_another_scale_are_made_anew_and_shards_of_another_not_replaced_unasked(root, tmp_path):
    dataset = find_dataset(root)
    assert build(dataset, FULL, tmp_path, engine=here).how == {"made": 3}
    with pytest.raises(PreprocessError, match=r"record.flow_scale: 1.0 then, 0.5 now.*--rebuild"):
        build(dataset, HALF, tmp_path, engine=here)
    assert build(find_dataset(root, split=2), HALF, tmp_path, engine=here).how == {"made": 3}
    assert build(find_dataset(root, split=3), HALF, tmp_path, engine=here).how == {"taken over": 3}
    rebuilt = build(dataset, HALF, tmp_path, engine=here, rebuild=True)
    assert rebuilt.how == {"taken over": 3}  # from the splits that were made so
    assert rebuilt.manifest.made["record"]["flow_scale"] == 0.5
    with pytest.raises(PreprocessError, match=r"record.flow_scale: 0.5 then, 1.0 now"):
        build(dataset, FULL, tmp_path, engine=here)
    assert not build(dataset, HALF, tmp_path, engine=here).new


def test_what_a_build_takes_is_told_for_the_smaller_flow(root):
    dataset = find_dataset(root)
    full, half = (estimate_build(dataset, settings, 1, planned(dataset, 2)) for settings in (FULL, HALF))
    assert (half.frames, half.width, half.height) == (full.frames, full.width, full.height)
    assert half.bytes < full.bytes


def shown(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_the_commands_build_show_verify_and_copy_it(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    small = ["--set", "preprocess.rgb.short_side=32", "--flow", "dis", "--workers", "1"]
    said = shown("preprocess", "shards", "--root", root, *small, "--flow-scale", "0.5").output
    assert "; flow is stored at half the size" in said
    lines = shown("shards", "show", "data/small/split1").output
    assert "46x32" in lines
    assert "23x16" in lines
    assert "flow_scale 0.5" in lines
    named = ("--record", "v_a_g01_c01", "--sheet", "sheet.png")
    assert "flow      23x16" in shown("shards", "show", "data/small/split1", "--part", "test", *named).output
    shown("shards", "copy", "data/small/split1", "small.lmdb")
    shown("shards", "verify", "small.lmdb")
    shown("shards", "verify", "data/small/split1")
    with open_split("data/small/split1") as tars, open_split("small.lmdb") as database:
        assert tars.manifest.digest == database.manifest.digest
        record = decode(database.read("test", 0))
        assert (record.flow.width, record.flow.height, record.flow_made.scale) == (23, 16, 0.5)
        assert list(problems(database)) == []
    refused = CliRunner().invoke(main, ["preprocess", "shards", "--root", str(root), "--flow-scale", "0.3"])
    assert refused.exit_code == 2
    assert "--flow-scale 0.3: preprocess.flow.scale: expected 1 (the frames' size) or 0.5" in refused.output


def test_pictures_show_smaller_flow_as_large_as_the_frames(root, tmp_path):
    with open_split(build(find_dataset(root), HALF, tmp_path, engine=here).folder) as split:
        half = decode(split.read("train", 0))
    video = next(video for video in find_dataset(root).parts["train"] if video.name == half.name)
    sheets = [np.asarray(record_sheet(record)).astype(int) for record in (make_record(video, FULL), half)]
    assert sheets[0].shape == sheets[1].shape
    assert np.abs(sheets[0] - sheets[1]).mean() < 12  # grey levels: the same picture, a little softer


# Frames and flow that were extracted before


def extracted(root: Path, size: tuple[int, int] = (24, 18), flow: tuple[int, int] = (24, 18), mode: str = "L") -> Video:
    """Three frames and two flow pairs of noise, as another program wrote them."""
    draws = np.random.default_rng(5)
    for folder, count, (width, height), kind in (
        ("images", 3, size, "RGB"),
        ("flows/u", 2, flow, mode),
        ("flows/v", 2, flow, mode),
    ):
        (root / folder / "v").mkdir(parents=True)
        for number in range(1, count + 1):
            blocks = draws.integers(0, 256, (height // 3 + 1, width // 3 + 1), dtype=np.uint8).repeat(3, 0).repeat(3, 1)
            picture = Image.fromarray(blocks[:height, :width]).convert(kind)
            picture.save(root / folder / "v" / f"frame{number:06}.jpg", quality=95)
    folders = tuple(root / name / "v" for name in ("flows/u", "flows/v"))
    return Video(name="v", path=root / "images" / "v", label=0, class_name="a", flow_path=folders)


@pytest.mark.parametrize("size", [(24, 18), (25, 19), (33, 16)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_extracted_flow_is_decoded_averaged_exactly_and_written_once(tmp_path, size, mode):
    video = extracted(tmp_path, size, size, mode)
    full, half = (record_from_frames(video, settings) for settings in (FULL, HALF))
    assert bytes(half.rgb.blob) == bytes(full.rgb.blob)
    assert half.source == full.source
    assert (half.flow.width, half.flow.height, half.flow.components) == (size[0] // 2, size[1] // 2, 1)
    assert (half.flow_made.method, half.flow_made.scale) == ("extracted", 0.5)
    assert (half.rgb.encoder, half.flow.encoder["quality"]) == ({"taken_over": True}, 95)
    for image in range(4):
        levels = levels_of(video.flow_path[image % 2].joinpath(f"frame{image // 2 + 1:06}.jpg").read_bytes())
        assert bytes(half.flow[image]) == gray_jpeg(halved_levels(levels), 95)
        assert bytes(full.flow[image]) == (video.flow_path[image % 2] / f"frame{image // 2 + 1:06}.jpg").read_bytes()


def test_extracted_flow_that_is_smaller_than_its_frames_is_taken_over(tmp_path):
    video = extracted(tmp_path, (48, 36), (24, 18))
    assert bytes(record_from_frames(video, HALF).flow.blob) == bytes(record_from_frames(video, FULL).flow.blob)
    assert record_from_frames(video, HALF).flow_made.scale == 0.5


def test_flow_of_a_few_pixels_is_not_halved(tmp_path):
    with pytest.raises(VideoError, match=r"v: flow of 24x15 is too small to be halved; expected at least 16 .*scale 1"):
        record_from_frames(extracted(tmp_path, (24, 15), (24, 15)), HALF)


def test_flow_that_cannot_be_decoded_names_its_file(tmp_path):
    video = extracted(tmp_path)
    path = tmp_path / "flows/v/v/frame000002.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + whole[-2:])
    assert len(record_from_frames(video, FULL).flow) == 4  # nothing is decoded
    with pytest.raises(VideoError, match=r"flows/v/v/frame000002\.jpg: .*extract the flow again"):
        record_from_frames(video, HALF)


def test_extracted_shards_say_their_scale_too(tmp_path):
    for name in ("v_a_g01_c01", "v_a_g08_c01"):
        video = extracted(tmp_path / name)
        for folder in (video.path, *video.flow_path):
            target = tmp_path / "all" / folder.parent.relative_to(tmp_path / name) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    lists = tmp_path / "all" / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 a\n")
    (lists / "trainlist01.txt").write_text("a/v_a_g08_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("a/v_a_g01_c01.avi\n")
    dataset = find_dataset(tmp_path / "all")
    assert made_of(dataset, FULL)["record"] == {"taken_over": True}
    build(dataset, FULL, tmp_path / "out", engine=here)
    with pytest.raises(PreprocessError, match=r"record.flow_scale: 1.0 then, 0.5 now"):
        build(dataset, HALF, tmp_path / "out", engine=here)
    manifest = build(dataset, HALF, tmp_path / "out", engine=here, rebuild=True).manifest
    assert isinstance(manifest, Manifest)
    assert manifest.made["record"]["flow_scale"] == 0.5
    copy_split(tmp_path / "out" / dataset.name / "split1", tmp_path / "copy.lmdb")
    for location in (tmp_path / "out" / dataset.name / "split1", tmp_path / "copy.lmdb"):
        with open_split(location) as split:
            assert list(problems(split)) == []
            assert split.index("train").row(0).flow.width == 12
