"""The figures of docs/real-continuum.md. Each function draws one; nothing here reads files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from evaluation.statistics import Difference
from experiments import drawing
from experiments.drawing import errorbar
from experiments.real.scores import is_adaptive
from nemo_probsft.pages.style import COLORS, GRID, INK, MUTED, OTHER, STYLE, legend_above, legend_height

# original and p have the same colours in every figure of the project; dft, whose gradient is that of p, stays grey.
COLORED = ("original", "p", "GeneralFamily-0.5", "GeneralFamily-10", "OnlyTopLogP-0.2", "adaptive", "adaptive-by-label")
MARKERS = ("*", "D", "s", "^", "v", "P", "X", "<", ">")
COLUMNS = 4  # of the legend

Gains = Mapping[tuple[str, str], Difference]  # by task and objective


def gains_over_base(gains: Gains, tasks: Mapping[str, float | None], objectives: Sequence[str]) -> Figure:
    """Gain over the base model, tasks evenly spaced and labelled with the base model's mean p, objectives side by side.

    tasks: the mean p of each, in the order of the axis.
    """
    with plt.rc_context(STYLE | {"axes.grid.axis": "y"}):
        size = 3.0 + 1.15 * max(len(tasks), 4), 4.4 + legend_height(len(objectives), COLUMNS)
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        for number in range(1, len(tasks), 2):
            axes.axvspan(number - 0.5, number + 0.5, color=GRID, alpha=0.45, linewidth=0)
        axes.axhline(0, color=INK, linewidth=1)
        for number, objective in enumerate(objectives):
            shift = 0.8 * ((number + 0.5) / len(objectives) - 0.5)
            points = [(x + shift, gains[task, objective]) for x, task in enumerate(tasks) if (task, objective) in gains]
            color, marker = _look(objective, objectives)
            errorbar(axes, points, color, objective, marker=marker, markersize=5, linestyle="none", capsize=2)
        axes.set_xticks(range(len(tasks)), [_label(task, mean_p) for task, mean_p in tasks.items()])
        axes.set_xlim(-0.5, len(tasks) - 0.5)
        axes.set_xlabel("task, and mean p of its training answers under the base model")
        axes.set_ylabel("gain over the base model, points")
        legend_above(figure, *axes.get_legend_handles_labels(), columns=COLUMNS)
        return figure


def gain_against_mean_p(gains: Gains, tasks: Mapping[str, float], objectives: Sequence[str]) -> Figure:
    """Gain over `original` against the base model's mean p, on the axis of the paper."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 5.0), layout="constrained")
        axes.axhline(0, color=COLORS[0], linewidth=1.5)
        for number, objective in enumerate(objectives):
            shift = 0.006 * (number - (len(objectives) - 1) / 2)
            points = [(tasks[t] + shift, gains[t, objective]) for t in tasks if (t, objective) in gains]
            color, marker = _look(objective, objectives)
            errorbar(axes, points, color, f"{objective} - original", marker=marker, linestyle="none")
        _name_places(axes, tasks)
        axes.set_xlim(-0.03, max(tasks.values(), default=1.0) + 0.1)
        axes.set(xlabel="mean p of the training answers under the base model", ylabel="gain over original, points")
        legend_above(figure, *axes.get_legend_handles_labels(), columns=3)
        return figure


def heat_map(gains: Gains, tasks: Mapping[str, float | None], objectives: Sequence[str]) -> Figure:
    """Gain over `original`; in brackets where the interval has 0 in it."""
    found = [[gains.get((task, objective)) for objective in objectives] for task in tasks]
    values = np.array([[np.nan if of is None else 100 * of.mean for of in row] for row in found])
    limit = max(float(np.nanmax(np.abs(values))), 1.0) if np.isfinite(values).any() else 1.0

    def text(row: int, column: int) -> str:
        of = found[row][column]
        assert of is not None
        rounded = f"{round(100 * of.mean):+d}"
        return rounded if of.low > 0 or of.high < 0 else f"({rounded})"

    return drawing.heat_map(
        values,
        [_label(task, mean_p, " ") for task, mean_p in tasks.items()],
        objectives,
        title="Gain over original, points, mean over seeds",
        limits=(-limit, limit),
        colors="RdBu",
        text=text,
        white=lambda value: abs(value) > 0.6 * limit,
    )


def _look(objective: str, objectives: Sequence[str]) -> tuple[str, str]:
    """Colour and marker: circles have a fixed f, the others move."""
    if objective in COLORED:
        color = COLORS[COLORED.index(objective)]
    elif objective == "dft":
        color = OTHER
    else:
        others = [key for key in objectives if key not in COLORED]
        color = (COLORS[7], INK, *COLORS)[others.index(objective) % (2 + len(COLORS))]
    moving = [key for key in objectives if is_adaptive(key)]
    return color, MARKERS[moving.index(objective) % len(MARKERS)] if objective in moving else "o"


def _label(task: str, mean_p: float | None, between: str = "\n") -> str:
    return f"{task}{between}{'p unknown' if mean_p is None else f'{mean_p:.{2 if mean_p >= 0.1 else 3}f}'}"


def _name_places(axes, tasks: Mapping[str, float], apart: float = 0.035) -> None:
    """The tasks' names over the axes, moved apart where they would cover each other, with a line to their place."""
    names = sorted(tasks, key=lambda task: tasks[task])
    spots: list[float] = []
    for name in names:
        spots.append(max(tasks[name], spots[-1] + apart) if spots else tasks[name])
    over = axes.get_xaxis_transform()
    for name, spot in zip(names, spots, strict=True):
        axes.plot([tasks[name], spot], [1.0, 1.04], color=MUTED, linewidth=0.7, transform=over, clip_on=False)
        axes.text(spot, 1.05, name, rotation=50, ha="left", va="bottom", color=MUTED, fontsize=9, transform=over)
        axes.axvline(tasks[name], color=GRID, linewidth=0.8, zorder=0)
