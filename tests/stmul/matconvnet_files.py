"""MatConvNet nets written to disk as MATLAB's `save` writes them, in level 5 (v5, v7) and in HDF5 (v7.3)."""

import struct
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

from tests.stmul.matconvnet_nets import Layer, Net, Param, appearance_base, final, imagenet_net, motion_base

__all__ = ["Layer", "Net", "Param", "appearance_base", "final", "imagenet_net", "motion_base", "write"]

NEWER_FIELDS = {"dilate", "freeze", "pickTemporalCentre"}  # of a block: unknown to older MatConvNets
NUMBERS = count()  # names for what is referred to in HDF5; they mean nothing


class StructArray(list[dict[str, Any]]):
    """A 1xN struct array; its elements have the same fields."""


class Handle(str):
    """The text of a function handle, which scipy cannot write."""


EXTRAS: dict[str, Any] = {
    "state": {"momentum": [np.ones((2, 3), np.float32), np.zeros((0, 0)), [[], "nested"]]},
    "stats": {
        "train": StructArray([{"objective": 2.5, "time": (1, 300)}, {"objective": -1, "time": 70000}]),
        "val": [],
    },
    "opts": {"expDir": "", "getBatch": Handle("@(imdb,batch)getBatch(opts,imdb,batch)")},
}


def write(
    path: Path,
    net: Net,
    *,
    version: Literal["v5", "v7", "v7.3"] = "v7",
    wrapped: bool = True,
    names: Literal["cells", "strings"] = "cells",
    squeezed: bool = False,
    blocks: Literal["new", "old"] = "new",
    order: Literal["saved", "shuffled"] = "saved",
    extras: bool = False,
    seed: int = 0,
) -> None:
    """Write the net as MATLAB's `save` would: the variable `net`, or unwrapped its fields as variables.

    With names="strings" and `squeezed` it is what tools leave that drop single dimensions; "old" blocks lack the
    fields of newer MatConvNets; `extras` are the variables of a checkpoint, a function handle among them.
    """
    tree = _tree(net, names, squeezed, blocks, np.random.default_rng(seed) if order == "shuffled" else None)
    tree = ({"net": tree} if wrapped else tree) | (EXTRAS if extras else {})
    if version == "v7.3":
        _write_hdf5(path, tree)
        return
    opts = tree.pop("opts", {})
    compressed = version == "v7"
    scipy.io.savemat(path, {key: _mat5(value) for key, value in tree.items()}, False, do_compression=compressed)
    with path.open("ab") as file:
        file.write(_opts_mat5(opts) if opts else b"")


def _tree(net: Net, names: str, squeezed: bool, blocks: str, draws: np.random.Generator | None) -> dict[str, Any]:
    def cell(words: tuple[str, ...]) -> Any:
        if names == "strings" and len(words) < 2:
            return words[0] if words else np.zeros((0, 0))
        return list(words)

    def ordered(items: Iterable[dict[str, Any]]) -> StructArray:
        saved = list(items)
        return StructArray(saved if draws is None else [saved[i] for i in draws.permutation(len(saved))])

    def block(layer: Layer) -> dict[str, Any]:
        return {key: value for key, value in layer.block.items() if blocks == "new" or key not in NEWER_FIELDS}

    def value(param: Param) -> NDArray[np.float32]:
        return np.atleast_2d(param.value.squeeze()) if squeezed else param.value

    layers = (
        {"name": layer.name, "type": layer.type, "inputs": cell(layer.inputs), "outputs": cell(layer.outputs)}
        | {"params": cell(layer.params), "block": block(layer)}
        for layer in net.layers
    )
    params = (
        {"name": param.name, "value": value(param)}
        | {"learningRate": param.learning_rate, "weightDecay": param.weight_decay}
        for param in net.params
    )
    variables = ordered({"name": var, "precious": False} for var in net.vars)
    return {"vars": variables, "params": ordered(params), "layers": ordered(layers), "meta": dict(net.meta)}


def _array(value: Any) -> NDArray[Any]:
    """Numbers as MATLAB's arrays: doubles unless they say otherwise, two axes at least, no single axis behind those."""
    array = np.atleast_2d(value if isinstance(value, np.ndarray) else np.asarray(value, np.float64))
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


def _mat5(value: Any) -> Any:
    """A value as savemat wants it; doubles that are whole numbers become the small integers that MATLAB stores."""
    if isinstance(value, StructArray):
        array = np.empty((1, len(value)), [(name, object) for name in value[0]])
        for i, element in enumerate(value):
            array[0, i] = tuple(_mat5(part) for part in element.values())
        return array
    if isinstance(value, dict):
        return {name: _mat5(part) for name, part in value.items()}
    if isinstance(value, list):
        cells = np.empty((min(len(value), 1), len(value)), object)
        for i, part in enumerate(value):
            cells[0, i] = _mat5(part)
        return cells
    if isinstance(value, str | bool):
        return value if isinstance(value, str) else np.array([[value]])
    array = _array(value)
    if array.dtype == np.float64 and array.size and np.isfinite(array).all() and not (array % 1).any():
        for kind in (np.uint8, np.int16, np.uint16, np.int32):
            if np.iinfo(kind).min <= array.min() and array.max() <= np.iinfo(kind).max:
                return array.astype(kind)
    return array


