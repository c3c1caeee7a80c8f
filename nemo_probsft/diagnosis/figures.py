"""The page's figures, in the report's style. Each function draws one and returns it."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from nemo_probsft.diagnosis import region
from nemo_probsft.pages.style import BARS, BRACKET, COLORS, GRID, INK, MUTED, PAPER_DOMAINS, STYLE

TOKENS, MEAN = GRID, COLORS[1]
# The salt makes the ids, so that equal diagnoses give equal files.
SETTINGS: Any = STYLE | {"svg.fonttype": "path", "svg.hashsalt": "nemo_probsft"}


def draw(result: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> SVG of every figure of a diagnosis."""
    functions = (continuum, weight, decile, histogram, confidence, position, example)
    return {function.__name__: _svg(function(result)) for function in functions}


def continuum(result: Mapping[str, Any]) -> Figure:
    """Mean p on the line from weak to strong, with the rule's borders and the paper's domains."""
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(8.2, 1.75), layout="constrained")
        for name, color, low, high in (
            ("weak", "#e3eef8", 0, region.WEAK),
            ("intermediate", "#f5f8fa", region.WEAK, region.STRONG),
            ("strong", "#fdeee4", region.STRONG, 1),
        ):
            axes.axvspan(low, high, color=color, zorder=0)
            axes.text((low + high) / 2, 0.86, name, ha="center", va="center", color=MUTED)
        for name, (low, high) in PAPER_DOMAINS.items():
            axes.plot([low, high], [0.2, 0.2], color=BRACKET, linewidth=6, solid_capstyle="butt")
            axes.text(
                max((low + high) / 2, 0.07), 0.04, f"paper: {name}", ha="center", va="center", color=MUTED, fontsize=8
            )
        mean, interval = result["mean_p"], result["interval_95"] or [result["mean_p"]] * 2
        axes.errorbar(
            [mean], [0.52], xerr=[[mean - interval[0]], [interval[1] - mean]], fmt="o", color=MEAN, markersize=10,
            capsize=5, linewidth=2, markeredgecolor="white",
        )  # fmt: skip
        right = mean < 0.7
        axes.text(
            interval[1] + 0.015 if right else interval[0] - 0.015, 0.52, f"mean p = {mean:.3f}", va="center",
            ha="left" if right else "right", color=MEAN, fontweight="bold",
        )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(-0.06, 1), yticks=[], xticks=[0, region.WEAK, 0.5, region.STRONG, 1])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        return figure


def histogram(result: Mapping[str, Any]) -> Figure:
    """Share of the targets over p, on a log scale, with the mean, the median and the 10th percentile."""
    edges, counts = np.array(result["histogram"]["edges"]), np.array(result["histogram"]["counts"])
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        _bars(axes, edges, 100 * counts / counts.sum())
        axes.axvline(result["mean_p"], color=MEAN, linewidth=2, label=f"mean p = {result['mean_p']:.3f}")
        for q, style in ((10, (0, (1, 2))), (50, (0, (4, 2)))):
            value = result["percentiles"][str(q)]
            axes.axvline(value, color=INK, linewidth=1.2, linestyle=style, label=f"{q}th percentile = {value:.3g}")
        shares = 100 * counts[counts > 0] / counts.sum()
        axes.set(xlim=(0, 1), yscale="log", ylim=(shares.min() / 2, min(200, 2 * shares.max())))
        axes.set(xlabel="p of a target token", ylabel="share of the target tokens, %")
        axes.set_title("How probable the targets are")
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.08), ncols=3, columnspacing=1.1, fontsize=8.5)
        return figure


def confidence(result: Mapping[str, Any]) -> Figure:
    """How often the model is right over how sure it is, and the share of the tokens where it is as sure."""
    bins = result["by_confidence"]
    sure, right = (np.array([entry[name] for entry in bins]) for name in ("confidence", "likeliest"))
    low, high = np.array([entry["interval_95"] or [entry["likeliest"]] * 2 for entry in bins]).T
    shares = np.zeros(region.NUM_BINS)
    for entry in bins:
        shares[round(region.NUM_BINS * entry["low"])] = entry["num_tokens"] / result["num_tokens"]
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        _bars(axes, np.linspace(0, 1, region.NUM_BINS + 1), shares, color=TOKENS, label="share of the tokens")
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)), label="as often as it expects")
        axes.errorbar(
            sure, right, [right - low, high - right], fmt="o-", color=COLORS[0], capsize=3, markersize=6,
            markeredgecolor="white", linewidth=1.6, label="the target is its likeliest token",
        )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="how sure the model is of its likeliest token", ylabel="share")
        axes.set_title("How often the answers agree with the model")
        axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.08), ncols=3, columnspacing=1.1, fontsize=8.5)
        return figure


