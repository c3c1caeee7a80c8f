"""How many operations a call of the ops costs on the path of CUDA, counted in Triton's interpreter.

test_kernels.py runs this file, with TRITON_INTERPRET=1. On a GPU the profiler counts the same: tests/gpu/test_ops.py.
"""

import pytest
import torch
import torch.distributed as dist

from nemo_probsft.ops import lm_head, lm_head_logprob, target_logprob
from nemo_probsft.ops.targets import Targets
from tests.support.launches import Launches
from tests.support.ranks import run_ranks

S, B, H, V = 5, 3, 16, 304


def of_target_logprob(tp=1, inplace=False, transposed=False, with_top=False):
    """(forward, backward) names of one rank, for what a step of training passes."""
    Targets.check = lambda self: None  # nothing on CUDA, where it would wait
    width = V // tp
    logits = torch.randn(S, B, width)
    labels = torch.randint(V, (B, S)).transpose(0, 1)
    if transposed:
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    leaf, dlogp = logits.requires_grad_(), torch.randn(1, 1).expand(S, B)
    group = dist.group.WORLD if tp > 1 else None
    top = torch.empty(S, B) if with_top else None
    with Launches() as forward:
        logp = target_logprob(leaf, labels, tp_group=group, vocab_size=V - 3, inplace=inplace, top_logp=top)
    with Launches() as backward:
        torch.autograd.grad(logp, leaf, dlogp)
    return forward.names, backward.names


@pytest.fixture(autouse=True)
def checks_that_a_cpu_makes_are_off(monkeypatch):
    monkeypatch.setattr(Targets, "check", lambda self: None)
    monkeypatch.setattr(lm_head, "_check_rows", lambda *_: None)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_one_launch_forward_and_one_backward(inplace, transposed):
    assert of_target_logprob(inplace=inplace, transposed=transposed) == (["_statistics_kernel"], ["_gradient_kernel"])


def test_with_tensor_parallelism_a_collective_and_a_small_launch_more():
    for forward, backward in run_ranks(of_target_logprob, 2, tp=2):
        assert forward == ["_statistics_kernel", "_allgather_base_", "_combine_kernel"]
        assert backward == ["_gradient_kernel"]


def test_the_likeliest_token_costs_a_copy_more():
    assert of_target_logprob(with_top=True) == (["_statistics_kernel", "copy_"], ["_gradient_kernel"])
    for forward, backward in run_ranks(of_target_logprob, 2, tp=2, with_top=True):
        assert forward == ["_statistics_kernel", "_allgather_base_", "_combine_kernel", "copy_"]
        assert backward == ["_gradient_kernel"]


def test_the_count_sees_what_a_loss_in_torch_costs():
    leaf, labels = torch.randn(S, V).requires_grad_(), torch.randint(V, (S,))
    with Launches() as forward:
        torch.nn.functional.cross_entropy(leaf.float(), labels, reduction="none")
    assert forward.names == ["_log_softmax", "nll_loss_forward"]


def of_head(rows, **options):
    hidden, weight = torch.randn(S, B, H).requires_grad_(), torch.randn(V, H).requires_grad_()
    labels, mask = torch.randint(V, (B, S)).t(), torch.zeros(S, B)
    mask.view(-1)[rows] = 1
    dlogp = torch.randn(B, S).t()
    with Launches() as forward:
        logp = lm_head_logprob(hidden, weight, labels, mask, rows=rows, **options)
    with Launches() as backward:
        torch.autograd.grad(logp, (hidden, weight), dlogp)
    return forward.names, backward.names


def test_the_head_is_its_products_and_two_launches_where_no_row_is_masked():
    forward, backward = of_head(torch.arange(S * B), find_zeros=False)
    assert forward == ["mm", "_statistics_kernel"]
    assert backward == ["_gradient_kernel", "mm", "mm"]


def test_masked_rows_cost_the_head_a_selection_and_what_fills_the_gaps():
    forward, backward = of_head(torch.arange(1, S * B, 2), find_zeros=False)
    assert forward == ["index_select", "zeros", "mm", "_statistics_kernel"]
    assert backward == ["_gradient_kernel", "mm", "mm", "new_zeros", "index_copy_"]
