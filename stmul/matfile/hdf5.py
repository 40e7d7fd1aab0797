"""MATLAB files of v7.3: HDF5, whose groups are structs and whose datasets are arrays, with attributes that say which.

Nothing outside the file is opened: links by path, into other files, and data that lie in other files are `Foreign`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stmul.matfile.values import DEEPEST, Allowance, Foreign, allowance

NUMBERS = {"single", "double", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


def read_hdf5(path: Path, names: Sequence[str], unread: Set[str]) -> dict[str, Any]:
    """As `read_variables`. Raises whatever HDF5 does where the file is damaged."""
    import h5py

    with h5py.File(path, "r") as file:
        reader = Reader(file=file, unread=unread, allowance=allowance(path.stat().st_size))
        # Not `name in file`: that follows links, even into other files.
        return {name: reader.value(_member(file, name)) for name in names if file.id.links.exists(name.encode())}


def _member(group: Any, name: str) -> Any:
    import h5py

    hard = group.id.links.get_info(name.encode()).type == h5py.h5l.TYPE_HARD
    return group[name] if hard else Foreign("a link")


def _refers(dataset: Any) -> bool:
    import h5py

    # Not `dtype == ref_dtype`: that is true of text as well, which would then be followed as a path.
    return h5py.check_ref_dtype(dataset.dtype) is h5py.Reference


def _elsewhere(dataset: Any) -> bool:
    """Whether a dataset's data lie in other files, or might."""
    import h5py

    made = dataset.id.get_create_plist()
    return bool(made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count())


@dataclass(kw_only=True, slots=True)
class Reader:
    """A file, and what of it has been read: its objects may share parts, in many ways."""

    file: Any
    unread: Set[str]
    allowance: Allowance
    known: dict[int, Any] = field(default_factory=dict)  # by address

    def value(self, node: Any, depth: int = 0) -> Any:
        """What a group or a dataset holds."""
        import h5py

        if depth > DEEPEST:
            raise ValueError(f"structs and cells {depth} levels deep")
        if isinstance(node, Foreign):
            return node
        address = h5py.h5o.get_info(node.id).addr
        if address not in self.known:
            said = node.attrs.get("MATLAB_class", b"")
            kind = said.decode() if isinstance(said, bytes) else str(said)
            if isinstance(node, h5py.Group):
                found = self._structs(node, depth) if kind in ("", "struct") else Foreign(kind)
            elif isinstance(node, h5py.Dataset):
                found = Foreign("data in other files") if _elsewhere(node) else self._array(node, kind, depth)
            else:
                found = Foreign(type(node).__name__)
            self.known[address] = found
        return self.known[address]

    def _array(self, node: Any, kind: str, depth: int) -> Any:
        if kind == "struct":  # without fields, or none: otherwise it is a group
            return {}
        empty = node.dtype == np.uint64 and bool(node.attrs.get("MATLAB_empty", 0))  # then it holds the axes' lengths
        if _refers(node) or (kind == "cell" and empty):
            # HDF5's axes are MATLAB's in reverse, so that going through it row by row goes column by column.
            return [] if empty else [self.value(self._target(one), depth + 1) for one in self._references(node)]
        if (kind not in NUMBERS and kind != "char") or node.dtype.kind not in "fiub":
            return Foreign(kind or "data of no MATLAB class")
        if empty:
            return "" if kind == "char" else np.zeros((0, 0))
        values = np.atleast_1d(self._read(node))
        if kind != "char":
            return values.T
        rows = values.astype("<u2").reshape(-1, values.shape[-1]).T
        text = [row.tobytes().decode("utf-16-le") for row in rows]
        return text[0] if len(text) == 1 else text

    def _structs(self, group: Any, depth: int) -> Any:
        """One struct: members are its fields; several: each member is a table of references, an entry for each."""
        import h5py

        names = [name for name in group if name not in self.unread]
        self.allowance.take(parts=len(names))
        members = {name: _member(group, name) for name in names}
        tables = {
            name: one
            for name, one in members.items()
            if isinstance(one, h5py.Dataset) and _refers(one) and "MATLAB_class" not in one.attrs
        }
        if not tables:
            return {name: self.value(member, depth + 1) for name, member in members.items()}
        columns = {name: self._references(member) for name, member in tables.items()}
        if len(tables) < len(members) or len({len(column) for column in columns.values()}) != 1:
            raise ValueError(f"struct array {group.name} whose fields have unlike lengths")
        count = len(next(iter(columns.values())))
        return [
            {name: self.value(self._target(column[i]), depth + 1) for name, column in columns.items()}
            for i in range(count)
        ]

    def _references(self, table: Any) -> Any:
        if _elsewhere(table):
            raise ValueError(f"{table.name} lies in other files")
        self.allowance.take(parts=math.prod(table.shape))
        return self._read(table).flatten()

    def _read(self, node: Any) -> Any:
        self.allowance.take(size=math.prod(node.shape) * node.dtype.itemsize)
        return node[()]

    def _target(self, reference: Any) -> Any:
        return self.file[reference] if reference else Foreign("nothing")
