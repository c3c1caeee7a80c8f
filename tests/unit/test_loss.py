"""token_loss: masking, denominators, the report, and the way from logits through an objective to the gradient."""

import math

import pytest
import torch

from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import parse_objective
from nemo_probsft.ops import target_logprob
from tests.support import reference

LOGP = torch.tensor([0.9, 0.1, 0.5, 0.2, 0.7]).log()
MASK = torch.tensor([1, 1, 0, 1, 1])


def test_sum_count_and_report_by_hand():
    loss_sum, num_tokens, report = token_loss(parse_objective("OnlyTopP-0.5"), LOGP, MASK)
    assert loss_sum.item() == pytest.approx(0.1 + 0.3)
    assert num_tokens.item() == 4
    assert num_tokens.dtype == torch.int32
    assert report["objective"].tolist() == pytest.approx([0.4, 4])
    assert report["nll"].tolist() == pytest.approx([-LOGP[[0, 1, 3, 4]].sum().item(), 4])
    assert report["p"].tolist() == pytest.approx([1.9, 4])
    assert report["kept_fraction"].tolist() == [2, 4]
    assert all(pair.dtype == torch.float32 and not pair.requires_grad for pair in report.values())


def test_kept_denominator_counts_what_passes_the_threshold():
    loss_sum, num_tokens, report = token_loss(parse_objective("OnlyTopP-0.5"), LOGP, MASK, denominator="kept")
    assert (loss_sum.item(), num_tokens.item()) == (pytest.approx(0.4), 2)
    assert report["objective"].tolist() == pytest.approx([0.4, 2])
    assert report["nll"][1] == report["p"][1] == report["kept_fraction"][1] == 4


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 5.0])
@pytest.mark.parametrize("key", ["original", "GeneralFamily--1", "OnlyTopLogP-0.5", "OnlyBottomP-0.5", "focal-0.5"])
def test_masked_positions_count_for_nothing(key, poison):
    objective, poisoned = parse_objective(key), LOGP.clone()
    poisoned[2] = poison
    poisoned.requires_grad_()
    clean = LOGP[MASK.bool()].clone().requires_grad_()
    loss_sum, num_tokens, report = token_loss(objective, poisoned, MASK)
    expected_sum, expected_tokens, expected_report = token_loss(objective, clean, torch.ones(4))
    (grad,) = torch.autograd.grad(loss_sum, poisoned)
    (expected_grad,) = torch.autograd.grad(expected_sum, clean)
    assert torch.equal(grad[MASK.bool()], expected_grad)
    assert grad[2] == 0
    torch.testing.assert_close(loss_sum, expected_sum)
    assert num_tokens == expected_tokens
    for name, pair in report.items():
        torch.testing.assert_close(pair, expected_report[name])
    if poison != poison:
        assert (objective.value(poisoned) * MASK).sum().isnan(), "multiplying by the mask would do"


def test_dropped_token_with_an_infinite_weight_has_a_zero_gradient():
    objective = parse_objective({"name": "power", "alpha": -1, "keep": {"min_p": 0.1}})
    logp = torch.tensor([-torch.inf, -0.5], requires_grad=True)
    loss_sum, _, report = token_loss(objective, logp, torch.ones(2))
    (grad,) = torch.autograd.grad(loss_sum, logp)
    assert grad.tolist() == pytest.approx([0, -math.exp(0.5)])
    assert report["kept_fraction"].tolist() == [1, 2]
    naive = torch.where(objective.keep(logp), objective.value(logp), 0.0).sum()
    assert torch.autograd.grad(naive, logp)[0][0].isnan(), "one where around f would do"


@pytest.mark.parametrize("key", ["original", "OnlyTopP-0.5", "OnlyBottomLogP-0.5"])
def test_nan_at_a_supervised_token_reaches_the_loss(key):
    loss_sum, _, report = token_loss(parse_objective(key), torch.tensor([torch.nan, -0.5]), torch.ones(2))
    assert loss_sum.isnan()
    assert report["nll"][0].isnan()


