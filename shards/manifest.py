"""What a split is: its shards, classes and counts, how it was made, and one digest of all of it. Written last.

JSON with a closed schema; `made` alone is open: the settings of the build. `check` is the SHA-256 of all the rest, so a
manifest that was edited or damaged is noticed. The digest is of keys, labels and records in order: the same for a split
as tar, as LMDB and as loose files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, cast

from shards.errors import CorruptRecordError, FormatError
from shards.fields import INT32, Fields, is_text, shown
from shards.format import split_digest
from shards.whole import whole

SCHEMA = 1
NAME = "manifest.json"
STORES = ("tar", "lmdb", "files")
LARGEST = 1 << 26  # bytes of a manifest: some 300,000 shards
DEEPEST = 16  # maps and lists within each other

_KEYS = ("schema", "dataset", "split", "store", "digest", "classes", "parts", "made", "check")
_PART_KEYS = ("records", "frames", "digest", "index", "shards")
_FILE_KEYS = ("name", "size", "sha256", "records")
_PART_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """A file of a split as it was written."""

    name: str
    size: int  # bytes
    sha256: str  # hexadecimal; empty where nobody noted it: a tar alone
    records: int  # of this part, in this file


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One part of a split: what is trained on, or what is tested on."""

    shards: tuple[ShardFile, ...]  # tar: by number; LMDB: data.mdb, which all parts share; loose files: none
    index: ShardFile
    records: int
    frames: int
    digest: str  # over (key, label, record SHA-256) in order


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One split of a data set."""

    dataset: str  # "ucf101"
    split: int
    classes: tuple[str, ...]  # by label
    parts: Mapping[str, Part]
    made: Mapping[str, Any]  # settings of the build, as JSON can hold them; no times, no hosts
    store: Literal["tar", "lmdb", "files"]
    digest: str  # over the parts' digests
    schema: int = SCHEMA


def shard_name(part: str, number: int) -> str:
    """The file name of a shard: train-000000.tar."""
    return f"{part}-{number:06d}.tar"


def index_name(part: str, digest: str = "") -> str:
    """The file name of a part's index: train.index; of one that was appended to, with its digest's first 16 digits.

    A new index so lies beside the old one until the manifest, replaced at once, names it.
    """
    return f"{part}-{digest[:16]}.index" if digest else f"{part}.index"


def dump_manifest(manifest: Manifest) -> bytes:
    """The manifest as it stands in its file. Raises FormatError where it could not be read back."""
    tree = _tree(manifest)
    try:
        tree["check"] = _check(tree)
        data = (json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise FormatError(f"{NAME}: made: cannot be stored as JSON: {error}") from error
    parse_manifest(data, NAME)
    return data


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes the manifest, whole or not at all."""
    data = dump_manifest(manifest)
    with whole(path) as file:
        file.write(data)


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest that `data` is. Raises FormatError with the dotted path of what is wrong, CorruptRecordError where
    it does not match its own check."""
    tree = _read(data, where)
    fields = Fields(tree, _KEYS, where=where)
    if fields.digest("check") != (found := _check({key: tree[key] for key in tree if key != "check"})):
        raise CorruptRecordError(
            f"{where}: check: its content has {found[:12]}..., expected {tree['check'][:12]}...: it was edited or"
            " damaged. Copy it again, or build the split again"
        )
    store = fields.text("store")
    if store not in STORES:
        raise FormatError(f"{where}: store: expected one of {', '.join(STORES)}, found {shown(store)}")
    names = tuple(tree["parts"]) if isinstance(tree["parts"], dict) else ()
    parts = {name: _part(fields.below("parts", names), name, store, where) for name in names}
    if not parts:
        raise FormatError(f"{where}: parts: expected at least one part, found {shown(tree['parts'])}")
    if (digest := fields.digest("digest")) != split_digest({name: part.digest for name, part in parts.items()}):
        raise FormatError(f"{where}: digest: is not that of the parts' digests")
    if not isinstance(tree["made"], dict):
        raise FormatError(f"{where}: made: expected a map, found {type(tree['made']).__name__}")
    return Manifest(
        dataset=fields.text("dataset"),
        split=fields.integer("split", high=INT32),
        classes=_classes(fields.items("classes"), where),
        parts=parts,
        made=tree["made"],
        store=cast(Literal["tar", "lmdb", "files"], store),
        digest=digest,
        schema=SCHEMA,
    )


def _tree(manifest: Manifest) -> dict[str, Any]:
    parts = {
        name: {
            "records": part.records,
            "frames": part.frames,
            "digest": part.digest,
            "index": _file_tree(part.index),
            "shards": [_file_tree(shard) for shard in part.shards],
        }
        for name, part in sorted(manifest.parts.items())
    }
    return {
        "schema": manifest.schema,
        "dataset": manifest.dataset,
        "split": manifest.split,
        "store": manifest.store,
        "digest": manifest.digest,
        "classes": list(manifest.classes),
        "parts": parts,
        "made": dict(manifest.made),
    }


def _file_tree(file: ShardFile) -> dict[str, Any]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256, "records": file.records}


def _check(tree: Mapping[str, Any]) -> str:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(data: bytes, where: str) -> dict[str, Any]:
    if len(data) > LARGEST:
        raise FormatError(f"{where}: {len(data)} bytes; a manifest has at most {LARGEST}")

    def closed(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) != len(pairs):
            raise ValueError(f"a key stands twice among {shown(sorted(key for key, _ in pairs))}")
        return tree

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{shown(text)} is too large a number")
        return value

    try:
        tree = json.loads(data.decode(), object_pairs_hook=closed, parse_constant=constant, parse_float=number)
        _must_be_tame(tree)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not readable as JSON: {error}. Copy it again, or build the split again") from error
    if not isinstance(tree, dict) or type(tree.get("schema")) is not int or tree["schema"] != SCHEMA:
        found = tree.get("schema") if isinstance(tree, dict) else tree
        raise FormatError(f"{where}: schema: found {shown(found)}, this version reads {SCHEMA}; update the program")
    return tree


def _must_be_tame(tree: Any) -> None:
    """Raises ValueError for what JSON can hold and others stumble over: deep nesting, text that UTF-8 cannot write."""
    level, depth = [tree], 0
    while level:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"more than {DEEPEST} maps or lists within each other")
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str) and not is_text(one):
                raise ValueError(f"{shown(one)} is no text")
        level = below


def _part(parts: Fields, name: str, store: str, source: str) -> Part:
    where, path = f"{source}: parts.{name}", f"parts.{name}.shards"
    if not _PART_NAME.fullmatch(name):
        raise FormatError(f"{where}: a part is named in lower case letters, digits and _, for example train")
    fields = parts.below(name, _PART_KEYS)
    listed = fields.items("shards")
    shards = tuple(_file(Fields(one, _FILE_KEYS, where=source, path=f"{path}[{i}]")) for i, one in enumerate(listed))
    part = Part(
        shards=shards,
        index=_file(fields.below("index", _FILE_KEYS)),
        records=fields.integer("records"),
        frames=fields.integer("frames", high=2**63 - 1),
        digest=fields.digest("digest"),
    )
    expected = {
        "tar": [shard_name(name, number) for number in range(len(shards))],
        "lmdb": ["data.mdb"],
        "files": [],
    }[store]
    for shard, name_expected in zip_longest([shard.name for shard in shards], expected):
        if shard != name_expected:
            raise FormatError(
                f"{where}.shards: expected {name_expected!r} in a split stored as {store}, found {shown(shard)}"
            )
    if part.index.name not in (index_name(name), index_name(name, part.digest)):
        raise FormatError(f"{where}.index.name: expected {index_name(name)!r}, found {shown(part.index.name)}")
    if part.index.records != part.records or (shards and sum(shard.records for shard in shards) != part.records):
        raise FormatError(f"{where}.records: {part.records}, but its index or its shards sum up to another number")
    return part


def _file(fields: Fields) -> ShardFile:
    return ShardFile(
        name=fields.text("name", empty=False),
        size=fields.integer("size", high=2**63 - 1),
        sha256=fields.digest("sha256"),
        records=fields.integer("records"),
    )


def _classes(names: Sequence[Any], where: str) -> tuple[str, ...]:
    seen = set[str]()
    for label, name in enumerate(names):
        if type(name) is not str or not name or not is_text(name):
            raise FormatError(f"{where}: classes[{label}]: expected a class's name, found {shown(name)}")
        if name in seen:
            raise FormatError(f"{where}: classes: {shown(name)} stands twice")
        seen.add(name)
    return tuple(names)
