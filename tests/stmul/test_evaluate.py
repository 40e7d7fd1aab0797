"""Evaluation: every clip once, scores as the slow obvious way gives them, views averaged, heads fused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from shards.format import decode
from shards.split import open_split
from stmul import clips
from stmul.errors import EvaluationError
from stmul.evaluate import Networks, clip_scores, evaluate, fused
from stmul.stages import build

CPU = torch.device("cpu")


@pytest.fixture
def networks(small):
    made = {stage: build(stage, small(), 3).eval() for stage in ("joint", "appearance", "motion")}
    for network in made.values():
        for name, buffer in network.named_buffers():  # moments as after a training: other than 0 and 1
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5)
    return Networks(**made)


def pillow(jpegs, mode):
    return np.stack([np.asarray(Image.open(io.BytesIO(jpeg)).convert(mode)) for jpeg in jpegs])


def loose_clip(record, frames, stack):
    """The clip a video is scored on, from the JPEGs with Pillow: RGB (T, H, W, 3), flow (T, H, W, 2L)."""
    instants = clips.testing(record.frames, frames=frames, stack=stack)
    rgb = pillow([record.rgb[t] for t in instants.rgb.tolist()], "RGB")
    flow = [
        np.stack(
            [plane for pair in pairs for plane in pillow([record.flow[2 * pair], record.flow[2 * pair + 1]], "L")], -1
        )
        for pairs in instants.flow.tolist()
    ]
    return rgb, np.stack(flow)


def test_scores_are_those_of_loose_jpegs_scored_one_view_at_a_time(small, split, networks):
    config = small()
    results = evaluate(networks, split, config, device=CPU, run="r")
    assert results.scored == results.expected == 5
    for number, name in enumerate(results.names):
        record = decode(split.read("test", number))
        assert (record.name, record.label) == (name, results.labels[number])
        rgb, flow = loose_clip(record, 3, 4)
        appearance, motion = clip_scores(networks.joint, rgb, flow, mirror=True)
        np.testing.assert_allclose(results.heads["appearance"][number], appearance, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(results.heads["motion"][number], motion, rtol=1e-4, atol=1e-5)


def test_mirroring_flips_frames_and_turns_horizontal_flow_round(networks):
    draws = np.random.default_rng(1)
    rgb = draws.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    flow = draws.integers(0, 256, (3, 40, 48, 8), dtype=np.uint8)
    turned = flow[:, :, ::-1].copy()
    turned[..., 0::2] = 255 - turned[..., 0::2]
    both = clip_scores(networks.joint, rgb, flow, mirror=True)
    one = clip_scores(networks.joint, rgb, flow, mirror=False)
    other = clip_scores(networks.joint, rgb[:, :, ::-1].copy(), turned, mirror=False)
    for mean, a, b in zip(both, one, other, strict=True):
        assert not torch.allclose(a, b)
        torch.testing.assert_close(mean, (a + b) / 2, rtol=1e-4, atol=1e-5)


def test_floats_and_whole_numbers_are_scored_alike(networks):
    draws = np.random.default_rng(2)
    rgb = draws.integers(0, 256, (3, 40, 48, 3), dtype=np.uint8)
    flow = draws.integers(0, 256, (3, 40, 48, 8), dtype=np.uint8)
    whole = clip_scores(networks.joint, rgb, flow)
    floats = clip_scores(networks.joint, torch.from_numpy(rgb).float(), flow.astype(np.float64))
    for a, b in zip(whole, floats, strict=True):
        torch.testing.assert_close(a, b)


def test_a_clip_of_unlike_streams_is_refused_with_both_shapes(networks):
    with pytest.raises(EvaluationError, match=r"\(3, 40, 48, 3\).*\(2, 40, 48, 8\)"):
        clip_scores(networks.joint, np.zeros((3, 40, 48, 3), np.uint8), np.zeros((2, 40, 48, 8), np.uint8))


def test_the_cheap_protocol_scores_one_crop(small, split, networks):
    config = small("evaluate.protocol=centre", "evaluate.mirror=false")
    cheap = evaluate(networks, split, config, device=CPU)
    dense = evaluate(networks, split, small(), device=CPU)
    assert cheap.protocol == "centre"
    assert cheap.heads["joint"].shape == dense.heads["joint"].shape
    assert not np.allclose(cheap.heads["joint"], dense.heads["joint"])


def test_fused_heads_are_plain_means_of_raw_scores():
    draws = np.random.default_rng(3)
    heads = {name: draws.normal(size=(4, 3)).astype(np.float32) for name in ("appearance", "motion")}
    alone = {f"{name} alone": draws.normal(size=(4, 3)).astype(np.float32) for name in heads}
    found = fused({**heads, **alone})
    np.testing.assert_allclose(found["joint"], (heads["appearance"] + heads["motion"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["late fusion"], sum(alone.values()) / 2, rtol=1e-6)
    assert fused({"motion alone": alone["motion alone"]}).keys() == {"motion alone"}


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_videos_of_every_length_are_scored(small, networks, make_split, tmp_path, frames):
    make_split(tmp_path / "short", train=2, test=3, width=48, height=40, frames=frames)
    with open_split(tmp_path / "short") as short:
        results = evaluate(networks, short, small(), device=CPU)
    assert results.scored == 3


def test_the_streams_trained_alone_see_single_instants(small, split, networks):
    config = small("evaluate.mirror=false")
    results = evaluate(networks, split, config, device=CPU)
    record = decode(split.read("test", 0))
    rgb, _ = loose_clip(record, 3, 4)
    frames_TCHW = torch.from_numpy(rgb).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        one_by_one = torch.stack([networks.appearance(frame[None, None]).mean((0, 2, 3, 4)) for frame in frames_TCHW])
    np.testing.assert_allclose(results.heads["appearance alone"][0], one_by_one.mean(0), rtol=1e-4, atol=1e-5)
