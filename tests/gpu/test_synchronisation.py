"""Nothing in a micro-batch waits for the GPU: CUDA itself raises where something does."""

from __future__ import annotations

import contextlib

import pytest
import torch

from nemo_probsft.adapters.megatron.step import TrainingStep
from nemo_probsft.config import ResolvedObjective
from nemo_probsft.data.batches import IGNORED, loss_rows
from nemo_probsft.objectives import parse_objective
from nemo_probsft.ops import lm_head_logprob

pytestmark = pytest.mark.gpu

B, S, H, V = 2, 64, 32, 1000


@contextlib.contextmanager
def nothing_waits():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def micro_batch(find_zeros: bool, step: TrainingStep):
    """A function that does what a micro-batch does after the model's last layer, forward and backward."""
    hidden = torch.randn(S, B, H, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(V, H, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    mask = (torch.rand(B, S) < 0.5).float()
    labels = torch.randint(V, (B, S)).masked_fill(mask == 0, IGNORED)
    rows = loss_rows(mask).pin_memory()
    labels, mask = labels.cuda(), mask.cuda()

    def run() -> None:
        targets = labels.transpose(0, 1)
        known = {"rows": rows.to("cuda", non_blocking=True), "find_zeros": find_zeros}
        known["top_logp"] = step.head_rows.make_top(targets)
        logp = lm_head_logprob(hidden, weight, targets, targets != IGNORED, ignore_index=IGNORED, **known)
        step.loss(-logp.transpose(0, 1).contiguous(), labels, mask)[0].backward()

    return run


@pytest.mark.parametrize(
    "key", ["original", "GeneralFamily-10", "adaptive", "adaptive-by-label", "adaptive-by-confidence", "OnlyTopP-0.2"]
)
def test_a_micro_batch_waits_for_nothing_but_the_rows_that_a_threshold_leaves_out(key):
    objective = parse_objective(key)
    step = TrainingStep(ResolvedObjective(objective, "target", key), num_steps=2, num_labels=V)
    step.to("cuda")
    step.begin(1)
    run = micro_batch(objective.has_threshold, step)
    run()  # Triton compiles
    step.begin(2)
    with nothing_waits():
        if not objective.has_threshold:
            run()
            return
        with pytest.raises(RuntimeError, match="synchroniz"):
            run()
    assert len(step.micro_batches) == 1, "the forward pass was over: it waited in the backward pass"


def test_a_guard_that_asks_at_once_would_be_seen():
    nll = torch.rand(B, S, device="cuda")
    with nothing_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        bool(torch.isfinite(nll).all())
