"""lm_head_logprob against float64 logits = hidden @ weight.T: skipped rows, tensor and sequence parallelism."""

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_probsft.loss import token_loss
from nemo_probsft.objectives import parse_objective
from nemo_probsft.ops import HeadReport, lm_head, lm_head_logprob, target_logprob
from nemo_probsft.ops.targets import Targets
from tests.support import reference
from tests.support.ranks import run_ranks

S, B, H, V = 8, 3, 16, 40
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def make(dtype=torch.float32, seed=0):
    """(hidden [S, B, H], weight [V, H], labels, mask, dlogp): two thirds masked, every third upstream gradient 0."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(S, B, H, generator=generator).to(dtype)
    weight = (0.7 * torch.randn(V, H, generator=generator)).to(dtype)
    labels = torch.randint(V, (S, B), generator=generator)
    mask = torch.arange(S * B).reshape(S, B) % 3 > 0
    labels[~mask] = -100
    dlogp = torch.randn(S, B, generator=generator)
    dlogp.view(-1)[1::3] = 0
    return hidden, weight, labels, mask, dlogp


def truth(hidden, weight, labels, mask, dlogp, vocab_size=None):
    return reference.head_and_grad(hidden, weight, torch.where(mask, labels, -100), dlogp, vocab_size)


def run(hidden, weight, labels, mask, dlogp, **kwargs):
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logp = lm_head_logprob(hidden, weight, labels, mask, **kwargs)
    return logp.detach(), *torch.autograd.grad(logp, (hidden, weight), dlogp)


def assert_close(ours, expected, tolerance=1e-5):
    for name, x, y in zip(("logp", "dhidden", "dweight"), ours, expected, strict=True):
        error = (x.double().cpu() - y).abs().max() / y.abs().max().clamp_min(1e-9)
        assert error < tolerance, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_tokens", [None, 1, 5, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_matches_float64_and_skips_rows(dtype, tolerance, chunk_tokens, device):
    inputs, report = make(dtype), HeadReport()
    ours = run(*(x.to(device) for x in inputs), chunk_tokens=chunk_tokens, report=report)
    assert_close(ours, truth(*inputs), tolerance)
    assert (report.num_tokens, report.num_forward, report.num_backward) == (24, 16, 8)
    assert (ours[0].cpu()[~inputs[3]] == 0).all()
    assert (ours[1].cpu()[(inputs[4] == 0) | ~inputs[3]] == 0).all()
    hidden, weight, labels, mask, dlogp = inputs
    unmasked = truth(hidden, weight, labels.clamp_min(0), torch.ones_like(mask), dlogp)
    assert (unmasked[2] - truth(*inputs)[2]).abs().max() > 0.1, "ignoring the mask would do"


def test_skipped_rows_do_not_change_the_others_bits():
    hidden, weight, labels, mask, dlogp = make()
    whole = run(hidden, weight, labels, mask, dlogp.where(dlogp != 0, 0.5))
    skipping = run(hidden, weight, labels, mask, dlogp)
    assert torch.equal(skipping[0], whole[0])
    alive = mask & (dlogp != 0)
    assert torch.equal(skipping[1][alive], whole[1][alive])
    assert_close(skipping, truth(hidden, weight, labels, mask, dlogp))


def test_rows_that_are_skipped_may_be_the_first_and_the_last():
    """Rows that are left move up in the gradient's buffer, which must not be the one that others still read."""
    hidden, weight, labels, mask, dlogp = make()
    dlogp.view(-1)[:7] = dlogp.view(-1)[-5:] = 0
    assert_close(run(hidden, weight, labels, mask, dlogp), truth(hidden, weight, labels, mask, dlogp))


