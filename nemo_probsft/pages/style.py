"""The look of every figure: colours, fonts, and a legend that covers nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for colour-blind readers; the two objectives of the demo come first.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6FBF", "#B79F00")
OTHER = "#8a949e"
BARS, BRACKET = "#8fb3d1", "#9aa5b1"
INK, MUTED, GRID = "#1f2933", "#66727f", "#e4e8ec"
# Mean p of the base models on the training targets of the paper's three domains: arXiv 2510.00526, Table 5.
PAPER_DOMAINS = {"figlet fonts": (0.01, 0.07), "medicine": (0.50, 0.59), "mathematics": (0.76, 0.81)}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": "#b8c0c8",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
}


def legend_above(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """Put the legend outside the axes, where constrained layout makes room: inside, many objectives cover the title."""
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), columns), columnspacing=1.2)


def legend_height(num_labels: int, columns: int) -> float:
    """Inches that `legend_above` needs."""
    return 0.23 * -(-num_labels // columns)
