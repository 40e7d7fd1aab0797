"""The authors' networks, as MatConvNet saved them (`STMulNet.m` in feichtenhofer/st-resnet), as networks of ours.

A net is read from its classifiers back to its inputs. Every layer and every parameter has to be used, and used once;
what `TwoStream` would compute otherwise is refused. Nothing in a file is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from stmul.checkpoint import differences, first
from stmul.config import RGB_CHANNELS, Network, StreamNetwork, TemporalFilters
from stmul.dagnn import FoundStream, Graph, Walk, read_graph, read_stream
from stmul.errors import WeightsError
from stmul.network import TwoStream, join
from stmul.resnet import Stream
from stmul.snapshot import Origin
from stmul.weights import stepping


def load_network(path: str | Path) -> TwoStream:
    """The final network in a file: two streams, what joins them and what looks along time, in evaluation mode.

    It carries its means, and its classes' names where the file has them. Raises WeightsError naming the layer or the
    parameter where the file holds something else.
    """
    network = load_either(path)
    if isinstance(network, Stream):
        raise WeightsError(f"{path}: one stream, expected two joined; a base network is for load_stream and from_base")
    return network


def load_stream(path: str | Path) -> Stream:
    """The one stream of a base network, or of an ImageNet network, in evaluation mode; RGB if it has 3 channels.

    Raises WeightsError as `load_network`.
    """
    network = load_either(path)
    if isinstance(network, TwoStream):
        raise WeightsError(f"{path}: two streams joined, expected one; a final network is for load_network")
    return network


def load_either(path: str | Path) -> TwoStream | Stream:
    """The network in a file: a stream alone where there is one classifier, two joined where there are two."""
    walk = Walk(read_graph(Path(path)))
    found = [read_stream(walk, scores) for scores in _scores(walk)]
    left = [str(layer) for layer in walk.graph.layers if layer.name not in walk.passed]
    left += [f"parameter {name}" for name in walk.graph.params if name not in walk.taken]
    if left:
        raise walk.wrong(f"nothing here uses {first(left)}; another network, or a file of several")
    network = _alone(walk, found[0]) if len(found) == 1 else _joined(walk, found)
    network.class_names = _class_names(walk.graph, found[0].classes)
    return network.eval()


def _joined(walk: Walk, found: Sequence[FoundStream]) -> TwoStream:
    if len(found) != 2 or sum(stream.channels == RGB_CHANNELS for stream in found) != 1:
        channels = " and ".join(str(stream.channels) for stream in found)
        raise walk.wrong(f"{len(found)} streams of {channels} channels, expected one of 3 (RGB) and one of flow")
    appearance, motion = sorted(found, key=lambda stream: stream.channels != RGB_CHANNELS)
    settings = _joint_settings(walk, appearance, motion)
    network = TwoStream(settings, stack=motion.channels // 2, classes=appearance.classes, pool=appearance.pool)
    levels = _average_image(walk.graph, motion.channels + RGB_CHANNELS)  # flow first
    _fill(walk, network.appearance, appearance, levels[motion.channels :])
    _fill(walk, network.motion, motion, levels[: motion.channels])
    return network


def _alone(walk: Walk, found: FoundStream) -> Stream:
    if over_time := [name for name, unit in found.units.items() if unit.over_time]:
        raise walk.wrong(f"a stream alone with filters over time in {', '.join(over_time)}, expected none")
    if found.temporal_window > 1 or found.temporal_stride > 1:
        raise walk.wrong("a stream alone with a maximum over time, expected none")
    if joined := [name for name, unit in found.units.items() if unit.gate is not None]:
        raise walk.wrong(f"a stream alone, joined with itself in {', '.join(joined)}, expected no other inputs")
    own = _stream_settings(found)
    settings = _settings(walk, {"appearance": own, "motion": own, **_shared(found)})
    mean = _average_image(walk.graph, found.channels)
    stream = Stream(own, settings, mean=mean.tolist(), classes=found.classes, pool=found.pool, over_time=False)
    _fill(walk, stream, found, mean)
    return stream


def from_base(appearance_path: str | Path, motion_path: str | Path, **changes: Any) -> TwoStream:
    """Two base networks joined as the released script joins them: gates, temporal filters and maxima over time are new.

    `changes` are fields of `config.Network`, for another way of joining. Raises WeightsError where the files are for
    different data sets, splits or classes, or their streams cannot be joined.
    """
    one, other = origin_of(Path(appearance_path)), origin_of(Path(motion_path))
    same = one.dataset == other.dataset and (one.split == other.split or not one.split * other.split)
    if one.dataset and other.dataset and not same:
        raise WeightsError(f"{appearance_path} is of {one.trained_on}, {motion_path} of {other.trained_on}")
    return join_streams(load_stream(appearance_path), load_stream(motion_path), **changes)


def join_streams(appearance: Stream, motion: Stream, **changes: Any) -> TwoStream:
    """Two streams as one network, with the settings that they bring and `changes` on top."""
    for stream, name, fits in (
        (appearance, "appearance", appearance.channels == RGB_CHANNELS),
        (motion, "motion", motion.channels != RGB_CHANNELS),
    ):
        if not fits:
            raise WeightsError(f"the {name} stream has {stream.channels} input channels; were the two exchanged?")
    if stepping(appearance.settings) != stepping(motion.settings):
        raise WeightsError("the two streams differ in where they stride or how they pool; no network here joins them")
    if appearance.classes != motion.classes or appearance.pool != motion.pool:
        raise WeightsError(
            f"appearance has {appearance.classes} classes and pool {appearance.pool},"
            f" motion {motion.classes} and {motion.pool}"
        )
    own = {"appearance": appearance.own, "motion": motion.own}
    try:
        settings = Network.model_validate({**own, **stepping(appearance.settings), **changes})
    except ValidationError as error:
        raise WeightsError(f"these streams cannot be joined so: {_mistake(error)}") from error
    return join(settings, appearance, motion).eval()


def origin_of(path: Path) -> Origin:
    """Data set and split as the authors' file names tell them: `ucf101-img-resnet50-split1-dr0.mat`."""
    stem = path.name.lower()
    dataset = re.match(r"(ucf101|hmdb51)", stem)
    split = re.search(r"split=?([1-9])", stem)
    return Origin(
        dataset=dataset[0] if dataset else "",
        split=int(split[1]) if split else 0,
        source=f"MatConvNet file {path.name}",
    )


