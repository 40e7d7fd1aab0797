"""The commands that look at shards, verify, copy, combine, publish and serve them: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from configs.cli_errors import one_line
from shards.combine_cli import append, filter_, merge
from shards.errors import ShardError

if TYPE_CHECKING:
    from shards.index import Row
    from shards.split import Split

known_errors = one_line(ShardError)


@click.group()
def shards() -> None:
    """Look at shards, verify, copy, combine, publish and serve them.

    \b
    stmul shards show data/ucf101/split1
    """


for combining in (filter_, merge, append):
    shards.add_command(combining)


@shards.command()
@click.argument("location", metavar="PATH|URL")
@click.option("--part", help="One part alone: train or test.")
@click.option("--record", "name", metavar="NAME", help="One record: a video's name.")
@click.option("--sheet", type=click.Path(dir_okay=False, path_type=Path), help="Write a picture of a record: out.png.")
@known_errors
def show(location: str, part: str | None, name: str | None, sheet: Path | None) -> None:
    """Show what is in a split: a folder, an LMDB, one .tar, or a URL of them.

    \b
    stmul shards show data/ucf101/split1
    stmul shards show https://host/ucf101/split1 --record v_Archery_g01_c01 --sheet archery.png
    """
    from rich.console import Console

    from shards.display import classes_table, parts_table, record_lines, split_lines
    from shards.format import decode
    from shards.split import open_split

    if sheet is not None and sheet.suffix.lower() != ".png":
        raise click.BadParameter(f"{sheet}: expected a name that ends in .png", param_hint="--sheet")
    with open_split(location) as split:
        parts = [part] if part else list(split.manifest.parts)
        found = _find(split, parts, name) if name or sheet else None
        if name is None:
            console = Console(highlight=False)
            tables = [parts_table(split, parts), classes_table(split, parts, console.width)]
            click.echo("\n".join(split_lines(split)))
            console.print(*tables)
        if found is not None:
            of_part, row = found
            members = split.members(of_part, row)
            record = decode(members, f"{split.location}: {of_part}: record {row.record} ({row.name})")
            if name is not None:
                click.echo("\n".join(record_lines(split, of_part, row, record)))
            if sheet is not None:
                from shards.picture import record_sheet
                from shards.whole import whole

                with whole(sheet) as file:
                    record_sheet(record).save(file, "PNG")
                click.echo(f"sheet     {sheet}: {row.name}")


@shards.command()
@click.argument("location", metavar="PATH|URL")
@click.option("--repair", "source", metavar="SOURCE", help="Fetch what is broken from SOURCE: a copy, a folder or URL.")
@known_errors
def verify(location: str, source: str | None) -> None:
    """Check every byte of a split and name all that is damaged; or mend a folder from another copy of the same split.

    \b
    stmul shards verify data/ucf101/split1
    stmul shards verify data/ucf101/split1 --repair https://host/ucf101/split1
    """
    if source is not None:
        return _repair(location, source)
    from shards.check import problems
    from shards.display import counting
    from shards.split import open_split

    with open_split(location) as split, counting("verify") as progress:
        broken = 0
        for problem in problems(split, progress):
            click.echo(str(problem))
            broken += 1
        records = sum(part.records for part in split.manifest.parts.values())
        shown, mendable = split.location, split.folder is not None and split.manifest.store == "tar"
    if broken:
        found = f"{broken} problems" if broken > 1 else "1 problem"
        mend = f", or mend it from another copy of it: stmul shards verify {shown} --repair SOURCE" if mendable else ""
        raise click.ClickException(f"{shown}: {found}. Copy or build again what is named above{mend}")
    click.echo(f"{shown}: all {records} records are whole")
    return None


def _repair(folder: str, source: str) -> None:
    from shards.display import moving
    from shards.repair import repair

    with moving("look") as looked, moving("fetch") as fetched:
        mended = repair(folder, source, looked, fetched)
    for name, what in mended.files:
        click.echo(f"{folder}/{name}: {what}: fetched again")
    for name in mended.strays:
        click.echo(f"{folder}/{name}: is not in the manifest, and left as it is: delete it")
    count = len(mended.files)
    done = f"{count} {'file' if count == 1 else 'files'} mended, {mended.bytes / 1e6:.1f} MB fetched"
    click.echo(f"{folder}: {done if count else 'nothing to mend'}; every file is what the manifest says")


@shards.command()
@click.argument("location", metavar="PATH|URL")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write a page with pictures: lint.html.")
@click.option("--part", help="One part alone: train or test; leaks between parts are not looked for.")
@click.option(
    "--sample",
    default=2000,
    show_default=True,
    type=click.IntRange(0),
    help="Records whose frames are looked at; the index is read of all.",
)
@click.option("--groups", metavar="REGEX", help="What finds a video's group in its name: '^(.+)_c[0-9]+$'.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings too, not for errors alone.")
@known_errors
def lint(location: str, html: Path | None, part: str | None, sample: int, groups: str | None, strict: bool) -> None:
    """Look for leaks, duplicates, unbalanced classes, short, black and still videos, and flow at the bound.

    Errors are videos or groups in two parts, and damaged records; with these the exit code is 1.

    \b
    stmul shards lint data/ucf101/split1
    stmul shards lint https://host/ucf101/split1 --sample 500 --html lint.html
    """
    from rich.console import Console

    from shards.display import counting
    from shards.groups import group_pattern
    from shards.lint import lint as linted
    from shards.lint_display import about_lines, finding_lines, summary, verdict
    from shards.split import open_split

    pattern = group_pattern(groups) if groups is not None else None
    with open_split(location) as split:
        with counting("look") as progress:
            found = linted(split, parts=[part] if part else (), sample=sample, groups=pattern, progress=progress)
        if html is not None:
            from shards.lint_report import write_page

            write_page(html, found, split)
    click.echo("\n".join(about_lines(found)))
    Console(highlight=False).print(summary(found))
    for line in finding_lines(found):
        click.echo(line)
    if html is not None:
        click.echo(f"page      {html}")
    told = f"{found.location}: {verdict(found)}"
    if found.count("error") or (strict and found.count("warning")):
        raise click.ClickException(told)
    click.echo(told)


@shards.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@known_errors
def copy(source: str, target: str) -> None:
    """Copy a split, verified on the way: DST ending in .lmdb becomes an LMDB, in .files loose files, else tar shards.

    A DST of s3:// (gs://, az://) is a folder in a bucket: every file is sent and read back, the manifest last. A copy
    of shards that was interrupted goes on where it was with the same command.

    \b
    stmul shards copy data/ucf101/split1 data/ucf101/split1.lmdb
    stmul shards copy s3://bucket/ucf101/split1 data/ucf101/split1
    stmul shards copy data/ucf101/split1 s3://bucket/ucf101/split1
    """
    from shards.copy import copy_split
    from shards.display import counting, moving
    from shards.stores.connect import is_url, place_of

    if is_url(target):
        from shards.publish import publish

        with moving("send and read back") as moved:
            manifest = publish(source, target, moved)
        target = place_of(target).shown
    else:
        with counting("copy") as progress, moving("copy") as moved:
            manifest = copy_split(source, target, progress, moved)
    records = sum(part.records for part in manifest.parts.values())
    click.echo(f"{target}: {records} records as {manifest.store}, digest {manifest.digest[:16]}")


@shards.command()
@click.argument("folder", default="data", type=click.Path(path_type=Path))
@click.option(
    "--host", default="0.0.0.0", show_default=True, help="The address to listen at; 127.0.0.1: yourself alone."
)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@known_errors
def serve(folder: Path, host: str, port: int) -> None:
    """Serve the splits below FOLDER over HTTP, read-only, to the other machines of a network.

    \b
    stmul shards serve data
    stmul shards serve data --port 9000
    """
    from shards.serve import Server, addresses, lines

    with Server(folder, host, port, say=click.echo) as server:
        for line in lines(folder, server.listing, addresses(host, server.server_port)):
            click.echo(line)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo(f"ended; {server.served / 1e6:.1f} MB served")


def _find(split: Split, parts: list[str], name: str | None) -> tuple[str, Row]:
    """The record called `name` and its part; the first there is where no name is given."""
    from configs import nearest

    names: list[str] = []
    for part in parts:
        for row in split.index(part):
            if name is None or name in (row.name, row.key):
                return part, row
            names.append(row.name)
    raise ShardError(
        f"{split.location}: no record {name!r} among {len(names)} of {', '.join(parts)}{nearest(name or '', names)}"
    )


@shards.command()
@click.option(
    "--out", default="data", show_default=True, type=click.Path(path_type=Path), help="Where shards are built."
)
@known_errors
def latest(out: Path) -> None:
    """Print where the shards are that were built last.

    \b
    stmul shards latest
    stmul shards show "$(stmul shards latest)"
    """
    from shards.latest import latest as built_last

    click.echo(built_last(out))
