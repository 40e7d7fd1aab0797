"""What others do with our payload from afar: webdataset's pipe:curl, MosaicML streaming and LitData.

Each has one sample for each video of an epoch, unshuffled, which holds the two blobs of concatenated JPEGs; only the
frames wanted are decoded, by simplejpeg. As many worker processes as there are cores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from shards.format import FLOW, INDEX, RGB, parse_index
from shards.split import Split
from shards.stream import cores
from stmul.arenas import Arenas
from tests.bench.measure import Progress
from tests.bench.passes import Opened, Reader, Site
from tests.bench.samples import Clip, Work, delivered, from_payload, loader_settings, loading, payload
from tests.bench.wanted import Wanted, record_of

SHARDS = 4  # so that two worker processes have two each
WRITTEN = {"streaming": "mds", "litdata": "litdata"}  # folders of what is written for a peer; webdataset reads ours


def readers(names: Sequence[str], batch: int) -> list[Reader]:
    """The peers named, on the server that each can read from."""
    found = {
        "webdataset": [
            Reader(
                name="webdataset, pipe:curl",
                kind="peer",
                server="HTTP",
                settings="our tars, WebDataset('pipe:curl -s -f -L URL', shardshuffle=False).map(decode the frames"
                f" used).batched({batch}), WebLoader(batch_size=None, num_workers={cores()})",
                open=partial(by_webdataset, False),
                whole=True,
                processes=True,
            ),
            Reader(
                name="webdataset, cache_dir",
                kind="peer",
                server="HTTP",
                settings="the same with cache_dir",
                open=partial(by_webdataset, True),
                whole=True,
                keeps=True,
                processes=True,
            ),
        ],
        "streaming": [
            Reader(
                name="MosaicML streaming",
                kind="peer",
                server="S3",
                settings=f"MDS, four columns of bytes, shards of 64 MiB, StreamingDataset(remote='s3://...', local=...,"
                f" batch_size={batch}, shuffle=False), DataLoader(num_workers={cores()}), S3_ENDPOINT_URL; it has no"
                " download over plain HTTP",
                open=by_streaming,
                whole=True,
                keeps=True,
                processes=True,
            )
        ],
        "litdata": [
            Reader(
                name="LitData",
                kind="peer",
                server="S3",
                settings=f"optimize(chunk_size=a {SHARDS}th of the videos), so that its workers share no chunk, which"
                " each would fetch; four leaves of bytes, StreamingDataset('s3://...',"
                " cache_dir=..., storage_options={'endpoint_url': ...}, shuffle=False),"
                f" StreamingDataLoader(batch_size={batch}, num_workers={cores()}); it has no download over plain HTTP;"
                " the options of its obstore client got allow_http, which it has no setting for and this server needs",
                open=by_litdata,
                whole=True,
                keeps=True,
                processes=True,
            )
        ],
    }
    return [reader for name in names for reader in found[name]]


def write(name: str, split: Split, wanted: Sequence[Wanted], folder: Path, progress: Progress) -> None:
    """What a peer reads, written into `folder`: a sample for each clip."""

    def sample(clip: Wanted) -> dict[str, Any]:
        return {"position": clip.position, **payload(record_of(split, clip))}

    progress(f"writing {folder.name}: {len(wanted)} videos")
    if name == "streaming":
        from streaming import MDSWriter

        columns = {"position": "int", **dict.fromkeys(("rgb", "flow", "rgb_ends", "flow_ends"), "bytes")}
        with MDSWriter(out=str(folder), columns=columns) as writer:
            for clip in wanted:
                writer.write(sample(clip))
    elif name == "litdata":
        import litdata

        litdata.optimize(
            fn=sample,
            inputs=list(wanted),
            output_dir=str(folder),
            chunk_size=len(wanted) // SHARDS,
            num_workers=1,
            start_method="fork",
            verbose=False,
        )


def _work(site: Site) -> Work:
    return Work(
        split=None,  # type: ignore[arg-type]  # of use to those who write
        wanted=site.wanted,
        batch=site.config.train.sub_batch,
        size=site.config.data.crop,
        arenas=Arenas(),
    )


@contextmanager
def _opened(work: Work, make: Callable[[int], Any]) -> Iterator[Opened]:
    with loading(make, cores()) as epoch:
        yield Opened(deliveries=epoch(), show=partial(work.show, "decoded"))


@contextmanager
def by_webdataset(cached: bool, site: Site, count: int) -> Iterator[Opened]:
    """Our shards through curl, read through, unpacked; with a cache: each fetched whole first."""
    import webdataset

    work = _work(site)
    positions = {clip.row.key: clip.position for clip in site.exact[:count]}

    def packed(sample: dict[str, Any]) -> Clip:
        header = parse_index(sample[INDEX], sample["__key__"])
        blobs = (sample[RGB], header.rgb.ends), (sample[FLOW], header.flow.ends)
        return work.from_blobs("decoded", positions[sample["__key__"]], *blobs)

    names = sorted({one.blob for clip in site.exact[:count] for one in clip.ranges})
    urls = [f"pipe:curl -s -f -L {site.url}/{name}" for name in names]
    settings = {"cache_dir": str(site.folder)} if cached else {}

    def make(workers: int) -> Any:
        dataset = webdataset.WebDataset(urls, shardshuffle=False, **settings)
        dataset = dataset.map(packed).batched(work.batch, collation_fn=delivered, partial=True)
        return webdataset.WebLoader(dataset, batch_size=None, **loader_settings(workers))

    with _opened(work, make) as opened:
        yield opened


@contextmanager
def by_streaming(site: Site, count: int) -> Iterator[Opened]:
    """MDS shards, fetched whole into its folder by its workers."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    logging.getLogger("streaming").setLevel(logging.ERROR)
    work = _work(site)

    class Clips(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Clip:
            return from_payload(work, "decoded", super().__getitem__(index))

    def make(workers: int) -> Any:
        dataset = Clips(remote=site.peers["streaming"], local=str(site.folder), batch_size=work.batch, shuffle=False)
        return DataLoader(dataset, batch_size=work.batch, collate_fn=delivered, **loader_settings(workers))

    with _opened(work, make) as opened:
        yield opened


@contextmanager
def by_litdata(site: Site, count: int) -> Iterator[Opened]:
    """LitData's chunks, fetched whole into its folder by its workers."""
    import litdata
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
    work = _work(site)

    class Clips(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Clip:
            return from_payload(work, "decoded", super().__getitem__(index))

    options = {
        "endpoint_url": site.environ["AWS_ENDPOINT_URL"],
        "aws_access_key_id": site.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": site.environ["AWS_SECRET_ACCESS_KEY"],
    }

    def make(workers: int) -> Any:
        dataset = Clips(site.peers["litdata"], cache_dir=str(site.folder), storage_options=options, shuffle=False)
        settings = {"batch_size": work.batch, "collate_fn": delivered, **loader_settings(workers)}
        return litdata.StreamingDataLoader(dataset, **settings)

    with _opened(work, make) as opened:
        yield opened
