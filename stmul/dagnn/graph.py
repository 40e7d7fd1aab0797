"""A MatConvNet DagNN as it is saved (matconvnet `@DagNN/saveobj.m`): layers joined by named variables, parameters.

Files differ in what they came through: wrapped in `net` or not, names as text or in cells, dimensions of 1 dropped or
kept, block fields of older and newer versions, layers in any order. Here they are all alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stmul.errors import WeightsError
from stmul.matfile import Foreign, read_variables

FIELDS = ("params", "layers", "meta")
# Fields that say nothing a network here could do otherwise; each costs time to read out of HDF5.
UNREAD = frozenset(
    {"vars", "opts", "learningRate", "weightDecay", "trainMethod", "epsilon", "numChannels", "freeze"}
    | {"useShortCircuit", "ignoreAverage", "rgbVariance", "augmentation", "description"}
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """One layer: what it reads and makes, by name, and its settings."""

    where: str  # the file, for messages
    name: str
    type: str  # "Conv", "ReLU", ...: its class without the package
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...]
    block: Mapping[str, Any]

    def numbers(self, field: str, default: Sequence[float], count: int) -> tuple[float, ...]:
        """The numbers of a block field, `default` where there is none; one number stands for `count` equal ones.

        Small types are widened before anyone reckons with them.
        """
        value = self.block.get(field)
        if value is None or (isinstance(value, list | str) and not value):
            return tuple(map(float, default))
        if not isinstance(value, np.ndarray):
            raise WeightsError(f"{self.where}: {self}: {field} is {_described(value)}, expected numbers")
        found = tuple(float(one) for one in np.ravel(value, order="F")) or tuple(map(float, default))
        return found * count if len(found) == 1 else found

    def whole(self, field: str, default: Sequence[int], count: int) -> tuple[int, ...]:
        """As `numbers`, of which there have to be `count`, and whole ones."""
        found = self.numbers(field, default, count)
        if len(found) != count or not all(one.is_integer() for one in found):
            said = " ".join(f"{one:g}" for one in found)
            raise WeightsError(f"{self.where}: {self}: {field} is {said}, expected whole numbers, {count} of them")
        return tuple(map(int, found))

    def text(self, field: str, default: str) -> str:
        """The text of a block field."""
        value = self.block.get(field, default)
        if not isinstance(value, str):
            raise WeightsError(f"{self.where}: {self}: {field} is {_described(value)}, expected text")
        return value

    def __str__(self) -> str:
        return f"layer {self.name} ({self.type})"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Graph:
    """A whole net. Raises WeightsError where names contradict each other."""

    where: str  # the file, for messages
    layers: tuple[Layer, ...]
    params: Mapping[str, NDArray[np.float32]]  # as stored: filters are [H W Cin Cout]
    meta: Mapping[str, Any]


def read_graph(path: Path) -> Graph:
    """The net in a MATLAB file. Raises WeightsError where there is none, or part of it is missing."""
    found = read_variables(path, ("net", *FIELDS), UNREAD)
    net = found.get("net", found)
    while isinstance(net, list) and len(net) == 1:
        net = net[0]
    if not isinstance(net, dict) or not {"layers", "params"} <= net.keys():
        held = ", ".join(net) if isinstance(net, dict) and net else "none of them"
        raise WeightsError(f"{path}: expected a DagNN (layers, params, vars, meta; or all that in net), found {held}")
    structs = {field: _structs(net[field], f"{path}: {field}") for field in ("layers", "params")}
    layers = tuple(_layer(fields, str(path), i) for i, fields in enumerate(structs["layers"], 1))
    counts = Counter(layer.name for layer in layers)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise WeightsError(f"{path}: layer {twice[0]} is there twice")
    params: dict[str, NDArray[np.float32]] = {}
    for i, fields in enumerate(structs["params"], 1):
        name = _name(fields.get("name"), f"{path}: params({i}).name")
        if name in params:
            raise WeightsError(f"{path}: parameter {name} is there twice")
        params[name] = _values(fields.get("value"), f"{path}: parameter {name}")
    if not layers:
        raise WeightsError(f"{path}: a net without layers")
    meta = net.get("meta")
    return Graph(where=str(path), layers=layers, params=params, meta=meta if isinstance(meta, dict) else {})


def _layer(fields: Mapping[str, Any], path: str, number: int) -> Layer:
    name = _name(fields.get("name"), f"{path}: layers({number}).name")
    where = f"{path}: layer {name}"
    block = fields.get("block")
    while isinstance(block, list) and len(block) == 1:  # a struct without fields may come in a cell
        block = block[0]
    if block is not None and not isinstance(block, dict) and not (isinstance(block, np.ndarray) and not block.size):
        raise WeightsError(f"{where}: block is {_described(block)}, expected a struct")
    return Layer(
        where=path,
        name=name,
        type=_name(fields.get("type"), f"{where}: type").rpartition(".")[2],
        inputs=_names(fields.get("inputs"), f"{where}: inputs"),
        outputs=_names(fields.get("outputs"), f"{where}: outputs"),
        params=_names(fields.get("params"), f"{where}: params"),
        block=block if isinstance(block, dict) else {},
    )


def _structs(value: Any, where: str) -> list[Mapping[str, Any]]:
    if isinstance(value, np.ndarray) and not value.size:
        return []
    listed = value if isinstance(value, list) else [value]
    if wrong := [one for one in listed if not isinstance(one, dict)]:
        raise WeightsError(f"{where}: expected structs, found {_described(wrong[0])}")
    return listed


def _name(value: Any, where: str) -> str:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str) or not value or not value.isprintable():
        raise WeightsError(f"{where}: expected a name, found {_described(value)}")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    if value is None or (isinstance(value, np.ndarray | list | str) and len(value) == 0):
        return ()
    listed = value if isinstance(value, list) else [value]
    return tuple(_name(one, where) for one in listed)


def _values(value: Any, where: str) -> NDArray[np.float32]:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or not value.size:
        raise WeightsError(f"{where}: expected numbers, found {_described(value)}")
    with np.errstate(over="ignore"):
        numbers = value.astype(np.float32, copy=False)
    if not np.isfinite(numbers).all():
        raise WeightsError(f"{where}: holds numbers that are not finite")
    return numbers


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {list(value.shape)}"
    if isinstance(value, Foreign):
        return f"{value.kind}, which is no data"
    if isinstance(value, str):
        return f"the text {value!r}"
    return "a cell" if isinstance(value, list) else "a struct" if isinstance(value, dict) else "nothing"
