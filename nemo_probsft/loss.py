"""From target log-probabilities to the 3-tuple that Megatron's schedules take with calculate_per_token_loss=True."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nemo_probsft.objectives import Objective

DENOMINATORS = ("target", "kept")
REPORT = ("objective", "nll", "p", "kept_fraction")


def token_loss(
    obj: Objective,
    logp: Tensor,  # [...] log p of the target tokens, from ops.target_logprob
    loss_mask: Tensor,  # [...] 0/1 of any dtype
    denominator: str = "target",
    names: Sequence[str] = REPORT,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Sum of f(p) over the supervised tokens that the objective keeps, not divided by anything.

    Returns (loss_sum [] fp32, num_tokens [] int32, report). num_tokens counts the supervised tokens ("target") or only
    those that pass the threshold ("kept"); the caller divides the sum over all micro-batches and ranks by the sum of
    num_tokens. report maps those of objective, nll, p and kept_fraction that are in `names` to detached fp32 [sum,
    count] pairs; objective is counted by the denominator in use, the others by the supervised tokens.

    Synchronisations on CUDA: none.
    Gradient: -weight at kept tokens and exactly 0 elsewhere, whatever logp holds there (NaN and inf included);
    loss_sum stays attached to the graph when nothing is kept.
    Raises: ValueError for an objective that depends on training, for an unknown denominator, or for shapes that differ.
    """
    if not isinstance(obj, Objective):
        raise ValueError(f"objective {obj.key} depends on the training; give that of a step, `objective_at`")
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator is {denominator!r}, but must be one of {', '.join(DENOMINATORS)}")
    if logp.shape != loss_mask.shape:
        raise ValueError(f"logp {list(logp.shape)} and loss_mask {list(loss_mask.shape)} differ in shape; align them")
    valid = loss_mask != 0
    target_logp = torch.where(valid, logp.detach().float(), 0.0)
    kept = valid & obj.keep(target_logp) if obj.has_threshold else valid
    # The mask goes around f twice: its input so that no inf or NaN enters the derivative, its output for the sum.
    loss_sum = torch.where(kept, obj.value(torch.where(kept, logp, 0.0)), 0.0).sum()
    num_target = valid.sum()
    num_kept = kept.sum() if obj.has_threshold else num_target
    num_tokens = num_target if denominator == "target" else num_kept
    pairs = {
        "objective": (loss_sum.detach(), num_tokens),
        "nll": (-target_logp.sum(), num_target),
        "kept_fraction": (num_kept, num_target),
    }
    if "p" in names:
        pairs["p"] = ((target_logp.exp() * valid).sum(), num_target)
    report = {name: torch.stack([number.float() for number in pairs[name]]) for name in names}
    return loss_sum, num_tokens.to(torch.int32), report
