"""Base networks: streams trained alone, kept as files in one folder, for the data set and split they were trained on.

A stream that was trained on another split has seen some of the clips it would be tested on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from stmul.checkpoint import load
from stmul.config import RGB_CHANNELS
from stmul.errors import CheckpointError, WeightsError
from stmul.matconvnet import load_stream, origin_of
from stmul.network import TwoStream
from stmul.snapshot import Origin, describe, load_snapshot
from stmul.weights import Weights, made_for, read_state, stepping

STREAMS = ("appearance", "motion")
ENDINGS = (".safetensors", ".pt", ".mat")  # the first that is there is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """A file that holds, or by its name should hold, one stream."""

    path: Path
    stream: str  # "appearance" or "motion"
    origin: Origin
    kind: Literal["network", "checkpoint", "state"]  # a bare state does not say what it was made for


def bases_in(folder: Path) -> list[Base]:
    """The base networks in a folder, in the order in which they are preferred; other files are passed over.

    Known are networks that say themselves what they are (.safetensors), checkpoints of a stream's training (.pt), bare
    states (.pt or .safetensors) named `<data set>-split<n>-<stream>`, and MatConvNet's files (.mat) under the authors'
    names, `ucf101-img-resnet50-split1-dr0.mat` and `ucf101-resnet50-split1-dr0.8.mat`.
    """
    paths = [path for ending in ENDINGS for path in sorted(folder.glob(f"*{ending}"))]
    return [base for path in paths if (base := _base(path)) is not None]


def _base(path: Path) -> Base | None:
    if path.suffix == ".mat":
        stream = "appearance" if re.search(r"(^|-)(img|rgb|appearance)(-|\.)", path.name.lower()) else "motion"
        return Base(path=path, stream=stream, origin=origin_of(path), kind="network")
    try:
        if path.suffix == ".safetensors":
            about = describe(path)
            base = Base(path=path, stream=about.kind, origin=about.origin, kind="network")
        else:
            checkpoint = load(path)
            origin = Origin(dataset=checkpoint.dataset, split=checkpoint.split, source=path.name)
            base = Base(path=path, stream=checkpoint.stage, origin=origin, kind="checkpoint")
        return base if base.stream in STREAMS else None
    except (WeightsError, CheckpointError):  # no network that says what it is: then its name does, or nothing
        named = re.fullmatch(r"(.+?)(?:-split(\d+))?-(appearance|motion)", path.stem)
        if named is None:
            return None
        dataset, split, stream = named.groups()
        origin = Origin(dataset=dataset, split=int(split or 0), source=path.name)
        return Base(path=path, stream=stream, origin=origin, kind="state")


def fitting(bases: list[Base], dataset: str, split: int, *, other_split: bool) -> dict[str, Base]:
    """The first base network of each stream that was trained on this split; with `other_split` else on any."""
    own = [base for base in bases if (base.origin.dataset, base.origin.split) == (dataset, split)]
    preferred = [*own, *bases] if other_split else own
    return {base.stream: base for base in reversed(preferred)}


def load_bases(bases: Mapping[str, Base]) -> Weights:
    """The states of the streams, and what they were made for. Raises WeightsError where a file is not as it says."""
    states: dict[str, Mapping[str, Tensor]] = {}
    shared: dict[str, str] = {}
    for name, base in bases.items():
        states[name], mine = _read(base)
        if any(shared.get(key, value) != value for key, value in mine.items()):
            raise WeightsError(f"{base.path}: made for {mine}, the other stream for {shared}; they cannot be joined")
        shared |= mine
    return Weights(states=states, shared=shared)


def _read(base: Base) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """A base network's state, and the settings it was made for, as far as the file says."""
    if base.kind == "state":
        return read_state(base.path), {}
    if base.kind == "checkpoint":
        checkpoint = load(base.path)
        return checkpoint.network, made_for(checkpoint.config)
    network = load_stream(base.path) if base.path.suffix == ".mat" else load_snapshot(base.path)[0]
    if isinstance(network, TwoStream) or (network.channels == RGB_CHANNELS) != (base.stream == "appearance"):
        raise WeightsError(f"{base.path}: expected the {base.stream} stream alone, found another network")
    return network.state_dict(), stepping(network.settings)
