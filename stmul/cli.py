"""The commands that train and test: parse, call one function, print."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from configs import SettingsError
from configs.cli_errors import one_line
from shards.errors import ShardError
from stmul.errors import StmulError

if TYPE_CHECKING:
    from shards.split import Split
    from stmul.config import Config
    from stmul.runs import Run

known_errors = one_line(SettingsError, ShardError, StmulError)
GPU = {"1": "yes", "yes": "yes", "true": "yes", "0": "no", "no": "no", "false": "no", "auto": "auto"}


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that training and testing share, as in the earlier implementation; they come after `--set`."""
    options = [
        click.option("-c", "--cfg", help="Shipped configuration or YAML file; default: the data set's own."),
        click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting."),
        click.option("-d", "--dataset-dir", help="Folder of the data sets."),
        click.option("-e", "--experiment-dir", help="Folder of the runs."),
        click.option("-u", "--use-gpu", type=click.Choice(sorted(GPU)), help="Default: a GPU if there is one."),
        click.option("-g", "--gpu-id", type=int, help="Which GPU."),
        click.option("-i", "--pre-trained-id", help="A run: to start from, or to test."),
        click.option("-p", "--pre-trained-epoch", type=int, help="Its epoch; default: the last."),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def gathered(
    overrides: tuple[str, ...],
    dataset_dir: str | None,
    experiment_dir: str | None,
    use_gpu: str | None,
    gpu_id: int | None,
    pre_trained_id: str | None,
    pre_trained_epoch: int | None,
) -> list[str]:
    """All changes in the order in which they count: `--set`, then the named options."""
    named = {
        "dataset_dir": dataset_dir,
        "folder": experiment_dir,
        "use_gpu": GPU[use_gpu] if use_gpu else None,
        "gpu_id": gpu_id,
        "pre_trained_id": pre_trained_id,
        "pre_trained_epoch": pre_trained_epoch,
    }
    # Quoted: YAML would read `yes` as true and a run called 7 as a number.
    given = {key: value for key, value in named.items() if value is not None}
    return [*overrides, *(f"experiment.{key}={json.dumps(value)}" for key, value in given.items())]


def _opened(config: Config) -> Split:
    from shards.latest import latest
    from shards.split import open_split

    return open_split(config.data.shards or latest(Path("data")))


def _on(config: Config, shards: str) -> Config:
    """The settings with other shards; a split's location is shown, and written, without credentials of its URL."""
    return config.model_copy(update={"data": config.data.model_copy(update={"shards": shards})})


def _configuration_for(dataset: str) -> str | None:
    from configs import names

    name = {"drawn": "demo"}.get(dataset, dataset)
    return name if name in names() else None


@click.command()
@settings_options
@click.option("--fresh", is_flag=True, help="Begin anew even if a stopped run could go on.")
@known_errors
def train(cfg: str | None, fresh: bool, **options: Any) -> None:
    """Train on shards, stage by stage; a stopped training goes on where it was.

    \b
    stmul train -c demo
    stmul train -c ucf101 --set data.shards=s3://bucket/ucf101/split1 --set train.batch=64
    """
    from configs import load
    from stmul.config import Config

    changes = gathered(**options)
    config = load(Config, cfg, changes)
    with _opened(config) as split:
        manifest = split.manifest
        if cfg is None and (name := _configuration_for(manifest.dataset)) is not None:
            config = load(Config, name, changes)
            cfg = name
        clips = ", ".join(f"{part.records} {name}" for name, part in manifest.parts.items())
        click.echo(f"shards    {split.location}")
        named = f"{manifest.dataset} split {manifest.split}: {len(manifest.classes)} classes"
        click.echo(f"data set  {named}, clips: {clips}")
        _train(config, split, name=Path(cfg or manifest.dataset).stem, fresh=fresh)


def _train(config: Config, split: Split, *, name: str, fresh: bool) -> None:
    from rich.console import Console

    from stmul.display import training_display
    from stmul.logs import run_log, stop_requests
    from stmul.stages import choose_device, find_start, open_run, train_stages

    config = _on(config, split.location)
    device = choose_device(config.experiment)
    start = find_start(config, split)
    run, goes_on = open_run(config, split, start, name=name, fresh=fresh)
    click.echo(f"start     {start.words}")
    click.echo(f"run       {run.folder}{' (goes on where it was stopped)' if goes_on else ''}, on {device}")
    with training_display(Console()) as watch, run_log(run) as log, stop_requests() as stop:
        done = train_stages(
            config, split, run, start, device=device, watch=watch, log=log, stop=stop, say=lambda text: click.echo(text)
        )
    if not done:
        click.echo("stopped; run the same command to go on")
        raise SystemExit(130)
    click.echo(f"done      {run.folder}; test it with: stmul test -i {run.id}")


@click.command()
@settings_options
@click.option("--part", default="test", show_default=True, help="Which part of the split.")
@known_errors
def test(cfg: str | None, part: str, **options: Any) -> None:
    """Score every test clip once with a run's networks; write scores and the report.

    \b
    stmul test                      (the newest run)
    stmul test -i demo-001 -p 60
    """
    from rich.console import Console

    from configs import dump
    from stmul.display import counting, results_table
    from stmul.evaluate import evaluate
    from stmul.results import write_results
    from stmul.run_report import report_of_run
    from stmul.runs import write_text
    from stmul.stages import choose_device, load_networks

    run, config = _run_and_settings(cfg, gathered(**options))
    console = Console()
    with _opened(config) as split:
        if part not in split.manifest.parts:
            raise SettingsError(f"--part {part}: expected one of {', '.join(split.manifest.parts)}")
        device = choose_device(config.experiment)
        networks, epoch = load_networks(
            run, config, split.manifest.classes, epoch=config.experiment.pre_trained_epoch, device=device
        )
        click.echo(f"run       {run.folder}, epoch {epoch}, on {device}")
        click.echo(f"shards    {split.location}, {part}: {split.manifest.parts[part].records} clips")
        with counting(console, "clips") as watch:
            results = evaluate(networks, split, config, part=part, device=device, run=run.id, epoch=epoch, watch=watch)
        path = run.folder / "results" / f"{results.dataset}-split{results.split}-{part}-epoch{epoch:04d}.json"
        path.parent.mkdir(exist_ok=True)
        write_results(path, results)
        write_text(path.with_suffix(".yaml"), dump(_on(config, split.location)))
        console.print(results_table(results))
        click.echo(f"scores    {path}")
        click.echo(f"report    {report_of_run(run, results, split)}")


@click.command()
@settings_options
@known_errors
def report(cfg: str | None, **options: Any) -> None:
    """Write a run's report again from its newest scores: one self-contained HTML page.

    \b
    stmul report -i demo-001
    """
    from stmul.errors import RunError
    from stmul.results import read_results
    from stmul.run_report import report_of_run

    run, config = _run_and_settings(cfg, gathered(**options))
    paths = sorted((run.folder / "results").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise RunError(f"{run.folder}: no scores yet; make them with: stmul test -i {run.id}")
    with _opened(config) as split:
        click.echo(f"report    {report_of_run(run, read_results(paths[-1]), split)}")


def _run_and_settings(cfg: str | None, changes: list[str]) -> tuple[Run, Config]:
    """The run asked for and its own settings with the changes on top; its shards, unless others are named."""
    from configs import load
    from stmul.config import Config
    from stmul.runs import find_run

    asked = load(Config, cfg, changes)
    run = find_run(Path(asked.experiment.folder), asked.experiment.pre_trained_id)
    config = load(Config, cfg or run.folder / "config.yaml", changes)
    if not config.data.shards:
        config = _on(config, run.about().shards)
    return run, config


@click.command()
@settings_options
@click.option("--classes", default=101, show_default=True, help="How many classes.")
@known_errors
def summary(cfg: str | None, classes: int, **options: Any) -> None:
    """Print what the network is made of and what it takes: units, parameters, multiply-adds, memory.

    \b
    stmul summary -c ucf101
    stmul summary -c hmdb51 --classes 51 --set train.sub_batch=8
    """
    from rich.console import Console

    from configs import load
    from stmul.config import Config
    from stmul.summary import summary_tables

    for table in summary_tables(load(Config, cfg, gathered(**options)), classes):
        Console().print(table, "")


@click.command(name="configs")
@click.argument("name", required=False)
@known_errors
def configurations(name: str | None) -> None:
    """List the shipped configurations, or print one with all its settings.

    \b
    stmul configs
    stmul configs demo
    """
    from configs import FOLDER, dump, load, names
    from stmul.config import Config

    if name is not None:
        click.echo(dump(load(Config, name)), nl=False)
        return
    for one in names():
        first = (FOLDER / f"{one}.yaml").read_text(encoding="utf-8").splitlines()[0]
        click.echo(f"{one:<10} {first.lstrip('# ')}")
