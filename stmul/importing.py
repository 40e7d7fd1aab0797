"""From the authors' files to networks in files of ours: what is read, what it is called, what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stmul.config import RGB_CHANNELS
from stmul.errors import WeightsError
from stmul.matconvnet import join_streams, load_either, origin_of
from stmul.network import TwoStream
from stmul.resnet import Stream
from stmul.snapshot import Origin, save_network


@dataclass(frozen=True, slots=True, eq=False)
class Imported:
    """A network, and the file it is for."""

    network: TwoStream | Stream
    origin: Origin
    path: Path


def imported(
    files: Sequence[Path], out: Path, *, told: Origin, class_names: tuple[str, ...] = (), overwrite: bool = False
) -> list[Imported]:
    """The networks in MatConvNet files, all read, none written yet.

    `out` is a folder, or a `.safetensors` file: then for the one network, or for two base networks joined. What is
    `told` of their data set and split goes before what file names say. Raises WeightsError where a file holds
    something else, its name contradicts what is told, the classes are not as many as `class_names`, or a file would
    be replaced.
    """
    found = [(load_either(path), _origin(path, told)) for path in files]
    for path, (network, _) in zip(files, found, strict=True):
        if class_names and classes_of(network) != len(class_names):
            raise WeightsError(f"{path}: {classes_of(network)} classes, the shards have {len(class_names)}")
        network.class_names = class_names or network.class_names
    if out.suffix != ".safetensors":
        names = [_name(path, network, origin) for path, (network, origin) in zip(files, found, strict=True)]
        networks = [Imported(*one, out / name) for one, name in zip(found, names, strict=True)]
    else:
        networks = [Imported(*found[0], out)] if len(found) == 1 else [_joined(files, found, out)]
    paths = [one.path for one in networks]
    if twice := [path for path in paths if paths.count(path) > 1 or (path.exists() and not overwrite)]:
        raise WeightsError(f"{twice[0]}: is there already; replace it with --overwrite, or choose another -o")
    return networks


def written(one: Imported) -> Iterator[str]:
    """Writes a network's file, then says what it is, line by line."""
    save_network(one.path, one.network, one.origin)
    yield f"network   {described(one.network)}"
    yield f"from      {one.origin.source}, trained on {one.origin.trained_on}"
    yield f"written   {one.path} ({one.path.stat().st_size / 2**20:.0f} MiB)"
    if isinstance(one.network, TwoStream):
        yield f"next      stmul test -i {one.path}"


def classes_of(network: TwoStream | Stream) -> int:
    """How many classes it tells apart."""
    return network.appearance.classes if isinstance(network, TwoStream) else network.classes


def described(network: TwoStream | Stream) -> str:
    """A network in a line."""
    if isinstance(network, Stream):
        kind = "appearance" if network.channels == RGB_CHANNELS else "motion"
        return f"{kind} stream, ResNet-{network.own.depth}, {network.channels} channels, {network.classes} classes"
    settings = network.settings
    depths = f"ResNet-{settings.appearance.depth} and ResNet-{settings.motion.depth}"
    gates = f"{settings.operator} in {', '.join(settings.gated)}" if settings.operator != "none" else "not joined"
    return f"two streams, {depths}, {classes_of(network)} classes; {gates}"


def _origin(path: Path, told: Origin) -> Origin:
    named = origin_of(path)
    for what in ("dataset", "split"):
        said, found = getattr(told, what), getattr(named, what)
        if said and found and said != found:
            raise WeightsError(f"{path}: its name says {what} {found}, you say {said}; rename the file if it is wrong")
    return Origin(dataset=told.dataset or named.dataset, split=told.split or named.split, source=named.source)


def _name(path: Path, network: TwoStream | Stream, origin: Origin) -> str:
    if isinstance(network, TwoStream) or not origin.dataset or not origin.split:
        return f"{path.stem}.safetensors"
    kind = "appearance" if network.channels == RGB_CHANNELS else "motion"
    return f"{origin.dataset}-split{origin.split}-{kind}.safetensors"


def _joined(files: Sequence[Path], found: Sequence[tuple[TwoStream | Stream, Origin]], out: Path) -> Imported:
    streams = [network for network, _ in found if isinstance(network, Stream)]
    by_kind = {network.channels == RGB_CHANNELS: network for network in streams}
    if len(found) != 2 or len(streams) != 2 or len(by_kind) != 2:
        named = "; ".join(described(network) for network, _ in found)
        raise WeightsError(
            f"{out}: one file is for one network, or for an appearance and a motion stream to be joined; found {named}."
            f" Give a folder instead"
        )
    origins = [origin for _, origin in found]
    if origins[0].trained_on != origins[1].trained_on:
        raise WeightsError(f"{files[0]} is of {origins[0].trained_on}, {files[1]} of {origins[1].trained_on}")
    source = " and ".join(origin.source for origin in origins)
    return Imported(join_streams(by_kind[True], by_kind[False]), origins[0].model_copy(update={"source": source}), out)
