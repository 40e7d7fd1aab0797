"""Splits made of others, written: shards taken over byte for byte or packed anew, new ones behind those of a split.

A new split is written beside its place and gets its name when it is whole. Shards that are appended wait in a folder
within the split until all of them are whole; then they get their names, and the manifest, replaced at once, makes them
part of it. What an interrupted command finished is checked and used by the next that does the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from shards.copy import checked_records
from shards.errors import ShardError
from shards.format import Members, decode, encode, split_digest
from shards.index import index_tar
from shards.manifest import NAME, Manifest, Part, ShardFile, index_name, parse_manifest, write_manifest
from shards.partial import clear, held, room, tidy
from shards.recipe import Piece, Recipe
from shards.split import Split
from shards.stores.connect import is_url, place_of
from shards.transfer import Passed, checked, counted, difference, pieces
from shards.whole import sync_folder, unwritable, whole
from shards.writer import Packed, finish_part, pack_shard

Progress = Callable[[int, int], None]  # bytes done, in all

WAITING = "append.partial"  # the folder within a split where new shards wait
NOTE = "recipe.sha256"  # the recipe after which a folder in the making is written


def combine(recipe: Recipe, out: str | Path, progress: Progress | None = None) -> Manifest:
    """Writes the split of `recipe` to the folder `out`, which is whole or absent; its manifest.

    Where it is there already, nothing is done; an interrupted call is gone on with. Shards that stay as they are share
    their bytes with those of the source where the file system can (hard links), else they are copied. Raises ShardError
    where something else is at `out`, or the disk is full; CorruptRecordError where a source is damaged; what reading
    raises.
    """
    path = folder_for(out)
    if (there := there_already(recipe, path)) is not None:
        return there
    partial = path.with_name(path.name + ".partial")
    passed = counted(sum(piece.bytes for piece in recipe.pieces), progress)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with held(partial):
            _begin(partial, recipe)
            room(path, _needed(recipe, partial))
            parts = {}
            for part in recipe.parts:
                packed = [_written(recipe, piece, partial, passed) for piece in recipe.pieces if piece.part == part]
                parts[part] = _finish(partial, part, packed)
            manifest = _manifest(recipe, parts)
            write_manifest(partial / NAME, manifest)
            (partial / NOTE).unlink()
            partial.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    return manifest


def append(recipe: Recipe, progress: Progress | None = None) -> Manifest:
    """Writes the new shards of `recipe` behind those of its first split, which is a folder; its manifest then.

    Old shards are not touched, and old records keep their positions. Until the manifest is replaced, which happens at
    once, the split is what it was before, whatever interrupts this; the same call then goes on. Raises as `combine`,
    and ShardError where the split is no folder of tar shards, or was changed since it was opened.
    """
    split = recipe.splits[0]
    old, folder = split.manifest, appendable(split)
    waiting = folder / WAITING
    if not recipe.pieces and not waiting.exists():
        return old
    passed = counted(sum(piece.bytes for piece in recipe.pieces), progress)
    try:
        waiting.mkdir(exist_ok=True)
        with held(waiting):
            if parse_manifest((folder / NAME).read_bytes(), str(folder / NAME)) != old:
                raise ShardError(f"{folder}: was changed while this command read it; run it again")
            if not recipe.pieces:  # an append was killed when all was done but this
                clear(waiting)
                return old
            _fetch_back(recipe, folder, waiting)
            _begin(waiting, recipe)
            room(folder, _needed(recipe, waiting))
            parts, moved = dict(old.parts), list[str]()
            for part in recipe.parts:
                packed = [_written(recipe, piece, waiting, passed) for piece in recipe.pieces if piece.part == part]
                if packed or part not in parts:
                    parts[part] = _finish(waiting, part, packed, split if part in parts else None)
                    moved += [*(one.file.name for one in packed), parts[part].index.name]
            manifest = _manifest(recipe, parts)
            for name in moved:
                (waiting / name).replace(folder / name)
            sync_folder(folder)
            write_manifest(folder / NAME, manifest)
            _clean(folder, old, manifest)
    except OSError as error:
        raise unwritable(folder, error) from error
    return manifest


def appendable(split: Split) -> Path:
    """The folder of `split`. Raises ShardError where it is none that new shards can be put into."""
    if split.folder is None or split.manifest.store != "tar":
        kind = "not a split in a folder" if split.folder is None else f"stored as {split.manifest.store}"
        raise ShardError(
            f"{split.location}: {kind}; shards are appended to a folder of tar shards. Make one with: stmul shards copy"
            f" {split.location} FOLDER; append to that, and copy it back"
        )
    return split.folder


def folder_for(out: str | Path) -> Path:
    """`out` as the folder of a new split. Raises ShardError where it is a URL, or named like another store."""
    if is_url(str(out)):
        raise ShardError(
            f"{place_of(str(out)).shown}: expected a folder. Send it to a bucket afterwards with: stmul shards copy"
        )
    path = Path(out)
    if path.suffix in (".lmdb", ".files"):
        raise ShardError(
            f"{path}: expected a folder for tar shards. Make them first, then: stmul shards copy FOLDER {path}"
        )
    return path


def there_already(recipe: Recipe, path: Path) -> Manifest | None:
    """The manifest of `path` if it is what the recipe makes, None if nothing is there.

    Raises ShardError where something else is.
    """
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not (path / NAME).is_file():
        raise ShardError(f"{path}: exists and is no split. Give another target, or delete this one")
    found = parse_manifest((path / NAME).read_bytes(), str(path / NAME))
    if (found.made, found.dataset, found.classes) == (recipe.made, recipe.dataset, recipe.classes):
        return found
    raise ShardError(
        f"{path}: already holds another split ({found.dataset} {found.split}, digest {found.digest[:12]}...). Give"
        " another target, or delete this one"
    )


def to_be_linked(recipe: Recipe, folder: Path) -> set[int]:
    """Which of the recipe's splits lie on the file system of `folder`, so that no byte of a whole shard is copied."""
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    device = above.stat().st_dev
    places = ((source, split.folder) for source, split in enumerate(recipe.splits))
    return {source for source, place in places if place is not None and place.stat().st_dev == device}


