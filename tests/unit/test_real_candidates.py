"""experiments.real.candidates: means and regressions against float64 loops, and nothing that waits for a GPU."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from experiments.real.candidates import (
    CANDIDATES,
    NUM_BINS,
    ByClass,
    ByContext,
    ByGap,
    Mean,
    Now,
    OfBase,
    State,
    Threshold,
    by_confidence,
    by_label,
    confidence_bin,
    ramp,
)
from experiments.real.moving import moving

HIDDEN = 6
BY_OWN_P = "threshold-by-confidence"


def some_steps(count=4) -> list[Now]:
    """Steps of 40 to 43 targets over 12 labels and 2 sources."""
    return [some_step(number) for number in range(count)]


def some_step(number: int) -> Now:
    generator = torch.Generator().manual_seed(number)
    size = 40 + number
    p = torch.rand(size, generator=generator)
    top = torch.maximum(p, torch.rand(size, generator=generator))
    return Now(
        logp=p.log(),
        top=top.log(),
        labels=torch.randint(12, (size,), generator=generator),
        source=torch.arange(size) // 5 % 2,
        hidden=torch.randn(size, HIDDEN, generator=generator).bfloat16(),
    )


def after(state: State, steps: list[Now]) -> State:
    for now in steps:
        if isinstance(state, OfBase):
            state.know(now)
        state.alpha(now)
        state.see(now)
    return state


def decayed(steps: list[Now], chosen) -> tuple[float, float]:
    """(sum of p, number) of the tokens of all steps that `chosen(now, i)` takes, the last step with weight 1."""
    total = count = 0.0
    for age, now in enumerate(reversed(steps)):
        for i in range(len(now.logp)):
            if chosen(now, i):
                total += 0.9**age * math.exp(now.logp[i].item())
                count += 0.9**age
    return total, count


@pytest.mark.parametrize("name", CANDIDATES)
def test_alpha_is_0_at_the_first_step_and_follows_what_was_seen(name):
    *seen, now = some_steps()
    state = CANDIDATES[name].start()
    assert torch.equal(state.alpha(now), torch.zeros(len(now.logp)))
    alpha = after(state, seen).alpha(now)
    assert alpha.dtype == torch.float32
    assert alpha.shape == now.logp.shape
    assert 0 <= alpha.min() < alpha.max() <= (Threshold.power if name == BY_OWN_P else 1)


def test_what_goes_by_the_base_model_does_not_move():
    base, *steps = some_steps()
    state = CANDIDATES["prior-by-label"].start()
    state.know(base)
    m = np.array([float(base.p[base.labels == label].sum()) for label in range(12)])
    counts = torch.bincount(base.labels, minlength=12).numpy()
    m = (m + 10 * base.p.mean().item()) / (counts + 10)
    expected = np.clip((m - 0.3) / 0.4, 0, 1)[steps[-1].labels.numpy()]
    np.testing.assert_allclose(state.alpha(steps[-1]), expected, atol=1e-5)
    for now in steps:
        state.see(now)
    np.testing.assert_allclose(state.alpha(steps[-1]), expected, atol=1e-5)


def test_a_recipe_s_prior_is_told_of_the_base_model():
    base, now = some_steps(2)
    state = moving("prior", 12, "cpu")
    assert state.wants_base
    assert not moving("adaptive-by-label", 12, "cpu").wants_base
    state.know(base)
    state.see(now)
    means = np.array([float(base.p[base.source == source].mean()) for source in (0, 1)])
    expected = np.clip((means - 0.3) / 0.4, 0, 1)[now.source.numpy()]
    np.testing.assert_allclose(state.now(now, 0.5).parameter, expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(CANDIDATES.keys() - {BY_OWN_P}))
def test_alpha_does_not_look_at_the_token_s_own_p(name):
    *seen, now = some_steps()
    state = after(CANDIDATES[name].start(), seen)
    wrong = dataclasses.replace(now, logp=now.logp - 3)
    assert torch.equal(state.alpha(now), state.alpha(wrong))


@pytest.mark.parametrize("name", CANDIDATES)
def test_nothing_waits_for_the_device(name):
    """A tensor on "meta" has no values: whatever asks for one on the host raises."""
    steps = [
        Now(**{field.name: getattr(now, field.name).to("meta") for field in dataclasses.fields(Now)})
        for now in some_steps(2)
    ]
    state = after(CANDIDATES[name].start(), steps)
    assert state.alpha(steps[0]).device.type == "meta"
    with pytest.raises(RuntimeError, match="meta"):
        float(steps[0].p.mean())


def test_each_candidate_starts_anew():
    *seen, now = some_steps()
    for candidate in CANDIDATES.values():
        after(candidate.start(), seen)
        assert candidate.start().alpha(now).max() == 0


def test_a_label_s_mean_leans_on_its_confidence_bin_and_that_on_all():
    *seen, now = some_steps()
    total, count = decayed(seen, lambda *_: True)
    overall = total / count
    truth, leaning_on_all = [], []
    for i in range(len(now.logp)):
        tenth = int(now.top[i].exp() * 10)
        in_bin = decayed(seen, lambda step, j, tenth=tenth: int(step.top[j].exp() * 10) == tenth)
        of_label = decayed(seen, lambda step, j, label=now.labels[i]: step.labels[j] == label)
        by_bin = (in_bin[0] + 10 * overall) / (in_bin[1] + 10)
        truth.append((of_label[0] + 10 * by_bin) / (of_label[1] + 10))
        leaning_on_all.append((of_label[0] + 10 * overall) / (of_label[1] + 10))
    state = after(State(by_label(by_confidence(Mean()))), seen)
    ours = state.estimate.of(now)
    torch.testing.assert_close(ours, torch.tensor(truth, dtype=torch.float64), atol=1e-6, rtol=0)
    assert (ours - torch.tensor(leaning_on_all)).abs().max() > 1e-2
    assert torch.equal(state.alpha(now), ramp(ours))


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_order_of_tokens_does_not_change_a_bit(name):
    *seen, now = some_steps()
    shuffled = []
    for step in seen:
        order = torch.randperm(len(step.logp), generator=torch.Generator().manual_seed(1))
        shuffled.append(Now(**{f.name: getattr(step, f.name)[order] for f in dataclasses.fields(Now)}))
    alphas = [after(CANDIDATES[name].start(), steps).alpha(now) for steps in (seen, shuffled)]
    assert torch.equal(*alphas)


@pytest.mark.parametrize("num_features", [None, 3])
def test_context_is_the_ridge_regression_of_what_the_mean_leaves(num_features):
    """Least squares over all rows, each with the weight of its age, and one row of sqrt(penalty) for each feature.

    A feature is rounded to 2^-15, so m is off by less than 1e-4; without the penalty it is off by more than 1e-2.
    """
    *seen, now = some_steps()
    penalty = 30.0
    state = after(State(ByContext(num_features, penalty)), seen)
    signs = np.eye(HIDDEN) if num_features is None else state.estimate.signs.double().numpy()
    total, count = decayed(seen, lambda *_: True)
    weights = [0.9 ** ((len(seen) - 1 - age) / 2) for age in range(len(seen))]
    rows = [weight * unit_rows(step, signs) for weight, step in zip(weights, seen, strict=True)]
    targets = [weight * (step.p.numpy() - total / count) for weight, step in zip(weights, seen, strict=True)]
    size = signs.shape[1]
    matrix = np.concatenate([*rows, math.sqrt(penalty) * np.eye(size)])
    solution, *_ = np.linalg.lstsq(matrix, np.concatenate([*targets, np.zeros(size)]))
    x = unit_rows(now, signs)
    np.testing.assert_allclose(state.estimate.of(now).numpy(), np.clip(total / count + x @ solution, 0, 1), atol=1e-4)
    unpenalised, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets))
    assert np.abs(x @ (unpenalised - solution)).max() > 1e-2


def unit_rows(now: Now, signs: np.ndarray) -> np.ndarray:
    x = now.hidden.double().numpy() @ signs
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_n_tokens_of_one_direction_move_context_by_n_over_n_plus_prior():
    hidden = torch.tensor([[3.0, 0.0]] * 4 + [[0.0, 0.5]] * 4)
    p = torch.tensor([0.875] * 4 + [0.125] * 4)
    none = torch.zeros(8, dtype=torch.int64)
    now = Now(p.log(), p.log(), none, none, hidden)
    context = ByContext(prior_tokens=1.0)
    context.see(now)
    torch.testing.assert_close(context.of(now), 0.5 + 4 / (4 + 1) * (p.double() - 0.5), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("p", "tenth"), [(1e-9, 0), (0.05, 0), (0.15, 1), (0.95, 9), (1.0, 9)])
def test_confidence_bins_are_tenths(p, tenth):
    assert confidence_bin(torch.tensor([p]).log()).tolist() == [tenth]
    assert NUM_BINS == 10


def test_a_class_that_was_not_seen_has_the_mean_above():
    *seen, now = some_steps()
    by_source = ByClass(Mean(), lambda now: now.source, 3)
    for step in seen:
        by_source.see(step)
    unseen = dataclasses.replace(now, source=torch.full_like(now.source, 2))
    torch.testing.assert_close(by_source.of(unseen), by_source.above.of(now), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("right", "share"), [(0.9, 0.0), (0.8, 1 / 3), (0.7, 1.0), (0.6, 1.0)])
def test_a_gap_is_how_much_less_often_than_it_expects_the_model_is_right(right, share):
    """It is 90 % sure of every token, and right at that share of 2,000; where it is not, p is 0.05."""
    likeliest = torch.arange(2000) < 2000 * right
    top = torch.full((2000,), 0.9).log()
    now = dataclasses.replace(
        some_step(0), logp=torch.where(likeliest, top, math.log(0.05)), top=top, labels=torch.zeros(2000).long()
    )
    gap, confidence = after(ByGap(), [now] * 4), after(State(by_confidence(Mean())), [now] * 4)
    assert confidence.alpha(now).min() > 0.5
    torch.testing.assert_close(gap.alpha(now), share * confidence.alpha(now), atol=0.02, rtol=0)


def test_below_the_threshold_the_weight_falls_with_what_is_known_and_above_it_is_1():
    *seen, now = some_steps()
    alpha, a = after(Threshold(), seen).alpha(now), after(State(by_confidence(Mean())), seen).alpha(now)
    below = now.p < 0.2
    assert 0 < below.sum() < len(now.p)
    torch.testing.assert_close(alpha, torch.where(below, 4 * a, 0.0))


def test_by_confidence_is_the_package_s_objective():
    """But for the mean of all, in which the package weighs steps and the candidate their tokens."""
    keys = ("by-confidence", "adaptive-by-confidence", "adaptive-by-label")
    candidate, package, other = (moving(key, 12, "cpu") for key in keys)
    for now in some_steps(6):
        alphas = [torch.as_tensor(of.now(now, 0.0).parameter) for of in (candidate, package, other)]
        for of in (candidate, package, other):
            of.see(now)
    assert (alphas[0] > 0).any()
    torch.testing.assert_close(alphas[1], alphas[0], atol=2e-3, rtol=0)
    assert (alphas[2] - alphas[0]).abs().max() > 0.1
