"""The command that looks at one video: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path

import click

from configs import Named, SettingsError
from configs.cli_errors import one_line
from preprocess.errors import PreprocessError
from shards.errors import ShardError


@click.command()
@click.argument("video", type=click.Path(path_type=Path))
@click.option(
    "--flow", metavar="METHOD", help="Optical flow: dis (quick; unless set here or there), tvl1, farneback, raft."
)
@click.option("--frames", default=300, show_default=True, type=click.IntRange(min=0), help="The first so many; 0: all.")
@click.option(
    "--out",
    default=".",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for NAME-inspect.png and .mp4; here unless set.",
)
@click.option("--film/--no-film", default=True, help="Write the short film of frames and flow, too; on unless set.")
@click.option("-c", "--config", help="Shipped configuration or YAML file; its section `preprocess` is read.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting.")
@one_line(SettingsError, ShardError, PreprocessError)
def inspect(
    video: Path, flow: str | None, frames: int, out: Path, film: bool, config: str | None, overrides: tuple[str, ...]
) -> None:
    """Look at VIDEO as a build takes it: frames, flow, its bound, dropped and repeated frames; as picture and film.

    \b
    stmul preprocess inspect v_Archery_g01_c01.avi
    stmul preprocess inspect clip.mp4 --flow tvl1 --frames 60 --out /tmp
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from configs import load
    from preprocess.config import PreprocessConfig
    from preprocess.display import counting
    from preprocess.looking.inspection import inspected
    from preprocess.looking.sheet import film as film_of
    from preprocess.looking.sheet import lines_of, sheet
    from shards.whole import whole

    quick = ["preprocess.flow.method=dis"] if config is None else []
    named = [Named("--flow", "preprocess.flow.method", flow)] if flow is not None else []
    settings = load(PreprocessConfig, config, [*quick, *overrides, *named]).preprocess
    console = Console(highlight=False)
    with counting(console, "looking") as watch:
        look = inspected(video, settings, most=frames, progress=watch)
    table = Table(title=video.name, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for subject, text in lines_of(look):
        table.add_row(Text(subject, style="bold"), Text(text))
    console.print(table)
    target = out / f"{video.stem}-inspect"
    with whole(target.with_name(f"{target.name}.png")) as file:
        sheet(look).save(file, "PNG")
    click.echo(f"{target}.png")
    if film:
        with whole(target.with_name(f"{target.name}.mp4")) as file:
            file.write(film_of(look))
        click.echo(f"{target}.mp4")
    if look.damage:
        raise click.ClickException(f"{look.damage}; what came before it was looked at")
