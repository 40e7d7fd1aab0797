"""The figures as bars."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # after the backend

from tests.bench.measure import Case, spread
from tests.bench.tables import FLOWS, Report
from tests.bench.variants import ENDS

COLOURS = {
    "reference": "#9a9a9a",
    "as documented": "#d8a657",
    "our payload": "#7da7c7",
    "ours": "#2f6f4f",
    "floor": "#cfcfcf",
}


def draw(report: Report, path: Path) -> None:
    """Writes CPU ms per clip as bars, a panel for each end point and size of flow, for the first number of threads."""
    flows = list(report.variants)
    figure, panels = plt.subplots(len(flows), 2, figsize=(13, 0.6 + 4.2 * len(flows)), squeeze=False)
    for line, flow in zip(panels, flows, strict=True):
        for panel, end in zip(line, ENDS, strict=True):
            bars = []
            for variant in report.variants[flow]:
                times = report.times.get(Case(variant=variant.name, flow=flow, end=end, threads=report.threads[0]))
                if times:
                    bars.append((variant, spread([one.cpu for one in times])))
            for number, (variant, (low, middle, high)) in enumerate(reversed(bars)):
                error = [[middle - low], [high - middle]]
                panel.barh(number, middle, color=COLOURS[variant.kind], xerr=error, error_kw={"elinewidth": 0.8})
                panel.text(high, number, f"  {middle:.1f}", va="center", fontsize=8)
            panel.set_yticks(range(len(bars)), [variant.name for variant, _ in reversed(bars)], fontsize=8)
            panel.set_title(f"{end}, {FLOWS[flow]}", fontsize=10, loc="left")
            panel.set_xlabel(f"CPU ms per clip, threads: {report.threads[0]}", fontsize=8)
            panel.margins(x=0.12)
            panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
