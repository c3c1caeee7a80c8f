"""Facts about the base model's log p of the targets: of all, by position in the answer, and by example.

Source: arXiv 2510.00526, Eq. 5 (token-level mean of p over all targets), Table 6 (fraction above 0.55), Fig. 5
(percentiles).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nemo_probsft.diagnosis import region
from nemo_probsft.diagnosis.targets import Targets

PERCENTILES = (5, *range(10, 100, 10))
CONFIDENT = 0.55  # the paper's threshold of a token that the base model knows
NUM_BINS = 50
TIE = 1e-5  # nats: log p of the target and of the likeliest token are rounded apart, where they are the same token
SINGLE_POSITIONS = 8  # of an answer, each by itself; behind them a bin is twice as long as the one before it


def measure(targets: Targets) -> dict[str, Any]:
    """The numbers of diagnose.json; every mean is over tokens, p in fp64, nll in nats."""
    p, example = targets.p, targets.example
    counts, edges = np.histogram(p, bins=NUM_BINS, range=(0.0, 1.0))
    found = region.region_of(float(p.mean()))
    candidates = region.shortlist(found["name"])
    keys = [entry["objective"] for entry in candidates]
    return {
        "num_tokens": int(p.size),
        "num_examples": len(np.unique(example)),
        "mean_p": float(p.mean()),
        "interval_95": interval(p, example),
        "mean_nll": float(-targets.logp.astype(np.float64).mean()),
        f"fraction_above_{CONFIDENT}": float((p > CONFIDENT).mean()),
        f"fraction_above_{CONFIDENT}_interval_95": interval(p > CONFIDENT, example),
        "percentiles": {str(q): float(np.percentile(p, q)) for q in PERCENTILES},
        "percentiles_1_minus_p": percentiles_1_minus_p(targets.logp),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "region": found,
        "shortlist": candidates,
        "gradient_weight": region.gradient_weights(targets, keys),
        "by_confidence": by_confidence(targets),
        "by_position": by_position(targets),
        "by_example": by_example(targets),
    }


def interval(values: np.ndarray, example: np.ndarray) -> list[float] | None:
    """95 % interval of the mean over tokens [T]; the tokens of one example [T] are not independent. One example: None.

    The mean is the ratio of the examples' sums to their counts; its variance is that of the residuals of the sums.
    """
    _, index = np.unique(example, return_inverse=True)
    counts = np.bincount(index)
    if len(counts) < 2:
        return None
    mean = float(values.mean())
    residuals = np.bincount(index, weights=values) - mean * counts
    variance = len(counts) / (len(counts) - 1) * float((residuals**2).sum()) / values.size**2
    half = 1.96 * variance**0.5
    return [max(0.0, mean - half), min(1.0, mean + half)]


def percentiles_1_minus_p(logp: np.ndarray) -> dict[str, float]:
    """1 - p at the percentiles of p, from log p fp32 [T]: near p = 1 the digits of p itself do not show it."""
    return {str(q): float(np.percentile(-np.expm1(logp.astype(np.float64)), 100 - q)) for q in PERCENTILES}


def by_confidence(targets: Targets) -> list[dict[str, Any]]:
    """How often the target is the token that the model thinks likeliest, by tenths of that token's probability.

    Where the model is calibrated, `likeliest` is `confidence` (a reliability diagram: Guo et al. 2017, arXiv
    1706.04599, Fig. 1). What lies below are answers that contradict it. Tenths without a token are left out.
    """
    top, p, found = targets.top, targets.p, []
    is_likeliest = targets.logp >= targets.top_logp - TIE
    tenth = np.minimum(region.NUM_BINS * top, region.NUM_BINS - 1).astype(np.int64)
    for i in np.unique(tenth):
        inside = tenth == i
        found.append(
            {
                "low": i / region.NUM_BINS,
                "high": (i + 1) / region.NUM_BINS,
                "num_tokens": int(inside.sum()),
                "confidence": float(top[inside].mean()),
                "likeliest": float(is_likeliest[inside].mean()),
                "interval_95": interval(is_likeliest[inside], targets.example[inside]),
                "mean_p": float(p[inside].mean()),
            }
        )
    return found


def by_file(targets: Targets, file_of: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Where each training file stands by itself, and the alpha that `prior` would give it. file_of: [examples] int64.

    Files of which nothing was measured are left out.
    """
    from nemo_probsft.objectives import Prior

    p, file, found = targets.p, file_of[targets.example], []
    for number, name in enumerate(names):
        inside = file == number
        if not inside.any():
            continue
        mean_p = float(p[inside].mean())
        found.append(
            {
                "file": name,
                "num_tokens": int(inside.sum()),
                "mean_p": mean_p,
                "interval_95": interval(p[inside], targets.example[inside]),
                "region": region.region_of(mean_p)["name"],
                "alpha": Prior().alpha(mean_p),
            }
        )
    return found


def by_position(targets: Targets) -> list[dict[str, Any]]:
    """Mean p of the tokens at places `first` to `last` of an answer; places count from 1 in each answer."""
    p, nll, place = targets.p, -targets.logp.astype(np.float64), targets.place_in_answer()
    longest, found = int(place.max()), []
    for first, last in _position_bins(longest):
        inside = (place >= first) & (place <= last)
        found.append(
            {
                "first": first,
                "last": min(last, longest),
                "num_tokens": int(inside.sum()),
                "mean_p": float(p[inside].mean()),
                "interval_95": interval(p[inside], targets.example[inside]),
                "mean_nll": float(nll[inside].mean()),
            }
        )
    return found


def _position_bins(longest: int) -> list[tuple[int, int]]:
    bins = [(place, place) for place in range(1, min(longest, SINGLE_POSITIONS) + 1)]
    while bins[-1][1] < longest:
        last = bins[-1][1]
        bins.append((last + 1, 2 * last))
    return bins


def by_example(targets: Targets) -> dict[str, Any]:
    """How the examples' mean nll is spread: percentiles and a histogram."""
    _, nll, _ = example_means(targets)
    counts, edges = np.histogram(nll, bins=NUM_BINS)
    return {
        "mean_nll_percentiles": {str(q): float(np.percentile(nll, q)) for q in PERCENTILES},
        "mean_nll_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def example_means(targets: Targets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """([n] int64, [n], [n] fp64): examples in the order of the file, mean nll and mean p of their targets."""
    examples, index, counts = np.unique(targets.example, return_inverse=True, return_counts=True)
    nll = np.bincount(index, weights=-targets.logp.astype(np.float64)) / counts
    return examples, nll, np.bincount(index, weights=targets.p) / counts
