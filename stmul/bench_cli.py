"""The command that measures loading: parse, call one function, print. It joins the group of the shards' commands."""

from __future__ import annotations

import click

from configs import SettingsError
from configs.cli_errors import OneOf, one_line
from shards.errors import ShardError
from stmul.errors import StmulError

known_errors = one_line(SettingsError, ShardError, StmulError)


@click.command()
@click.argument("location", metavar="PATH|URL")
@click.option("-c", "--cfg", help="Shipped configuration or YAML file; default: the data set's own.")
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one setting.")
@click.option("--part", default="train", show_default=True, help="train is read as for training, others for testing.")
@click.option("--stage", type=OneOf(["appearance", "motion", "joint"]), default="joint", help="Of training.")
@click.option("--threads", type=click.IntRange(min=1), help="That read and decode; default: as configured.")
@click.option("--seconds", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="Each measurement.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@known_errors
def bench(
    location: str,
    cfg: str | None,
    overrides: tuple[str, ...],
    part: str,
    stage: str,
    threads: int | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure what this machine reads, decodes and delivers of a split, and say which of it is the limit.

    \b
    stmul shards bench data/ucf101/split1
    stmul shards bench https://host/ucf101/split1 -c ucf101 --threads 16 --json
    """
    import json

    from rich.console import Console

    from configs import load
    from stmul.config import Config, own_configuration
    from stmul.figures import as_tree
    from stmul.opening import open_shards
    from stmul.stages import choose_device
    from stmul.throughput import ended_at_once, measure
    from stmul.throughput_display import conclusion, heading, measuring, throughput_table

    changes = [*overrides, *([f"data.threads={threads}"] if threads else [])]
    config = load(Config, cfg, changes)
    with ended_at_once(), open_shards(config.data, location) as split, measuring(Console(stderr=True)) as say:
        if cfg is None and (cfg := own_configuration(split.manifest.dataset)) is not None:
            config = load(Config, cfg, changes)
        if part not in split.manifest.parts:
            raise SettingsError(f"--part {part}: expected one of {', '.join(split.manifest.parts)}")
        device = choose_device(config.experiment)
        figures = measure(split, config, part=part, stage=stage, seconds=seconds, device=device, say=say)
    if as_json:
        click.echo(json.dumps(as_tree(figures), indent=1))
        return
    click.echo("\n".join(heading(figures, config, cfg or "defaults")))
    Console(highlight=False).print(throughput_table(figures))
    click.echo("\n".join(conclusion(figures)))
