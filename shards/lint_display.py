"""What a terminal shows of a lint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich import box
from rich.table import Table

from shards.findings import INSTANTS, LEVELS, STACK, Lint

LINES = 5  # findings of a kind that are shown


def summary(lint: Lint) -> Table:
    """Counts, balance, lengths and flow of each part."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headings = ("part", "records", "each class", "frames", "median", f"< {STACK}", f"< {INSTANTS}", "at bound")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "part" else "right", overflow="fold")
    for part in lint.parts:
        frames, counts = part.frames_N, part.counts_K[part.counts_K > 0]
        if not len(frames):
            table.add_row(part.name, "0")
            continue
        table.add_row(
            part.name,
            f"{len(frames):,}",
            f"{counts.min():,}-{counts.max():,}",
            f"{frames.min():,}-{frames.max():,}",
            f"{np.median(frames):g}",
            f"{np.count_nonzero(frames < STACK):,}",
            f"{np.count_nonzero(frames < INSTANTS):,}",
            f"{part.bounds_M.mean():.2%}" if len(part.bounds_M) else "-",
        )
    return table


def about_lines(lint: Lint) -> Iterator[str]:
    """What was looked at."""
    yield f"shards    {lint.location}: {lint.dataset}, split {lint.split}, {len(lint.classes)} classes"
    some = "all" if lint.looked == lint.records else f"{lint.looked:,} of {lint.records:,}"
    yield f"looked    at the index of {lint.records:,} records, and at a few frames and flow pairs of {some}"
    names = ", ".join(part.name for part in lint.parts)
    if not lint.groups:
        yield "groups    names tell of none: --groups REGEX finds them in the names"
    elif len(lint.parts) > 1:
        yield f"groups    {lint.groups:,}; {len(lint.of('leak')):,} of them in more than one of {names}"


def finding_lines(lint: Lint) -> Iterator[str]:
    """The findings by kind, a few of each, and what to do about them."""
    for about, found in lint.by_kind():
        yield f"{about.level}: {about.title}: {len(found):,}"
        for one in found[:LINES]:
            yield f"  {one.part}: {one.subject}: {one.what}"
        if len(found) > LINES:
            yield f"  and {len(found) - LINES:,} more; --html FILE lists them"
        yield "  -> " + about.advice.replace("SPLIT", lint.location)


def verdict(lint: Lint) -> str:
    """How many findings there are of each level."""
    counts = [(lint.count(level), level) for level in LEVELS]
    return ", ".join(f"{count:,} {level}{'s' if count != 1 else ''}" for count, level in counts)
