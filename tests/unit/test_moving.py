"""Objectives that move: where they are at a moment, their names, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch

from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import (
    Adaptive,
    GroupMeans,
    Moment,
    RunningMean,
    Scheduled,
    group_means,
    objective_at,
    parse_objective,
)

KEYS = {
    "adaptive": {"name": "adaptive"},
    "adaptive-0.2-0.8-0.95": {"name": "adaptive", "low": 0.2, "high": 0.8, "decay": 0.95},
    "adaptive@0.2..1": {"name": "adaptive", "keep": {"min_p": 0.2}},
    "adaptive-by-label": {"name": "adaptive", "shrinkage": 10},
    "adaptive-by-label-0.3-0.7-0.9-25@0.1..1": {"name": "adaptive", "shrinkage": 25, "keep": {"min_p": 0.1}},
    "adaptive-by-confidence": {"name": "adaptive", "by": "confidence"},
    "adaptive-by-confidence-0.2-0.6-0.5-3@0.1..1": {
        **{"name": "adaptive", "by": "confidence", "shrinkage": 3, "low": 0.2, "high": 0.6, "decay": 0.5},
        "keep": {"min_p": 0.1},
    },
    "prior": {"name": "prior"},
    "prior-0.2-0.6@0.1..1": {"name": "prior", "low": 0.2, "high": 0.6, "keep": {"min_p": 0.1}},
    "GeneralFamily-0to1": {"name": "power", "schedule": {"alpha": [0, 1]}},
    "GeneralFamily-0to0to10@0.1..1": {"name": "power", "schedule": {"alpha": [0, 0, 10]}, "keep": {"min_p": 0.1}},
    "focal-2to0": {"name": "focal", "schedule": {"gamma": [2, 0]}},
    "original@0to0.2..1": {"name": "nll", "schedule": {"min_p": [0, 0.2]}},
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_and_the_recipe_form_mean_the_same(key):
    objective = parse_objective(KEYS[key])
    assert objective == parse_objective(key)
    assert objective.key == key
    assert "a = clip" in objective.formula or "over the training steps" in objective.formula


def test_labels_are_the_groups_that_a_recipe_means_without_a_word():
    by_label = parse_objective("adaptive-by-label")
    assert parse_objective({"name": "adaptive", "by": "label"}) == by_label
    assert parse_objective({"name": "adaptive", "by": None, "shrinkage": 10}) == by_label
    assert parse_objective({"name": "adaptive", "by": "confidence", "shrinkage": 10}) != by_label
    assert "of the token's label and of 10 tokens" in by_label.formula
    assert "of the model's confidence in 10 bins and of 10" in parse_objective("adaptive-by-confidence").formula


def test_the_threshold_keys_of_the_paper_move_too():
    assert parse_objective("OnlyTopLogP-0to0.2") == parse_objective("original@0to0.2..1")


@pytest.mark.parametrize(
    ("running_p", "key"),
    [(0.0, "original"), (0.3, "original"), (0.5, "GeneralFamily-0.5"), (0.7, "p"), (1.0, "p")],
)
def test_adaptive_goes_from_nll_to_p(running_p, key):
    now, expected = Adaptive().at(Moment(0.5, running_p)), parse_objective(key)
    logp = torch.linspace(-8, 0, 50)
    torch.testing.assert_close(now.value(logp), expected.value(logp))
    torch.testing.assert_close(now.weight(logp), expected.weight(logp))


def test_a_schedule_starts_and_ends_where_it_says():
    schedule = parse_objective("GeneralFamily-0to0to2@0..1to0.5")
    keys = [schedule.at(Moment(fraction, 0.9)).key for fraction in (0, 0.25, 0.5, 0.75, 1)]
    expected = [
        "original",
        "OnlyBottomLogP-0.875",
        "OnlyBottomLogP-0.75",
        "OnlyBottomP-0.625",
        "GeneralFamily-2@0..0.5",
    ]
    assert keys == expected
    assert schedule.moving(Moment(0.75, 0.9)) == {"alpha": 1.0, "max_p": 0.625}


@pytest.mark.parametrize(
    ("key", "has_one"),
    [
        ("GeneralFamily-0to1", False),
        ("original@0to0.2..1", True),
        ("OnlyBottomP-1to0.5", True),
        ("adaptive-by-label", False),
        ("adaptive@0.2..1", True),
    ],
)
def test_a_threshold_at_any_step_is_one(key, has_one):
    assert parse_objective(key).has_threshold == has_one


def test_what_does_not_move_is_one_objective_at_all_times():
    fixed = parse_objective("OnlyTopLogP-0.2")
    assert objective_at(fixed, Moment(0.3, 0.4)) is fixed
    assert parse_objective({"name": "power", "alpha": 2, "schedule": None}) == parse_objective("GeneralFamily-2")


def test_the_running_mean_is_corrected_for_its_start():
    mean = RunningMean(0.9)
    assert mean.value == 0
    mean.add(0.4)
    assert mean.value == pytest.approx(0.4)
    mean.add(0.8)
    assert mean.value == pytest.approx((0.9 * 0.4 + 0.8) / 1.9)


def some_tokens(count, num_labels, seed=0):
    """labels, logp, loss_mask [count]; the labels that the mask leaves out are -100, as in a batch."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, generator=generator) < 0.8
    labels = torch.randint(0, num_labels, (count,), generator=generator)
    return torch.where(mask, labels, -100), torch.rand(count, generator=generator).log(), mask.float()


