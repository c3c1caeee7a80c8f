"""From target log-probabilities to the 3-tuple that Megatron's schedules take with calculate_per_token_loss=True."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_probsft.objectives import Objective

DENOMINATORS = ("target", "kept")


def token_loss(
    obj: Objective,
    logp: Tensor,  # [...] log p of the target tokens, from ops.target_logprob
    loss_mask: Tensor,  # [...] 0/1 of any dtype
    denominator: str = "target",
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of f(p) over the supervised tokens that the objective keeps, not divided by anything.

    Returns (loss_sum [] fp32, num_tokens [] int32, report). num_tokens counts the supervised tokens ("target") or only
    those that pass the threshold ("kept"); the caller divides the sum over all micro-batches and ranks by the sum of
    num_tokens. report maps objective, nll, p and kept_fraction to detached fp32 [sum, count] pairs; objective is
    counted by the denominator in use, the others by the supervised tokens.

    Gradient: -weight at kept tokens and exactly 0 elsewhere, whatever logp holds there (NaN and inf included);
    loss_sum stays attached to the graph when nothing is kept.
    Raises: ValueError for an objective that moves, for an unknown denominator, or for shapes that differ.
    """
    if not isinstance(obj, Objective):
        raise ValueError(f"objective {obj.key} moves while a model trains; give the one of a step, `objective_at`")
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator is {denominator!r}, but must be one of {', '.join(DENOMINATORS)}")
    if logp.shape != loss_mask.shape:
        raise ValueError(f"logp {list(logp.shape)} and loss_mask {list(loss_mask.shape)} differ in shape; align them")
    valid = loss_mask != 0
    target_logp = torch.where(valid, logp.detach().float(), 0.0)
    kept = valid & obj.keep(target_logp)
    # The mask goes around f twice: its input so that no inf or NaN enters the derivative, its output for the sum.
    loss_sum = torch.where(kept, obj.value(torch.where(kept, logp, 0.0)), 0.0).sum()
    num_target, num_kept = valid.sum(), kept.sum()
    num_tokens = num_target if denominator == "target" else num_kept
    report = {
        "objective": _pair(loss_sum.detach(), num_tokens),
        "nll": _pair(-target_logp.sum(), num_target),
        "p": _pair((target_logp.exp() * valid).sum(), num_target),
        "kept_fraction": _pair(num_kept, num_target),
    }
    return loss_sum, num_tokens.to(torch.int32), report


def _pair(total: Tensor, count: Tensor) -> Tensor:
    return torch.stack([total.float(), count.float()])
