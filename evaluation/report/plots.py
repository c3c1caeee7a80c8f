"""The report's figures. Each function draws one and returns it; nothing here reads files."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from nemo_probsft.pages.style import (
    BARS,
    BRACKET,
    COLORS,
    GRID,
    MUTED,
    OTHER,
    PAPER_DOMAINS,
    STYLE,
    legend_above,
    legend_height,
)

MARKERS = ("o", "s", "D", "^", "v", "P")


def colors(trained: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """One colour per label, the same in every figure; beyond eight they repeat. Models of no given run are grey."""
    palette = {label: COLORS[number % len(COLORS)] for number, label in enumerate(trained)}
    return palette | {label: OTHER for label in others}


def continuum(points: Sequence[Mapping[str, Any]], palette: Mapping[str, str]) -> Figure:
    """Accuracy of each objective over the task's mean p under the base model.

    points: {"task", "objective", "mean_p", "mean", "low", "high"}, accuracies in [0, 1].
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 4.6 + legend_height(len(palette), 4)), layout="constrained")
        shade = np.linspace(0, 1, 256)[None, :]
        axes.imshow(shade, extent=(0, 1, -14, 120), aspect="auto", cmap=_soft_shade(), zorder=0)
        for objective, color in palette.items():
            mine = sorted((p for p in points if p["objective"] == objective), key=lambda p: p["mean_p"])
            if not mine:
                continue
            x = [p["mean_p"] for p in mine]
            y = np.array([100 * p["mean"] for p in mine])
            errors = [y - [100 * p["low"] for p in mine], [100 * p["high"] for p in mine] - y]
            axes.plot(x, y, color=color, linewidth=1.6, alpha=0.45, zorder=2)
            axes.errorbar(
                x, y, np.maximum(errors, 0), fmt="o", color=color, markersize=9, capsize=4,
                markeredgecolor="white", markeredgewidth=1.2, label=objective, zorder=2.5 if color == OTHER else 3,
            )  # fmt: skip
        _label_points(axes, points, palette)
        _mark_tasks(axes, points)
        axes.set(xlim=(0, 1), ylim=(-14, 120), yticks=range(0, 101, 20))
        axes.set_xlabel("mean probability the base model gives to the training targets")
        axes.set_ylabel("accuracy, %")
        axes.set_title("Accuracy after fine-tuning, by what the base model already knew", pad=22)
        axes.text(0.0, 1.025, "model-weak: the data teach", transform=axes.transAxes, color=MUTED, fontsize=9)
        axes.text(
            1.0, 1.025, "model-strong: the prior teaches", transform=axes.transAxes, color=MUTED, fontsize=9, ha="right"
        )
        handles = [plt.Line2D([], [], color=color, marker="o", linewidth=1.6) for color in palette.values()]
        legend_above(figure, handles, list(palette), columns=4)
        axes.grid(axis="x", visible=False)
        _mark_paper_domains(axes)
        return figure


def _soft_shade():
    return LinearSegmentedColormap.from_list("shade", ["#eef4fa", "#ffffff", "#fdf3ec"])


