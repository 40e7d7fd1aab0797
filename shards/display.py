"""What the terminal shows of a split, of a record, and of work that takes a while."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from shards.format import MEMBERS
from shards.index import Row
from shards.provenance import HISTORY, history
from shards.recipe import Recipe
from shards.record import Record
from shards.split import Split

LOOKED_AT = 2000  # records whose picture sizes are counted: enough to see them, soon enough for a million
SHORT = 12  # classes that need no second column
PADDING = 3  # between two columns of a table


def split_lines(split: Split) -> Iterator[str]:
    """What a split is and how it was made, line by line."""
    manifest = split.manifest
    yield f"shards    {split.location} ({manifest.store})"
    yield f"data set  {manifest.dataset}, split {manifest.split}, {len(manifest.classes)} classes"
    yield f"digest    {manifest.digest}"
    for line in _made(manifest.made):
        yield f"made      {line}"


def parts_table(split: Split, parts: Sequence[str]) -> Table:
    """Counts and sizes of each of `parts`."""
    shown = _table("part", "shards", "records", "frames", "each", "MiB", "pictures", "flow")
    for name in parts:
        index = split.index(name)
        part = split.manifest.parts[name]
        frames = index.frames()
        each = f"{frames.min()}-{frames.max()}" if len(frames) else "-"
        rows = [index.row(record) for record in range(min(len(index), LOOKED_AT))]
        rgb = _most(f"{row.rgb.width}x{row.rgb.height}" for row in rows)
        flow = _most(f"{row.flow.width}x{row.flow.height}" for row in rows)
        stored = str(len(part.shards)) if split.manifest.store == "tar" else "-"
        mebibytes = f"{_bytes(split, name) / 2**20:.1f}"
        shown.add_row(name, stored, str(part.records), str(part.frames), each, mebibytes, rgb, flow)
    return shown


def classes_table(split: Split, parts: Sequence[str], width: int = 80) -> Table:
    """The classes by label, and how many records of each there are in `parts`; in several columns where they fit."""
    names = split.manifest.classes
    counts = [np.bincount(split.index(part).labels(), minlength=len(names)) for part in parts]
    cells = [[str(label), name, *(str(count[label]) for count in counts)] for label, name in enumerate(names)]
    headers = ["label", "class", *parts]
    taken = sum(max(len(cell) for cell in column) + PADDING for column in zip(headers, *cells, strict=True))
    columns = max(1, min(width // taken, -(-len(cells) // SHORT)))
    shown, height = _table(*headers * columns), -(-len(cells) // columns)
    for i in range(height):
        shown.add_row(*(cell for entry in cells[i::height] for cell in entry))
    return shown


def recipe_lines(recipe: Recipe, linked: Collection[int]) -> Iterator[str]:
    """What a recipe is made from and comes to; whole shards of the splits that are `linked` need no room."""
    for source, split in enumerate(recipe.splits, 1):
        manifest = split.manifest
        yield f"from {source:<4} {split.location}: {manifest.dataset}, split {manifest.split}, {manifest.store}"
    names = recipe.classes
    more = f" and {len(names) - SHORT} more" if len(names) > SHORT else ""
    yield f"classes   {len(names)}: {', '.join(names[:SHORT])}{more}"
    shared = sum(piece.bytes for piece in recipe.pieces if piece.file is not None and piece.source in linked)
    written = sum(piece.bytes for piece in recipe.pieces) - shared
    yield f"disk      {written / 2**20:.1f} MiB to be written, {shared / 2**20:.1f} MiB shared by hard links"
    for note in recipe.notes:
        yield f"note      {note}"


def recipe_table(recipe: Recipe) -> Table:
    """What a recipe takes of each split, part by part."""
    shown = _table("part", "from", "records", "of", "shards", "as they are", "packed", "MiB")
    for part in recipe.parts:
        for source, split in enumerate(recipe.splits):
            pieces = [piece for piece in recipe.pieces if (piece.part, piece.source) == (part, source)]
            if pieces:
                records, there = sum(len(piece.rows) for piece in pieces), split.manifest.parts[part].records
                whole = sum(piece.file is not None for piece in pieces)
                counts = (source + 1, records, there, len(pieces), whole, len(pieces) - whole)
                shown.add_row(part, *map(str, counts), f"{sum(piece.bytes for piece in pieces) / 2**20:.1f}")
    return shown


def record_lines(split: Split, part: str, row: Row, record: Record) -> Iterator[str]:
    """What a record is and how it was made, line by line."""
    blob, start, _ = split.store.member(part, row, "cls")
    stored = f"{blob}, from byte {start}" if split.manifest.store == "tar" else f"{blob} and three more"
    rate = f"{record.fps[0] / record.fps[1]:g}" if record.fps[0] and record.fps[1] else "unknown"
    counts = f"{record.frames} of {record.decoded_frames} decoded, {record.header_frames} by the header"
    made, rgb, flow = record.flow_made, record.rgb, record.flow
    yield f"record    {record.name}, number {row.record} of {part}"
    yield f"class     {record.class_name} (label {record.label})"
    yield f"stored    {stored}"
    yield f"frames    {counts}; {rate} a second"
    yield f"pictures  {rgb.width}x{rgb.height}, {row.rgb.size} bytes, {_inline(rgb.encoder)}"
    yield f"flow      {flow.width}x{flow.height}, {row.flow.size} bytes, {_inline(flow.encoder)}"
    yield f"made      {made.method} ({made.library}) {_inline(made.parameters)}".rstrip()
    yield f"source    {record.source.bytes} bytes, SHA-256 {record.source.sha256}"
    yield f"digest    {row.sha256.hex()}"


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that shows records in a bar with rate and ETA; nothing where piped."""
    with _bar(what, MofNCompleteColumn(), lambda speed: f"{speed:.0f} records/s") as update:
        yield update


