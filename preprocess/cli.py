"""The commands that make shards out of videos: parse, call one function, print."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from configs import Named, SettingsError
from configs.cli_errors import OneOf, one_line
from preprocess.errors import PreprocessError
from preprocess.looking.inspect_cli import inspect
from shards.errors import ShardError

if TYPE_CHECKING:
    from preprocess.build import BuildReport
    from preprocess.config import Preprocess
    from preprocess.datasets import Dataset
    from preprocess.sources.choice import Choice

known_errors = one_line(SettingsError, ShardError, PreprocessError)


@click.group()
def preprocess() -> None:
    """Build shards out of videos or extracted frames.

    \b
    stmul preprocess shards --dataset drawn
    """


preprocess.add_command(inspect)


def dataset_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which data set; they come after `--set`, which comes after the configuration."""
    options = [
        click.option("-c", "--config", help="Shipped configuration or YAML file; its section `preprocess` is read."),
        click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting."),
        click.option("--dataset", metavar="KIND", help="auto, ucf101, hmdb51, folders, extracted or drawn."),
        click.option("--root", metavar="DIR", help="Folder of the data set."),
        click.option("--split", type=click.IntRange(1, 3), help="Which of the three splits; 1 unless set."),
        click.option("--limit", type=click.IntRange(min=0), help="At most so many videos of each class and part."),
        click.option("--classes", metavar="A,B", help="Only these classes."),
        click.option("--partial", is_flag=True, default=None, help="Leave out videos that are listed but not there."),
        click.option("--workers", type=click.IntRange(min=0), help="Processes; one for each core unless set."),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def gathered(
    overrides: tuple[str, ...],
    flow: str | None = None,
    flow_scale: float | None = None,
    backend: str | None = None,
    classes: str | None = None,
    **named: Any,
) -> list[str]:
    """All changes in the order in which they count: `--set`, then the named options."""
    given = [(f"--{name}", name, value) for name, value in named.items()]
    given += [
        ("--flow", "flow.method", flow),
        ("--flow-scale", "flow.scale", flow_scale),
        ("--backend", "flow.backend", backend),
    ]
    if classes is not None:
        given += [("--classes", "classes", [name.strip() for name in classes.split(",") if name.strip()])]
    return [
        *overrides,
        *(Named(option, f"preprocess.{key}", value) for option, key, value in given if value is not None),
    ]


def shards_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which shards are made of it, and where to."""
    options = [
        click.option("--out", metavar="DIR", help="Shards go to DIR/<data set>/split<n>; data unless set; or s3://..."),
        click.option("--flow", metavar="METHOD", help="Optical flow: tvl1 (unless set), dis (fast), farneback, raft."),
        click.option("--backend", metavar="NAME", help="What computes it: auto (unless set), cuda, cpu or opencv."),
        click.option("--flow-scale", type=float, metavar="S", help="Stored size of the flow: 1 (unless set), or 0.5."),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


@preprocess.command()
@dataset_options
@shards_options
@click.option("--part", metavar="I/N", help="Only every N-th shard, from the I-th; `merge` puts the parts together.")
@click.option("--engine", metavar="NAME", help="Where the work is done: processes (unless set), or ray: a cluster.")
@click.option("--dry-run", is_flag=True, help="Say what would be done and what it takes, and stop.")
@click.option("--rebuild", is_flag=True, help="Replace shards that were made with other settings.")
@known_errors
def shards(config: str | None, dry_run: bool, rebuild: bool, **options: Any) -> None:
    """Make the shards of one split: RGB frames, optical flow and labels.

    Without --root the data set is dataset/UCF101 or dataset/HMDB51, or else a drawn demo set. Before it starts it says
    what will be made, taken over and kept, and why. Stopped in any way, the same command goes on where it was.

    \b
    stmul preprocess shards --root ~/UCF101 --split 1
    stmul preprocess shards --root ~/UCF101 --dry-run
    stmul preprocess shards --flow dis --limit 10 --classes Archery,Surfing
    stmul preprocess shards --root /nfs/UCF101 --out /nfs/data --part 3/16
    """
    from rich.console import Console

    from preprocess.build import build, split_location
    from preprocess.building.announcement import announcement, complete
    from preprocess.building.parts import build_part
    from preprocess.building.workplace import Share
    from preprocess.display import build_display, part_lines, planned_table

    console = Console()
    settings, choice = _chosen(config, gathered(**options))
    dataset, share = _read(settings, choice, console), Share.parse(settings.part)
    if not rebuild and complete(dataset, settings, settings.out):
        if dry_run:
            click.echo(
                f"{split_location(dataset, settings.out)}: complete, and made with these settings; nothing to do"
            )
            return
    else:
        told = announcement(dataset, settings, settings.out, share)
        for line in told.lines():
            click.echo(line)
        if dry_run:
            if told.estimate is not None:
                console.print(planned_table(told.estimate))
            click.echo("dry run: nothing was built")
            return
    for line in _waiting(dataset, settings):
        click.echo(line)
    with stoppable(), build_display(console) as watch:
        if share is None:
            report = build(dataset, settings, settings.out, watch, rebuild=rebuild)
        else:
            part = build_part(dataset, settings, settings.out, share, watch, rebuild=rebuild)
    if share is None:
        _tell(report, settings, console)
    else:
        for line in part_lines(part, share):
            click.echo(line)


@preprocess.command("merge")
@dataset_options
@shards_options
@known_errors
def merge_parts(config: str | None, **options: Any) -> None:
    """Put the shards together that parts have built: indexes and manifest. Nothing is computed.

    The options are those that the parts were built with, without --part. What is missing is said, and of which part.

    \b
    stmul preprocess merge --root /nfs/UCF101 --out /nfs/data
    """
    from rich.console import Console

    from preprocess.building.parts import merge

    console = Console()
    settings, choice = _chosen(config, gathered(**options))
    dataset = _read(settings, choice, console)
    with stoppable():
        report = merge(dataset, settings, settings.out)
    _tell(report, settings, console)


@preprocess.command()
@dataset_options
@click.option("--out", "folder", metavar="DIR", help="Where to; the data set's folder annotations unless set.")
@click.option(
    "--count",
    type=OneOf(["decoded", "header", "none"]),
    default="decoded",
    show_default=True,
    help="Frames: decode every video, believe its header, or leave them out.",
)
@known_errors
def annotate(config: str | None, folder: str | None, count: str, **options: Any) -> None:
    """Write the annotation file of a split: annot01.json, with labels, parts and frame counts.

    \b
    stmul preprocess annotate --root ~/UCF101 --split 1
    """
    from rich.console import Console

    from preprocess.display import counting
    from preprocess.sources.annotations import annotation_name
    from preprocess.sources.counting import annotate_split
    from shards.whole import make_folder

    console = Console()
    settings, choice = _chosen(config, gathered(**options))
    dataset = _read(settings, choice, console)
    path = (Path(folder) if folder else choice.root / "annotations") / annotation_name(dataset.split)
    make_folder(path.parent)
    with stoppable(), counting(console, "counting frames") as watch:
        failures = annotate_split(dataset, path, count=count, settings=settings, progress=watch)
    for failure in failures:
        click.echo(f"without nframes: {failure}")
    click.echo(f"{path}: {sum(len(videos) for videos in dataset.parts.values()):,} videos")


@preprocess.command()
@click.argument("folder", default="dataset/drawn", type=click.Path(path_type=Path))
@click.option("-c", "--config", help="Shipped configuration or YAML file; demo unless set.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting.")
@known_errors
def draw(folder: Path, config: str | None, overrides: tuple[str, ...]) -> None:
    """Draw the demo set into FOLDER: labelled videos in UCF101's layout, with three splits.

    \b
    stmul preprocess draw dataset/drawn
    stmul preprocess draw /data/drawn7 --set preprocess.drawn.seed=7
    """
    from rich.console import Console

    from configs import load
    from preprocess.config import PreprocessConfig
    from preprocess.display import counting
    from preprocess.drawn import draw_dataset
    from preprocess.sources.choice import DRAWN_SETTINGS

    settings = load(PreprocessConfig, config or DRAWN_SETTINGS, overrides).preprocess
    with stoppable(), counting(Console(), "drawing") as watch:
        root = draw_dataset(folder, settings.drawn, watch, workers=settings.workers)
    click.echo(
        f"{root}: {settings.drawn.train} training and {settings.drawn.test} test videos, seed {settings.drawn.seed}"
    )


def _chosen(config: str | None, changes: list[str]) -> tuple[Preprocess, Choice]:
    from configs import load
    from preprocess.config import PreprocessConfig
    from preprocess.sources.choice import DRAWN, DRAWN_SETTINGS, choose

    settings = load(PreprocessConfig, config, changes).preprocess
    choice = choose(settings)
    if choice.kind == DRAWN and config is None:
        # The settings for real videos would enlarge the small drawn ones, and compute TV-L1 for hours.
        settings = load(PreprocessConfig, DRAWN_SETTINGS, changes).preprocess
    return settings, choice


def _read(settings: Preprocess, choice: Choice, console: Any) -> Dataset:
    from preprocess.datasets import describe
    from preprocess.display import counting
    from preprocess.extracted import strays
    from preprocess.sources.choice import DRAWN, read
    from preprocess.sources.disk import some

    if choice.kind == DRAWN:
        made = f"flow {settings.flow.method}, short side {settings.rgb.short_side}"
        click.echo(f"data set: the drawn demo set in {choice.root} ({choice.why}); {made}")
        with stoppable(), counting(console, "drawing") as watch:
            dataset = read(choice, settings, watch)
    else:
        dataset = read(choice, settings)
        click.echo(f"data set: {describe(dataset)}, in {choice.root} ({choice.why})")
    notes = list(dataset.notes)
    if dataset.kind == "extracted" and (found := list(strays(chain.from_iterable(dataset.parts.values())))):
        notes.append(f"not frames, left out: {some(found)}")
    for note in notes:
        click.echo(f"note: {note}")
    return dataset


def _waiting(dataset: Dataset, settings: Preprocess) -> Iterator[str]:
    """What builds with other settings left; it is never removed unasked."""
    from preprocess.building.estimate import bytes_in_words
    from preprocess.building.standing import made_of
    from preprocess.building.workplace import waiting_elsewhere

    for one in waiting_elsewhere(settings.out, dataset.name, made_of(dataset, settings)["record"]):
        yield (
            f"note: {one.location} holds {bytes_in_words(one.bytes)} in {one.files:,} files"
            + (f" and the notes of {one.shards:,} packed shards" if one.shards else "")
            + f" of a build that was not finished, with other settings ({'; '.join(one.differences)}); such a build"
            f" would go on from them. If none will: {one.command}"
        )


def _tell(report: BuildReport, settings: Preprocess, console: Any) -> None:
    """Prints what a build did, and keeps its settings beside the shards."""
    from configs import dump
    from preprocess.building.places import place_at
    from preprocess.config import PreprocessConfig
    from preprocess.display import closing_lines, summary
    from shards.stores.connect import is_url

    if report.new:
        place_at(report.location).write("settings.yaml", dump(PreprocessConfig(preprocess=settings)).encode())
    else:
        click.echo(f"{report.location}: complete, and made with these settings; nothing to do")
    manifest = report.manifest
    click.echo(f"{report.location}: {manifest.dataset} split {manifest.split}, {len(manifest.classes)} classes")
    console.print(summary(report))
    for line in closing_lines(report) if report.new else ():
        click.echo(line)
    there = f" --set data.shards={report.location}" if is_url(report.location) else ""
    click.echo(f"train on them with: stmul train{there}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block in order, with one line and exit code 130."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if main else None
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped; what is finished is kept, and the same command goes on from there", err=True)
        raise SystemExit(130) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