def _scores(walk: Walk) -> list[str]:
    """The variables that hold class scores: what the losses read; without any, what the softmax does."""
    layers = walk.graph.layers
    ends = [layer for layer in layers if layer.type == "Loss"] or [layer for layer in layers if layer.type == "SoftMax"]
    for layer in ends:
        if not layer.inputs:
            raise walk.wrong(f"{layer} has no input")
        walk.passed.add(layer.name)
    read = {name for layer in layers for name in layer.inputs}
    last = [name for layer in layers for name in layer.outputs if name not in read]
    return list(dict.fromkeys(layer.inputs[0] for layer in ends)) or last


def _fill(walk: Walk, stream: Stream, found: FoundStream, mean: NDArray[np.float64]) -> None:
    state = {**found.state, "mean": torch.from_numpy(mean).float()}
    if wrong := differences(state, stream.state_dict()):
        raise walk.wrong(f"the stream that reads {found.input} is none of ours: {first(wrong)}")
    stream.load_state_dict(state)


def _stream_settings(found: FoundStream) -> StreamNetwork:
    return StreamNetwork.model_validate({"depth": found.depth, "width": found.width, "dropout": found.dropout})


def _shared(found: FoundStream) -> dict[str, Any]:
    return {"stride_on": found.stride_on, "pooling": found.pooling}


def _settings(walk: Walk, fields: dict[str, Any]) -> Network:
    try:
        return Network.model_validate({"operator": "none", "temporal": TemporalFilters(units=()), **fields})
    except ValidationError as error:
        raise walk.wrong(f"no network here is so: {_mistake(error)}") from error


