"""The commands that make splits of splits: filter, merge, append. They join the group of the shards' commands."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from configs.cli_errors import one_line
from shards.errors import ShardError

if TYPE_CHECKING:
    from shards.manifest import Manifest
    from shards.recipe import Recipe
    from shards.split import Split

known_errors = one_line(ShardError)

_names = click.Path(dir_okay=False, exists=True, allow_dash=True, path_type=Path)
_dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
_rename = click.option(
    "--rename", "renames", multiple=True, metavar="OLD=NEW", help="Give a class of what is taken another name."
)
_skip = click.option(
    "--skip-duplicates", is_flag=True, help="Leave out records that a split before has, frame by frame the same."
)
_mixed = click.option("--mixed", is_flag=True, help="Take splits that were made in different ways: sizes, flow, JPEGs.")


@click.command("filter")
@click.argument("location", metavar="SPLIT")
@click.argument("out", metavar="OUT")
@click.option("--classes", multiple=True, metavar="A,B", help="Keep these classes, counted anew from 0.")
@click.option("--names", type=_names, help="Keep the videos named in this file, one a line (- : standard input).")
@click.option("--without", type=_names, help="Leave out the videos named in this file, one a line.")
@click.option("--part", "parts", multiple=True, help="Keep this part alone: train or test; again for more.")
@click.option("--keep-labels", is_flag=True, help="Keep the table of classes as it is, with those that are empty.")
@_dry_run
@known_errors
def filter_(
    location: str,
    out: str,
    classes: tuple[str, ...],
    names: Path | None,
    without: Path | None,
    parts: tuple[str, ...],
    keep_labels: bool,
    dry_run: bool,
) -> None:
    """Make a split of some classes, videos or parts of another one, which may be a folder, an LMDB or a URL.

    Records are taken over as they are; labels are counted anew where classes are left out. What was interrupted goes on
    with the same command.

    \b
    stmul shards filter data/ucf101/split1 data/two --classes Archery,Surfing
    stmul shards filter data/ucf101/split1 data/sound --without broken.txt --dry-run
    """
    if not (classes or names or without or parts):
        raise click.UsageError("nothing is left out: give --classes, --names, --without or --part")
    from shards.recipe import filtered

    with ExitStack() as stack:
        split = _open(stack, location)
        recipe = filtered(
            split,
            classes=_classes(classes, split.manifest.classes),
            names=None if names is None else _lines(names),
            without=() if without is None else _lines(without),
            parts=[name for text in parts for name in text.split(",")],
            keep_labels=keep_labels,
        )
        _combine(recipe, out, "filter", dry_run)


@click.command()
@click.argument("locations", metavar="A B ...", nargs=-1, required=True)
@click.argument("out", metavar="OUT")
@_rename
@_skip
@_mixed
@click.option("--dataset", default="", metavar="NAME", help="What the new one is called; default: as they are, with +.")
@_dry_run
@known_errors
def merge(
    locations: tuple[str, ...],
    out: str,
    renames: tuple[str, ...],
    skip_duplicates: bool,
    mixed: bool,
    dataset: str,
    dry_run: bool,
) -> None:
    """Make one split of several, part by part: folders, LMDBs, URLs. Their classes are united by name.

    Shards whose labels stay are taken over byte for byte; those of other splits get the labels of the united table.
    What was interrupted goes on with the same command.

    \b
    stmul shards merge data/ucf101/split1 data/mine/split1 data/both
    stmul shards merge a b c all --dry-run
    """
    if len(locations) < 2:
        raise click.UsageError("expected two splits at least, and where the new one goes: A B OUT")
    from shards.union import merged

    with ExitStack() as stack:
        splits = [_open(stack, location) for location in locations]
        recipe = merged(splits, dataset=dataset, rename=_pairs(renames), skip_duplicates=skip_duplicates, mixed=mixed)
        _combine(recipe, out, "merge", dry_run)


@click.command()
@click.argument("location", metavar="SPLIT")
@click.argument("more", metavar="MORE")
@_rename
@_skip
@_mixed
@_dry_run
@known_errors
def append(
    location: str, more: str, renames: tuple[str, ...], skip_duplicates: bool, mixed: bool, dry_run: bool
) -> None:
    """Put the records of MORE behind those of SPLIT, a folder, as new shards; what is there stays as it is.

    SPLIT is the old one until all has been written, and the new one at once then. Its digest is another: a training
    begun before does not go on with it.

    \b
    stmul shards append data/mine/split1 data/new/split1
    stmul shards append data/mine/split1 s3://bucket/new --dry-run
    """
    from shards.combine import append as append_to
    from shards.combine import appendable
    from shards.display import moving
    from shards.stores.connect import is_url, place_of
    from shards.union import appended

    if is_url(location):
        shown = place_of(location).shown
        raise ShardError(f"{shown}: shards are appended in a folder. Copy it into one, append, and copy it back")

    with ExitStack() as stack:
        split = _open(stack, location)
        folder = appendable(split)
        recipe = appended(
            split,
            _open(stack, more),
            rename=_pairs(renames),
            skip_duplicates=skip_duplicates,
            mixed=mixed,
        )
        _tell(recipe, folder)
        if dry_run:
            click.echo(f"{folder}: nothing was written (--dry-run)")
            return
        with moving("append") as moved:
            manifest = append_to(recipe, moved)
    if not recipe.pieces:
        click.echo(f"{folder}: holds all records of {more} already; nothing was appended")
        return
    click.echo(f"{folder}: {recipe.records} records more; {_said(manifest)}, before {split.manifest.digest[:16]}")
    click.echo("training  one begun before does not go on with other shards: start a new one")


def _combine(recipe: Recipe, out: str, what: str, dry_run: bool) -> None:
    from shards.combine import combine, folder_for, there_already
    from shards.display import moving

    if there := there_already(recipe, folder_for(out)):
        click.echo(f"{out}: is there already: {_said(there)}")
        return
    _tell(recipe, folder_for(out))
    if dry_run:
        click.echo(f"{out}: nothing was written (--dry-run)")
        return
    with moving(what) as moved:
        manifest = combine(recipe, out, moved)
    click.echo(f"{out}: {_said(manifest)}")


def _tell(recipe: Recipe, folder: Path) -> None:
    from rich.console import Console

    from shards.combine import to_be_linked
    from shards.display import recipe_lines, recipe_table

    if recipe.pieces:
        click.echo("\n".join(recipe_lines(recipe, to_be_linked(recipe, folder))))
        Console(highlight=False).print(recipe_table(recipe))


def _said(manifest: Manifest) -> str:
    counts = " + ".join(f"{part.records} {name}" for name, part in manifest.parts.items())
    classes = f"{len(manifest.classes)} {'class' if len(manifest.classes) == 1 else 'classes'}"
    return f"{counts} records, {classes}, digest {manifest.digest[:16]}"


def _open(stack: ExitStack, location: str) -> Split:
    from shards.split import open_split

    return stack.enter_context(open_split(location, thorough=True))


def _classes(given: Sequence[str], known: Sequence[str]) -> list[str]:
    """The classes in `given`: a name that holds commas is one, all other text is names with commas between them."""
    return [name for text in given for name in ([text] if text in known else map(str.strip, text.split(",")))]


def _lines(path: Path) -> list[str]:
    """The names in a file, one a line; empty lines are passed over."""
    try:
        with click.open_file(str(path), encoding="utf-8") as file:
            return [name for line in file if (name := line.strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: expected names, one a line, in UTF-8: {error}") from error


def _pairs(renames: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, Any] = {}
    for text in renames:
        old, equals, new = text.partition("=")
        if not (old and equals and new) or old in pairs:
            raise click.BadParameter(f"{text!r}: expected OLD=NEW, each OLD once", param_hint="--rename")
        pairs[old] = new
    return pairs
