"""MATLAB files as plain values: dictionaries, lists, text and arrays. v5 and v7 by scipy, v7.3 (HDF5) by h5py.

Nothing of a file is run: what is neither data nor text (function handles, objects, links to other files) comes out as
`Foreign`. Only the variables asked for are read.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmul.errors import WeightsError

NUMBERS = {"single", "double", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
DEEPEST = 30  # levels of structs and cells in each other; a net has 6


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in a file that is no data."""

    kind: str


def read_variables(path: Path, names: Sequence[str], unread: Set[str] = frozenset()) -> dict[str, Any]:
    """Those of the variables `names` that `path` holds, without the fields `unread` of its structs.

    A struct is a dictionary, an array of several structs a list of them, a cell a list (both column by column), char
    text; numbers are arrays in MATLAB's axis order, as they are stored: MATLAB keeps whole numbers in the smallest type
    that holds them. Raises WeightsError where the file is missing, damaged or no MATLAB file.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(520)
        if head[512:520] == b"\x89HDF\r\n\x1a\n" or head[:8] == b"\x89HDF\r\n\x1a\n":
            return _read_hdf5(path, names, unread)
        return _read_classic(path, names, unread)
    except Exception as error:  # a damaged file makes the readers raise whatever they trip over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: not readable as a MATLAB file ({reason})") from error


# v5 and v7


def _read_classic(path: Path, names: Sequence[str], unread: Set[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    found = loadmat(path, variable_names=list(names), struct_as_record=True, squeeze_me=False, chars_as_strings=True)
    return {name: _classic(found[name], unread) for name in names if name in found}


def _classic(value: Any, unread: Set[str], depth: int = 0) -> Any:
    from scipy.io import matlab

    if depth > DEEPEST:
        raise ValueError(f"structs and cells {depth} levels deep")
    if value is None:  # a struct without fields
        return {}
    foreign = (matlab.MatlabFunction, matlab.MatlabOpaque, matlab.MatlabObject)
    if isinstance(value, foreign) or not isinstance(value, np.ndarray):
        return Foreign(type(value).__name__)
    if value.dtype.names is not None:
        fields = [name for name in value.dtype.names if name not in unread]
        structs = [
            {name: _classic(one[name], unread, depth + 1) for name in fields} for one in value.flatten(order="F")
        ]
        return structs[0] if len(structs) == 1 else structs
    if value.dtype == object:
        return [_classic(one, unread, depth + 1) for one in value.flatten(order="F")]
    if value.dtype.kind in "US":
        rows = [str(row) for row in value.flatten()]
        return rows[0] if len(rows) == 1 else rows or ""
    return value


# v7.3


def _read_hdf5(path: Path, names: Sequence[str], unread: Set[str]) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as file:
        return {name: _hdf5(_member(file, name), file, unread) for name in names if name in file}


def _member(group: Any, name: str) -> Any:
    import h5py

    # A link to another file, or by path, could make the reader open what the user never named.
    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else Foreign("link")


def _hdf5(node: Any, file: Any, unread: Set[str], depth: int = 0) -> Any:
    import h5py

    if depth > DEEPEST:
        raise ValueError(f"structs and cells {depth} levels deep")
    if isinstance(node, Foreign):
        return node
    said = node.attrs.get("MATLAB_class", b"")
    kind = said.decode() if isinstance(said, bytes) else str(said)
    if isinstance(node, h5py.Group):
        return _hdf5_structs(node, file, unread, depth) if kind in ("", "struct") else Foreign(kind)
    if kind == "struct":  # without fields: with them it is a group
        return {}
    made = node.id.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        return Foreign("data in other files")
    if kind == "cell" or node.dtype == h5py.ref_dtype:
        if "MATLAB_empty" in node.attrs:
            return []
        # HDF5's axes are MATLAB's in reverse, so that going through it row by row goes column by column.
        return [_hdf5(_target(reference, file), file, unread, depth + 1) for reference in node[()].flatten()]
    if kind not in NUMBERS and kind != "char":
        return Foreign(kind or "data of no MATLAB class")
    values = node[()]
    if values.dtype == np.uint64 and node.attrs.get("MATLAB_empty", 0):  # then it holds the lengths of the axes
        return "" if kind == "char" else np.zeros([int(side) for side in values.flatten()][:8])
    if kind == "char":
        rows = ["".join(map(chr, row)) for row in values.reshape(-1, values.shape[-1]).T]
        return rows[0] if len(rows) == 1 else rows
    return values.T


def _hdf5_structs(group: Any, file: Any, unread: Set[str], depth: int) -> Any:
    """One struct: members are its fields; several: each member is a table of references, an entry for each struct."""
    import h5py

    members = {name: _member(group, name) for name in group if name not in unread}
    tables = {
        name: member
        for name, member in members.items()
        if isinstance(member, h5py.Dataset) and member.dtype == h5py.ref_dtype and "MATLAB_class" not in member.attrs
    }
    if not tables:
        return {name: _hdf5(member, file, unread, depth + 1) for name, member in members.items()}
    columns = {name: member[()].flatten() for name, member in tables.items()}
    if len(tables) < len(members) or len({len(column) for column in columns.values()}) != 1:
        raise ValueError(f"struct array {group.name} whose fields have unlike lengths")
    count = len(next(iter(columns.values())))
    return [
        {name: _hdf5(_target(column[i], file), file, unread, depth + 1) for name, column in columns.items()}
        for i in range(count)
    ]


def _target(reference: Any, file: Any) -> Any:
    return file[reference] if reference else Foreign("nothing")
