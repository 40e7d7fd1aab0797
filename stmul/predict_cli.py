"""The command that scores videos: parse, call one function, print. What makes records of videos is handed in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stmul.options import gathered, known_errors, settings_options

if TYPE_CHECKING:
    from stmul.predict import Prediction

BAR = 24  # characters


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="VIDEO|FOLDER...", type=click.Path(path_type=Path))
@settings_options
@click.option("--top", default=5, show_default=True, type=click.IntRange(min=1), help="How many classes.")
@click.option("--window", default=10.0, show_default=True, type=click.FloatRange(min=0.2), help="Seconds of a window.")
@click.option(
    "--step", default=0.0, type=click.FloatRange(min=0.0), help="Seconds between windows; half of one unless set."
)
@click.option("--flow", help="Another flow method than that of the training.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all scores: FILE.json.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write a line for each window: FILE.csv.")
@click.option("--sheets", type=click.Path(path_type=Path), help="Folder for a picture of each video: frames and flow.")
@click.option("--timelines", type=click.Path(path_type=Path), help="Folder for a picture of each: classes by time.")
@click.option(
    "--video", "films", type=click.Path(path_type=Path), help="Folder for a film of each: frames, flow, bars."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder for all of these.")
@known_errors
@click.pass_obj
def predict(
    preprocess: Callable[[], Any],
    /,
    paths: tuple[Path, ...],
    cfg: str | None,
    top: int,
    window: float,
    step: float,
    flow: str | None,
    json_file: Path | None,
    csv_file: Path | None,
    sheets: Path | None,
    timelines: Path | None,
    films: Path | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Say what is done in each VIDEO, or in those below a FOLDER, by a run's networks (-i; the newest unless named).

    Flow is computed as that of the run's training was. A video longer than three windows is scored window by window.
    Videos that cannot be read are named, and the others are scored.

    \b
    stmul predict video.avi -i ucf101-001 -o seen/
    stmul predict recordings/ --window 4 --csv what.csv --video films/
    """
    from rich.console import Console

    from shards.whole import make_folder
    from stmul import predict as scoring
    from stmul.display import counting
    from stmul.predict_files import Folders, as_csv, as_json, names_of, write_pictures
    from stmul.runs import write_text
    from stmul.trained import load_trained

    if out is not None:
        sheets, timelines, films = sheets or out, timelines or out, films or out
        json_file, csv_file = json_file or out / "scores.json", csv_file or out / "windows.csv"
    run, videos, console = load_trained(cfg, gathered(**options)), preprocess(), Console()
    try:
        settings, files = videos.settings_as(run.made, flow=flow or ""), videos.videos_in(paths)
    except videos.PreprocessError as error:
        raise click.ClickException(str(error)) from error
    folders = Folders(sheets=sheets, timelines=timelines, films=films).made()
    for file in filter(None, (json_file, csv_file)):  # before hours of work
        make_folder(file.parent)
    click.echo(f"run       {run.place}, {run.told}, on {run.device}; flow {settings.flow.method}")
    found: list[tuple[Path, Prediction]] = []
    failed = 0
    for path, name in zip(files, names_of(files), strict=True):
        try:
            record = videos.record_of(path, settings)
        except videos.VideoError as error:
            failed += 1
            click.echo(f"\n{error}", err=True)
            continue
        with counting(console, "windows") as watch:
            one = scoring.predict(
                *(run.networks, run.classes, record, run.config),
                device=run.device,
                window=window,
                step=step,
                watch=watch,
            )
        found.append((path, one))
        click.echo(f"\n{path}: {one.frames} frames, {one.frames / one.rate:.1f} s")
        for line in lines_of(one, top):
            click.echo(line)
        try:
            written = write_pictures(folders, name, record, one, top=top, write_movie=videos.write_movie)
        except videos.PreprocessError as error:
            raise click.ClickException(str(error)) from error
        for what, target in written:
            click.echo(f"  {what:<8}{target}")
    if json_file is not None:
        write_text(json_file, as_json(found, run.name, top))
        click.echo(f"scores    {json_file}")
    if csv_file is not None:
        write_text(csv_file, as_csv(found))
        click.echo(f"table     {csv_file}")
    if failed:
        raise click.ClickException(f"{failed} of {len(files)} videos could not be read; the others are scored")


def lines_of(one: Prediction, top: int) -> list[str]:
    """What is told of a prediction: the likeliest classes with bars, then each window's likeliest."""
    shown = one.top(top)
    width = max(len(guess.name) for guess in shown)
    lines = [f"  {guess.name:<{width}}  {bar(guess.probability)} {100 * guess.probability:5.1f} %" for guess in shown]
    if len(one.windows) > 1:
        for part in one.windows:
            begin, end = one.seconds(part)
            (best,) = one.top(1, part)
            lines.append(f"  {begin:7.1f} to {end:7.1f} s  {best.name} {100 * best.probability:.1f} %")
    return lines


def bar(part: float) -> str:
    """A bar of BAR characters, filled to `part`."""
    full = round(BAR * part)
    return "█" * full + "·" * (BAR - full)
