"""What the commands of training and testing share: their options, and the run and settings that these name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from configs import Named, SettingsError
from configs.cli_errors import OneOf, one_line
from shards.errors import ShardError
from stmul.errors import StmulError

if TYPE_CHECKING:
    from shards.split import Split
    from stmul.config import Config
    from stmul.runs import Run

known_errors = one_line(SettingsError, ShardError, StmulError)
GPU = {"1": "yes", "yes": "yes", "true": "yes", "0": "no", "no": "no", "false": "no", "auto": "auto"}


def epoch(value: str) -> int | str:
    """The number of an epoch, or `best`, out of an option."""
    if value != "best" and not value.isdecimal():
        raise click.BadParameter(f"expected the number of an epoch, or best; found {value!r}")
    return value if value == "best" else int(value)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that training and testing share, as in the earlier implementation; they come after `--set`."""
    options = [
        click.option(
            "-c", "--cfg", help="Shipped configuration or YAML file; default: the run's, or else the data set's own."
        ),
        click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting."),
        click.option("-d", "--dataset-dir", help="Folder of the data sets."),
        click.option("-e", "--experiment-dir", help="Folder of the runs."),
        click.option("-u", "--use-gpu", type=OneOf(sorted(GPU)), help="Default: a GPU if there is one."),
        click.option("-g", "--gpu-id", type=int, help="Which GPU."),
        click.option("-i", "--pre-trained-id", help="A run: to start from, or to test."),
        click.option(
            "-p", "--pre-trained-epoch", type=epoch, metavar="EPOCH", help="Its epoch, or best; default: the last."
        ),
    ]
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def gathered(
    overrides: tuple[str, ...],
    dataset_dir: str | None,
    experiment_dir: str | None,
    use_gpu: str | None,
    gpu_id: int | None,
    pre_trained_id: str | None,
    pre_trained_epoch: int | str | None,
) -> list[str]:
    """All changes in the order in which they count: `--set`, then the named options."""
    given = (
        ("--dataset-dir", "dataset_dir", dataset_dir),
        ("--experiment-dir", "folder", experiment_dir),
        ("--use-gpu", "use_gpu", GPU[use_gpu] if use_gpu else None),
        ("--gpu-id", "gpu_id", gpu_id),
        ("--pre-trained-id", "pre_trained_id", pre_trained_id),
        ("--pre-trained-epoch", "pre_trained_epoch", pre_trained_epoch),
    )
    return [
        *overrides,
        *(Named(option, f"experiment.{key}", value) for option, key, value in given if value is not None),
    ]


def opened(config: Config) -> Split:
    from stmul.opening import open_shards

    return open_shards(config.data)


def on_shards(config: Config, shards: str) -> Config:
    """The settings with other shards; a split's location is shown, and written, without credentials of its URL."""
    return config.model_copy(update={"data": config.data.model_copy(update={"shards": shards})})


def speaker() -> Callable[[str], None]:
    """What prints a line, in the first of several processes alone."""
    from stmul.distributed import here

    return click.echo if here().first else nothing


def nothing(what: object) -> None:
    return None


def run_and_settings(cfg: str | None, changes: list[str]) -> tuple[Run, Config]:
    """The run asked for and its own settings with the changes on top; its shards, unless others are named."""
    from configs import load
    from stmul.config import Config
    from stmul.runs import find_run
    from stmul.start import is_network_file

    asked = load(Config, cfg, changes)
    if is_network_file(asked.experiment.pre_trained_id):
        must_not_change(asked.experiment.pre_trained_id, changes)
        return _network_file(asked, Path(asked.experiment.pre_trained_id))
    run = find_run(Path(asked.experiment.folder), asked.experiment.pre_trained_id)
    return run, settings_of(run, cfg, changes)


def must_not_change(file: str, changes: Sequence[str]) -> None:
    """Raises SettingsError where changes of settings touch the network in a file, which keeps its own."""
    if own := [change for change in changes if change.startswith("network")]:
        raise SettingsError(
            f"--set {own[0]}: the network in {file} has settings of its own, which it keeps; leave this out"
        )


def settings_of(run: Run, cfg: str | None, changes: list[str]) -> Config:
    """The run's own settings, or those of `cfg`, with the changes on top; its shards, unless others are named."""
    from configs import load
    from stmul.config import Config

    config = load(Config, cfg or run.folder / "config.yaml", changes)
    return config if config.data.shards else on_shards(config, run.about().shards)


def _network_file(config: Config, path: Path) -> tuple[Run, Config]:
    """A run of its own for a network that was not trained here, and the settings to test it with."""
    from stmul.distributed import here
    from stmul.runs import About, run_of_network
    from stmul.start import load_joint

    network, origin = load_joint(path)
    with opened(config) as split:
        data = config.data.model_copy(update={"shards": split.location, "stack": network.motion.channels // 2})
        config = config.model_copy(update={"network": network.settings, "data": data})
        about = About(
            shards=split.location,
            dataset=origin.dataset,
            split=origin.split,
            classes=network.class_names or split.manifest.classes,
            digest=split.manifest.parts["train"].digest if "train" in split.manifest.parts else "",
            settings={},
            start=origin.source,
            network=str(path),
            done=True,
        )
    if not origin.dataset or not origin.split:
        click.echo(f"note      {path} was trained on {origin.trained_on}: it may have seen the clips tested here")
    if not network.class_names:
        click.echo(f"note      {path} names no classes: its scores are taken in the order of the shards' classes")
    run = run_of_network(Path(config.experiment.folder), path)
    if here().first:
        run.describe(about, config)
    return run, config


def run_name(cfg: str | None, dataset: str) -> str:
    """What runs are called: as their configuration, or as the run whose settings these are; else as the data set."""
    if cfg is None:
        return dataset
    path = Path(cfg)
    if path.name == "config.yaml" and (path.parent / "run.json").exists():
        return path.parent.resolve().name.rstrip("0123456789").rstrip("-")
    return path.stem


def made_of(run: Run, config: Config) -> Mapping[str, Any]:
    """How the records of a run's training were made: as the run notes it, else as its shards say.

    Empty for networks that were not trained here.
    """
    about = run.about()
    if about.made or about.network:
        return about.made
    with opened(config) as split:
        return split.manifest.made
