"""The ops on one GPU: what they launch, that they wait for nothing, and offsets of more than 31 bits.

Values and traps: tests/unit/test_target_logprob.py and test_lm_head.py, whose cases with `cuda` have the same marker.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nemo_probsft.ops import lm_head_logprob, target_logprob
from tests.support import reference

pytestmark = pytest.mark.gpu
S, B, H, V = 64, 4, 256, 8192


def kernels_of(function: Callable[[], object]) -> list[str]:
    """Names of what runs on the device, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]


def loss_inputs(dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, ...]:
    logits = torch.randn(S, B, V, device="cuda").to(dtype)
    labels = torch.randint(V - 5, (B, S), device="cuda").t()
    labels[0] = reference.IGNORE
    return logits.requires_grad_(), labels, torch.randn(S, B, device="cuda")


def head_inputs(masked: bool) -> tuple[dict, torch.Tensor]:
    """(arguments of lm_head_logprob with the rows that the host knows, dlogp)."""
    hidden = torch.randn(S, B, H, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(V, H, device="cuda", dtype=torch.bfloat16).div(16).requires_grad_()
    labels = torch.randint(V, (B, S)).t()
    mask = torch.rand(S, B) > (0.5 if masked else -1)
    rows = mask.reshape(-1).nonzero().squeeze(1)
    known = {"labels": labels.cuda(), "loss_mask": mask.cuda(), "rows": rows.cuda()}
    return {"hidden": hidden, "weight": weight} | known, torch.randn(S, B, device="cuda")


@pytest.fixture
def waiting_is_an_error():
    """Inside, whatever waits for the device raises; the test's own setup comes before `torch.cuda.synchronize()`."""
    torch.cuda.synchronize()
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("inplace", [False, True])
def test_one_launch_forward_and_one_backward(inplace):
    logits, labels, dlogp = loss_inputs()
    for _ in range(2):  # the first compiles
        results = []
        forward = kernels_of(lambda into=results: into.append(target_logprob(logits, labels, inplace=inplace)))
        backward = kernels_of(lambda logp=results[0]: torch.autograd.grad(logp, logits, dlogp))
    assert (forward, backward) == (["_statistics_kernel"], ["_gradient_kernel"])


def test_the_head_launches_its_products_and_two_kernels():
    arguments, dlogp = head_inputs(masked=False)
    leaves = arguments["hidden"], arguments["weight"]
    for _ in range(2):
        results = []
        forward = kernels_of(lambda into=results: into.append(lm_head_logprob(**arguments, find_zeros=False)))
        backward = kernels_of(lambda logp=results[0]: torch.autograd.grad(logp, leaves, dlogp))
    # cuBLAS may split a product over K, and then adds the parts in a launch of its own
    assert (forward[-1], backward[0]) == ("_statistics_kernel", "_gradient_kernel")
    assert 2 <= len(forward) <= 4
    assert 3 <= len(backward) <= 7


def test_target_logprob_waits_for_nothing(waiting_is_an_error):
    logits, labels, dlogp = loss_inputs()
    torch.cuda.synchronize()
    waiting_is_an_error()
    logp = target_logprob(logits, labels, vocab_size=V - 5)
    torch.autograd.grad(logp, logits, dlogp)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_tokens", [None, 100])
def test_the_head_waits_for_nothing_where_the_host_knows_the_rows(waiting_is_an_error, masked, chunk_tokens):
    arguments, dlogp = head_inputs(masked)
    leaves = arguments["hidden"], arguments["weight"]
    torch.cuda.synchronize()
    waiting_is_an_error()
    logp = lm_head_logprob(**arguments, find_zeros=False, chunk_tokens=chunk_tokens)
    torch.autograd.grad(logp, leaves, dlogp)
    logp = lm_head_logprob(**arguments, chunk_tokens=chunk_tokens)
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.autograd.grad(logp, leaves, dlogp)
    with pytest.raises(RuntimeError, match="synchronizing"):
        lm_head_logprob(**arguments | {"rows": None})


def test_offsets_need_more_than_31_bits():
    num_rows = 2**31 // 131072 + 64
    logits = torch.randn(num_rows, 131072, device="cuda", dtype=torch.bfloat16).requires_grad_()
    labels, dlogp = torch.randint(131072, (num_rows,), device="cuda"), torch.randn(num_rows, device="cuda")
    last = slice(num_rows - 8, num_rows)
    assert logits[last].storage_offset() > 2**31 or logits.numel() > 2**31
    truth = reference.logprob_and_grad(logits[last], labels[last], dlogp[last])
    logp = target_logprob(logits, labels, inplace=True)
    (dlogits,) = torch.autograd.grad(logp, logits, dlogp)
    torch.testing.assert_close(logp[last].double(), truth[0], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(dlogits[last].double(), truth[1], rtol=2**-7, atol=1e-7)
