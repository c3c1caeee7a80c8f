"""The report's figures with as many objectives as a sweep has: nothing lies over anything else or outside."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest

from evaluation.report import plots
from evaluation.statistics import Estimate
from experiments.continuum import figures

OBJECTIVES = [f"GeneralFamily-{number}" for number in range(1, 15)] + ["adaptive-by-label"]
PALETTE = plots.colors(OBJECTIVES, ["base model"])
CURVE = [{"step": step, "objective": 0.5, "nll": 2.0, "p": 0.3} for step in range(1, 4)]


def continuum(labels):
    points = [{"task": "weak", "objective": label, "mean_p": 0.1, "mean": 0, "low": 0, "high": 0} for label in labels]
    return plots.continuum(points, {label: PALETTE[label] for label in labels})


def domain_chart(labels):
    return plots.domain_chart(["weak"], [(label, label, [(0.5, 0.4, 0.6)]) for label in labels], PALETTE)


def training_curves(labels):
    curves = {"weak": {label: CURVE for label in labels}}
    return plots.training_curves(curves, PALETTE, held_out=curves)


def weight_curves(labels):
    p = np.linspace(0, 1, 5)
    return plots.weight_curves(p, {label: p for label in labels}, PALETTE)


def over_alpha(labels):
    value = Estimate(0.5, 0.4, 0.6, num_items=200, samples_per_item=16)
    return figures.over_alpha({label: {0.0: value, 1.0: value} for label in labels}, {})


def boxes(figure):
    """In pixels, of the legend and of every axes with its titles and texts."""
    renderer = figure.canvas.get_renderer()
    assert [axes.get_legend() for axes in figure.axes] == [None] * len(figure.axes)
    return [artist.get_tightbbox(renderer) for artist in (*figure.legends, *figure.axes)]


@pytest.mark.filterwarnings("error")  # matplotlib warns when it finds no room
@pytest.mark.parametrize("count", [1, 5, len(PALETTE)])
@pytest.mark.parametrize("draw", [continuum, domain_chart, training_curves, weight_curves, over_alpha])
def test_the_legend_has_room_of_its_own(draw, count):
    figure = draw(list(PALETTE)[:count])
    figure.canvas.draw()
    found = boxes(figure)
    assert not [pair for pair in itertools.combinations(found, 2) if pair[0].overlaps(pair[1])]
    whole = figure.bbox.padded(1)
    assert all(whole.contains(*corner) for box in found for corner in (box.min, box.max))
    assert all(axes.get_position().height > 0.3 for axes in figure.axes)
    plt.close(figure)


def test_values_beside_equal_points_stay_apart_and_on_the_page():
    placed = plots._spread([0.0] * 5 + [50.0] + [100.0] * 5, distance=6, low=-5, high=107)
    assert min(np.diff(placed)) >= 6 - 1e-9
    assert placed[0] >= -5
    assert placed[-1] <= 107
    assert placed[5] == pytest.approx(50, abs=1)
