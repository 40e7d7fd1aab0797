"""Closed maps, taken apart key by key: what is missing, unknown or of a wrong type is refused by its name.

The metadata of a record (MessagePack) and the manifest (JSON) are read through this; nothing of them is taken on trust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Any

from shards.errors import FormatError
from shards.record import Plain

UINT32 = 2**32 - 1
INT32 = 2**31 - 1


class Fields:
    """The values of a map that has exactly `keys`; `where` and `path` say in errors which map it is."""

    def __init__(self, value: Any, keys: Sequence[str], *, where: str, path: str = "") -> None:
        self._where, self._path = where, path
        if not isinstance(value, dict):
            raise self._error("", f"expected a map, found {type(value).__name__}")
        if unknown := [key for key in value if key not in keys]:
            raise self._error(_named(unknown[0]), "unknown key; was this written by a newer version?")
        if missing := [key for key in keys if key not in value]:
            raise self._error(missing[0], "missing key")
        self._value: dict[str, Any] = value

    def text(self, key: str, *, empty: bool = True) -> str:
        """The text at `key`: what can be written as UTF-8, which not all of JSON can."""
        value = self._value[key]
        if type(value) is not str or not (value or empty) or not is_text(value):
            raise self._error(key, f"expected text, found {shown(value)}")
        return value

    def integer(self, key: str, *, low: int = 0, high: int = UINT32) -> int:
        """The whole number at `key`, in low .. high."""
        return self._integer(key, self._value[key], low, high)

    def integers(self, key: str, count: int, *, low: int = 0, high: int = UINT32) -> tuple[int, ...]:
        """The `count` whole numbers at `key`, each in low .. high."""
        values = self.items(key)
        if len(values) != count:
            raise self._error(key, f"expected {count} whole numbers, found {len(values)}")
        return tuple(self._integer(f"{key}[{i}]", value, low, high) for i, value in enumerate(values))

    def number(self, key: str) -> float:
        """The finite number at `key`."""
        value = self._value[key]
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._error(key, f"expected a number, found {shown(value)}")
        return float(value)

    def binary(self, key: str, size: int | None = None) -> bytes:
        """The bytes at `key`, `size` of them."""
        value = self._value[key]
        if type(value) is not bytes or (size is not None and len(value) != size):
            expected = "bytes" if size is None else f"{size} bytes"
            raise self._error(key, f"expected {expected}, found {shown(value)}")
        return value

    def digest(self, key: str) -> str:
        """The SHA-256 at `key`, 64 hexadecimal digits in lower case."""
        value = self._value[key]
        if type(value) is not str or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise self._error(key, f"expected 64 hexadecimal digits, found {shown(value)}")
        return value

    def items(self, key: str) -> list[Any]:
        """The list at `key`."""
        value = self._value[key]
        if not isinstance(value, list | tuple):
            raise self._error(key, f"expected a list, found {shown(value)}")
        return list(value)

    def below(self, key: str, keys: Sequence[str]) -> Fields:
        """The closed map at `key`."""
        return Fields(self._value[key], keys, where=self._where, path=self.path(key))

    def plain(self, key: str) -> Mapping[str, Plain]:
        """The open map of settings at `key`: text keys; values text, finite numbers, true, false or null."""
        value = self._value[key]
        if not isinstance(value, dict):
            raise self._error(key, f"expected a map, found {shown(value)}")
        for name, setting in value.items():
            if type(name) is not str or not is_plain(setting):
                path = f"{key}.{_named(name)}"
                raise self._error(path, f"expected text, a number, true, false or null, found {shown(setting)}")
        return dict(value)

    def path(self, key: str) -> str:
        """The dotted path of `key`."""
        return f"{self._path}.{key}" if self._path else key

    def _integer(self, key: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise self._error(key, f"expected a whole number in {low} .. {high}, found {shown(value)}")
        return value

    def _error(self, key: str, problem: str) -> FormatError:
        path = self.path(key) if key else self._path
        return FormatError(f"{self._where}: {path + ': ' if path else ''}{problem}")


def is_plain(value: object) -> bool:
    """Whether `value` may stand among stored settings: the same after any number of round trips, in JSON too."""
    if type(value) is float:
        return math.isfinite(value)
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return value is None or type(value) is bool or (type(value) is str and is_text(value))


def is_text(value: str) -> bool:
    """Whether `value` can be written as UTF-8: JSON can hold halves of characters, which cannot."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def shown(value: object) -> str:
    """`value` in a message, in at most 60 characters: what a stranger wrote is not repeated at length."""
    text = f"{len(value)} bytes" if isinstance(value, bytes) else _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _named(key: object) -> str:
    """A key of a stranger's map in a path."""
    return key if isinstance(key, str) and len(key) <= 60 and key.isprintable() else shown(key)


_SHORT = Repr()  # looks at no more than it shows, however long or deep a value is
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