def _begin(partial: Path, recipe: Recipe) -> None:
    """Keeps of what is in `partial` the shards that an interrupted call wrote after this very recipe."""
    wanted, note = recipe.fingerprint().encode(), partial / NOTE
    known = note.is_file() and note.read_bytes() == wanted
    if not known and (partial / NAME).is_file():  # it was killed at its very end
        with suppress(ShardError):
            known = parse_manifest((partial / NAME).read_bytes(), NAME).made == recipe.made
    tidy(partial, [NOTE, *(piece.name for piece in recipe.pieces)] if known else [])
    with whole(note) as file:
        file.write(wanted)


def _fetch_back(recipe: Recipe, folder: Path, waiting: Path) -> None:
    """Takes shards back that an interrupted call had given their names, but no place in the manifest.

    Raises ShardError where others are in the way.
    """
    names = [piece.name for piece in recipe.pieces if (folder / piece.name).exists()]
    if not names:
        return
    note = waiting / NOTE
    if not note.is_file() or note.read_bytes() != recipe.fingerprint().encode():
        raise ShardError(
            f"{folder / names[0]}: is not in the manifest, left from another build or an append that was interrupted."
            " Delete it, or run that append again"
        )
    for name in names:
        (folder / name).replace(waiting / name)


def _needed(recipe: Recipe, partial: Path) -> int:
    """Bytes that are still to be written, at most."""
    linked = to_be_linked(recipe, partial)
    return sum(
        piece.bytes
        for piece in recipe.pieces
        if not (partial / piece.name).exists() and (piece.file is None or piece.source not in linked)
    )


def _written(recipe: Recipe, piece: Piece, folder: Path, passed: Passed) -> Packed:
    """A shard, in `folder`: found there whole, taken over as it is, or packed."""
    path = folder / piece.name
    if piece.file is not None:
        file = replace(piece.file, name=piece.name)
        if not path.exists() or difference(path, file):
            _take(recipe, piece, piece.file, path, passed)
        else:
            passed(file.size)
        rows = tuple(replace(row, record=i, shard=piece.number) for i, row in enumerate(piece.rows))
        return Packed(file=file, rows=rows)
    if (found := _found(recipe, piece, path)) is not None:
        passed(piece.bytes)
        return found
    return pack_shard(path, _records(recipe, piece, passed), shard=piece.number)