def _mistake(error: ValidationError) -> str:
    found = error.errors()[0]
    where = ".".join(map(str, found["loc"]))
    return f"{where} {found.get('input')!r}: {found['msg']}" if where else str(found["msg"])


def _joint_settings(walk: Walk, appearance: FoundStream, motion: FoundStream) -> Network:
    """The settings of the two streams found, which have to agree on what they share."""
    alike = ("stride_on", "pooling", "pool", "temporal_window", "temporal_stride", "classes")
    for name in alike:
        one, other = getattr(appearance, name), getattr(motion, name)
        if one != other:
            raise walk.wrong(f"{name} is {one} in appearance and {other} in motion; expected the same")
    filtered = [tuple(name for name, unit in s.units.items() if unit.over_time) for s in (appearance, motion)]
    kinds = {unit.over_time for s in (appearance, motion) for unit in s.units.values() if unit.over_time}
    if len(kinds) > 1:
        raise walk.wrong("filters over time both injected and inflated; expected one kind")
    own = [_stream_settings(stream) for stream in (appearance, motion)]
    if filtered[0] != filtered[1]:  # the released script, whose patterns miss some units of deeper networks
        own[1] = own[1].model_copy(update={"temporal_units": filtered[1]})
    return _settings(
        walk,
        {
            "appearance": own[0],
            "motion": own[1],
            **_gates(walk, appearance, motion),
            "temporal": TemporalFilters(units=filtered[0], kind="inflated" if "inflated" in kinds else "injected"),
            "temporal_window": appearance.temporal_window,
            "temporal_stride": appearance.temporal_stride,
            **_shared(appearance),
        },
    )


def _gates(walk: Walk, appearance: FoundStream, motion: FoundStream) -> dict[str, Any]:
    found: dict[str, tuple[str, ...]] = {}
    operators = set()
    for into, stream, other in (
        ("motion_to_appearance", appearance, motion),
        ("appearance_to_motion", motion, appearance),
    ):
        gates = {name: unit.gate for name, unit in stream.units.items() if unit.gate is not None}
        for name, gate in gates.items():
            expected = other.units[name].entering if name in other.units else "nothing: it has no such unit"
            if gate.other != expected:
                raise walk.wrong(f"unit {name} is joined with {gate.other}, expected {expected}")
            operators.add(gate.operator)
        if gates:
            found[into] = tuple(gates)
    if not found:
        return {}
    if len(operators) > 1 or len(set(found.values())) > 1:
        raise walk.wrong(f"streams joined by {' and '.join(sorted(operators))} in {found}; expected alike")
    direction = "both" if len(found) == 2 else next(iter(found))
    return {"operator": operators.pop(), "direction": direction, "gated": next(iter(found.values()))}


def _average_image(graph: Graph, channels: int) -> NDArray[np.float64]:
    """The mean level of each channel: the file's average image, averaged over space."""
    normalization = graph.meta.get("normalization")
    image = normalization.get("averageImage") if isinstance(normalization, dict) else None
    if not isinstance(image, np.ndarray) or image.dtype.kind not in "fiu" or not image.size:
        raise WeightsError(f"{graph.where}: meta.normalization.averageImage is missing; the network needs its means")
    levels = np.asarray(image, dtype=np.float64)
    if levels.ndim == 3:
        levels = levels.mean((0, 1))
    levels = levels.ravel()
    if levels.size != channels or not np.isfinite(levels).all():
        raise WeightsError(
            f"{graph.where}: meta.normalization.averageImage has shape {list(image.shape)},"
            f" expected {channels} channels"
        )
    return levels


def _class_names(graph: Graph, classes: int) -> tuple[str, ...]:
    """The classes' names, if they are those of the classifier: a fine-tuned net still has ImageNet's."""
    described = graph.meta.get("classes")
    names = described.get("name") if isinstance(described, dict) else None
    if isinstance(names, list) and len(names) == classes and all(isinstance(name, str) for name in names):
        return tuple(names)
    return ()
