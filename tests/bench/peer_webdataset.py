"""webdataset on the wanted clips: a member for each frame as documented, and our shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.format import FLOW, INDEX, RGB, encode, parse_index
from shards.record import Record
from tests.bench.measure import Progress
from tests.bench.samples import Clip, Work, converted, delivered, frames_of, loader_settings, loading, size_of, used
from tests.bench.variants import Variant
from tests.bench.wanted import opened, record_of


def write_tars(work: Work, folder: Path, sample: Callable[[Record], dict[str, bytes]], progress: Progress) -> None:
    """At least two tars for each of two workers, so that they have equal work."""
    from webdataset import ShardWriter

    folder.mkdir()
    per_shard = max(1, len(work.wanted) // 4)
    with ShardWriter(f"{folder}/%06d.tar", maxcount=per_shard, maxsize=1 << 40, verbose=0, encoder=False) as writer:
        for clip in work.wanted:
            writer.write({"__key__": f"{clip.position:06d}", **sample(record_of(work.split, clip))})
            progress(f"writing {folder.name}: {clip.position + 1} of {len(work.wanted)} clips")


def members(record: Record) -> dict[str, bytes]:
    """A member for each frame and plane: rgb.0000.jpg, x.0000.jpg, y.0000.jpg."""
    return {f"{name}.{i:04d}.jpg": jpeg for name, some in frames_of(record).items() for i, jpeg in enumerate(some)}


def variants(work: Work, folder: Path, progress: Progress) -> Iterator[Variant]:
    """A member for each frame, decoded as documented and only where wanted; our shards, read through."""
    import webdataset

    def lists(sample: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"rgb": {}, "x": {}, "y": {}}
        for key, value in sample.items():
            if key.endswith(".jpg"):
                name, number, _ = key.split(".")
                found[name][int(number)] = value
        return found

    def all_decoded(end: str, sample: dict[str, Any]) -> Clip:
        position = int(sample["__key__"])
        return work.finished(end, position, *used(work.wanted[position], lists(sample), converted))

    def some_decoded(end: str, sample: dict[str, Any]) -> Clip:
        position = int(sample["__key__"])
        pictures = used(work.wanted[position], lists(sample), lambda jpeg, mode: np.array(opened(jpeg, mode)))
        return work.finished(end, position, *pictures)

    def packed(end: str, sample: dict[str, Any]) -> Clip:
        header = parse_index(sample[INDEX], sample["__key__"])
        blobs = (sample[RGB], header.rgb.ends), (sample[FLOW], header.flow.ends)
        return work.from_blobs(end, int(sample["__key__"]), *blobs)

    def variant(name: str, kind: str, place: Path, decoder: str, then: Callable[..., Clip], settings: str) -> Variant:
        urls = sorted(str(path) for path in place.glob("*.tar"))

        def make(end: str, workers: int) -> Any:
            dataset = webdataset.WebDataset(urls, shardshuffle=False)
            dataset = (dataset.decode(decoder) if decoder else dataset).map(partial(then, end))
            dataset = dataset.batched(work.batch, collation_fn=delivered, partial=True)
            return webdataset.WebLoader(dataset, batch_size=None, **loader_settings(workers))

        return Variant(
            name=f"webdataset, {name}",
            kind=kind,
            settings=settings,
            bytes_read=size_of(place) / len(work.wanted),
            open=lambda end, threads: loading(partial(make, end), threads),
            show=work.show,
            by_cv2=True,
            processes=True,
        )

    frames, ours = folder / "webdataset-members", folder / "webdataset-packed"
    write_tars(work, frames, members, progress)
    write_tars(work, ours, encode, progress)
    chain = f".batched({work.batch}), WebLoader(batch_size=None)"
    yield variant(
        "member per frame, .decode('pil')",
        "as documented",
        frames,
        "pil",
        all_decoded,
        f"a sample's frames as members 000.jpg, 001.jpg, ... and .decode('pil'), as its FAQ has it for sequences of"
        f" frames (question 367) and its README for images; {chain}",
    )
    yield variant(
        "member per frame, Pillow on the frames used",
        "as documented",
        frames,
        "",
        some_decoded,
        f"the same without .decode; the frames used opened by Pillow in .map; {chain}",
    )
    yield variant(
        "our shards, our decoder",
        "our payload",
        ours,
        "",
        packed,
        f"the four members of a record; .map decodes the frames used; {chain}",
    )