@pytest.mark.parametrize("mask", [torch.zeros(5), torch.tensor([0, 1, 0, 1, 0])])
def test_nothing_kept_stays_attached_to_the_graph(mask):
    logp = LOGP.clone().requires_grad_()
    loss_sum, num_tokens, report = token_loss(parse_objective("OnlyTopP-0.95"), logp, mask)
    (grad,) = torch.autograd.grad(loss_sum, logp)
    assert torch.equal(grad, torch.zeros(5))
    assert loss_sum.item() == 0
    assert num_tokens.item() == mask.sum()
    assert report["kept_fraction"].tolist() == [0, mask.sum()]


def test_sums_over_micro_batches_give_the_token_mean_and_a_mean_of_means_does_not():
    objective = parse_objective("GeneralFamily-2")
    logp = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).clamp_max(0).requires_grad_()
    mask = torch.arange(50) < torch.tensor([[3], [50], [10], [25]])
    parts = [token_loss(objective, row, row_mask) for row, row_mask in zip(logp, mask, strict=True)]
    total = sum(part[0] for part in parts) / sum(part[1] for part in parts)
    truth = ((1 - logp.double().exp() ** 2) / 2)[mask].mean()
    (grad,) = torch.autograd.grad(total, logp, retain_graph=True)
    (true_grad,) = torch.autograd.grad(truth, logp)
    torch.testing.assert_close(total.double(), truth, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, true_grad, rtol=1e-5, atol=1e-9)
    mean_of_means = sum(part[0] / part[1] for part in parts) / 4
    (wrong_grad,) = torch.autograd.grad(mean_of_means, logp)
    assert (mean_of_means - truth).abs() > 1e-3
    assert (wrong_grad - true_grad).abs().max() > 0.1 * true_grad.abs().max()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float32])
def test_mask_of_any_dtype(dtype):
    expected = token_loss(parse_objective("original"), LOGP, MASK)
    loss_sum, num_tokens, _ = token_loss(parse_objective("original"), LOGP, MASK.to(dtype))
    assert (loss_sum, num_tokens) == (expected[0], expected[1])


def test_loss_may_be_divided_in_place_as_megatron_does():
    loss_sum, num_tokens, report = token_loss(parse_objective("p"), LOGP.clone().requires_grad_(), MASK)
    before = report["objective"].clone()
    loss_sum /= num_tokens
    assert torch.equal(report["objective"], before)
    assert loss_sum.item() == pytest.approx(before[0].item() / 4)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="denominator is 'mean', but must be one of target, kept"):
        token_loss(parse_objective("p"), LOGP, MASK, denominator="mean")
    with pytest.raises(ValueError, match="differ in shape"):
        token_loss(parse_objective("p"), LOGP.view(1, 5), MASK.view(5, 1))


@pytest.mark.parametrize("key", reference.FORMULAS)
@pytest.mark.parametrize("interval", ["", "@0.05..0.6"])
def test_gradient_of_the_logits_through_an_objective(key, interval):
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(40, 11, generator=generator)
    labels, mask = torch.randint(11, (40,), generator=generator), torch.rand(40, generator=generator) < 0.7
    leaf = logits.requires_grad_()
    loss_sum, num_tokens, _ = token_loss(parse_objective(key + interval), target_logprob(leaf, labels), mask)
    (dlogits,) = torch.autograd.grad(loss_sum / num_tokens, leaf)

    def truth(formula_key):
        dense = logits.detach().double().requires_grad_()
        p = reference.target_logprob(dense, labels).exp()
        kept = mask & (p >= 0.05) & (p <= 0.6) if interval else mask
        loss = torch.where(kept, reference.FORMULAS[formula_key](p), 0.0).sum() / mask.sum()
        return loss, torch.autograd.grad(loss, dense)[0]

    loss, expected = truth(key)
    torch.testing.assert_close((loss_sum / num_tokens).double(), loss.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(dlogits.double(), expected, rtol=1e-4, atol=1e-7)
    if key not in ("original", "logp"):
        wrong = truth("original")[1]
        assert (wrong - expected).abs().max() > 1e-3 * expected.abs().max(), "plain -log p would do"
