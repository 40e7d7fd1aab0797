"""MosaicML streaming on the wanted clips: its lists of JPEGs as documented, and our payload."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from shards.record import Record
from tests.bench.measure import Progress
from tests.bench.samples import (
    Clip,
    Work,
    converted,
    delivered,
    frames_of,
    from_payload,
    loader_settings,
    loading,
    payload,
    size_of,
    used,
)
from tests.bench.variants import Variant
from tests.bench.wanted import record_of


def variants(work: Work, folder: Path, progress: Progress) -> Iterator[Variant]:
    """A column of JPEGs for each stream, which it opens with Pillow; two columns of bytes."""
    from streaming import MDSWriter, StreamingDataset

    logging.getLogger("streaming").setLevel(logging.ERROR)

    def write(place: Path, columns: dict[str, str], sample: Callable[[Record], dict[str, Any]]) -> None:
        with MDSWriter(out=str(place), columns={"position": "int", **columns}) as writer:
            for clip in work.wanted:
                writer.write({"position": clip.position, **sample(record_of(work.split, clip))})
                progress(f"writing {place.name}: {clip.position + 1} of {len(work.wanted)} clips")

    def pictures(end: str, sample: dict[str, Any]) -> Clip:
        position = sample["position"]
        return work.finished(end, position, *used(work.wanted[position], sample, converted))

    def variant(name: str, kind: str, place: Path, then: Callable[..., Clip], settings: str) -> Variant:
        class Clips(StreamingDataset):
            def __init__(self, end: str, **settings: Any) -> None:
                super().__init__(**settings)
                self.end = end

            def __getitem__(self, index: int) -> Clip:
                return then(self.end, super().__getitem__(index))

        def make(end: str, workers: int) -> Any:
            # It refuses a folder that another dataset of the process reads: each gets its own, of the same files.
            own = place.with_name(f"{place.name}-{end}-{workers}")
            if not own.exists():
                shutil.copytree(place, own, copy_function=os.link)
            dataset = Clips(end, local=str(own), batch_size=work.batch, shuffle=False)
            return DataLoader(dataset, batch_size=work.batch, collate_fn=delivered, **loader_settings(workers))

        return Variant(
            name=f"MosaicML streaming, {name}",
            kind=kind,
            settings=settings,
            bytes_read=size_of(place) / len(work.wanted),
            open=lambda end, threads: loading(partial(make, end), threads),
            show=work.show,
            by_cv2=True,
            processes=True,
        )

    frames, ours = folder / "streaming-jpegarray", folder / "streaming-packed"
    write(frames, dict.fromkeys(("rgb", "x", "y"), "jpegarray"), frames_of)
    write(ours, dict.fromkeys(("rgb", "flow", "rgb_ends", "flow_ends"), "bytes"), payload)
    chain = f"StreamingDataset(batch_size={work.batch}, shuffle=False), DataLoader"
    yield variant(
        "jpegarray columns",
        "as documented",
        frames,
        pictures,
        "MDS, its own encoding for lists of JPEGs (jpegarray; its documentation has no example of frames), one column"
        " for RGB, x and y each, shards of 64 MiB (the default), no"
        f" compression; it opens every frame with Pillow, the frames used are decoded; {chain}",
    )
    yield variant(
        "our payload, our decoder",
        "our payload",
        ours,
        partial(from_payload, work),
        f"MDS, four columns of bytes; __getitem__ decodes the frames used; {chain}",
    )
