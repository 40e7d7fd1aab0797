"""Clips a second on every line as bars."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # after the backend

from tests.bench.measure import spread
from tests.bench.remote_tables import SECOND, SERVERS, Report, rate

COLOURS = {"floor": "#cfcfcf", "ours": "#2f6f4f", "peer": "#7da7c7"}


def draw(report: Report, path: Path) -> None:
    """A panel for each line and server, a bar for each reader: medians with quartiles."""
    servers = [server for server in SERVERS if any(reader.server == server for reader in report.readers)]
    kinds = {(reader.server, reader.name): reader.kind for reader in report.readers}
    rows = {server: [name for where, name in report.rows if where == server] for server in servers}
    lines = [(server, shape) for shape in report.shapes for server in servers]
    tall = max(map(len, rows.values()))
    figure, panels = plt.subplots(
        len(report.shapes),
        len(servers),
        figsize=(6.5 * len(servers), (0.24 * tall + 0.6) * len(report.shapes)),
        squeeze=False,
    )
    for panel, (server, shape) in zip(panels.flat, lines, strict=True):
        bars = []
        for name in rows[server]:
            if some := report.passes(shape, server, name):
                bars.append((name, spread([rate(one) for one in some.values()])))
        for number, (name, (low, middle, high)) in enumerate(reversed(bars)):
            error = [[middle - low], [high - middle]]
            colour = COLOURS[kinds[server, name.removesuffix(SECOND)]]
            panel.barh(number, middle, color=colour, xerr=error, error_kw={"elinewidth": 0.8})
            panel.text(high, number, f"  {middle:.1f}", va="center", fontsize=7)
        panel.set_yticks(range(len(bars)), [name for name, _ in reversed(bars)], fontsize=7)
        panel.set_title(f"{shape.words}, {SERVERS[server]}", fontsize=9, loc="left")
        panel.set_xlabel("clips a second", fontsize=7)
        panel.tick_params(axis="x", labelsize=7)
        panel.margins(x=0.12)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
