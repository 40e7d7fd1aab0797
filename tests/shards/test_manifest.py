"""The manifest: strict about what it reads, and it notices when it was edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.errors import CorruptRecordError, FormatError
from shards.format import split_digest
from shards.manifest import Manifest, Part, ShardFile, _check, dump_manifest, parse_manifest, write_manifest

SHA = "0123456789abcdef" * 4


def made(**changes: Any) -> Manifest:
    part = Part(
        shards=tuple(ShardFile(name=f"train-00000{i}.tar", size=10240, sha256=SHA, records=2) for i in range(2)),
        index=ShardFile(name="train.index", size=300, sha256=SHA, records=4),
        records=4,
        frames=40,
        digest=SHA,
    )
    fields: dict[str, Any] = {
        "dataset": "drawn",
        "split": 1,
        "classes": ("up", "down", "Übergröße"),
        "parts": {"train": part},
        "made": {"flow": {"method": "tvl1", "tau": 0.25, "warps": 5}, "list": [1, None, True]},
        "store": "tar",
        "digest": split_digest({"train": SHA}),
    }
    return Manifest(**{**fields, **changes})


def test_a_manifest_comes_back_as_it_was(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", made())
    data = (tmp_path / "manifest.json").read_bytes()
    assert parse_manifest(data, "m") == made()
    assert dump_manifest(parse_manifest(data, "m")) == data
    assert list(tmp_path.iterdir()) == [tmp_path / "manifest.json"]


def test_every_changed_character_is_noticed_or_means_the_same() -> None:
    data = dump_manifest(made())
    for position in range(len(data)):
        for mask in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            try:
                found = parse_manifest(bytes(damaged), "m")
            except (FormatError, CorruptRecordError):
                continue
            assert found == made()


def test_a_manifest_cut_anywhere_is_refused() -> None:
    data = dump_manifest(made())
    for length in range(len(data) - 1):
        with pytest.raises((FormatError, CorruptRecordError)):
            parse_manifest(data[:length], "m")


def test_an_edited_value_is_noticed() -> None:
    data = dump_manifest(made()).replace(b'"drawn"', b'"crawn"')
    with pytest.raises(CorruptRecordError, match=r"m: check: .* edited or damaged"):
        parse_manifest(data, "m")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, r"m: schema: found 2, this version reads 1; update the program"),
        ("author", "x", r"m: author: unknown key"),
        ("split", "1", r"m: split: expected a whole number"),
        ("store", "zip", r"m: store: expected one of tar, lmdb, files, found 'zip'"),
        ("store", "lmdb", r"m: parts.train.shards: expected 'data.mdb' in a split stored as lmdb"),
        ("digest", SHA, r"m: digest: is not that of the parts' digests"),
        ("digest", "12", r"m: digest: expected 64 hexadecimal digits, found '12'"),
        ("classes", ["up", ""], r"m: classes\[1\]: expected a class's name, found ''"),
        ("classes", ["up", "up"], r"m: classes: 'up' stands twice"),
        ("classes", "up", r"m: classes: expected a list"),
        ("made", [], r"m: made: expected a map"),
        ("parts", {}, r"m: parts: expected at least one part"),
        ("parts", [], r"m: parts: expected at least one part"),
        ("parts.train.records", 5, r"m: parts.train.records: 5, but its index or its shards sum up to another"),
        ("parts.train.time", 5, r"m: parts.train.time: unknown key"),
        ("parts.train.index.name", "../x", r"m: parts.train.index.name: expected 'train.index', found '../x'"),
        ("parts.train.index.size", -1, r"m: parts.train.index.size: expected a whole number"),
        ("parts.train.shards.1.name", "/etc/passwd", r"m: parts.train.shards: expected 'train-000001.tar'"),
        ("parts.train.shards.1.size", 1.5, r"m: parts.train.shards\[1\].size: expected a whole number"),
        ("parts.train.shards.0.sha256", "x" * 64, r"m: parts.train.shards\[0\].sha256: expected 64 hexadecimal"),
    ],
)
def test_a_wrong_value_is_refused_with_its_dotted_path(path: str, value: Any, message: str) -> None:
    tree = json.loads(dump_manifest(made()))
    below = tree
    *above, last = path.split(".")
    for key in above:
        below = below[int(key) if key.isdigit() else key]
    below[last] = value
    with pytest.raises(FormatError, match=message):
        parse_manifest(sealed(tree), "m")


def test_a_missing_key_is_refused_by_its_path() -> None:
    tree = json.loads(dump_manifest(made()))
    del tree["parts"]["train"]["shards"][1]["sha256"]
    with pytest.raises(FormatError, match=r"m: parts.train.shards\[1\].sha256: missing key"):
        parse_manifest(sealed(tree), "m")


def test_a_part_has_a_plain_name() -> None:
    tree = json.loads(dump_manifest(made()))
    tree["parts"]["../train"] = tree["parts"].pop("train")
    with pytest.raises(FormatError, match=r"parts\.\.\./train: a part is named in lower case"):
        parse_manifest(sealed(tree), "m")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"schema": 1, "schema": 1}', b"[" * 100000, b"NaN"])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="m: "):
        parse_manifest(data, "m")


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x"])
def test_settings_that_json_cannot_hold_are_not_written(value: Any) -> None:
    with pytest.raises(FormatError, match=r"made: cannot be stored as JSON"):
        dump_manifest(made(made={"a": value}))


def sealed(tree: dict[str, Any]) -> bytes:
    """The manifest with a right check."""
    tree["check"] = _check({key: tree[key] for key in tree if key != "check"})
    return json.dumps(tree).encode()
