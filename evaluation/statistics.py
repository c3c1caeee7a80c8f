"""Intervals and tests for benchmark scores: the item is the unit, its repeated answers are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over items, with a percentile bootstrap interval over items; `samples_per_item` answers each."""

    mean: float
    low: float
    high: float
    num_items: int
    samples_per_item: int


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same items, its interval, and a two-sided sign-flip permutation p-value."""

    mean: float
    low: float
    high: float
    p_value: float
    num_items: int


def estimate(scores: np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean and interval of `scores` [items, samples]: items are resampled with all their answers (clustered bootstrap).

    When every answer scores 0, or every one 1, resampling cannot move the mean; the exact binomial bound for that many
    items stands in for the end that would otherwise claim certainty. One item has the interval [0, 1] of all scores.
    Raises: ValueError when `scores` is not a non-empty matrix of finite numbers.
    """
    scores = _matrix(scores)
    item_means = scores.mean(axis=1)
    low, high = _bootstrap_interval(item_means, seed)
    bound = ((1 - CONFIDENCE) / 2) ** (1 / len(scores))
    if len(scores) == 1:
        low, high = 0.0, 1.0
    elif (scores == 1).all():
        low = bound
    elif (scores == 0).all():
        high = 1 - bound
    return Estimate(float(item_means.mean()), low, high, *scores.shape)


