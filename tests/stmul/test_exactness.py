"""Same seed, same pixels: whatever the store, the threads and the ranks; and every clip once in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from shards.copy import copy_split
from shards.manifest import Manifest
from shards.split import Split, open_split
from stmul import loading
from stmul.config import Config
from stmul.loading import Batch, clip_tensors, evaluation_clips, training_batch, training_stream

STORES = ("split1", "split1.lmdb", "split1.files")
CPU = torch.device("cpu")
STEPS = 6  # of 4 clips: more than two epochs of the ten videos


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, make_split: Callable[..., Manifest]) -> Iterator[dict[str, Split]]:
    root = tmp_path_factory.mktemp("exact")
    make_split(root / "split1", train=10, test=5, width=48, height=40, frames=14)
    for name in STORES[1:]:
        copy_split(root / "split1", root / name)
    splits = {name: open_split(root / name) for name in STORES}
    yield splits
    for split in splits.values():
        split.close()


def batches(split: Split, config: Config, stage: str, *, rank: int = 0, world: int = 1) -> list[Batch]:
    recipe = {"joint": config.train.joint, "appearance": config.train.appearance, "motion": config.train.motion}[stage]
    with training_stream(split, config, stage, pinned=False, rank=rank, world=world) as stream:
        return [training_batch(loaded.to(CPU), config, recipe, stage) for _ in range(STEPS) for loaded in stream.step()]


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert [batch.positions for batch in found] == [batch.positions for batch in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.labels_B, other.labels_B)
        assert one.valid == other.valid == (True,) * len(one.positions)
        for pixels, same in ((one.rgb_BTCHW, other.rgb_BTCHW), (one.flow_BTCHW, other.flow_BTCHW)):
            assert (pixels is None) == (same is None)
            assert pixels is None or same is None or (pixels.dtype == torch.uint8 and torch.equal(pixels, same))


@pytest.mark.parametrize("order", ["full", "windowed"])
@pytest.mark.parametrize("stage", ["joint", "appearance", "motion"])
def test_tar_lmdb_and_loose_files_give_the_same_pixels_with_any_number_of_threads(
    stores: dict[str, Split], small: Callable[..., Config], stage: str, order: str
) -> None:
    chosen = f"data.order={order}", "data.window=2"
    expected = batches(stores["split1"], small(*chosen, "data.threads=1"), stage)
    pixels = torch.cat(
        [one.reshape(-1) for batch in expected for one in (batch.rgb_BTCHW, batch.flow_BTCHW) if one is not None]
    )
    assert len(pixels.unique()) > 10  # there is something to compare
    for name, threads in zip(STORES, (8, 3, 2), strict=True):
        assert_same(batches(stores[name], small(*chosen, f"data.threads={threads}"), stage), expected)


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_ranks_on_different_stores_see_the_pixels_of_one_rank_between_them(
    stores: dict[str, Split], small: Callable[..., Config], world: int
) -> None:
    config = small("train.batch=8")
    expected = {batch.positions: batch for batch in batches(stores["split1"], config, "joint")}
    found = [
        batch
        for rank in range(world)
        for batch in batches(stores[STORES[rank % 3]], config, "joint", rank=rank, world=world)
    ]
    assert sorted(batch.positions for batch in found) == sorted(expected)
    assert_same(found, [expected[batch.positions] for batch in found])


def scored(split: Split, config: Config, *, rank: int = 0, world: int = 1) -> list[tuple[int, torch.Tensor]]:
    """Each clip that a rank scores: its record, and all its pixels in the first view."""
    found = []
    for loaded in evaluation_clips(split, "test", config, rank=rank, world=world):
        decoded = loaded.to(CPU)
        for clip in decoded.clips:
            view, side = loading.test_views(config, clip.size)[0]
            rgb, flow = clip_tensors(decoded, clip, view, size=side)
            assert rgb is not None
            assert flow is not None
            found.append((clip.record, torch.cat([rgb.reshape(-1), flow.reshape(-1)])))
    return found


@pytest.mark.parametrize(("videos", "per_shard"), [(1, 1), (5, 5), (5, 1), (9, 4), (9, 2)])
def test_every_clip_is_scored_once_by_one_to_eight_ranks_however_many_shards_there_are(
    tmp_path: Path, make_split: Callable[..., Manifest], small: Callable[..., Config], videos: int, per_shard: int
) -> None:
    make_split(tmp_path / "split1", train=1, test=videos, per_shard=per_shard, width=48, height=40, frames=6)
    copy_split(tmp_path / "split1", tmp_path / "split1.lmdb")
    config = small()
    with open_split(tmp_path / "split1") as tar, open_split(tmp_path / "split1.lmdb") as database:
        assert len(tar.manifest.parts["test"].shards) == -(-videos // per_shard)
        expected = dict(scored(tar, config))
        assert list(expected) == list(range(videos))
        for world in range(1, 9):
            found = [
                clip
                for rank in range(world)
                for clip in scored((tar, database)[rank % 2], config, rank=rank, world=world)
            ]
            assert sorted(record for record, _ in found) == list(range(videos)), f"{world} ranks"
            assert all(torch.equal(pixels, expected[record]) for record, pixels in found)


def test_another_seed_gives_other_pixels(stores: dict[str, Split], small: Callable[..., Config]) -> None:
    one, other = (batches(stores["split1"], small(f"train.seed={seed}"), "joint")[0] for seed in (1, 2))
    assert not torch.equal(one.rgb_BTCHW, other.rgb_BTCHW)  # type: ignore[arg-type]