def _label_points(axes, points, palette) -> None:
    """The value beside each point, on the side where no connecting line is; labels of close values move apart."""
    for task in dict.fromkeys(point["task"] for point in points):
        mine = sorted((point for point in points if point["task"] == task), key=lambda point: point["mean"])
        heights = _spread([100 * point["mean"] for point in mine], distance=6, low=-5, high=107)
        for point, height in zip(mine, heights, strict=True):
            right = point["mean_p"] > 0.5
            axes.annotate(
                f"{100 * point['mean']:.0f}",
                (point["mean_p"], height),
                xytext=(11 if right else -11, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                color=palette[point["objective"]],
                fontweight="bold",
            )


def _spread(values: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Ascending `values` with neighbours pushed apart, each by as much, until they are `distance` apart.

    All between `low` and `high`, unless there are too many for that.
    """
    placed = list(values)
    for _ in range(100):
        for i in range(len(placed) - 1):
            push = (distance - (placed[i + 1] - placed[i])) / 2
            if push > 0:
                placed[i], placed[i + 1] = placed[i] - push, placed[i + 1] + push
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], high - distance * (len(placed) - 1 - i))
    for i in range(len(placed)):
        placed[i] = max(placed[i], low + distance * i)
    return placed


def _mark_tasks(axes, points) -> None:
    for task in dict.fromkeys(p["task"] for p in points):
        x = next(p["mean_p"] for p in points if p["task"] == task)
        axes.axvline(x, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
        axes.text(
            x, 114, f" {task} ", ha="center", va="center", fontsize=9.5, fontweight="bold",
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "#b8c0c8", "linewidth": 0.8},
        )  # fmt: skip


def _mark_paper_domains(axes) -> None:
    """The paper's domains as brackets under the axis: where real tasks lie."""
    transform = axes.get_xaxis_transform()
    for name, (low, high) in PAPER_DOMAINS.items():
        axes.plot([low, high], [0.012, 0.012], color=BRACKET, linewidth=5, solid_capstyle="butt", transform=transform)
        axes.text(
            max((low + high) / 2, 0.07), 0.042, f"paper: {name}", color=MUTED, fontsize=7.5, ha="center", va="center",
            transform=transform,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def domain_chart(
    columns: Sequence[str],
    rows: Sequence[tuple[str, str, Sequence[tuple[float, float, float] | None]]],
    palette: Mapping[str, str],
) -> Figure:
    """Accuracy per benchmark, one mark per model with its interval.

    rows: (name, colour key, (mean, low, high) in [0, 1] per column or None where the model was not judged).
    """
    with plt.rc_context(STYLE):
        width_inches = max(5.0, 1.1 * len(columns) + 2.6)
        legend_columns = int(width_inches // 1.9)  # of the longest usual name
        height = 3.1 + legend_height(len(rows), legend_columns)
        figure, axes = plt.subplots(figsize=(width_inches, height), layout="constrained")
        width = 0.7 / max(len(rows), 1)
        seen: dict[str, int] = {}
        for number, (name, key, cells) in enumerate(rows):
            shape = MARKERS[seen.setdefault(key, 0) % len(MARKERS)]  # models of one colour differ by shape
            seen[key] += 1
            places = [(i, cell) for i, cell in enumerate(cells) if cell is not None]
            x = [i + (number - (len(rows) - 1) / 2) * width for i, _ in places]
            y = np.array([100 * cell[0] for _, cell in places])
            errors = [y - [100 * cell[1] for _, cell in places], [100 * cell[2] for _, cell in places] - y]
            axes.errorbar(
                x, y, np.maximum(errors, 0), fmt=shape, color=palette[key], markersize=6, capsize=2.5, linewidth=1.4,
                markeredgecolor="white", markeredgewidth=0.7, label=name,
            )  # fmt: skip
        axes.set_xticks(
            range(len(columns)),
            columns,
            rotation=30 if len(columns) > 5 else 0,
            ha="right" if len(columns) > 5 else "center",
        )
        axes.set(xlim=(-0.6, len(columns) - 0.4), ylabel="accuracy, %")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.grid(axis="x", visible=False)
        for border in range(1, len(columns)):
            axes.axvline(border - 0.5, color=GRID, linewidth=0.8, zorder=0)
        legend_above(figure, *axes.get_legend_handles_labels(), columns=legend_columns)
        return figure


def training_curves(
    curves: Mapping[str, Mapping[str, list[dict]]],
    palette: Mapping[str, str],
    held_out: Mapping[str, Mapping[str, list[dict]]] | None = None,
) -> Figure:
    """objective, nll and mean p over the steps, one row per task. curves: task -> objective -> metrics rows.

    held_out: the same of validations, drawn dashed.
    """
    held_out = held_out or {}
    panels = {"objective": "objective", "nll": "negative log-likelihood, nats", "p": "mean p of the targets"}
    with plt.rc_context(STYLE):
        shown = [o for o in palette if any(o in by_objective for by_objective in curves.values())]
        height = 2.5 * len(curves) + legend_height(len(shown) + bool(held_out), 6)
        figure, grid = plt.subplots(len(curves), 3, figsize=(10.5, height), squeeze=False, layout="constrained")
        for row, (task, by_objective) in zip(grid, curves.items(), strict=True):
            for axes, (key, title) in zip(row, panels.items(), strict=True):
                for objective, metrics in by_objective.items():
                    _curve(axes, metrics, key, palette[objective], objective)
                    _held_out_curve(axes, held_out.get(task, {}).get(objective, []), key, palette[objective])
                axes.set_title(title)
                axes.margins(x=0.01)
            row[0].set_ylabel(task, fontweight="bold")
            row[2].set_ylim(0, 1)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        handles = [plt.Line2D([], [], color=palette[o], linewidth=2) for o in shown]
        if any(rows for by_objective in held_out.values() for rows in by_objective.values()):
            handles.append(plt.Line2D([], [], color=MUTED, linewidth=1.4, linestyle="--", marker="o", markersize=3.5))
            shown = [*shown, "held-out rows"]
        legend_above(figure, handles, shown, columns=6)
        return figure


def _held_out_curve(axes, validations: list[dict], key: str, color: str) -> None:
    steps, values = ([row[name] for row in validations] for name in ("step", key))
    axes.plot(steps, values, color=color, linewidth=1.4, linestyle="--", marker="o", markersize=3.5, zorder=3)


def _curve(axes, metrics: list[dict], key: str, color: str, label: str) -> None:
    """The raw values pale, their running mean strong."""
    steps = np.array([m["step"] for m in metrics])
    values = np.array([m[key] for m in metrics], dtype=float)
    if len(values) >= 40:
        width = max(3, len(values) // 25)
        axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.25)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], smooth, color=color, linewidth=1.8, label=label)
    else:
        axes.plot(steps, values, color=color, linewidth=1.8, label=label)


def weight_curves(p: np.ndarray, curves: Mapping[str, np.ndarray], palette: Mapping[str, str]) -> Figure:
    """s_f(p) over p: what each objective multiplies the NLL gradient of a token by."""
    with plt.rc_context(STYLE):
        height = max(3.6, 0.3 + legend_height(len(curves) + 1, 1))
        figure, axes = plt.subplots(figsize=(7.6, height), layout="constrained")
        for objective, weight in curves.items():
            axes.plot(p, weight, color=palette[objective], linewidth=2.2, label=objective)
        axes.set(
            xlim=(0, 1), xlabel="p, probability of the target token", ylabel="weight on the NLL gradient, $s_f(p)$"
        )
        axes.set_ylim(0, min(1.08 * max(float(np.nanmax(w)) for w in curves.values()), 4))
        axes.set_title("What a token's probability does to its gradient")
        figure.legend(title="objective", loc="outside right upper", alignment="left")
        return figure


def diagnosis(reports: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Histogram of the base model's p over the training targets of each task."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, len(reports), figsize=(5.2 * len(reports), 3.2), squeeze=False, sharey=True, layout="constrained"
        )
        for axes, (task, report) in zip(grid[0], reports.items(), strict=True):
            edges, counts = np.array(report["histogram"]["edges"]), np.array(report["histogram"]["counts"], dtype=float)
            share = 100 * counts / max(counts.sum(), 1)
            axes.bar(edges[:-1], share, np.diff(edges), align="edge", color=BARS, edgecolor="white", linewidth=0.6)
            axes.axvline(report["mean_p"], color=COLORS[1], linewidth=2)
            axes.annotate(
                f"mean p = {report['mean_p']:.2f}",
                (report["mean_p"], 0.93),
                xycoords=("data", "axes fraction"),
                xytext=(7 if report["mean_p"] < 0.6 else -7, 0),
                textcoords="offset points",
                ha="left" if report["mean_p"] < 0.6 else "right",
                color=COLORS[1],
                fontweight="bold",
            )
            axes.set(xlim=(0, 1), xlabel="p of a target token under the base model", title=task)
        grid[0][0].set_ylabel("share of target tokens, %")
        return figure
