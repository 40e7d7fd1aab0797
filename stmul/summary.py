"""What a network is made of, as a table."""

from __future__ import annotations

import torch
from rich.table import Table
from torch import nn

from stmul.config import Config
from stmul.network import TwoStream
from stmul.stages import build


def parameters(module: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def summary_table(config: Config, classes: int) -> Table:
    """Units of both streams with their parameters, which are joined, and which filter over time."""
    with torch.device("meta"):  # sizes only: nothing is allocated
        network = build("joint", config, classes)
    assert isinstance(network, TwoStream)
    title = f"{classes} classes, {config.data.frames} instants, crop {config.data.crop}"
    shown = Table(title=title, title_justify="left")
    for column in ("unit", "appearance", "motion", "joined", "over time"):
        shown.add_column(column, justify="right" if column in ("appearance", "motion") else "left")
    streams = (network.appearance, network.motion)
    shown.add_row("stem", *(f"{parameters(stream.conv1) + parameters(stream.norm1):,}" for stream in streams), "", "")
    for name in network.order:
        units = [dict(stream.units.items()).get(name) for stream in streams]
        counts = ["" if unit is None else f"{parameters(unit):,}" for unit in units]
        directions = {"motion → appearance": network.gated_appearance, "appearance → motion": network.gated_motion}
        joined = [words for words, gated in directions.items() if name in gated]
        over_time = config.network.temporal.initial if name in config.network.temporal.units else ""
        shown.add_row(name, *counts, f"{network.operator}: {', '.join(joined)}" if joined else "", over_time)
    shown.add_row("classifier", *(f"{parameters(stream.classifier):,}" for stream in streams), "", "")
    shown.add_section()
    shown.add_row("all", *(f"{parameters(stream):,}" for stream in streams), f"{parameters(network):,}", "")
    return shown
