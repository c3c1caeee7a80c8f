"""The figures of docs/continuum.md. Each function draws one; nothing here reads files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from evaluation.statistics import Estimate
from nemo_probsft.pages.style import COLORS, STYLE, legend_above, legend_height


def over_alpha(tasks: Mapping[str, Mapping[float, Estimate]], adaptive: Mapping[str, Mapping[str, Estimate]]) -> Figure:
    """Accuracy over alpha, one line per task, the alphas evenly spaced; at the right what has no alpha of its own.

    adaptive: its objectives, each by task.
    """
    alphas = sorted({alpha for points in tasks.values() for alpha in points})
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 4.0 + legend_height(len(tasks), 4)), layout="constrained")
        for number, (task, points) in enumerate(tasks.items()):
            color, shift = COLORS[number % len(COLORS)], 0.06 * (number - (len(tasks) - 1) / 2)
            line = [(alphas.index(alpha) + shift, value) for alpha, value in points.items()]
            _errorbar(axes, line, color, task, marker="o", linestyle="-")
            for place, values in enumerate(adaptive.values(), len(alphas)):
                if task in values:
                    _errorbar(axes, [(place + 2 * shift, values[task])], color, None, marker="D", linestyle="none")
        names = [f"{alpha:g}" for alpha in alphas] + [key.replace("-", "\n", 1) for key in adaptive]
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="alpha of (1 - p^alpha) / alpha; 0 is -log p, 1 is 1 - p", ylabel="accuracy at T=1, %")
        axes.set_ylim(-3, 103)
        legend_above(figure, *axes.get_legend_handles_labels(), columns=4)
        return figure


def heat_map(means: np.ndarray, tasks: Sequence[str], objectives: Sequence[str]) -> Figure:
    """means [tasks, objectives] in %; NaN: no cell."""
    with plt.rc_context(STYLE | {"axes.grid": False}):
        size = 1.6 + 0.85 * len(objectives), 1.6 + 0.5 * len(tasks)
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        axes.imshow(means, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for row, column in zip(*np.nonzero(~np.isnan(means)), strict=True):
            value = means[row, column]
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black")
        axes.set_xticks(range(len(objectives)), objectives, rotation=30, ha="right")
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_title("Accuracy at T=1, %, mean over seeds")
        return figure


def save(figure: Figure, path: Path) -> None:
    """PNG without a version string: the same cells give the same bytes with every matplotlib."""
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _errorbar(axes, points, color: str, label: str | None, *, marker: str, linestyle: str) -> None:
    x, y = [place for place, _ in points], np.array([100 * value.mean for _, value in points])
    errors = [y - [100 * value.low for _, value in points], [100 * value.high for _, value in points] - y]
    axes.errorbar(x, y, np.maximum(errors, 0), color=color, label=label, marker=marker, linestyle=linestyle, capsize=3)
