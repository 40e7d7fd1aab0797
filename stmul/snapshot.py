"""A network in one file: a .safetensors whose metadata says what network it is, so that it can be built from it alone.

Unlike a run's checkpoint it holds no state of a training.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from configs import Settings
from shards.format import crc32c
from shards.writer import whole
from stmul.checkpoint import differences, first
from stmul.config import RGB_CHANNELS, Network
from stmul.errors import NetworkError, WeightsError
from stmul.network import TwoStream, single
from stmul.resnet import Stream

KEY, CHECK = "stmul", "crc32c"  # of the metadata: what network it is, and a checksum over that and all tensors


class Origin(Settings):
    """Where a network comes from, as far as is known."""

    dataset: str = ""  # that it was trained on; empty: nobody has told
    split: NonNegativeInt = 0  # 0: nobody has told
    source: str = ""  # file or run, in words

    @property
    def trained_on(self) -> str:
        """Data set and split in words."""
        if not self.dataset:
            return "an unknown data set"
        return f"{self.dataset} split {self.split}" if self.split else f"an unknown split of {self.dataset}"


class Snapshot(Settings):
    """What network a file holds."""

    schema_: Literal[1] = 1
    kind: Literal["joint", "appearance", "motion"]
    network: Network
    stack: Annotated[int, Field(ge=0, le=1000)]  # flow pairs at each instant; 0 in an appearance stream
    pool: PositiveInt
    classes: PositiveInt
    class_names: tuple[str, ...] = ()
    origin: Origin = Origin()

    @model_validator(mode="after")
    def flow_has_channels(self) -> Self:
        if (self.stack == 0) != (self.kind == "appearance"):
            raise ValueError(f"kind {self.kind} with a stack of {self.stack}")
        return self


def save_network(path: Path, network: TwoStream | Stream, origin: Origin) -> None:
    """Writes `path`, whole or absent."""
    motion = network.motion if isinstance(network, TwoStream) else network
    rgb = motion.channels == RGB_CHANNELS
    appearance = network.appearance if isinstance(network, TwoStream) else network
    about = Snapshot(
        kind="joint" if isinstance(network, TwoStream) else "appearance" if rgb else "motion",
        network=network.settings,
        stack=0 if rgb else motion.channels // 2,
        pool=appearance.pool,
        classes=appearance.classes,
        class_names=network.class_names,
        origin=origin,
    )
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    said = about.model_dump_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(save(tensors, {KEY: said, CHECK: _checksum(said, tensors)}))


def describe(path: Path) -> Snapshot:
    """What network `path` holds. Raises WeightsError where it is no such file."""
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(KEY)
    except Exception as error:  # a damaged file makes the reader raise whatever it trips over
        raise WeightsError(f"{path}: not readable as .safetensors ({error})") from error
    if said is None:
        raise WeightsError(f"{path}: only tensors: nothing in it says which network they are of")
    try:
        return Snapshot.model_validate_json(said)
    except ValidationError as error:
        mistake = error.errors()[0]
        where = ".".join(map(str, mistake["loc"]))
        raise WeightsError(f"{path}: of another version: {where}: {mistake['msg']}") from error


def load_snapshot(path: Path) -> tuple[TwoStream | Stream, Snapshot]:
    """The network in `path`, in evaluation mode, and what it is. Raises WeightsError where the two do not agree."""
    about = describe(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if (found := _checksum(metadata[KEY], tensors)) != metadata.get(CHECK):
        raise WeightsError(f"{path}: damaged: checksum {found}, expected {metadata.get(CHECK, 'one')}; copy it again")
    shapes = _telling_shapes(about)
    wrong = [name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape]
    if wrong:  # before it takes memory for what is only said
        raise WeightsError(f"{path}: not the network that it says it is: {wrong[0]} is not {shapes[wrong[0]]}")
    try:
        network = _built(about)
    except NetworkError as error:
        raise WeightsError(f"{path}: no network here is so: {error}") from error
    if wrong := differences(tensors, network.state_dict()):
        raise WeightsError(f"{path}: not the network that it says it is: {first(wrong)}")
    network.load_state_dict(tensors)
    network.class_names = about.class_names
    return network.eval(), about


def _telling_shapes(about: Snapshot) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that bound all others: what enters, the widest of the 3x3 filters, the classifier."""
    streams = {
        "appearance": (about.network.appearance, RGB_CHANNELS),
        "motion": (about.network.motion, 2 * about.stack),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (own, channels) in streams.items():
        if about.kind in ("joint", name):
            prefix, widest = f"{name}." if about.kind == "joint" else "", own.width << 3
            shapes[f"{prefix}conv1.weight"] = (own.width, channels, 7, 7)
            shapes[f"{prefix}units.5b.conv2.weight"] = (widest, widest, 3, 3)
            shapes[f"{prefix}classifier.bias"] = (about.classes,)
    return shapes


def _built(about: Snapshot) -> TwoStream | Stream:
    if about.kind == "joint":
        return TwoStream(about.network, stack=about.stack, classes=about.classes, pool=about.pool)
    return single(about.network, about.kind, stack=about.stack, classes=about.classes, pool=about.pool)


def _checksum(said: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32C of the description, and of each tensor's name, type, shape and bytes."""
    lines = [said]
    for name, value in sorted(tensors.items()):
        content = value.contiguous().flatten().view(torch.uint8).numpy()
        lines.append(f"{name} {value.dtype} {list(value.shape)} {crc32c(content.data):08x}")
    return f"{crc32c(chr(10).join(lines).encode()):08x}"
