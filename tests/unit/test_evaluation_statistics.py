"""Intervals and p-values against closed forms, exhaustive enumeration and simulated coverage."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation.statistics import (
    RESAMPLES,
    estimate,
    estimate_over_seeds,
    holm,
    mean_of_tasks,
    mean_of_tasks_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
    paired_mean_of_tasks,
    paired_mean_of_tasks_over_seeds,
    rank_correlation_over_tasks,
)

binary_scores = st.tuples(st.integers(1, 12), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0]))
)


@settings(max_examples=30, deadline=None)
@given(scores=binary_scores)
def test_estimate_is_the_mean_inside_its_interval_and_repeats(scores):
    result = estimate(scores, seed=3)
    assert result.mean == pytest.approx(scores.mean(), abs=1e-12)
    assert 0 <= result.low <= result.mean <= result.high <= 1
    assert (result.num_items, result.samples_per_item) == scores.shape
    assert estimate(scores, seed=3) == result


@settings(max_examples=20, deadline=None)
@given(scores=binary_scores, copies=st.integers(2, 6))
def test_repeating_an_answer_adds_no_information(scores, copies):
    """Copies of an answer are no new evidence: the interval must not shrink, as it would were answers independent."""
    once, repeated = estimate(scores), estimate(np.repeat(scores, copies, axis=1))
    assert (once.low, once.high) == pytest.approx((repeated.low, repeated.high), abs=1e-9)


def test_interval_width_matches_the_central_limit():
    scores = np.random.default_rng(0).random((400, 1)) < 0.3
    result = estimate(scores)
    half = 1.96 * scores.std() / np.sqrt(400)
    assert result.high - result.mean == pytest.approx(half, rel=0.08)
    assert result.mean - result.low == pytest.approx(half, rel=0.08)


def test_interval_covers_at_its_level_and_the_unclustered_one_does_not():
    """Items differ in difficulty, so an item's answers agree; true mean 0.5, 300 simulated benchmarks of 60 items."""
    rng = np.random.default_rng(1)
    clustered = unclustered = 0
    for _ in range(300):
        difficulty = rng.beta(0.4, 0.4, size=(60, 1))
        scores = (rng.random((60, 16)) < difficulty).astype(float)
        result = estimate(scores, seed=int(rng.integers(1 << 30)))
        clustered += result.low <= 0.5 <= result.high
        half = 1.96 * scores.std() / np.sqrt(scores.size)
        unclustered += abs(scores.mean() - 0.5) <= half
    assert 0.91 <= clustered / 300 <= 0.98
    assert unclustered / 300 < 0.6


def test_all_right_or_all_wrong_is_not_certainty():
    right, wrong = estimate(np.ones((200, 16))), estimate(np.zeros((200, 16)))
    assert (right.mean, right.high, wrong.mean, wrong.low) == (1, 1, 0, 0)
    assert right.low == pytest.approx(0.025 ** (1 / 200), abs=1e-12)  # exact binomial: 0.9817
    one = estimate(np.array([[1.0, 0.0]]))
    assert (one.low, one.mean, one.high) == (0, 0.5, 1)
    assert wrong.high == pytest.approx(1 - 0.025 ** (1 / 200), abs=1e-12)


def test_p_value_matches_all_sign_flips():
    differences = np.array([0.5, 0.25, -0.1, 0.4, 0.3, -0.05, 0.2, 0.1])
    sums = np.array([np.dot(signs, differences) for signs in product((-1, 1), repeat=8)])
    exact = (np.abs(sums) >= abs(differences.sum()) - 1e-12).mean()
    result = paired_difference(0.5 + differences[:, None], np.full((8, 1), 0.5))
    assert result.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / RESAMPLES))
    assert result.mean == pytest.approx(differences.mean(), abs=1e-12)


def test_p_value_is_calibrated_without_a_difference_and_small_with_one():
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(150):
        difficulty = rng.beta(0.5, 0.5, size=(40, 1))
        a, b = (rng.random((40, 4)) < difficulty for _ in range(2))
        p_values.append(paired_difference(a, b, seed=int(rng.integers(1 << 30))).p_value)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.10
    assert 0.4 <= np.mean(p_values) <= 0.7
    certain = paired_difference(np.ones((40, 4)), np.zeros((40, 4)))
    assert certain.p_value == pytest.approx(1 / (RESAMPLES + 1), rel=1.01)
    assert (certain.mean, certain.low, certain.high) == (1, 1, 1)