def paired_difference(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> Difference:
    """Mean of a - b, both [items, samples] for the same items in the same order; the numbers of samples may differ.

    The p-value is that of the sign-flip permutation test of the per-item differences, with the observed arrangement
    counted, so it is never below 1 / (RESAMPLES + 1).
    Raises: ValueError when the numbers of items differ.
    """
    differences = _item_differences(a, b)
    low, high = _bootstrap_interval(differences, seed)
    return Difference(float(differences.mean()), low, high, _sign_flip_p_value(differences, seed), len(differences))


def estimate_over_seeds(by_seed: Sequence[np.ndarray], *, seed: int = 0) -> Estimate:
    """Mean over training seeds and items, `by_seed` one [items, samples] each: seeds and items are both resampled.

    Where no resample moves the mean, the bounds of `estimate` stand in. Few seeds tell little about their spread.
    """
    means = np.stack([_matrix(scores).mean(axis=1) for scores in by_seed])
    low, high = _percentiles(_two_way_means(means, seed))
    if means.min() == means.max():
        single = estimate(by_seed[0], seed=seed)
        low, high = single.low, single.high
    samples = sum(np.shape(scores)[1] for scores in by_seed)
    return Estimate(float(means.mean()), low, high, means.shape[1], samples)


def paired_difference_over_seeds(a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, seed: int = 0) -> Difference:
    """Mean of a - b, one [items, samples] per training seed, in the same order of seeds: both are resampled.

    The p-value flips signs of the per-item differences of the means over seeds: it speaks of items, for these seeds.
    Raises: ValueError when the numbers of items differ.
    """
    differences = _differences_over_seeds(a, b)
    low, high = _percentiles(_two_way_means(differences, seed))
    of_items = differences.mean(axis=0)
    return Difference(float(of_items.mean()), low, high, _sign_flip_p_value(of_items, seed), len(of_items))


def mean_of_tasks(tasks: Sequence[np.ndarray], *, seed: int = 0) -> Estimate:
    """The unweighted mean over `tasks`, each [items, samples]: items are resampled within their task.

    Where resampling cannot move any task's mean, the mean of the tasks' own bounds stands in. `samples_per_item` is
    that of the first task.
    """
    estimates = [estimate(scores, seed=seed) for scores in tasks]
    means = np.mean([_bootstrap_means(_matrix(t).mean(axis=1), [seed, n]) for n, t in enumerate(tasks)], axis=0)
    low, high = _percentiles(means)
    if means.min() == means.max():
        low, high = (float(np.mean([getattr(e, end) for e in estimates])) for end in ("low", "high"))
    mean = float(np.mean([e.mean for e in estimates]))
    return Estimate(mean, low, high, sum(e.num_items for e in estimates), estimates[0].samples_per_item)


def paired_mean_of_tasks(a: Sequence[np.ndarray], b: Sequence[np.ndarray], *, seed: int = 0) -> Difference:
    """Unweighted mean over tasks of the paired differences a - b, its interval and sign-flip p-value."""
    differences = [_item_differences(x, y) for x, y in zip(a, b, strict=True)]
    means = np.mean([_bootstrap_means(d, [seed, n]) for n, d in enumerate(differences)], axis=0)
    # An item's weight in the mean: one over the number of tasks and the items of its own.
    weighted = np.concatenate([d / (len(d) * len(differences)) for d in differences])
    return Difference(float(weighted.sum()), *_percentiles(means), _sign_flip_p_value(weighted, seed), len(weighted))


def mean_of_tasks_over_seeds(tasks: Sequence[Sequence[np.ndarray]], *, seed: int = 0) -> Estimate:
    """The unweighted mean over `tasks`, each as in `estimate_over_seeds`: seeds and items are resampled within a task.

    A seed of one task and the same seed of another are different runs, so they are resampled apart. Where no resample
    moves any mean, the mean of the tasks' own bounds stands in. `samples_per_item` is that of the first task.
    """
    values = [np.stack([_matrix(scores).mean(axis=1) for scores in by_seed]) for by_seed in tasks]
    means = np.mean([_two_way_means(of_task, (seed, n)) for n, of_task in enumerate(values)], axis=0)
    low, high = _percentiles(means)
    if all(of_task.min() == of_task.max() for of_task in values):
        estimates = [estimate_over_seeds(by_seed, seed=seed) for by_seed in tasks]
        low, high = (float(np.mean([getattr(e, end) for e in estimates])) for end in ("low", "high"))
    mean = float(np.mean([of_task.mean() for of_task in values]))
    samples = sum(np.shape(scores)[1] for scores in tasks[0])
    return Estimate(mean, low, high, sum(of_task.shape[1] for of_task in values), samples)


def paired_mean_of_tasks_over_seeds(
    a: Sequence[Sequence[np.ndarray]], b: Sequence[Sequence[np.ndarray]], *, seed: int = 0
) -> Difference:
    """Unweighted mean over tasks of a - b, each task as in `paired_difference_over_seeds`, resampled within itself."""
    differences = [_differences_over_seeds(x, y) for x, y in zip(a, b, strict=True)]
    means = np.mean([_two_way_means(d, (seed, n)) for n, d in enumerate(differences)], axis=0)
    weighted = np.concatenate([d.mean(axis=0) / (d.shape[1] * len(differences)) for d in differences])
    return Difference(float(weighted.sum()), *_percentiles(means), _sign_flip_p_value(weighted, seed), len(weighted))


def rank_correlation_over_tasks(
    places: Sequence[float], a: Sequence[Sequence[np.ndarray]], b: Sequence[Sequence[np.ndarray]], *, seed: int = 0
) -> Difference:
    """Spearman's correlation of the tasks' `places` and their means of a - b, in the form of a Difference of tasks.

    Its interval resamples seeds and items within a task: how sure the order of these tasks is. Its p-value permutes the
    tasks: whether as many tasks without any order would show one. Raises: ValueError when there are fewer than 3 tasks.
    """
    if len(places) < 3:
        raise ValueError(f"a rank correlation needs 3 tasks or more, got {len(places)}")
    differences = [_differences_over_seeds(x, y) for x, y in zip(a, b, strict=True)]
    ranks = _ranks(np.array(places, dtype=np.float64)[None])
    means = np.stack([_two_way_means(d, (seed, n)) for n, d in enumerate(differences)], axis=1)
    of_means = _ranks(np.array([[d.mean() for d in differences]]))
    observed = _correlations(ranks, of_means).item()
    shuffled = np.random.default_rng(seed).permuted(np.repeat(ranks, RESAMPLES, axis=0), axis=1)
    as_large = int((np.abs(_correlations(shuffled, of_means)) >= abs(observed) - 1e-9).sum())
    low, high = _percentiles(_correlations(ranks, _ranks(means)))
    return Difference(observed, low, high, (as_large + 1) / (RESAMPLES + 1), len(places))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: the chance that any of them errs stays below the level."""
    order = np.argsort(p_values, kind="stable")
    factors = len(order) - np.arange(len(order))
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[order]), 1)
    return corrected.tolist()


def _matrix(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.size == 0 or not np.isfinite(scores).all():
        raise ValueError(f"scores must be a non-empty finite [items, samples] matrix, got shape {scores.shape}")
    return scores


def _item_differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = _matrix(a), _matrix(b)
    if len(a) != len(b):
        raise ValueError(f"paired scores need the same items: got {len(a)} and {len(b)}; evaluate both on one data set")
    return a.mean(axis=1) - b.mean(axis=1)


def _differences_over_seeds(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """[seeds, items]"""
    return np.stack([_item_differences(one, other) for one, other in zip(a, b, strict=True)])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Within each row of `values` [rows, n]; ties share the mean of their ranks."""
    one, other = values[:, :, None], values[:, None, :]
    return (one > other).sum(axis=2) + 0.5 * (one == other).sum(axis=2)


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, [rows], of the rows of a and b [rows, n]; 0 where one of the two does not vary."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros_like(scale), where=scale > 0)


def _bootstrap_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Percentile interval of the mean of `values` [items]."""
    return _percentiles(_bootstrap_means(values, seed))


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def _bootstrap_means(values: np.ndarray, seed: int | list[int]) -> np.ndarray:
    """Means [RESAMPLES] of resampled `values` [items]."""
    return np.concatenate([values[rows].mean(axis=1) for rows in _resamples(len(values), seed)])


def _two_way_means(values: np.ndarray, seed: int | tuple[int, ...], block: int = 500) -> np.ndarray:
    """Means [RESAMPLES] of `values` [seeds, items], seeds and items resampled independently of each other."""
    seeds, items = _two_way_resamples(*values.shape, seed)
    starts = range(0, RESAMPLES, block)
    means = [np.einsum("bs,bs->b", items[i : i + block] @ values.T, seeds[i : i + block]) for i in starts]
    return np.concatenate(means) / values.size


@lru_cache(maxsize=16)
def _two_way_resamples(
    num_seeds: int, num_items: int, seed: int | tuple[int, ...], block: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """How often a resample has each seed, [RESAMPLES, seeds], and each item, [RESAMPLES, items].

    A page compares hundreds of runs on the same items: counting is what would cost it most of its time.
    """
    rng = np.random.default_rng(seed)
    seeds, items = [], []
    for _ in range(RESAMPLES // block):
        seeds.append(rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=block))
        places = rng.integers(num_items, size=(block, num_items)) + num_items * np.arange(block)[:, None]
        times = np.bincount(places.ravel(), minlength=block * num_items)
        items.append(times.reshape(block, num_items).astype(np.uint16))
    return np.concatenate(seeds), np.concatenate(items)


def _resamples(num_items: int, seed: int | list[int], block: int = 500):
    """RESAMPLES rows of item indices in blocks, so that memory stays at `block` * num_items."""
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES // block):
        yield rng.integers(num_items, size=(block, num_items))


def _sign_flip_p_value(differences: np.ndarray, seed: int, block: int = 500) -> float:
    rng = np.random.default_rng(seed)
    observed = abs(differences.sum())
    # A relative slack counts ties that differ only in the order of summation as ties.
    slack = 1e-9 * np.abs(differences).sum()
    at_least_as_large = 0
    for _ in range(RESAMPLES // block):
        signs = rng.integers(2, size=(block, len(differences))) * 2 - 1
        at_least_as_large += int((np.abs(signs @ differences) >= observed - slack).sum())
    return (at_least_as_large + 1) / (RESAMPLES + 1)
