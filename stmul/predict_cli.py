"""The command that scores videos: parse, call one function, print. What makes records of videos is handed in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stmul.options import gathered, known_errors, made_of, run_and_settings, settings_options

if TYPE_CHECKING:
    from stmul.predict import Guess, Prediction

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
@known_errors
@click.pass_obj
def predict(
    preprocess: Any,
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
    **options: Any,
) -> None:
    """Say what is done in each VIDEO, or in those below a FOLDER, by a run's networks (-i; the newest unless named).

    Flow is computed as that of the run's training was. A video longer than three windows is scored window by window.
    Videos that cannot be read are named, and the others are scored.

    \b
    stmul predict video.avi -i ucf101-001
    stmul predict recordings/ --window 4 --csv what.csv --sheets pictures/
    """
    from rich.console import Console

    from stmul import predict as scoring
    from stmul.display import counting
    from stmul.runs import write_text
    from stmul.stages import choose_device, load_networks

    run, config = run_and_settings(cfg, gathered(**options))
    about, videos = run.about(), preprocess()
    device, console = choose_device(config.experiment), Console()
    try:
        settings, files = videos.settings_as(made_of(run, config), flow=flow or ""), videos.videos_in(paths)
    except videos.PreprocessError as error:
        raise click.ClickException(str(error)) from error
    networks, epoch = load_networks(
        run, config, about.classes, epoch=config.experiment.pre_trained_epoch, device=device
    )
    click.echo(f"run       {run.folder}, {about.network or f'epoch {epoch}'}, on {device}; flow {settings.flow.method}")
    found: list[Prediction] = []
    failed = 0
    for path in files:
        try:
            record = videos.record_of(path, settings)
        except videos.VideoError as error:
            failed += 1
            click.echo(f"\n{error}", err=True)
            continue
        with counting(console, "windows") as watch:
            one = scoring.predict(
                networks, about.classes, record, config, device=device, window=window, step=step, watch=watch
            )
        found.append(one)
        click.echo(f"\n{path}: {one.frames} frames, {one.frames / one.rate:.1f} s")
        for line in lines_of(one, top):
            click.echo(line)
        if sheets is not None:
            click.echo(f"  sheet   {_sheet(sheets, path, record, one, top)}")
    if json_file is not None:
        write_text(json_file, as_json(found, run.id, top))
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


def as_json(found: Sequence[Prediction], run: str, top: int) -> str:
    """Every score of every head and window."""
    return json.dumps(
        {
            "run": run,
            "videos": [
                {
                    "name": one.name,
                    "frames": one.frames,
                    "frames_per_second": one.rate,
                    "scores_of": one.main,
                    "top": [_guess(guess) for guess in one.top(top)],
                    "classes": one.classes,
                    "scores": _scores(one.heads),
                    "windows": [
                        {
                            "from_s": one.seconds(part)[0],
                            "to_s": one.seconds(part)[1],
                            "top": [_guess(guess) for guess in one.top(top, part)],
                            "scores": _scores(part.heads),
                        }
                        for part in one.windows
                    ],
                }
                for one in found
            ],
        },
        ensure_ascii=False,
        indent=1,
    )


def as_csv(found: Sequence[Prediction]) -> str:
    """A line for each window: video, from, to, class, probability."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["video", "from_s", "to_s", "class", "probability"])
    for one in found:
        for part in one.windows:
            (best,), (begin, end) = one.top(1, part), one.seconds(part)
            table.writerow([one.name, f"{begin:.3f}", f"{end:.3f}", best.name, f"{best.probability:.6f}"])
    return text.getvalue()


def _guess(guess: Guess) -> dict[str, Any]:
    return {"class": guess.name, "probability": guess.probability, "score": guess.score}


def _scores(heads: Mapping[str, Any]) -> dict[str, list[float]]:
    return {head: [float(score) for score in scores_K] for head, scores_K in heads.items()}


def _sheet(folder: Path, path: Path, record: Any, one: Prediction, top: int) -> Path:
    from shards.picture import record_sheet
    from shards.whole import whole

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{path.name}.png"
    words = " · ".join(f"{guess.name} {100 * guess.probability:.1f} %" for guess in one.top(top))
    with whole(target) as file:
        record_sheet(record, said=words).save(file, "PNG")
    return target