def _take(recipe: Recipe, piece: Piece, file: ShardFile, path: Path, passed: Passed) -> None:
    """A shard of a source under the name `path`, every byte of it checked: a link to it, or a copy."""
    split = recipe.splits[piece.source]
    parts = checked(pieces(split.store, file), file, f"{split.location}/{file.name}")
    if piece.source in to_be_linked(recipe, path.parent) and split.folder is not None:
        for view in parts:
            passed(len(view))
        path.unlink(missing_ok=True)
        with suppress(OSError):  # a file system without links, or one with too many: then it is copied
            os.link((split.folder / file.name).resolve(), path)
            sync_folder(path.parent)
            return
        parts, passed = checked(pieces(split.store, file), file, f"{split.location}/{file.name}"), lambda _: None
    with whole(path) as opened:
        for view in parts:
            opened.write(view)
            passed(len(view))


def _found(recipe: Recipe, piece: Piece, path: Path) -> Packed | None:
    """The shard that an interrupted call packed at `path`, every byte of it checked; None where there is none."""
    try:
        with path.open("rb") as file:
            size, handle = os.fstat(file.fileno()).st_size, file.fileno()
            rows = index_tar(lambda start, stop: os.pread(handle, stop - start, start), size, piece.number, str(path))
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ShardError):
        return None
    labels = recipe.labels[piece.source]
    if [(row.key, row.label) for row in rows] != [(row.key, labels[row.label]) for row in piece.rows]:
        return None
    return Packed(
        file=ShardFile(name=path.name, size=size, sha256=sha256, records=len(rows)),
        rows=tuple(rows),
    )


def _records(recipe: Recipe, piece: Piece, passed: Passed) -> Iterator[tuple[str, Members]]:
    """The records of a shard that is packed; label and class are written anew where they change, and nothing else."""
    split, labels = recipe.splits[piece.source], recipe.labels[piece.source]
    for row, members in checked_records(split, piece.part, piece.rows):
        if recipe.stays(piece.source, row):
            yield row.key, members
        else:
            record, label = decode(members, f"{split.location}: {row.key}"), labels[row.label]
            yield row.key, encode(replace(record, label=label, class_name=recipe.classes[label]))
        passed(sum(len(blob) for blob in members.values()))


def _finish(folder: Path, part: str, packed: Sequence[Packed], before: Split | None = None) -> Part:
    """Writes the index of a part: of what was `packed`, behind what a split had of it `before`."""
    files = before.manifest.parts[part].shards if before else ()
    rows = list(before.index(part)) if before else []
    for one in packed:
        rows += [replace(row, record=len(rows) + i) for i, row in enumerate(one.rows)]
    files = (*files, *(one.file for one in packed))
    written = finish_part(folder, part, rows, files, len(files))
    if before is None:
        return written
    name = index_name(part, written.digest)  # the one it had before stays until the manifest is replaced
    (folder / written.index.name).replace(folder / name)
    return replace(written, index=replace(written.index, name=name))


def _manifest(recipe: Recipe, parts: dict[str, Part]) -> Manifest:
    return Manifest(
        dataset=recipe.dataset,
        split=recipe.split,
        classes=recipe.classes,
        parts=parts,
        made=dict(recipe.made),
        store="tar",
        digest=split_digest({name: part.digest for name, part in parts.items()}),
    )


def _clean(folder: Path, old: Manifest, new: Manifest) -> None:
    """Takes away what an append leaves: the folder where shards waited, and indexes that neither manifest names.

    Who opened the split before may come to need an index of the old one.
    """
    for part, said in new.parts.items():
        kept = {said.index.name, *([old.parts[part].index.name] if part in old.parts else [])}
        for path in [folder / index_name(part), *folder.glob(f"{part}-{'[0-9a-f]' * 16}.index")]:
            if path.name not in kept:
                path.unlink(missing_ok=True)
    clear(folder / WAITING)
