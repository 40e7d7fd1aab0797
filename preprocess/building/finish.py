"""Packed shards -> a split: indexes out of what was noted about them, then the manifest, by which it is complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocess.building.notes import Note, NotedRows
from preprocess.building.places import FolderPlace, Place
from preprocess.building.tally import FAILURES, write_failures
from preprocess.building.work import Failure
from preprocess.errors import PreprocessError
from preprocess.sources.listing import Dataset
from shards.manifest import NAME, Manifest, Part, index_name, shard_name
from shards.writer import finish_part, finish_split, start_split


@dataclass(frozen=True, kw_only=True, slots=True)
class Complete:
    """A split that has just been completed."""

    manifest: Manifest
    failures: tuple[Failure, ...]
    labels: Mapping[str, set[int]]  # that occur, by part


def start(shards: Place) -> None:
    """Takes an older manifest away, so that what is half written never passes for whole. Raises ShardError."""
    if isinstance(shards, FolderPlace):
        start_split(shards.root)
    else:
        shards.remove([NAME])


def finish(
    dataset: Dataset, made: Mapping[str, Any], shards: Place, work: Place, notes: Mapping[str, Sequence[Note]]
) -> Complete:
    """Writes the indexes of all parts, whose `notes` are in order, and the manifest; removes what is of no shard.

    Raises PreprocessError where there is not one record, ShardError where it cannot be written.
    """
    noted = [note for of_part in notes.values() for note in of_part]
    failures = sorted((one for note in noted for one in note.failures), key=lambda one: (one.part, one.name))
    if not any(note.keys for note in noted):
        why = f"; the first: {failures[0].reason}" if failures else ""
        raise PreprocessError(
            f"{shards.location}: not one video could be used, so there is nothing to train or test on{why}"
        )
    parts, labels = dict[str, Part](), dict[str, set[int]]()
    with shards.desk() as desk:
        for part, of_part in notes.items():
            rows = NotedRows(work, dataset.split, of_part, desk)
            labels[part] = rows.labels()
            parts[part] = finish_part(desk, part, rows, tuple(note.file for note in of_part), len(of_part))
            shards.take(desk / index_name(part), parts[part].index)
        manifest = finish_split(
            desk, dataset=dataset.name, split=dataset.split, classes=dataset.classes, made=made, parts=parts
        )
        if failures:
            write_failures(shards, FAILURES, failures)
        shards.write(NAME, (desk / NAME).read_bytes())
    _remove_stale(shards, manifest, bool(failures))
    return Complete(manifest=manifest, failures=tuple(failures), labels=labels)


def _remove_stale(shards: Place, manifest: Manifest, failed: bool) -> None:
    """Removes what earlier builds left and this one has not: other shards, lists of failures, also of parts.

    And the indexes of shards that were appended.
    """
    ours = {file.name for part in manifest.parts.values() for file in (*part.shards, part.index)}
    stale = [name for name in shards.names() if _is_shard(name, manifest) and name not in ours]
    stale += [name for name in shards.names() if _is_appended(name, manifest) and name not in ours]
    stale += [name for name in shards.names() if _is_failures(name) and not (failed and name == FAILURES)]
    shards.remove(stale)


def _is_shard(name: str, manifest: Manifest) -> bool:
    part, _, number = Path(name).stem.rpartition("-")
    return part in manifest.parts and number.isdigit() and name == shard_name(part, int(number))


def _is_appended(name: str, manifest: Manifest) -> bool:
    part, _, digest = name.removesuffix(".index").rpartition("-")
    return part in manifest.parts and name == index_name(part, digest) and len(digest) == 16


def _is_failures(name: str) -> bool:
    return name.startswith("failures") and name.endswith(".jsonl")