def test_nan_in_rows_that_are_skipped_stays_there():
    hidden, weight, labels, mask, dlogp = make()
    expected = truth(hidden, weight, labels, mask, dlogp)
    poisoned = hidden.masked_fill(~(mask & (dlogp != 0)).unsqueeze(-1), torch.nan)
    logp, dhidden, dweight = run(poisoned, weight, labels, mask, dlogp)
    torch.testing.assert_close(dhidden.double(), expected[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dweight.double(), expected[2], rtol=1e-4, atol=1e-5)
    assert logp.isnan().sum() == 8


def test_threshold_reaches_the_backward_products_as_skipped_rows():
    hidden, weight, labels, mask, _ = make()
    objective, report = parse_objective("OnlyTopLogP-0.02"), HeadReport()
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    loss_sum, _, metrics = token_loss(objective, lm_head_logprob(*leaves, labels, mask, report=report), mask)
    ours = torch.autograd.grad(loss_sum, leaves)
    logits = hidden @ weight.t()
    plain = torch.autograd.grad(token_loss(objective, target_logprob(logits, labels), mask)[0], leaves)
    assert report.num_backward == metrics["kept_fraction"][0]
    assert 0 < report.num_backward < report.num_forward
    for x, y in zip(ours, plain, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


class Synchronisations(TorchDispatchMode):
    """Operations that would wait for a CUDA device, in the forward and in the backward of what runs inside."""

    WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "bincount", "unique", "_unique2", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        boolean = name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if name in self.WAITING or boolean:
            self.names.append(name)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_tokens", [None, 5])
@pytest.mark.parametrize("find_zeros", [True, False])
def test_rows_that_the_host_knows_change_nothing_but_the_waiting(find_zeros, chunk_tokens, device, monkeypatch):
    inputs, options = [x.to(device) for x in make()], {"find_zeros": find_zeros, "chunk_tokens": chunk_tokens}
    rows = inputs[3].reshape(-1).nonzero().squeeze(1)
    monkeypatch.setattr(Targets, "check", lambda self: None)  # it does nothing on CUDA, where it would wait
    monkeypatch.setattr(lm_head, "_check_rows", lambda *_: None)  # the same
    with Synchronisations() as found:
        expected = run(*inputs, chunk_tokens=chunk_tokens)
    assert found.names == ["nonzero", "nonzero"]
    report = HeadReport()
    with Synchronisations() as found:
        ours = run(*inputs, rows=rows, report=report, **options)
    assert found.names == ["nonzero"] * find_zeros
    assert (report.num_forward, report.num_backward) == (16, 8 if find_zeros else 16)
    if find_zeros:
        assert all(torch.equal(x, y) for x, y in zip(ours, expected, strict=True))
    assert torch.equal(ours[0], expected[0])
    assert_close(ours, truth(*inputs))
    with Synchronisations() as found:
        run(*inputs, rows=rows, skip_below=0.1, report=report, **options)
    assert found.names == ["index"]


def test_wrong_rows_are_found_on_a_cpu():
    *inputs, mask, _ = make()
    rows = mask.reshape(-1).nonzero().squeeze(1)
    for wrong in (rows[1:], rows.flip(0), torch.arange(S * B), rows + 1):
        with pytest.raises(AssertionError, match="rows are not those"):
            lm_head_logprob(*inputs, mask, rows=wrong)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("nothing", ["in the mask", "in the upstream gradient"])
@pytest.mark.parametrize("chunk_tokens", [None, 4])
def test_no_row_left_keeps_the_graph(nothing, chunk_tokens, device):
    hidden, weight, labels, mask, dlogp = (x.to(device) for x in make())
    if nothing == "in the mask":
        mask = torch.zeros_like(mask)
    else:
        dlogp = torch.zeros_like(dlogp)
    logp, dhidden, dweight = run(hidden, weight, labels, mask, dlogp, chunk_tokens=chunk_tokens)
    assert torch.equal(dhidden, torch.zeros_like(hidden))
    assert torch.equal(dweight, torch.zeros_like(weight))
    assert (logp == 0).all() == (nothing == "in the mask")


@pytest.mark.parametrize("device", DEVICES)
def test_padded_vocabulary(device):
    hidden, weight, labels, mask, dlogp = make()
    labels = labels.clamp_max(32)
    ours = run(*(x.to(device) for x in (hidden, weight, labels, mask, dlogp)), vocab_size=33)
    assert_close(ours, truth(hidden, weight, labels, mask, dlogp, vocab_size=33))
    assert (ours[2][33:] == 0).all()


@pytest.mark.parametrize("chunk_tokens", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_gradient_accumulation_fusion_over_two_micro_batches(device, dtype, chunk_tokens):
    weight = make(dtype)[1].to(device).requires_grad_()
    weight.main_grad = torch.full((V, H), 0.25, device=device)
    expected = torch.full((V, H), 0.25).double()
    for seed in (0, 1):
        hidden, _, labels, mask, dlogp = make(dtype, seed)
        expected += truth(hidden, weight.cpu(), labels, mask, dlogp)[2]
        hidden, labels, mask, dlogp = (x.to(device) for x in (hidden, labels, mask, dlogp))
        options = {"accumulate_main_grad": True, "chunk_tokens": chunk_tokens}
        logp = lm_head_logprob(hidden.requires_grad_(), weight, labels, mask, **options)
        torch.autograd.grad(logp, (hidden, weight), dlogp)
    assert weight.grad_added_to_main_grad
    assert weight.main_grad.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert (weight.main_grad.cpu() - expected).abs().max() < tolerance * expected.abs().max()


def test_tied_and_lora_weights_through_autograd():
    hidden, weight, labels, mask, dlogp = make()
    a, b = torch.randn(2, H) / 4, torch.randn(V, 2) / 4
    tokens = torch.randint(V, (S, B))

    def grads(dtype, logprob):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (weight, a, b)]
        tied, lora_a, lora_b = leaves
        merged = tied + lora_b @ lora_a
        return torch.autograd.grad(logprob(hidden.to(dtype) + tied[tokens], merged), leaves, dlogp.to(dtype))

    masked = torch.where(mask, labels, -100)
    ours = grads(torch.float32, lambda h, w: lm_head_logprob(h, w, labels, mask))
    expected = grads(torch.float64, lambda h, w: reference.target_logprob(h @ w.t(), masked))
    for x, y in zip(ours, expected, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=1e-5)


def test_frozen_head_gets_no_gradient():
    hidden, weight, labels, mask, dlogp = make()
    leaf = hidden.requires_grad_()
    (dhidden,) = torch.autograd.grad(lm_head_logprob(leaf, weight, labels, mask), leaf, dlogp)
    torch.testing.assert_close(dhidden.double(), truth(hidden, weight, labels, mask, dlogp)[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tau", [0.01, 0.3])
def test_skip_below_stays_within_its_bound(tau, device):
    hidden, weight, labels, mask, _ = make()
    dlogp = torch.logspace(-8, 0, S * B).reshape(S, B)
    report = HeadReport()
    inputs = (x.to(device) for x in (hidden, weight, labels, mask, dlogp))
    _, dhidden, dweight = run(*inputs, skip_below=tau, report=report)
    weights = dlogp[mask].double().sort().values
    num_skipped = 16 - report.num_backward
    assert num_skipped > 0
    assert float(report.skipped_weight) == pytest.approx(weights[:num_skipped].sum().item())
    assert report.skipped_weight <= tau * report.total_weight
    assert weights[: num_skipped + 1].sum() > tau * weights.sum(), "one more row fits in the bound"
    left = torch.where(dlogp >= weights[num_skipped] * (1 - 1e-6), dlogp, 0.0)
    assert_close((torch.zeros(1), dhidden, dweight), (torch.zeros(1), *truth(hidden, weight, labels, mask, left)[1:]))


@pytest.mark.parametrize("device", DEVICES)
def test_second_backward_is_refused_when_the_first_took_the_logits(device):
    hidden, weight, labels, mask, dlogp = (x.to(device) for x in make())
    leaf = weight.requires_grad_()
    logp = lm_head_logprob(hidden, leaf, labels, mask)
    torch.autograd.grad(logp, leaf, torch.ones_like(dlogp), retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(logp, leaf, dlogp)


def test_bad_arguments_are_refused():
    hidden, weight, labels, mask, _ = make()
    cases = {
        r"must both be \[8, 3\]": lambda: lm_head_logprob(hidden, weight, labels.t(), mask),
        "last dimensions and dtypes must agree": lambda: lm_head_logprob(hidden, weight.bfloat16(), labels, mask),
        "rows are torch.int32": lambda: lm_head_logprob(hidden, weight, labels, mask, rows=torch.zeros(0).int()),
        "chunk_tokens is 0": lambda: lm_head_logprob(hidden, weight, labels, mask, chunk_tokens=0),
        "skip_below is 1": lambda: lm_head_logprob(hidden, weight, labels, mask, skip_below=1),
        r"label 40 is outside \[0, 40\)": lambda: lm_head_logprob(hidden, weight, torch.full_like(labels, V), mask),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message):
            call()
    lm_head_logprob(hidden, weight, torch.full_like(labels, V), torch.zeros_like(mask))


def _parallel(tp, sequence_parallel, chunk_tokens, empty):
    hidden, weight, labels, mask, dlogp = make()
    if empty:
        mask = torch.zeros_like(mask)
    rank = dist.get_rank()
    if sequence_parallel:
        hidden = hidden.chunk(tp)[rank]
    shard = weight.chunk(tp)[rank]
    options = {"tp_group": dist.group.WORLD, "sequence_parallel": sequence_parallel, "chunk_tokens": chunk_tokens}
    return run(hidden, shard, labels, mask, dlogp, **options)


@pytest.mark.parametrize(
    ("tp", "sequence_parallel", "chunk_tokens", "empty"),
    [(2, False, None, False), (2, True, None, False), (4, True, 3, False), (2, True, None, True), (2, False, 3, True)],
)
def test_tensor_and_sequence_parallel(tp, sequence_parallel, chunk_tokens, empty):
    logps, dhiddens, dweights = zip(*run_ranks(_parallel, tp, tp, sequence_parallel, chunk_tokens, empty), strict=True)
    hidden, weight, labels, mask, dlogp = make()
    expected = truth(hidden, weight, labels, torch.zeros_like(mask) if empty else mask, dlogp)
    assert all(torch.equal(logp, logps[0]) for logp in logps), "ranks disagree"
    if sequence_parallel:
        dhidden = torch.cat(dhiddens)
    else:
        dhidden = dhiddens[0]
        assert all(torch.equal(x, dhidden) for x in dhiddens)
    ours = logps[0], dhidden, torch.cat(dweights)
    if empty:
        assert all((x == 0).all() for x in ours)
    else:
        assert_close(ours, expected)
        assert (tp * dhidden - expected[1]).abs().max() > 0.1, "a reduction too many would do"