def test_each_label_leans_as_far_as_its_own_targets_are_known():
    means = GroupMeans(parse_objective("adaptive-by-label"), 3)
    p = torch.tensor([0.9, 0.9, 0.1, 0.5])
    means.see(torch.tensor([0, 0, 1, -100]), p.log(), torch.tensor([1, 1, 1, 0]))
    means.end_step()
    means.see(torch.tensor([0]), torch.tensor([0.6]).log(), torch.ones(1))
    means.end_step()
    overall = 0.5
    expected = [(0.9 * 1.8 + 0.6 + 10 * overall) / (0.9 * 2 + 1 + 10), (0.9 * 0.1 + 10 * overall) / (0.9 + 10), overall]
    alphas = [(m - 0.3) / 0.4 for m in expected]
    labels, logp = torch.tensor([[0, 1], [2, -100]]), torch.tensor([[-0.1, -3.0], [-7.0, 0.0]], requires_grad=True)
    objective = means.objective_of(labels, overall)
    objective.value(logp).sum().backward()
    for i, (token, alpha) in enumerate(zip([(0, 0), (0, 1), (1, 0)], alphas, strict=True)):
        scalar = parse_objective({"name": "power", "alpha": alpha})
        torch.testing.assert_close(objective.value(logp)[token], scalar.value(logp[token]), msg=str(i))
        torch.testing.assert_close(-logp.grad[token], scalar.weight(logp[token]))
    tokens = (0.9 * 2 + 1, 0.9)
    assert means.mean_alpha(overall) == pytest.approx((tokens[0] * alphas[0] + tokens[1] * alphas[1]) / sum(tokens))


def test_a_token_leans_as_far_as_the_model_is_right_when_it_is_as_sure():
    """Two labels, each at a place where the model is sure and mostly right, and at one where it is not sure."""
    means = group_means(parse_objective("adaptive-by-confidence"), num_labels=99)
    labels, loss_mask = torch.tensor([3, 4, 3, 4, 4]), torch.tensor([1, 1, 1, 1, 0])
    top, p = torch.tensor([0.95, 1.0, 0.31, 0.39, 0.0]), torch.tensor([0.95, 0.01, 0.3, 0.2, 0.7])
    groups = means.groups(labels, top.log())
    assert groups.tolist() == [9, 9, 3, 3, 0]
    assert means.groups(labels, torch.full((5,), torch.nan)).tolist() == [0] * 5
    assert means.objective_of(groups, 0.0).weight(p.log()).tolist() == [1] * 5, "before the first step it is -log p"
    means.see(groups, p.log(), loss_mask)
    means.end_step()
    expected = [(0.96 + 10 * 0.5) / 12, (0.5 + 10 * 0.5) / 12, 0.5]
    alphas = torch.tensor([(m - 0.3) / 0.4 for m in expected])[[0, 0, 1, 1, 2]]
    torch.testing.assert_close(means.objective_of(groups, 0.5).weight(p.log()), p**alphas)
    by_label = group_means(parse_objective("adaptive-by-label"), num_labels=99)
    by_label.see(by_label.groups(labels, top.log()), p.log(), loss_mask)
    by_label.end_step()
    wrong = by_label.objective_of(by_label.groups(labels, top.log()), 0.5).weight(p.log())
    assert (wrong - p**alphas).abs().max() > 0.01, "the means of labels would do"


def test_an_alpha_of_zero_among_others_is_log_p_even_of_an_impossible_token():
    means = GroupMeans(parse_objective("adaptive-by-label"), 2)
    means.see(torch.zeros(1000, dtype=torch.int64), torch.zeros(1000), torch.ones(1000))
    means.end_step()
    objective = means.objective_of(torch.tensor([0, 1]), 0.2)
    logp = torch.tensor([-2.0, -torch.inf], requires_grad=True)
    value = objective.value(logp)
    value.sum().backward()
    torch.testing.assert_close(value.detach(), torch.tensor([1 - torch.tensor(-2.0).exp(), torch.inf]))
    torch.testing.assert_close(logp.grad, torch.tensor([-torch.tensor(-2.0).exp(), -1.0]))