def test_pairing_removes_what_the_items_have_in_common():
    rng = np.random.default_rng(3)
    difficulty = rng.beta(0.4, 0.4, size=(100, 1))
    a, b = rng.random((100, 16)) < np.minimum(difficulty + 0.1, 1), rng.random((100, 16)) < difficulty
    paired = paired_difference(a, b)
    separate = [estimate(scores) for scores in (a, b)]
    assert paired.low > 0
    assert (
        separate[1].high > separate[0].low
    )  # the separate intervals overlap: unpaired, the difference would be missed


def test_samples_may_differ_but_items_may_not():
    assert paired_difference(np.ones((5, 1)), np.zeros((5, 16))).mean == 1
    with pytest.raises(ValueError, match="the same items: got 5 and 6"):
        paired_difference(np.ones((5, 2)), np.ones((6, 2)))
    for bad in (np.ones(3), np.ones((0, 4)), np.array([[np.nan]])):
        with pytest.raises(ValueError, match="non-empty finite"):
            estimate(bad)


def test_mean_of_tasks_is_unweighted_and_its_interval_that_of_independent_tasks():
    rng = np.random.default_rng(4)
    tasks = [rng.random((400, 1)) < 0.3, rng.random((50, 4)) < 0.8]
    result = mean_of_tasks(tasks)
    assert result.mean == pytest.approx((tasks[0].mean() + tasks[1].mean()) / 2, abs=1e-12)
    assert result.num_items == 450
    variances = [task.mean(axis=1).var() / len(task) for task in tasks]
    half = 1.96 * np.sqrt(sum(variances)) / 2
    assert result.high - result.mean == pytest.approx(half, rel=0.08)
    assert result.mean - result.low == pytest.approx(half, rel=0.08)
    pooled = np.concatenate([task.mean(axis=1) for task in tasks])
    assert abs(pooled.mean() - result.mean) > 0.1  # the known mistake: every item the same weight


def test_mean_of_tasks_claims_no_certainty_and_tasks_are_not_resampled_in_step():
    zeros = mean_of_tasks([np.zeros((100, 1)), np.zeros((30, 16))])
    assert zeros.high == pytest.approx((1 - 0.025 ** (1 / 100) + 1 - 0.025 ** (1 / 30)) / 2, abs=1e-12)
    task = np.random.default_rng(5).random((60, 1)) < 0.5
    twice, once = mean_of_tasks([task, task.copy()]), mean_of_tasks([task])
    assert (twice.high - twice.low) / (once.high - once.low) == pytest.approx(1 / np.sqrt(2), rel=0.08)


def test_paired_mean_of_tasks_agrees_with_one_task_and_with_all_sign_flips():
    rng = np.random.default_rng(6)
    a, b = rng.random((40, 4)) < 0.6, rng.random((40, 4)) < 0.5
    assert paired_mean_of_tasks([a], [b]).mean == pytest.approx(paired_difference(a, b).mean, abs=1e-12)
    assert paired_mean_of_tasks([a], [b]).p_value == pytest.approx(paired_difference(a, b).p_value, abs=0.02)
    small = [np.array([[1.0], [0.0], [1.0]]), np.array([[1.0], [1.0], [0.0], [1.0], [1.0]])]
    other = [np.array([[0.0], [1.0], [0.5]]), np.array([[0.0], [0.25], [0.0], [1.0], [0.0]])]
    result = paired_mean_of_tasks(small, other)
    weighted = np.concatenate([(x - y)[:, 0] / (len(x) * 2) for x, y in zip(small, other, strict=True)])
    assert result.mean == pytest.approx(weighted.sum(), abs=1e-12)
    flips = np.array([abs(np.dot(signs, weighted)) for signs in product((-1, 1), repeat=8)])
    exact = (flips >= abs(weighted.sum()) - 1e-12).mean()
    assert result.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / RESAMPLES))
    assert result.low <= result.mean <= result.high