def position(result: Mapping[str, Any]) -> Figure:
    """Mean p with its interval over the place in the answer; a bin's width on the axis is that of its logarithm."""
    bins = result["by_position"]
    mean = np.array([entry["mean_p"] for entry in bins])
    low, high = np.array([entry["interval_95"] or [entry["mean_p"]] * 2 for entry in bins]).T
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        axes.errorbar(
            np.arange(len(bins)), mean, [mean - low, high - mean], fmt="o-", color=COLORS[0], capsize=3, markersize=6,
            markeredgecolor="white", linewidth=1.6,
        )  # fmt: skip
        axes.axhline(result["mean_p"], color=MEAN, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.text(1.01, result["mean_p"], "all", transform=axes.get_yaxis_transform(), color=MEAN, va="center")
        labels = [_span(entry["first"], entry["last"]) for entry in bins]
        axes.set_xticks(np.arange(len(bins)), labels, rotation=45 if len(bins) > 9 else 0, fontsize=8.5)
        axes.set(xlim=(-0.5, len(bins) - 0.5), ylim=(0, 1.02), xlabel="token of the answer", ylabel="mean p")
        axes.set_title("Mean p by position")
        return figure


def weight(result: Mapping[str, Any]) -> Figure:
    """How the gradient weight of each objective of the shortlist is spread over p, beside the tokens."""
    counts = np.array(result["histogram"]["counts"]).reshape(region.NUM_BINS, -1).sum(1)
    edges = np.linspace(0, 1, region.NUM_BINS + 1)
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        _bars(axes, edges, 100 * counts / counts.sum(), color=TOKENS, label="tokens")
        _shares(axes, (edges[:-1] + edges[1:]) / 2, result, "shares")
        axes.set(xlim=(0, 1), ylim=(0, None), xticks=edges[::2], xlabel="p of a target token", ylabel="share, %")
        axes.set_title("Gradient weight by p")
        axes.legend(fontsize=8.5)
        return figure


def decile(result: Mapping[str, Any]) -> Figure:
    """The same over tenths of the tokens, which tells objectives apart if all p are alike."""
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        _bars(axes, np.arange(11) + 0.5, np.full(10, 10.0), color=TOKENS, label="tokens")
        _shares(axes, np.arange(1, 11), result, "decile_shares")
        axes.set(xlim=(0.5, 10.5), ylim=(0, None), xticks=range(1, 11), ylabel="share, %")
        axes.set_xlabel("tenth of the target tokens, the least likely first")
        axes.set_title("Gradient weight by rank")
        return figure


def _shares(axes: Any, x: np.ndarray, result: Mapping[str, Any], name: str) -> None:
    """One line an objective; later ones are thinner, so that equal ones show."""
    for number, (key, entry) in enumerate(result["gradient_weight"].items()):
        axes.plot(
            x, 100 * np.array(entry[name]), "o-", color=COLORS[number], linewidth=3.2 - 0.5 * number, markersize=4,
            label=key,
        )  # fmt: skip


def example(result: Mapping[str, Any]) -> Figure:
    """Histogram of the examples by their mean nll."""
    found = result["by_example"]["mean_nll_histogram"]
    with plt.rc_context(SETTINGS):
        figure, axes = plt.subplots(figsize=(6.2, 3.6), layout="constrained")
        _bars(axes, np.array(found["edges"]), np.array(found["counts"]))
        axes.set(yscale="log", ylim=(0.5, None), xlabel="mean nll of an example, nats", ylabel="examples")
        axes.set_title("How probable the examples are")
        return figure


def _bars(axes: Any, edges: np.ndarray, heights: np.ndarray, color: str = BARS, label: str | None = None) -> None:
    axes.bar(
        edges[:-1], heights, np.diff(edges), align="edge", color=color, edgecolor="white", linewidth=0.6, label=label
    )


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _svg(figure: Figure) -> bytes:
    with plt.rc_context(SETTINGS):
        file = BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return file.getvalue()
