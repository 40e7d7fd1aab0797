"""The command that exports a network: parse, call one function, print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from configs.cli_errors import OneOf
from stmul.options import gathered, known_errors, settings_options

HEADS = ["joint", "late fusion", "motion alone", "appearance alone"]  # as stmul.export has them, which loads torch


def size(value: str) -> tuple[int, int]:
    """Height and width out of an option."""
    found = re.fullmatch(r"(\d+)x(\d+)", value)
    if found is None or min(int(found[1]), int(found[2])) < 32:
        raise click.BadParameter(f"expected HEIGHTxWIDTH in pixels, 32 or more, as 224x224; found {value!r}")
    return int(found[1]), int(found[2])


@click.command()
@settings_options
@click.option(
    "-o", "--out", "paths", multiple=True, required=True, type=click.Path(path_type=Path), help="FILE.onnx or FILE.pt2."
)
@click.option("--heads", type=OneOf(HEADS), help="Whose scores; default: the first of these that the run has.")
@click.option("--frames", default=0, type=click.IntRange(min=0), help="Instants T of a clip; default: as in a test.")
@click.option("--size", type=size, metavar="HEIGHTxWIDTH", help="Of the frames; default: the training's crop.")
@click.option(
    "--levels", default="uint8", show_default=True, type=OneOf(["uint8", "float32"]), help="Type of the levels 0..255."
)
@known_errors
def export(
    cfg: str | None,
    paths: tuple[Path, ...],
    heads: str | None,
    frames: int,
    size: tuple[int, int] | None,
    levels: Any,
    **options: Any,
) -> None:
    """Write a run's network (-i; the newest unless named) for other programs: ONNX, or a program of torch.export.

    Any number of clips at once; instants and sizes are fixed. The file's scores are compared with PyTorch's before it
    is kept. Class names and what goes in stand in its metadata.

    \b
    stmul export -i ucf101-001 -o ucf101.onnx
    stmul export -i ucf101-001 -o ucf101.pt2 --frames 5 --size 256x340
    """
    from stmul.export import export as exported
    from stmul.trained import load_trained

    trained = load_trained(cfg, gathered(**options))
    click.echo(f"run       {trained.place}, {trained.told}")
    asked: dict[str, Any] = {"heads": heads or "", "frames": frames, "size": size, "levels": levels}
    for one in exported(trained, paths, **asked, say=click.echo):
        mib = one.path.stat().st_size / 2**20
        if one.difference is None:
            checked = "not compared with PyTorch: pip install onnxruntime does it"
        else:
            checked = f"{one.difference:.1e} of the largest score from PyTorch's at most"
        click.echo(f"written   {one.path} ({mib:.1f} MiB), {checked}")