@contextmanager
def moving(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that shows bytes in a bar with rate and ETA; nothing where piped."""
    with _bar(what, DownloadColumn(), lambda speed: f"{speed / 1e6:.1f} MB/s") as update:
        yield update


@contextmanager
def _bar(what: str, shown: ProgressColumn, rate: Callable[[float], str]) -> Iterator[Callable[[int, int], None]]:
    """A bar that appears with the first thing it is told: a command may have one for each thing it may come to do."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(24), shown, TextColumn("{task.fields[rate]}"))
    progress = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    task = progress.add_task(what, total=None, rate="")

    def update(done: int, total: int) -> None:
        if progress.finished and not progress.live.is_started:
            return
        progress.start()
        speed = progress.tasks[0].speed
        progress.update(task, completed=done, total=total, rate=rate(speed) if speed else "")
        if done >= total:
            progress.stop()  # the next bar may begin

    try:
        yield update
    finally:
        progress.stop()


def _table(*columns: str) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="left" if column in ("part", "class") else "right", overflow="fold")
    return shown


def _bytes(split: Split, part: str) -> int:
    if split.manifest.store == "tar":
        return sum(shard.size for shard in split.manifest.parts[part].shards)
    return sum(stop - start for row in split.index(part) for start, stop in map(row.span, MEMBERS))


def _most(sizes: Iterator[str]) -> str:
    counted = Counter(sizes).most_common()
    others = len(counted) - 1
    return (counted[0][0] if counted else "-") + (f" and {others} more" if others > 0 else "")


def _made(made: Mapping[str, Any]) -> Iterator[str]:
    """One line for each section of the settings, one for all that stand alone."""
    yield from history(made)
    alone = {key: made[key] for key in made if key not in HISTORY and not isinstance(made[key], Mapping)}
    if alone:
        yield _inline(alone)
    for key, section in made.items():
        if isinstance(section, Mapping):
            yield f"{key}: {_inline(section)}"


def _inline(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
