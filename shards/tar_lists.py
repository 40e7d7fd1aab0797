"""Quoted brace lists, 'https://host/split1/train-{000000..000003}.tar': which tars they name, and of which parts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from braceexpand import braceexpand

from shards.errors import FormatError
from shards.stores.connect import is_url, place_of

MOST = 100_000  # names in a list
LONGEST = 1 << 16  # characters of one
MOST_BRACES = 64  # pairs of braces; taking many apart that stand in each other takes long

_RANGE = re.compile(r"(-?[0-9]+)\.\.(-?[0-9]+)")
_NAME = re.compile(r"([a-z][a-z0-9_]{0,31})-[0-9]+\.tar")


@dataclass(frozen=True, kw_only=True, slots=True)
class TarList:
    """Tars of one folder."""

    folder: str  # a location, as the user gave it: secrets and all
    names: Mapping[str, Sequence[str]]  # of each part, in the order of the list


def tar_list(location: str) -> TarList | None:
    """The tars that `location` lists; None where it is no list: it has no braces, or is a file's or folder's own name.

    Raises FormatError where braces do not match, or the names are too many, of several folders, twice the same, or not
    of tars; UnreachableError for a URL of a kind that is not read.
    """
    if "{" not in location or (not is_url(location) and _is_there(location)):
        return None
    shown = _shown(location)
    divided = [_divided(one) for one in _expanded(location, shown)]
    folders = {folder for folder, _ in divided}
    if len(folders) != 1:
        raise FormatError(f"{shown}: a list of tars in several folders; expected one. Copy them into one folder")
    names = [name for _, name in divided]
    if other := [name for name in names if not name.endswith(".tar")]:
        raise FormatError(f"{shown}: lists {other[0]!r}; expected names that end in .tar")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FormatError(f"{shown}: lists {twice!r} twice")
    return TarList(folder=folders.pop(), names=by_part(names))


def by_part(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The names by part: test-000000.tar is of "test", and one that is not called so of "train"."""
    parts: dict[str, list[str]] = {}
    for name in names:
        found = _NAME.fullmatch(name)
        parts.setdefault(found[1] if found else "train", []).append(name)
    return {part: tuple(of_part) for part, of_part in parts.items()}


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a name, or none at all
        return False


def _expanded(location: str, shown: str) -> list[str]:
    # The library makes a list of every range before the first name comes out of it.
    ranges = _RANGE.findall(location)
    if (
        len(location) > LONGEST
        or location.count("{") > MOST_BRACES
        or any(len(end) > 9 for ends in ranges for end in ends)
    ):
        raise FormatError(f"{shown}: lists more than {MOST} tars; list fewer")
    if sum(abs(int(last) - int(first)) for first, last in ranges) >= MOST:
        raise FormatError(f"{shown}: lists more than {MOST} tars; list fewer")
    try:
        names = list(islice(braceexpand(location, escape=False), MOST + 1))
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{shown}: its braces do not match; expected a list such as train-{{000000..000003}}.tar"
        ) from error
    if len(names) > MOST:
        raise FormatError(f"{shown}: lists more than {MOST} tars; list fewer")
    return names


def _divided(location: str) -> tuple[str, str]:
    """The folder of a tar, as a location, and its name."""
    if not is_url(location):
        folder, name = os.path.split(location)
        return folder or ".", name
    place_of(location)  # refuses what is not read
    url = urlsplit(location.strip())
    folder, _, name = url.path.rpartition("/")
    return urlunsplit((url.scheme, url.netloc, folder, url.query, "")), unquote(name)


def _shown(location: str) -> str:
    """The list without what may be secret in it."""
    if not is_url(location):
        return location
    return re.sub(r"^([a-zA-Z0-9+.-]*://)[^/]*@", r"\1", location).partition("?")[0]
