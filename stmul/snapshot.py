"""A network in one file: a .safetensors whose metadata says what network it is, so that it can be built from it alone.

Unlike a run's checkpoint it holds no state of a training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt, ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save

from configs import Settings
from shards.writer import whole
from stmul.checkpoint import differences, first
from stmul.config import Network
from stmul.errors import WeightsError
from stmul.network import TwoStream, single
from stmul.resnet import Stream

KEY = "stmul"  # of the metadata
RGB_CHANNELS = 3


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
    stack: NonNegativeInt  # flow pairs at each instant; 0 in an appearance stream
    pool: PositiveInt
    classes: PositiveInt
    class_names: tuple[str, ...] = ()
    origin: Origin = Origin()


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(save(tensors, {KEY: about.model_dump_json()}))


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
    network: TwoStream | Stream
    if about.kind == "joint":
        network = TwoStream(about.network, stack=about.stack, classes=about.classes, pool=about.pool)
    else:
        network = single(about.network, about.kind, stack=about.stack, classes=about.classes, pool=about.pool)
    tensors = load_file(path)
    if wrong := differences(tensors, network.state_dict()):
        raise WeightsError(f"{path}: not the network that it says it is: {first(wrong)}")
    network.load_state_dict(tensors)
    network.class_names = about.class_names
    return network.eval(), about
