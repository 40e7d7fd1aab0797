"""LitData on the wanted clips: its lists of JPEGs as documented, and our payload."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from shards.record import Record
from tests.bench.measure import Progress
from tests.bench.samples import (
    Clip,
    Work,
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
from tests.bench.wanted import Pixels, record_of


def variants(work: Work, folder: Path, progress: Progress) -> Iterator[Variant]:
    """Its own arrays of JPEGs, all decoded by it; two blobs of bytes."""
    import litdata

    def jpeg_arrays(record: Record) -> dict[str, Any]:
        made = frames_of(record)
        return {
            name: litdata.JpegArray(images=[litdata.Jpeg(bytes=one) for one in some]) for name, some in made.items()
        }

    def write(place: Path, sample: Callable[[Record], dict[str, Any]]) -> None:
        def made(position: int) -> dict[str, Any]:
            return {"position": position, **sample(record_of(work.split, work.wanted[position]))}

        progress(f"writing {place.name}: {len(work.wanted)} clips")
        litdata.optimize(
            fn=made,
            inputs=list(range(len(work.wanted))),
            output_dir=str(place),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",
            verbose=False,
        )

    def tensors(end: str, sample: dict[str, Any]) -> Clip:
        position = sample["position"]
        return work.finished(end, position, *used(work.wanted[position], sample, array))

    def variant(name: str, kind: str, place: Path, then: Callable[..., Clip], settings: str) -> Variant:
        class Clips(litdata.StreamingDataset):
            def __init__(self, end: str, **settings: Any) -> None:
                super().__init__(**settings)
                self.end = end

            def __getitem__(self, index: Any) -> Clip:
                return then(self.end, super().__getitem__(index))

        def make(end: str, workers: int) -> Any:
            dataset = Clips(end, input_dir=str(place), shuffle=False)
            settings = {"batch_size": work.batch, "collate_fn": delivered, **loader_settings(workers)}
            return litdata.StreamingDataLoader(dataset, **settings)

        return Variant(
            name=f"LitData, {name}",
            kind=kind,
            settings=settings,
            bytes_read=size_of(place) / len(work.wanted),
            open=lambda end, threads: loading(partial(make, end), threads),
            show=work.show,
            by_cv2=True,
            processes=True,
        )

    frames, ours = folder / "litdata-jpegarray", folder / "litdata-packed"
    write(frames, jpeg_arrays)
    write(ours, payload)
    chain = f"StreamingDataset(shuffle=False), StreamingDataLoader(batch_size={work.batch})"
    yield variant(
        "JpegArray",
        "as documented",
        frames,
        tensors,
        "optimize(chunk_bytes='64MB'), JpegArray(images=[Jpeg(...)]) for RGB, x and y each, as its README has it for"
        f" lists of frames (Modality) and for JPEGs kept as they are; it decodes every frame to RGB; {chain}",
    )
    yield variant(
        "our payload, our decoder",
        "our payload",
        ours,
        partial(from_payload, work),
        f"optimize(chunk_bytes='64MB'), four leaves of bytes; __getitem__ decodes the frames used; {chain}",
    )


def array(picture_CHW: Tensor, mode: str) -> Pixels:
    """A picture of LitData's as an array; a gray one is thrice the same."""
    return picture_CHW[0].numpy() if mode == "L" else picture_CHW.permute(1, 2, 0).contiguous().numpy()
