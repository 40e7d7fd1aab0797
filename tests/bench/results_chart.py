"""How fast each variant learns: training accuracy over epochs, a line for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # after the backend

Logs = Mapping[int, Sequence[Mapping[str, float]]]  # epochs by seed


def draw(curves: Mapping[str, Logs], path: Path) -> None:
    """Writes a panel for each variant of `curves`, as SVG."""
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure, panels = plt.subplots(
        lines, columns, figsize=(4 * columns, 2.6 * lines), sharex=True, sharey=True, squeeze=False
    )
    for panel in list(panels.flat)[len(curves) :]:
        panel.set_visible(False)
    for panel, (words, logs) in zip(panels.flat, curves.items(), strict=False):
        for seed, epochs in logs.items():
            panel.plot(
                [row["epoch"] for row in epochs],
                [100 * row["accuracy"] for row in epochs],
                label=f"seed {seed}",
                linewidth=1.4,
            )
        panel.axhline(50, color="#9a9a9a", linewidth=0.8, linestyle=":")
        panel.axhline(75, color="#9a9a9a", linewidth=0.8, linestyle="--")
        panel.set_title(words.removeprefix("joint: "), fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    panels[0, 0].legend(fontsize=7, frameon=False, loc="upper left")
    panels[0, 0].set_ylabel("training accuracy, %", fontsize=8)
    panels[-1, 0].set_xlabel("epoch", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
