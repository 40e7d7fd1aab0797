"""The ground floor: what a record is, where its bytes are, which comes next. It loads no torch, cv2 or webdataset.

These are the names for everyday use; what is needed less often stands in its own module. Each is loaded when it is
first asked for, so that the command line can say what it does without loading numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shards.access import Access
    from shards.check import Problem, problems
    from shards.copy import copy_split
    from shards.errors import (
        ChangedError,
        CorruptRecordError,
        FormatError,
        ShardError,
        StateMismatchError,
        TruncatedShardError,
        UnreachableError,
    )
    from shards.format import decode, encode, key_of
    from shards.manifest import Manifest
    from shards.record import FlowMade, Frames, Record, Source
    from shards.split import Split, open_split
    from shards.writer import write_split

_PLACES = {
    "access": ("Access",),
    "check": ("Problem", "problems"),
    "copy": ("copy_split",),
    "errors": (
        "ChangedError",
        "CorruptRecordError",
        "FormatError",
        "ShardError",
        "StateMismatchError",
        "TruncatedShardError",
        "UnreachableError",
    ),
    "format": ("decode", "encode", "key_of"),
    "manifest": ("Manifest",),
    "record": ("FlowMade", "Frames", "Record", "Source"),
    "split": ("Split", "open_split"),
    "writer": ("write_split",),
}
_MODULE = {name: f"shards.{module}" for module, names in _PLACES.items() for name in names}

__all__ = [  # noqa: RUF022  # by module, as above
    "Access",
    "Problem",
    "problems",
    "copy_split",
    "ChangedError",
    "CorruptRecordError",
    "FormatError",
    "ShardError",
    "StateMismatchError",
    "TruncatedShardError",
    "UnreachableError",
    "decode",
    "encode",
    "key_of",
    "Manifest",
    "FlowMade",
    "Frames",
    "Record",
    "Source",
    "Split",
    "open_split",
    "write_split",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module 'shards' has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
