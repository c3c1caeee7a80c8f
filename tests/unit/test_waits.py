"""What `tests.support.waits` does not count, because a GPU would not run it: fake CUDA tensors show that it does not.

A fake tensor has no values: whatever would read one, as a wait for the device does, raises.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from nemo_probsft.ops import HeadReport, lm_head, lm_head_logprob
from nemo_probsft.ops.logprob import implementation
from nemo_probsft.ops.targets import Shard, Targets
from tests.support.waits import CHECKS, OF_A_CPU, Waits

READS = (DataDependentOutputException, DynamicOutputShapeException)


def check_labels(device: str) -> None:
    labels = torch.zeros(4, dtype=torch.int64, device=device)
    Targets(labels, Shard.of(8, None, None), -100, torch.arange(4, device=device)).check()


def check_rows(device: str) -> None:
    labels, mask = torch.zeros(4, dtype=torch.int64, device=device), torch.ones(4, device=device)
    lm_head._check_rows(torch.arange(4, device=device), labels, mask, -100)


@pytest.mark.parametrize("place", sorted(CHECKS))
def test_a_check_that_is_left_out_reads_nothing_on_cuda(place):
    check = {
        "nemo_probsft/ops/targets.py:check": check_labels,
        "nemo_probsft/ops/lm_head.py:_check_rows": check_rows,
    }[place]
    with FakeTensorMode():
        check("cuda")
        with pytest.raises(READS):
            check("cpu")


def test_what_stands_in_for_the_kernels_is_not_chosen_on_cuda():
    with FakeTensorMode():
        chosen = implementation(torch.empty(2, 3, device="cuda")).__file__
        assert implementation(torch.empty(2, 3)).__file__.endswith(OF_A_CPU[0])
    assert not chosen.endswith(OF_A_CPU)


def head(**options) -> list[list[str]]:
    hidden, weight = torch.ones(3, 4, requires_grad=True), torch.ones(8, 4, requires_grad=True)
    labels, counted = torch.tensor([1, 2, 3]), Waits()
    with counted:
        lm_head_logprob(hidden, weight, labels, torch.ones(3), report=HeadReport(), **options).sum().backward()
    return counted.seen


def test_the_head_is_counted_besides():
    assert head(rows=torch.arange(3), find_zeros=False) == []
    assert head(find_zeros=False) == [["nonzero", "nemo_probsft/ops/lm_head.py:_rows"]]
    assert head(rows=torch.arange(3)) == [["nonzero", "nemo_probsft/ops/lm_head.py:_active_rows"]]
