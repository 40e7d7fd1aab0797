"""Decoded frames are the very pixels that Pillow gives, each in its place in the arena."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.errors import CorruptRecordError
from shards.format import key_of
from shards.index import Row, StreamPlace
from shards.record import Frames, Record
from shards.stream import Clip, pair_images
from stmul.arenas import Arenas
from stmul.clips import NO_PAIR, Instants, stacks
from stmul.decode import Decoded, Encoded, decode
from tests.hostile import bounded, spoiled

forms = st.sampled_from(
    [
        {"quality": 90},
        {"quality": 10},
        {"quality": 95, "subsampling": "4:4:4"},
        {"quality": 95, "subsampling": "4:2:2"},
        {"quality": 90, "progressive": True},
        {"quality": 90, "restart_marker_blocks": 1},
    ]
)
sides, keys = st.integers(1, 50), st.integers(0, 2**32)


def pixels(key: int, *shape: int) -> np.ndarray:
    """Noise with structure: blocks of 4 pixels, and grain."""
    draws = np.random.default_rng(key)
    coarse = draws.integers(0, 256, (shape[0] // 4 + 1, shape[1] // 4 + 1, *shape[2:]))
    grain = draws.integers(-20, 21, shape)
    return np.clip(coarse.repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]] + grain, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, **form) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **form)
    return buffer.getvalue()


def with_pillow(data: bytes, colour: str) -> np.ndarray:
    """Pillow's pixels; gray asked of the decoder, as the JPEG's own luma, not computed from rounded RGB."""
    image = Image.open(io.BytesIO(data))
    image.draft("L" if colour == "gray" else "RGB", image.size)
    return np.asarray(image if colour == "gray" else image.convert("RGB"))


def record_of(
    base: Record, rgb: list[bytes], flow: list[bytes], width: int, height: int, components: int = 1
) -> Record:
    size = {"width": width, "height": height, "encoder": {}}
    return replace(base, rgb=Frames.of(rgb, components=3, **size), flow=Frames.of(flow, components=components, **size))


def row_of(record: Record, number: int) -> Row:
    """What an index says about a record that lies nowhere."""

    def place(frames: Frames) -> StreamPlace:
        sizes = {"width": frames.width, "height": frames.height, "components": frames.components}
        return StreamPlace(offset=0, size=len(frames.blob), ends=frames.ends, crcs=frames.crcs, **sizes)

    return Row(
        record=number,
        key=key_of(record.name),
        label=record.label,
        shard=0,
        frames=record.frames,
        sha256=bytes(32),
        fps=record.fps,
        cls_offset=0,
        header_offset=0,
        header_size=0,
        flow=place(record.flow),
        rgb=place(record.rgb),
    )


def clip_of(record: Record, rgb: list[int], flow: np.ndarray, position: int = 0) -> Clip[Instants]:
    chosen = Instants(np.array(rgb, np.int64), flow)
    return Clip(
        position=position,
        row=row_of(record, position + 100),
        chosen=chosen,
        rgb=tuple(record.rgb[frame] for frame in chosen.frames.tolist()),
        flow=tuple(record.flow[image] for image in pair_images(chosen.pairs).tolist()),
    )


@given(form=forms, width=sides, height=sides, key=keys)
def test_rgb_frames_are_bit_equal_to_pillows(make_record, form, width, height, key):
    frames = [jpeg(pixels(key + frame, height, width, 3), **form) for frame in range(2)]
    record = record_of(make_record("v"), frames, [jpeg(pixels(key, height, width))] * 2, width, height)
    decoded = decode([clip_of(record, [0, 1], np.zeros((0, 2), np.int64))])
    assert decoded.rgb_FHWC(decoded.clips[0]).shape == (2, height, width, 3)
    for frame, found in zip(frames, decoded.rgb_FHWC(decoded.clips[0]).numpy(), strict=True):
        assert np.array_equal(found, with_pillow(frame, "RGB"))


@given(form=forms, components=st.sampled_from([1, 3]), width=sides, height=sides, key=keys)
def test_flow_planes_are_bit_equal_to_pillows_gray_even_of_colour_jpegs(
    make_record, form, components, width, height, key
):
    shape = (height, width) if components == 1 else (height, width, 3)
    planes = [jpeg(pixels(key + plane, *shape), **form) for plane in range(2)]
    frames = [jpeg(pixels(key, height, width, 3))] * 2
    record = record_of(make_record("v"), frames, planes, width, height, components)
    decoded = decode([clip_of(record, [], np.zeros((1, 2), np.int64))])
    found_PHW = decoded.flow_PHW(decoded.clips[0]).numpy()
    assert found_PHW.shape == (2, height, width)
    for plane, found_HW in zip(planes, found_PHW, strict=True):
        assert np.array_equal(found_HW, with_pillow(plane, "gray"))
        if components == 1:
            assert np.array_equal(found_HW, np.asarray(Image.open(io.BytesIO(plane))))


def test_a_gray_frame_among_the_rgb_frames_is_bit_equal_to_pillows(make_record):
    frames = [jpeg(pixels(frame, 24, 32)) for frame in range(2)]
    record = record_of(make_record("v"), frames, [jpeg(pixels(5, 24, 32))] * 2, 32, 24)
    decoded = decode([clip_of(record, [1], np.zeros((0, 2), np.int64))])
    assert np.array_equal(decoded.rgb_FHWC(decoded.clips[0]).numpy()[0], with_pillow(frames[1], "RGB"))


@settings(max_examples=40)
@given(
    wanted=st.lists(st.tuples(st.lists(st.integers(0, 11), max_size=4), st.booleans()), min_size=1, max_size=4),
    stack=st.sampled_from([2, 4]),
)
def test_every_instant_finds_its_frames_and_its_pairs(make_record, wanted, stack):
    clips = []
    for position, (instants, with_flow) in enumerate(wanted):
        record = make_record(f"v_{position}", frames=12, width=16 + 2 * position, height=24, label=position)
        numbers = np.array(instants, np.int64)
        flow = stacks(numbers, 12, stack) if with_flow else np.zeros((0, stack), np.int64)
        clips.append((record, instants, flow, clip_of(record, instants, flow, position)))
    decoded = decode([clip for *_, clip in clips])
    for position, (record, instants, flow, _) in enumerate(clips):
        place = decoded.clips[position]
        assert (place.position, place.record, place.name, place.label) == (
            position,
            position + 100,
            record.name,
            position,
        )
        assert place.size == (24, 16 + 2 * position)
        rgb_FHWC, flow_PHW = decoded.rgb_FHWC(place).numpy(), decoded.flow_PHW(place).numpy()
        for instant, frame in enumerate(instants):
            found = rgb_FHWC[place.rgb_of[instant]]
            assert np.array_equal(found, with_pillow(bytes(record.rgb[frame]), "RGB"))
        for (instant, offset), pair in np.ndenumerate(flow):
            for axis in range(2):
                found = flow_PHW[2 * place.flow_of[instant, offset] + axis]
                assert np.array_equal(found, with_pillow(bytes(record.flow[2 * int(pair) + axis]), "gray"))


def test_each_frame_is_decoded_once_and_nothing_lies_between(make_record):
    record = make_record("v", frames=12, width=16, height=24)
    decoded = decode([clip_of(record, [3, 3, 3, 5], stacks(np.array([3, 3, 4]), 12, 2))])
    assert decoded.rgb_FHWC(decoded.clips[0]).shape == (2, 24, 16, 3)
    assert decoded.flow_PHW(decoded.clips[0]).shape == (2 * 3, 24, 16)
    assert decoded.arena.numel() == 2 * 24 * 16 * 3 + 6 * 24 * 16


def test_a_video_of_one_frame_has_no_planes(make_record):
    record = make_record("v", frames=1)
    decoded = decode([clip_of(record, [0, 0], np.full((2, 4), NO_PAIR))])
    place = decoded.clips[0]
    assert decoded.flow_PHW(place).shape == (0, 24, 32)
    assert (place.flow_of == NO_PAIR).all()
    assert np.array_equal(decoded.rgb_FHWC(place).numpy()[0], with_pillow(bytes(record.rgb[0]), "RGB"))


def test_decoding_nothing_is_nothing():
    decoded = decode([])
    assert (decoded.arena.numel(), decoded.clips) == (0, ())


def test_the_arena_moves_and_the_table_stays(make_record):
    decoded = decode([clip_of(make_record("v"), [1], stacks(np.array([1]), 12, 2))])
    moved = decoded.to(torch.device("cpu"))
    assert isinstance(moved, Decoded)
    assert moved.clips is decoded.clips
    assert torch.equal(moved.arena, decoded.arena)


@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize("size", [(32, 24), (24, 16), (200, 300), (23, 32), (1, 1)])
def test_a_jpeg_of_another_size_than_its_record_says_is_refused(make_record, stream, size):
    wrong = jpeg(pixels(1, *size, 3) if stream == "rgb" else pixels(1, *size))
    base = make_record("v_x", frames=2, width=32, height=24)
    rgb, flow = [bytes(base.rgb[0]), bytes(base.rgb[1])], [bytes(base.flow[0]), bytes(base.flow[1])]
    (rgb if stream == "rgb" else flow)[1] = wrong
    record = record_of(base, rgb, flow, 32, 24)
    with pytest.raises(CorruptRecordError) as caught:
        decode([clip_of(record, [0, 1], np.zeros((2, 2), np.int64))])
    assert str(caught.value) == f"v_x: a frame of {size[1]}x{size[0]} pixels, expected 32x24 by its record"


@pytest.mark.parametrize("broken", ["nothing", "text", "cut", "cut at the end", "header only"])
def test_bytes_that_are_no_whole_jpeg_are_refused_by_name(make_record, broken):
    whole = jpeg(pixels(1, 24, 32, 3))
    data = {
        "nothing": b"",
        "text": b"this is not a picture" * 5,
        "cut": whole[: len(whole) // 2],
        "cut at the end": whole[:-2],
        "header only": whole[:200],
    }[broken]
    base = make_record("v_x", frames=2, width=32, height=24)
    record = record_of(base, [data or b"\0", whole], [bytes(base.flow[0])] * 2, 32, 24)
    with pytest.raises(CorruptRecordError, match=r"^v_x: a RGB frame of 32x24: "):
        decode([clip_of(record, [0], np.zeros((0, 2), np.int64))])


# Decoding where the clips are needed


def some_clips(make_record) -> list[Clip[Instants]]:
    found = []
    for position, (width, height) in enumerate(((32, 24), (17, 40))):
        record = make_record(f"v_{position}", frames=12, width=width, height=height, label=position)
        found.append(clip_of(record, [1, 5, 5], stacks(np.array([1, 2, 7]), 12, 2), position))
    found.append(clip_of(make_record("v_2", frames=1), [0], np.full((1, 2), NO_PAIR), 2))
    return found


def test_clips_decoded_later_are_bit_equal_and_lie_alike(make_record):
    clips = some_clips(make_record)
    now, later = decode(clips), Encoded(tuple(clips)).to(torch.device("cpu"))
    assert torch.equal(now.arena, later.arena)
    assert [(one.rgb, one.flow, one.name) for one in now.clips] == [
        (one.rgb, one.flow, one.name) for one in later.clips
    ]


def test_a_clip_that_was_left_out_has_its_place_and_no_pixels(make_record):
    clips = some_clips(make_record)
    clips[1] = replace(clips[1], rgb=(), flow=(), valid=False)
    for decoded in (decode(clips), Encoded(tuple(clips)).to(torch.device("cpu"))):
        assert [clip.valid for clip in decoded.clips] == [True, False, True]
        assert decoded.rgb_FHWC(decoded.clips[1]).shape == (0, 40, 17, 3)
        assert np.array_equal(decoded.rgb_FHWC(decoded.clips[2])[0], with_pillow(clips[2].rgb[0], "RGB"))


@pytest.mark.parametrize(("wrong", "expected"), [(b"no picture", "v_0"), (jpeg(pixels(1, 8, 8, 3)), "8x8 pixels")])
def test_what_cannot_be_decoded_later_is_refused_by_name(make_record, wrong, expected):
    clips = some_clips(make_record)
    clips[0] = replace(clips[0], rgb=(memoryview(wrong), *clips[0].rgb[1:]))
    with pytest.raises(CorruptRecordError, match=expected):
        Encoded(tuple(clips)).to(torch.device("cpu"))


def test_memory_of_a_pool_is_used_again_and_its_clips_are_the_same(make_record):
    clips, arenas = some_clips(make_record), Arenas()
    expected, places = decode(clips).arena, set()
    for _ in range(4):
        decoded = decode(clips, arenas=arenas)
        assert torch.equal(decoded.arena, expected)
        places.add(decoded.arena.data_ptr())
        decoded.arena.fill_(9)
        del decoded
    assert len(places) == 1


@pytest.mark.gpu
def test_a_gpu_decodes_to_a_few_levels(make_record):
    clips = some_clips(make_record)
    found = Encoded(tuple(clips)).to(torch.device("cuda")).arena.cpu()
    assert (found.float() - decode(clips).arena.float()).abs().max() <= 8


def claiming(whole: bytes, width: int, height: int) -> bytes:
    """A JPEG with another size in its frame header."""
    at = next(at for at in range(len(whole)) if whole[at] == 0xFF and whole[at + 1] in (0xC0, 0xC2))
    return whole[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + whole[at + 9 :]


@pytest.mark.parametrize("agreeing", [True, False])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
@pytest.mark.parametrize("size", [(65535, 65535), (65535, 500), (8192, 4096), (8192, 8192), (1, 65535), (0, 0)])
def test_no_memory_is_set_aside_for_a_jpeg_that_claims_what_cannot_be(make_record, monkeypatch, size, stream, agreeing):
    base = make_record("v_x", frames=2, width=32, height=24)
    rgb, flow = [bytes(base.rgb[0]), bytes(base.rgb[1])], [bytes(base.flow[0]), bytes(base.flow[1])]
    jpegs = rgb if stream == "rgb" else flow
    jpegs[1] = claiming(jpegs[1], *size)
    clip = clip_of(record_of(base, rgb, flow, *(size if agreeing else (32, 24))), [0, 1], np.zeros((2, 2), np.int64))
    monkeypatch.setattr(torch, "empty", None)  # the arena
    for decoder in (decode, lambda clips: Encoded(tuple(clips)).to(torch.device("cpu"))):
        with bounded(1 << 20), pytest.raises(CorruptRecordError, match=r"^v_x: a .*frame"):
            decoder([clip])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_spoiled_jpeg_is_a_picture_of_its_size_or_an_error(make_record, data):
    base = make_record("v_x", frames=2, width=32, height=24)
    first = data.draw(spoiled(bytes(base.rgb[0])))
    record = record_of(base, [first or b"\0", bytes(base.rgb[1])], list(map(bytes, base.flow)), 32, 24)
    with bounded(1 << 20):
        try:
            decoded = decode([clip_of(record, [0, 1], np.zeros((2, 2), np.int64))])
        except CorruptRecordError:
            return
    assert decoded.rgb_FHWC(decoded.clips[0]).shape == (2, 24, 32, 3)
