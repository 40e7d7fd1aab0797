"""The peers that are installed, and their variants. Each needs its package only where it is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from shards.split import Split
from stmul.arenas import Arenas
from stmul.config import Config
from tests.bench.measure import Progress
from tests.bench.samples import Work
from tests.bench.variants import Variant
from tests.bench.wanted import Wanted

DISTRIBUTIONS = {"webdataset": "webdataset", "streaming": "mosaicml-streaming", "litdata": "litdata"}


def installed() -> dict[str, str]:
    """The peers that are there, with their versions."""
    found = {}
    for peer, distribution in DISTRIBUTIONS.items():
        try:
            found[peer] = version(distribution)
        except PackageNotFoundError:
            continue
    return found


def peers(
    names: Sequence[str], split: Split, wanted: Sequence[Wanted], config: Config, folder: Path, progress: Progress
) -> Iterator[Variant]:
    """The variants of the peers named; their data are written into `folder`."""
    for name in names:
        work = Work(split=split, wanted=wanted, batch=config.train.sub_batch, size=config.data.crop, arenas=Arenas())
        yield from import_module(f"tests.bench.peer_{name}").variants(work, folder, progress)