def test_the_sums_of_labels_are_the_same_bits_in_any_order():
    labels, logp, mask = some_tokens(100_000, 7)
    whole, parts = (GroupMeans(parse_objective("adaptive-by-label"), 7) for _ in range(2))
    whole.see(labels, logp, mask)
    for part in torch.randperm(len(labels), generator=torch.Generator().manual_seed(1)).chunk(13):
        parts.see(labels[part], logp[part], mask[part])
    assert torch.equal(whole.step, parts.step)
    exact = [logp[(labels == label) & (mask > 0)].double().exp().sum() for label in range(7)]
    torch.testing.assert_close(whole.step[0], torch.stack(exact), rtol=1e-9, atol=0)
    assert whole.step[1].sum() == mask.sum()


def test_labels_that_are_hardly_seen_have_the_mean_of_all():
    means = GroupMeans(parse_objective("adaptive-by-label"), 1000)
    means.see(*some_tokens(100, 1000))
    means.end_step()
    logp = torch.full((1000,), -1.0)
    rare = means.objective_of(torch.arange(1000), 0.5).weight(logp)
    torch.testing.assert_close(rare, objective_at(Adaptive(), Moment(0.5, 0.5)).weight(logp), rtol=0.15, atol=0)
    often = GroupMeans(parse_objective("adaptive-by-label"), 1)
    often.see(torch.zeros(10_000, dtype=torch.int64), torch.full((10_000,), 0.9).log(), torch.ones(10_000))
    often.end_step()
    assert often.mean_alpha(0.3) == 1.0


def test_the_loss_takes_the_objective_of_a_step():
    with pytest.raises(ValueError, match="objective adaptive depends on the training"):
        token_loss(Adaptive(), torch.zeros(2), torch.ones(2))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adaptive-0.3", "are written adaptive-LOW-HIGH-DECAY, or all left out"),
        ("adaptive-0.7-0.3-0.9", "low is 0.7 and high is 0.3, but they must be probabilities, low below high"),
        ("adaptive-0.3-0.7-1", "decay is 1, but must be in [0, 1)"),
        ("adaptive-by-label-0.3", "are written adaptive-by-label-LOW-HIGH-DECAY-SHRINKAGE, or all left out"),
        ("adaptive-by-label-0.3-0.7-0.9-0", "shrinkage is 0 tokens, but must be above 0"),
        ("adaptive-by-confidence-0.3-0.7", "are written adaptive-by-confidence-LOW-HIGH-DECAY-SHRINKAGE, or all left"),
        ({"name": "adaptive", "by": "source"}, "objective.by: is 'source'; choose from label, confidence"),
        ({"name": "adaptive", "by": ["label"]}, "objective.by: is ['label']; choose from label, confidence"),
        ("adaptive@0to0.2..1", "the thresholds of adaptive do not move"),
        ("prior-0.3", "are written prior-LOW-HIGH, or all left out"),
        ("prior-0.7-0.3", "low is 0.7 and high is 0.3, but they must be probabilities, low below high"),
        ("prior@0to0.2..1", "the thresholds of prior do not move"),
        ({"name": "prior", "decay": 0.5}, "'prior' has unknown key 'decay'; it takes high, keep, low, name"),
        ("convexity--1to1", "alpha goes through 0, but must be between"),
        ("OnlyTopP-0to2", "threshold min_p is 2, but a probability lies in [0, 1]"),
        ("original@0to0.5..0.4", "min_p 0to0.5 > max_p 0.4 keeps no token"),
        ("GeneralFamily-0to", "the number after '-' is ''"),
        (
            {"name": "adaptive", "alpha": 1},
            "has unknown key 'alpha'; it takes by, decay, high, keep, low, name, shrin",
        ),
        (
            {"name": "power", "alpha": 1, "schedule": {"alpha": [0, 1]}},
            "objective.schedule.alpha: moves objective.alpha",
        ),
        ({"name": "nll", "schedule": {"alpha": [0, 1]}}, "objective.schedule: has unknown key 'alpha'"),
        (
            {"name": "nll", "schedule": {"min_p": [0.5]}},
            "objective.schedule.min_p: is [0.5], not a list of two",
        ),
        ({"name": "nll", "schedule": 3}, "objective.schedule: 3 is not a mapping; write schedule: {alpha: [0, 1]}"),
        ({"name": "focal", "schedule": {}}, "objective: 'focal' needs 'gamma'"),
    ],
)
def test_what_has_no_meaning_is_refused(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_objective(spec)


def test_convexity_may_move_on_one_side_of_zero():
    assert isinstance(parse_objective("convexity-1to2"), Scheduled)
