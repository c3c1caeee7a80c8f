"""The figures of docs/continuum.md. Each function draws one; nothing here reads files."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from evaluation.statistics import Estimate
from experiments import drawing
from experiments.drawing import errorbar
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
            errorbar(axes, line, color, task, marker="o", linestyle="-")
            for place, values in enumerate(adaptive.values(), len(alphas)):
                if task in values:
                    errorbar(axes, [(place + 2 * shift, values[task])], color, None, marker="D", linestyle="none")
        names = [f"{alpha:g}" for alpha in alphas] + [key.replace("-", "\n", 1) for key in adaptive]
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="alpha of (1 - p^alpha) / alpha; 0 is -log p, 1 is 1 - p", ylabel="accuracy at T=1, %")
        axes.set_ylim(-3, 103)
        legend_above(figure, *axes.get_legend_handles_labels(), columns=4)
        return figure


def heat_map(means: np.ndarray, tasks: Sequence[str], objectives: Sequence[str]) -> Figure:
    """means [tasks, objectives] in %; NaN: no cell."""
    return drawing.heat_map(
        means,
        tasks,
        objectives,
        title="Accuracy at T=1, %, mean over seeds",
        limits=(0, 100),
        colors="viridis",
        text=lambda row, column: f"{means[row, column]:.0f}",
        white=lambda value: value < 60,
    )