def _element(kind: int, payload: bytes) -> bytes:
    return struct.pack("<II", kind, len(payload)) + payload + bytes(-len(payload) % 8)


def _matrix(array_class: int, name: bytes, shape: tuple[int, int], *contents: bytes) -> bytes:
    head = _element(6, struct.pack("<II", array_class, 0)) + _element(5, struct.pack("<ii", *shape))
    return _element(14, head + _element(1, name) + b"".join(contents))


def _opts_mat5(opts: dict[str, str]) -> bytes:
    """The variable opts, a struct of texts (class 4) and function handles (class 16), as level 5 has them in bytes."""
    fields = []
    for text in opts.values():
        field = _matrix(4, b"", (min(len(text), 1), len(text)), _element(4, text.encode("utf-16-le")))
        fields.append(_matrix(16, b"", (1, 1), field) if isinstance(text, Handle) else field)
    names = b"".join(name.encode().ljust(32, b"\0") for name in opts)
    return _matrix(2, b"opts", (1, 1), struct.pack("<HHi", 5, 4, 32), _element(1, names), *fields)


def _write_hdf5(path: Path, tree: dict[str, Any]) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        empty = file.create_dataset("#refs#/a", data=np.zeros(2, np.uint64))
        empty.attrs.update({"MATLAB_class": np.bytes_("canonical empty"), "MATLAB_empty": np.uint8(1)})
        for name, value in tree.items():
            _hdf5(file, name, value)
    text = "MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Sat Jul  1 12:00:00 2017 HDF5 schema 1.00 ."
    with path.open("r+b") as raw:
        raw.write(text.encode().ljust(116) + bytes(8) + struct.pack("<H", 0x0200) + b"IM")


def _hdf5(parent: h5py.Group, name: str | None, value: Any) -> h5py.Group | h5py.Dataset:
    """A value under a name as MATLAB 7.3 lays it out: axes reversed, parts of cells and struct arrays by reference."""
    if isinstance(value, StructArray) and len(value) == 1:
        return _hdf5(parent, name, value[0])
    if isinstance(value, StructArray | dict):
        item = parent.create_group(name)
        parts = value if isinstance(value, dict) else {key: [element[key] for element in value] for key in value[0]}
        for key, part in parts.items():
            _hdf5(item, key, part) if isinstance(value, dict) else _references(item, key, part)
        fields = np.empty(len(parts), object)
        fields[:] = [np.array(list(key), "S1") for key in parts]
        if parts:
            item.attrs.create("MATLAB_fields", fields, dtype=h5py.vlen_dtype(np.dtype("S1")))
        return _marked(item, "struct")
    if isinstance(value, Handle):
        item = parent.create_group(name)
        _hdf5(item, "function_handle", str(value))
        return _marked(item, "function_handle", 3)
    if isinstance(value, list) and value:
        return _marked(_references(parent, name, value), "cell")
    if isinstance(value, str) and value:
        letters = np.frombuffer(value.encode("utf-16-le"), np.uint16)[:, None]
        return _marked(parent.create_dataset(name, data=letters), "char", 2)
    if isinstance(value, bool):
        return _marked(parent.create_dataset(name, data=np.full((1, 1), value, np.uint8)), "logical", 1)
    array = np.zeros((0, 0)) if isinstance(value, str | list) else _array(value)
    kind = "single" if array.dtype == np.float32 else "double"
    kind = "char" if isinstance(value, str) else "cell" if isinstance(value, list) else kind
    if array.size:
        return _marked(parent.create_dataset(name, data=array.T), kind)
    item = _marked(parent.create_dataset(name, data=np.array(array.shape, np.uint64)), kind)
    item.attrs["MATLAB_empty"] = np.uint8(1)
    return item


def _references(parent: h5py.Group, name: str | None, parts: list[Any]) -> h5py.Dataset:
    kept = parent.file["#refs#"]
    items = []
    for part in parts:
        items.append(_hdf5(kept, None, part))
        kept[f"r{next(NUMBERS)}"] = items[-1]
    return parent.create_dataset(name, data=np.array([[item.ref] for item in items], h5py.ref_dtype))


def _marked(item: h5py.Group | h5py.Dataset, kind: str, decode: int = 0) -> Any:
    item.attrs["MATLAB_class"] = np.bytes_(kind)
    if decode:
        item.attrs["MATLAB_int_decode"] = np.int32(decode)
    return item
