"""The commands that train and test: parse, call one function, print."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stmul.options import (
    gathered,
    known_errors,
    nothing,
    on_shards,
    opened,
    run_and_settings,
    run_name,
    settings_of,
    settings_options,
    speaker,
)

if TYPE_CHECKING:
    import torch

    from shards.split import Split
    from stmul.config import Config
    from stmul.distributed import Ranks
    from stmul.results import Results
    from stmul.runs import Run


@click.command()
@settings_options
@click.option("--fresh", is_flag=True, help="Begin anew even if a stopped run could go on.")
@click.option("--deterministic", is_flag=True, help="The same bits each time on the same GPU; slower.")
@click.option("--profile", "profiled", is_flag=True, help="Trace some steps of each stage; say where the time goes.")
@known_errors
def train(cfg: str | None, fresh: bool, deterministic: bool, profiled: bool, **options: Any) -> None:
    """Train on shards, stage by stage; a stopped training goes on where it was.

    \b
    stmul train -c demo
    stmul train -c ucf101 --set data.shards=s3://bucket/ucf101/split1 --set train.batch=64
    """
    from configs import load
    from stmul.config import Config, own_configuration

    changes = [*gathered(**options), *(["train.deterministic=true"] if deterministic else [])]
    config = load(Config, cfg, changes)
    with opened(config) as split:
        manifest = split.manifest
        if cfg is None and (name := own_configuration(manifest.dataset)) is not None:
            config = load(Config, name, changes)
            cfg = name
        clips = ", ".join(f"{part.records} {name}" for name, part in manifest.parts.items())
        say = speaker()
        say(f"shards    {split.location}")
        named = f"{manifest.dataset} split {manifest.split}: {len(manifest.classes)} classes"
        say(f"data set  {named}, clips: {clips}")
        _train(config, split, name=run_name(cfg, manifest.dataset), fresh=fresh, profiled=profiled)


def _train(config: Config, split: Split, *, name: str, fresh: bool, profiled: bool) -> None:
    from rich.console import Console

    from stmul.display import training_display
    from stmul.distributed import here, joined
    from stmul.logs import run_log, stop_requests
    from stmul.stages import begin, choose_device, train_stages

    say = speaker()
    device = choose_device(config.experiment, here())
    with joined(device) as ranks, ExitStack() as stack:
        begun = begin(on_shards(config, split.location), split, name=name, fresh=fresh, ranks=ranks)
        for line in begun.lines:
            say(line)
        say(f"run       {begun.run.folder}{' (goes on where it was stopped)' if begun.goes_on else ''}, on {device}")
        if ranks.world > 1:
            say(f"ranks     {ranks.world}, of which {ranks.local_world} on this machine")
        watch = stack.enter_context(training_display(Console(quiet=not ranks.first)))
        log = stack.enter_context(run_log(begun.run) if ranks.first else nullcontext(nothing))
        stop = stack.enter_context(stop_requests(quiet=not ranks.first))
        done = train_stages(
            begun.config,
            split,
            begun.run,
            begun.start,
            device=device,
            watch=watch,
            log=log,
            stop=stop,
            say=say,
            ranks=ranks,
            profiled=profiled,
        )
    if not done:
        say("stopped; run the same command to go on")
        raise SystemExit(130)
    say(f"done      {begun.run.folder}; test it with: stmul test -i {begun.run.id}")


@click.command()
@settings_options
@click.option("--part", default="test", show_default=True, help="Which part of the split.")
@click.option("--splits", metavar="1,2,3", help="Test the newest such run of each split, and give the mean over them.")
@known_errors
def test(cfg: str | None, part: str, splits: str | None, **options: Any) -> None:
    """Score every test clip once with a run's networks; write scores and the report.

    With --splits, for each split the newest finished run of the same data set and settings as the one named (or the
    newest), on its own shards; then the mean of their accuracies, as papers report it.

    \b
    stmul test                      (the newest run)
    stmul test -i demo-001 -p 60
    stmul test -i ucf101-001 --splits 1,2,3
    """
    from stmul.distributed import here, joined
    from stmul.stages import choose_device

    changes = gathered(**options)
    if splits is not None:
        _test_splits(splits, cfg, changes, part)
        return
    run, config = run_and_settings(cfg, changes)
    device = choose_device(config.experiment, here())
    with joined(device) as ranks:
        _tested(run, config, part, device, ranks)


def _test_splits(splits: str, cfg: str | None, changes: list[str], part: str) -> None:
    from rich.console import Console

    from shards.whole import make_folder
    from stmul.distributed import here, joined
    from stmul.runs import write_text
    from stmul.splits import OverSplits, as_json, for_split, lacking, numbers, runs_of
    from stmul.splits_display import means_table
    from stmul.stages import choose_device

    wanted = numbers(splits)
    for_split(changes, wanted[0])  # a mistake is told before anything is looked for
    like, config = run_and_settings(cfg, changes)
    chosen = runs_of(wanted, like, like.folder.parent, named=bool(config.experiment.pre_trained_id))
    say, device, tested = speaker(), choose_device(config.experiment, here()), []
    for number, run in zip(wanted, chosen, strict=True):
        say(f"split {number}   {run.folder}")
    with joined(device) as ranks:
        for number, run in zip(wanted, chosen, strict=True):
            own = settings_of(run, cfg, for_split(changes, number))
            own = own.model_copy(update={"evaluate": config.evaluate})
            tested.append(_tested(run, own, part, device, ranks))
        if not ranks.first:
            return
    found = OverSplits(tests=tuple(results for results, _ in tested))
    folder = like.folder / "splits"
    make_folder(folder)
    path = folder / f"{found.tests[0].dataset}-splits{'-'.join(map(str, found.splits))}-{part}.json"
    write_text(path, as_json(found, [str(scores) for _, scores in tested]))
    Console().print(means_table(found))
    for head in lacking(found):
        click.echo(f"note      {head}: not scored in every split, so without a mean")
    click.echo(f"means     {path}")


def _tested(run: Run, config: Config, part: str, device: torch.device, ranks: Ranks) -> tuple[Results, Path]:
    """The results of a run on its shards, told and written, and where they were written by the first rank."""
    from rich.console import Console

    from stmul.display import counting, results_table
    from stmul.run_report import report_of_run
    from stmul.testing import score, write_scores

    console = Console(quiet=not ranks.first)
    with opened(config) as split:
        with counting(console, "clips") as watch:
            results = score(run, config, split, part=part, device=device, say=speaker(), watch=watch, ranks=ranks)
        if not ranks.first:
            return results, Path()
        path = write_scores(run, results, on_shards(config, split.location))
        console.print(results_table(results))
        click.echo(f"scores    {path}")
        click.echo(f"report    {report_of_run(run, results, split, config, device)}")
    return results, path


@click.command()
@settings_options
@known_errors
def report(cfg: str | None, **options: Any) -> None:
    """Write a run's report again from its newest scores: one self-contained HTML page.

    \b
    stmul report -i demo-001
    """
    from stmul.distributed import here
    from stmul.errors import RunError
    from stmul.results import read_results
    from stmul.run_report import report_of_run
    from stmul.stages import choose_device

    run, config = run_and_settings(cfg, gathered(**options))
    if (path := run.results()) is None:
        raise RunError(f"{run.folder}: no scores yet; make them with: stmul test -i {run.id}")
    with opened(config) as split:
        device = choose_device(config.experiment, here())
        click.echo(f"report    {report_of_run(run, read_results(path), split, config, device)}")


@click.command(name="import-matconvnet")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Folder, or a .safetensors file.")
@click.option("--dataset", help="What the networks were trained on; default: as the file's name says.")
@click.option("--split", type=click.IntRange(min=1), help="Which split of it; default: as the file's name says.")
@click.option("--shards", help="Shards of it: their data set, split and classes' names.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@known_errors
def import_matconvnet(
    files: tuple[Path, ...], out: Path, dataset: str | None, split: int | None, shards: str | None, overwrite: bool
) -> None:
    """Turn the authors' MatConvNet FILES into networks for stmul: final networks, base networks, ImageNet networks.

    Two base networks and one OUT file: they are joined as the authors join them. All files are read before one is
    written.

    \b
    stmul import-matconvnet ST-MulNet-img50-flow50-final.mat -o official.safetensors --dataset ucf101 --split 1
    stmul import-matconvnet ucf101-img-resnet50-split1-dr0.mat ucf101-resnet50-split1-dr0.8.mat \\
        -o experiment/base_pretrained_nets
    """
    from stmul.importing import imported, written
    from stmul.snapshot import Origin

    told = Origin(dataset=dataset or "", split=split or 0)
    class_names: tuple[str, ...] = ()
    if shards is not None:
        from shards.split import open_split

        with open_split(shards) as opened:
            manifest = opened.manifest
            told = Origin(dataset=dataset or manifest.dataset, split=split or manifest.split)
            class_names = manifest.classes
    for network in imported(files, out, told=told, class_names=class_names, overwrite=overwrite):
        for line in written(network):
            click.echo(line)


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
    width = max(map(len, names()))
    for one in names():
        first = (FOLDER / f"{one}.yaml").read_text(encoding="utf-8").splitlines()[0]
        click.echo(f"{one:<{width}}  {first.lstrip('# ')}")
