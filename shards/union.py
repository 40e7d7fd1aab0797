"""Several splits as one: classes united by name, records that two of them have, and ways that differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from configs import nearest
from shards.errors import ShardError
from shards.index import Row
from shards.provenance import differences, made_of, shown
from shards.recipe import Piece, Recipe, dealt
from shards.split import Split

NAMED = 3  # records in a message


def merged(
    splits: Sequence[Split],
    *,
    dataset: str = "",
    rename: Mapping[str, str] | None = None,
    skip_duplicates: bool = False,
    mixed: bool = False,
) -> Recipe:
    """The records of all `splits`, one after the other, part by part; their classes united by name.

    Classes are counted as they come: all of the first split, then what the second has beside them. `rename` gives
    classes other names. Raises ShardError where two splits have a record of the same name (unless it is the same, byte
    for byte, and `skip_duplicates`), a class under two spellings, or were made in different ways (unless `mixed`).
    """
    manifests = [split.manifest for split in splits]
    classes, labels = _united(splits, dict(rename or {}), range(len(splits)))
    recipe_parts = tuple(dict.fromkeys(part for manifest in manifests for part in manifest.parts))
    notes = _alike(splits, mixed)
    pieces, more = _joined(splits, classes, labels, dict.fromkeys(recipe_parts, 0), range(len(splits)), skip_duplicates)
    numbers = {manifest.split for manifest in manifests}
    step = {"did": "merge", "rename": dict(rename or {}), "skip_duplicates": skip_duplicates}
    return Recipe(
        splits=tuple(splits),
        dataset=dataset or "+".join(dict.fromkeys(manifest.dataset for manifest in manifests)),
        split=numbers.pop() if len(numbers) == 1 else 0,
        classes=classes,
        labels=labels,
        parts=recipe_parts,
        pieces=tuple(pieces),
        made=made_of(manifests, step),
        notes=(*notes, *more),
    )


def appended(
    split: Split,
    more: Split,
    *,
    rename: Mapping[str, str] | None = None,
    skip_duplicates: bool = False,
    mixed: bool = False,
) -> Recipe:
    """The records of `more` as new shards behind those of `split`, which stay as they are; without pieces where all of
    them are there already.

    Classes that `split` lacks get the labels behind its own. Raises ShardError as `merged`.
    """
    both, old = (split, more), split.manifest
    classes, labels = _united(both, dict(rename or {}), [1])
    numbers = {part: len(of_part.shards) for part, of_part in old.parts.items()}
    parts = tuple(dict.fromkeys([*old.parts, *more.manifest.parts]))
    notes = _alike(both, mixed)
    pieces, more_notes = _joined(both, classes, labels, dict.fromkeys(parts, 0) | numbers, [1], skip_duplicates)
    if fresh := classes[len(old.classes) :]:
        notes.append(f"{len(fresh)} new {'class' if len(fresh) == 1 else 'classes'}: {', '.join(fresh)}")
    step = {"did": "append", "rename": dict(rename or {}), "skip_duplicates": skip_duplicates}
    return Recipe(
        splits=both,
        dataset=old.dataset,
        split=old.split,
        classes=classes,
        labels=labels,
        parts=parts,
        pieces=tuple(pieces),
        made=made_of([old, more.manifest], step),
        notes=(*notes, *more_notes),
    )


def _joined(
    splits: Sequence[Split],
    classes: Sequence[str],
    labels: Sequence[Sequence[int]],
    first: Mapping[str, int],
    taken: Collection[int],
    skip_duplicates: bool,
) -> tuple[list[Piece], list[str]]:
    """The shards of those of `splits` that are `taken`, numbered from `first` in each part; and notes on the rest."""
    rows = [{part: list(split.index(part)) for part in split.manifest.parts} for split in splits]
    twice = _twice(splits, rows, classes, labels)
    same = len(twice)
    fresh = sum(len(of_part) for source in taken for of_part in rows[source].values()) - same
    if twice and fresh and not skip_duplicates:
        source, other = next((source, other) for (source, _, _), other in twice.items())
        names = [key for (of, _, key), there in twice.items() if (of, there) == (source, other)]
        raise ShardError(
            f"{splits[source].location}: {_counted(names)} in {splits[other].location}, too, frame by frame the same."
            " Take each once with --skip-duplicates"
        )
    pieces = []
    for part, number in first.items():
        for source in taken:
            kept = [row for row in rows[source].get(part, ()) if (source, part, row.key) not in twice]
            for of_shard, file in dealt(splits[source], part, kept, labels[source], classes):
                pieces.append(Piece(part=part, number=number, source=source, rows=of_shard, file=file))
                number += 1
    return pieces, [f"{same} records were there already and are left out"] if same else []


def _twice(
    splits: Sequence[Split],
    rows: Sequence[Mapping[str, Sequence[Row]]],
    classes: Sequence[str],
    labels: Sequence[Sequence[int]],
) -> dict[tuple[int, str, str], int]:
    """The records (split, part, key) that a split before theirs has in the same part, frame by frame; and which has.

    Raises ShardError where it has them in another part, or other records under the same name.
    """
    first: dict[str, tuple[int, str, Row]] = {}
    twice: dict[tuple[int, str, str], int] = {}
    for source, of_split in enumerate(rows):
        found: dict[str, tuple[int, str, Row]] = {}
        for part, of_part in of_split.items():
            for row in of_part:
                if row.key not in first:
                    found[row.key] = source, part, row
                    continue
                other, other_part, known = first[row.key]
                here, there = f"{splits[source].location}: {part}", f"{splits[other].location}: {other_part}"
                if part != other_part:
                    raise ShardError(
                        f"{here} has a record {row.name!r}, and so has {there}: what is trained on would be tested on."
                        " Leave it out of one of them: stmul shards filter SPLIT OUT --without FILE"
                    )
                if what := _difference(known, labels[other], row, labels[source], classes):
                    raise ShardError(
                        f"{here} has a record {row.name!r}, and so has {there}, but with {what}. Leave it out of one of"
                        " them: stmul shards filter SPLIT OUT --without FILE"
                    )
                twice[source, part, row.key] = other
        first |= found
    return twice


def _difference(
    one: Row, one_labels: Sequence[int], other: Row, other_labels: Sequence[int], classes: Sequence[str]
) -> str:
    """In what `other` is another record than `one`; nothing where they are alike, frame by frame."""
    label, other_label = one_labels[one.label], other_labels[other.label]
    if label != other_label:
        return f"another class: {classes[other_label]!r}, not {classes[label]!r}"
    if one.frames != other.frames:
        return f"{other.frames} frames, not {one.frames}"
    for stream in ("rgb", "flow"):
        ours, theirs = getattr(one, stream), getattr(other, stream)
        if (ours.width, ours.height) != (theirs.width, theirs.height):
            return f"{stream} of {theirs.width}x{theirs.height} pixels, not {ours.width}x{ours.height}"
        if ours.crcs.tobytes() != theirs.crcs.tobytes():
            return f"other {stream} frames of the same size"
    return ""


def _united(
    splits: Sequence[Split], rename: Mapping[str, str], renamed: Collection[int]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The classes of all `splits` by name, and of each split the new label by the old; `rename` is for some of them."""
    known = list(dict.fromkeys(name for source in renamed for name in splits[source].manifest.classes))
    for name in rename:
        if name not in known:
            raise ShardError(f"--rename {name}={rename[name]}: no class {name!r}{nearest(name, known)}")
    table: dict[str, int] = {}
    spelt: dict[str, tuple[str, str]] = {}  # by its letters: a class, and where it is called so
    labels = []
    for source, split in enumerate(splits):
        used, of_split = _used(split), list[int]()
        for label, old in enumerate(split.manifest.classes):
            name = rename.get(old, old) if source in renamed else old
            if label not in used:
                of_split.append(-1)
                continue
            other, where = spelt.setdefault(_letters(name), (name, split.location))
            if other != name and where != split.location:
                raise ShardError(
                    f"{split.location}: has a class {name!r}, and {where} one {other!r}: one class under two spellings?"
                    f" Give both one name with --rename {name}={other}, or clearly different ones"
                )
            of_split.append(table.setdefault(name, len(table)))
        labels.append(tuple(of_split))
    return tuple(table), tuple(labels)


def _used(split: Split) -> set[int]:
    """The labels of a split; of tars without a manifest those that occur: others have no name there."""
    parts = split.manifest.parts
    if all(part.index.sha256 for part in parts.values()):
        return set(range(len(split.manifest.classes)))
    return {label for part in parts for label in split.index(part).labels().tolist()}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold())) or name


def _alike(splits: Sequence[Split], mixed: bool) -> list[str]:
    """A note on each split made in another way than the first. Raises ShardError unless they may be `mixed`."""
    notes = []
    for split in splits[1:]:
        if found := differences(splits[0], split):
            what = f"{split.location}: made in another way than {splits[0].location}: {shown(found)}"
            if not mixed:
                raise ShardError(f"{what}. Build one of them again in the other's way, or take both with --mixed")
            notes.append(what)
    return notes


def _counted(names: Sequence[str]) -> str:
    """`3 records (v_a, v_b, ...) are`."""
    few = ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])
    return f"{len(names)} {'record' if len(names) == 1 else 'records'} ({few}) {'is' if len(names) == 1 else 'are'}"
