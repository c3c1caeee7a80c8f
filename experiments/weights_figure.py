"""docs/figures/weights.svg, the README's picture: how much each objective learns from a token of probability p.

`python -m experiments.weights_figure` draws it from `nemo_probsft.objectives` itself; the same versions write the same
bytes, and a test compares them with the committed file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nemo_probsft.objectives import Objective, parse_objective

TARGET = Path(__file__).resolve().parents[1] / "docs" / "figures" / "weights.svg"
CURVES = {  # objective: colour (Okabe and Ito, told apart by the colour-blind), how a legend says it
    "original": ("#D55E00", "-log p  (original)"),
    "GeneralFamily-0.5": ("#CC79A7", "2 (1 - √p)  (GeneralFamily-0.5)"),
    "p": ("#0072B2", "1 - p  (p)"),
    "OnlyTopLogP-0.2": ("#009E73", "-log p if p ≥ 0.2  (OnlyTopLogP-0.2)"),
}
UNLIKELY, LIKELY = 0.05, 0.6  # a token that the model thinks wrong, and one that it half expects
STYLE = {"svg.hashsalt": "weights", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 11}


def weight(objective: Objective, p: torch.Tensor) -> torch.Tensor:
    """What multiplies the gradient of -log p: s_f(p), and 0 outside of the threshold. p: fp64, any shape."""
    return objective.weight(p.log()) * objective.keep(p.log())


def draw(target: Path) -> None:
    """Write the figure as SVG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.4, 4.3), width_ratios=(1.25, 1))
        _curves(left)
        _bars(right)
        figure.legend(loc="lower center", ncols=4, frameon=False, fontsize=10, columnspacing=1.4, handlelength=1.6)
        figure.subplots_adjust(left=0.062, right=0.99, top=0.9, bottom=0.235, wspace=0.17)
        figure.savefig(target, metadata={"Date": None, "Creator": None}, facecolor="white")
        pyplot.close(figure)


def _curves(axes: Any) -> None:
    p = torch.linspace(1e-6, 1, 401, dtype=torch.float64)
    for key, (colour, label) in CURVES.items():
        axes.plot(p, weight(parse_objective(key), p), color=colour, linewidth=2.4, label=label)
    axes.axvspan(0, 2 * UNLIKELY, color="0.9", linewidth=0)
    axes.annotate(
        "tokens that the model\nthinks wrong: new facts,\nor noise in your data",
        xy=(2 * UNLIKELY, 0.13),
        xytext=(0.42, 0.13),
        arrowprops={"arrowstyle": "->", "color": "0.35"},
        color="0.25",
        va="center",
        fontsize=10,
    )
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.08), xlabel="p, the model's probability of the target token")
    axes.set_title("Weight of a token, s(p) = -p f'(p)", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)


def _bars(axes: Any) -> None:
    places = torch.tensor([UNLIKELY, LIKELY], dtype=torch.float64)
    width = 0.2
    for number, (key, (colour, _)) in enumerate(CURVES.items()):
        size = weight(parse_objective(key), places) * (1 - places)
        at = [group + (number - 1.5) * width for group in range(len(places))]
        bars = axes.bar(at, size.tolist(), width * 0.9, color=colour)
        axes.bar_label(bars, [f"{value:.2f}" for value in size.tolist()], fontsize=9, padding=2)
    labels = [f"a token at p = {UNLIKELY:g}", f"a token at p = {LIKELY:g}"]
    axes.set_xticks(range(len(places)), labels)
    axes.set(ylim=(0, 1.08), yticks=[])
    axes.set_title("Its gradient, s(p) (1 - p)", loc="left", fontsize=12)
    axes.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    draw(TARGET)
