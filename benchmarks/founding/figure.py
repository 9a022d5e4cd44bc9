"""The figure of the founding table."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from founding.table import TAUGHT, Table, interval


def draw(tables: list[Table], path: Path) -> None:
    """Score against W with folds, and each method's gain over its best teacher, for each setting."""
    columns = min(3, len(tables))  # settings side by side; the others go below
    rows = -(-len(tables) // columns)
    figure = Figure(figsize=(4 * max(2, columns), 6 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    pairs = [pair for row in range(0, 2 * rows, 2) for pair in zip(axes[row], axes[row + 1], strict=True)]
    for top, bottom in pairs[len(tables) :]:
        top.remove()
        bottom.remove()
    for (top, bottom), table in zip(pairs, tables, strict=False):
        for colour, (ends, by_w) in zip(("#888888", "#1b6ca8"), table.by_w.items(), strict=True):
            found = np.array([interval(scores - by_w[1.0], table.contexts) for scores in by_w.values()]) * 100
            top.fill_between(list(by_w), found[:, 1], found[:, 2], color=colour, alpha=0.2, linewidth=0)
            top.plot(list(by_w), found[:, 0], "-o", color=colour, label=ends.removeprefix(", ") or "no folds")
        top.axhline(0, color="black", linewidth=0.8)
        top.set(title=table.setting, xlabel="W, the weight of a wrong teacher")
        for offset, colour, ends in ((0.15, "#888888", ""), (-0.15, "#1b6ca8", next(e for e in table.by_w if e))):
            for i, row in enumerate(TAUGHT):
                mean, low, high = (100 * value for value in table.gain(row + ends, "over_best_teacher"))
                bottom.plot([low, high], [-i + offset] * 2, color=colour)
                bottom.plot(mean, -i + offset, "o", color=colour)
        bottom.axvline(0, color="black", linewidth=0.8)
        bottom.set(xlabel="points over the best teacher of the set")
        bottom.set_yticks([-i for i in range(len(TAUGHT))], [row.split(",")[0] for row in TAUGHT], fontsize=7)
    axes[0][0].set(ylabel="points over W = 1 (KD), test")
    axes[0][0].legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
