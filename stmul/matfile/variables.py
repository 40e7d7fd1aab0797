"""MATLAB files as plain values: dictionaries, lists, text and arrays.

Nothing of a file is run: what is neither data nor text (function handles, objects, links to other files) comes out as
`Foreign`. Only the variables asked for are read, and no more memory is taken than a file of its size can fill.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from stmul.errors import WeightsError
from stmul.matfile.classic import read_classic
from stmul.matfile.hdf5 import read_hdf5

HDF5 = b"\x89HDF\r\n\x1a\n"


def read_variables(path: Path, names: Sequence[str], unread: Set[str] = frozenset()) -> dict[str, Any]:
    """Those of the variables `names` that `path` holds, without the fields `unread` of its structs.

    A struct is a dictionary, an array of several structs a list of them, a cell a list (both column by column), char
    text; numbers are arrays in MATLAB's axis order. Raises WeightsError where the file is missing, damaged or no MATLAB
    file.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(520)
        read = read_hdf5 if HDF5 in (head[:8], head[512:]) else read_classic
        return read(path, names, unread)
    except Exception as error:  # a damaged file makes the readers raise whatever they trip over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: not readable as a MATLAB file ({reason})") from error