def seeds_and_items(rng, num_seeds=12, num_items=150):
    """[items, 1] per seed, a seed's effect plus an item's; and the variance of the mean when both are resampled."""
    of_seeds, of_items = 0.05 * rng.standard_normal(num_seeds), rng.random(num_items)
    values = [(of_seed + of_items)[:, None] for of_seed in of_seeds]
    return values, of_seeds.var() / num_seeds + of_items.var() / num_items


def test_over_seeds_the_interval_has_the_spread_of_seeds_and_of_items():
    values, variance = seeds_and_items(np.random.default_rng(8))
    found = estimate_over_seeds(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    half = 1.96 * np.sqrt(variance)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    pooled = estimate(np.concatenate(values))  # the known mistake: every answer an item of its own
    assert (pooled.high - pooled.low) / 2 < 0.5 * half
    shifted = [seed - 0.25 for seed in values]
    constant = paired_difference_over_seeds(values, shifted)
    assert (constant.low, constant.high) == pytest.approx((0.25, 0.25), abs=1e-9)


def test_over_seeds_one_answer_for_all_is_not_certainty():
    ones = [np.ones((100, 1))] * 3
    assert estimate_over_seeds(ones).low == pytest.approx(0.025 ** (1 / 100), abs=1e-12)
    assert mean_of_tasks_over_seeds([ones, ones]).low == pytest.approx(0.025 ** (1 / 100), abs=1e-12)


def test_tasks_over_seeds_are_resampled_apart_and_count_alike():
    rng = np.random.default_rng(9)
    (one, of_one), (other, of_other) = seeds_and_items(rng, num_items=150), seeds_and_items(rng, num_items=40)
    mean = (np.mean(one) + np.mean(other)) / 2
    half = 1.96 * np.sqrt(of_one + of_other) / 2
    zeros = [[np.zeros_like(seed) for seed in task] for task in (one, other)]
    paired = paired_mean_of_tasks_over_seeds([one, other], zeros)
    for found in (mean_of_tasks_over_seeds([one, other]), paired):
        assert found.mean == pytest.approx(mean, abs=1e-12)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
        assert found.num_items == 190
    assert abs(np.mean([v for task in (one, other) for seed in task for v in seed]) - mean) > 0.01  # items alike
    single = [task[:1] for task in (one, other)]
    flat = paired_mean_of_tasks([task[0] for task in single], [task[0] for task in zeros])
    assert paired_mean_of_tasks_over_seeds(single, [task[:1] for task in zeros]).p_value == flat.p_value


def gains(means, spread=1e-3):
    """Two seeds of 20 items whose means over both are `means`, against zeros."""
    rng = np.random.default_rng(10)
    noise = [spread * rng.standard_normal((20, 1)) for _ in means]
    a = [[mean + eps - eps.mean()] * 2 for mean, eps in zip(means, noise, strict=True)]
    return a, [[np.zeros((20, 1))] * 2 for _ in means]


def test_rank_correlation_is_spearmans_and_its_p_value_that_of_all_orders():
    places, means = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [-0.5, -0.1, -0.2, 0.1, 0.3, 0.2]
    found = rank_correlation_over_tasks(places, *gains(means))
    squares = [0, 1, 1, 0, 1, 1]  # of the differences between the ranks
    rho = 1 - 6 * sum(squares) / (6 * 35)
    assert found.mean == pytest.approx(rho, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((rho, rho), abs=1e-9)  # the items agree about the order
    assert np.corrcoef(places, means)[0, 1] != pytest.approx(rho, abs=1e-3)  # the known mistake: Pearson's
    ranks = np.argsort(np.argsort(means))
    all_orders = [abs(np.corrcoef(order, ranks)[0, 1]) for order in permutations(range(6))]
    exact = np.mean(np.array(all_orders) >= rho - 1e-9)
    assert found.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / RESAMPLES))
    loose = rank_correlation_over_tasks(places, *gains(means, spread=2.0))
    assert loose.low < 0 < loose.high  # they do not
    tied = rank_correlation_over_tasks([0.1, 0.1, 0.2], *gains([1.0, 2.0, 3.0]))
    assert tied.mean == pytest.approx(np.sqrt(3) / 2, abs=1e-12)
    with pytest.raises(ValueError, match="needs 3 tasks or more, got 2"):
        rank_correlation_over_tasks([0.1, 0.2], *gains([1.0, 2.0]))


def test_holm_steps_down_and_never_below_a_smaller_one():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
