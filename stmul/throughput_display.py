"""What the terminal shows of a measurement of loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.table import Table

from stmul.config import Config
from stmul.figures import Figures, Pass, advice, verdict


def heading(figures: Figures, config: Config, name: str) -> Iterator[str]:
    """What was measured, line by line."""
    yield f"shards    {figures.location} ({figures.store}), {figures.part}: {figures.records} records"
    if figures.stage == "testing":
        yield f"settings  {name}, testing: {config.evaluate.frames} instants, one clip at a time"
    else:
        _, sub_batch = config.train.batches(figures.stage)
        instants = config.data.frames if figures.stage == "joint" else 1
        size = f"clips of {instants} instants, {sub_batch} in a sub-batch, crops of {config.data.crop}"
        yield f"settings  {name}, stage {figures.stage}: {size}"
    threads = figures.delivery.threads
    yield f"machine   cores: {figures.cores}, device: {figures.device}; threads that read and decode: {threads}"


def throughput_table(figures: Figures) -> Table:
    """One line for each measurement: rate, time of a clip, bytes, and what else there is to say of it."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "threads", "clips/s", "ms/clip", "MB/s", "MB/clip"):
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    shown.add_column("")

    def add(name: str, one: Pass, size: int | None, said: str = "") -> None:
        speed = f"{1e-6 * size / max(one.seconds, 1e-9):.0f}" if size is not None else ""
        each = f"{1e-6 * size / max(1, one.clips):.2f}" if size is not None else ""
        shown.add_row(name, str(one.threads), f"{one.rate:.1f}", f"{1000 / max(one.rate, 1e-9):.2f}", speed, each, said)

    for name, passes in (("reading, first", figures.first_pass), ("reading, again", figures.again)):
        for reading in passes:
            add(name, reading, reading.read, f"{reading.read / max(1, reading.used):.2f} x used")
    for decoding in figures.decoding:
        images = decoding.images / max(decoding.seconds, 1e-9)
        add(f"decoding ({figures.decode})", decoding, decoding.pixels, f"{images:.0f} frames/s")
    if figures.moving is not None:
        add(f"moving to {figures.device}", figures.moving, figures.moving.moved)
    add(f"cropping ({figures.device})", figures.cutting, None)
    add("all together", figures.delivery, None, f"first {1000 * figures.delivery.first:.0f} ms")
    if figures.link is not None:
        speed = f"{1e-6 * figures.link.bytes / max(figures.link.seconds, 1e-9):.0f}"
        shown.add_row("large reads", "", "", "", speed, "", f"{1000 * figures.link.round_trip:.1f} ms a trip")
    return shown


def conclusion(figures: Figures) -> Iterator[str]:
    """What the figures say, line by line: which station is the limit, and what to try."""
    yield "reading   first: of records that this command had not read yet; again: the same ones once more."
    yield "          All figures are of this moment; what the page cache held before cannot be known."
    yield "          MB/s are of JPEGs where they are read, of pixels where they are decoded or moved."
    yield from (f"limit     {line}" for line in verdict(figures))
    yield from (f"try       {line}" for line in advice(figures))


@contextmanager
def measuring(console: Console) -> Iterator[Callable[[str], None]]:
    """A function that shows what is being measured, in one line that goes again; nothing where piped."""

    def say(text: str) -> None:
        if console.is_terminal:
            console.file.write(f"\r{text:<40}\r")
            console.file.flush()

    try:
        yield say
    finally:
        say("")
