"""What the figures of the measured pages share. Nothing here reads files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from evaluation.statistics import Difference, Estimate
from nemo_probsft.pages.style import STYLE


def save(figure: Figure, path: Path) -> None:
    """PNG without a version string: the same cells give the same bytes with every matplotlib."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def errorbar(
    axes, points: Sequence[tuple[float, Estimate | Difference]], color: str, label: str | None, **style
) -> None:
    """The points in %, each with its interval."""
    x, y = [place for place, _ in points], np.array([100 * value.mean for _, value in points])
    errors = [y - [100 * value.low for _, value in points], [100 * value.high for _, value in points] - y]
    axes.errorbar(x, y, np.maximum(errors, 0), color=color, label=label, **({"capsize": 3} | style))


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    limits: tuple[float, float],
    colors: str,
    text: Callable[[int, int], str],
    white: Callable[[float], bool],
) -> Figure:
    """values [rows, columns]; NaN: no cell. text: what stands in a cell; white: whether black is hard to read there."""
    look: dict[str, Any] = STYLE | {"axes.grid": False}
    with plt.rc_context(look):
        size = 1.6 + 0.85 * len(columns), 1.6 + 0.5 * len(rows)
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.imshow(values, vmin=limits[0], vmax=limits[1], cmap=colors, aspect="auto")
        for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
            color = "white" if white(values[row, column]) else "black"
            axes.text(column, row, text(row, column), ha="center", va="center", color=color)
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(title)
        return figure
